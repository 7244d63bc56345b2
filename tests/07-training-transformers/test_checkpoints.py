"""A checkpoint is whole or not there: kills, full disks, damage, and every bit given back."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import random
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from checkpoints import (
    check_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from kill_testing import killed_at_flush


def state_of(seed):
    """A state with everything that states hold: odd shapes and types, ties, nesting."""
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randn(5, 3, generator=generator)
    return {
        "model": {
            "embedding.weight": tied,
            "unembed.weight": tied,
            "half": torch.randn(7, generator=generator).half(),
            "brain": torch.randn(3, 1, 2, generator=generator).bfloat16(),
            "turned": torch.randn(4, 6, generator=generator).T,
            "bools": torch.rand(5, generator=generator) > 0.5,
            "double": torch.randn(2, dtype=torch.float64, generator=generator),
            "nothing": torch.empty(0, 3),
            "scalar": torch.tensor(seed),
        },
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": tied * 2}, 11: {"n": 5}},
            "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.95), "params": [0, 1]}],
        },
        "numbers": {"step": 7, "lowest": -math.inf, "name": "Ünï", "none": None, "flags": [True]},
    }


def same(a, b):
    """Whether two states are equal, types and bits included."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_everything_comes_back_bit_for_bit(tmp_path):
    config = {"lr": 0.1, "model": {"layers": 2}}
    path = save_checkpoint(tmp_path, state_of(3), step=12, config=config)
    assert path == tmp_path / "step-000012"
    back = load_checkpoint(path)
    assert same(back.state, state_of(3))
    assert (back.step, back.config) == (12, config)
    ties = back.state["model"]
    assert ties["embedding.weight"] is ties["unembed.weight"]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TENSORS = st.builds(
    lambda shape, dtype: torch.arange(math.prod(shape)).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
KEYS = st.text(alphabet="ab.$'", max_size=4) | st.integers(-1, 3) | st.booleans()
STATES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=STATES)
def test_any_nesting_comes_back(tmp_path_factory, value):
    path = save_checkpoint(tmp_path_factory.mktemp("any"), {"state": value}, step=1)
    assert same(load_checkpoint(path).state["state"], value)


def test_the_files_are_plain_safetensors_without_a_copy_of_ties(tmp_path):
    path = save_checkpoint(tmp_path, state_of(0), step=1)
    weights = load_file(path / "model.safetensors")
    assert set(weights) == set(state_of(0)["model"]) - {"unembed.weight"}
    for name, tensor in weights.items():
        assert torch.equal(tensor, state_of(0)["model"][name])
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


def test_a_real_optimizer_goes_on_as_if_nothing_had_been(tmp_path):
    def three_steps(optimizer, model):
        for number in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 3), float(number))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    three_steps(optimizer, model)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    path = save_checkpoint(tmp_path, state, step=3)
    three_steps(optimizer, model)

    other = torch.nn.Linear(3, 2)
    loaded = load_checkpoint(path).state
    other.load_state_dict(loaded["model"])
    again = torch.optim.AdamW(other.parameters(), lr=9.0)
    again.load_state_dict(loaded["optimizer"])
    three_steps(again, other)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_random_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(3).tolist()  # noqa: NPY002

    draw()
    path = save_checkpoint(tmp_path, {}, step=0)
    first = draw()
    assert draw() != first
    restore_random_state(load_checkpoint(path).random)
    assert draw() == first
    state = random_state()
    second = draw()
    restore_random_state(state)
    assert draw() == second


def test_saving_draws_no_random_numbers(tmp_path):
    before = random_state()
    save_checkpoint(tmp_path, state_of(0), step=0)
    assert same(random_state(), before)


def test_rotation_keeps_the_newest(tmp_path):
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, state_of(step), step=step, keep=2)
    assert names(tmp_path) == ["step-000015", "step-000020"]
    # Ten million steps still sort by number, not by name.
    save_checkpoint(tmp_path, state_of(1), step=10_000_000, keep=2)
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "step-10000000"
    assert names(tmp_path) == ["step-000020", "step-10000000"]


def test_rotation_leaves_later_checkpoints_alone(tmp_path):
    # A run that went back to step 10 because 20 is damaged must not count 20 as one it can keep.
    for step in (10, 20):
        save_checkpoint(tmp_path, state_of(step), step=step, keep=1 if step == 10 else 2)
    (tmp_path / "step-000020" / "state.json").write_text("{")
    save_checkpoint(tmp_path, state_of(15), step=15, keep=1)
    found, damaged = latest_checkpoint(tmp_path)
    assert found == tmp_path / "step-000015"
    assert len(damaged) == 1
    save_checkpoint(tmp_path, state_of(20), step=20, keep=1)
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-000020", [])
    assert names(tmp_path) == ["step-000020"]


def test_killed_at_any_flush_a_whole_checkpoint_stands(tmp_path):
    """Saving the third with `keep=1`: whatever moment it is killed at, the second or the third is
    there, whole, and the next save works and tidies up."""
    steps_found = []
    for flushes in itertools.count():
        folder = tmp_path / str(flushes)
        save_checkpoint(folder, state_of(1), step=1, keep=1)
        save_checkpoint(folder, state_of(2), step=2, keep=1)
        third = state_of(3)
        killed = killed_at_flush(
            lambda where=folder, state=third: save_checkpoint(where, state, step=3, keep=1), flushes
        )
        path, damaged = latest_checkpoint(folder)
        assert path is not None
        assert damaged == []
        found = load_checkpoint(path)
        assert same(found.state, state_of(found.step))
        steps_found.append(found.step)
        if not killed:
            break
        save_checkpoint(folder, state_of(4), step=4, keep=1)
        assert names(folder) == ["step-000004"]
    # Three tensor files, two JSON files, the hidden folder; then the rename and its folder.
    assert steps_found == [2] * 6 + [3] * 2


def damage(path, kind, name):
    file = path / name
    data = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)


@pytest.mark.parametrize("kind", ["missing", "cut", "flipped"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.json", "manifest.json", "random.safetensors"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, kind, name):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state_of(step), step=step, keep=3)
    damage(tmp_path / "step-000003", kind, name)
    path, damaged = latest_checkpoint(tmp_path)
    assert path == tmp_path / "step-000002"
    assert len(damaged) == 1
    assert "step-000003" in damaged[0]
    assert name in damaged[0]
    with pytest.raises(ValueError, match="step-000003 is damaged"):
        check_checkpoint(tmp_path / "step-000003")
    assert same(load_checkpoint(tmp_path / "step-000002").state, state_of(2))


def test_all_damaged_or_none_at_all(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") == (None, [])
    assert latest_checkpoint(tmp_path) == (None, [])
    (tmp_path / "step-abc").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert latest_checkpoint(tmp_path) == (None, [])
    for step in (1, 2):
        save_checkpoint(tmp_path, state_of(step), step=step)
        damage(tmp_path / f"step-00000{step}", "cut", "model.safetensors")
    path, damaged = latest_checkpoint(tmp_path)
    assert path is None
    assert ["step-000002" in damaged[0], "step-000001" in damaged[1]] == [True, True]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_manifest_cannot_point_elsewhere(tmp_path):
    path = save_checkpoint(tmp_path, {}, step=1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret.safetensors"] = {"size": 1, "sha256": ""}
    del manifest["sha256"]  # whoever can write the file can sign it too
    signed = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(signed).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="names files elsewhere"):
        load_checkpoint(path)


class FullDisk:
    """A file that takes `room` bytes and then has no more room, as `open` returns it."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 100, 600])
def test_a_full_disk_is_one_clear_error_and_the_checkpoint_before_stands(
    tmp_path, monkeypatch, room
):
    save_checkpoint(tmp_path, state_of(1), step=1, keep=1)
    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, mode="r", **options: (
            FullDisk(real(path, mode), room) if "x" in mode else real(path, mode, **options)
        ),
    )
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_checkpoint(tmp_path, state_of(2), step=2, keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert "step-000001 stands" in str(caught.value)
    assert caught.value.filename == str(tmp_path / "step-000002")
    assert names(tmp_path) == ["step-000001"], "what was written is given back to the full disk"
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-000001", [])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        save_checkpoint(tmp_path, {"model": {"w": torch.ones(30_000)}}, step=1, keep=1)
        with pytest.raises(OSError, match="No space left") as caught:
            save_checkpoint(tmp_path, {"model": {"w": torch.ones(50_000)}}, step=2, keep=1)
        assert caught.value.errno == errno.ENOSPC
        assert latest_checkpoint(tmp_path) == (tmp_path / "step-000001", [])
        # Room comes back: 30,000 floats again, and the run goes on.
        save_checkpoint(tmp_path, {"model": {"w": torch.ones(20_000)}}, step=3, keep=1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"cannot save model\.layers\.1\.hook: a function"):
        save_checkpoint(
            tmp_path, {"model": {"layers": [1, {"hook": test_rotation_keeps_the_newest}]}}, step=1
        )
    with pytest.raises(TypeError, match=r"model\.w: tensors of type torch\.complex64"):
        save_checkpoint(tmp_path, {"model": {"w": torch.ones(2) * 1j}}, step=1)
    with pytest.raises(ValueError, match=r"got '\.\./x'"):
        save_checkpoint(tmp_path, {"../x": 1}, step=1)
    with pytest.raises(ValueError, match="keep=0"):
        save_checkpoint(tmp_path, {}, step=1, keep=0)
    with pytest.raises(ValueError, match="step=-1"):
        save_checkpoint(tmp_path, {}, step=-1)
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match=r"it has no manifest\.json"):
        load_checkpoint(tmp_path / "step-000001")
