"""Vocabularies, padding, buckets, and toy tasks whose answers are checked by plain Python."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sequence_data import (
    Vocabulary,
    addition_task,
    as_language_model,
    copy_task,
    induction_task,
    length_buckets,
    pad_sequences,
    recall_task,
    reverse_task,
    sort_task,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- vocabulary -----------------------------------------------------------------------------------


def test_vocabulary_is_ordered_by_frequency_then_alphabet() -> None:
    vocabulary = Vocabulary.build(["banana", "cab"])
    assert vocabulary.symbols == ("<pad>", "<bos>", "<eos>", "<unk>", "a", "b", "n", "c")
    assert vocabulary.encode("cab") == [7, 4, 5]
    assert len(vocabulary) == 8
    assert "n" in vocabulary
    assert "z" not in vocabulary
    words = Vocabulary.build([["to", "be"], ["to", "do"]], min_count=2, specials=())
    assert words.symbols == ("to",)
    assert Vocabulary.build(["banana"], max_size=5).symbols[4:] == ("a",)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_vocabulary_round_trip(texts: list[str]) -> None:
    vocabulary = Vocabulary.build(texts)
    for text in texts:
        ids = vocabulary.encode(text)
        assert "".join(vocabulary.decode(ids)) == text
        assert "".join(vocabulary.decode(torch.tensor(ids, dtype=torch.int64))) == text


def test_unknown_symbols_and_specials() -> None:
    vocabulary = Vocabulary("ab")
    assert vocabulary.encode("az") == [4, vocabulary.id(Vocabulary.UNKNOWN)]
    sentence = [vocabulary.id(Vocabulary.BEGIN), 4, 5, vocabulary.id(Vocabulary.END), 0]
    assert vocabulary.decode(sentence) == ["a", "b"]
    assert vocabulary.decode(sentence, skip_specials=False) == ["<bos>", "a", "b", "<eos>", "<pad>"]
    with pytest.raises(ValueError, match=r"'z' is not in the vocabulary, which has no <unk>"):
        Vocabulary("ab", specials=()).encode("z")
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 6\), got -1"):
        vocabulary.decode([-1])
    with pytest.raises(ValueError, match=r"must be different, got \['a'\] more than once"):
        Vocabulary("aba")
    with pytest.raises(ValueError, match="max_size=3 leaves no room for 4 specials"):
        Vocabulary.build(["abc"], max_size=3)


# --- padding and buckets --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 99), max_size=7), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right"]),
    pad_id=st.sampled_from([0, 7, -1]),
)
def test_padding_keeps_every_id_in_place(
    sequences: list[list[int]], side: Any, pad_id: int
) -> None:
    ids, keep = pad_sequences(sequences, pad_id=pad_id, side=side)
    longest = max(len(sequence) for sequence in sequences)
    assert ids.shape == keep.shape == (len(sequences), longest)
    assert ids.dtype == torch.int64
    for row, sequence in enumerate(sequences):
        padding = [pad_id] * (longest - len(sequence))
        expected = sequence + padding if side == "right" else padding + sequence
        assert ids[row].tolist() == expected
        assert ids[row][keep[row]].tolist() == sequence


def test_padding_worked_value_and_mistakes() -> None:
    ids, keep = pad_sequences([torch.tensor([5, 6]), torch.tensor([7])], pad_id=0)
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert keep.tolist() == [[True, True], [True, False]]
    with pytest.raises(ValueError, match="at least one sequence"):
        pad_sequences([], pad_id=0)
    with pytest.raises(ValueError, match="side must be left or right, got 'top'"):
        pad_sequences([[1]], pad_id=0, side="top")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), max_size=60),
    max_tokens=st.integers(30, 200),
    seed=st.integers(0, 2**31),
)
def test_buckets_hold_each_index_once_within_the_budget(
    lengths: list[int], max_tokens: int, seed: int
) -> None:
    batches = length_buckets(lengths, max_tokens=max_tokens, generator=seeded(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    ranges = []
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) * longest <= max_tokens
        ranges.append((min(lengths[i] for i in batch), longest))
    # Similar lengths together: sorted by length, the batches do not overlap but at their ends.
    ranges.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


def test_buckets_waste_little_and_come_shuffled() -> None:
    lengths = torch.randint(1, 101, (2000,), generator=seeded()).tolist()
    batches = length_buckets(lengths, max_tokens=2000, generator=seeded(1))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest != sorted(longest)
    assert batches == length_buckets(lengths, max_tokens=2000, generator=seeded(1))
    assert batches != length_buckets(lengths, max_tokens=2000, generator=seeded(2))
    same = length_buckets([5] * 50, max_tokens=50, generator=seeded())
    assert [i for batch in same for i in batch] != list(range(50))


def test_lengths_that_fit_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[1, max_tokens=10\], got 11 at 1"):
        length_buckets([3, 11], max_tokens=10, generator=seeded())
    with pytest.raises(ValueError, match="got 0 at 0"):
        length_buckets([0], max_tokens=10, generator=seeded())


# --- toy tasks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_copy_reverse_and_sort(seed: int) -> None:
    for task, answer in (
        (copy_task, lambda row: row),
        (reverse_task, lambda row: row[::-1]),
        (sort_task, sorted),
    ):
        source, target = task(50, 9, 6, generator=seeded(seed))
        assert source.shape == target.shape == (50, 9)
        assert source.unique().tolist() == list(range(6))
        for row, expected in zip(source.tolist(), target.tolist(), strict=True):
            assert answer(row) == expected
        assert torch.equal(source, task(50, 9, 6, generator=seeded(seed))[0])


@pytest.mark.parametrize("digits", [1, 3, 20])
@pytest.mark.parametrize("reverse_sum", [False, True])
def test_addition(digits: int, reverse_sum: bool) -> None:
    source, target = addition_task(200, digits, generator=seeded(), reverse_sum=reverse_sum)
    assert source.shape == (200, 2 * digits + 1)
    assert target.shape == (200, digits + 1)

    def number(ids: list[int]) -> int:
        return int("".join(str(i) for i in ids))

    for row, total in zip(source.tolist(), target.tolist(), strict=True):
        assert row[digits] == 10
        written = total[::-1] if reverse_sum else total
        assert number(row[:digits]) + number(row[digits + 1 :]) == number(written)


def test_recall() -> None:
    inputs, targets = recall_task(30, 4, 7, 5, generator=seeded())
    assert inputs.shape == targets.shape == (30, 15)
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert row[4:] == [5] * 6 + [6] + [5] * 4
        assert wanted == [-100] * 11 + row[:4]
    assert inputs[:, :4].max() == 4
    shortest, _ = recall_task(1, 2, 1, 5, generator=seeded())
    assert shortest[0, 2:].tolist() == [6, 5, 5]


def test_induction() -> None:
    inputs, targets = induction_task(100, 5, 12, generator=seeded())
    assert inputs.shape == targets.shape == (100, 20)
    reordered = 0
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        table = dict(zip(row[:10:2], row[1:10:2], strict=True))
        assert len(table) == 5
        again = dict(zip(row[10::2], row[11::2], strict=True))
        assert again == table
        reordered += list(again) != list(table)
        for place in range(20):
            asked = place >= 10 and place % 2 == 0
            assert wanted[place] == (table[row[place]] if asked else -100)
            if asked:
                assert wanted[place] == row[place + 1]  # it is the next token, too
    assert reordered > 90  # 1 in 120 stays by chance
    with pytest.raises(ValueError, match="5 different keys need as many symbols, got 4"):
        induction_task(1, 5, 4, generator=seeded())


def test_a_pair_as_next_token_prediction() -> None:
    source, target = torch.tensor([[1, 2, 3]]), torch.tensor([[7, 8]])
    inputs, targets = as_language_model(source, target, separator_id=9)
    assert inputs.tolist() == [[1, 2, 3, 9, 7]]
    assert targets.tolist() == [[-100, -100, -100, 7, 8]]


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (copy_task, (0, 3, 4), "num_examples must be positive, got 0"),
        (sort_task, (1, 0, 4), "length must be positive, got 0"),
        (reverse_task, (1, 3, 0), "num_symbols must be positive, got 0"),
        (addition_task, (1, 0), "num_digits must be positive, got 0"),
        (recall_task, (1, 3, 0, 4), "delay must be positive, got 0"),
        (induction_task, (1, 0, 4), "num_pairs must be positive, got 0"),
    ],
)
def test_empty_tasks_are_refused(task: Any, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(*arguments, generator=seeded())


def test_tasks_leave_the_global_generator_alone() -> None:
    before: Tensor = torch.get_rng_state()
    copy_task(2, 3, 4, generator=seeded())
    induction_task(2, 3, 4, generator=seeded())
    length_buckets([1, 2], max_tokens=4, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
