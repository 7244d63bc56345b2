"""Repair a run whose loss has jumped. Also reached through `training_callbacks`.

README: "Spikes".
"""

from __future__ import annotations

import copy
import math
import statistics
from collections import deque
from typing import Any

from train_loop import Callback, LoopState
from training import TrainingStep


class SpikeRecovery(Callback):
    """Notice that the loss has jumped, go back to the last good weights and leave out the batches
    since (as was done by hand for PaLM; Chowdhery et al. 2022, section 5.1).

    A loss is suspicious if it is not finite or lies more than `threshold` robust deviations (1.48
    times the median absolute deviation) above the median of the last `window` good ones. After
    `patience` suspicious steps in a row the state in memory is put back. The steps go on counting,
    so the schedule continues and the batches in between are not seen again.

    It reads every loss, which a GPU has to be waited for. To make resuming exact, hand it to the
    `Checkpointer` as one of its `extras`, and stand it before that in the list of callbacks. With
    `snapshot_every` equal to the checkpoints' interval a checkpoint is rarely larger for it: the
    weights in memory are then those that are saved anyway.

    Args:
        min_rise: a smaller rise, in nats, is never suspicious, however quiet the loss has been.
        max_recoveries: one more raises FloatingPointError: the run does not heal.
    """

    def __init__(
        self,
        training: TrainingStep,
        *,
        window: int = 64,
        threshold: float = 6.0,
        min_rise: float = 0.3,
        patience: int = 3,
        snapshot_every: int = 100,
        max_recoveries: int = 5,
    ) -> None:
        if min(window, patience, snapshot_every) < 1:
            raise ValueError(
                "window, patience and snapshot_every must be at least 1; got "
                f"{window}, {patience}, {snapshot_every}"
            )
        if not threshold > 0 or min_rise < 0 or max_recoveries < 0:
            raise ValueError(
                "threshold must be positive, min_rise and max_recoveries not negative; got "
                f"{threshold}, {min_rise}, {max_recoveries}"
            )
        self.training, self.threshold, self.min_rise = training, threshold, min_rise
        self.patience, self.snapshot_every = patience, snapshot_every
        self.max_recoveries = max_recoveries
        self.good_losses: deque[float] = deque(maxlen=window)
        self.suspicious = 0
        self.recoveries: list[tuple[int, int]] = []  # (step of the spike, step gone back to)
        self._snapshot: dict[str, Any] = {}
        self._snapshot_step = 0
        self._is_current = False  # the snapshot is the training's state at this moment

    def on_start(self, state: LoopState) -> None:
        if not self._snapshot:
            self._take_snapshot(state.step if not self._is_current else self._snapshot_step)

    def _take_snapshot(self, step: int) -> None:
        self._snapshot = copy.deepcopy(self.training.state_dict())
        self._snapshot_step, self._is_current = step, True

    def on_step(self, state: LoopState) -> None:
        self._is_current = False
        loss = state.metric("loss")
        if self.is_suspicious(loss):
            self.suspicious += 1
            if self.suspicious >= self.patience:
                self._recover(state, loss)
            return
        self.suspicious = 0
        self.good_losses.append(loss)
        if state.step % self.snapshot_every == 0:
            self._take_snapshot(state.step)

    def is_suspicious(self, loss: float) -> bool:
        """Whether a loss lies too far above the recent ones; too few of these judge nothing."""
        if not math.isfinite(loss):
            return True
        if len(self.good_losses) < max(8, (self.good_losses.maxlen or 0) // 4):
            return False
        middle = statistics.median(self.good_losses)
        spread = 1.4826 * statistics.median(abs(good - middle) for good in self.good_losses)
        return loss > middle + max(self.threshold * spread, self.min_rise)

    def _recover(self, state: LoopState, loss: float) -> None:
        if len(self.recoveries) >= self.max_recoveries:
            raise FloatingPointError(
                f"step {state.step}: the loss is {loss:g} after {len(self.recoveries)} recoveries "
                "from spikes; lower the learning rate, or look at these batches"
            )
        now = self.training.step
        self.training.load_state_dict(copy.deepcopy(self._snapshot))
        self.training.step = now
        self.recoveries.append((state.step, self._snapshot_step))
        self.suspicious, self._is_current = 0, True
        state.metrics["recovered_to_step"] = self._snapshot_step

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; the snapshot only where it is not the state saved beside."""
        return {
            "snapshot": None if self._is_current else self._snapshot,
            "snapshot_step": self._snapshot_step,
            "good_losses": list(self.good_losses),
            "suspicious": self.suspicious,
            "recoveries": [list(pair) for pair in self.recoveries],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict()` was taken; the training has its own state back already."""
        self._snapshot = state["snapshot"] or {}
        self._snapshot_step, self._is_current = state["snapshot_step"], not self._snapshot
        self.good_losses = deque(state["good_losses"], maxlen=self.good_losses.maxlen)
        self.suspicious = state["suspicious"]
        self.recoveries = [(spike, back) for spike, back in state["recoveries"]]
