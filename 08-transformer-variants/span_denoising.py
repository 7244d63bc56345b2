"""Spoil a text, and ask for it back: the objectives of encoder-decoders.

T5 cuts spans out and asks for the spans alone, BART spoils in five ways and asks for the whole
text, and UL2 mixes seven denoisers and tells the model which one it is. All take one text as a list
of ids, because what comes out is longer or shorter than what went in; `denoising_batch` pads.

README, "What to ask of a text". Letters: B batch, S spoiled length, T target length, n tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sequence_data import pad_sequences

_IGNORED = -100  # the target that `numerics.cross_entropy` leaves out


class Denoising(NamedTuple):
    """inputs: what the encoder reads. targets: what the decoder must write."""

    inputs: list[int]
    targets: list[int]


class DenoisingBatch(NamedTuple):
    """inputs: (B, S). keep: bool (B, S), True = a real token. targets: (B, T), -100 = no loss."""

    inputs: Tensor
    keep: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """One of UL2's ways to spoil. mode: "R", "S" or "X"; rate: the share of the text that goes;
    mean_span: of the spans' lengths, None = one span at the end, which is a prefix LM.
    """

    mode: str
    rate: float
    mean_span: float | None


def denoising_batch(
    examples: Sequence[Denoising], *, pad_id: int, end_id: int | None = None
) -> DenoisingBatch:
    """Pad examples into rectangles; `end_id` closes every target where it is given.

    Raises:
        ValueError: no examples.
    """
    end = [] if end_id is None else [end_id]
    inputs, keep = pad_sequences([example.inputs for example in examples], pad_id=pad_id)
    says, real = pad_sequences([[*e.targets, *end] for e in examples], pad_id=pad_id)
    return DenoisingBatch(inputs, keep, says.masked_fill(~real, _IGNORED))


# --- T5 ---------------------------------------------------------------------------------------


def span_corruption(
    ids: Sequence[int],
    *,
    sentinels: Sequence[int],
    generator: torch.Generator,
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> Denoising:
    """Cut spans out, leave a numbered sentinel for each, and ask for the spans: T5's objective.

    round(rate · n) tokens go, in round(that / mean_span) spans; both counts are exact, and every
    way to divide the tokens among the spans is equally likely (Raffel et al. 2020, section 3.1.4,
    and `random_spans_helper` of their code). The text begins with a kept token and ends with a
    span, as there.

    Args:
        ids: the text, at least 2 tokens.
        sentinels: ids that stand for the first span, the second one, …
        generator: where the choices come from.
        rate: the share of tokens that is cut out, in (0, 1).
        mean_span: tokens a span, at least 1.

    Returns:
        inputs: kept tokens with sentinels in the gaps. targets: sentinel, span, sentinel, span, …
        Together they hold every token once: `restore_spans` puts them together again.

    Raises:
        ValueError: a text, rate or mean out of range, a sentinel in the text, or more spans than
            sentinels.

    Example: "Thank you <X> me to your party <Y>" and "<X> for inviting <Y> last week" are the
    paper's.
    """
    n = len(ids)
    if n < 2:
        raise ValueError(f"the text has {n} tokens; it must have at least 2")
    if not 0 < rate < 1 or mean_span < 1:
        raise ValueError(f"0 < rate < 1 <= mean_span must hold; got {rate} and {mean_span}")
    cut = min(max(round(rate * n), 1), n - 1)
    spans = min(max(round(cut / mean_span), 1), cut, n - cut)
    if spans > len(sentinels):
        raise ValueError(f"{spans} spans need as many sentinels; there are {len(sentinels)}")
    if set(sentinels) & set(ids):
        raise ValueError("a sentinel stands in the text: it could not be told apart")
    inputs: list[int] = []
    targets: list[int] = []
    place = 0
    kept_sizes, cut_sizes = _divide(n - cut, spans, generator), _divide(cut, spans, generator)
    for sentinel, kept_size, cut_size in zip(sentinels, kept_sizes, cut_sizes, strict=False):
        gap = place + kept_size
        inputs += [*ids[place:gap], sentinel]
        targets += [sentinel, *ids[gap : gap + cut_size]]
        place = gap + cut_size
    return Denoising(inputs, targets)


def restore_spans(example: Denoising, *, sentinels: Collection[int]) -> list[int]:
    """Put a text together from what `span_corruption` made of it.

    Raises:
        ValueError: a sentinel of the inputs that the targets do not answer.
    """
    marks = set(sentinels)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in example.targets:
        if token in marks:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    text: list[int] = []
    for token in example.inputs:
        if token in marks and token not in spans:
            raise ValueError(f"sentinel {token} has no span among the targets")
        text += spans[token] if token in marks else [token]
    return text


def _divide(items: int, parts: int, generator: torch.Generator) -> list[int]:
    """Cut a row of items into parts of at least one each, every way equally likely."""
    borders = torch.randperm(items - 1, generator=generator)[: parts - 1].sort().values + 1
    edges = [0, *borders.tolist(), items]
    return [after - before for before, after in itertools.pairwise(edges)]


# --- BART -------------------------------------------------------------------------------------


def text_infilling(
    ids: Sequence[int],
    *,
    mask_id: int,
    generator: torch.Generator,
    rate: float = 0.3,
    mean_span: float = 3.0,
) -> Denoising:
    """Replace spans of Poisson lengths by one [MASK] each: BART's best corruption.

    A span of no tokens puts a [MASK] where nothing is missing, so the model must also find out
    *how many* tokens a gap holds (Lewis et al. 2020, section 2.2). The whole text is the target.

    Args:
        ids: the text. mask_id: the id of [MASK]. generator: where the choices come from.
        rate: the share of tokens that is hidden, exact up to rounding.
        mean_span: λ of the Poisson distribution.

    Raises:
        ValueError: an empty text, or a rate or a mean out of range.
    """
    _check_text(ids, rate)
    if mean_span <= 0:
        raise ValueError(f"mean_span is {mean_span}; it must be positive")
    n, budget = len(ids), round(rate * len(ids))
    lengths: list[int] = []
    while sum(lengths) < budget:
        size = int(torch.poisson(torch.tensor(mean_span), generator=generator))
        lengths.append(min(size, budget - sum(lengths)))
    # n - budget kept tokens have one slot more than they are; no two spans share a slot, so that
    # two masks never touch.
    room = n - budget + 1
    if len(lengths) > room:
        lengths = [*lengths[: room - 1], sum(lengths[room - 1 :])]
    slots = torch.randperm(room, generator=generator)[: len(lengths)].sort().values
    inputs: list[int] = []
    place = kept = 0
    for slot, size in zip(slots.tolist(), lengths, strict=True):
        inputs += [*ids[place : place + slot - kept], mask_id]
        place, kept = place + slot - kept + size, slot
    return Denoising([*inputs, *ids[place:]], list(ids))


def delete_tokens(
    ids: Sequence[int], *, generator: torch.Generator, rate: float = 0.15
) -> Denoising:
    """Delete each token with chance `rate`, leaving no mark; at least one stays.

    Raises:
        ValueError: an empty text, or a rate outside [0, 1).
    """
    _check_text(ids, rate)
    stays = (torch.rand(len(ids), generator=generator) >= rate).tolist()
    if not any(stays):
        stays[0] = True
    return Denoising([i for i, stay in zip(ids, stays, strict=True) if stay], list(ids))


def sentence_permutation(
    ids: Sequence[int], *, end_ids: Collection[int], generator: torch.Generator
) -> Denoising:
    """Shuffle the sentences; each ends with one of `end_ids`, the last may go without.

    Raises:
        ValueError: an empty text.
    """
    _check_text(ids, 0.0)
    sentences: list[list[int]] = [[]]
    for token in ids:
        sentences[-1].append(token)
        if token in end_ids:
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    order = torch.randperm(len(sentences), generator=generator).tolist()
    return Denoising([token for i in order for token in sentences[i]], list(ids))


def rotate_document(ids: Sequence[int], *, generator: torch.Generator) -> Denoising:
    """Begin the text at a random token and put what stood before it at the end.

    Raises:
        ValueError: an empty text.
    """
    _check_text(ids, 0.0)
    start = int(torch.randint(len(ids), (), generator=generator))
    return Denoising([*ids[start:], *ids[:start]], list(ids))


# --- UL2 --------------------------------------------------------------------------------------


def ul2_denoisers() -> tuple[Denoiser, ...]:
    """The seven of Tay et al. 2023, table 1: regular, sequential and extreme."""
    return (
        Denoiser(mode="R", rate=0.15, mean_span=3.0),
        Denoiser(mode="R", rate=0.15, mean_span=8.0),
        Denoiser(mode="S", rate=0.25, mean_span=None),
        Denoiser(mode="X", rate=0.5, mean_span=3.0),
        Denoiser(mode="X", rate=0.5, mean_span=8.0),
        Denoiser(mode="X", rate=0.15, mean_span=64.0),
        Denoiser(mode="X", rate=0.5, mean_span=64.0),
    )


def ul2_mixture(
    ids: Sequence[int],
    *,
    sentinels: Sequence[int],
    mode_ids: Mapping[str, int],
    generator: torch.Generator,
    denoisers: Sequence[Denoiser] | None = None,
) -> Denoising:
    """Spoil a text in one of several ways, and say in its first token which kind it was.

    R is T5's span corruption; X takes so much, or such long spans, that the model must write
    freely; S keeps the first part and asks for the rest (Tay et al. 2023, section 3.1).

    Args:
        ids: the text, at least 2 tokens.
        sentinels: as in `span_corruption`.
        mode_ids: the token of each mode. At the task, the mode is chosen by hand.
        generator: where the choices come from.
        denoisers: equally likely; None = `ul2_denoisers()`.

    Raises:
        ValueError: a mode without a token, no denoisers, or as in `span_corruption`.
    """
    choices = ul2_denoisers() if denoisers is None else tuple(denoisers)
    if not choices:
        raise ValueError("there must be at least one denoiser")
    chosen = choices[int(torch.randint(len(choices), (), generator=generator))]
    if chosen.mode not in mode_ids:
        raise ValueError(f"mode {chosen.mode!r} has no token; mode_ids has {sorted(mode_ids)}")
    if chosen.mean_span is not None:
        spoiled = span_corruption(
            ids,
            sentinels=sentinels,
            generator=generator,
            rate=chosen.rate,
            mean_span=chosen.mean_span,
        )
    else:
        if len(ids) < 2 or not sentinels:
            raise ValueError("a prefix LM needs two tokens and a sentinel")
        cut = len(ids) - min(max(round(chosen.rate * len(ids)), 1), len(ids) - 1)
        spoiled = Denoising([*ids[:cut], sentinels[0]], [sentinels[0], *ids[cut:]])
    return Denoising([mode_ids[chosen.mode], *spoiled.inputs], spoiled.targets)


def _check_text(ids: Sequence[int], rate: float) -> None:
    if not len(ids):
        raise ValueError("the text is empty")
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; it must lie in [0, 1)")
