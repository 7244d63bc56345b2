"""Topic 07 as a program: what each choice of a training run is worth, and how to judge a run.

    python 07-training-transformers/training_transformers.py            about eleven minutes, 2 CPUs
    python 07-training-transformers/training_transformers.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/. It also trains a single
recipe as one would train for days (shards, evaluation, metrics, checkpoints; started again with
the same folder it resumes), and holds a curve against a recipe's published band:

    python 07-training-transformers/training_transformers.py --train base --seed 11 --out runs/a
    python 07-training-transformers/training_transformers.py --check runs/a/metrics.jsonl
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from experiment_log import ExperimentLog
from lab import read_results, script_parser, seed_everything
from loss_band import band_from_json, check_curve, read_losses
from lr_schedules import constant, cosine, inverse_sqrt, linear, trapezoid
from train_loop import fit
from training_callbacks import Checkpointer, ConsoleLogger, Evaluator, MetricsLog
from training_experiments import (
    SMOKE_TRAINING,
    TrainingScale,
    ablate,
    base_recipe,
    climb_ladder,
    named_recipes,
)
from training_figures import (
    ablations_figure,
    band_figure,
    batch_figure,
    rate_figure,
    schedules_figure,
    speed_ladder_figure,
    spike_figure,
)
from training_recipes import build, prepare_lesson_data
from training_studies import (
    add_up_memory,
    count_lost_numbers,
    find_rate,
    measure_checkpointing,
    measure_noise_scale,
    provoke_spike,
    race_batch_sizes,
)

_HERE = Path(__file__).resolve().parent
_WORDS = {
    "normal": "normal",
    "above": "above the band: it learns more slowly than this recipe does",
    "below": "below the band: it sees what this recipe does not (its targets? other data?)",
}


def check_file(path: Path, name: str) -> int:
    """Print whether the curve in a file is a normal one for the recipe; 0 if it is, else 1."""
    bands = read_results(_HERE / "results.json")["bands"]
    verdict = check_curve(read_losses(path), band_from_json(bands[name]))
    low, high = verdict.last_band
    first = verdict.first_outside
    sys.stdout.write(
        f"{path.name} against the band of {bands[name]['seeds']} runs of recipe {name!r}:\n"
        f"  inside at {100 * verdict.share_inside:.0f} % of the compared steps"
        + (f", first outside at step {first}\n" if first else "\n")
        + f"  at step {verdict.last_step}: {verdict.last_loss:.3f} nats a token; "
        f"expected {low:.3f} to {high:.3f}\n"
        f"  the curve is {_WORDS[verdict.verdict]}\n"
    )
    return 0 if verdict.verdict == "normal" else 1


def train_one(name: str, args: argparse.Namespace) -> int:
    """Train a named recipe under `args.out`; a folder with checkpoints is gone on with."""
    recipe = named_recipes()[name]
    sizes = SMOKE_TRAINING if args.smoke else TrainingScale()
    data = prepare_lesson_data(
        args.out / "data",
        stories=sizes.stories,
        held_out=sizes.held_out,
        vocab_size=sizes.vocab_size,
    )
    training, batches = build(recipe, data, seed=args.seed)
    model = training.model
    sys.stdout.write(
        f"recipe {name}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{recipe.steps} steps of {recipe.tokens_per_step:,} tokens, "
        f"{batches.epoch(recipe.steps):.2f} epochs; the text's own entropy is "
        f"{data.floor_bits:.3f} bits a byte\n"
    )
    checkpointer = Checkpointer(
        args.out / "checkpoints",
        training,
        every_steps=args.checkpoint_every,
        config={**asdict(recipe), "seed": args.seed},
    )
    start, damaged = checkpointer.resume()
    for sentence in [*damaged, *([f"going on from step {start}"] if start else [])]:
        sys.stdout.write(sentence + "\n")
    steps = min(recipe.steps, 60) if args.smoke else recipe.steps
    callbacks = [
        Evaluator(training, data.held_out, every_steps=50, batch_size=64, seq_len=recipe.seq_len),
        ConsoleLogger(
            tokens_per_step=recipe.tokens_per_step,
            every_steps=20,
            bytes_per_token=data.train.bytes_per_token,
        ),
        MetricsLog(args.out / "metrics.jsonl", tokens_per_step=recipe.tokens_per_step),
        checkpointer,
    ]
    fit(training, batches.iterate(start), callbacks, max_steps=max(steps, start), start_step=start)
    return 0


def run_experiments(args: argparse.Namespace) -> int:
    """All experiments: print their tables, write results.json and figures/."""
    scale = SMOKE_TRAINING if args.smoke else TrainingScale()
    log = ExperimentLog("training_transformers.py", args)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_lesson_data(
            folder, stories=scale.stories, held_out=scale.held_out, vocab_size=scale.vocab_size
        )
        recipe = base_recipe(scale)
        training, _ = build(recipe, data, seed=0)

        def derive() -> dict[str, object]:
            return {
                "derived": {
                    "parameters": sum(p.numel() for p in training.model.parameters()),
                    "tokens_per_step": recipe.tokens_per_step,
                    "steps": recipe.steps,
                    "training_tokens": len(data.train),
                    "bytes_per_token": data.train.bytes_per_token,
                    "vocab_size": data.train.vocab_size,
                    "floor_bits": data.floor_bits,
                    "gflop_per_step": training.model.config.flops_per_token(recipe.seq_len)  # type: ignore[union-attr, operator]
                    * recipe.tokens_per_step
                    / 1e9,
                }
            }

        log.run("What is trained?", derive)
        log.run("Where does memory go?", add_up_memory)
        log.run("What does recomputing cost and save?", lambda: measure_checkpointing(scale))
        torch.set_num_threads(1)  # from here on: models this small gain nothing by more
        log.run("Which rate? The range test.", lambda: find_rate(data, scale))
        rates = log.results["rate_range_detail"]
        log.draw(rate_figure(rates["rates"], rates["losses"], used=recipe.lr), "rates")
        log.run("From 2019 to today: how fast to one loss?", lambda: climb_ladder(folder, scale))
        log.draw(speed_ladder_figure(log.results["ladder_detail"]), "ladder")
        log.run("What do half-precision numbers lose?", lambda: count_lost_numbers(data, scale))
        log.run("A spike: who protects the run?", lambda: provoke_spike(folder, scale))
        log.draw(spike_figure(log.results["spike_detail"]), "spike")
        log.run("How noisy is the gradient?", lambda: measure_noise_scale(folder, scale))
        log.run(
            "How many steps does each batch size need?", lambda: race_batch_sizes(folder, scale)
        )
        race = log.results["batch_race_detail"]
        if "batch_fit" in log.results:
            fewest, critical = log.results["batch_fit"].values()
            log.draw(
                batch_figure(race["tokens"], race["steps"], fewest=fewest, critical=critical),
                "batch",
            )
        log.run("One knob at a time", lambda: ablate(folder, scale))
    log.results["bands"] = {
        **log.results.pop("bands_detail"),
        **log.results.pop("ladder_bands_detail"),
    }
    log.draw(ablations_figure(log.results["ablations_detail"]), "ablations")
    base = log.results["base"]
    log.draw(
        band_figure(band_from_json(log.results["bands"]["base"]), base["curves_detail"][:1]), "band"
    )
    steps = recipe.steps
    warmup = recipe.warmup_steps
    shapes = {
        "constant": constant(warmup_steps=warmup),
        "cosine": cosine(steps, warmup_steps=warmup),
        "linear": linear(steps, warmup_steps=warmup),
        "trapezoid": trapezoid(steps, warmup_steps=warmup, decay_steps=(steps - warmup) // 2),
        "inverse square root": inverse_sqrt(warmup_steps=warmup),
    }
    log.draw(schedules_figure(shapes, steps=steps), "schedules")
    log.finish(seeds=range(max(scale.seeds, scale.base_seeds)))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the experiments; or train one recipe, or check a curve."""
    parser = script_parser(
        "Ablations, the speed ladder, spikes, noise and memory; or one recipe; or a check.",
        default_out=_HERE,
        cpu_only=True,
    )
    names = tuple(named_recipes())
    parser.add_argument("--train", choices=names, help="train one recipe under --out")
    parser.add_argument(
        "--checkpoint-every", type=int, default=50, help="steps between checkpoints of --train"
    )
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="is this loss curve (.jsonl, .csv) normal?"
    )
    parser.add_argument(
        "--recipe", choices=names, default="base", help="whose band --check uses (default: base)"
    )
    args = parser.parse_args(argv)
    if args.check is not None:
        try:
            return check_file(args.check, args.recipe)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    if args.train and args.out == _HERE:
        args.out = _HERE / "runs" / args.train
    seed_everything(args.seed)
    return train_one(args.train, args) if args.train else run_experiments(args)


if __name__ == "__main__":
    sys.exit(main())
