"""The figures of topic 01: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradient_descent import Surface, quadratic_bowl, rosenbrock, saddle
from lab import PALETTE, new_figure


def differences_figure(points: Sequence[Sequence[float]]) -> Figure:
    """The error of finite differences over the step h: curvature on one side, rounding on the
    other.
    """
    figure, axes = new_figure(width=5.8, height=3.8)
    steps, errors = np.array(points).T
    axes.loglog(steps, errors, "o-", color=PALETTE[0], ms=4, label="measured")
    bend = errors[0] * (steps / steps[0]) ** 2
    axes.loglog(steps, bend, "--", color=PALETTE[1], label="∝ h²: the curve bends")
    axes.loglog(steps, 1e-16 / steps, ":", color=PALETTE[2], label="10⁻¹⁶ / h: rounding")
    axes.set(
        title="How wrong finite differences are",
        xlabel="step h",
        ylabel="median largest error of a gradient",
        ylim=(1e-13, 1),
    )
    axes.legend(frameon=False)
    return figure


def paths_figure(paths: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Each optimiser's walk on each surface.

    paths: {"ravine": {optimiser: path (steps, 2)}, "rosenbrock": …, "saddle": …}.
    """
    surfaces = {"ravine": quadratic_bowl(100.0), "rosenbrock": rosenbrock(), "saddle": saddle()}
    figure, row = new_figure(len(paths), width=4.0 * len(paths), height=3.8)
    for axes, (which, walks) in zip(np.atleast_1d(row), paths.items(), strict=True):
        surface = surfaces[which]
        contour_lines(axes, surface)
        for color, (name, path) in zip(PALETTE, walks.items(), strict=False):
            points = np.array(path)
            axes.plot(points[:, 0], points[:, 1], "-", color=color, lw=1.2, label=name)
        axes.plot(*surface.minimum, "*", color="black", ms=9)
        left, right, bottom, top = surface.extent
        axes.set(title=surface.name, xlabel="x", ylabel="y", xlim=(left, right), ylim=(bottom, top))
        axes.legend(frameon=False, fontsize=7)
    return figure


def contour_lines(axes: Any, surface: Surface) -> None:
    """Draw a surface's lines of equal height, closer together where it is low."""
    left, right, bottom, top = surface.extent
    x, y = np.meshgrid(np.linspace(left, right, 150), np.linspace(bottom, top, 150))
    height = surface.value(np.stack([x, y], axis=-1))  # (150, 150)
    height = np.log(height - height.min() + 1e-2)
    axes.contour(x, y, height, levels=14, colors="#BBBBBB", linewidths=0.6)


def digits_figure(curves: Sequence[Sequence[float]], steps: int) -> Figure:
    """Training loss of every seed, over steps."""
    figure, axes = new_figure(width=5.8, height=3.6)
    for index, curve in enumerate(curves):
        label = "each seed" if index == 0 else None
        axes.semilogy(
            np.linspace(0, steps, len(curve)),
            curve,
            color=PALETTE[0],
            lw=0.7,
            alpha=0.6,
            label=label,
        )
    axes.axhline(np.log(10), color=PALETTE[6], ls=":", label="ln 10: guessing")
    axes.set(title="Learning the digits", xlabel="step", ylabel="training loss, nats an image")
    axes.legend(frameon=False)
    return figure


def signals_figure(signals: Mapping[str, Sequence[float]]) -> Figure:
    """Root mean square of each layer's output in fresh networks."""
    figure, axes = new_figure(width=5.8, height=3.6)
    for color, (name, sizes) in zip(PALETTE, signals.items(), strict=False):
        if min(sizes) > 0:
            axes.semilogy(range(1, len(sizes) + 1), sizes, "o-", color=color, ms=4, label=name)
    axes.set(title="A signal through fresh layers", xlabel="layer", ylabel="root mean square")
    axes.legend(frameon=False)
    return figure


def products_figure(rows: Sequence[Sequence[Any]]) -> Figure:
    """GFLOP/s of a matrix product over its size."""
    figure, axes = new_figure(width=5.8, height=3.6)
    sizes = [row[0] for row in rows]
    looped = [(row[0], float(row[1])) for row in rows if row[1] != "–"]
    axes.loglog(*zip(*looped, strict=True), "^:", color=PALETTE[2], label="loops in Python")
    axes.loglog(sizes, [row[2] for row in rows], "o-", color=PALETTE[0], label="NumPy")
    axes.loglog(sizes, [row[3] for row in rows], "s--", color=PALETTE[1], label="PyTorch")
    axes.set(title="Multiplying two n × n matrices", xlabel="n", ylabel="GFLOP/s")
    axes.legend(frameon=False)
    return figure


def spectrum_figure(
    singular_values: Sequence[float], images: NDArray[Any], ranks: Sequence[int]
) -> Figure:
    """Singular values, and one image from few directions and from all.

    images: (R, 8, 8), the same image at each of the R ranks, 0 for paper and 1 for ink.
    """
    figure, row = new_figure(1 + len(images), width=2.2 + 1.7 * len(images) + 2.4, height=2.8)
    values = np.array(singular_values)
    row[0].semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-3), color=PALETTE[0])
    row[0].set(title="singular values", xlabel="direction")
    for axes, image, rank in zip(row[1:], images, ranks, strict=True):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axes.set(title=f"rank {rank}")
        axes.set_axis_off()
    return figure


def formats_figure(errors: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> Figure:
    """Relative rounding error over magnitude: flat where a format is normal, then rising.

    errors: format -> (magnitudes, median relative errors).
    """
    figure, axes = new_figure(width=6.4, height=3.8)
    for color, (name, (sizes, relative)) in zip(PALETTE, errors.items(), strict=False):
        axes.loglog(sizes, relative, "-", color=color, label=name)
    axes.set(
        title="What rounding costs at each size",
        xlabel="size of the number",
        ylabel="median relative error",
        ylim=(1e-9, 3),
    )
    axes.legend(frameon=False, fontsize=8)
    return figure
