"""The encoder-decoder a second time, in NumPy alone: the same logits from the same weights.

Each method is one formula of the page, and nothing else happens. It knows no gradients and keeps
no cache; read it when you wonder what `transformer.Transformer` computes between ids and logits.

Letters: B batch, T target positions, S source positions, D model width, H heads, K head width,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from numerics import softmax


class NumpyTransformer:
    """The 2017 model from a state dict of `transformer.Transformer`.

    Args:
        weights: `{name: array}` with the names of that state dict; tied ones may be missing.
        num_heads: heads H, which no array's shape tells.
        pre_norm: where the norms stand, as the model was built.
        pad_id: the source's padding, which nobody attends to.
        eps: of the layer norms.

    The number of layers is read from the names. Computes in the weights' precision.

    Raises:
        ValueError: weights are missing or of no use here, or the width is no multiple of
            `num_heads`.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        *,
        num_heads: int,
        pre_norm: bool = False,
        pad_id: int = 0,
        eps: float = 1e-5,
    ) -> None:
        self.weights = {name: np.asarray(array) for name, array in weights.items()}
        embedding = self.weights.get("tgt_embedding.weight")
        if embedding is None:
            raise ValueError("weights lack tgt_embedding.weight")
        self.weights.setdefault("src_embedding.weight", embedding)
        self.weights.setdefault("unembed.weight", embedding)
        self.d_model = embedding.shape[1]
        if num_heads < 1 or self.d_model % num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.pre_norm = pre_norm
        self.pad_id = pad_id
        self.eps = eps
        self.num_layers = {side: self._count_layers(side) for side in ("encoder", "decoder")}
        needed = self._names()
        missing = sorted(needed - set(self.weights))
        if missing:
            raise ValueError(f"weights lack {', '.join(missing)}")
        unknown = sorted(set(self.weights) - needed)
        if unknown:
            raise ValueError(f"weights of no use with pre_norm={pre_norm}: {', '.join(unknown)}")

    def logits(self, src: np.ndarray, tgt: np.ndarray) -> np.ndarray:
        """Source ids (B, S) and target ids (B, T) -> logits (B, T, V)."""
        src, tgt = np.asarray(src), np.asarray(tgt)
        keep = (src != self.pad_id)[:, None, None, :]  # (B, 1, 1, S)
        return self.decode(tgt, self.encode(src), keep)

    def encode(self, src: np.ndarray) -> np.ndarray:
        """Source ids (B, S) -> memory (B, S, D)."""
        src = np.asarray(src)
        keep = (src != self.pad_id)[:, None, None, :]  # (B, 1, 1, S)
        x = self._embed(src, "src_embedding.weight")  # (B, S, D)
        for layer in range(self.num_layers["encoder"]):
            name = f"encoder.blocks.{layer}."
            x = self._sublayer(x, name + "attention", self._attention, keep=keep)
            x = self._sublayer(x, name + "feed_forward", self._feed_forward)
        return self._norm(x, "encoder.final_norm") if self.pre_norm else x

    def decode(self, tgt: np.ndarray, memory: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """Target ids (B, T), memory (B, S, D) and what of it may be read (B, 1, 1, S) -> logits."""
        x = self._embed(tgt, "tgt_embedding.weight")  # (B, T, D)
        T = tgt.shape[1]
        causal = np.tril(np.ones((T, T), dtype=bool))  # (T, T)
        for layer in range(self.num_layers["decoder"]):
            name = f"decoder.blocks.{layer}."
            x = self._sublayer(x, name + "attention", self._attention, keep=causal)
            x = self._sublayer(
                x, name + "cross_attention", self._attention, memory=memory, keep=keep
            )
            x = self._sublayer(x, name + "feed_forward", self._feed_forward)
        if self.pre_norm:
            x = self._norm(x, "decoder.final_norm")
        return x @ self.weights["unembed.weight"].T  # (B, T, V)

    def _embed(self, ids: np.ndarray, name: str) -> np.ndarray:
        """√D times the word's row, plus the position's sinusoids: (B, T) -> (B, T, D)."""
        table = self.weights[name]
        if ids.ndim != 2:
            raise ValueError(f"ids have shape {ids.shape}; they must be (batch, length)")
        wrong = ids[(ids < 0) | (ids >= len(table))]
        if wrong.size:
            raise ValueError(f"id {wrong[0]} is outside [0, {len(table)})")
        D = self.d_model
        rates = 10000.0 ** (-np.arange(0, D, 2) / D)  # (⌈D/2⌉,)
        angles = np.arange(ids.shape[1])[:, None] * rates  # (T, ⌈D/2⌉)
        positions = np.empty((ids.shape[1], D), dtype=np.float32)  # as the model stores them
        positions[:, 0::2] = np.sin(angles)
        positions[:, 1::2] = np.cos(angles[:, : D // 2])
        return table[ids] * math.sqrt(D) + positions.astype(table.dtype)  # (B, T, D)

    def _sublayer(
        self, x: np.ndarray, name: str, function: Callable[..., np.ndarray], **options: Any
    ) -> np.ndarray:
        """x + f(LN(x)) in pre-norm, LN(x + f(x)) in post-norm: (B, T, D) -> (B, T, D)."""
        norm = name.replace("cross_attention", "cross") + "_norm"
        if self.pre_norm:
            return x + function(self._norm(x, norm), name, **options)
        return self._norm(x + function(x, name, **options), norm)

    def _attention(
        self, x: np.ndarray, name: str, *, keep: np.ndarray, memory: np.ndarray | None = None
    ) -> np.ndarray:
        """Queries from x (B, T, D), keys and values from memory (B, S, D) or x -> (B, T, D)."""
        memory = x if memory is None else memory
        q = self._heads(self._linear(x, name + ".q_proj"))  # (B, H, T, K)
        k = self._heads(self._linear(memory, name + ".k_proj"))  # (B, H, S, K)
        v = self._heads(self._linear(memory, name + ".v_proj"))  # (B, H, S, K)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, T, S)
        # Not -inf: a source of nothing but padding is read as 0, as in PyTorch, and not as NaN.
        weights = softmax(np.where(keep, scores, np.finfo(scores.dtype).min))  # (B, H, T, S)
        weights = np.where(keep, weights, 0.0)
        mixed = (weights @ v).swapaxes(1, 2).reshape(x.shape)  # (B, T, D)
        return self._linear(mixed, name + ".out_proj")

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """Cut the width into heads: (B, T, D) -> (B, H, T, K)."""
        B, T, D = x.shape
        return x.reshape(B, T, self.num_heads, D // self.num_heads).swapaxes(1, 2)

    def _feed_forward(self, x: np.ndarray, name: str) -> np.ndarray:
        """max(0, x W₁ + b₁) W₂ + b₂."""
        return self._linear(np.maximum(self._linear(x, name + ".up"), 0.0), name + ".down")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """x Wᵀ + b; the weight is stored (out, in)."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """Each vector to mean 0 and variance 1, then scaled and shifted."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self.eps)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _names(self) -> set[str]:
        """The names of all weights that `logits` reads."""
        names = {"src_embedding.weight", "tgt_embedding.weight", "unembed.weight"}
        for side, layers in self.num_layers.items():
            attentions = ["attention"] if side == "encoder" else ["attention", "cross_attention"]
            parts = [f"{a}.{p}_proj" for a in attentions for p in ("q", "k", "v", "out")]
            parts += [f"{a.replace('cross_attention', 'cross')}_norm" for a in attentions]
            parts += ["feed_forward.up", "feed_forward.down", "feed_forward_norm"]
            owners = [f"{side}.blocks.{i}.{part}" for i in range(layers) for part in parts]
            owners += [f"{side}.final_norm"] if self.pre_norm else []
            names |= {f"{owner}.{kind}" for owner in owners for kind in ("weight", "bias")}
        return names

    def _count_layers(self, side: str) -> int:
        prefix = f"{side}.blocks."
        layers = {
            n.removeprefix(prefix).split(".")[0] for n in self.weights if n.startswith(prefix)
        }
        if not layers or layers != {str(i) for i in range(len(layers))}:
            raise ValueError(f"weights lack blocks of the {side}: found {sorted(layers)}")
        return len(layers)
