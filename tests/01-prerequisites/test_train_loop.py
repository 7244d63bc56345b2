"""The loop: order of events, what a callback may do, and endings of every kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from train_loop import Callback, LoopState, fit


class Recorder(Callback):
    """Writes down every event, with the step count that it saw."""

    def __init__(self, log: list[str], name: str = "a") -> None:
        self.log, self.name = log, name

    def on_start(self, state: LoopState) -> None:
        self.log.append(f"{self.name} start {state.step}")

    def on_step(self, state: LoopState) -> None:
        self.log.append(f"{self.name} step {state.step}")

    def on_end(self, state: LoopState) -> None:
        self.log.append(f"{self.name} end {state.step} {state.interrupted}")


def recording_step(log: list[str]):
    def step(batch: int) -> dict[str, float]:
        log.append(f"batch {batch}")
        return {"loss": 1.0 / (batch + 1)}

    return step


def test_events_come_in_order_with_completed_steps() -> None:
    log: list[str] = []
    state = fit(recording_step(log), [0, 1], [Recorder(log, "a"), Recorder(log, "b")], max_steps=2)
    assert log == [
        "a start 0",
        "b start 0",
        "batch 0",
        "a step 1",
        "b step 1",
        "batch 1",
        "a step 2",
        "b step 2",
        "a end 2 False",
        "b end 2 False",
    ]
    assert (state.step, state.max_steps, state.metric("loss")) == (2, 2, 0.5)


def test_no_more_batches_are_taken_than_steps_made() -> None:
    """A batch taken and dropped would shift every batch after a resume."""
    taken: list[int] = []

    def batches() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    fit(lambda batch: {}, batches(), max_steps=3)
    assert taken == [0, 1, 2]


def test_a_resumed_loop_counts_on() -> None:
    log: list[str] = []
    state = fit(recording_step(log), [7, 8], [Recorder(log)], max_steps=9, start_step=7)
    assert log[:3] == ["a start 7", "batch 7", "a step 8"]
    assert state.step == 9
    state = fit(recording_step(log), [], [Recorder(log)], max_steps=9, start_step=9)
    assert state.step == 9
    assert log[-2:] == ["a start 9", "a end 9 False"]


def test_a_callback_can_stop_the_loop_after_all_have_seen_the_step() -> None:
    log: list[str] = []

    class Stop(Callback):
        def on_step(self, state: LoopState) -> None:
            state.should_stop = state.step == 2

    state = fit(recording_step(log), range(10), [Stop(), Recorder(log)], max_steps=10)
    assert state.step == 2
    assert not state.interrupted
    assert log[-2:] == ["a step 2", "a end 2 False"]


@pytest.mark.parametrize("error", [RuntimeError("diverged"), KeyboardInterrupt()])
def test_on_end_runs_when_a_step_raises(error: BaseException) -> None:
    log: list[str] = []

    def step(batch: int) -> dict[str, float]:
        if batch == 1:
            raise error
        return {}

    with pytest.raises(type(error)):
        fit(step, range(5), [Recorder(log, "a"), Recorder(log, "b")], max_steps=5)
    assert log[-2:] == ["a end 1 True", "b end 1 True"]


def test_on_end_runs_for_those_that_started_and_whatever_the_others_do() -> None:
    log: list[str] = []

    class Broken(Recorder):
        def on_start(self, state: LoopState) -> None:
            raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        fit(
            recording_step(log),
            range(5),
            [Recorder(log, "a"), Broken(log, "b"), Recorder(log, "c")],
            max_steps=5,
        )
    assert log == ["a start 0", "a end 0 True"]

    class BadEnding(Recorder):
        def on_end(self, state: LoopState) -> None:
            raise OSError("no disk either")

    with pytest.raises(OSError, match="no disk either"):
        fit(recording_step(log), range(5), [BadEnding(log, "a"), Recorder(log, "b")], max_steps=1)
    assert log[-1] == "b end 1 False"


def test_metrics_are_detached_and_read_once() -> None:
    weight = torch.ones((), requires_grad=True)
    seen: list[LoopState] = []

    class Keep(Callback):
        def on_step(self, state: LoopState) -> None:
            seen.append(state)

    state = fit(lambda batch: {"loss": weight * batch, "lr": 0.1}, [3.0], [Keep()], max_steps=1)
    assert seen == [state]
    loss = state.metrics["loss"]
    assert isinstance(loss, Tensor)  # not yet waited for
    assert not loss.requires_grad
    assert (state.metric("loss"), state.metric("lr")) == (3.0, 0.1)
    assert state.metrics["loss"] == 3.0
    with pytest.raises(
        ValueError, match=r"no metric 'los'; the last step returned \['loss', 'lr'\]"
    ):
        state.metric("los")


def test_it_trains() -> None:
    """Gradient descent on (w - 3)^2 halves the distance at each step for a rate of 1/4."""
    weight = torch.zeros((), requires_grad=True)

    def step(rate: float) -> dict[str, Tensor]:
        loss = (weight - 3.0).square()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight.sub_(rate * gradient)
        return {"loss": loss}

    state = fit(step, iter(lambda: 0.25, None), max_steps=20)
    assert state.metric("loss") == pytest.approx(9.0 / 4.0**19)
    assert weight.item() == pytest.approx(3.0 - 3.0 / 2.0**20)


def test_callers_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="the batches ran out after step 2 of 5"):
        fit(lambda batch: {}, [0, 1], max_steps=5)
    with pytest.raises(ValueError, match="got start_step=6, max_steps=5"):
        fit(lambda batch: {}, [], max_steps=5, start_step=6)
    with pytest.raises(ValueError, match="got start_step=-1"):
        fit(lambda batch: {}, [], max_steps=5, start_step=-1)
    with pytest.raises(TypeError, match=r"must return its metrics by name, got 0\.5"):
        fit(lambda batch: 0.5, [0], max_steps=1)  # type: ignore[arg-type, return-value]
