"""The figures of topic 03: plain numbers and tensors in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lab import PALETTE, new_figure
from masks import allowed_pairs


def masks_figure(gallery: Mapping[str, Tensor]) -> Figure:
    """Each mask drawn, with the number of pairs that it allows."""
    columns = -(-len(gallery) // 2)
    figure, grid = new_figure(columns, 2, width=2.1 * columns, height=4.9)
    for axes, (name, mask) in zip(grid.flat, gallery.items(), strict=False):
        axes.imshow(mask.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{name}\n{allowed_pairs(mask):,} pairs", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
    for axes in grid.flat[len(gallery) :]:
        axes.set_visible(False)
    figure.supxlabel("key")
    figure.supylabel("query")
    return figure


def scale_figure(detail: Mapping[str, Any]) -> Figure:
    """Places read and gradient over the head width, with and without the factor."""
    figure, (left, right) = new_figure(2, width=9.0, height=3.6)
    widths = np.array(detail["widths"], dtype=float)
    for axes, key in ((left, "places"), (right, "gradient")):
        scaled = [point[key] for point in detail["scaled"]]
        plain = [point[key] for point in detail["unscaled"]]
        axes.plot(widths, scaled, "o-", color=PALETTE[0], label="with 1/√K")
        axes.plot(widths, plain, "s--", color=PALETTE[1], label="without")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    theory = detail["scaled_places_by_theory"]
    left.axhline(theory, color=PALETTE[6], lw=0.8, ls=":", label="S e^(-1/2)")
    left.set(
        title=f"How many of {detail['num_keys']} keys are read",
        xlabel="head width K",
        ylabel="places (exp of the entropy)",
    )
    right.set(
        title="What comes back through the softmax",
        xlabel="head width K",
        ylabel="median norm of the Jacobian",
    )
    left.legend(fontsize=8)
    return figure


def heads_figure(detail: Mapping[str, Mapping[str, Any]], offsets: int) -> Figure:
    """Accuracy over the number of heads, every seed a dot."""
    figure, axes = new_figure(width=5.6, height=3.6)
    counts = sorted(int(count) for count in detail)
    axes.plot(counts, [detail[str(n)]["accuracy"] for n in counts], "-", color=PALETTE[0])
    for n in counts:
        seeds = detail[str(n)]["all"]
        axes.plot([n] * len(seeds), seeds, "o", color=PALETTE[0], ms=4)
    axes.axvline(offsets, color=PALETTE[6], lw=0.8, ls=":", label="as many heads as lookups")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set(
        title="The same width, cut into more heads",
        xlabel="heads H",
        ylabel="tokens right, %",
        ylim=(0, 104),
    )
    axes.legend(fontsize=8, loc="lower right")
    return figure


def costs_figure(time: Mapping[str, Any], memory: Mapping[str, Any]) -> Figure:
    """Time and memory of the back ends over the length."""
    figure, (left, right) = new_figure(2, width=9.0, height=3.6)
    for axes, table, what in (
        (left, time, "milliseconds, forward and backward"),
        (right, memory, "MiB at the peak"),
    ):
        names = [column.partition(",")[0] for column in table["columns"][1:4]]
        numbers = np.array([row[:4] for row in table["rows"]], dtype=float)
        for i, (name, style) in enumerate(zip(names, ("s--", "o-", "^-."), strict=True)):
            axes.loglog(numbers[:, 0], numbers[:, i + 1], style, color=PALETTE[i], label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="length T", ylabel=what)
    left.set_title("Time")
    right.set_title("Memory, measured")
    left.legend(fontsize=8)
    return figure


def alignment_figure(
    weights: Tensor, source: Sequence[str], target: Sequence[str], true: set[tuple[int, int]]
) -> Figure:
    """One sentence's weights (T, S) with its words; the true pairs are framed."""
    figure, axes = new_figure(width=1.6 + 0.42 * len(source), height=1.4 + 0.34 * len(target))
    axes.imshow(
        weights[: len(target), : len(source)].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto"
    )
    axes.set_xticks(range(len(source)), source, rotation=50, ha="right", fontsize=8)
    axes.set_yticks(range(len(target)), target, fontsize=8)
    for s, t in true:
        frame = [(s - 0.5, t - 0.5), (s + 0.5, t - 0.5), (s + 0.5, t + 0.5), (s - 0.5, t + 0.5)]
        frame.append(frame[0])
        axes.plot(*zip(*frame, strict=True), color=PALETTE[1], lw=1.2)
    axes.grid(visible=False)
    axes.set(title="Attention, and the true word pairs (framed)", xlabel="source")
    axes.set_ylabel("what is written")
    return figure


def length_figure(detail: Mapping[str, Any]) -> Figure:
    """Share of words translated rightly over the source's length, for each attention."""
    figure, axes = new_figure(width=6.2, height=3.8)
    styles = ("s--", "o-", "^-", "v-", "d-")
    for i, (name, curve) in enumerate(detail["by_length"].items()):
        middles, means, errors = np.array(curve, dtype=float).T
        axes.errorbar(
            middles, means, yerr=errors, fmt=styles[i], color=PALETTE[i], label=name, capsize=2
        )
    axes.set(
        title="Translation against length",
        xlabel="words in the source",
        ylabel="words right, %",
        ylim=(0, 104),
    )
    axes.legend(fontsize=8)
    return figure
