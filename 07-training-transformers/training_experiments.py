"""The experiments of topic 07 that train: one-knob ablations, the speed ladder, the loss bands.

Runs are independent, so they go to worker processes of one thread each: for models this small two
such workers do twice what two threads do for one run. What is timed runs alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lab import interval, progress
from loss_band import loss_band
from training_recipes import LessonData, Recipe, RunRecord, prepare_lesson_data, train_recipe


@dataclass(frozen=True, kw_only=True)
class TrainingScale:
    """How large the experiments are. `workers` processes train at a time."""

    stories: int = 4000
    held_out: int = 100
    vocab_size: int = 1024
    steps: int = 200
    seeds: int = 3
    base_seeds: int = 5
    workers: int = 2
    ladder_share: float = 1.0
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    target_bits: float = 0.95
    noise_batches: int = 24
    memory_layers: tuple[int, ...] = (4, 16)
    memory_rows: int = 8
    settings_per_knob: int | None = None


SMOKE_TRAINING = TrainingScale(
    stories=200,
    held_out=4,
    vocab_size=300,
    steps=4,
    seeds=2,
    base_seeds=2,
    workers=1,
    ladder_share=0.01,
    batch_sizes=(2, 4),
    target_bits=7.0,
    noise_batches=2,
    memory_layers=(1,),
    memory_rows=2,
    settings_per_knob=1,
)

Settings = Mapping[str, Mapping[str, Any]]

# Knob -> setting -> what differs from the base. Rates of the other optimisers, and the base's own,
# were chosen by a few runs each with a seed that is not used here.
KNOBS: dict[str, Settings] = {
    "learning rate": {"a quarter": {"lr": 1.5e-3}, "double": {"lr": 1.2e-2}},
    "warm-up": {"none": {"warmup": 0.0}, "40 % of the steps": {"warmup": 0.4}},
    "schedule": {
        "constant": {"schedule": "constant"},
        "constant, weights averaged": {"schedule": "constant", "ema_decay": 0.95},
        "linear to 0": {"schedule": "linear"},
        "trapezoid (WSD)": {"schedule": "trapezoid"},
        "inverse square root": {"schedule": "inverse_sqrt"},
    },
    "weight decay": {
        "none": {"weight_decay": 0.0},
        "1.0": {"weight_decay": 1.0},
        "0.1 inside the gradient (L2)": {"optimizer": "adam_l2"},
    },
    "beta2": {"0.99": {"beta2": 0.99}, "0.999": {"beta2": 0.999}},
    "clipping": {"none": {"clip_norm": None}, "0.1": {"clip_norm": 0.1}},
    "batch": {
        "4 rows": {"batch_size": 4},
        "4 rows, 4 times accumulated": {"micro_batch_size": 4},
        "4 rows, 4 times the steps": {"batch_size": 4, "steps": 4},
    },
    "initialisation": {
        "1 / fan-in": {"initialization": "fan_in"},
        "embeddings of std 1": {"initialization": "unit_embeddings"},
        "branches end in zeros": {"initialization": "zero_outputs"},
    },
    "precision": {
        "bf16 autocast": {"precision": "bf16"},
        "bf16 weights too": {"precision": "bf16_weights"},
    },
    "optimiser": {
        "Muon + AdamW": {"optimizer": "muon", "muon_lr": 0.05},
        "Adafactor": {"optimizer": "adafactor", "lr": 0.1},
        "LAMB": {"optimizer": "lamb", "lr": 0.1},
        "Lion": {"optimizer": "lion", "lr": 3e-3, "beta2": 0.99, "weight_decay": 0.3},
        "SGD with momentum": {"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.0},
    },
    "noise on purpose": {
        "label smoothing 0.1": {"label_smoothing": 0.1},
        "dropout 0.1": {"dropout": 0.1},
        "stochastic depth 0.1": {"stochastic_depth": 0.1},
    },
    "curriculum": {"short windows first": {"short_first": True}},
}

# The ladder: each rung changes what it names and keeps all below it. (steps at the full scale)
_RECIPE_2019 = Recipe(steps=800, batch_size=8, lr=3e-3, warmup=0.05, final=0.1)
_RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "trapezoid to 0, twice the rate",
        {"schedule": "trapezoid", "final": 0.0, "lr": 6e-3, "steps": 600},
    ),
    ("Muon for the matrices", {"optimizer": "muon", "muon_lr": 0.03, "steps": 345}),
    ("untied, embeddings' rate doubled", {"tie_embeddings": False, "lr": 1.2e-2, "steps": 300}),
    ("twice the batch, Muon's rate up", {"batch_size": 16, "muon_lr": 0.05, "steps": 172}),
    ("bf16 products", {"precision": "bf16"}),
)


def base_recipe(scale: TrainingScale) -> Recipe:
    """What every ablation changes one thing of."""
    return Recipe(steps=scale.steps)


def changed(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The base with changes, `steps` being a multiple of the base's."""
    own = dict(changes)
    if "steps" in own:
        own["steps"] = max(1, round(base.steps * own["steps"]))
    return replace(base, **own)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this context PyTorch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_data(folder: str | Path, scale: TrainingScale) -> LessonData:
    """The scale's data under `folder`, made where missing."""
    return prepare_lesson_data(
        folder, stories=scale.stories, held_out=scale.held_out, vocab_size=scale.vocab_size
    )


def in_workers(
    function: Callable[[Any], Any], jobs: Sequence[Any], scale: TrainingScale, *, desc: str
) -> Iterator[Any]:
    """`function` of each job, in order, in `scale.workers` processes of one thread each; with one
    worker, here. Nothing that it returns depends on how many there are.
    """
    if scale.workers == 1:
        with one_thread():
            yield from progress(map(function, jobs), desc=desc, total=len(jobs), unit="run")
        return
    with ProcessPoolExecutor(
        scale.workers,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        yield from progress(pool.map(function, jobs), desc=desc, total=len(jobs), unit="run")


def _run(job: tuple[Recipe, int, str, TrainingScale]) -> RunRecord:
    recipe, seed, folder, scale = job
    return train_recipe(recipe, open_data(folder, scale), seed=seed)


def train_all(
    recipes: Mapping[str, tuple[Recipe, Sequence[int]]], folder: str | Path, scale: TrainingScale
) -> dict[str, list[RunRecord]]:
    """Each recipe with each of its seeds, in order."""
    open_data(folder, scale)  # once, before several processes would
    names = [name for name, (_, seeds) in recipes.items() for _ in seeds]
    jobs = [
        (recipe, seed, str(folder), scale) for recipe, seeds in recipes.values() for seed in seeds
    ]
    records: dict[str, list[RunRecord]] = {name: [] for name in recipes}
    for name, record in zip(names, in_workers(_run, jobs, scale, desc="runs"), strict=True):
        records[name].append(record)
    return records


def ablate(folder: str | Path, scale: TrainingScale) -> dict[str, Any]:
    """One knob at a time: held-out bits per byte of the change minus the base's, seed by seed.

    A seed draws the same weights and the same batches on both sides, so their difference says more
    than two separate means. A change is called better or worse if the interval of its differences
    leaves out 0.
    """
    base = base_recipe(scale)
    recipes: dict[str, tuple[Recipe, Sequence[int]]] = {"base": (base, range(scale.base_seeds))}
    knobs = {k: dict(list(s.items())[: scale.settings_per_knob]) for k, s in KNOBS.items()}
    for knob, settings in knobs.items():
        for setting, changes in settings.items():
            recipes[f"{knob}: {setting}"] = (changed(base, changes), range(scale.seeds))
    records = train_all(recipes, folder, scale)
    base_bits = [record.bits_per_byte for record in records["base"]]
    mean, half_width = interval(base_bits)
    rows, detail = [["the base", "", mean, half_width, "", "", ""]], {}
    for knob, settings in knobs.items():
        for setting in settings:
            bits = [record.bits_per_byte for record in records[f"{knob}: {setting}"]]
            entry = compare_with(base_bits[: scale.seeds], bits)
            seeds = [value if math.isfinite(value) else "diverged" for value in bits]
            names = {"knob": knob, "setting": setting}
            detail[_key(knob, setting)] = {**entry, **names, "bits_per_byte": seeds}
            shown = [entry["change"], entry["change_half_width"]]
            rows.append([knob, setting, *interval_or_inf(bits), *shown, entry["verdict"]])
    verdicts = [entry["verdict"] for entry in detail.values()]
    return {
        "ablations": {
            "columns": ["knob", "setting", "bits per byte", "± 95 %", "change", "± 95 % ", "so"],
            "rows": rows,
            "formats": ["", "", ".3f", ".3f", "+.3f", ".3f", ""],
        },
        "ablations_detail": detail,
        "ablation_counts": {
            "all": len(verdicts),
            **{word: verdicts.count(word) for word in ("better", "worse", "not told apart")},
        },
        "base": {
            "bits_per_byte": mean,
            "half_width": half_width,
            "seed_deviation": statistics.stdev(base_bits),
            "seeds": scale.base_seeds,
            "floor": open_data(folder, scale).floor_bits,
            "largest_norm": max(max(record.grad_norms) for record in records["base"]),
            "curves_detail": [list(record.losses) for record in records["base"]],
        },
        "bands_detail": {
            "base": loss_band([record.losses for record in records["base"]]).as_json()
        },
    }


def compare_with(base: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The mean change from paired runs, its 95 % half width, and what may be said of it."""
    if not all(map(math.isfinite, other)):
        return {"change": "diverged", "change_half_width": "", "verdict": "worse"}
    change, half_width = interval([b - a for a, b in zip(base, other, strict=True)])
    verdict = "not told apart"
    if abs(change) > half_width:
        verdict = "better" if change < 0 else "worse"
    return {"change": change, "change_half_width": half_width, "verdict": verdict}


def interval_or_inf(values: Sequence[float]) -> tuple[Any, Any]:
    """`lab.interval`, or a word where a run diverged."""
    return interval(values) if all(map(math.isfinite, values)) else ("diverged", "")


def _key(knob: str, setting: str) -> str:
    """A name for pages: lower case words joined by underscores."""
    words = "".join(c if c.isalnum() else " " for c in f"{knob} {setting}".lower()).split()
    return "_".join(words)


def climb_ladder(folder: str | Path, scale: TrainingScale) -> dict[str, Any]:
    """From a recipe of 2019 to one of today, change by change, each with the steps that it needs
    to the loss at which the first ends. One thread, one run at a time; only steps are timed.

    The rungs take turns within a seed, so that whatever else the machine does hits all alike.
    """
    data = open_data(folder, scale)
    recipes = ladder_recipes(scale)
    found: dict[str, list[RunRecord]] = {name: [] for name in recipes}
    with one_thread():
        for seed in progress(range(scale.seeds), desc="ladder", unit="seed"):
            for name, recipe in recipes.items():
                found[name].append(train_recipe(recipe, data, seed=seed))
    first = next(iter(found.values()))
    rows, detail = [], []
    for name, records in found.items():
        pairs = list(zip(records, first, strict=True))
        reached = [new.bits_per_byte <= old.bits_per_byte for new, old in pairs]
        ratios = [old.seconds / new.seconds for new, old in pairs]
        recipe = recipes[name]
        rows.append(
            [
                name,
                recipe.steps,
                recipe.steps * recipe.tokens_per_step / 1e3,
                *interval([record.bits_per_byte for record in records]),
                f"{sum(reached)} of {len(reached)}",
                statistics.fmean([record.seconds for record in records]),
                *interval(ratios),
            ]
        )
        seconds = [record.seconds for record in records]
        detail.append({"name": name, "seconds": seconds, "reached": reached})
    curves = {"2019": first, "today": list(found.values())[-1]}
    return {
        "ladder": {
            "columns": [
                "rung",
                "steps",
                "thousand tokens",
                "bits per byte",
                "± 95 %",
                "2019's loss reached",
                "seconds",
                "times faster",
                "± 95 % ",
            ],
            "rows": rows,
            "formats": ["", "d", ",.0f", ".3f", ".3f", "", ".1f", ".1f", ".1f"],
        },
        "ladder_detail": detail,
        "ladder_speedup": rows[-1][-2],
        "ladder_bands_detail": {
            name: loss_band([record.losses for record in records]).as_json()
            for name, records in curves.items()
        },
    }


def ladder_recipes(scale: TrainingScale) -> dict[str, Recipe]:
    """The rungs by name, each with all changes up to it, their steps cut to the scale's share."""
    recipe, rungs = _RECIPE_2019, {"2019": _RECIPE_2019}
    for name, changes in _RUNGS:
        recipe = replace(recipe, **changes)
        rungs[name] = recipe
    return {
        name: replace(rung, steps=max(2, round(rung.steps * scale.ladder_share)))
        for name, rung in rungs.items()
    }


def named_recipes() -> dict[str, Recipe]:
    """The recipes that have a published loss band, at their full length."""
    ladder = list(ladder_recipes(TrainingScale()).values())
    return {"base": base_recipe(TrainingScale()), "2019": ladder[0], "today": ladder[-1]}
