"""BERT and its relatives: encoders that read a text in both directions, and their heads.

Take the encoder of 2017, give it learned positions and types, and train it to restore words that
were hidden from it (Devlin et al. 2019). Nothing else is new: the blocks are topic 04's
`TransformerBlock` with the norm *after* each residual sum and exact GELU. One class serves

    BERT      as it is;
    RoBERTa   (Liu et al. 2019) the same network: its gains came from data and batches;
    ALBERT    (Lan et al. 2020) one layer run L times, and a narrow token table;
    ELECTRA   (Clark et al. 2020) a head that says of *every* token whether it was replaced.

`bert_config` has the shapes, `bert_weights` exchanges weights with `transformers`, and `finetune`
has the heads for tasks. README, "The encoder family".
Letters: B batch, T length, N chosen positions, D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from attention import AttentionFn, MultiHeadAttention
from bert_config import BertConfig, bert_preset
from input_embeddings import SummedEmbeddings
from masks import keep_over_keys
from matmul_attention import fast_attention
from sublayers import FeedForward, LayerNorm, activation_function
from transformer import TransformerBlock

__all__ = [
    "Bert",
    "BertConfig",
    "BertPretrainingModel",
    "MaskedLanguageModel",
    "ReplacedTokenDetector",
    "bert_preset",
]


class Bert(nn.Module):
    """The encoder: ids in, one vector a token out, each having seen the whole text.

    Args:
        config: its shape.
        pooler: whether it has `pooled`'s matrix. BERT trains it with next-sentence prediction;
            without that objective there is nothing to train it, and it is left out.
        attend: the `AttentionFn` of every layer.
        generator: random numbers for the initial weights; None = PyTorch's global generator.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        pooler: bool = True,
        attend: AttentionFn = fast_attention,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embeddings = SummedEmbeddings(
            config.vocab_size,
            config.d_model,
            max_seq_len=config.max_seq_len,
            num_types=config.num_types,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
            pad_id=config.pad_id,
            position_offset=config.position_offset,
            embed_dim=config.embed_dim,
        )
        own = 1 if config.share_layers else config.num_layers
        self.blocks = nn.ModuleList(_block(config, attend) for _ in range(own))
        self.pooler = nn.Linear(config.d_model, config.d_model) if pooler else None
        _reset_parameters(self, config, generator)

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """Read a batch of texts.

        Args:
            ids: (B, T) int64.
            keep: bool (B, T), True = a real token; None = wherever ids is not `config.pad_id`.
                A padded position has a vector too, which means nothing.
            types: int64 (B, T), which text each token belongs to; None = all to the first.

        Returns:
            (B, T, D).

        Raises:
            ValueError: ids or types that do not fit or are out of range, a text longer than
                `max_seq_len`, or a keep that is not (B, T).
        """
        x = self.embeddings(ids, types=types)  # (B, T, D)
        if keep is None and self.config.pad_id is not None:
            keep = ids != self.config.pad_id  # (B, T)
        if keep is not None and keep.is_cpu and bool(keep.all()):
            keep = None if keep.shape == ids.shape else keep  # nothing to hide, so no mask to pay
        mask = keep_over_keys("keep", keep, ids)  # (B, 1, 1, T)
        for layer in range(self.config.num_layers):
            block = self.blocks[0 if self.config.share_layers else layer]
            x = block(x, keep=mask)
        return x  # (B, T, D)

    def pooled(self, hidden: Tensor) -> Tensor:
        """Return one vector a text, (B, D): tanh of a matrix times the first token's vector.

        Raises:
            ValueError: an encoder without a pooler.
        """
        if self.pooler is None:
            raise ValueError("this encoder was built with pooler=False")
        return torch.tanh(self.pooler(hidden[:, 0]))


class MaskedLanguageModel(nn.Module):
    """An encoder that says what stood at each position: BERT's first objective.

    The head turns each vector once more, normalises it, and compares it with every row of the
    token table (E wide, so the head narrows D to E where they differ).

    Args: as `Bert`, without the pooler.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        attend: AttentionFn = fast_attention,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = self._make_encoder(config, attend)
        # The head's nonlinearity is the layers'; all published models agree.
        width = config.embed_width
        self.transform = nn.Linear(config.d_model, width)
        self.activate = activation_function(config.activation)
        self.transform_norm = LayerNorm(width, eps=config.norm_eps)
        self.decoder = nn.Linear(width, config.vocab_size)
        self.decoder.weight = self.encoder.embeddings.tokens.weight
        _reset_parameters(self, config, generator)

    def forward(
        self,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        types: Tensor | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of the token that stood at each position.

        Args:
            ids, keep, types: as in `Bert.forward`.
            only: bool (B, T): compute logits at these positions only. A loss reads 15 % of them,
                and with a large vocabulary the rest would be most of the step's cost.

        Returns:
            (B, T, V), or (N, V) with `only`, in the order of `hidden[only]`.
        """
        return self.token_logits(self.encoder(ids, keep=keep, types=types), only=only)

    def token_logits(self, hidden: Tensor, *, only: Tensor | None = None) -> Tensor:
        """Encoder output (B, T, D) -> logits (B, T, V), or (N, V) at the chosen positions.

        Raises:
            ValueError: an `only` that is not (B, T).
        """
        if only is not None:
            if only.shape != hidden.shape[:2] or only.dtype != torch.bool:
                raise ValueError(
                    f"only is {tuple(only.shape)} {only.dtype}; it must be "
                    f"{tuple(hidden.shape[:2])} bool"
                )
            hidden = hidden[only]  # (N, D)
        turned = self.transform_norm(self.activate(self.transform(hidden)))  # (..., E)
        return self.decoder(turned)  # (..., V)

    @staticmethod
    def _make_encoder(config: BertConfig, attend: AttentionFn) -> Bert:
        return Bert(config, pooler=False, attend=attend)


class BertPretrainingModel(MaskedLanguageModel):
    """BERT as it was pre-trained: hidden words, and whether two sentences belong together.

    Args: as `MaskedLanguageModel`.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        attend: AttentionFn = fast_attention,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(config, attend=attend)
        self.next_sentence = nn.Linear(config.d_model, 2)
        _reset_parameters(self, config, generator)

    def pretraining_logits(
        self,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        types: Tensor | None = None,
        only: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return both heads' logits from one pass.

        Args: as in `forward`.

        Returns:
            The tokens' (B, T, V), or (N, V) with `only`; and the sentences' (B, 2): index 0 says
            that the second follows the first, index 1 that it was drawn at random.
        """
        hidden = self.encoder(ids, keep=keep, types=types)  # (B, T, D)
        follows = self.next_sentence(self.encoder.pooled(hidden))  # (B, 2)
        return self.token_logits(hidden, only=only), follows

    @staticmethod
    def _make_encoder(config: BertConfig, attend: AttentionFn) -> Bert:
        return Bert(config, pooler=True, attend=attend)


class ReplacedTokenDetector(nn.Module):
    """ELECTRA's discriminator: which tokens are not the ones that were written?

    A masked language model learns from the 15 % that it has to restore. This one is told about
    every token, after a small generator (a `MaskedLanguageModel`) has filled the gaps with
    plausible words (Clark et al. 2020, section 2). Keep the encoder; throw the generator away.

    Args: as `Bert`, without the pooler.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        attend: AttentionFn = fast_attention,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Bert(config, pooler=False, attend=attend)
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.activate = activation_function(config.activation)
        self.verdict = nn.Linear(config.d_model, 1)
        _reset_parameters(self, config, generator)

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """Return the logit of "replaced" for each token, (B, T). Arguments as in `Bert`."""
        hidden = self.encoder(ids, keep=keep, types=types)  # (B, T, D)
        return self.verdict(self.activate(self.transform(hidden))).squeeze(-1)  # (B, T)


def _block(config: BertConfig, attend: AttentionFn) -> TransformerBlock:
    """Return one layer: attention, add, norm; feed-forward, add, norm."""
    return TransformerBlock(
        attention=MultiHeadAttention(
            config.d_model, config.num_heads, attend=attend, dropout=config.dropout
        ),
        feed_forward=FeedForward(config.d_model, config.ff_width, activation=config.activation),
        norm=partial(LayerNorm, config.d_model, eps=config.norm_eps),
        pre_norm=False,
        dropout=config.dropout,
    )


@torch.no_grad()
def _reset_parameters(
    model: nn.Module, config: BertConfig, generator: torch.Generator | None
) -> None:
    """Draw matrices and tables from N(0, init_std²); biases become 0, norms' weights 1.

    BERT truncates the normal at two deviations; no result is known to depend on it.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.normal_(std=config.init_std, generator=generator)
