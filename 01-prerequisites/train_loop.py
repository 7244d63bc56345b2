"""The only training loop of the course.

What a step does (forward, backward, update) and what happens around it (logging, evaluation,
checkpoints) differ from topic to topic; that steps follow each other does not. So `fit` is given
a step and callbacks, and every topic from the first perceptron to GRPO runs through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

Batch = TypeVar("Batch")


@dataclass
class LoopState:
    """What `fit` and its callbacks share.

    step: completed steps, counted from the very first run (a resumed run starts above 0).
    max_steps: the step count at which the loop ends.
    metrics: what the last step returned. A tensor is left where it is until `metric` reads it.
    should_stop: set it in a callback to end the loop after this step.
    interrupted: True in `on_end` if the loop ended by an exception or Ctrl-C. The model may
        then be half way through an update, so it must not be saved.
    """

    step: int
    max_steps: int
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
    should_stop: bool = False
    interrupted: bool = False

    def metric(self, name: str) -> float:
        """One metric of the last step as a float.

        Reading a tensor waits for the device to finish computing it, so a logger that reads only
        every hundredth step leaves the other ninety-nine unstalled. Raises ValueError for a name
        that the step did not return.
        """
        if name not in self.metrics:
            raise ValueError(f"no metric {name!r}; the last step returned {sorted(self.metrics)}")
        value = self.metrics[name] = float(self.metrics[name])
        return value


class Callback:
    """Something that happens around steps. Override what you need; all three do nothing."""

    def on_start(self, state: LoopState) -> None:
        """Before the first step."""

    def on_step(self, state: LoopState) -> None:
        """After every step; `state.step` counts it already."""

    def on_end(self, state: LoopState) -> None:
        """After the last step, and also when a step or another callback raised."""


def fit(
    step: Callable[[Batch], Mapping[str, float | Tensor]],
    batches: Iterable[Batch],
    callbacks: Sequence[Callback] = (),
    *,
    max_steps: int,
    start_step: int = 0,
) -> LoopState:
    """Call `step` with batch after batch until `max_steps` steps are complete.

    step: takes a batch, updates the model and returns metrics by name, floats or one-element
        tensors. Tensors are detached, so that the last step's graph is not kept alive.
    batches: exactly as many as there are steps are taken; the first is step `start_step`'s.
    callbacks: called in order. Each whose `on_start` succeeded has its `on_end` called whatever
        happens afterwards; then the exception goes on its way.

    Returns the final state. Raises ValueError if the batches run out early (a run that promised
    1,000 steps and quietly did 300 is a wrong result), or if 0 <= start_step <= max_steps does
    not hold; TypeError if a step returns no mapping.
    """
    if not 0 <= start_step <= max_steps:
        raise ValueError(
            f"0 <= start_step <= max_steps must hold, got start_step={start_step}, "
            f"max_steps={max_steps}"
        )
    state = LoopState(step=start_step, max_steps=max_steps, interrupted=True)
    started: list[Callback] = []
    try:
        for callback in callbacks:
            callback.on_start(state)
            started.append(callback)
        _run_steps(step, batches, callbacks, state)
        state.interrupted = False
    finally:
        with ExitStack() as endings:  # every on_end runs, even if another one raises
            for callback in reversed(started):
                endings.callback(callback.on_end, state)
    return state


def _run_steps(
    step: Callable[[Batch], Mapping[str, float | Tensor]],
    batches: Iterable[Batch],
    callbacks: Sequence[Callback],
    state: LoopState,
) -> None:
    iterator = iter(batches)
    while state.step < state.max_steps and not state.should_stop:
        try:
            batch = next(iterator)
        except StopIteration:
            raise ValueError(
                f"the batches ran out after step {state.step} of {state.max_steps}"
            ) from None
        metrics = step(batch)
        if not isinstance(metrics, Mapping):
            raise TypeError(f"a step must return its metrics by name, got {metrics!r}")
        state.metrics = {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in metrics.items()
        }
        state.step += 1
        for callback in callbacks:
            callback.on_step(state)
