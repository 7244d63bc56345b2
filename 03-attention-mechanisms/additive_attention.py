"""Attention as it began: a decoder that looks back at the source at every step.

Each module here is called at one decoding step, `attention(query, memory, keep)`, and gives the
mixture of the memory and the weights that made it; `seq2seq.EncoderDecoder(attention=…)` takes any
of them. They differ in how a query (the decoder's state s) and a memory place (the encoder's
state h) are scored:

    additive   vᵀ tanh(W s + U h)      Bahdanau, Cho, Bengio 2015; s is the state *before* the step
    dot        sᵀ h                    Luong, Pham, Manning 2015; s is the state *after* it
    general    sᵀ W h
    concat     vᵀ tanh(W [s; h])

`attend_before` says which state a variant asks with. And what an alignment is worth:
`alignment_error_rate` compares weights with the true word pairs. README, "A soft lookup".

Letters: B batch, S source places, D width of the query, M width of the memory, A hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from numerics import softmax

Pair = tuple[int, int]


class AdditiveAttention(nn.Module):
    """Bahdanau et al. 2015, appendix A.1.2: a small network looks at both vectors.

    Args:
        d_query: D. d_memory: M.
        d_hidden: A, width of the network; None = D.

    Raises:
        ValueError: a width below 1.
    """

    attend_before = True

    def __init__(self, d_query: int, d_memory: int, *, d_hidden: int | None = None) -> None:
        super().__init__()
        d_hidden = d_query if d_hidden is None else d_hidden
        _at_least_one(d_query=d_query, d_memory=d_memory, d_hidden=d_hidden)
        self.query_proj = nn.Linear(d_query, d_hidden)
        self.memory_proj = nn.Linear(d_memory, d_hidden, bias=False)
        self.score = nn.Linear(d_hidden, 1, bias=False)

    def forward(self, query: Tensor, memory: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, D), memory (B, S, M), keep (B, S) bool, True = a real place.

        Returns the context (B, M) and the weights (B, S), which sum to 1 over the real places;
        where there is none, both are 0. Raises ValueError for shapes that do not fit, TypeError
        for a `keep` that is not bool.
        """
        _check(query, memory, keep, self.query_proj.in_features, self.memory_proj.in_features)
        hidden = self.query_proj(query)[:, None] + self.memory_proj(memory)  # (B, S, A)
        scores = self.score(torch.tanh(hidden)).squeeze(-1)  # (B, S)
        return mix_memory(scores, memory, keep)


class LuongAttention(nn.Module):
    """Luong et al. 2015, section 3.1: three scores, asked with the state after the step.

    Args:
        d_query: D. d_memory: M.
        score: "dot" (no parameters; needs D = M), "general" (a matrix between the two) or
            "concat" (a network on both, as the additive score with its matrices side by side).

    Raises:
        ValueError: a width below 1, an unknown score, or "dot" with D ≠ M.
    """

    attend_before = False

    def __init__(
        self,
        d_query: int,
        d_memory: int,
        *,
        score: Literal["dot", "general", "concat"] = "general",
    ) -> None:
        super().__init__()
        _at_least_one(d_query=d_query, d_memory=d_memory)
        if score not in ("dot", "general", "concat"):
            raise ValueError(f"score is {score!r}; it must be 'dot', 'general' or 'concat'")
        if score == "dot" and d_query != d_memory:
            raise ValueError(
                f"the dot score needs d_query = d_memory, got {d_query} and {d_memory}; "
                "use 'general' for different widths"
            )
        self.kind = score
        self.d_query, self.d_memory = d_query, d_memory
        if score == "general":
            self.between = nn.Linear(d_query, d_memory, bias=False)
        elif score == "concat":
            self.joint = nn.Linear(d_query + d_memory, d_query, bias=False)
            self.score = nn.Linear(d_query, 1, bias=False)

    def forward(self, query: Tensor, memory: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """As `AdditiveAttention.forward`."""
        _check(query, memory, keep, self.d_query, self.d_memory)
        if self.kind == "concat":
            S = memory.shape[1]
            both = torch.cat((query[:, None].expand(-1, S, -1), memory), dim=-1)  # (B, S, D+M)
            scores = self.score(torch.tanh(self.joint(both))).squeeze(-1)  # (B, S)
        else:
            asked = self.between(query) if self.kind == "general" else query  # (B, M)
            scores = (memory @ asked[:, :, None]).squeeze(-1)  # (B, S)
        return mix_memory(scores, memory, keep)

    def extra_repr(self) -> str:
        """Name the score."""
        return f"score={self.kind}"


def mix_memory(scores: Tensor, memory: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B, S) to weights over the places that `keep` (B, S) allows, and to their mixture.

    Returns the context (B, M) and the weights (B, S), in the memory's dtype.
    """
    lowest = torch.finfo(scores.dtype).min
    weights = softmax(scores.masked_fill(~keep, lowest)).to(memory.dtype)  # (B, S)
    weights = weights.masked_fill(~keep, 0.0)  # a row of nothing but padding becomes 0
    context = (weights[:, None] @ memory).squeeze(1)  # (B, M)
    return context, weights


def hard_alignment(weights: Tensor, num_source: int, num_target: int) -> set[Pair]:
    """Each target word's most attended source word: pairs (source index, target index).

    weights: (T, S) of one sentence; only the first `num_target` rows and `num_source` columns are
    words (what follows is end marks and padding).

    Raises ValueError if the weights are smaller than that.
    """
    if weights.dim() != 2 or weights.shape[0] < num_target or weights.shape[1] < num_source:
        raise ValueError(
            f"weights {tuple(weights.shape)} must cover {num_target} targets and "
            f"{num_source} sources"
        )
    if num_source == 0:
        return set()
    best = weights[:num_target, :num_source].argmax(dim=1).tolist()
    return {(source, target) for target, source in enumerate(best)}


def alignment_error_rate(
    found: Sequence[Iterable[Pair]],
    sure: Sequence[Iterable[Pair]],
    possible: Sequence[Iterable[Pair]] | None = None,
) -> float:
    """AER (Och and Ney 2003): 1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|), over a whole set of sentences.

    found A, sure S and possible P ⊇ S (None = S) are sets of pairs, a sentence each. 0 is perfect,
    1 is nothing right. With P = S it is 1 - F₁, the harmonic mean of precision and recall.

    Raises ValueError for unequal numbers of sentences, or if nothing was found and nothing sure.

    Example: found {(0, 0), (1, 1)} and sure {(0, 0), (2, 1)} give 1 - 2/4 = 0.5.
    """
    possible = sure if possible is None else possible
    if not len(found) == len(sure) == len(possible):
        raise ValueError(
            f"found, sure and possible must have as many sentences, got {len(found)}, "
            f"{len(sure)} and {len(possible)}"
        )
    agreed = total = 0
    for a, s, p in zip(found, sure, possible, strict=True):
        pairs, certain = set(a), set(s)
        agreed += len(pairs & certain) + len(pairs & (certain | set(p)))
        total += len(pairs) + len(certain)
    if total == 0:
        raise ValueError("no pair was found and none is sure: there is nothing to compare")
    return 1.0 - agreed / total


def weights_entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of each row of attention weights (..., S): 0 = one place, ln S = all alike.

    exp of it is the number of places that the row effectively looks at. Unlike
    `numerics.entropy` it accepts rows of zeros (which have entropy 0).
    """
    return -torch.special.xlogy(weights, weights).sum(dim=-1)


def effective_places(weights: Tensor) -> float:
    """How many places a row of weights (..., S) looks at on average: exp of the mean entropy."""
    return math.exp(float(weights_entropy(weights).mean()))


def _check(query: Tensor, memory: Tensor, keep: Tensor, d_query: int, d_memory: int) -> None:
    """Say why the arguments of a step do not fit together, if they do not."""
    if query.dim() != 2 or query.shape[1] != d_query:
        raise ValueError(f"query has shape {tuple(query.shape)}; it must be (batch, {d_query})")
    B = query.shape[0]
    if memory.dim() != 3 or memory.shape[0] != B or memory.shape[2] != d_memory:
        raise ValueError(
            f"memory has shape {tuple(memory.shape)}; it must be ({B}, length, {d_memory})"
        )
    if keep.dtype != torch.bool:
        raise TypeError(f"keep has dtype {keep.dtype}; it must be bool, True = a real place")
    if keep.shape != memory.shape[:2]:
        raise ValueError(
            f"keep has shape {tuple(keep.shape)}; it must be {tuple(memory.shape[:2])}"
        )


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
