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
    byte_texts,
    held_out_bits,
    next_token_windows,
    train_briefly,
    unigram_nats,
)
from debugging import (
    activation_statistics,
    causal_leak,
    dead_units,
    gradient_flow,
    initial_loss_check,
    overfit_one_batch,
)
from experiment_log import ExperimentLog
from gpt import gpt_preset
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
from lab import progress, script_parser, seed_everything
from planted_bugs import planted_bugs

HERE = Path(__file__).resolve().parent


def run_clinic(scale: Scale) -> dict[str, Any]:
    """Plant each bug, run every check, and train for a short while with the bug left in."""
    texts = byte_texts(max_bytes=scale.train_bytes, held_out_bytes=scale.held_out_bytes)
    found, cost = [], []
    for bug in progress(planted_bugs(), desc="clinic", unit="bug"):
        ids, targets = next(
            next_token_windows(texts.train, batch_size=8, seq_len=scale.seq_len, seed=1)
        )

        def patient(bug=bug):
            model = new_gpt(scale, vocab_size=texts.vocab_size, seed=0)
            bug.plant(model)
            return model

        reports = {
            "initial loss": initial_loss_check(patient(), ids, targets, loss_of=bug.loss_of),
            "one batch": overfit_one_batch(
                patient(), ids[:2], targets[:2], loss_of=bug.loss_of, steps=scale.overfit_steps
            ),
            "causal leak": causal_leak(patient(), ids[:2]),
            "gradient flow": gradient_flow(patient(), ids, targets, loss_of=bug.loss_of),
            "activations": activation_statistics(patient(), ids),
            "dead units": dead_units(patient(), ids),
        }
        marks = ["—" if report.ok else "finds it" for report in reports.values()]
        found.append([bug.name, bug.looks_like, *marks])
        model = patient()
        windows = next_token_windows(
            texts.train, batch_size=scale.batch_size, seq_len=scale.seq_len, seed=0
        )
        losses = train_briefly(model, windows, steps=scale.clinic_steps, loss_of=bug.loss_of)
        bits = held_out_bits(model, texts, seq_len=scale.seq_len)
        cost.append([bug.name, losses[0], sum(losses[-10:]) / len(losses[-10:]), bits])
    columns = ["bug", "what you would see", *reports]
    caught = [row[0] for row in found[1:] if "finds it" in row]
    return {
        "clinic": {"columns": columns, "rows": found},
        "clinic_loss": {
            "columns": ["bug", "first loss", "last training loss", "held-out bits per byte"],
            "rows": cost,
            "formats": ["", ".2f", ".2f", ".2f"],
        },
        "clinic_caught": len(caught),
        "clinic_bugs": len(found) - 1,
        "clinic_unigram_nats": unigram_nats(texts.train, texts.vocab_size),
    }


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
        "Build a GPT part by part, measure each part, break it and find the bug.", default_out=HERE
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
