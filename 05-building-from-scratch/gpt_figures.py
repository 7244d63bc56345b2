"""The figures of topic 05: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from gpt_steps import STEPS
from lab import PALETTE, new_figure


def steps_figure(detail: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Held-out bits per byte after each step of the construction, every seed a dot."""
    figure, axes = new_figure(width=8.0, height=4.2)
    numbers = sorted(int(number) for number in detail)
    means = [detail[str(n)]["bits_per_byte"] for n in numbers]
    errors = [detail[str(n)]["half_width"] for n in numbers]
    axes.bar(numbers, means, yerr=errors, color=PALETTE[5], ecolor=PALETTE[6], capsize=3)
    for n in numbers:
        seeds = detail[str(n)]["all"]
        axes.plot([n] * len(seeds), seeds, "o", color=PALETTE[0], ms=3)
    axes.set_xticks(numbers, [f"{s.number}\n{s.name}" for s in STEPS], fontsize=8)
    axes.set(
        title="What each part buys",
        xlabel="step of the construction",
        ylabel="held-out bits per byte",
        ylim=(min(means) * 0.8, max(means) * 1.08),
    )
    return figure


def residual_figure(rows: Sequence[Sequence[float]]) -> Figure:
    """The stream's standard deviation over depth, with and without the scaled initialisation."""
    figure, axes = new_figure(width=5.5, height=3.8)
    layers, scaled, unscaled = np.array(rows).T
    axes.plot(layers, scaled, "o-", color=PALETTE[0], label="outputs scaled by 1/√(2L)")
    axes.plot(layers, unscaled, "s--", color=PALETTE[1], label="not scaled")
    axes.set_xscale("log", base=2)
    axes.set(
        title="The residual stream of a fresh GPT",
        xlabel="layers L",
        ylabel="standard deviation after the last block",
        ylim=(0, None),
    )
    axes.legend(frameon=False)
    return figure


def cache_figure(rows: Sequence[Sequence[float]]) -> Figure:
    """Milliseconds a token over the length of the context."""
    figure, axes = new_figure(width=5.5, height=3.8)
    lengths, without, with_cache, _ = np.array(rows).T
    axes.loglog(lengths, without, "s--", color=PALETTE[1], label="without cache")
    axes.loglog(lengths, with_cache, "o-", color=PALETTE[0], label="with cache")
    axes.set(
        title="Writing one token",
        xlabel="tokens of context",
        ylabel="milliseconds a token",
    )
    axes.legend(frameon=False)
    return figure


def induction_figure(results: Mapping[str, Any], maps: Tensor) -> Figure:
    """The best head's map on a repeated text, and how looking back is learned.

    maps: attention weights (L, H, T, T) of the two-layer model on one text.
    """
    figure, (left, right) = new_figure(2, width=9.5, height=4.0)
    half = results["half"]
    scores = maps.diagonal(offset=1 - half, dim1=-2, dim2=-1)[..., 1:].mean(dim=-1)  # (L, H)
    best = int(scores.argmax())
    layer, head = divmod(best, maps.shape[1])
    left.imshow(maps[layer, head].numpy(), cmap="viridis", interpolation="nearest")
    left.axvline(half - 0.5, color="white", lw=0.8)
    left.axhline(half - 0.5, color="white", lw=0.8)
    left.set(
        title=f"Layer {layer + 1}, head {head + 1}: one text twice",
        xlabel="position attended to",
        ylabel="position that asks",
    )
    left.grid(visible=False)
    for layers, color, style in ((1, PALETTE[1], "--"), (2, PALETTE[0], "-")):
        name = f"{layers} layer" + ("s" if layers > 1 else "")
        for i, points in enumerate(results[f"{layers}_layers"]["curves"]):
            curve = np.array(points)
            label = f"{name}: loss, second half" if i == 0 else None
            right.plot(curve[:, 0], curve[:, 1], style, color=color, label=label)
    right.axhline(results["ln_vocab"], color=PALETTE[6], ls=":", lw=1, label="ln V: guessing")
    right.set(
        title="Learning to look back",
        xlabel="training step",
        ylabel="nats a token",
        ylim=(0, None),
    )
    right.legend(frameon=False, fontsize=8)
    return figure
