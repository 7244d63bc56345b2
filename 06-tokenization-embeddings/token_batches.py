"""Texts of different lengths as one rectangle: special tokens around them, truncation, padding,
the mask that hides the padding, and which of two texts a token belongs to.

What BERT's post-processor, `truncation` and `padding` do in `tokenizers`, in four small functions.
Derived in README.md, "Batches".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sequence_data import pad_sequences


class TokenBatch(NamedTuple):
    """ids (B, T) int64; keep (B, T) bool, True where a token is real; types (B, T) int64, 0 in the
    first text and 1 in the second."""

    ids: Tensor
    keep: Tensor
    types: Tensor


def truncate_pair(
    first: Sequence[int], second: Sequence[int], max_tokens: int
) -> tuple[list[int], list[int]]:
    """Cut two texts to `max_tokens` together, from the end of the longer one, token by token: what
    `longest_first` means.

    The longer one loses all until both are equally long; from then on they share, and the odd
    token stays with the second.

    Raises:
        ValueError: max_tokens is negative.
    """
    if max_tokens < 0:
        raise ValueError(f"max_tokens must not be negative, got {max_tokens}")
    a, b = len(first), len(second)
    if a + b > max_tokens:
        low = min(a, b)
        if max_tokens - low >= low:
            a, b = (max_tokens - low, b) if a > b else (a, max_tokens - low)
        else:
            a, b = max_tokens // 2, max_tokens - max_tokens // 2
            if len(first) > len(second):
                a, b = b, a
    return list(first[:a]), list(second[:b])


def make_batch(
    firsts: Sequence[Sequence[int]],
    seconds: Sequence[Sequence[int]] | None = None,
    *,
    pad_id: int,
    begin_id: int | None = None,
    separator_id: int | None = None,
    max_length: int | None = None,
    pad_to_multiple_of: int = 1,
    side: Literal["left", "right"] = "right",
) -> TokenBatch:
    """Put [begin] first [separator] (second [separator]) around each text or pair, cut to
    max_length with these tokens counted, and fill up with pad_id.

    Args:
        seconds: the second text of each pair.
        pad_to_multiple_of: hardware likes widths of 8 or 64; shapes that repeat compile once.
        side: where the padding goes: right to train, left to generate in a batch, so that the last
            token of each row is real.

    Raises:
        ValueError: no texts, not as many seconds as firsts, max_length too short for the special
            tokens.
    """
    if pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")
    if seconds is not None and len(seconds) != len(firsts):
        raise ValueError(f"{len(firsts)} first texts, but {len(seconds)} second ones")
    before = [] if begin_id is None else [begin_id]
    after = [] if separator_id is None else [separator_id]
    added = len(before) + len(after) * (1 if seconds is None else 2)
    if max_length is not None and max_length < added:
        raise ValueError(f"max_length {max_length} is too short for {added} special tokens")
    rows: list[list[int]] = []
    types: list[list[int]] = []
    for place, first in enumerate(firsts):
        second: Sequence[int] = [] if seconds is None else seconds[place]
        room = len(first) + len(second) if max_length is None else max_length - added
        if seconds is None:
            head, tail = list(first[:room]), []
        else:
            head, tail = truncate_pair(first, second, room)
            tail = [*tail, *after]
        rows.append([*before, *head, *after, *tail])
        types.append([0] * (len(rows[-1]) - len(tail)) + [1] * len(tail))
    ids, keep = pad_sequences(rows, pad_id=pad_id, side=side)
    type_ids, _ = pad_sequences(types, pad_id=0, side=side)
    more = -ids.shape[1] % pad_to_multiple_of
    if more:
        width = (0, more) if side == "right" else (more, 0)
        ids = torch.nn.functional.pad(ids, width, value=pad_id)
        keep = torch.nn.functional.pad(keep, width, value=False)
        type_ids = torch.nn.functional.pad(type_ids, width, value=0)
    return TokenBatch(ids, keep, type_ids)
