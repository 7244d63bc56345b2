"""The shapes of modern decoders: one config, small presets to train and published ones to load.

`llama.Llama` is built from a `LlamaConfig`. The published presets are those of the papers' tables;
their parameter counts, which a test compares with `transformers`', are the model cards'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

from rope_encoding import RoPEScaling
from sublayers import Activation


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a `Llama`.

    Args:
        vocab_size, d_model, num_heads, num_layers, d_ff: V, D, H, L and F.
        num_kv_heads: key/value heads G, a divisor of H; None = H.
        head_dim: head width K, even; None = D/H. Free: H·K need not be D (Qwen3-0.6B: 2D).
        max_seq_len: positions that the model was or will be trained on.
        rope_base: θ of the slowest rotation; larger for longer contexts.
        rope_scaling: a rule that stretches the rotations beyond the trained length.
        qk_norm: RMSNorm over K on queries and keys (Qwen3); without it this is Llama.
        tie_embeddings: the output layer is the embedding, transposed.
        norm_eps: added to the mean square in every norm.
        activation: of the feed-forward's gate, as in `GatedFeedForward`.
        gated: False puts the plain two-matrix `FeedForward` in place of the gated one.
        dropout: on attention weights and on each sublayer's output, in training.
        logit_soft_cap: c of c·tanh(logits/c) (Gemma 2, 2024); None = no cap.
        init_std: standard deviation of new weights; None = 1/√fan_in for each matrix.
        embedding_std: the same for the embedding; None = as `init_std` (0.02 if that is None).
        zero_init_outputs: a new model's attention and feed-forward outputs start at zero, so that
            every block starts as the identity (as in µP and the modded-nanogpt recipes).

    Raises:
        ValueError: a size that is not positive, does not divide, or is out of its range.
    """

    vocab_size: int
    d_model: int
    num_heads: int
    num_layers: int
    d_ff: int
    max_seq_len: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_base: float = 10_000.0
    rope_scaling: RoPEScaling | None = None
    qk_norm: bool = True
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    activation: Activation = "silu"
    gated: bool = True
    dropout: float = 0.0
    logit_soft_cap: float | None = None
    init_std: float | None = 0.02
    embedding_std: float | None = None
    zero_init_outputs: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_heads", "num_layers", "d_ff", "max_seq_len"):
            _check_size(name, getattr(self, name))
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            if self.d_model % self.num_heads:
                raise ValueError(
                    f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}; "
                    "give head_dim"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        _check_size("num_kv_heads", self.num_kv_heads)
        _check_size("head_dim", self.head_dim)
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.kv_heads}"
            )
        if self.head_width % 2:
            raise ValueError(f"head_dim is {self.head_width}; rotations need an even width")
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"activation is {self.activation!r}; it must be one of {get_args(Activation)}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        for name in ("rope_base", "norm_eps", "logit_soft_cap", "init_std", "embedding_std"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be positive and finite")

    @property
    def kv_heads(self) -> int:
        """G, never None."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """K, never None."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def num_parameters(self) -> int:
        """How many numbers the model learns; a tied matrix counts once."""
        D = self.d_model
        norms = self.num_layers * (2 * D + 2 * self.head_width * self.qk_norm) + D
        embeddings = self.vocab_size * D * (1 if self.tie_embeddings else 2)
        return self.num_layers * self._block_matrices + norms + embeddings

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of one training step's forward and backward, for each of `seq_len` tokens.

        Counted as in `gpt.flops_per_token`: six for each weight that a token is multiplied with
        (looking an embedding up is free, the output layer is not), and 12·H·K·S a layer for the
        scores and the mix, masked half included.
        """
        matrices = self.num_layers * self._block_matrices + self.vocab_size * self.d_model
        scores = self.num_layers * self.num_heads * self.head_width * seq_len
        return 6 * matrices + 12 * scores

    @property
    def _block_matrices(self) -> int:
        """Weights in one block's matrices."""
        attention = 2 * self.d_model * self.head_width * (self.num_heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.d_model * self.d_ff


def _check_size(name: str, size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} is {size!r}; it must be an integer of at least 1")


# --- presets -------------------------------------------------------------------------------------

_QWEN3: dict[str, Any] = {
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_kv_heads": 8,
    "max_seq_len": 40_960,
    "rope_base": 1_000_000.0,
}
_LLAMA: dict[str, Any] = {"qk_norm": False, "norm_eps": 1e-5, "tie_embeddings": False}
_LLAMA3: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 128_256,
    "num_kv_heads": 8,
    "rope_base": 500_000.0,
}


def _small(d_model: int, num_layers: int, d_ff: int, vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_heads": d_model // 64,
        "num_layers": num_layers,
        "d_ff": d_ff,
        "max_seq_len": 512,
    }


_PRESETS: dict[str, dict[str, Any]] = {
    "1M": _small(128, 4, 352, 2048),
    "3M": _small(192, 5, 512, 4096),
    "7M": _small(256, 8, 704, 4096),
    "12M": _small(320, 9, 896, 4096),
    "25M": _small(448, 10, 1216, 8192),
    # Qwen3 technical report (Yang et al. 2025), table 1
    "qwen3-0.6b": {**_QWEN3, "d_model": 1024, "num_heads": 16, "num_layers": 28, "d_ff": 3072},
    "qwen3-1.7b": {**_QWEN3, "d_model": 2048, "num_heads": 16, "num_layers": 28, "d_ff": 6144},
    "qwen3-4b": {**_QWEN3, "d_model": 2560, "num_heads": 32, "num_layers": 36, "d_ff": 9728},
    "qwen3-8b": {
        **_QWEN3,
        "d_model": 4096,
        "num_heads": 32,
        "num_layers": 36,
        "d_ff": 12_288,
        "tie_embeddings": False,
    },
    # Touvron et al. 2023 (Llama 2); Grattafiori et al. 2024 (Llama 3), table 3
    "llama2-7b": {
        **_LLAMA,
        "vocab_size": 32_000,
        "d_model": 4096,
        "num_heads": 32,
        "num_layers": 32,
        "d_ff": 11_008,
        "max_seq_len": 4096,
    },
    "llama3-8b": {
        **_LLAMA3,
        "d_model": 4096,
        "num_heads": 32,
        "num_layers": 32,
        "d_ff": 14_336,
        "max_seq_len": 8192,
    },
    "llama3.2-1b": {
        **_LLAMA3,
        "d_model": 2048,
        "num_heads": 32,
        "num_layers": 16,
        "d_ff": 8192,
        "max_seq_len": 131_072,
        "tie_embeddings": True,
        "rope_scaling": RoPEScaling(
            kind="llama3",
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    },
}


def llama_preset(name: str, **overrides: Any) -> LlamaConfig:
    """A named shape: "1M" to "25M" for training here, published ones to load or to count.

    Args:
        name: a small one (its parameters, embedding included) or a published one, as
            "qwen3-0.6b" (596,049,920 parameters) or "llama3-8b" (8,030,261,248).
        overrides: `LlamaConfig` fields to change, above all `vocab_size` and `max_seq_len`.

    Raises:
        ValueError: no preset of that name. TypeError: no such field.
    """
    if name not in _PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(_PRESETS)}")
    return LlamaConfig(**{**_PRESETS[name], **overrides})
