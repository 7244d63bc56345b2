"""GPT a second time, in NumPy alone: inference from the same weights, with the same logits.

No framework hides anything here: every line is one formula of the README. It keeps no cache and
computes no gradients; read it when you wonder what a layer of `gpt.GPT` really does.

Letters: T positions, D model width, H heads, K head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gpt import GPTConfig
from numerics import softmax


class NumpyGPT:
    """A GPT for one text at a time.

    Args:
        weights: `{name: array}` with the names of `gpt.GPT`'s state dict.
        config: of the model that the weights belong to; its activation must be "gelu_tanh".

    Raises:
        ValueError: a weight is missing, or the activation is another.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], config: GPTConfig) -> None:
        if config.activation != "gelu_tanh":
            raise ValueError(f"activation {config.activation!r} is not written here: gelu_tanh is")
        self.config = config
        self.weights = {name: np.asarray(array) for name, array in weights.items()}
        if config.tie_embeddings and "token_embedding.weight" in self.weights:
            self.weights.setdefault("unembed.weight", self.weights["token_embedding.weight"])
        needed = ["token_embedding.weight", "position_embedding.weight", "unembed.weight"]
        needed += [f"blocks.{config.num_layers - 1}.feed_forward.down.weight", "final_norm.weight"]
        missing = [name for name in needed if name not in self.weights]
        if missing:
            raise ValueError(f"weights lack {', '.join(missing)}")

    def logits(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits of the token after each position: (T,) ids -> (T, V).

        Raises:
            ValueError: no ids, more than max_seq_len, or an id outside [0, V).
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not 1 <= len(ids) <= self.config.max_seq_len:
            raise ValueError(
                f"ids has shape {ids.shape}; it must be one text of 1 to "
                f"{self.config.max_seq_len} tokens"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"ids must lie in [0, {self.config.vocab_size})")
        x = self.weights["token_embedding.weight"][ids]  # (T, D)
        x = x + self.weights["position_embedding.weight"][: len(ids)]  # (T, D)
        for layer in range(self.config.num_layers):
            block = f"blocks.{layer}."
            x = x + self._attention(self._norm(x, block + "attention_norm"), block + "attention.")
            x = x + self._feed_forward(
                self._norm(x, block + "feed_forward_norm"), block + "feed_forward."
            )
        return self._norm(x, "final_norm") @ self.weights["unembed.weight"].T  # (T, V)

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The likeliest next token, again and again: the new tokens only."""
        text = list(ids)
        for _ in range(max_new_tokens):
            text.append(int(self.logits(text)[-1].argmax()))
        return text[len(ids) :]

    def _attention(self, x: np.ndarray, name: str) -> np.ndarray:
        """Causal multi-head attention, (T, D) -> (T, D)."""
        T, D = x.shape
        H = self.config.num_heads
        K = D // H
        q, k, v = (
            self._linear(x, f"{name}{part}_proj").reshape(T, H, K).swapaxes(0, 1) for part in "qkv"
        )  # (H, T, K)
        scores = q @ k.swapaxes(1, 2) / math.sqrt(K)  # (H, T, T)
        future = np.triu(np.ones((T, T), dtype=bool), 1)  # (T, T)
        weights = softmax(np.where(future, -np.inf, scores))  # (H, T, T)
        mixed = (weights @ v).swapaxes(0, 1).reshape(T, D)  # (T, D)
        return self._linear(mixed, f"{name}out_proj")

    def _feed_forward(self, x: np.ndarray, name: str) -> np.ndarray:
        """Up, bend, down, (T, D) -> (T, D)."""
        hidden = self._linear(x, f"{name}up")  # (T, F)
        inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)  # (T, F)
        return self._linear(0.5 * hidden * (1 + np.tanh(inner)), f"{name}down")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """X Wᵀ + b; the weight is stored (out, in)."""
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if self.config.bias else y

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """Layer norm: each position to mean 0 and variance 1, then scaled and shifted."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + self.config.norm_eps) * self.weights[f"{name}.weight"]
        return y + self.weights[f"{name}.bias"] if self.config.bias else y
