"""The shape of a BERT, and the published ones.

One config covers four papers, because they differ in what they were trained on far more than in
what they are: RoBERTa counts positions from its padding's id, ELECTRA and ALBERT look tokens up in
a narrower table, ALBERT runs one layer many times. A test compares the parameters that the config
counts with those of `transformers`' models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sublayers import Activation


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The shape of a `Bert`; the defaults are BERT's (Devlin et al. 2019).

    Args:
        vocab_size, d_model, num_heads, num_layers: V, D, H and L; H divides D.
        max_seq_len: the longest text, in tokens; RoBERTa's two spare positions not counted.
        d_ff: feed-forward width F; None = 4·D (and the field then reads 4·D).
        dropout: on the embeddings, the attention weights and the sublayers' outputs.
        num_types: kinds of text in one input (sentence A and B).
        pad_id: what fills short texts; hidden from attention. None = no id is padding.
        norm_eps: added to the variance in every norm.
        activation: of the feed-forward layers, as in `sublayers`.
        embed_dim: width E of the token table where it is not D's; see `SummedEmbeddings`.
        position_offset: RoBERTa's pad_id + 1; see `SummedEmbeddings`.
        share_layers: all L layers are one set of weights (ALBERT, Lan et al. 2020).
        init_std: standard deviation of new matrices.

    Raises:
        ValueError: a size that is not positive or does not divide, or a dropout outside [0, 1).
    """

    vocab_size: int
    d_model: int
    num_heads: int
    num_layers: int
    max_seq_len: int = 512
    d_ff: int | None = None
    dropout: float = 0.1
    num_types: int = 2
    pad_id: int | None = 0
    norm_eps: float = 1e-12
    activation: Activation = "gelu"
    embed_dim: int | None = None
    position_offset: int = 0
    share_layers: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        sizes = ["vocab_size", "d_model", "num_heads", "num_layers", "max_seq_len", "d_ff"]
        if self.embed_dim is not None:
            sizes.append("embed_dim")
        for name in sizes:
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number of at least 1")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def tie_embeddings(self) -> bool:
        """True: the output layer of every masked language model here is its token table."""
        return True

    @property
    def embed_width(self) -> int:
        """The width E of the token table."""
        return self.d_model if self.embed_dim is None else self.embed_dim

    @property
    def ff_width(self) -> int:
        """The feed-forward width F."""
        assert self.d_ff is not None, "__post_init__ fills it in"
        return self.d_ff

    @property
    def num_parameters(self) -> int:
        """How many numbers a `MaskedLanguageModel` of this shape learns; tied ones count once."""
        D, E, F, V = self.d_model, self.embed_width, self.ff_width, self.vocab_size
        positions = self.max_seq_len + self.position_offset
        embeddings = (V + positions + self.num_types) * E + 2 * E
        if self.embed_dim is not None:
            embeddings += E * D + D
        layer = self._layer_matrices + (4 * D + F + D) + 2 * (2 * D)
        head = (D * E + E) + 2 * E + V  # transform, norm, and a bias for each word
        return embeddings + layer * (1 if self.share_layers else self.num_layers) + head

    def flops_per_token(self, seq_len: int, *, predicted: float = 1.0) -> int:
        """FLOPs of a training step's forward and backward, for each of `seq_len` tokens.

        Counted as in `gpt.GPTConfig.flops_per_token`: six a weight that a token meets, and
        attention's 12·L·D·T, which an encoder cannot halve. Sharing layers saves none of it.

        Args:
            seq_len: T.
            predicted: the share of the positions that the masked language model's head reads:
                0.15 where it computes no more than it has to, 0 for the encoder alone.
        """
        D, E = self.d_model, self.embed_width
        matrices = self.num_layers * self._layer_matrices
        if self.embed_dim is not None:
            matrices += E * D
        head = predicted * (D * E + E * self.vocab_size)
        return round(6 * (matrices + head) + 12 * self.num_layers * D * seq_len)

    @property
    def _layer_matrices(self) -> int:
        """Weights in one layer's matrices: q, k, v and out are D·D each, up and down D·F."""
        return 4 * self.d_model**2 + 2 * self.d_model * self.ff_width


_BERT = {"vocab_size": 30_522}
_ROBERTA = {
    "vocab_size": 50_265,
    "num_types": 1,
    "pad_id": 1,
    "position_offset": 2,
    "norm_eps": 1e-5,
}
_BASE = {"d_model": 768, "num_heads": 12, "num_layers": 12}
_LARGE = {"d_model": 1024, "num_heads": 16, "num_layers": 24}
_ALBERT = {
    "vocab_size": 30_000,
    "embed_dim": 128,
    "share_layers": True,
    "activation": "gelu_tanh",
    "dropout": 0.0,
}
_ELECTRA_SMALL = {"d_model": 256, "num_layers": 12, "embed_dim": 128}
_PRESETS: dict[str, dict[str, Any]] = {
    # Devlin et al. 2019, section 3.
    "bert-base": {**_BERT, **_BASE},
    "bert-large": {**_BERT, **_LARGE},
    # Liu et al. 2019; the sizes are BERT's.
    "roberta-base": {**_ROBERTA, **_BASE},
    "roberta-large": {**_ROBERTA, **_LARGE},
    # Clark et al. 2020, table 6; the generator is the discriminator a quarter as wide inside.
    "electra-small": {**_BERT, **_ELECTRA_SMALL, "num_heads": 4, "d_ff": 1024},
    "electra-base": {**_BERT, **_BASE},
    # Lan et al. 2020, table 1.
    "albert-base": {**_ALBERT, **_BASE},
    "albert-large": {**_ALBERT, **_LARGE},
}


def bert_preset(name: str, **overrides: Any) -> BertConfig:
    """Return a published shape.

    Args:
        name: "bert-base", "bert-large", "roberta-base", "roberta-large", "electra-small",
            "electra-base", "albert-base" or "albert-large".
        overrides: `BertConfig` fields to change.

    Raises:
        ValueError: no preset of that name. TypeError: no such field.
    """
    if name not in _PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(_PRESETS)}")
    return BertConfig(**{**_PRESETS[name], **overrides})
