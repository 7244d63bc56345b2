"""One process or several: who does what, and what happens when the first one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from process_group import ProcessGroup

TWO_RANKS = """
import os
from process_group import ProcessGroup
from run_folder import RunError

with ProcessGroup.from_environment(os.environ) as processes:
    got = processes.from_first(lambda: {"rank": processes.rank})
    try:
        processes.from_first(lambda: (_ for _ in ()).throw(ValueError("no such corpus")))
    except (ValueError, RunError) as error:
        kind = type(error).__name__
    os.write(1, f"{processes.rank} got {got['rank']} {kind}\\n".encode())
    import torch.distributed.nn.functional  # as transformers does while a run goes on
threads = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
assert not [name for name in threads if "gloo" in name], threads
"""


def test_without_torchrun_there_is_one_process():
    with ProcessGroup.from_environment({}) as processes:
        assert (processes.rank, processes.world_size, processes.is_first) == (0, 1, True)
        assert processes.from_first(lambda: 5) == 5
        with pytest.raises(KeyError):
            processes.from_first(lambda: {}["missing"])


def test_torchrun_tells_the_rank():
    processes = ProcessGroup.from_environment({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (processes.rank, processes.world_size, processes.is_first) == (3, 8, False)
    assert processes.device(torch.device("cuda")) == torch.device("cuda:1")
    assert processes.device(torch.device("cpu")) == torch.device("cpu")


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="rank 2"):
        ProcessGroup(rank=2, world_size=2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads' names from /proc")
def test_all_get_the_first_ones_result_and_its_failure_and_no_thread_stays(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path("10-pretraining-llms").resolve()),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(script),
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n"))[1:] == ["0 got 0 ValueError", "1 got 0 RunError"]
