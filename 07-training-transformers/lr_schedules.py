"""Learning-rate schedules: pure functions from a step to a multiplier of the peak rate.

Each builder checks its numbers and returns a `Schedule`: called with the number of optimiser steps
already taken (0 before the first), it gives the factor by which every group's own learning rate is
multiplied. Nothing is stored, so resuming needs no scheduler state.

    schedule = cosine(total_steps=1000, warmup_steps=100)
    [schedule(step) for step in (0, 50, 100, 550, 1000)]  # [0.0, 0.5, 1.0, 0.5, 0.0]

With a warm-up the first step has factor 0, as in `transformers`: it fills the moments of the
optimiser and leaves the weights alone. README: "Schedules and warm-up".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Callable[[int], float]


def constant(*, warmup_steps: int = 0) -> Schedule:
    """1 after a linear warm-up from 0 over `warmup_steps`."""
    _check_steps(warmup_steps=warmup_steps)

    def multiplier(step: int) -> float:
        return _warmup(step, warmup_steps)

    return multiplier


def linear(total_steps: int, *, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Warm-up, then a straight line from 1 down to `final` at `total_steps`, constant after.

    Raises:
        ValueError: warm-up longer than the run, a negative number, or `final` outside [0, 1].
    """
    return polynomial(total_steps, warmup_steps=warmup_steps, final=final, power=1.0)


def polynomial(
    total_steps: int, *, warmup_steps: int = 0, final: float = 0.0, power: float = 2.0
) -> Schedule:
    """Warm-up, then `final + (1 - final) * (1 - t)**power`, t from 0 to 1 over the rest.

    `transformers` states its end as a learning rate: `final = lr_end / lr_init` is the same curve.
    """
    _check_run(total_steps, warmup_steps, final)
    if not power > 0:
        raise ValueError(f"power must be positive; got {power}")

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps)
        left = 1.0 - _progress(step, warmup_steps, total_steps)
        return final + (1.0 - final) * left**power

    return multiplier


def cosine(
    total_steps: int,
    *,
    warmup_steps: int = 0,
    final: float = 0.0,
    cycles: float = 0.5,
    restarts: bool = False,
) -> Schedule:
    """Warm-up, then along a cosine from 1 to `final` (SGDR, Loshchilov and Hutter 2017, eq. 5).

    `cycles` counts whole waves: the usual half wave ends at the bottom. With `restarts` the
    factor falls `cycles` (then a whole number) times and jumps back to 1 in between.
    """
    _check_run(total_steps, warmup_steps, final)
    if not cycles > 0:
        raise ValueError(f"cycles must be positive; got {cycles}")
    if restarts and cycles != int(cycles):
        raise ValueError(f"with restarts, cycles must be a whole number; got {cycles}")

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps)
        progress = _progress(step, warmup_steps, total_steps)
        if restarts:
            # At the very end the remainder would be 0, the top of one more wave.
            phase = math.pi * ((cycles * progress) % 1.0) if progress < 1.0 else math.pi
        else:
            phase = 2.0 * math.pi * cycles * progress
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(phase))

    return multiplier


def trapezoid(
    total_steps: int,
    *,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    final: float = 0.0,
    decay: Literal["linear", "1-sqrt", "cosine"] = "linear",
) -> Schedule:
    """Warm-up, stable, decay (WSD): up, level at 1, and down to `final` in the last `decay_steps`.

    The level part fits any budget: a longer run is the same run until its decay begins, so one
    run serves many lengths (Hu et al. 2024; Hägele et al. 2024, whose "1-sqrt" falls steeply at
    first). `decay_steps` is a fifth of the run unless given.
    """
    _check_run(total_steps, warmup_steps, final)
    if decay_steps is None:
        decay_steps = min(math.ceil(total_steps / 5), total_steps - warmup_steps)
    _check_steps(decay_steps=decay_steps)
    if warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"warm-up and decay must fit the run: {warmup_steps} + {decay_steps} > {total_steps}"
        )
    if decay not in ("linear", "1-sqrt", "cosine"):
        raise ValueError(f"decay must be linear, 1-sqrt or cosine; got {decay!r}")
    decay_start = total_steps - decay_steps

    def multiplier(step: int) -> float:
        if step < decay_start:
            return _warmup(step, warmup_steps)
        progress = _progress(step, decay_start, total_steps)
        if decay == "linear":
            left = 1.0 - progress
        elif decay == "1-sqrt":
            left = 1.0 - math.sqrt(progress)
        else:
            left = 0.5 * (1.0 + math.cos(math.pi * progress))
        return final + (1.0 - final) * left

    return multiplier


def inverse_sqrt(*, warmup_steps: int, timescale: int | None = None) -> Schedule:
    """Warm-up, then 1 / sqrt(1 + (step - warmup_steps) / timescale); timescale = warm-up if not
    given, which makes it sqrt(warmup_steps / step). It never ends, so it needs no total.
    """
    _check_steps(warmup_steps=warmup_steps)
    scale = timescale if timescale is not None else (warmup_steps or 10_000)
    if scale <= 0:
        raise ValueError(f"timescale must be positive; got {scale}")

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps)
        return 1.0 / math.sqrt(1.0 + (step - warmup_steps) / scale)

    return multiplier


def noam(d_model: int, *, warmup_steps: int, factor: float = 1.0) -> Schedule:
    """`factor * d_model**-0.5 * min(n**-0.5, n * warmup_steps**-1.5)` with n = step + 1 (Vaswani et
    al. 2017, section 5.3). It is a learning rate and not a fraction of one: use it with lr = 1.
    Its peak, at n = warmup_steps, is `factor / sqrt(d_model * warmup_steps)`.
    """
    if d_model < 1 or warmup_steps < 1 or not factor > 0:
        raise ValueError(
            f"d_model, warmup_steps and factor must be positive; got {d_model}, {warmup_steps}, "
            f"{factor}"
        )

    def multiplier(step: int) -> float:
        number = step + 1  # the paper counts from 1
        return factor * d_model**-0.5 * min(number**-0.5, number * warmup_steps**-1.5)

    return multiplier


def _warmup(step: int, warmup_steps: int) -> float:
    return step / warmup_steps if step < warmup_steps else 1.0


def _progress(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` (0) to `end` (1), 1 beyond; a stretch of no steps is done."""
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


def _check_steps(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{name} must be a whole number of at least 0; got {count!r}")


def _check_run(total_steps: int, warmup_steps: int, final: float) -> None:
    _check_steps(total_steps=total_steps, warmup_steps=warmup_steps)
    if total_steps < 1 or warmup_steps > total_steps:
        raise ValueError(
            f"a run needs a step, and no more warm-up than steps; got {total_steps=}, "
            f"{warmup_steps=}"
        )
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final must be a fraction of the peak, in [0, 1]; got {final}")
