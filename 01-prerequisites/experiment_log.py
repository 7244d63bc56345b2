"""What every topic's script does around its experiments: ask, run, print, keep, write down."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lab import save_figure
from lab_results import format_table, write_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ExperimentLog:
    """Collects what a script's experiments find, and writes `results.json` and `figures/`.

    Args:
        script: the script's file name, which the results name as their command.
        args: its options as `lab.script_parser` parsed them: `out`, `seed` and `smoke` are read.

    `results` holds all that was found so far; the clock for the results' wall time starts here.
    """

    def __init__(self, script: str, args: argparse.Namespace) -> None:
        self.results: dict[str, Any] = {}
        self._out = Path(args.out)
        self._command = script + (" --smoke" if args.smoke else "")
        if args.seed:
            self._command += f" --seed {args.seed}"
        self._began = time.perf_counter()

    def run(self, question: str, experiment: Callable[[], Mapping[str, Any]]) -> None:
        """Print the question, run the experiment, print and keep its findings by name.

        A dict with "columns" and "rows" is printed as a table, a number or a text as a line, and
        other dicts part by part, with the dotted names by which pages quote them. Lists, and
        what is named `…_detail`, are for figures and pages: kept without being printed.
        """
        sys.stdout.write(f"\n{question}\n\n")
        sys.stdout.flush()
        found = experiment()
        self.results.update(found)
        _show(found)
        sys.stdout.flush()

    def draw(self, figure: Figure, name: str) -> None:
        """Save a figure as `figures/<name>.png`."""
        save_figure(figure, self._out / "figures" / f"{name}.png")

    def finish(self, *, seeds: Sequence[int], device: str | torch.device = "cpu") -> None:
        """Write results.json with its provenance, and say where it is.

        Args:
            seeds: those that the experiments used.
            device: where they ran.

        Raises:
            TypeError, ValueError: as in `lab_results.write_results`.
        """
        write_results(
            self._out / "results.json",
            self.results,
            command=self._command,
            seeds=seeds,
            device=device,
            wall_seconds=time.perf_counter() - self._began,
        )
        sys.stdout.write(f"\nresults.json and figures/ are in {self._out}\n")


def _show(found: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in found.items():
        if name.endswith("_detail"):
            continue
        if isinstance(value, dict) and "columns" in value:
            table = format_table(value["columns"], value["rows"], value.get("formats"))
            sys.stdout.write(f"{table}\n\n")
        elif isinstance(value, dict):
            _show(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            sys.stdout.write(f"{prefix}{name}: {value:,.4g}\n")
        elif isinstance(value, str):
            sys.stdout.write(f"{prefix}{name}: {value}\n")
