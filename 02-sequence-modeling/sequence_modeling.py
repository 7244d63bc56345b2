"""Topic 02 as a program: climb from counting to the LSTM, and see what a fixed state cannot hold.

    python 02-sequence-modeling/sequence_modeling.py            a few minutes on a CPU
    python 02-sequence-modeling/sequence_modeling.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import format_table, save_figure, script_parser, seed_everything, write_results
from recurrent import RecurrentConfig, matched_width
from sequence_experiments import (
    CELLS,
    SMALL_LADDER,
    LadderScale,
    climb_the_ladder,
    compress_with_everything,
    squeeze_the_bottleneck,
    time_the_chain,
    watch_gradients,
)
from sequence_figures import bottleneck_figure, gradient_figure, ladder_figure
from tiny_world import TinyWorld

_HERE = Path(__file__).resolve().parent


def count_everything(scale: LadderScale) -> dict[str, Any]:
    """The sizes that follow from the scale alone."""
    world = TinyWorld()
    derived: dict[str, Any] = {
        "english_words": len(world.vocabulary),
        "foreign_words": len(world.foreign_vocabulary),
        "tokens_read": scale.steps * 16 * 64,
    }
    for cell in CELLS:
        width = matched_width(cell, vocab_size=256, embed_dim=32, parameters=scale.parameters)
        config = RecurrentConfig(vocab_size=256, d_model=width, cell=cell, embed_dim=32)
        derived[f"{cell}_width"] = width
        derived[f"{cell}_parameters"] = config.num_parameters
    began, size = time.perf_counter(), 0
    for story in world.stories(1000, seed=5):
        size += len(story.text) + 1
    derived["world_megabytes_a_second"] = size / (time.perf_counter() - began) / 1e6
    return derived


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "Climb from counting to the LSTM, and see what a fixed state cannot hold.",
        default_out=_HERE,
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMALL_LADDER if args.smoke else LadderScale()
    figures = Path(args.out) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    results: dict[str, Any] = {}

    def run(question: str, experiment: Callable[[], dict[str, Any]]) -> None:
        sys.stdout.write(f"\n{question}\n\n")
        new = experiment()
        results.update(new)
        for name, value in new.items():
            if isinstance(value, dict) and "columns" in value:
                shown = format_table(value["columns"], value["rows"], value.get("formats"))
                sys.stdout.write(shown + "\n\n")
            elif isinstance(value, (int, float)):
                sys.stdout.write(f"{name}: {value:,.4g}\n")
        sys.stdout.flush()

    models: list[Any] = []

    def ladder() -> dict[str, Any]:
        new, *rest = climb_the_ladder(scale)
        models.extend(rest)
        return new

    run("What follows from the sizes alone?", lambda: count_everything(scale))
    run("How close to the floor does each rung come?", ladder)
    save_figure(ladder_figure(results), figures / "ladder.png")
    run("How far back does a gradient reach?", lambda: watch_gradients(scale))
    save_figure(gradient_figure(results["gradient_curves"]), figures / "gradient.png")
    run("How much fits through one vector?", lambda: squeeze_the_bottleneck(scale))
    save_figure(bottleneck_figure(results["bottleneck"]), figures / "bottleneck.png")
    run("How small does each model make a text?", lambda: compress_with_everything(scale, *models))
    run("What does the chain cost?", lambda: time_the_chain(scale))
    write_results(
        Path(args.out) / "results.json",
        results,
        command="sequence_modeling.py" + (" --smoke" if args.smoke else ""),
        seeds=list(range(scale.seeds)),
        device="cpu",
        wall_seconds=time.perf_counter() - began,
    )
    sys.stdout.write(f"\nresults.json and figures/ are in {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
