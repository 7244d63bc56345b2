"""A run's folder: claimed once, never overwritten, readable after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from run_folder import (
    RUN_FILE,
    RunError,
    RunFolder,
    RunPlan,
    RunSettings,
    free_run_folder,
    latest_unfinished_run,
)


def settings(**changes: Any) -> RunSettings:
    values: dict[str, Any] = {
        "corpus": "stdlib",
        "arch": "modern",
        "preset": "smoke",
        "vocab_size": 512,
        "context": 64,
        "tokens_per_step": 512,
        "learning_rate": 0.02,
        "minutes": None,
        "tokens": 1000,
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "smoke": False,
    }
    return RunSettings(**{**values, **changes})


PLAN = RunPlan(
    steps=2,
    dtype="float32",
    micro_batch=8,
    checkpoint_every=1,
    log_every=1,
    evaluate_every=1,
    seconds_per_step=0.1,
)


def test_what_is_saved_is_read_back(tmp_path):
    folder = RunFolder.create(tmp_path / "run", settings(minutes=1.5, tokens=None))
    folder.advance("training", PLAN)
    again = RunFolder.open(tmp_path / "run")
    assert (again.settings, again.plan, again.state) == (folder.settings, PLAN, "training")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"minutes": 1.0}, "either --minutes or --tokens"),
        ({"tokens": None}, "either --minutes or --tokens"),
        ({"tokens": 0}, "--tokens 0"),
        ({"tokens": None, "minutes": 0.0}, "--minutes 0.0"),
        ({"tokens": None, "minutes": float("nan")}, "--minutes nan"),
        ({"context": 4}, "--context 4"),
        ({"vocab_size": 256}, "--vocab-size 256"),
        ({"tokens_per_step": 63}, "--tokens-per-step 63"),
        ({"learning_rate": 0.0}, "--lr 0.0"),
        ({"learning_rate": float("nan")}, "--lr nan"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_settings_out_of_range_are_named(changes, complaint):
    with pytest.raises(RunError, match=complaint):
        settings(**changes)


def test_a_folder_with_a_run_or_other_files_is_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    RunFolder.create(tmp_path / "run", settings()).release()
    before = (tmp_path / "run" / RUN_FILE).read_bytes()
    for name, complaint in (
        ("other", "is not empty"),
        ("file", "is a file"),
        ("run", "already holds a run"),
    ):
        with pytest.raises(RunError, match=complaint):
            RunFolder.create(tmp_path / name, settings(seed=5))
    assert (tmp_path / "run" / RUN_FILE).read_bytes() == before
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]


def test_an_empty_folder_may_be_used_and_is_left_empty_when_the_run_cannot_begin(tmp_path):
    folder = RunFolder.create(tmp_path / "new", settings())
    (folder.path / "shards").mkdir()
    folder.discard()
    assert not (tmp_path / "new").exists()


def test_a_second_process_is_kept_out(tmp_path):
    folder = RunFolder.create(tmp_path / "run", settings())
    code = (
        "import sys; from pathlib import Path; from run_folder import RunFolder, RunError\n"
        "try: RunFolder.open(Path(sys.argv[1])).lock()\n"
        "except RunError as error: print(error); sys.exit(7)"
    )
    call = [sys.executable, "-c", code, str(folder.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path("10-pretraining-llms").resolve())}
    locked = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert locked.returncode == 7, locked.stderr
    assert "in use by another process" in locked.stdout
    folder.release()
    assert subprocess.run(call, env=environment).returncode == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b'{"format": 1}',
        b'{"format": 99}',
        b'{"format": 1, "settings": {}, "plan": null, "state": "x"}',
    ],
)
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json"):
        RunFolder.open(tmp_path)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(RunError, match="no run in that folder"):
        RunFolder.open(tmp_path / "nowhere")


def test_changed_settings_are_named_and_unchanged_ones_pass(tmp_path):
    folder = RunFolder.create(tmp_path / "run", settings())
    folder.check_unchanged({"seed": 0, "corpus": "stdlib"})
    with pytest.raises(RunError, match=r"seed was 0, now 1; context was 64, now 128"):
        folder.check_unchanged({"seed": 1, "context": 128, "corpus": "stdlib"})


def test_the_next_free_folder_and_the_latest_unfinished_run(tmp_path):
    with pytest.raises(RunError, match="no unfinished run"):
        latest_unfinished_run(tmp_path)
    names = []
    for age in (30, 20, 10):
        path = free_run_folder(tmp_path, "stdlib")
        names.append(path.name)
        RunFolder.create(path, settings()).release()
        stamp = (path / RUN_FILE).stat().st_mtime - age
        os.utime(path / RUN_FILE, (stamp, stamp))
    assert names == ["stdlib", "stdlib-2", "stdlib-3"]
    record = json.loads((tmp_path / "stdlib-3" / RUN_FILE).read_text())
    stamp = (tmp_path / "stdlib-3" / RUN_FILE).stat().st_mtime
    (tmp_path / "stdlib-3" / RUN_FILE).write_text(json.dumps({**record, "state": "finished"}))
    os.utime(tmp_path / "stdlib-3" / RUN_FILE, (stamp, stamp))
    assert latest_unfinished_run(tmp_path).name == "stdlib-2"
