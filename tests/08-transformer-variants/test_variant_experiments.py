"""What the experiments rest on: equal budgets, honest scores, and the right tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bert import MaskedLanguageModel
from lab import count_parameters
from variant_experiments import (
    bag_of_words_score,
    batches_of,
    finetune_and_score,
    mean_length,
    pretrain_with,
    reading_material,
    without_padding,
)
from variant_scale import OBJECTIVES, SMOKE_SCALE_08, encoder_config, equal_steps, step_flops
from variant_studies import score_tasks, shift_images, task_batches, word_f1
from world_tasks import (
    END_ID,
    PAD_ID,
    TextTask,
    many_task_world,
    task_vocabulary,
    text_tasks,
)


@pytest.fixture(scope="module")
def material():
    return reading_material(SMOKE_SCALE_08)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_spends_the_same(objective):
    scale = replace(SMOKE_SCALE_08, d_model=64, num_heads=4, num_layers=2, mlm_steps=1000)
    budget = 1000 * step_flops(OBJECTIVES[0], scale, 300, 40)
    spent = equal_steps(objective, scale, 300, 40) * step_flops(objective, scale, 300, 40)
    assert spent == pytest.approx(budget, rel=2e-3)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective is 'guess'"):
        step_flops("guess", SMOKE_SCALE_08, 300, 40)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pretraining_changes_all_that_fine_tuning_starts_from(objective, material):
    V = len(material.vocabulary)
    scale = replace(SMOKE_SCALE_08, mlm_steps=2)
    found = pretrain_with(objective, material.stories, scale, V, seed=0)
    again = pretrain_with(objective, material.stories, scale, V, seed=0)
    assert found.steps >= 1
    assert found.loss == again.loss
    first, second = found.start.state_dict(), again.start.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = pretrain_with(objective, material.stories, scale, V, seed=1).start.state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_fine_tuning_leaves_the_start_as_it_was(material):
    model = MaskedLanguageModel(encoder_config(SMOKE_SCALE_08, len(material.vocabulary)))
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    score = finetune_and_score(
        model.encoder, material.train["first"], material.test["first"], SMOKE_SCALE_08, seed=0
    )
    assert 0 <= score <= 1
    after = model.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_parts_share_no_story(material):
    rows = [set(map(tuple, material.test["first"].ids.tolist()))]
    rows.append(set(map(tuple, material.train["first"].ids.tolist())))
    assert not rows[0] & rows[1]
    assert torch.equal(material.test["first"].ids, material.test["pronoun"].ids)


def test_a_bag_of_words_learns_what_it_can(material):
    """A label that is a word's presence is learned; both questions' labels are not in the words."""
    test = material.test["first"]
    marked = test._replace(labels=(test.ids == test.ids[0, 3]).any(dim=1).long())
    if 0 < int(marked.labels.sum()) < len(marked.labels):
        assert bag_of_words_score(marked, marked, len(material.vocabulary)) == 1.0


def test_batches_are_cut_to_their_longest():
    ids = torch.tensor([[5, 6, PAD_ID, PAD_ID], [7, PAD_ID, PAD_ID, PAD_ID]])
    assert without_padding(ids).shape == (2, 2)
    assert mean_length(ids) == 2  # 1.5, rounded to even
    (rows,) = next(batches_of(ids, batch_size=8, generator=torch.Generator().manual_seed(0)))
    assert rows.shape == (8, 2)


def test_shifted_digits_keep_their_ink():
    images = torch.zeros(200, 1, 8, 8)
    images[:, 0, 3, 4] = 1.0
    moved = shift_images(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(200))
    places = {tuple(place[2:].tolist()) for place in torch.nonzero(moved)}
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}


def test_the_decoder_reads_one_step_behind():
    world = many_task_world()
    vocabulary = task_vocabulary(world)
    examples = text_tasks(world, 40, seed=1)
    src, reads, says = next(task_batches(examples, vocabulary, batch_size=6, seed=0))
    assert src.shape[0] == reads.shape[0] == says.shape[0] == 6
    for row in range(6):
        wanted = says[row][says[row] != -100].tolist()
        assert wanted[-1] == END_ID
        assert reads[row, : len(wanted)].tolist() == [PAD_ID, *wanted[:-1]]


def test_scores_of_four_tasks():
    def example(task: str, target: str) -> TextTask:
        return TextTask(task, [task, ":"], target.split())

    tests = [
        example(task, answer)
        for task in ("translate", "summarise", "answer", "classify")
        for answer in ("red hat", "blue hat")
    ]
    wrote = [["red", "hat"], ["hat", "blue"]] * 4
    train = [*tests, *(example(e.task, "red hat") for e in tests)]
    for row in score_tasks(tests, wrote, train):
        assert row[1:] == [2, 50.0, 100.0, 50.0]
    assert word_f1(["a", "a"], ["a", "b"]) == 0.5
    assert word_f1([], ["a"]) == 0.0


def test_the_encoder_has_the_parameters_that_it_counts(material):
    config = encoder_config(SMOKE_SCALE_08, len(material.vocabulary))
    assert count_parameters(MaskedLanguageModel(config)) == config.num_parameters
