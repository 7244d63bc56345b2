"""Topic 02 as a program: climb from counting to the LSTM, and see what a fixed state cannot hold.

    python 02-sequence-modeling/sequence_modeling.py            a few minutes on a CPU
    python 02-sequence-modeling/sequence_modeling.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from experiment_log import ExperimentLog
from lab import script_parser, seed_everything
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
        cpu_only=True,
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMALL_LADDER if args.smoke else LadderScale()
    log = ExperimentLog("sequence_modeling.py", args)

    models: list[Any] = []

    def ladder() -> dict[str, Any]:
        new, *rest = climb_the_ladder(scale)
        models.extend(rest)
        return new

    log.run("What follows from the sizes alone?", lambda: count_everything(scale))
    log.run("How close to the floor does each rung come?", ladder)
    log.draw(ladder_figure(log.results), "ladder")
    log.run("How far back does a gradient reach?", lambda: watch_gradients(scale))
    log.draw(gradient_figure(log.results["gradient_curves"]), "gradient")
    log.run("How much fits through one vector?", lambda: squeeze_the_bottleneck(scale))
    log.draw(bottleneck_figure(log.results["bottleneck"]), "bottleneck")
    log.run(
        "How small does each model make a text?", lambda: compress_with_everything(scale, *models)
    )
    log.run("What does the chain cost?", lambda: time_the_chain(scale))
    log.finish(seeds=range(scale.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
