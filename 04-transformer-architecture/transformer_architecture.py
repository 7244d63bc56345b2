"""Topic 04 as a program: translate, move the norms, say positions in six ways, count the cost.

    python 04-transformer-architecture/transformer_architecture.py            minutes on a CPU
    python 04-transformer-architecture/transformer_architecture.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from architecture_experiments import (
    DEFAULT_SCALE_04,
    SMOKE_SCALE_04,
    compare_norms,
    compare_positions,
    count_base_model,
    count_step_flops,
)
from architecture_figures import norms_figure, positions_figure
from lab import format_table, save_figure, script_parser, seed_everything, write_results
from world_experiments import climb_with_attention, translate_world

_HERE = Path(__file__).resolve().parent


def _show(results: dict[str, Any], indent: str = "") -> None:
    """Tables as tables, numbers as lines; curves are for the figures."""
    for name, value in results.items():
        if isinstance(value, dict) and "columns" in value:
            table = format_table(value["columns"], value["rows"], value.get("formats"))
            sys.stdout.write(f"{table}\n\n")
        elif isinstance(value, dict):
            sys.stdout.write(f"{indent}{name}\n")
            _show(value, indent + "  ")
        elif isinstance(value, (int, float)):
            sys.stdout.write(f"{indent}{name}: {value:,.4g}\n")
        elif isinstance(value, str):
            sys.stdout.write(f"{indent}{name}: {value}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "Translate, move the norms, say positions in six ways, count the cost.", default_out=_HERE
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE_SCALE_04 if args.smoke else DEFAULT_SCALE_04
    figures = Path(args.out) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    results: dict[str, Any] = {}

    def run(question: str, experiment: Callable[[], dict[str, Any]]) -> None:
        sys.stdout.write(f"\n{question}\n\n")
        sys.stdout.flush()
        new = experiment()
        results.update(new)
        _show(new)

    run("How many parameters has the base model of 2017?", count_base_model)
    run("Does the formula for FLOPs count what is done?", lambda: count_step_flops(scale))
    run("Can it translate tiny world?", lambda: translate_world(scale))
    run("Norms before or after, with or without warm-up?", lambda: compare_norms(scale))
    save_figure(
        norms_figure(results["norm_curves"], results["start_gradients"]), figures / "norms.png"
    )
    run("Which way of saying positions reaches further?", lambda: compare_positions(scale))
    save_figure(
        positions_figure(
            results["position_curves"],
            train_length=scale.train_length,
            longest=max(scale.test_lengths),
        ),
        figures / "positions.png",
    )
    topic_02 = _HERE.parent / "02-sequence-modeling" / "results.json"
    run(
        "How high does it stand on the ladder?",
        lambda: climb_with_attention(scale, topic_02=topic_02),
    )
    write_results(
        Path(args.out) / "results.json",
        results,
        command="transformer_architecture.py" + (" --smoke" if args.smoke else ""),
        seeds=list(range(scale.seeds)),
        device="cpu",
        wall_seconds=time.perf_counter() - began,
    )
    sys.stdout.write(f"\nresults.json and figures/ are in {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
