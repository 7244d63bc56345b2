"""The objectives that label a text: their statistics, and what must never happen."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masks import prefix_mask
from pretraining_objectives import (
    MaskedTokens,
    causal_lm,
    mask_tokens,
    next_sentence_pairs,
    prefix_lm,
    replace_tokens,
)

PAD, CLS, SEP, MASK, V = 0, 1, 2, 3, 50
SPECIAL = (PAD, CLS, SEP, MASK)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts(rows: int = 200, length: int = 100, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(len(SPECIAL), V, (rows, length), generator=seeded(seed))
    ids[:, 0], ids[:, length // 2] = CLS, SEP
    ids[::2, -10:] = PAD
    return ids


def mask(ids: torch.Tensor, seed: int = 0, **options) -> MaskedTokens:
    defaults = {"vocab_size": V, "mask_id": MASK, "special_ids": SPECIAL, "generator": seeded(seed)}
    return mask_tokens(ids, **{**defaults, **options})


# --- masked tokens ----------------------------------------------------------------------------


def test_the_three_fates_have_the_papers_shares():
    ids = texts()
    inputs, targets = mask(ids)
    chosen = targets != -100
    ordinary = ids >= len(SPECIAL)
    count = int(ordinary.sum())
    assert stats.binomtest(int(chosen.sum()), count, 0.15).pvalue > 1e-3
    hidden = chosen & (inputs == MASK)
    same = chosen & (inputs == ids)
    other = chosen & ~hidden & ~same
    # A drawn token equals the old one once in 46.
    drawn = 0.1 * (V - 4 - 1) / (V - 4)
    expected = torch.tensor([0.8, 0.2 - drawn, drawn]) * int(chosen.sum())
    found = [int(part.sum()) for part in (hidden, same, other)]
    assert stats.chisquare(found, expected.numpy(), sum_check=False).pvalue > 1e-3


def test_only_ordinary_tokens_are_chosen_and_drawn():
    ids = texts()
    inputs, targets = mask(ids, rate=0.9, mask_share=0.0, random_share=1.0)
    assert torch.equal(inputs[ids < 4], ids[ids < 4])
    assert bool((targets[ids < 4] == -100).all())
    drawn = inputs[targets != -100]
    assert int(drawn.min()) >= 4
    counts = torch.bincount(drawn, minlength=V)[4:]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    length=st.integers(1, 30),
    rate=st.floats(0.05, 0.9),
    spans=st.booleans(),
)
def test_targets_restore_the_text(seed, length, rate, spans):
    ids = torch.randint(0, V, (3, length), generator=seeded(seed))
    before = ids.clone()
    inputs, targets = mask(ids, seed, rate=rate, spans=spans)
    assert torch.equal(ids, before)  # nothing was changed in place
    assert torch.equal(torch.where(targets == -100, inputs, targets), ids)


def test_the_rate_is_that_of_transformers_collator():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import BatchEncoding

    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}
    vocabulary.update({f"w{i}": i for i in range(4, V)})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[PAD]")),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)
    ids = texts(400)
    theirs = collate([BatchEncoding({"input_ids": row}) for row in ids])
    ours = mask(ids)
    table = []
    for inputs, targets in ((theirs["input_ids"], theirs["labels"]), ours):
        chosen = targets != -100
        hidden, same = chosen & (inputs == MASK), chosen & (inputs == ids)
        table.append(
            [
                int(part.sum())
                for part in (~chosen & (ids > 3), hidden, same, chosen & ~hidden & ~same)
            ]
        )
    assert sum(table[0]) == sum(table[1]) == int((ids > 3).sum())
    assert stats.chi2_contingency(table).pvalue > 1e-3  # type: ignore


def test_whole_words_are_chosen_whole():
    ids = texts(length=90)
    ids[:, 0] = ids[:, 45] = 7
    words = torch.arange(30).repeat_interleave(3).expand_as(ids)
    chosen = mask(ids, words=words).targets != -100
    real = (ids > 3).view(len(ids), 30, 3)
    by_word = chosen.view(len(ids), 30, 3)
    first = by_word[..., :1] | ~real
    assert torch.equal(by_word | ~real, first.expand_as(by_word) | ~real)
    assert stats.binomtest(int(by_word[..., 0].sum()), int(real[..., 0].sum()), 0.15).pvalue > 1e-3


def test_a_word_may_stand_in_two_places():
    ids = torch.tensor([[5, 6, 7, 8]])
    words = torch.tensor([[0, 1, 0, 2]])
    for seed in range(30):
        chosen = mask(ids, seed, rate=0.5, words=words).targets[0] != -100
        assert bool(chosen[0]) == bool(chosen[2])


def test_spans_are_spanberts():
    """Lengths: geometric with p = 0.2, at most ten, mean 3.8; one fate for the whole run."""
    ids = torch.randint(4, V, (60, 400), generator=seeded(1))
    inputs, targets = mask(ids, spans=True)
    chosen = targets != -100
    assert int(chosen.sum()) == pytest.approx(0.15 * ids.numel(), rel=0.01)
    fates = Counter()
    for row in range(len(ids)):
        place = 0
        while place < 400:
            if not chosen[row, place]:
                place += 1
                continue
            end = place
            while end < 400 and chosen[row, end]:
                end += 1
            hidden = (inputs[row, place:end] == MASK).float().mean().item()
            fates[hidden in (0.0, 1.0)] += 1
            place = end
    # Runs that touch may have two fates; few do at 15 %.
    assert fates[True] > 0.95 * sum(fates.values())
    runs = (chosen[:, 1:] & ~chosen[:, :-1]).sum() + chosen[:, 0].sum()
    weights = [0.8**length for length in range(10)]
    mean = sum((i + 1) * w for i, w in enumerate(weights)) / sum(weights)
    assert mean == pytest.approx(3.8, abs=0.01)
    # Neighbours join and the last is cut short; single tokens would give 1.18.
    assert float(chosen.sum() / runs) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0"),
        ({"mask_share": 0.8, "random_share": 0.3}, "together at most 1"),
        ({"mask_share": -0.1}, "at least 0"),
        ({"spans": True, "words": torch.zeros(2, 5, dtype=torch.long)}, "words or spans"),
        ({"words": torch.zeros(2, 4, dtype=torch.long)}, r"words is \(2, 4\)"),
        ({"vocab_size": 9}, "vocab_size=9"),
        ({"special_ids": range(V)}, "every id is special"),
    ],
)
def test_masking_refuses(options, message):
    ids = torch.full((2, 5), 9)
    with pytest.raises(ValueError, match=message):
        mask(ids, **options)


def test_masking_refuses_a_row_without_batch():
    with pytest.raises(ValueError, match=r"ids is \(5,\)"):
        mask(torch.full((5,), 9))


# --- next tokens ------------------------------------------------------------------------------


def test_each_target_is_the_next_token():
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, PAD, PAD]])
    inputs, targets, prefix = causal_lm(ids, pad_id=PAD)
    assert inputs.tolist() == [[5, 6, 7], [9, 10, PAD]]
    assert targets.tolist() == [[6, 7, 8], [10, -100, -100]]
    assert prefix.tolist() == [1, 1]
    assert causal_lm(ids).targets.tolist() == ids[:, 1:].tolist()
    with pytest.raises(ValueError, match="T >= 2"):
        causal_lm(ids[:, :1])


def test_the_prefix_is_uniform_and_has_no_loss():
    ids = torch.arange(4, 10).repeat(3000, 1)
    _inputs, targets, prefix = prefix_lm(ids, generator=seeded(), pad_id=PAD)
    counts = torch.bincount(prefix, minlength=6)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    for row in range(50):
        cut = int(prefix[row])
        assert targets[row].tolist() == [-100] * (cut - 1) + ids[row, cut:].tolist()


def test_no_prefix_sees_what_it_must_say():
    """Under the mask of the prefix, no position with a loss can see its own target."""
    ids = torch.randint(4, V, (20, 12), generator=seeded())
    ids[::3, 8:] = PAD
    _, targets, prefix = prefix_lm(ids, generator=seeded(1), pad_id=PAD)
    for row in range(20):
        keep = prefix_mask(int(prefix[row]), 11)
        for place in torch.nonzero(targets[row] != -100).flatten().tolist():
            if place + 1 < 11:
                assert not keep[place, place + 1]


def test_a_prefix_needs_something_behind_it():
    with pytest.raises(ValueError, match="fewer than two"):
        prefix_lm(torch.tensor([[5, 6], [5, PAD]]), generator=seeded(), pad_id=PAD)


# --- pairs ------------------------------------------------------------------------------------


def documents(count: int = 40, sentences: int = 12) -> list[list[list[int]]]:
    """Every token says which document and which sentence it is from."""
    return [
        [[1000 * (d + 1) + 10 * s + w for w in range(3 + (s + d) % 4)] for s in range(sentences)]
        for d in range(count)
    ]


def parts(row: torch.Tensor) -> tuple[list[int], list[int]]:
    """The two texts between CLS SEP SEP."""
    ids = row.tolist()
    first, second = [i for i, token in enumerate(ids) if token == SEP]
    return ids[1:first], ids[first + 1 : second]


@pytest.mark.parametrize("negatives", ["random", "swapped"])
def test_pairs_are_what_their_labels_say(negatives):
    options = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD, "max_seq_len": 24}
    found = next_sentence_pairs(documents(), generator=seeded(), negatives=negatives, **options)
    assert found.ids.shape[1] <= 24
    assert bool((found.ids[:, 0] == CLS).all())
    assert torch.equal(found.keep, found.ids != PAD)
    assert stats.binomtest(int(found.labels.sum()), len(found.labels)).pvalue > 1e-3
    for row in range(len(found.ids)):
        first, second = parts(found.ids[row])
        assert first
        assert second
        same = first[-1] // 1000 == second[0] // 1000
        in_order = first[-1] // 10 < second[0] // 10
        if found.labels[row] == 0:
            assert same
            assert in_order
        elif negatives == "random":
            assert not same
        else:
            assert same
            assert not in_order
        types = found.types[row][found.keep[row]].tolist()
        assert types == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_pairs_fill_their_rows():
    options = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD, "max_seq_len": 24}
    full = next_sentence_pairs(documents(), generator=seeded(), short_share=0.0, **options)  # type: ignore
    mixed = next_sentence_pairs(documents(), generator=seeded(), short_share=1.0, **options)  # type: ignore
    assert full.keep.sum(1).float().mean() > 20 > mixed.keep.sum(1).float().mean()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (documents(3), {"negatives": "none"}, "negatives is 'none'"),
        (documents(3), {"max_seq_len": 4}, "max_seq_len is 4"),
        (documents(1), {}, "second document"),
        ([[[5]], []], {}, "every document"),
        ([[[5], []], [[5]]], {}, "every document"),
        ([[[5]], [[6]]], {}, "two sentences"),
    ],
)
def test_pairs_refuse(given, options, message):
    base = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD, "max_seq_len": 24}
    with pytest.raises(ValueError, match=message):
        next_sentence_pairs(given, generator=seeded(), **{**base, **options})


# --- replaced tokens --------------------------------------------------------------------------


def test_a_right_guess_is_not_a_replacement():
    ids = texts(20)
    masked = mask(ids, mask_share=1.0, random_share=0.0)
    chosen = masked.targets != -100
    certain = torch.full((int(chosen.sum()), V), -torch.inf)
    right = certain.scatter(1, ids[chosen][:, None], 0.0)
    found = replace_tokens(ids, masked, right, generator=seeded())
    assert torch.equal(found.inputs, ids)
    assert not found.replaced.any()
    wrong_ids = 4 + (ids[chosen] - 3) % (V - 4)
    wrong = certain.scatter(1, wrong_ids[:, None], 0.0)
    found = replace_tokens(ids, masked, wrong, generator=seeded())
    assert torch.equal(found.replaced, chosen)
    assert torch.equal(found.inputs[chosen], wrong_ids)
    assert torch.equal(found.inputs[~chosen], ids[~chosen])


def test_guesses_are_drawn_not_chosen():
    """A generator that gives each of two tokens one half is taken at its word."""
    ids = torch.full((40, 50), 5)
    masked = mask(ids, rate=0.5)
    count = int((masked.targets != -100).sum())
    logits = torch.full((count, V), -torch.inf)
    logits[:, 5] = logits[:, 9] = 0.0
    found = replace_tokens(ids, masked, logits.requires_grad_(), generator=seeded())
    assert stats.binomtest(int(found.replaced.sum()), count).pvalue > 1e-3
    assert not found.inputs.requires_grad


def test_replacing_refuses():
    ids = texts(4)
    masked = mask(ids)
    count = int((masked.targets != -100).sum())
    with pytest.raises(ValueError, match=rf"must be \({count}, V\)"):
        replace_tokens(ids, masked, torch.zeros(count + 1, V), generator=seeded())
    with pytest.raises(ValueError, match="must be equal"):
        replace_tokens(ids[:, 1:], masked, torch.zeros(count, V), generator=seeded())
    nothing = MaskedTokens(ids, torch.full_like(ids, -100))
    found = replace_tokens(ids, nothing, torch.zeros(0, V), generator=seeded())
    assert torch.equal(found.inputs, ids)
