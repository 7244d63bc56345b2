"""Topic 05 as a program: build a GPT part by part, measure each part, break it and find the bug.

    python 05-building-from-scratch/building_from_scratch.py            under ten minutes on a CPU
    python 05-building-from-scratch/building_from_scratch.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from brief_training import (
    Texts,
    byte_texts,
    held_out_bits,
    next_token_windows,
    train_briefly,
    unigram_nats,
)
from debugging import (
    Report,
    activation_statistics,
    causal_leak,
    dead_units,
    gradient_flow,
    initial_loss_check,
    overfit_one_batch,
)
from experiment_log import ExperimentLog
from gpt import GPT, gpt_preset
from gpt_experiments import (
    DEFAULT_SCALE,
    SMOKE_SCALE,
    Scale,
    compare_characters_and_subwords,
    compare_initial_losses,
    compare_residual_scaling,
    compare_steps,
    measure_cache,
    measure_sampling,
    new_gpt,
    profile_step,
    watch_induction,
)
from gpt_figures import cache_figure, induction_figure, residual_figure, steps_figure
from induction import head_maps
from lab import interval, progress, script_parser, seed_everything
from planted_bugs import PlantedBug, planted_bugs

HERE = Path(__file__).resolve().parent


def run_clinic(scale: Scale) -> dict[str, Any]:
    """Plant each bug, run every check, and train for a short while with the bug left in.

    Every seed makes its own patient. A check *finds* a bug that it reports with every seed; where
    it does so with some of them only, the table says with how many.
    """
    texts = byte_texts(max_bytes=scale.train_bytes, held_out_bytes=scale.held_out_bytes)
    found, cost = [], []
    names: list[str] = []
    for bug in progress(planted_bugs(), desc="clinic", unit="bug"):
        reported, trained = [], []
        for seed in range(scale.seeds):
            reports = _examine(bug, texts, scale, seed)
            names = list(reports)
            reported.append([not report.ok for report in reports.values()])
            trained.append(_train_patient(bug, texts, scale, seed))
        finds = [sum(check) for check in zip(*reported, strict=True)]
        marks = [_mark(times, scale.seeds) for times in finds]
        found.append([bug.name, bug.looks_like, *marks])
        first, last, bits = zip(*trained, strict=True)
        cost.append([bug.name, interval(first)[0], *interval(last), *interval(bits)])
    caught = [row[0] for row in found[1:] if "finds it" in row]
    return {
        "clinic": {"columns": ["bug", "what you would see", *names], "rows": found},
        "clinic_loss": {
            "columns": [
                "bug",
                "first loss",
                "last training loss",
                "± 95 %",
                "held-out bits per byte",
                "± 95 % ",
            ],
            "rows": cost,
            "formats": ["", ".2f", ".2f", ".2f", ".2f", ".2f"],
        },
        "clinic_caught": len(caught),
        "clinic_bugs": len(found) - 1,
        "clinic_unigram_nats": unigram_nats(texts.train, texts.vocab_size),
    }


def _patient(bug: PlantedBug, texts: Texts, scale: Scale, seed: int) -> GPT:
    model = new_gpt(scale, vocab_size=texts.vocab_size, seed=seed, num_layers=scale.clinic_layers)
    bug.plant(model)
    return model


def _examine(bug: PlantedBug, texts: Texts, scale: Scale, seed: int) -> dict[str, Report]:
    """All six checks of a fresh patient, by name."""
    ids, targets = next(
        next_token_windows(texts.train, batch_size=8, seq_len=scale.seq_len, seed=seed + 1)
    )
    generator = torch.Generator().manual_seed(seed + 2)
    unknowable = torch.randint(texts.vocab_size, targets.shape, generator=generator)

    def patient() -> GPT:
        return _patient(bug, texts, scale, seed)

    few = ids[:2], targets[:2]
    return {
        "initial loss": initial_loss_check(patient(), ids, unknowable, loss_of=bug.loss_of),
        "one batch": overfit_one_batch(
            patient(), *few, loss_of=bug.loss_of, steps=scale.overfit_steps
        ),
        "causal leak": causal_leak(patient(), ids[:2]),
        "gradient flow": gradient_flow(patient(), ids, targets, loss_of=bug.loss_of),
        "activations": activation_statistics(patient(), ids),
        "dead units": dead_units(patient(), ids),
    }


def _train_patient(
    bug: PlantedBug, texts: Texts, scale: Scale, seed: int
) -> tuple[float, float, float]:
    """First training loss, mean of the last ten, and bits per byte of the held-out text."""
    model = _patient(bug, texts, scale, seed)
    windows = next_token_windows(
        texts.train, batch_size=scale.batch_size, seq_len=scale.seq_len, seed=seed
    )
    losses = train_briefly(model, windows, steps=scale.clinic_steps, loss_of=bug.loss_of)
    bits = held_out_bits(model, texts, seq_len=scale.seq_len)
    return losses[0], sum(losses[-10:]) / len(losses[-10:]), bits


def _mark(times: int, seeds: int) -> str:
    if times in (0, seeds):
        return "finds it" if times else "—"
    return f"{times} of {seeds}"


def count_tied_numbers() -> dict[str, Any]:
    """What tying saves in GPT-2 small."""
    tied, untied = gpt_preset("gpt2"), gpt_preset("gpt2", tie_embeddings=False)
    return {
        "tying_saved": untied.num_parameters - tied.num_parameters,
        "untied_parameters": untied.num_parameters,
    }


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "Build a GPT part by part, measure each part, break it and find the bug.",
        default_out=HERE,
        cpu_only=True,
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE_SCALE if args.smoke else DEFAULT_SCALE
    log = ExperimentLog("building_from_scratch.py", args)

    log.run("What does tying save in GPT-2 small?", count_tied_numbers)
    log.run("Where does the loss of a fresh model start?", lambda: compare_initial_losses(scale))
    log.run(
        "How does the residual stream grow with depth?", lambda: compare_residual_scaling(scale)
    )
    log.draw(residual_figure(log.results["residual_init"]["rows"]), "residual")
    log.run("What does each part of a GPT buy?", lambda: compare_steps(scale))
    log.draw(steps_figure(log.results["steps_detail"]), "steps")
    trained: list[Any] = []

    def compare() -> dict[str, Any]:
        new, *rest = compare_characters_and_subwords(scale)
        trained.extend(rest)
        return new

    log.run("Characters or subwords?", compare)
    log.run("What does sampling trade?", lambda: measure_sampling(trained[0], trained[1], scale))
    log.run("What does the KV cache save?", lambda: measure_cache(scale))
    log.draw(cache_figure(log.results["cache"]["rows"]), "cache")

    def induct() -> dict[str, Any]:
        new, model = watch_induction(scale)
        half = new["induction"]["half"]
        ids = torch.randint(
            model.config.vocab_size, (1, half), generator=torch.Generator().manual_seed(9)
        ).repeat(1, 2)
        maps = torch.stack(head_maps(model, ids))[:, 0]  # (L, H, T, T)
        log.draw(induction_figure(new["induction"], maps), "induction")
        return new

    log.run("Can a model learn to look back? One layer against two.", induct)
    log.run("Where does the time of a step go?", lambda: profile_step(scale))
    log.run(
        "Which check finds which bug, and what does it cost to miss it?", lambda: run_clinic(scale)
    )
    log.finish(seeds=range(scale.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
