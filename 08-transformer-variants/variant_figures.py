"""The figures of topic 08: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lab import PALETTE, new_figure


def starts_figure(
    sizes: Sequence[int], curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
) -> Figure:
    """Accuracy over the number of labelled texts, a panel a question, every seed a dot."""
    figure, panels = new_figure(len(curves), width=9.5, height=3.9)
    titles = {"first": "Named first: man or woman?", "pronoun": "Whom does the pronoun mean?"}
    styles = ("o-", "s--", "^-.", "D:")
    for axes, (ask, each) in zip(panels, curves.items(), strict=True):
        for (name, scores), color, style in zip(each.items(), PALETTE, styles, strict=False):
            values = 100 * np.asarray(scores)  # (sizes, seeds)
            axes.plot(sizes, values.mean(axis=1), style, color=color, label=name, ms=5)
            for column in values.T:
                axes.plot(sizes, column, style[0], color=color, ms=2.5, alpha=0.6)
        axes.axhline(50, color=PALETTE[6], lw=1, ls=":")
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set(title=titles[ask], xlabel="labelled texts", ylabel="right, %", ylim=(40, 102))
    panels[0].legend(fontsize=8)
    return figure


def objectives_figure(scores: Mapping[str, Mapping[str, Sequence[float]]], *, size: int) -> Figure:
    """Accuracy after each objective, all for equal FLOPs; every seed a dot."""
    figure, axes = new_figure(width=6.8, height=3.4)
    high = 0.8 / len(scores)
    names: list[str] = []
    for number, ((ask, each), color) in enumerate(zip(scores.items(), PALETTE, strict=False)):
        names = list(each)
        places = np.arange(len(each)) + (number - (len(scores) - 1) / 2) * high
        means = [100 * float(np.mean(values)) for values in each.values()]
        axes.barh(places, means, height=high, color=color, alpha=0.6, label=ask)
        for place, values in zip(places, each.values(), strict=True):
            axes.plot(100 * np.asarray(values), [place] * len(values), "o", color=color, ms=4)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.set(
        title=f"Pre-trained for equal FLOPs, fine-tuned on {size:,} texts",
        xlabel="right, %",
        xlim=(40, 101),
    )
    axes.legend(fontsize=8)
    return figure


def rollout_figure(
    images: Tensor, maps: Sequence[Tensor], titles: Sequence[str], *, patch: int
) -> Figure:
    """Images (n, H, W) above, and below where their class came from: (H/P, W/P) shares each."""
    figure, axes = new_figure(len(images), 2, width=1.35 * len(images), height=3.3)
    top = max(float(shares.max()) for shares in maps)
    for column, (image, shares) in enumerate(zip(images, maps, strict=True)):
        above, below = axes[0][column], axes[1][column]
        above.imshow(np.asarray(image), cmap="gray_r", interpolation="nearest")
        above.set_title(titles[column], fontsize=9)
        big = np.kron(np.asarray(shares), np.ones((patch, patch)))
        below.imshow(big, cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
        for each in (above, below):
            each.set_xticks([])
            each.set_yticks([])
            each.grid(visible=False)
    axes[0][0].set_ylabel("image")
    axes[1][0].set_ylabel("rollout")
    return figure


def savings_figure(
    lengths: Sequence[int],
    milliseconds: Mapping[str, Sequence[float]],
    mebibytes: Mapping[str, Sequence[float]],
) -> Figure:
    """Left: time of forward and backward over the length. Right: memory."""
    figure, (left, right) = new_figure(2, width=9.5, height=3.8)
    styles = ("o-", "s--", "^-.", "D:", "v-")
    for axes, values, label in (
        (left, milliseconds, "milliseconds"),
        (right, mebibytes, "MiB"),
    ):
        for (name, row), color, style in zip(values.items(), PALETTE, styles, strict=False):
            axes.loglog(lengths, row, style, color=color, label=name, ms=4, base=2)
        axes.set(xlabel="length T", ylabel=label)
    left.set_title("Time, forward and backward")
    right.set_title("Memory")
    left.legend(fontsize=8)
    return figure


def embedding_figure(points: np.ndarray, names: Sequence[str], groups: Sequence[str]) -> Figure:
    """Vectors of words in two dimensions (n, 2), coloured by what they are."""
    figure, axes = new_figure(width=6.0, height=4.2)
    for group, color in zip(dict.fromkeys(groups), PALETTE, strict=False):
        chosen = [i for i, g in enumerate(groups) if g == group]
        axes.plot(points[chosen, 0], points[chosen, 1], "o", color=color, ms=5, label=group)
    for (x, y), name in zip(points, names, strict=True):
        axes.annotate(name, (x, y), fontsize=6, xytext=(2, 2), textcoords="offset points")
    axes.set(title="Token vectors, two main directions", xlabel="first", ylabel="second")
    axes.legend(fontsize=8)
    return figure
