"""The material: nothing unknown, nothing cut off, and no question that a list of words answers."""

from __future__ import annotations

import pytest
import torch

from tiny_lexicon import MEN, WOMEN
from tiny_world import TinyWorld
from world_tasks import (
    CLS_ID,
    LABELS,
    PAD_ID,
    SEP_ID,
    TASKS,
    many_task_world,
    reading_questions,
    reading_vocabulary,
    reading_world,
    story_rows,
    task_vocabulary,
    text_tasks,
    word_counts,
)


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return reading_world()


def test_stories_are_framed_and_known(world):
    vocabulary = reading_vocabulary(world)
    ids = story_rows(world, vocabulary, 50, seed=1, max_seq_len=64)
    assert ids.shape[0] == 50
    assert ids.shape[1] <= 64
    assert bool((ids[:, 0] == CLS_ID).all())
    short = ids[(ids == PAD_ID).any(dim=1)]
    assert len(short)
    assert bool((short == SEP_ID).any(dim=1).all())


def test_the_pronoun_means_whom_the_label_says(world):
    vocabulary = reading_vocabulary(world)
    ids, labels = reading_questions(world, vocabulary, 300, ask="pronoun", seed=2, max_seq_len=80)
    assert ids.shape[0] == len(labels) == 300
    assert 0.4 < labels.float().mean() < 0.6
    for row, label in zip(ids, labels, strict=True):
        text = vocabulary.decode(row)
        names = [word for word in text if word in MEN or word in WOMEN]
        assert len(names) == 2  # each of them once
        who = names[label]
        said = {word.lower() for word in text} & {"he", "she"}
        assert said == ({"he"} if who in MEN else {"she"})


def test_the_first_name_is_what_the_label_says(world):
    vocabulary = reading_vocabulary(world)
    ids, labels = reading_questions(world, vocabulary, 100, ask="first", seed=2, max_seq_len=80)
    pronoun = reading_questions(world, vocabulary, 100, ask="pronoun", seed=2, max_seq_len=80)
    assert torch.equal(ids, pronoun.ids)
    for row, label in zip(ids, labels, strict=True):
        first = next(word for word in vocabulary.decode(row) if word in MEN or word in WOMEN)
        assert first in (WOMEN if label else MEN)
    with pytest.raises(ValueError, match="ask is 'last'"):
        reading_questions(world, vocabulary, 9, ask="last", seed=2, max_seq_len=80)  # type: ignore


def test_a_bag_of_words_cannot_know_the_order(world):
    """The same words with the names exchanged have the other label, for both questions."""
    vocabulary = reading_vocabulary(world)
    texts = reading_questions(world, vocabulary, 100, ask="first", seed=2, max_seq_len=80)
    named = torch.isin(
        texts.ids,
        torch.tensor([vocabulary.id(name) for name in (*MEN, *WOMEN) if name in vocabulary]),
    )
    assert torch.equal(named.sum(dim=1), torch.full((100,), 2))
    swapped = texts.ids.clone()
    swapped[named] = texts.ids[named].view(-1, 2).flip(1).flatten()
    counts = word_counts(texts, len(vocabulary))
    assert torch.equal(counts, word_counts(texts._replace(ids=swapped), len(vocabulary)))
    with pytest.raises(ValueError, match="does not fit into 20"):
        reading_questions(world, vocabulary, 20, ask="first", seed=2, max_seq_len=20)


def test_counts_forget_the_order(world):
    vocabulary = reading_vocabulary(world)
    texts = reading_questions(world, vocabulary, 5, ask="first", seed=2, max_seq_len=160)
    counts = word_counts(texts, len(vocabulary))
    assert torch.equal(counts.sum(dim=1).long(), (texts.ids != PAD_ID).sum(dim=1))
    shuffled = texts._replace(ids=texts.ids[:, torch.randperm(texts.ids.shape[1])])
    assert torch.equal(counts, word_counts(shuffled, len(vocabulary)))


def test_four_tasks_in_turn():
    world = many_task_world()
    vocabulary = task_vocabulary(world, sentinels=3)
    assert "[X2]" in vocabulary.specials
    examples = text_tasks(world, 200, seed=4)
    assert [example.task for example in examples] == list(TASKS) * 50
    for example in examples:
        assert example.source[:2] == [example.task, ":"]
        ids = vocabulary.encode([*example.source, *example.target])  # nothing is unknown
        assert vocabulary.decode(ids) == [*example.source, *example.target]
        if example.task == "answer":
            assert example.target[0] in example.source
    labels = [example.target for example in examples if example.task == "classify"]
    assert labels == [[label] for label in LABELS] * 25
    assert text_tasks(world, 8, seed=4) == examples[:8]
