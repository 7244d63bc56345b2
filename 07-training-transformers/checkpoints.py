"""Checkpoints that are whole or not there.

A checkpoint is a folder, `step-000100`, of safetensors and JSON files; nothing in it can run code.
It is written under a hidden name, every file is flushed to the disk, a manifest with sizes and
checksums comes last, and a rename makes it visible: killed at any moment, a run leaves either the
new checkpoint or the ones before it. These are removed only when the new one stands.

    step-000100/
        model.safetensors  optimizer.safetensors  …   one file a top-level key that holds tensors
        state.json                                    the structure around them, numbers, the config
        manifest.json                                 step; size and SHA-256 of every file

`save_checkpoint` takes any nesting of dicts, lists, tuples, numbers, strings and tensors, such as
`state_dict()` of models and optimisers, and adds the state of the random generators.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_MANIFEST, _STATE = "manifest.json", "state.json"
_FORMAT = "checkpoint-1"
_NAME = re.compile(r"step-(\d{6,})")
_ASIDE = re.compile(r"\.step-\d{6,}\..+\.tmp")
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `save_checkpoint` was given, read back. `random` is for `restore_random_state`."""

    path: Path
    step: int
    state: dict[str, Any]
    config: dict[str, Any]
    random: dict[str, Any]


def save_checkpoint(
    directory: str | os.PathLike[str],
    state: Mapping[str, Any],
    *,
    step: int,
    config: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write `directory/step-NNNNNN` atomically, then remove all but the `keep` newest up to it.

    Raises:
        OSError: it cannot be written (a full disk: errno ENOSPC); earlier checkpoints stand, and
            what was written of this one is removed.
        TypeError: the state holds something else than tensors and plain values; it says where.
        ValueError: `step` < 0 or `keep` < 1.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1; got {step=}, {keep=}")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:06d}"
    _remove_leftovers(folder)
    aside = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        aside.mkdir()
        _write_files(aside, {**state, "random": random_state()}, step, dict(config or {}))
        _sync_folder(aside)
        if target.exists():  # an earlier, perhaps damaged, checkpoint of the same step
            os.rename(target, folder / f".{target.name}.old.tmp")
        os.rename(aside, target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        before = [path.name for at, path in _checkpoints(folder) if at < step]
        stands = f"{before[-1]} stands" if before else "there is no earlier one"
        raise OSError(
            error.errno, f"{error.strerror} while writing a checkpoint ({stands})", str(target)
        ) from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _remove_leftovers(folder)
    for at, path in _checkpoints(folder)[:-keep]:
        if at < step:
            # Out of sight in one move: a half-deleted folder must not look like a checkpoint.
            hidden = folder / f".{path.name}.old.tmp"
            os.rename(path, hidden)
            shutil.rmtree(hidden)
    return target


def load_checkpoint(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Read a checkpoint, its tensors onto `device` (those of `random` onto the CPU).

    Raises:
        ValueError: it is missing or damaged; the message names the file. Checksums are not
            compared here: see `check_checkpoint`, which `latest_checkpoint` calls.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    try:
        record = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        tensors = {
            file.removesuffix(".safetensors"): load_file(
                folder / file, device="cpu" if file == "random.safetensors" else str(device)
            )
            for file in manifest["files"]
            if file.endswith(".safetensors")
        }
        state = {
            key: _unpack(value, tensors.get(key, {})) for key, value in record["state"].items()
        }
        generators = state.pop("random")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}") from error
    return Checkpoint(
        path=folder,
        step=manifest["step"],
        state=state,
        config=record["config"],
        random=generators,
    )


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Compare every file of a checkpoint with the manifest.

    Raises:
        ValueError: a file is missing, cut short or changed; the message names it.
    """
    folder = Path(path)
    for name, wanted in _read_manifest(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"checkpoint {folder} is damaged: {name} is missing")
        if file.stat().st_size != wanted["size"]:
            raise ValueError(
                f"checkpoint {folder} is damaged: {name} has {file.stat().st_size} bytes, not "
                f"{wanted['size']}"
            )
        with open(file, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted["sha256"]:
                raise ValueError(f"checkpoint {folder} is damaged: {name} has changed")


def latest_checkpoint(directory: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a sentence for each damaged newer one."""
    damaged = []
    for _, path in reversed(_checkpoints(Path(directory))):
        try:
            check_checkpoint(path)
        except ValueError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    return None, damaged


def random_state() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and PyTorch (CPU; the current GPU)."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (libraries draw from it)
    state = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `random_state` returned. A generator that this machine
    lacks is left out: a run that changes device cannot repeat the old one's dropout anyway.
    """
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


# ---------------------------------------------------------------------------------------------
# Files


def _write_files(folder: Path, state: dict[str, Any], step: int, config: dict[str, Any]) -> None:
    files = {}
    structure = {}
    for key, value in state.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
            raise ValueError(f"top-level keys of a state name files, as in 'model'; got {key!r}")
        tensors: dict[str, Tensor] = {}
        structure[key] = _pack(value, (key,), tensors, {})
        if tensors:
            name = f"{key}.safetensors"
            files[name] = _write(folder / name, _safetensors_chunks(tensors))
    record = json.dumps({"state": structure, "config": config}).encode()
    files[_STATE] = _write(folder / _STATE, [record])
    manifest = {"format": _FORMAT, "step": step, "files": files}
    manifest["sha256"] = _manifest_digest(manifest)
    _write(folder / _MANIFEST, [json.dumps(manifest, indent=1).encode()])


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and flush to the disk; returns the size and checksum that were meant."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _safetensors_chunks(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors format piece by piece, so that a state is never in memory twice: 8 bytes of
    header length, a JSON header padded to 8, then the tensors' bytes in the header's order.

    Wide types come first, so that every tensor starts at a multiple of its own width.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def _pack(
    value: Any, at: tuple[str, ...], tensors: dict[str, Tensor], known: dict[Any, str]
) -> Any:
    """Replace each tensor in a nested value by its name in `tensors`, and what JSON lacks (tuples,
    keys that are no strings) by marked lists. A tensor met twice (tied weights) is stored once.
    """
    if isinstance(value, Tensor):
        if value.dtype not in _DTYPE_NAMES:
            raise TypeError(f"cannot save {'.'.join(at)}: tensors of type {value.dtype}")
        same = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() == 0 or same not in known:
            name = ".".join(at[1:]) or at[0]  # within the file that is named after at[0]
            while name in tensors:  # {"a": {"b": …}, "a.b": …}
                name += "'"
            tensors[name], known[same] = value, name
            return {"$tensor": name}
        return {"$tensor": known[same]}
    if isinstance(value, Mapping):
        packed = [
            (key, _pack(item, (*at, str(key)), tensors, known)) for key, item in value.items()
        ]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(packed)
        return {"$items": [[_pack(key, at, tensors, known), item] for key, item in packed]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, (*at, str(n)), tensors, known) for n, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"cannot save {'.'.join(at)}: a {type(value).__name__}, where a state holds tensors, "
        "numbers, strings, and dicts and lists of these"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["$tuple"])
    if "$items" in value:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["$items"]}
    return {key: _unpack(item, tensors) for key, item in value.items()}


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """Of the manifest's content without this digest itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or not isinstance(manifest["step"], int):
            raise ValueError(f"it is not of the format {_FORMAT}")
        if manifest.pop("sha256") != _manifest_digest(manifest):
            raise ValueError("it has changed")
        # Names come from the disk: none may lead out of the folder.
        if any(Path(name).name != name for name in manifest["files"]):
            raise ValueError("it names files elsewhere")
    except FileNotFoundError as error:
        raise ValueError(f"checkpoint {folder} is damaged: it has no {_MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {_MANIFEST}: {error}") from error
    return manifest


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the folders that are named like checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in named if match)


def _remove_leftovers(folder: Path) -> None:
    """Clear away what a killed process was writing or removing."""
    for path in folder.iterdir():
        if _ASIDE.fullmatch(path.name):
            shutil.rmtree(path)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, nor needs to be
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
