"""The figures of topic 06: findings in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from embeddings import WordVectors
from lab import PALETTE, new_figure


def fertility_figure(detail: Sequence[Mapping[str, Any]]) -> Figure:
    """Bytes a token over the vocabulary size, one panel a corpus."""
    corpora = list(dict.fromkeys(point["corpus"] for point in detail))
    kinds = list(dict.fromkeys(point["kind"] for point in detail))
    figure, panels = new_figure(len(corpora), width=2.9 * len(corpora), height=3.2)
    for axes, corpus in zip(panels, corpora, strict=True):
        for kind, color, style in zip(kinds, PALETTE, ("o-", "s--", "^:"), strict=False):
            points = [p for p in detail if (p["corpus"], p["kind"]) == (corpus, kind)]
            sizes, values = [p["size"] for p in points], [p["bytes"] for p in points]
            axes.plot(sizes, values, style, color=color, label=kind, ms=4)
        axes.set_xscale("log", base=2)
        axes.set(title=corpus, xlabel="vocabulary", ylim=(0, None))
    panels[0].set_ylabel("bytes a token, held out")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def downstream_figure(detail: Sequence[Mapping[str, Any]]) -> Figure:
    """Held-out bits per byte after equal FLOPs, with intervals."""
    corpora = list(dict.fromkeys(point["corpus"] for point in detail))
    kinds = list(dict.fromkeys(point["kind"] for point in detail))
    figure, axes = new_figure(width=7.0, height=3.6)
    places = np.arange(len(corpora))
    width = 0.8 / len(kinds)
    for number, (kind, color) in enumerate(zip(kinds, PALETTE, strict=False)):
        points = [next(p for p in detail if (p["corpus"], p["kind"]) == (c, kind)) for c in corpora]
        axes.bar(
            places + (number - (len(kinds) - 1) / 2) * width,
            [p["bits"] for p in points],
            width * 0.9,
            yerr=[p["half"] for p in points],
            color=color,
            label=kind,
            capsize=2,
        )
    axes.set_xticks(places, corpora)
    highest = max(point["bits"] + point["half"] for point in detail)
    axes.set(
        title="A small GPT after equal FLOPs",
        ylabel="held-out bits per byte",
        ylim=(0, 1.2 * highest),  # room for the legend
    )
    axes.legend(frameon=False, fontsize=8, ncol=len(kinds))
    return figure


def vectors_figure(vectors: WordVectors, classes: Mapping[str, Sequence[str]]) -> Figure:
    """Word vectors in the plane in which they vary most, coloured by class."""
    flat = vectors.projection()  # (V, 2)
    figure, axes = new_figure(width=6.5, height=4.6)
    axes.plot(*flat.T, ".", color="0.85", ms=3)
    markers = ("o", "s", "^", "D", "v", "P", "X")
    for (name, words), color, marker in zip(classes.items(), PALETTE, markers, strict=False):
        rows = [vectors.row(word) for word in words if word in vectors]
        axes.plot(*flat[rows].T, marker, color=color, ms=4, ls="", label=name)
    axes.set(title="Words of tiny world", xlabel="first direction", ylabel="second direction")
    axes.legend(frameon=False, fontsize=8)
    return figure
