"""A recipe is what it says: same seed same run, and each knob turns what it names."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from training_experiments import (
    KNOBS,
    SMOKE_TRAINING,
    changed,
    compare_with,
    ladder_recipes,
    named_recipes,
    train_all,
)
from training_recipes import (
    Recipe,
    build,
    build_recipe_model,
    build_schedule,
    prepare_lesson_data,
    train_recipe,
)
from training_studies import fit_batch_law

SMALL = Recipe(steps=6, batch_size=4, seq_len=16, d_model=16, num_heads=2, lr=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return prepare_lesson_data(folder, stories=60, held_out=4, vocab_size=300)


def test_data_is_made_once_and_bounded_below(data) -> None:
    again = prepare_lesson_data(
        data.train.directory.parent.parent, stories=60, held_out=4, vocab_size=300
    )
    assert len(again.train) == len(data.train)
    assert data.train.num_documents == 60
    assert data.tokenizer.vocab_size == data.train.vocab_size == 300
    assert 0.3 < data.floor_bits < 0.5


def test_a_seed_is_a_run(data) -> None:
    noisy = replace(SMALL, dropout=0.2)
    a, b, other = (train_recipe(noisy, data, seed=seed) for seed in (3, 3, 4))
    assert a.losses == b.losses
    assert a.bits_per_byte == b.bits_per_byte
    assert a.losses != other.losses
    assert len(a.grad_norms) == SMALL.steps
    assert a.seconds > 0
    assert a.last_loss(2) == pytest.approx(sum(a.losses[-2:]) / 2)


def test_training_leaves_the_global_generator_alone(data) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_recipe(replace(SMALL, dropout=0.2, steps=1), data, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_a_recipe_learns_and_never_beats_the_floor(data) -> None:
    record = train_recipe(replace(SMALL, steps=60), data, seed=0)
    assert record.losses[0] == pytest.approx(math.log(300), abs=0.1)
    assert record.last_loss() < record.losses[0] - 1.0
    assert record.bits_per_byte > data.floor_bits


@pytest.mark.parametrize(
    "changes", [pytest.param(c, id=f"{k}: {s}") for k, v in KNOBS.items() for s, c in v.items()]
)
def test_every_setting_of_the_ablations_trains(data, changes) -> None:
    recipe = replace(changed(replace(SMALL, steps=4), changes), batch_size=4)
    if recipe.micro_batch_size:
        recipe = replace(recipe, micro_batch_size=2)
    record = train_recipe(recipe, data, seed=0)
    assert all(map(math.isfinite, record.losses))
    assert len(record.losses) == recipe.steps


def test_accumulation_changes_nothing_but_rounding(data) -> None:
    whole = train_recipe(SMALL, data, seed=0)
    parts = train_recipe(replace(SMALL, micro_batch_size=1), data, seed=0)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


def test_short_windows_first_see_the_same_tokens(data) -> None:
    training, batches = build(replace(SMALL, short_first=True), data, seed=0)
    long = train_recipe(SMALL, data, seed=0)
    short = train_recipe(replace(SMALL, short_first=True), data, seed=0)
    assert short.losses[0] == pytest.approx(long.losses[0], abs=0.05)
    assert short.losses[0] != long.losses[0]
    assert training.config.seq_len == 16
    assert batches.tokens_per_batch == SMALL.tokens_per_step


def test_initialisations() -> None:
    def weights(how, **more):
        model = build_recipe_model(replace(SMALL, initialization=how, **more), 300, seed=0)
        return {name: p.detach() for name, p in model.named_parameters()}

    gpt2, unscaled = weights("gpt2"), weights("unscaled")
    end, inside = "blocks.0.feed_forward.down.weight", "blocks.0.feed_forward.up.weight"
    torch.testing.assert_close(unscaled[end], 2.0 * gpt2[end])  # sqrt(2 · 2 layers)
    assert torch.equal(unscaled[inside], gpt2[inside])
    assert weights("zero_outputs")[end].abs().max() == 0
    assert weights("fan_in")[inside].std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert weights("unit_embeddings")["token_embedding.weight"].std().item() == pytest.approx(
        1.0, rel=0.1
    )
    modern = weights("modern", tie_embeddings=False)
    assert modern["unembed.weight"].abs().max() == 0
    with pytest.raises(ValueError, match="untie the embeddings"):
        weights("modern")


def test_weight_decay_inside_the_gradient_is_another_optimiser(data) -> None:
    """With no decay Adam and AdamW are one; with it they part."""
    same = [
        train_recipe(replace(SMALL, optimizer=name, weight_decay=0.0), data, seed=0).losses
        for name in ("adamw", "adam_l2")
    ]
    assert same[0] == pytest.approx(same[1], rel=1e-5)
    parted = [
        train_recipe(replace(SMALL, optimizer=name, weight_decay=1.0), data, seed=0).losses[-1]
        for name in ("adamw", "adam_l2")
    ]
    assert abs(parted[0] - parted[1]) > 1e-3


def test_schedules_of_recipes() -> None:
    recipe = Recipe(steps=100, warmup=0.1)
    for name in ("constant", "linear", "cosine", "trapezoid", "inverse_sqrt"):
        schedule = build_schedule(replace(recipe, schedule=name))
        assert schedule(0) == 0.0
        assert schedule(10) == pytest.approx(1.0)
    assert build_schedule(replace(recipe, schedule="trapezoid"))(55) == pytest.approx(1.0)
    assert build_schedule(replace(recipe, final=0.1))(100) == pytest.approx(0.1)


def test_runs_do_not_depend_on_their_company(tmp_path) -> None:
    scale = SMOKE_TRAINING
    small = replace(SMALL, steps=2)
    alone = train_all({"a": (small, [1])}, tmp_path, scale)
    two = train_all({"b": (replace(small, lr=1.0), [0]), "a": (small, [0, 1])}, tmp_path, scale)
    assert alone["a"][0].losses == two["a"][1].losses


def test_verdicts_of_paired_runs() -> None:
    assert compare_with([1.0, 2.0, 3.0], [0.9, 1.9, 2.9])["verdict"] == "better"
    assert compare_with([1.0, 2.0, 3.0], [1.2, 2.2, 3.3])["verdict"] == "worse"
    assert compare_with([1.0, 2.0, 3.0], [0.9, 2.3, 2.9])["verdict"] == "not told apart"
    assert compare_with([1.0, 2.0], [1.0, math.inf])["change"] == "diverged"


def test_the_law_of_batches_is_found_again() -> None:
    tokens = [100, 200, 400, 800]
    fewest, critical = fit_batch_law(tokens, [60 * (1 + 300 / b) for b in tokens])
    assert (fewest, critical) == (pytest.approx(60), pytest.approx(300))


def test_recipes_have_names_and_the_ladder_is_cumulative() -> None:
    assert set(named_recipes()) == {"base", "2019", "today"}
    rungs = list(ladder_recipes(SMOKE_TRAINING).values())
    assert all(rung.steps >= 2 for rung in rungs)
    assert named_recipes()["2019"].optimizer == "adamw"
    assert named_recipes()["today"].optimizer == "muon"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "a recipe needs a step"),
        ({"warmup": 1.5}, "a share of the steps; got steps=200, warmup=1.5"),
        ({"short_first": True, "seq_len": 15}, "seq_len 15 is odd"),
    ],
)
def test_bad_recipes(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)
