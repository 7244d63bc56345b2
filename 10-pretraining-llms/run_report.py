"""The end of a run: rivals on the same text, the loss curve, report.md and results.json."""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lab import PALETTE, atomic_write, new_figure

XZ_WINDOW = 64 * 2**20  # bytes `xz -9` can look back


@dataclass(frozen=True, kw_only=True)
class CompressorBits:
    """Bits per byte that general compressors need for one text.

    `xz_primed` is xz given the training text first: the growth of the compressed size when the
    held-out text is appended. It has seen what the model has seen, so it is the honest rival.
    """

    gzip: float
    xz: float
    xz_primed: float


def compressor_bits(text: bytes, training_text: bytes) -> CompressorBits:
    """Compress `text` with gzip -9 and xz -9, alone and after `training_text`.

    Of the training text, as much is used as xz's 64 MiB window holds together with `text`; the end
    of it, which is what a window would keep.

    Raises: ValueError where `text` is empty.
    """
    if not text:
        raise ValueError("there is no text to compress")
    bits = 8.0 / len(text)
    keep = max(0, XZ_WINDOW - len(text))
    before = training_text[-keep:] if keep else b""
    primed = len(lzma.compress(before + text, preset=9)) - len(lzma.compress(before, preset=9))
    return CompressorBits(
        gzip=bits * len(gzip.compress(text, compresslevel=9, mtime=0)),
        xz=bits * len(lzma.compress(text, preset=9)),
        xz_primed=bits * primed,
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl file, in order; a half-written last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a kill can cut only the line that was being written
    return records


def loss_figure(
    records: list[dict[str, Any]], *, bytes_per_token: float, rivals: CompressorBits
) -> Figure:
    """Training and held-out bits per byte over tokens seen, with the compressors as lines."""
    figure, axes = new_figure(width=7.5, height=4.5)
    train = [(r["tokens_seen"], r["loss"]) for r in records if "loss" in r]
    held_out = [
        (r["tokens_seen"], r["validation_bits_per_byte"])
        for r in records
        if "validation_bits_per_byte" in r
    ]
    nats_to_bits_per_byte = 1.0 / (np.log(2.0) * bytes_per_token)
    if train:
        tokens, loss = np.array(train).T
        axes.plot(
            tokens / 1e6,
            loss * nats_to_bits_per_byte,
            color=PALETTE[0],
            alpha=0.5,
            lw=1,
            label="training",
        )
    if held_out:
        tokens, bits = np.array(held_out).T
        axes.plot(tokens / 1e6, bits, color=PALETTE[1], marker="o", ms=4, label="held out")
    for name, value, color, style in (
        ("gzip -9", rivals.gzip, PALETTE[2], ":"),
        ("xz -9", rivals.xz, PALETTE[3], "--"),
        ("xz -9 after the training text", rivals.xz_primed, PALETTE[4], "-."),
    ):
        axes.axhline(value, color=color, ls=style, lw=1.2, label=name)
    axes.set(
        title="Bits per byte as the model learns",
        xlabel="training tokens (millions)",
        ylabel="bits per byte",
    )
    top = max([rivals.gzip * 1.25, *(bits for _, bits in held_out)])
    axes.set_ylim(0, top)
    axes.legend(frameon=False, fontsize=9)
    return figure


def write_report(
    folder: Path,
    *,
    title: str,
    facts: list[tuple[str, str]],
    scores: dict[str, float],
    samples: str,
    sample_command: str,
) -> None:
    """Write report.md: what the run was, what it reached, and what the model writes."""
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts]
    lines += [
        "",
        "## Held-out text, bits per byte",
        "",
        "Lower is better; all on the same bytes.",
        "",
    ]
    lines += ["| | bits per byte |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in scores.items()]
    lines += [
        "",
        "![bits per byte over training tokens](loss.png)",
        "",
        "## Samples",
        "",
        samples.rstrip(),
        "",
    ]
    lines += ["## Use it", "", "```sh", sample_command, "```", ""]
    atomic_write(folder / "report.md", "\n".join(lines))
