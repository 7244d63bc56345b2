"""Killed with -9 at random moments and resumed, a run ends as if it had never been killed."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import resume_worker
from checkpoints import latest_checkpoint, load_checkpoint
from training_testing import text_shards


def outcome(out):
    """The checksums of everything in the last checkpoint, and the metrics but for their times."""
    path, damaged = latest_checkpoint(out / "checkpoints")
    assert path is not None
    assert damaged == []
    manifest = json.loads((path / "manifest.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return manifest["step"], manifest["files"], lines


class Runs:
    """Fresh processes that run `resume_worker.train`, one after the other."""

    def __init__(self, shards):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, resume_worker.__file__, str(shards)]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, out, seconds=math.inf):
        """The exit code, or minus the signal; killed after so many seconds."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{seconds} {out}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def close(self):
        assert self.server.stdin is not None
        self.server.stdin.close()
        assert self.server.wait() == 0


def test_killed_at_random_moments_and_resumed_is_never_killed(tmp_path):
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is"], k=400)
    text_shards(tmp_path / "shards", " ".join(words))
    for name in ("warm", "unbroken", "killed"):
        (tmp_path / name).mkdir()
    runs = Runs(tmp_path / "shards")
    assert runs.run(tmp_path / "warm") == 0
    began = time.perf_counter()
    assert runs.run(tmp_path / "unbroken") == 0
    whole = time.perf_counter() - began
    step, files, lines = outcome(tmp_path / "unbroken")
    assert step == resume_worker.STEPS
    assert [line["step"] for line in lines] == list(range(1, step + 1))
    assert any("recovered_to_step" in line for line in lines), "the hard case did not occur"

    moments = random.Random(1)
    begun_from = []
    for attempt in range(100):
        path, damaged = latest_checkpoint(tmp_path / "killed" / "checkpoints")
        assert damaged == [], "a kill never leaves a damaged checkpoint in sight"
        begun_from.append(0 if path is None else load_checkpoint(path).step)
        # The moments move out, so that the run ends on a machine of any mood.
        code = runs.run(tmp_path / "killed", whole * moments.uniform(0.1, 0.6 + 0.05 * attempt))
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    runs.close()
    assert len(begun_from) >= 3, "killed at least twice"
    assert len(set(begun_from)) >= 2, "resumed from its middle"
    assert outcome(tmp_path / "killed") == (step, files, lines)
    assert outcome(tmp_path / "warm") == (step, files, lines)
