"""Every topic's script and every benchmark goes its whole way at tiny sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import measure
from lab import read_run

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    *(measure.topic_script(t) for t in measure.topic_folders() if measure.topic_script(t).exists()),
    *measure.benchmark_scripts(),
]


def show(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", SCRIPTS, ids=show)
def test_smoke(script, tmp_path):
    """It ends well, writes where it is told to, and leaves alone what real runs measured."""
    measured = [*ROOT.glob("*/results.json"), *ROOT.glob("benchmarks/results/*.json")]
    before = {path: path.read_bytes() for path in measured}
    done = subprocess.run(
        [sys.executable, show(script), "--smoke", "--out", str(tmp_path), "--device", "cpu"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip(), "a script prints a table that can be read by itself"
    benchmark = script.parent.name == "benchmarks"
    results = tmp_path / (f"{script.stem}.json" if benchmark else "results.json")
    assert read_run(results)["wall_seconds"] > 0
    assert {path: path.read_bytes() for path in measured if path in before} == before


@pytest.mark.parametrize("script", SCRIPTS, ids=show)
def test_help_teaches(script):
    done = subprocess.run(
        [sys.executable, show(script), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"--device", "--seed", "--out", "--smoke"} <= set(done.stdout.replace(",", " ").split())
