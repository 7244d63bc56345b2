"""The objectives that rewrite a text: inputs and targets together are the text."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from span_denoising import (
    Denoiser,
    Denoising,
    delete_tokens,
    denoising_batch,
    restore_spans,
    rotate_document,
    sentence_permutation,
    span_corruption,
    text_infilling,
    ul2_denoisers,
    ul2_mixture,
)

SENTINELS = range(1000, 1200)
MASK, PAD, END = 2000, 0, 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(10, 900, (length,), generator=seeded(seed)).tolist()


# --- T5 ---------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 999),
    length=st.integers(2, 200),
    rate=st.floats(0.02, 0.9),
    mean_span=st.floats(1, 20),
)
def test_spans_and_the_rest_are_the_text(seed, length, rate, mean_span):
    ids = text(length, seed)
    example = span_corruption(
        ids, sentinels=SENTINELS, generator=seeded(seed), rate=rate, mean_span=mean_span
    )
    assert restore_spans(example, sentinels=SENTINELS) == ids
    marks = [token for token in example.inputs if token >= 1000]
    assert marks == list(SENTINELS)[: len(marks)]  # numbered from the left, none left out
    assert [token for token in example.targets if token >= 1000] == marks
    assert len(example.inputs) + len(example.targets) == length + 2 * len(marks)


def test_counts_are_t5s():
    """512 tokens at 15 % and mean 3: 77 go, in 26 spans, so 461 come in and 103 go out."""
    example = span_corruption(text(512), sentinels=SENTINELS, generator=seeded())
    assert len(example.inputs) == 512 - 77 + 26 == 461
    assert len(example.targets) == 77 + 26 == 103


def test_every_division_is_equally_likely():
    """7 tokens cut into 3 spans of at least one: C(6, 2) = 15 ways."""
    counts: Counter[tuple[int, ...]] = Counter()
    generator = seeded(3)
    for _ in range(3000):
        example = span_corruption(
            list(range(10, 24)), sentinels=SENTINELS, generator=generator, rate=0.5, mean_span=2.5
        )
        marks = [i for i, token in enumerate(example.targets) if token >= 1000]
        ends = [*marks[1:], len(example.targets)]
        counts[tuple(end - mark - 1 for mark, end in zip(marks, ends, strict=True))] += 1
    assert len(counts) == 15
    assert all(len(sizes) == 3 and sum(sizes) == 7 for sizes in counts)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([5], {}, "1 tokens"),
        ([5, 6], {"rate": 0.0}, "0 < rate"),
        ([5, 6], {"mean_span": 0.5}, "1 <= mean_span"),
        (text(100), {"sentinels": [1000]}, "5 spans"),
        ([5, 1000], {}, "stands in the text"),
    ],
)
def test_span_corruption_refuses(ids, options, message):
    base = {"sentinels": SENTINELS, "generator": seeded()}
    with pytest.raises(ValueError, match=message):
        span_corruption(ids, **{**base, **options})


def test_restoring_refuses_an_unanswered_sentinel():
    with pytest.raises(ValueError, match="1001 has no span"):
        restore_spans(Denoising([5, 1001], [1000, 6]), sentinels=SENTINELS)


# --- BART -------------------------------------------------------------------------------------


def gaps(example: Denoising) -> list[int]:
    """How many tokens each mask stands for: the text's tokens are all different here."""
    sizes, place = [], 0
    for token in [*example.inputs, None]:
        if token == MASK:
            sizes.append(-1)
            continue
        end = len(example.targets) if token is None else example.targets.index(token)
        if sizes and sizes[-1] == -1:
            sizes[-1] = end - place
        else:
            assert end == place
        place = end + 1
    return sizes


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), length=st.integers(1, 120), rate=st.floats(0, 0.95))
def test_infilling_hides_the_share_it_says(seed, length, rate):
    ids = list(range(10, 10 + length))
    example = text_infilling(ids, mask_id=MASK, generator=seeded(seed), rate=rate)
    assert example.targets == ids
    kept = [token for token in example.inputs if token != MASK]
    assert kept == [token for token in ids if token in set(kept)]  # in their order
    assert len(kept) == length - round(rate * length)
    assert (MASK, MASK) not in itertools.pairwise(example.inputs)
    assert sum(gaps(example)) == round(rate * length)


def test_gaps_are_poisson():
    """Mean 3 and the shares of e⁻³ 3ᵏ / k!, empty gaps included."""
    sizes: list[int] = []
    for seed in range(8):
        example = text_infilling(list(range(10, 1910)), mask_id=MASK, generator=seeded(seed))
        sizes += gaps(example)
    counts = [sum(size == k for size in sizes) for k in range(8)]
    counts.append(len(sizes) - sum(counts))
    chances = [float(stats.poisson.pmf(k, 3.0)) for k in range(8)]
    chances.append(1 - sum(chances))
    expected = [len(sizes) * chance for chance in chances]
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-3


def test_masks_fall_everywhere_alike():
    starts = Counter()
    for seed in range(2000):
        example = text_infilling(
            list(range(10, 18)), mask_id=MASK, generator=seeded(seed), rate=0.125, mean_span=20.0
        )
        starts[example.inputs.index(MASK)] += 1
    assert len(starts) == 8
    assert stats.chisquare(list(starts.values())).pvalue > 1e-3


def test_deletion_leaves_no_mark():
    ids = list(range(10, 3010))
    example = delete_tokens(ids, generator=seeded(), rate=0.15)
    assert example.targets == ids
    assert example.inputs == [token for token in ids if token in set(example.inputs)]
    assert stats.binomtest(3000 - len(example.inputs), 3000, 0.15).pvalue > 1e-3
    assert delete_tokens([5], generator=seeded(), rate=0.999).inputs == [5]


def test_sentences_change_places_whole():
    stop = 9
    ids = [11, 12, stop, 21, stop, 31, 32, 33, stop, 41]
    sentences = [(11, 12, stop), (21, stop), (31, 32, 33, stop), (41,)]
    seen = Counter()
    for seed in range(2400):
        example = sentence_permutation(ids, end_ids=[stop], generator=seeded(seed))
        assert example.targets == ids
        order = sorted(range(4), key=lambda i: example.inputs.index(sentences[i][0]))
        assert example.inputs == [token for i in order for token in sentences[i]]
        seen[tuple(order)] += 1
    assert len(seen) == 24
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_rotation_keeps_the_circle():
    ids = list(range(10, 17))
    starts = Counter()
    for seed in range(700):
        example = rotate_document(ids, generator=seeded(seed))
        first = example.inputs.index(10)
        assert example.inputs[first:] + example.inputs[:first] == ids == example.targets
        starts[example.inputs[0]] += 1
    assert len(starts) == 7
    assert stats.chisquare(list(starts.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: text_infilling([], mask_id=MASK, generator=g), "empty"),
        (lambda g: text_infilling([5], mask_id=MASK, generator=g, rate=1.0), "rate is 1.0"),
        (lambda g: text_infilling([5], mask_id=MASK, generator=g, mean_span=0), "mean_span is 0"),
        (lambda g: delete_tokens([5], generator=g, rate=-0.1), "rate is -0.1"),
        (lambda g: sentence_permutation([], end_ids=[9], generator=g), "empty"),
        (lambda g: rotate_document([], generator=g), "empty"),
    ],
)
def test_spoiling_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(seeded())


# --- UL2 --------------------------------------------------------------------------------------

MODES = {"R": 3000, "S": 3001, "X": 3002}


def test_the_mixture_is_the_papers():
    modes = Counter(denoiser.mode for denoiser in ul2_denoisers())
    assert modes == {"R": 2, "S": 1, "X": 4}
    # The X denoisers take half the text, or spans of 32 tokens and more.
    assert all(
        d.mean_span is not None and (d.rate >= 0.5 or d.mean_span >= 32)
        for d in ul2_denoisers()
        if d.mode == "X"
    )


def test_the_mode_says_what_was_done():
    ids = text(200)
    seen = Counter()
    generator = seeded()
    for _ in range(700):
        example = ul2_mixture(ids, sentinels=SENTINELS, mode_ids=MODES, generator=generator)
        mode, *inputs = example.inputs
        assert restore_spans(Denoising(inputs, example.targets), sentinels=SENTINELS) == ids
        spans = sum(token in SENTINELS for token in inputs)
        cut = len(example.targets) - spans
        seen[mode] += 1
        if mode == MODES["S"]:
            assert (cut, spans, inputs[:-1]) == (50, 1, ids[:150])
        elif mode == MODES["R"]:
            assert (cut, spans) in {(30, 10), (30, 4)}
        else:
            assert (cut, spans) in {(100, 33), (100, 12), (30, 1), (100, 2)}
    found = [seen[MODES[name]] for name in "RSX"]
    assert stats.chisquare(found, [200, 100, 400]).pvalue > 1e-3


def test_the_mixture_refuses():
    options = {"sentinels": SENTINELS, "generator": seeded()}
    only_s = [Denoiser(mode="S", rate=0.5, mean_span=None)]
    with pytest.raises(ValueError, match="mode 'S' has no token"):
        ul2_mixture(text(9), mode_ids={"R": 1}, denoisers=only_s, **options)
    with pytest.raises(ValueError, match="at least one denoiser"):
        ul2_mixture(text(9), mode_ids=MODES, denoisers=[], **options)
    with pytest.raises(ValueError, match="two tokens"):
        ul2_mixture([5], mode_ids=MODES, denoisers=only_s, **options)


# --- batches ----------------------------------------------------------------------------------


def test_a_batch_is_padded_on_both_sides():
    batch = denoising_batch(
        [Denoising([5, 6, 7], [8]), Denoising([9], [10, 11])], pad_id=PAD, end_id=END
    )
    assert batch.inputs.tolist() == [[5, 6, 7], [9, PAD, PAD]]
    assert batch.keep.tolist() == [[True, True, True], [True, False, False]]
    assert batch.targets.tolist() == [[8, END, -100], [10, 11, END]]
    bare = denoising_batch([Denoising([5], [8])], pad_id=PAD)
    assert bare.targets.tolist() == [[8]]
    with pytest.raises(ValueError, match="at least one"):
        denoising_batch([], pad_id=PAD)
