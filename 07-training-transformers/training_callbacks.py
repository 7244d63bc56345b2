"""What happens between the steps of a run: callbacks for `train_loop.fit`.

Their order matters where one reads what another writes: an `Evaluator` adds its scores to the
step's metrics, so it stands before the `ConsoleLogger` and the `MetricsLog`, and the
`Checkpointer` comes last. None of them draws from the global random generators, so a run with
other callbacks, or with other intervals, trains the same weights.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from checkpoints import latest_checkpoint, load_checkpoint, restore_random_state, save_checkpoint
from lab import atomic_write, progress
from spike_recovery import SpikeRecovery
from text_generation import DecoderModel, SamplingConfig, TextCodec, generate
from token_dataset import TokenShards
from train_loop import Callback, LoopState
from training import TrainingStep
from training_measures import HeldOutLoss, evaluate_bits_per_byte

__all__ = [
    "Checkpointer",
    "ConsoleLogger",
    "Evaluator",
    "MetricsLog",
    "SampleWriter",
    "SpikeRecovery",
    "Stateful",
]


class Stateful(Protocol):
    """Something with a state that a checkpoint should hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ConsoleLogger(Callback):
    """One aligned line an interval, and a progress bar where stderr is a terminal.

        step  120/1000   loss 3.412   1.642 bits/byte   lr 1.50e-03   21,340 tok/s   left 1:42

    The loss is the mean since the last line. What other callbacks add to the metrics comes at the
    end of the line.

    Args:
        tokens_per_step: over all ranks, for the speed.
        bytes_per_token: turns nats a token into bits a byte; None leaves these out.
        write: takes a finished line; by default it goes to stdout.
    """

    def __init__(
        self,
        *,
        tokens_per_step: int,
        every_steps: int = 10,
        bytes_per_token: float | None = None,
        write: Callable[[str], None] | None = None,
    ) -> None:
        _check_interval("every_steps", every_steps)
        self.every_steps, self.tokens_per_step = every_steps, tokens_per_step
        self.bytes_per_token = bytes_per_token
        self._given_write = write
        self._losses: list[Any] = []

    def on_start(self, state: LoopState) -> None:
        self._began = self._last_time = time.perf_counter()
        self._first_step = self._last_step = state.step
        self._losses = []
        self._bar = None
        if sys.stderr.isatty():
            self._bar = progress(desc="training", total=state.max_steps, unit="step")
            self._bar.update(state.step)

    def on_step(self, state: LoopState) -> None:
        self._losses.append(state.metrics["loss"])  # a tensor is not waited for here
        if self._bar is not None:
            self._bar.update(1)
        if state.step % self.every_steps == 0 or state.step == state.max_steps:
            self._write(self._line(state))
            self._losses, self._last_step = [], state.step
            self._last_time = time.perf_counter()

    def on_end(self, state: LoopState) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, state: LoopState) -> str:
        now = time.perf_counter()
        loss = statistics.fmean(float(loss) for loss in self._losses)
        steps = state.step - self._last_step
        speed = steps * self.tokens_per_step / max(now - self._last_time, 1e-9)
        a_step = (now - self._began) / (state.step - self._first_step)
        width = len(str(state.max_steps))
        fields = [f"step {state.step:>{width}}/{state.max_steps}", f"loss {loss:6.3f}"]
        if self.bytes_per_token is not None:
            fields.append(f"{loss / math.log(2) / self.bytes_per_token:6.3f} bits/byte")
        if "lr" in state.metrics:
            fields.append(f"lr {state.metric('lr'):.2e}")
        fields.append(f"{speed:9,.0f} tok/s")
        fields.append(f"left {_clock(a_step * (state.max_steps - state.step)):>7}")
        known = ("loss", "grad_norm", "lr", "tokens")
        fields += [
            f"{name.replace('_', ' ')} {state.metric(name):.4g}"
            for name in state.metrics
            if name not in known
        ]
        return "   ".join(fields)

    def _write(self, line: str) -> None:
        if self._given_write is not None:
            self._given_write(line)
        elif self._bar is not None:
            self._bar.write(line)  # above the bar, not through it
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


class MetricsLog(Callback):
    """The metrics as JSON lines: one at every `every_steps` steps, and wherever an evaluation has
    added a `validation_…` metric.

    A resumed run goes on in the file, and lines beyond the step it resumes from are cut off first,
    so the file ends as if the run had never stopped.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, tokens_per_step: int, every_steps: int = 1
    ) -> None:
        _check_interval("every_steps", every_steps)
        self.path, self.tokens_per_step, self.every_steps = Path(path), tokens_per_step, every_steps
        self._seconds_before = 0.0

    def on_start(self, state: LoopState) -> None:
        kept = []
        for line in self.path.read_text("utf-8").splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # a kill can only have cut the last line
            if record["step"] <= state.step:
                kept.append(line + "\n")
                self._seconds_before = record["seconds"]
        atomic_write(self.path, "".join(kept))
        self._began = time.perf_counter()

    def on_step(self, state: LoopState) -> None:
        evaluated = any(name.startswith("validation") for name in state.metrics)
        if state.step % self.every_steps and not evaluated and state.step != state.max_steps:
            return
        record = {
            "step": state.step,
            "tokens_seen": state.step * self.tokens_per_step,
            "seconds": round(self._seconds_before + time.perf_counter() - self._began, 3),
            **{name: state.metric(name) for name in state.metrics},
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Evaluator(Callback):
    """Bits per byte on held-out text, with the averaged weights where these are kept, every
    `every_steps` steps and after the last. It adds `{name}_bits_per_byte` to the step's metrics.
    """

    def __init__(
        self,
        training: TrainingStep,
        shards: TokenShards,
        *,
        every_steps: int,
        batch_size: int,
        seq_len: int,
        max_tokens: int | None = None,
        name: str = "validation",
    ) -> None:
        _check_interval("every_steps", every_steps)
        self.training, self.shards, self.every_steps = training, shards, every_steps
        self.batch_size, self.seq_len, self.max_tokens = batch_size, seq_len, max_tokens
        self.name = name
        self.history: list[tuple[int, HeldOutLoss]] = []

    def on_step(self, state: LoopState) -> None:
        if state.step % self.every_steps == 0 or state.step == state.max_steps:
            result = self.evaluate()
            self.history.append((state.step, result))
            state.metrics[f"{self.name}_bits_per_byte"] = result.bits_per_byte

    def evaluate(self) -> HeldOutLoss:
        """Score the held-out text now."""
        with self.training.averaged_weights() as model:
            return evaluate_bits_per_byte(
                model,
                self.shards,
                batch_size=self.batch_size,
                seq_len=self.seq_len,
                device=self.training.device,
                dtype=self.training.config.autocast or torch.float32,
                max_tokens=self.max_tokens,
            )


class Checkpointer(Callback):
    """Save everything that the run's future depends on, every so many steps or seconds (counted
    since the last one), and after the last step.

    Args:
        directory: holds the checkpoints (`checkpoints.save_checkpoint`).
        config: saved beside the state; `resume` refuses a checkpoint with another one. JSON only.
        extras: further objects with `state_dict` and `load_state_dict`, by name.

    Under data parallelism one rank saves and all resume: with equal seeds their states are equal.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        training: TrainingStep,
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep: int = 2,
        config: Mapping[str, Any] | None = None,
        extras: Mapping[str, Stateful] | None = None,
    ) -> None:
        if every_steps is not None:
            _check_interval("every_steps", every_steps)
        if every_seconds is not None and not every_seconds > 0:
            raise ValueError(f"every_seconds must be positive; got {every_seconds}")
        self.directory, self.training, self.keep = Path(directory), training, keep
        self.every_steps, self.every_seconds = every_steps, every_seconds
        # As JSON will give it back, so that tuples compare equal to lists.
        self.config = json.loads(json.dumps(dict(config or {})))
        self.extras = dict(extras or {})
        self._last_time = time.monotonic()

    def resume(self) -> tuple[int, list[str]]:
        """Load the newest checkpoint that is whole. Returns the number of steps taken by then (0
        where there is none) and a sentence for each damaged one that was passed over.

        Raises:
            ValueError: the checkpoint was saved with another config; each difference is named.
        """
        path, damaged = latest_checkpoint(self.directory)
        if path is None:
            return 0, damaged
        saved = load_checkpoint(path, device=self.training.device)
        if saved.config != self.config:
            names = sorted({*saved.config, *self.config})
            changes = [
                f"{name} was {saved.config.get(name)!r} and is {self.config.get(name)!r}"
                for name in names
                if saved.config.get(name) != self.config.get(name)
            ]
            raise ValueError(f"{path} was saved with other settings: {'; '.join(changes)}")
        self.training.load_state_dict(saved.state)
        for name, extra in self.extras.items():
            extra.load_state_dict(saved.state["extras"][name])
        restore_random_state(saved.random)
        return self.training.step, damaged

    def save(self) -> Path:
        """Save a checkpoint now."""
        extras = {name: extra.state_dict() for name, extra in self.extras.items()}
        return save_checkpoint(
            self.directory,
            {**self.training.state_dict(), "extras": extras},
            step=self.training.step,
            config=self.config,
            keep=self.keep,
        )

    def on_start(self, state: LoopState) -> None:
        self._last_time = time.monotonic()

    def on_step(self, state: LoopState) -> None:
        due = self.every_steps is not None and state.step % self.every_steps == 0
        if self.every_seconds is not None:
            due = due or time.monotonic() - self._last_time >= self.every_seconds
        if due or state.step == state.max_steps or state.should_stop:
            self.save()
            self._last_time = time.monotonic()


class SampleWriter(Callback):
    """Let the model write as it learns: continue each prompt every `every_steps` steps and after
    the last, into a Markdown file with a section a time.

    The generator is seeded anew with (seed, step), so samples do not depend on when a run was
    resumed, and a resumed run cuts off the sections beyond the step it resumes from.
    """

    _HEADING = re.compile(r"^## Step (\d+)$", re.MULTILINE)

    def __init__(
        self,
        training: TrainingStep,
        codec: TextCodec,
        prompts: Sequence[str],
        path: str | os.PathLike[str],
        *,
        every_steps: int,
        max_new_tokens: int = 100,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> None:
        _check_interval("every_steps", every_steps)
        if not prompts:
            raise ValueError("give at least one prompt")
        # An empty prompt begins where a document does: after an end-of-text token.
        self._ids = [codec.encode(prompt) or [codec.eos_id] for prompt in prompts]
        if any(None in ids for ids in self._ids):
            raise ValueError("an empty prompt needs a tokenizer with an end-of-text token")
        longest, room = max(map(len, self._ids)), cast(DecoderModel, training.model).config
        if longest + max_new_tokens > room.max_seq_len:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens} are more than "
                f"the model's max_seq_len {room.max_seq_len}"
            )
        self.training, self.codec, self.every_steps = training, codec, every_steps
        self.prompts, self.path = list(prompts), Path(path)
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.sampling = sampling if sampling is not None else SamplingConfig(temperature=0.8)

    def on_start(self, state: LoopState) -> None:
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        for heading in self._HEADING.finditer(text):
            if int(heading[1]) > state.step:
                text = text[: heading.start()]
                break
        atomic_write(self.path, text)

    def on_step(self, state: LoopState) -> None:
        if state.step % self.every_steps and state.step != state.max_steps:
            return
        parts = [f"## Step {state.step}\n"]
        for prompt, completion in self.sample(state.step):
            # Four spaces make a line code in Markdown, whatever it holds; a heading never.
            quoted = "\n".join("    " + line for line in (prompt + completion).split("\n"))
            parts.append(quoted.rstrip() + "\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n".join(parts) + "\n")

    def sample(self, step: int) -> list[tuple[str, str]]:
        """(prompt, completion) for each prompt."""
        eos = self.codec.eos_id
        generator = torch.Generator(self.training.device)
        generator.manual_seed(self.seed * 1_000_003 + step)
        with self.training.averaged_weights() as model:
            rows = generate(
                cast(DecoderModel, model),
                cast(list[list[int]], self._ids),
                max_new_tokens=self.max_new_tokens,
                sampling=self.sampling,
                generator=generator,
                eos_id=eos,
            )
        texts = [self.codec.decode([token for token in row if token != eos]) for row in rows]
        return list(zip(self.prompts, texts, strict=True))


def _check_interval(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
