"""Heads for tasks: one encoder, a small new layer, and everything trained together.

Pre-training leaves vectors that know a lot about their text. A task needs one matrix more: from one
vector to labels (`SequenceClassifier`), from every vector to a label (`TokenClassifier`), or from
every vector to "the answer begins here" and "it ends here" (`SpanExtractor`); Devlin et al. 2019,
figure 4. The whole network is then trained for a few epochs at a small learning rate.

An encoder is any module `(ids, *, keep, types) -> (B, T, D)` with a `config.d_model`: a `Bert`, or
a decoder in `DecoderFeatures`, which is how the two are compared on the same task.
README, "Fine-tuning". Letters: B batch, T length, D model width, C labels.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = Literal["first", "last", "mean"]


class TextEncoder(Protocol):
    """What a head needs: vectors of a text's tokens, and their width."""

    @property
    def config(self) -> Any: ...
    def __call__(
        self, ids: Tensor, *, keep: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor: ...


class DecoderFeatures(nn.Module):
    """A decoder (GPT, Llama) as a text encoder: the vectors that its output layer would read.

    They have seen only what stands before them, so a classifier must pool the last (or the mean).

    Args:
        decoder: has `config` and `hidden_states(ids, *, keep)`; it hides the future itself.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.config: Any = decoder.config

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """(B, T) -> (B, T, D). Padding stands on the right; `types` are not for decoders.

        Raises:
            ValueError: types, or what the decoder raises.
        """
        if types is not None:
            raise ValueError("a decoder has no token types")
        # Padding on the right is the future, which a decoder hides anyway.
        mask = None if keep is None else keep[:, None, None, :]  # (B, 1, 1, T)
        hidden_states: Any = self.decoder.hidden_states
        return hidden_states(ids, keep=mask)  # (B, T, D)


def pool_hidden(hidden: Tensor, keep: Tensor | None, pool: Pool) -> Tensor:
    """One vector a text.

    Args:
        hidden: (B, T, D).
        keep: bool (B, T), True = a real token; None = all.
        pool: the first real token's vector, the last one's, or their mean.

    Returns:
        (B, D).

    Raises:
        ValueError: an unknown pool, a keep that does not fit, or a text without a real token.
    """
    if pool not in get_args(Pool):
        raise ValueError(f"pool is {pool!r}; it must be one of {get_args(Pool)}")
    if keep is None:
        keep = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
    if keep.shape != hidden.shape[:2]:
        raise ValueError(f"keep is {tuple(keep.shape)}; it must be {tuple(hidden.shape[:2])}")
    if keep.is_cpu and not bool(keep.any(dim=1).all()):
        raise ValueError("a text has no real token to pool")
    if pool == "mean":
        weights = keep.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)  # (B, D)
    columns = torch.arange(keep.shape[1], device=keep.device)  # (T,)
    if pool == "first":
        chosen = columns.masked_fill(~keep, keep.shape[1]).amin(dim=1)  # (B,)
    else:
        chosen = columns.masked_fill(~keep, -1).amax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


class SequenceClassifier(nn.Module):
    """A label for a text: sentiment, topic, entailment between two sentences.

    The head is RoBERTa's, and BERT's where the encoder brings a trained pooler: tanh of a matrix
    times the pooled vector, then a matrix to the labels.

    Args:
        encoder: see the module's docstring.
        num_labels: C; 1 makes it a regression.
        pool: as in `pool_hidden`; "last" for decoders.
        dropout: on what each of the head's matrices reads; None = the encoder's.

    Raises:
        ValueError: fewer than one label, or an unknown pool.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_labels: int,
        *,
        pool: Pool = "first",
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if pool not in get_args(Pool):
            raise ValueError(f"pool is {pool!r}; it must be one of {get_args(Pool)}")
        _check_labels(num_labels)
        self.encoder = encoder
        self.pool: Pool = pool
        config: Any = encoder.config
        self.dropout = nn.Dropout(config.dropout if dropout is None else dropout)
        has_pooler = pool == "first" and getattr(encoder, "pooler", None) is not None
        self.transform = None if has_pooler else _linear(config.d_model, config.d_model)
        self.to_labels = _linear(config.d_model, num_labels)

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """(B, T) -> logits (B, C). Arguments as in `bert.Bert.forward`."""
        keep = _real_tokens(self.encoder, ids, keep)
        hidden = self.encoder(ids, keep=keep, types=types)  # (B, T, D)
        if self.transform is None:
            encoder: Any = self.encoder
            return self.to_labels(self.dropout(encoder.pooled(hidden)))
        pooled = self.dropout(pool_hidden(hidden, keep, self.pool))  # (B, D)
        return self.to_labels(self.dropout(torch.tanh(self.transform(pooled))))  # (B, C)


class TokenClassifier(nn.Module):
    """A label for each token: names, parts of speech.

    Args: as `SequenceClassifier`.
    """

    def __init__(
        self, encoder: nn.Module, num_labels: int, *, dropout: float | None = None
    ) -> None:
        super().__init__()
        _check_labels(num_labels)
        self.encoder = encoder
        config: Any = encoder.config
        self.dropout = nn.Dropout(config.dropout if dropout is None else dropout)
        self.to_labels = _linear(config.d_model, num_labels)

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """(B, T) -> logits (B, T, C). Give padding the target -100 in the loss."""
        return self.to_labels(self.dropout(self.encoder(ids, keep=keep, types=types)))


class SpanExtractor(nn.Module):
    """Where in the text the answer stands: a score for each token as its first, and as its last.

    Devlin et al. 2019, section 4.2. The two matrices of one column each are one `Linear`.

    Args:
        encoder: see the module's docstring.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        self.to_ends = _linear(config.d_model, 2)

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T) -> logits of the first token (B, T) and of the last (B, T)."""
        ends = self.to_ends(self.encoder(ids, keep=keep, types=types))  # (B, T, 2)
        start, end = ends.unbind(dim=-1)
        return start, end


def span_loss(start: Tensor, end: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The mean of two cross-entropies: over the positions of the first token and of the last.

    Args:
        start, end: logits (B, T). first, last: the true positions (B,), int64; -100 = no loss.

    Returns:
        A scalar. Logits that are all equal give ln T.
    """
    return (F.cross_entropy(start, first) + F.cross_entropy(end, last)) / 2


class Spans(NamedTuple):
    """Answers: first and last token (B,), both inclusive, and their scores (B,)."""

    first: Tensor
    last: Tensor
    score: Tensor


def best_span(
    start: Tensor, end: Tensor, *, allowed: Tensor | None = None, max_length: int = 30
) -> Spans:
    """The span of the highest score, start[i] + end[j] with i <= j < i + max_length.

    Taking each argmax by itself can end an answer before it begins.

    Args:
        start, end: logits (B, T).
        allowed: bool (B, T), where an answer may stand (the passage, not the question or the
            padding); None = everywhere.
        max_length: the longest answer.

    Raises:
        ValueError: shapes that differ, a max_length below 1, or a row that allows nothing.
    """
    if start.dim() != 2 or start.shape != end.shape:
        raise ValueError(f"start {tuple(start.shape)} and end {tuple(end.shape)} must be (B, T)")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; it must be at least 1")
    T = start.shape[1]
    scores = start[:, :, None] + end[:, None, :]  # (B, T, T)
    band = start.new_ones(T, T, dtype=torch.bool).triu().tril(max_length - 1)  # (T, T)
    if allowed is not None:
        if allowed.shape != start.shape:
            raise ValueError(f"allowed is {tuple(allowed.shape)}, not {tuple(start.shape)}")
        if not bool(allowed.any(dim=1).all()):
            raise ValueError("a row of `allowed` leaves no place for an answer")
        band = band & allowed[:, :, None] & allowed[:, None, :]  # (B, T, T)
    score, place = scores.masked_fill(~band, -torch.inf).flatten(1).max(dim=1)  # (B,)
    return Spans(place // T, place % T, score)


def _real_tokens(encoder: nn.Module, ids: Tensor, keep: Tensor | None) -> Tensor | None:
    """Return keep, or where ids are not the padding that the encoder's config names."""
    pad_id = getattr(encoder.config, "pad_id", None)
    return ids != pad_id if keep is None and pad_id is not None else keep


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a new layer as BERT starts it: N(0, 0.02²) and no bias yet."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _check_labels(num_labels: int) -> None:
    if num_labels < 1:
        raise ValueError(f"num_labels is {num_labels}; it must be at least 1")
