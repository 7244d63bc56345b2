"""Is this curve normal? A band that a recipe's training loss stays in, and a check against it.

Runs of one recipe differ by their seeds alone, and by that they do differ. A handful of them gives
a mean curve and a spread; from both follows an interval in which one more run's loss lies with
95 % probability at each step. Whoever repeats the recipe holds their curve against it.

README: "Is my curve normal?"
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LossBand:
    """Where the smoothed loss of one more run is expected.

    steps: at which the others tell; window: steps that a value is the mean of (the last ones);
    low, high: ends of the interval; seeds: how many runs it is made of.
    """

    steps: tuple[int, ...]
    window: int
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int

    def as_json(self) -> dict[str, Any]:
        """Plain lists and numbers, which `band_from_json` reads."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class CurveVerdict:
    """What `check_curve` found: "normal", "above" or "below"; the share of compared steps inside
    the band; the first compared step outside (None = none), and the loss at the last compared
    step with the band there.
    """

    verdict: Literal["normal", "above", "below"]
    share_inside: float
    first_outside: int | None
    last_step: int
    last_loss: float
    last_band: tuple[float, float]


def smoothed_loss(losses: Sequence[float], step: int, window: int) -> float:
    """Mean of the `window` losses that end with step `step` (counted from 1), or of all before."""
    if not 1 <= step <= len(losses):
        raise ValueError(f"there is no step {step} among {len(losses)} losses")
    return statistics.fmean(losses[max(0, step - window) : step])


def loss_band(
    curves: Sequence[Sequence[float]],
    *,
    points: int = 20,
    window: int = 10,
    confidence: float = 0.95,
) -> LossBand:
    """The prediction interval of one more run, at `points` steps, from runs of one length.

    With n runs of mean m and standard deviation s at a step, the next run's value differs from m
    by a variance of s^2 (1 + 1/n): its own and the mean's. s is an estimate, hence Student's t:

        m ± t_{n-1} s sqrt(1 + 1/n)

    Raises:
        ValueError: fewer than two curves, or curves of different lengths.
    """
    from scipy.special import stdtrit  # half a second that a training worker never needs

    if len(curves) < 2 or len({len(curve) for curve in curves}) != 1:
        raise ValueError(
            "a band needs at least two curves of one length; got lengths "
            f"{[len(curve) for curve in curves]}"
        )
    n, length = len(curves), len(curves[0])
    factor = float(stdtrit(n - 1, (1 + confidence) / 2)) * math.sqrt(1 + 1 / n)
    steps = sorted({max(1, round(length * (i + 1) / points)) for i in range(points)})
    mean, low, high = [], [], []
    for step in steps:
        values = [smoothed_loss(curve, step, window) for curve in curves]
        middle, half = statistics.fmean(values), factor * statistics.stdev(values)
        mean.append(middle)
        low.append(middle - half)
        high.append(middle + half)
    return LossBand(
        steps=tuple(steps),
        window=window,
        mean=tuple(mean),
        low=tuple(low),
        high=tuple(high),
        seeds=n,
    )


def band_from_json(data: Mapping[str, Any]) -> LossBand:
    """A band as `LossBand.as_json` wrote it."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
    }
    return LossBand(**fields)


def check_curve(losses: Sequence[float], band: LossBand) -> CurveVerdict:
    """Hold a run's losses, step 1 first, against a band, as far as the run goes.

    Normal is a curve with at least four fifths of the compared steps inside, the last among them:
    each step is outside in one run of twenty, and neighbouring steps fall out together.

    Raises:
        ValueError: the run is shorter than the band's first step, or a loss is missing.
    """
    compared = [i for i, step in enumerate(band.steps) if step <= len(losses)]
    if not compared:
        raise ValueError(f"{len(losses)} losses end before the band's first step, {band.steps[0]}")
    values = [smoothed_loss(losses, band.steps[i], band.window) for i in compared]
    inside = [band.low[i] <= v <= band.high[i] for i, v in zip(compared, values, strict=True)]
    outside = [i for i, good in zip(compared, inside, strict=True) if not good]
    last = compared[-1]
    share = sum(inside) / len(inside)
    if share >= 0.8 and inside[-1]:
        verdict = "normal"
    else:
        # Above or below where it is, or on balance was; what is not a number is above.
        excess = values[-1] - band.mean[last]
        if inside[-1]:
            excess = sum(v - band.mean[i] for i, v in zip(compared, values, strict=True))
        verdict = "below" if excess < 0 else "above"
    return CurveVerdict(
        verdict=verdict,
        share_inside=share,
        first_outside=band.steps[outside[0]] if outside else None,
        last_step=band.steps[last],
        last_loss=values[-1],
        last_band=(band.low[last], band.high[last]),
    )


def read_losses(path: str | Path) -> list[float]:
    """The losses of steps 1, 2, … from a file: JSON lines as `MetricsLog` writes them, or a CSV
    table with columns `step` and `loss`.

    Raises:
        ValueError: another kind of file, a line without step and loss, or steps with gaps.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"a curve is read from .jsonl or .csv; got {path.name}")
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[Mapping[str, Any]] = (
            list(csv.DictReader(file))
            if path.suffix == ".csv"
            else [json.loads(line) for line in file if line.strip()]
        )
    try:
        pairs = [(int(row["step"]), float(row["loss"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} has a line without a step and a loss") from error
    if [step for step, _ in pairs] != list(range(1, len(pairs) + 1)):
        raise ValueError(f"{path.name} must hold every step once, from 1")
    return [loss for _, loss in pairs]
