"""The figures of topic 04: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lab import PALETTE, new_figure


def positions_figure(
    curves: Mapping[str, Sequence[float]], *, train_length: int, longest: int
) -> Figure:
    """Bits per byte over the position in a long window, one line a scheme."""
    figure, axes = new_figure(width=7.5, height=4.2)
    styles = ("-", "--", "-.", ":", "-", "--")
    for (scheme, values), color, style in zip(curves.items(), PALETTE, styles, strict=False):
        width = longest / len(values)
        middles = (np.arange(len(values)) + 0.5) * width
        axes.plot(middles, values, style, color=color, label=scheme)
    axes.axvline(train_length, color=PALETTE[6], lw=1, ls=":")
    axes.set_xscale("log", base=2)
    axes.set(
        title=f"Trained on {train_length} positions",
        xlabel=f"position in a window of {longest}",
        ylabel="held-out bits per byte",
    )
    axes.legend(frameon=False, fontsize=8, ncol=2)
    return figure


def norms_figure(
    curves: Mapping[str, Sequence[float]], gradients: Mapping[str, Sequence[float]]
) -> Figure:
    """Left: the first gradient of each layer. Right: training loss of the four recipes."""
    figure, (left, right) = new_figure(2, width=9.5, height=4.0)
    for name, color, marker in (("pre", PALETTE[0], "o-"), ("post", PALETTE[1], "s--")):
        layers = np.arange(1, len(gradients[name]) + 1)
        left.plot(layers, gradients[name], marker, color=color, label=f"{name}-norm", ms=4)
    left.set(
        title="A fresh model",
        xlabel="decoder layer",
        ylabel="gradient's norm, second feed-forward matrix",
        ylim=(0, None),
    )
    left.legend(frameon=False)
    names = {
        "pre_warm": ("pre-norm, warm-up", PALETTE[0], "-"),
        "pre_cold": ("pre-norm, none", PALETTE[5], "--"),
        "post_warm": ("post-norm, warm-up", PALETTE[1], "-"),
        "post_cold": ("post-norm, none", PALETTE[4], "--"),
    }
    for key, (label, color, style) in names.items():
        values = np.asarray(curves[key])
        kernel = min(9, len(values))
        smooth = np.convolve(values, np.ones(kernel) / kernel, mode="valid")
        right.plot(np.arange(len(smooth)) + kernel, smooth, style, color=color, label=label)
    right.set(title="Training", xlabel="step", ylabel="nats a word")
    right.legend(frameon=False, fontsize=8)
    return figure


def heat_figure(
    matrix: Tensor | np.ndarray, *, title: str, xlabel: str, ylabel: str, labels: Any = None
) -> Figure:
    """A matrix as a picture; `labels` = (names of columns, names of rows)."""
    figure, axes = new_figure(width=5.0, height=4.2)
    image = axes.imshow(np.asarray(matrix), cmap="viridis", aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.05)
    if labels is not None:
        axes.set_xticks(range(len(labels[0])), labels[0], rotation=60, fontsize=8)
        axes.set_yticks(range(len(labels[1])), labels[1], fontsize=8)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(visible=False)
    return figure
