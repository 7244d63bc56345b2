"""Topic 04 as a program: translate, move the norms, say positions in six ways, count the cost.

    python 04-transformer-architecture/transformer_architecture.py            minutes on a CPU
    python 04-transformer-architecture/transformer_architecture.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from architecture_experiments import (
    DEFAULT_SCALE_04,
    SMOKE_SCALE_04,
    compare_norms,
    compare_positions,
    count_base_model,
    count_step_flops,
)
from architecture_figures import norms_figure, positions_figure
from experiment_log import ExperimentLog
from lab import script_parser, seed_everything
from world_experiments import climb_with_attention, translate_world

_HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "Translate, move the norms, say positions in six ways, count the cost.",
        default_out=_HERE,
        cpu_only=True,
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE_SCALE_04 if args.smoke else DEFAULT_SCALE_04
    log = ExperimentLog("transformer_architecture.py", args)

    log.run("How many parameters has the base model of 2017?", count_base_model)
    log.run("Does the formula for FLOPs count what is done?", lambda: count_step_flops(scale))
    log.run("Can it translate tiny world?", lambda: translate_world(scale))
    log.run("Norms before or after, with or without warm-up?", lambda: compare_norms(scale))
    log.draw(norms_figure(log.results["norm_curves"], log.results["start_gradients"]), "norms")
    log.run("Which way of saying positions reaches further?", lambda: compare_positions(scale))
    log.draw(
        positions_figure(
            log.results["position_curves"],
            train_length=scale.train_length,
            longest=max(scale.test_lengths),
        ),
        "positions",
    )
    topic_02 = _HERE.parent / "02-sequence-modeling" / "results.json"
    log.run(
        "How high does it stand on the ladder?",
        lambda: climb_with_attention(scale, topic_02=topic_02),
    )
    log.finish(seeds=range(scale.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
