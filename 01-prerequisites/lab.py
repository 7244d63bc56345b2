"""The laboratory bench: what every script, notebook and test of the course works with.

Devices and seeds, progress bars, figures, the options of scripts, confidence intervals, timing
and memory; and, from `lab_results`, files that are never half written, results that say where
they came from and READMEs that quote them.
"""

from __future__ import annotations

import argparse
import gc
import io
import math
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import nn
from tqdm import tqdm

from lab_results import (
    atomic_write,
    format_table,
    read_results,
    read_run,
    renew_markers,
    renew_readme,
    write_results,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "Timing",
    "atomic_write",
    "count_parameters",
    "format_table",
    "interval",
    "new_figure",
    "peak_memory_bytes",
    "pick_device",
    "progress",
    "read_results",
    "read_run",
    "renew_markers",
    "renew_readme",
    "save_figure",
    "script_parser",
    "seed_everything",
    "time_side_by_side",
    "write_results",
]

# Okabe and Ito's eight colours, told apart with every common form of colour blindness. Yellow
# comes last: it is the one that a white page swallows.
PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermillion
    "#009E73",  # green
    "#CC79A7",  # purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#000000",  # black
    "#F0E442",  # yellow
)


# ---------------------------------------------------------------------------------------------
# Devices, seeds, progress


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device to compute on: `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: the name is none of auto, cpu, cuda, cuda:N, mps; or this machine lacks it.
    """
    wanted = str(name)
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if wanted == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if present[kind]))
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", wanted):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps; got {wanted!r}")
    device = torch.device(wanted)
    if not present[device.type]:
        here = ", ".join(kind for kind, there in present.items() if there)
        raise ValueError(f"device {wanted!r} is absent: this machine has {here}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {wanted!r} is absent: there are {torch.cuda.device_count()} CUDA devices"
        )
    return device


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators. For a script's `main` alone:
    library code takes a `torch.Generator`.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that we call use the old generator)
    torch.manual_seed(seed)


class _WholeLines:
    """A stand-in for stderr that turns a bar's redrawing into lines of a log."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    total: float | None = None,
    unit: str = "it",
) -> tqdm:
    """A tqdm bar on stderr. Where stderr is no terminal: nothing for 5 s, then a line every 15 s.

    Without an iterable it is driven by `bar.update(n)` and closed by `with` or `bar.close()`.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc=desc, total=total, unit=unit, dynamic_ncols=True)
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        unit=unit,
        ncols=88,
        ascii=" #",
        delay=5,
        mininterval=15,
        file=_WholeLines(),  # type: ignore[arg-type]
    )


# ---------------------------------------------------------------------------------------------
# Figures


def _figure_style() -> Any:
    """The course's settings for matplotlib, as a context that leaves the reader's own alone."""
    # Imported where it is used, here and below: half a second that a training worker never needs.
    import matplotlib
    from matplotlib.rcsetup import cycler

    style: dict[Any, Any] = {
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.dpi": 110,
        # Without a fixed salt matplotlib names an SVG's parts at random, and equal pictures differ.
        "svg.hashsalt": "course",
    }
    return matplotlib.rc_context(style)


def new_figure(
    ncols: int = 1, nrows: int = 1, *, width: float | None = None, height: float | None = None
) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes: one Axes, or an array of them as
    `plt.subplots` gives. Width and height are the whole figure's, in inches.

    The figure belongs to nobody but the caller (no pyplot state), so nothing needs closing. In a
    notebook, run `%matplotlib inline` once and end the cell with the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _figure_style():
        figure = Figure(
            figsize=(width or 1.2 + 4.4 * ncols, height or 0.4 + 3.2 * nrows), layout="constrained"
        )
        FigureCanvasAgg(figure)
        return figure, figure.subplots(nrows, ncols)


def save_figure(fig: Figure, path: str | os.PathLike[str]) -> Path:
    """Save as the suffix says (.png, .svg, .pdf), atomically, making the folder. The file holds
    neither dates nor versions, so an unchanged picture is an unchanged file.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    nothing = {
        ".png": {"Software": None},
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    if suffix not in nothing:
        raise ValueError(f"a figure is saved as .png, .svg or .pdf; got {target.name!r}")
    buffer = io.BytesIO()
    with _figure_style():
        fig.savefig(buffer, format=suffix[1:], metadata=nothing[suffix])
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, buffer.getvalue())
    return target


# ---------------------------------------------------------------------------------------------
# Scripts


class _ScriptParser(argparse.ArgumentParser):
    """Sends a smoke run's files aside, so that it never replaces what a real run measured."""

    default_out: Path
    smoke_out: Path

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        options, rest = super().parse_known_args(args, namespace)
        if options.out is None:
            options.out = self.smoke_out if options.smoke else self.default_out
        return options, rest


def _device_argument(name: str) -> torch.device:
    try:
        return pick_device(name)
    except ValueError as error:
        # argparse shows this kind of error's own words, and hides a ValueError's.
        raise argparse.ArgumentTypeError(str(error)) from error


def _cpu_argument(name: str) -> torch.device:
    if name not in ("auto", "cpu"):
        raise argparse.ArgumentTypeError(f"these experiments run on the CPU alone; got {name!r}")
    return torch.device("cpu")


def script_parser(
    description: str,
    *,
    default_out: str | os.PathLike[str],
    smoke_out: str | os.PathLike[str] | None = None,
    epilog: str | None = None,
    cpu_only: bool = False,
) -> argparse.ArgumentParser:
    """The options that every script has: `--device` (a torch.device when parsed), `--seed`,
    `--out` (a Path) and `--smoke`. Add your own to what it returns.

    A smoke run without `--out` writes to `smoke_out`, by default `default_out/runs/smoke`.
    With `cpu_only`, for experiments that stay on the CPU, `--device` refuses every other.
    """
    parser = _ScriptParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.default_out = Path(default_out)
    parser.smoke_out = Path(smoke_out) if smoke_out else parser.default_out / "runs" / "smoke"
    parser.add_argument(
        "--device",
        type=_cpu_argument if cpu_only else _device_argument,
        default="auto",
        metavar="auto|cpu" if cpu_only else "auto|cpu|cuda|mps",
        help="where to compute: these experiments run on the CPU"
        if cpu_only
        else "where to compute (default: auto, the fastest present)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder for what is written (default: its own)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="the whole way at tiny sizes, under a minute on a CPU"
    )
    return parser


# ---------------------------------------------------------------------------------------------
# Measuring


def interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width of Student's t interval, for a handful of seeds.

    `interval([1.0, 2.0, 3.0])` is (2.0, 2.484): t = 4.303 with two degrees of freedom, times
    the standard error 1 / sqrt(3).
    """
    from scipy.special import stdtrit

    sample = [float(value) for value in values]
    if len(sample) < 2:
        raise ValueError(f"an interval needs at least two values; got {len(sample)}")
    if not all(math.isfinite(value) for value in sample):
        raise ValueError(f"an interval needs finite values; got {sample}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}")
    error = statistics.stdev(sample) / len(sample) ** 0.5
    return statistics.fmean(sample), float(stdtrit(len(sample) - 1, (1 + confidence) / 2)) * error


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that one contestant of `time_side_by_side` took, round by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def min(self) -> float:
        return min(self.seconds)

    @property
    def max(self) -> float:
        return max(self.seconds)

    def ratios(self, other: Timing) -> tuple[float, ...]:
        """Own seconds over the other's, round by round: noise that hits both cancels."""
        return tuple(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def speedup_over(self, other: Timing) -> float:
        """How many times faster than the other: the median over rounds."""
        return statistics.median(other.ratios(self))


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def time_side_by_side(
    contestants: Mapping[str, Callable[[], Any]], *, rounds: int = 7, warmup: int = 1
) -> dict[str, Timing]:
    """Time several functions in turn, so that whatever else the machine does hits all alike.

    Every round runs each of them once and begins with another one; the ratios between them are
    the result, absolute seconds are this machine's.
    """
    if not contestants or rounds < 1 or warmup < 0:
        raise ValueError(f"need a function and a round; got {len(contestants)}, {rounds=}")
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        gc.collect()
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _wait_for_device()
            start = time.perf_counter()
            contestants[name]()
            _wait_for_device()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(seconds=tuple(taken)) for name, taken in seconds.items()}


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """The most memory that this process has held: of the given CUDA device, else of the host."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # Not getrusage: its maximum outlives exec, so a child would report its parent's peak.
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kibibytes elsewhere


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Numbers in a module's parameters; tied ones count once."""
    return sum(
        parameter.numel()
        for parameter in module.parameters()
        if parameter.requires_grad or not trainable_only
    )
