"""The figures of topic 02: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lab import PALETTE, new_figure


def ladder_figure(results: Mapping[str, Any]) -> Figure:
    """Held-out bits per byte while training, every seed a line, above the known floor."""
    figure, axes = new_figure(width=6.0, height=4.0)
    for colour, (cell, runs) in zip(PALETTE, results["curves"].items(), strict=False):
        for i, run in enumerate(runs):
            axes.plot(
                [step for step, _, _ in run],
                [bits for _, _, bits in run],
                color=colour,
                lw=1,
                label=cell.upper() if i == 0 else None,
            )
    axes.axhline(results["best_ngram"], color=PALETTE[5], ls="--", label="best n-gram")
    axes.axhline(results["held_floor"], color=PALETTE[6], ls=":", label="the floor")
    axes.set(title="The ladder", xlabel="step", ylabel="held-out bits per byte")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure


def gradient_figure(curves: Mapping[str, Sequence[float]]) -> Figure:
    """The norm of the state's Jacobian over distance, logarithmic."""
    figure, axes = new_figure(width=6.0, height=4.0)
    for colour, (name, norms) in zip(PALETTE, curves.items(), strict=False):
        axes.semilogy(range(len(norms)), norms, color=colour, label=name)
    axes.set(
        title="What is left of a gradient",
        xlabel="distance (steps back)",
        ylabel="norm of the Jacobian",
    )
    axes.legend(frameon=False, fontsize=8)
    return figure


def bottleneck_figure(table: Mapping[str, Any]) -> Figure:
    """Share of symbols reversed correctly over the length, one line a width."""
    figure, axes = new_figure(width=5.5, height=3.8)
    lengths = [row[0] for row in table["rows"]]
    for i, name in enumerate(table["columns"][1:], start=1):
        axes.plot(
            lengths, [row[i] for row in table["rows"]], "o-", color=PALETTE[i - 1], label=name
        )
    axes.set(
        title="Reversing through one vector",
        xlabel="length of the source (symbols)",
        ylabel="symbols right",
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False)
    return figure
