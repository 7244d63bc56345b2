"""The studies of topic 07 that look into a run: spikes, noise, memory, precision, rates.

`training_transformers.py` runs them. Each returns plain results for results.json.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt import GPT, GPTConfig
from lab import interval, peak_memory_bytes, progress, time_side_by_side
from lr_schedules import constant
from optimizers import AdamW
from spike_recovery import SpikeRecovery
from train_loop import fit
from training import (
    TrainingConfig,
    TrainingStep,
    gradient_moments,
    lr_range_test,
)
from training_experiments import (
    TrainingScale,
    base_recipe,
    compare_with,
    in_workers,
    open_data,
)
from training_memory import block_activation_numbers, saved_activation_bytes, training_state_bytes
from training_recipes import LessonData, Recipe, build, held_out_score

# --- a spike ------------------------------------------------------------------------------------


def provoke_spike(folder: str | Path, scale: TrainingScale) -> dict[str, Any]:
    """Feed a few batches of random tokens to a run at its peak rate, and see what protects it.

    Each protection is compared with the same run, protected alike, that meets no bad batch.
    """
    recipe = replace(base_recipe(scale), schedule="trapezoid", clip_norm=None)
    clipped = replace(recipe, clip_norm=1.0)
    start = recipe.steps // 2
    bad = range(start, start + 4)
    open_data(folder, scale)
    # Name -> (recipe, batches planted, gone back when detected, the run to compare with)
    kinds: dict[str, tuple[Recipe, range, bool, str]] = {
        "no bad batches": (recipe, range(0), False, ""),
        "no protection": (recipe, bad, False, "no bad batches"),
        "detected and gone back": (recipe, bad, True, "no bad batches"),
        "clipping at 1, no bad batches": (clipped, range(0), False, ""),
        "clipping at 1": (clipped, bad, False, "clipping at 1, no bad batches"),
    }
    jobs = [
        (*kinds[name][:3], seed, str(folder), scale)
        for name in kinds
        for seed in range(scale.seeds)
    ]
    outcomes = iter(list(in_workers(_spiked_run, jobs, scale, desc="spikes")))
    found = {name: [next(outcomes) for _ in range(scale.seeds)] for name in kinds}
    rows = []
    for name, (_, _, _, reference) in kinds.items():
        values = [run["bits"] for run in found[name]]
        row: list[Any] = [name, *interval(values), "", ""]
        if reference:
            entry = compare_with([run["bits"] for run in found[reference]], values)
            row[3:] = [entry["change"], entry["change_half_width"]]
        rows.append(row)
    recoveries = [run["recoveries"] for run in found["detected and gone back"]]
    shown = {
        name: {"losses": runs[0]["losses"], "grad_norms": runs[0]["grad_norms"]}
        for name, runs in found.items()
    }
    return {
        "spike": {
            "columns": ["the run", "bits per byte", "± 95 %", "change", "± 95 % "],
            "rows": rows,
            "formats": ["", ".3f", ".3f", "+.3f", ".3f"],
        },
        "spike_recoveries": sum(len(pairs) for pairs in recoveries),
        "spike_detail": {
            **shown,
            "bad_steps": [bad.start + 1, bad.stop],
            "recoveries": recoveries,
        },
    }


def _spiked_run(job: tuple[Recipe, range, bool, int, str, TrainingScale]) -> dict[str, Any]:
    recipe, bad, recovers, seed, folder, scale = job
    data = open_data(folder, scale)
    training, batches = build(recipe, data, seed=seed)
    recovery = SpikeRecovery(training, window=32, threshold=6.0, patience=2, snapshot_every=10)
    losses: list[float] = []
    norms: list[float] = []

    def step(batch: Sequence[Tensor]) -> Mapping[str, float | Tensor]:
        metrics = training(batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        return metrics

    stream = _with_bad_batches(batches.iterate(), bad, data, seed)
    fit(step, stream, [recovery] if recovers else [], max_steps=recipe.steps)
    return {
        "bits": held_out_score(training, data, seq_len=recipe.seq_len),
        "losses": losses,
        "grad_norms": norms,
        "recoveries": [list(pair) for pair in recovery.recoveries],
    }


def _with_bad_batches(
    batches: Iterator[tuple[Tensor, ...]], bad: range, data: LessonData, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    for number, batch in enumerate(batches):
        if number in bad:
            yield tuple(
                torch.randint(data.train.vocab_size, part.shape, generator=generator)
                for part in batch
            )
        else:
            yield batch


# --- the critical batch -------------------------------------------------------------------------


def measure_noise_scale(folder: str | Path, scale: TrainingScale) -> dict[str, Any]:
    """The gradient's noise scale as a run goes on: signal and noise averaged, then divided."""
    open_data(folder, scale)
    jobs = [(seed, str(folder), scale) for seed in range(scale.seeds)]
    found = list(in_workers(_noise_along_a_run, jobs, scale, desc="noise scale"))
    rows = [[place, *interval([run[place] for run in found])] for place in found[0]]
    return {
        "noise_scale": {
            "columns": ["after step", "noise scale, tokens", "± 95 %"],
            "rows": rows,
            "formats": ["d", ",.0f", ",.0f"],
        }
    }


def _noise_along_a_run(job: tuple[int, str, TrainingScale]) -> dict[int, float]:
    seed, folder, scale = job
    recipe = replace(base_recipe(scale), schedule="constant")
    places = sorted({max(1, round(recipe.steps * share)) for share in (0.02, 0.1, 0.25, 0.5, 1.0)})
    training, batches = build(recipe, open_data(folder, scale), seed=seed)
    found = {}
    for number, batch in zip(range(1, recipe.steps + 1), batches.iterate(), strict=False):
        training(batch)
        if number in places:
            found[number] = _noise_scale(training, batches.iterate(10_000), scale)
    return found


def _noise_scale(
    training: TrainingStep, batches: Iterator[tuple[Tensor, ...]], scale: TrainingScale
) -> float:
    """tr(S) / |G|^2 from `noise_batches` batches, in micro-batches of one row."""
    config = training.config
    training.config = replace(config, micro_batch_size=1)
    try:
        moments = [
            gradient_moments(training, batch)
            for _, batch in zip(range(scale.noise_batches), batches, strict=False)
        ]
    finally:
        training.config = config
    signal = statistics.fmean(one for one, _ in moments)
    noise = statistics.fmean(other for _, other in moments)
    return noise / signal


def race_batch_sizes(folder: str | Path, scale: TrainingScale) -> dict[str, Any]:
    """Steps and tokens that each batch size needs to one held-out loss, at a constant rate.

    The rate follows the square root of the batch, as suits Adam. The law that is fitted,
    S / S_min = 1 + B_crit / B (McCandlish et al. 2018, eq. 2.11), is a straight line of S over 1/B.
    """
    base = base_recipe(scale)
    open_data(folder, scale)
    jobs = []
    for rows_at_once in scale.batch_sizes:
        recipe = replace(
            base,
            batch_size=rows_at_once,
            schedule="constant",
            ema_decay=0.9,
            lr=base.lr * math.sqrt(rows_at_once / base.batch_size) / 2,
            steps=base.steps * 8,
            warmup=20 / (base.steps * 8),
        )
        jobs += [(recipe, seed, str(folder), scale) for seed in range(scale.seeds)]
    needed = list(in_workers(_steps_to, jobs, scale, desc="batch sizes"))
    rows, steps_of = [], {}
    for number, rows_at_once in enumerate(scale.batch_sizes):
        tokens = rows_at_once * base.seq_len
        own = needed[number * scale.seeds : (number + 1) * scale.seeds]
        reached = [steps for steps in own if steps is not None]
        if len(reached) < len(own):
            rows.append([tokens, "not reached", "", ""])
            continue
        mean, half_width = interval(reached)
        steps_of[tokens] = mean
        rows.append([tokens, mean, half_width, mean * tokens / 1e3])
    results: dict[str, Any] = {
        "batch_race": {
            "columns": ["tokens a step", "steps", "± 95 %", "tokens in all, thousands"],
            "rows": rows,
            "formats": [",d", ".0f", ".0f", ",.0f"],
        },
        "batch_race_target": scale.target_bits,
        "batch_race_detail": {"tokens": list(steps_of), "steps": list(steps_of.values())},
    }
    if len(steps_of) >= 2:
        fewest, critical = fit_batch_law(list(steps_of), list(steps_of.values()))
        results["batch_fit"] = {"fewest_steps": fewest, "critical_tokens": critical}
    return results


def fit_batch_law(tokens: Sequence[float], steps: Sequence[float]) -> tuple[float, float]:
    """(S_min, B_crit) of S = S_min (1 + B_crit / B), by least squares on relative errors.

    `fit_batch_law([100, 400], [500, 200])` is (100.0, 400.0).
    """
    b = torch.tensor(tokens, dtype=torch.float64)
    s = torch.tensor(steps, dtype=torch.float64)
    # Divided by S, so that each point counts by its relative error: 1 = S_min / S + c / (B S).
    design = torch.stack([1 / s, 1 / (b * s)], dim=1)  # (n, 2)
    solution = torch.linalg.lstsq(design, torch.ones(len(s), 1, dtype=torch.float64)).solution
    fewest, product = solution.flatten().tolist()
    return fewest, product / fewest


def _steps_to(job: tuple[Recipe, int, str, TrainingScale]) -> int | None:
    """Steps until the averaged weights score `target_bits`; None = not within the recipe."""
    recipe, seed, folder, scale = job
    data = open_data(folder, scale)
    training, batches = build(recipe, data, seed=seed)
    every = max(2, min(20, 160 // recipe.batch_size))
    for number, batch in zip(range(1, recipe.steps + 1), batches.iterate(), strict=False):
        training(batch)
        if number % every:
            continue
        score = held_out_score(training, data, seq_len=recipe.seq_len, max_tokens=4096)
        if score <= scale.target_bits:
            return number
    return None


# --- rates, precision ---------------------------------------------------------------------------


def find_rate(data: LessonData, scale: TrainingScale) -> dict[str, Any]:
    """The range test on a fresh base model."""
    recipe = replace(base_recipe(scale), lr=6e-3, schedule="constant", warmup=0.0)
    training, batches = build(recipe, data, seed=0)
    found = lr_range_test(
        training, batches.iterate(), lowest=1e-3, highest=100.0, num_steps=max(8, scale.steps // 2)
    )
    best = min(range(len(found.losses)), key=found.losses.__getitem__)
    return {
        "rate_range": {
            "steepest": recipe.lr * found.steepest,
            "lowest_loss_at": recipe.lr * found.multipliers[best],
            "base_rate": recipe.lr,
        },
        "rate_range_detail": {
            "rates": [recipe.lr * m for m in found.multipliers],
            "losses": list(found.losses),
        },
    }


def count_lost_numbers(data: LessonData, scale: TrainingScale) -> dict[str, Any]:
    """What half precision loses: gradients in fp16 at several loss scales, updates in bf16 weights.

    One trained base model, one batch. A gradient is lost where it rounds to 0 and was not; an
    update where the bfloat16 weight plus it is the weight again.
    """
    recipe = replace(base_recipe(scale), schedule="constant")
    training, batches = build(recipe, data, seed=0)
    for _, batch in zip(range(recipe.steps), batches.iterate(), strict=False):
        training(batch)
    before = [p.detach().clone() for p in training.parameters]
    training(batches.batch(recipe.steps))
    gradients = torch.cat([p.grad.flatten() for p in training.parameters if p.grad is not None])
    gradients = gradients[gradients != 0]
    rows = []
    for power in (0, 4, 8, 12, 16, 20, 24):
        halves = (gradients * 2.0**power).half()
        lost = (halves == 0).double().mean().item()
        subnormal = ((halves != 0) & (halves.abs() < 2.0**-14)).double().mean().item()
        infinite = halves.isinf().double().mean().item()
        rows.append([f"2^{power}", 100 * lost, 100 * subnormal, 100 * infinite])
    weights = torch.cat([p.flatten() for p in before])
    updates = torch.cat([p.detach().flatten() for p in training.parameters]) - weights
    moved = updates != 0
    stands = {}
    for name, factor in (("peak", 1.0), ("tenth", 0.1), ("hundredth", 0.01)):
        rounded = weights.bfloat16()
        same = (rounded.float() + factor * updates).bfloat16() == rounded
        stands[name] = 100 * same[moved].double().mean().item()
    return {
        "loss_scale": {
            "columns": ["loss scale", "gone to 0, %", "subnormal, %", "infinite, %"],
            "rows": rows,
            "formats": ["", ".2f", ".2f", ".2f"],
        },
        "bf16_weights_stand_still": stands,
        "median_gradient": gradients.abs().median().item(),
    }


# --- memory -------------------------------------------------------------------------------------


def measure_checkpointing(scale: TrainingScale) -> dict[str, Any]:
    """Peak memory of a step, each in a process of its own, and its time, side by side."""
    rows = []
    context = get_context("spawn")
    for layers in progress(scale.memory_layers, desc="checkpointing", unit="depth"):
        peaks = []
        for checkpointing in (False, True):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                peaks.append(
                    pool.submit(_peak_of_a_step, layers, scale.memory_rows, checkpointing).result()
                )
        steps = {str(on): _memory_step(layers, scale.memory_rows, on) for on in (False, True)}
        times = time_side_by_side(steps, rounds=4)
        ratio = times["True"].ratios(times["False"])
        kept = layers * block_activation_numbers(_memory_config(layers)) * 4
        rows.append(
            [
                layers,
                kept * scale.memory_rows * 128 / 2**20,
                peaks[0] / 2**20,
                peaks[1] / 2**20,
                *interval(ratio),
            ]
        )
    return {
        "checkpointing": {
            "columns": [
                "layers",
                "blocks keep, MiB (formula)",
                "step adds, MiB",
                "with checkpointing, MiB",
                "times the time",
                "± 95 %",
            ],
            "rows": rows,
            "formats": ["d", ".0f", ".0f", ".0f", ".2f", ".2f"],
        },
        "checkpointing_saves": 1 - rows[-1][3] / rows[-1][2],
        "checkpointing_deepest": rows[-1][0],
        "checkpointing_time": rows[-1][4],
    }


def _memory_config(layers: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=256, d_model=128, num_heads=4, num_layers=layers, max_seq_len=128, bias=False
    )


def _memory_step(layers: int, rows: int, checkpointing: bool):
    model = GPT(_memory_config(layers), generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(
        tokens_per_step=rows * 128,
        seq_len=128,
        micro_batch_size=rows,
        activation_checkpointing=checkpointing,
    )
    training = TrainingStep(model, AdamW(model.parameters(), lr=1e-4), constant(), config)
    ids = torch.randint(256, (rows, 128), generator=torch.Generator().manual_seed(1))
    return lambda: training((ids, ids))


def _peak_of_a_step(layers: int, rows: int, checkpointing: bool) -> int:
    """Bytes by which a step raises this process's peak memory, after a step on one row that makes
    gradients and optimiser states and loads what is loaded once."""
    torch.set_num_threads(1)
    model = GPT(_memory_config(layers), generator=torch.Generator().manual_seed(0))
    optimizer = AdamW(model.parameters(), lr=1e-4)
    before = 0
    for size in (1, rows):
        before = peak_memory_bytes()
        config = TrainingConfig(
            tokens_per_step=size * 128,
            seq_len=128,
            micro_batch_size=size,
            activation_checkpointing=checkpointing,
        )
        ids = torch.randint(256, (size, 128), generator=torch.Generator().manual_seed(1))
        TrainingStep(model, optimizer, constant(), config)((ids, ids))
    return peak_memory_bytes() - before


def add_up_memory() -> dict[str, Any]:
    """GPT-2 XL and a 7B model: states under ZeRO on 8 devices; and the formula beside a count."""
    rows = []
    for name, parameters in (("GPT-2 XL", 1_557_611_200), ("7B", 7_000_000_000)):
        for stage in (0, 1, 2, 3):
            states = training_state_bytes(parameters, zero_stage=stage, world_size=8)  # type: ignore[arg-type]
            parts = (states.weights, states.gradients, states.optimizer, states.total)
            rows.append([name, f"ZeRO {stage}" if stage else "copies", *(p / 1e9 for p in parts)])
    sizes = []
    for layers in (2, 3):
        config = replace(_memory_config(layers), max_seq_len=64)
        model = GPT(config)
        ids = torch.zeros(3, 64, dtype=torch.long)
        sizes.append(saved_activation_bytes(model, lambda model=model, ids=ids: model(ids)))
    return {
        "zero": {
            "columns": ["model", "8 devices", "weights, GB", "gradients", "optimiser", "total"],
            "rows": rows,
            "formats": ["", "", ".1f", ".1f", ".1f", ".1f"],
        },
        "block_numbers": {
            "counted": (sizes[1] - sizes[0]) // (4 * 3 * 64),
            "formula": block_activation_numbers(_memory_config(2)),
            "per_width": block_activation_numbers(_memory_config(2)) / 128,
        },
    }
