"""The folder of one pretraining run: who owns it, what was asked, what was decided.

A run's settings are written down before anything else and never change. `run.json` holds three
things: the *settings* (what the caller asked for), the *plan* (what was derived from them by
measuring once: the number of steps, the data type, the checkpoint interval) and the *state*
(`prepared`, `training`, `finished`). With the plan on disk, everything after it is deterministic,
so a killed run that is resumed ends with the weights of a run that was never killed.

Layout of a run's folder::

    run.json                          settings, plan, state
    tokenizer.json, …                 the tokenizer
    shards/train, shards/validation   the corpus as token ids
    checkpoints/step-000200 …         what `--resume` starts from
    metrics.jsonl, samples.md         written as the model learns
    config.json, model.safetensors …  the finished model, as `transformers` saves it
    report.md, results.json, loss.png the end of the run
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lab import atomic_write

Architecture = Literal["modern", "gpt2"]
RUN_FILE = "run.json"
RUN_FORMAT = 1


class RunError(ValueError):
    """Something the person who started the run can put right; shown as one sentence."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What was asked for. Two runs with equal settings and equal plans have equal weights.

    Exactly one of `minutes` and `tokens` is set. `vocab_size`, `context`, `tokens_per_step` and
    `learning_rate` are filled in from the preset when the caller leaves them out, so that a
    recorded run does not depend on what a later version's presets say.

    Raises: RunError where a value is out of range.
    """

    corpus: str
    arch: Architecture
    preset: str
    vocab_size: int
    context: int
    tokens_per_step: int
    learning_rate: float
    minutes: float | None
    tokens: int | None
    device: str
    dtype: str
    seed: int
    smoke: bool

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.tokens is None):
            raise RunError("give either --minutes or --tokens, not both and not neither")
        if self.minutes is not None and not self.minutes > 0:
            raise RunError(f"--minutes {self.minutes} must be more than 0")
        if self.tokens is not None and self.tokens < 1:
            raise RunError(f"--tokens {self.tokens} must be at least 1")
        if self.context < 8:
            raise RunError(f"--context {self.context} must be at least 8 tokens")
        if self.vocab_size < 257:
            raise RunError(
                f"--vocab-size {self.vocab_size} must be at least 257: 256 bytes and one end mark"
            )
        if self.tokens_per_step < self.context:
            raise RunError(
                f"--tokens-per-step {self.tokens_per_step} must hold at least one window of "
                f"--context {self.context}"
            )
        if not self.learning_rate > 0:
            raise RunError(f"--lr {self.learning_rate} must be more than 0")
        if self.seed < 0:
            raise RunError(f"--seed {self.seed} must be at least 0")

    @property
    def windows_per_step(self) -> int:
        """Windows of `context` tokens in one optimiser step, over all processes."""
        return max(1, self.tokens_per_step // self.context)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What was decided once, by measuring, before the first step."""

    steps: int
    dtype: str
    micro_batch: int
    checkpoint_every: int
    log_every: int
    evaluate_every: int
    seconds_per_step: float


class RunFolder:
    """Owns one folder for one run, and keeps a second process out of it."""

    def __init__(self, path: Path, settings: RunSettings) -> None:
        self.path = path
        self.settings = settings
        self.plan: RunPlan | None = None
        self.state = "new"
        self._lock: FileLock | None = None

    # Where things are -----------------------------------------------------------------------

    @property
    def train_shards(self) -> Path:
        return self.path / "shards" / "train"

    @property
    def validation_shards(self) -> Path:
        return self.path / "shards" / "validation"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.md"

    # Life of a folder -----------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, settings: RunSettings) -> RunFolder:
        """Claim a new or empty folder.

        Raises: RunError where the folder holds a run or any other file, or cannot be made.
        """
        if path.exists() and not path.is_dir():
            raise RunError(f"--out {path} is a file; give a folder")
        if (path / RUN_FILE).exists():
            raise RunError(
                f"--out {path} already holds a run; choose another folder, or continue it with "
                f"--resume {path}"
            )
        if path.exists() and any(entry.name != ".lock" for entry in path.iterdir()):
            raise RunError(f"--out {path} is not empty and holds no run; choose another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--out {path} cannot be made: {error.strerror}") from error
        folder = cls(path, settings)
        folder.lock()
        folder.save()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run that was begun before.

        Raises: RunError where there is none, or its run.json cannot be read.
        """
        file = path / RUN_FILE
        if not file.is_file():
            raise RunError(f"--resume {path}: there is no run in that folder (no {RUN_FILE})")
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["format"] != RUN_FORMAT:
                raise RunError(
                    f"{file} has format {record['format']!r}; this reads format {RUN_FORMAT}"
                )
            folder = cls(path, RunSettings(**record["settings"]))
            folder.plan = RunPlan(**record["plan"]) if record["plan"] else None
            folder.state = record["state"]
        except RunError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is damaged ({error}); the run cannot be resumed") from error
        return folder

    def save(self) -> None:
        """Write run.json, whole or not at all."""
        record = {
            "format": RUN_FORMAT,
            "state": self.state,
            "settings": dataclasses.asdict(self.settings),
            "plan": dataclasses.asdict(self.plan) if self.plan else None,
        }
        atomic_write(self.path / RUN_FILE, json.dumps(record, indent=2) + "\n")

    def advance(self, state: str, plan: RunPlan | None = None) -> None:
        """Record the next state of the run (and its plan, once)."""
        if plan is not None:
            self.plan = plan
        self.state = state
        self.save()

    def lock(self) -> None:
        """Keep the folder for this process; the system frees it when the process ends.

        Raises: RunError where another process has it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(f"{self.path} is in use by another process") from error
        self._lock = lock

    def release(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard(self) -> None:
        """Remove what this run has written so far; for a run that could not begin."""
        shutil.rmtree(self.path / "shards", ignore_errors=True)
        for file in self.path.iterdir():
            if file.is_file() and file.name != ".lock":
                file.unlink()
        self.release()
        (self.path / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder that was there before may hold other things
            self.path.rmdir()

    def check_unchanged(self, given: dict[str, Any]) -> None:
        """Refuse settings that differ from the recorded ones.

        `given` holds the settings named on the command line, and only these.

        Raises: RunError naming each difference.
        """
        recorded = dataclasses.asdict(self.settings)
        changed = [
            f"{name} was {recorded[name]!r}, now {value!r}"
            for name, value in given.items()
            if name in recorded and recorded[name] != value
        ]
        if changed:
            raise RunError(
                f"--resume {self.path} with changed settings ({'; '.join(changed)}); "
                "leave them out to continue that run, or start a new one with --out"
            )


def free_run_folder(root: Path, stem: str) -> Path:
    """The first of `root/stem`, `root/stem-2`, `root/stem-3`, … that does not exist."""
    candidate, number = root / stem, 1
    while candidate.exists():
        number += 1
        candidate = root / f"{stem}-{number}"
    return candidate


def latest_unfinished_run(root: Path) -> Path:
    """The run under `root` that was worked on last and is not finished.

    Raises: RunError where there is none.
    """
    found: list[tuple[float, Path]] = []
    for file in root.glob(f"*/{RUN_FILE}"):
        if RunFolder.open(file.parent).state != "finished":
            found.append((file.stat().st_mtime, file.parent))
    if not found:
        raise RunError(f"--resume: no unfinished run under {root}; name its folder, or start one")
    return max(found)[1]
