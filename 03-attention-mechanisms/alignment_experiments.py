"""Translation with and without attention: tiny world's two languages, where the truth is known.

The same recurrent encoder-decoder (topic 02's) is trained on sentence pairs with each attention
of `additive_attention` and with none, for the same number of steps; then its translations are
compared over the length of the source, and its weights with the true word pairs. README,
"Translation, with and without".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from additive_attention import (
    AdditiveAttention,
    LuongAttention,
    Pair,
    alignment_error_rate,
    hard_alignment,
)
from lab import count_parameters, interval, progress
from numerics import cross_entropy
from seq2seq import EncoderDecoder, greedy_decode
from sequence_data import Vocabulary, length_buckets, pad_sequences
from tiny_world import SentencePair, TinyWorld
from train_loop import Callback, LoopState, fit

ATTENTIONS = ("none", "additive", "dot", "general", "concat")
LENGTH_EDGES = (3, 6, 8, 10, 13, 19)  # buckets of source words: 3-5, 6-7, …


@dataclass(frozen=True, kw_only=True)
class TranslationData:
    """Sentence pairs of two languages, and their vocabularies (built from the training pairs)."""

    train: list[SentencePair]
    test: list[SentencePair]
    source_words: Vocabulary
    target_words: Vocabulary


def translation_data(*, train: int, test: int, max_words: int = 18) -> TranslationData:
    """Pairs of tiny world with at most `max_words` source words; no test source is in training."""
    world = TinyWorld()
    learned = [p for p in world.translation_pairs(train, seed=0) if len(p.source) <= max_words]
    seen = {tuple(pair.source) for pair in learned}
    unseen = [
        pair
        for pair in world.translation_pairs(test, seed=1)
        if len(pair.source) <= max_words and tuple(pair.source) not in seen
    ]
    return TranslationData(
        train=learned,
        test=unseen,
        source_words=Vocabulary.build(pair.source for pair in learned),
        target_words=Vocabulary.build(pair.target for pair in learned),
    )


def new_translator(
    data: TranslationData, attention: str, *, d_model: int, seed: int
) -> EncoderDecoder:
    """An encoder-decoder with one of `ATTENTIONS`.

    The encoder reads in both directions, except for "dot", which needs memory as wide as the
    query and reads forward only, as Luong et al. did.

    Raises ValueError for an unknown attention.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}; it must be one of {ATTENTIONS}")
    bidirectional = attention != "dot"
    d_memory = 2 * d_model if bidirectional else d_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module | None = None
        if attention == "additive":
            module = AdditiveAttention(d_model, d_memory)
        elif attention != "none":
            module = LuongAttention(d_model, d_memory, score=attention)  # type: ignore[arg-type]
        model = EncoderDecoder(
            len(data.source_words),
            len(data.target_words),
            d_model,
            bidirectional=bidirectional,
            attention=module,
            attend_before=getattr(module, "attend_before", True),
            generator=torch.Generator().manual_seed(seed),
        )
        with torch.no_grad():
            # At a standard deviation of 0.1 the words look alike to the gates for long.
            for embedding in (model.src_embedding, model.tgt_embedding):
                embedding.weight.normal_()
        return model


def translation_batch(
    data: TranslationData, pairs: Sequence[SentencePair]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs as (source (B, S), lengths (B,), targets in (B, T), targets out (B, T)).

    A target in begins with the begin mark, a target out ends with the end mark and is -100 where
    it is padding.
    """
    begin, end = data.target_words.id(Vocabulary.BEGIN), data.target_words.id(Vocabulary.END)
    pad = data.source_words.id(Vocabulary.PAD)
    sources = [data.source_words.encode(pair.source) for pair in pairs]
    targets = [data.target_words.encode(pair.target) for pair in pairs]
    source, _ = pad_sequences(sources, pad_id=pad)  # (B, S)
    given, _ = pad_sequences([[begin, *ids] for ids in targets], pad_id=pad)  # (B, T)
    wanted, _ = pad_sequences([[*ids, end] for ids in targets], pad_id=-100)  # (B, T)
    return source, torch.tensor([len(ids) for ids in sources]), given, wanted


def train_translator(
    model: nn.Module,
    data: TranslationData,
    *,
    steps: int,
    seed: int,
    max_tokens: int = 1024,
    lr: float = 1e-2,
) -> list[float]:
    """Adam on batches of similar lengths, the rate falling linearly to 0; the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses: list[float] = []

    class Decay(Callback):
        """Warm up for a twentieth of the steps, then fall to 0."""

        def on_step(self, state: LoopState) -> None:
            losses.append(state.metric("loss"))
            share = state.step / state.max_steps
            for group in optimizer.param_groups:
                group["lr"] = lr * min(20 * share, (1 - share) / 0.95)

    def batches() -> Iterator[list[SentencePair]]:
        lengths = [max(len(p.source), len(p.target)) for p in data.train]
        while True:
            for batch in length_buckets(lengths, max_tokens=max_tokens, generator=generator):
                yield [data.train[i] for i in batch]

    def step(pairs: list[SentencePair]) -> dict[str, Tensor]:
        source, lengths, given, wanted = translation_batch(data, pairs)
        loss = cross_entropy(model(source, lengths, given), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss}

    fit(step, batches(), [Decay()], max_steps=steps)
    return losses


def exact_translations(
    model: Any, data: TranslationData, pairs: Sequence[SentencePair]
) -> list[bool]:
    """Whether each greedy translation is the reference, word for word."""
    begin, end = data.target_words.id(Vocabulary.BEGIN), data.target_words.id(Vocabulary.END)
    right: list[bool] = []
    for start in range(0, len(pairs), 256):
        chunk = pairs[start : start + 256]
        source, lengths, _, _ = translation_batch(data, chunk)
        longest = max(len(pair.target) for pair in chunk)
        written = greedy_decode(
            model, source, lengths, begin_id=begin, end_id=end, max_new_tokens=longest + 2
        )
        right += [
            ids == data.target_words.encode(pair.target)
            for ids, pair in zip(written, chunk, strict=True)
        ]
    return right


@torch.no_grad()
def words_right(
    model: Any, data: TranslationData, pairs: Sequence[SentencePair]
) -> list[tuple[int, int]]:
    """For each pair, how many next words (end mark included) are named rightly given the true
    words before them, and how many there are.
    """
    counts: list[tuple[int, int]] = []
    for start in range(0, len(pairs), 256):
        source, lengths, given, wanted = translation_batch(data, pairs[start : start + 256])
        hit = (model(source, lengths, given).argmax(dim=-1) == wanted).sum(dim=1)  # (B,)
        real = (wanted != -100).sum(dim=1)  # (B,)
        counts += list(zip(hit.tolist(), real.tolist(), strict=True))
    return counts


def sure_and_possible(pair: SentencePair) -> tuple[set[Pair], set[Pair]]:
    """A pair is sure where the target word has one counterpart, possible where several share it.

    ("some red keys" is two foreign words, and the article goes with its noun: to look at either is
    right.) One link a target word can then reach an error rate of 0.
    """
    possible = set(pair.alignment)
    counts: dict[int, int] = {}
    for _, target in possible:
        counts[target] = counts.get(target, 0) + 1
    return {(s, t) for s, t in possible if counts[t] == 1}, possible


@torch.no_grad()
def translator_weights(
    model: Any, data: TranslationData, pairs: Sequence[SentencePair]
) -> list[Tensor]:
    """Each pair's attention weights (T, S) while the true target is written."""
    source, lengths, given, _ = translation_batch(data, pairs)
    _, weights = model(source, lengths, given, return_weights=True)  # (B, T, S)
    return list(weights)


def translator_error_rate(
    model: Any, data: TranslationData, pairs: Sequence[SentencePair]
) -> float:
    """The alignment error rate of the most attended words, on pairs with known alignments."""
    found = [
        hard_alignment(weights, len(pair.source), len(pair.target))
        for weights, pair in zip(translator_weights(model, data, pairs), pairs, strict=True)
    ]
    known = [sure_and_possible(pair) for pair in pairs]
    return alignment_error_rate(found, [sure for sure, _ in known], [both for _, both in known])


def diagonal_error_rate(pairs: Sequence[SentencePair]) -> float:
    """The error rate of whoever always looks at the same relative place: the rate to beat."""
    found = [
        {
            (round(t * (len(p.source) - 1) / max(1, len(p.target) - 1)), t)
            for t in range(len(p.target))
        }
        for p in pairs
    ]
    known = [sure_and_possible(pair) for pair in pairs]
    return alignment_error_rate(found, [sure for sure, _ in known], [both for _, both in known])


def compare_attentions(
    *, train: int, test: int, d_model: int, steps: int, seeds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train every attention and none; the results, and models and data for figures."""
    data = translation_data(train=train, test=test)
    judged = data.test[:400]
    rows, by_length, detail = [], {}, {}
    shown: dict[str, Any] = {"data": data}
    for kind in progress(ATTENTIONS, desc="translation", unit="attention"):
        exact, named, errors, parameters = [], [], [], 0
        curves: dict[int, list[float]] = {}
        for seed in range(seeds):
            model = new_translator(data, kind, d_model=d_model, seed=seed)
            parameters = count_parameters(model)
            train_translator(model, data, steps=steps, seed=seed)
            model.eval()
            right = exact_translations(model, data, data.test)
            exact.append(100 * sum(right) / len(right))
            counts = words_right(model, data, data.test)
            named.append(_percent(counts))
            if kind != "none":
                errors.append(100 * translator_error_rate(model, data, judged))
            for i, (low, high) in enumerate(pairwise(LENGTH_EDGES)):
                bucket = [
                    count
                    for count, p in zip(counts, data.test, strict=True)
                    if low <= len(p.source) < high
                ]
                curves.setdefault(i, []).append(_percent(bucket))
            shown[kind] = model
        mean, half_width = interval(exact)
        word_mean, word_width = interval(named)
        rate, rate_width = interval(errors) if errors else (None, None)
        rows.append([kind, parameters, word_mean, word_width, mean, half_width, rate, rate_width])
        by_length[kind] = [
            [(LENGTH_EDGES[i] + LENGTH_EDGES[i + 1] - 1) / 2, *interval(values)]
            for i, values in curves.items()
        ]
        detail[kind] = {
            "words": word_mean,
            "exact": mean,
            "error_rate": rate,
            "all_words": named,
            "all_exact": exact,
            "all_error_rates": errors,
            "shortest": by_length[kind][0][1],
            "longest": by_length[kind][-1][1],
        }
    columns = [
        "attention",
        "parameters",
        "words right, %",
        "± 95 %",
        "sentences wholly right, %",
        "± 95 % ",
        "alignment error rate, %",
        "± 95 %  ",
    ]
    results = {
        "translation": {
            "columns": columns,
            "rows": [["–" if x is None else x for x in row] for row in rows],
            "formats": ["", ",d", *[".1f"] * 6],
        },
        "translation_detail": {**detail, "by_length": by_length},
        "translation_train_pairs": len(data.train),
        "translation_test_pairs": len(data.test),
        "translation_steps": steps,
        "translation_diagonal_error": 100 * diagonal_error_rate(judged),
    }
    return results, shown


def _percent(counts: Sequence[tuple[int, int]]) -> float:
    """Right of all, in per cent; 0 of nothing."""
    return 100 * sum(hit for hit, _ in counts) / max(1, sum(real for _, real in counts))
