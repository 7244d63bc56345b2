"""The figures of topic 07: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lab import PALETTE, new_figure
from loss_band import LossBand, smoothed_loss
from lr_schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def schedules_figure(schedules: Mapping[str, Schedule], *, steps: int) -> Figure:
    """The multiplier of the learning rate over the steps, one line a schedule."""
    figure, axes = new_figure(width=6.5, height=3.4)
    styles = ("-", "--", "-.", ":", "-", "--")
    for (name, schedule), color, style in zip(schedules.items(), PALETTE, styles, strict=False):
        axes.plot([schedule(step) for step in range(steps + 1)], style, color=color, label=name)
    axes.set(title="Schedules", xlabel="step", ylabel="share of the peak rate")
    axes.legend(frameon=False, fontsize=8)
    return figure


def ablations_figure(detail: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Change of the held-out bits per byte for each setting, with its 95 % interval."""
    entries = [entry for entry in detail.values() if not isinstance(entry["change"], str)]
    figure, axes = new_figure(width=8.0, height=0.9 + 0.23 * len(entries))
    colors = {"better": PALETTE[2], "worse": PALETTE[1], "not told apart": PALETTE[6]}
    for place, entry in enumerate(entries):
        axes.errorbar(
            entry["change"],
            place,
            xerr=entry["change_half_width"],
            fmt="o",
            ms=4,
            capsize=2,
            color=colors[entry["verdict"]],
        )
    axes.axvline(0.0, color=PALETTE[6], lw=1)
    axes.set_yticks(
        range(len(entries)), [f"{e['knob']}: {e['setting']}" for e in entries], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks([-0.1, -0.05, 0, 0.05, 0.1, 0.3, 1.0], ["-0.1", "", "0", "", "0.1", "0.3", "1"])
    axes.set(
        title="One knob at a time: green better, red worse, black not told apart",
        xlabel="change in held-out bits per byte (left is better)",
    )
    return figure


def speed_ladder_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds of each rung, every seed a dot; hollow where the target was missed."""
    figure, axes = new_figure(width=8.0, height=3.6)
    for place, row in enumerate(rows):
        axes.bar(place, np.mean(row["seconds"]), color=PALETTE[5])
        for seconds, reached in zip(row["seconds"], row["reached"], strict=True):
            axes.plot(
                place,
                seconds,
                "o",
                color=PALETTE[0],
                ms=4,
                fillstyle="full" if reached else "none",
            )
    axes.set_xticks(
        range(len(rows)), [row["name"].replace(", ", ",\n") for row in rows], fontsize=8
    )
    axes.set(title="The speed ladder", ylabel="seconds of training steps")
    return figure


def band_figure(
    band: LossBand, curves: Sequence[Sequence[float]], *, floor: float | None = None
) -> Figure:
    """A recipe's loss band, and curves held against it."""
    figure, axes = new_figure(width=6.5, height=3.6)
    axes.fill_between(band.steps, band.low, band.high, color=PALETTE[5], alpha=0.5, label="95 %")
    axes.plot(band.steps, band.mean, color=PALETTE[0], label=f"mean of {band.seeds} seeds")
    for curve in curves:
        steps = [step for step in band.steps if step <= len(curve)]
        values = [smoothed_loss(curve, step, band.window) for step in steps]
        axes.plot(steps, values, "--", color=PALETTE[1], lw=1)
    if floor is not None:
        axes.axhline(floor, color=PALETTE[6], ls=":", lw=1, label="entropy of the text")
    axes.set(title="Is this curve normal?", xlabel="step", ylabel="training loss, nats a token")
    axes.legend(frameon=False, fontsize=8)
    return figure


def spike_figure(detail: Mapping[str, Any]) -> Figure:
    """Loss and gradient norm around the planted batches, one line a protection."""
    figure, (left, right) = new_figure(2, width=9.5, height=3.6)
    first, last = detail["bad_steps"]
    names = ("no protection", "clipping at 1", "detected and gone back", "no bad batches")
    for name, color, style in zip(names, PALETTE, ("-", "--", "-.", ":"), strict=False):
        for axes, key in ((left, "losses"), (right, "grad_norms")):
            values = detail[name][key]
            axes.plot(range(1, len(values) + 1), values, style, color=color, lw=1.2, label=name)
    for axes in (left, right):
        axes.axvspan(first, last, color=PALETTE[7], alpha=0.4)
        axes.set(xlabel="step", xlim=(max(1, first - 20), min(len(values), last + 45)))
        axes.set_yscale("log")
    left.set(title="Random batches (yellow) in a run", ylabel="training loss, nats a token")
    right.set(title="What announces it", ylabel="gradient norm before clipping")
    left.legend(frameon=False, fontsize=8)
    return figure


def rate_figure(rates: Sequence[float], losses: Sequence[float], *, used: float) -> Figure:
    """The loss while the rate rises, and the rate that the runs use."""
    figure, axes = new_figure(width=5.5, height=3.4)
    axes.plot(rates, losses, color=PALETTE[0])
    axes.axvline(used, color=PALETTE[1], ls="--", label="the base's peak rate")
    axes.set_xscale("log")
    axes.set(title="Learning-rate range test", xlabel="learning rate", ylabel="smoothed loss")
    axes.legend(frameon=False, fontsize=8)
    return figure


def batch_figure(
    tokens: Sequence[float], steps: Sequence[float], *, fewest: float, critical: float
) -> Figure:
    """Steps to one loss over the batch, with the fitted law and its two asymptotes."""
    figure, axes = new_figure(width=5.5, height=3.6)
    axes.loglog(tokens, steps, "o", color=PALETTE[0], label="measured")
    grid = np.geomspace(min(tokens) / 1.5, max(tokens) * 1.5, 50)
    axes.loglog(grid, fewest * (1 + critical / grid), color=PALETTE[1], label="S (1 + B / b)")
    axes.axhline(fewest, color=PALETTE[6], ls=":", lw=1)
    axes.axvline(critical, color=PALETTE[6], ls="--", lw=1, label="critical batch")
    axes.set(title="Steps to one loss", xlabel="tokens a step", ylabel="steps")
    axes.legend(frameon=False, fontsize=8)
    return figure
