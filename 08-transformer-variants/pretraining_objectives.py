"""What a model is asked to do with unlabelled text: the objectives of encoders and decoders.

Each function takes ids and a `torch.Generator` and returns what the model reads and what it must
say, with -100 (the place that `numerics.cross_entropy` leaves out) wherever there is no loss:

    causal_lm            the next token, at every place                GPT
    prefix_lm            the same, but only behind a prefix            T5's ablation, UL2, PaliGemma
    mask_tokens          hidden tokens, whole words or spans           BERT, RoBERTa, SpanBERT
    next_sentence_pairs  does the second text follow the first?        BERT; swapped: ALBERT
    replace_tokens       which tokens did a generator make up?         ELECTRA

The objectives that write a text instead of labelling one are in `span_denoising`.
README, "What to ask of a text". Letters: B batch, T length, V vocabulary, M chosen positions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sequence_data import pad_sequences

_IGNORED = -100  # the target that `numerics.cross_entropy` leaves out
_SPAN_STOP = 0.2  # SpanBERT's geometric distribution of lengths, cut off after ten
_LONGEST_SPAN = 10


class MaskedTokens(NamedTuple):
    """inputs: (B, T), what the encoder reads. targets: (B, T), the token that stood there at the
    chosen positions, -100 elsewhere.
    """

    inputs: Tensor
    targets: Tensor


class NextTokens(NamedTuple):
    """inputs: (B, T - 1), what the decoder reads. targets: (B, T - 1), the token after each, or
    -100. prefix: (B,), how many inputs may see each other in both directions; all 1 for `causal_lm`
    (`masks.prefix_mask` makes the mask of it).
    """

    inputs: Tensor
    targets: Tensor
    prefix: Tensor


class SentencePairs(NamedTuple):
    """ids: (N, T), [CLS] A [SEP] B [SEP] and padding. types: (N, T), 0 for the first text and 1
    for the second. keep: bool (N, T), True = a real token. labels: (N,), 0 where B follows A.
    """

    ids: Tensor
    types: Tensor
    keep: Tensor
    labels: Tensor


class ReplacedTokens(NamedTuple):
    """inputs: (B, T) with the generator's tokens put in. replaced: bool (B, T), the labels."""

    inputs: Tensor
    replaced: Tensor


# --- the next token ---------------------------------------------------------------------------


def causal_lm(ids: Tensor, *, pad_id: int | None = None) -> NextTokens:
    """Say the next token at every place: T - 1 predictions from T tokens.

    Args:
        ids: (B, T) int64, T at least 2.
        pad_id: what fills short rows; never a target. None = nothing does.

    Raises:
        ValueError: ids that are not (B, T >= 2).

    Example: [[5, 6, 7]] -> inputs [[5, 6]], targets [[6, 7]].
    """
    _check_rows(ids, 2)
    targets = ids[:, 1:]
    if pad_id is not None:
        targets = targets.masked_fill(targets == pad_id, _IGNORED)
    return NextTokens(ids[:, :-1], targets, ids.new_ones(len(ids)))


def prefix_lm(ids: Tensor, *, generator: torch.Generator, pad_id: int | None = None) -> NextTokens:
    """Read a beginning in both directions and say what follows it (Raffel et al. 2020, 3.2.1).

    Each row is cut at a place drawn uniformly from 1 to its length - 1; the prefix has no loss.

    Args:
        ids: (B, T) int64; every row has at least two real tokens.
        generator: where the cuts come from.
        pad_id: what fills short rows on the right; None = nothing does.

    Raises:
        ValueError: ids that are not (B, T >= 2), or a row with fewer than two real tokens.
    """
    inputs, targets, _ = causal_lm(ids, pad_id=pad_id)
    lengths = 1 + (targets != _IGNORED).sum(dim=1)  # (B,)
    if int(lengths.min()) < 2:
        raise ValueError("a row has fewer than two real tokens: there is nothing to predict")
    draw = torch.rand(len(ids), generator=generator)
    prefix = 1 + (draw * (lengths - 1)).long()  # (B,), 1 to length - 1
    # The token after the prefix's last one is the first that is not part of it.
    inside = torch.arange(targets.shape[1]) < (prefix - 1)[:, None]  # (B, T - 1)
    return NextTokens(inputs, targets.masked_fill(inside, _IGNORED), prefix)


# --- hidden tokens ----------------------------------------------------------------------------


def mask_tokens(
    ids: Tensor,
    *,
    vocab_size: int,
    mask_id: int,
    special_ids: Collection[int],
    generator: torch.Generator,
    rate: float = 0.15,
    words: Tensor | None = None,
    spans: bool = False,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> MaskedTokens:
    """Hide some tokens and ask what they were: BERT's masked language model.

    Of the chosen tokens 80 % become [MASK], 10 % an ordinary token drawn uniformly, and 10 % stay:
    a fine-tuned text has no [MASK], so the encoder must not learn that what it can see is always
    right (Devlin et al. 2019, section 3.1 and appendix A.1).

    Args:
        ids: (B, T) int64.
        vocab_size, mask_id: V, and the id of [MASK].
        special_ids: ids that are never chosen nor drawn: [PAD], [CLS], [SEP], [MASK], …
        generator: where the choices come from.
        rate: the share of ordinary tokens that is chosen, in expectation.
        words: int64 (B, T), the number of the word that each token is part of: whole words are
            chosen, so that "##ing" is not given away by "walk". None = token by token.
        spans: choose runs of 1 to 10 tokens, geometric with p = 0.2 and mean 3.8, until the rate
            is reached (Joshi et al. 2020, SpanBERT). Here the whole run meets one fate of the
            three.
        mask_share, random_share: the 80 % and the 10 %.

    Raises:
        ValueError: a rate outside (0, 1), shares that are negative or exceed 1, words that do not
            fit ids, words together with spans, ids outside [0, V), or a vocabulary of specials.
    """
    _check_rows(ids, 1)
    if not 0 < rate < 1:
        raise ValueError(f"rate is {rate}; it must lie between 0 and 1")
    if min(mask_share, random_share) < 0 or mask_share + random_share > 1:
        raise ValueError(
            f"mask_share {mask_share} and random_share {random_share} must be at least 0 and "
            "together at most 1"
        )
    if spans and words is not None:
        raise ValueError("give words or spans, not both")
    if words is not None and words.shape != ids.shape:
        raise ValueError(f"words is {tuple(words.shape)}; it must be {tuple(ids.shape)}")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise ValueError(f"ids must lie in [0, vocab_size={vocab_size})")
    special = set(special_ids)
    ordinary = torch.tensor([i for i in range(vocab_size) if i not in special])
    if not len(ordinary):
        raise ValueError("every id is special: there is nothing to hide")
    free = torch.isin(ids, ordinary)  # (B, T)

    # Tokens of one unit (a word, a span) are chosen together.
    luck, fate = torch.rand(2, *ids.shape, generator=generator)  # (B, T) each
    if spans:
        chosen, runs = _choose_spans(free, rate, generator)
        fate = _by_unit(fate, runs)
    else:
        chosen = (luck if words is None else _by_unit(luck, words)) < rate
    chosen = chosen & free  # (B, T)
    drawn = ordinary[torch.randint(len(ordinary), ids.shape, generator=generator)]  # (B, T)
    hidden = chosen & (fate < mask_share)
    random = chosen & (fate >= mask_share) & (fate < mask_share + random_share)
    inputs = torch.where(random, drawn, ids.masked_fill(hidden, mask_id))
    return MaskedTokens(inputs, ids.masked_fill(~chosen, _IGNORED))


def _by_unit(numbers: Tensor, units: Tensor) -> Tensor:
    """One random number a unit: each token takes the one at its unit's first place, (B, T)."""
    B, _T = units.shape
    same = units[:, :, None] == units[:, None, :]  # (B, T, T)
    first = same.int().argmax(dim=2)  # (B, T)
    return numbers[torch.arange(B)[:, None], first]


def _choose_spans(free: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Runs of places that may be chosen -> (chosen (B, T), the number of each one's run (B, T))."""
    B, T = free.shape
    lengths = torch.arange(1, _LONGEST_SPAN + 1)
    chances = _SPAN_STOP * (1 - _SPAN_STOP) ** (lengths - 1.0)  # multinomial makes them sum to 1
    chosen = torch.zeros(B, T, dtype=torch.bool)
    units = -1 - torch.arange(T).expand(B, T).clone()
    for row in range(B):
        # A text has no fraction of a token to choose: round up or down at random, right on average.
        wish = rate * int(free[row].sum())
        budget = int(wish + float(torch.rand((), generator=generator)))
        for number in range(20 * T):
            left = budget - int(chosen[row].sum())
            if left <= 0:
                break
            size = min(left, 1 + int(torch.multinomial(chances, 1, generator=generator)))
            start = int(torch.randint(T, (), generator=generator))
            run = slice(start, start + size)
            if start + size <= T and bool(free[row, run].all()) and not chosen[row, run].any():
                chosen[row, run] = True
                units[row, run] = number
    return chosen, units


# --- pairs of texts ---------------------------------------------------------------------------


def next_sentence_pairs(
    documents: Sequence[Sequence[Sequence[int]]],
    *,
    cls_id: int,
    sep_id: int,
    pad_id: int,
    max_seq_len: int,
    generator: torch.Generator,
    negatives: Literal["random", "swapped"] = "random",
    short_share: float = 0.1,
) -> SentencePairs:
    """Pairs of neighbouring texts, half of them false (Devlin et al. 2019, appendix A.2).

    Sentences of a document are gathered until they fill a row and cut in two at a random sentence;
    with chance 1/2 the second part is replaced by one from another document ("random"), or the
    parts change places ("swapped", ALBERT's sentence order: the topic gives nothing away). What is
    too long loses tokens at either end of the longer part.

    Args:
        documents: for each document its sentences, each a list of ids.
        cls_id, sep_id, pad_id: the ids of [CLS], [SEP] and [PAD].
        max_seq_len: T, specials included.
        generator: where the choices come from.
        negatives: what a false pair is.
        short_share: the share of rows with a random, shorter length, so that the encoder meets
            short texts too.

    Raises:
        ValueError: fewer than two documents for random pairs, an empty one, a T below 5, an unknown
            kind of negatives, or documents that are all one sentence and give no pair.
    """
    if negatives not in ("random", "swapped"):
        raise ValueError(f"negatives is {negatives!r}; it must be 'random' or 'swapped'")
    if max_seq_len < 5:
        raise ValueError(f"max_seq_len is {max_seq_len}; [CLS] a [SEP] b [SEP] is 5 already")
    if any(not document or not all(document) for document in documents):
        raise ValueError("every document must have sentences, and every sentence tokens")
    if negatives == "random" and len(documents) < 2:
        raise ValueError("random pairs need a second document to draw from")

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    def chance() -> float:
        return float(torch.rand((), generator=generator))

    rows: list[list[int]] = []
    types: list[list[int]] = []
    labels: list[int] = []
    for number, document in enumerate(documents):
        place = 0
        while place < len(document):
            room = max_seq_len - 3
            goal = 2 + below(room - 1) if chance() < short_share else room
            chunk = [document[place]]
            while place + len(chunk) < len(document) and sum(map(len, chunk)) < goal:
                chunk.append(document[place + len(chunk)])
            if len(chunk) < 2:  # one long sentence, or the document's last: no pair in it
                place += 1
                continue
            cut = 1 + below(len(chunk) - 1)
            first, second = _flat(chunk[:cut]), _flat(chunk[cut:])
            place += len(chunk)
            false = chance() < 0.5
            if false and negatives == "swapped":
                first, second = second, first
            elif false:
                other = below(len(documents) - 1)
                other += other >= number  # any document but this one
                start = below(len(documents[other]))
                second = _flat(documents[other][start:])[: max(1, goal - len(first))]
                place -= len(chunk) - cut  # the true second part was not used: go on with it
            while len(first) + len(second) > room:
                longer = first if len(first) > len(second) else second
                longer.pop(0 if chance() < 0.5 else -1)
            rows.append([cls_id, *first, sep_id, *second, sep_id])
            types.append([0] * (len(first) + 2) + [1] * (len(second) + 1))
            labels.append(int(false))
    if not rows:
        raise ValueError("no document has two sentences that could make a pair")
    ids, keep = pad_sequences(rows, pad_id=pad_id)
    return SentencePairs(ids, pad_sequences(types, pad_id=0)[0], keep, torch.tensor(labels))


def _flat(sentences: Sequence[Sequence[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


# --- replaced tokens --------------------------------------------------------------------------


def replace_tokens(
    ids: Tensor, masked: MaskedTokens, logits: Tensor, *, generator: torch.Generator
) -> ReplacedTokens:
    """Fill the gaps with a generator's guesses; which tokens are now wrong is the question.

    A guess that happens to be right is *not* replaced: the label compares tokens, not positions
    (Clark et al. 2020, section 2). Nothing flows back through the drawing.

    Args:
        ids: (B, T), the text. masked: what the generator read, from `mask_tokens`.
        logits: the generator's, at the chosen positions only, (M, V).
        generator: random numbers for the drawing.

    Raises:
        ValueError: shapes that do not fit.
    """
    chosen = masked.targets != _IGNORED  # (B, T)
    if ids.shape != chosen.shape:
        raise ValueError(f"ids {tuple(ids.shape)} and masked {tuple(chosen.shape)} must be equal")
    if logits.dim() != 2 or len(logits) != int(chosen.sum()):
        raise ValueError(f"logits is {tuple(logits.shape)}; it must be ({int(chosen.sum())}, V)")
    inputs = ids.clone()
    if len(logits):
        chances = logits.detach().float().softmax(dim=-1)  # (M, V)
        inputs[chosen] = torch.multinomial(chances, 1, generator=generator).squeeze(1)
    return ReplacedTokens(inputs, inputs != ids)


def _check_rows(ids: Tensor, shortest: int) -> None:
    if ids.dim() != 2 or ids.shape[1] < shortest:
        raise ValueError(f"ids is {tuple(ids.shape)}; it must be (B, T >= {shortest})")
