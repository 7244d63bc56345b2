"""Compressors as rivals, and what a run writes at its end."""

from __future__ import annotations

import gzip
import json
import lzma

import numpy as np
import pytest

from run_report import CompressorBits, compressor_bits, loss_figure, read_metrics, write_report


def random_text(seed: int, size: int = 20_000) -> bytes:
    words = [b"tree", b"house", b"of", b"the", b"runs", b"blue", b"seven", b"\n"]
    picks = np.random.default_rng(seed).integers(len(words), size=size // 5)
    return b" ".join(words[pick] for pick in picks)


def test_compressed_sizes_are_those_of_the_tools():
    text = random_text(0)
    bits = compressor_bits(text, random_text(1))
    assert bits.gzip == 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)
    assert bits.xz == 8 * len(lzma.compress(text, preset=9)) / len(text)


def test_training_text_that_holds_the_answer_makes_it_almost_free():
    noise = np.random.default_rng(3).bytes(30_000)
    bits = compressor_bits(noise, noise)
    assert bits.xz > 7.9
    assert bits.xz_primed < 0.2


def test_training_text_of_another_kind_does_not_help():
    noise = np.random.default_rng(4).bytes(30_000)
    assert compressor_bits(noise, random_text(5)).xz_primed > 7.9


def test_nothing_cannot_be_compressed():
    with pytest.raises(ValueError, match="no text"):
        compressor_bits(b"", b"abc")


def test_a_cut_last_line_of_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + '\n{"st')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


def test_the_figure_shows_both_curves_and_three_rivals():
    records = [
        {"tokens_seen": 1000 * step, "loss": 5.0 / step, "validation_bits_per_byte": 3.0 / step}
        for step in range(1, 5)
    ]
    rivals = CompressorBits(gzip=2.0, xz=1.9, xz_primed=1.7)
    axes = loss_figure(records, bytes_per_token=4.0, rivals=rivals).axes[0]
    assert [line.get_label() for line in axes.lines] == [
        "training",
        "held out",
        "gzip -9",
        "xz -9",
        "xz -9 after the training text",
    ]
    # 5 nats a token of 4 bytes are 5 / (4 ln 2) bits a byte.
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata())[0], 5 / (4 * np.log(2)))


def test_the_report_holds_facts_scores_and_samples(tmp_path):
    write_report(
        tmp_path,
        title="A model",
        facts=[("steps", "12")],
        scores={"this model": 1.2345, "xz -9": 2.0},
        samples="    def f():",
        sample_command="python pretrain.py --sample x",
    )
    report = (tmp_path / "report.md").read_text()
    for part in (
        "# A model",
        "| steps | 12 |",
        "| this model | 1.234 |",
        "    def f():",
        "--sample x",
    ):
        assert part in report
