"""Schedules beside `transformers` and `torch`, and their numbers by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lr_schedules import (
    constant,
    cosine,
    inverse_sqrt,
    linear,
    noam,
    polynomial,
    trapezoid,
)

TOTAL, WARMUP = 97, 13


def rates(scheduler, optimizer, count):
    """The learning rates that a torch scheduler gives to its first `count` steps."""
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def optimizer_at(lr):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def wsd(optimizer, **options):
    return transformers.get_wsd_schedule(
        optimizer, num_warmup_steps=WARMUP, num_training_steps=TOTAL, **options
    )


PARITY = {
    "constant": (
        constant(warmup_steps=WARMUP),
        lambda o: transformers.get_constant_schedule_with_warmup(o, WARMUP),
    ),
    "linear": (
        linear(TOTAL, warmup_steps=WARMUP),
        lambda o: transformers.get_linear_schedule_with_warmup(o, WARMUP, TOTAL),
    ),
    "cosine": (
        cosine(TOTAL, warmup_steps=WARMUP),
        lambda o: transformers.get_cosine_schedule_with_warmup(o, WARMUP, TOTAL),
    ),
    "cosine, three half waves": (
        cosine(TOTAL, warmup_steps=WARMUP, cycles=1.5),
        lambda o: transformers.get_cosine_schedule_with_warmup(o, WARMUP, TOTAL, 1.5),
    ),
    "cosine to a tenth": (
        cosine(TOTAL, warmup_steps=WARMUP, final=0.1),
        lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(
            o, WARMUP, TOTAL, min_lr_rate=0.1
        ),
    ),
    "cosine with restarts": (
        cosine(TOTAL, warmup_steps=WARMUP, cycles=3, restarts=True),
        lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(
            o, WARMUP, TOTAL, num_cycles=3
        ),
    ),
    "polynomial": (
        polynomial(TOTAL, warmup_steps=WARMUP, final=0.2, power=1.7),
        lambda o: transformers.get_polynomial_decay_schedule_with_warmup(
            o, WARMUP, TOTAL, lr_end=0.2 * 0.003, power=1.7
        ),
    ),
    "inverse square root": (
        inverse_sqrt(warmup_steps=WARMUP),
        lambda o: transformers.get_inverse_sqrt_schedule(o, WARMUP),
    ),
    "inverse square root, own timescale": (
        inverse_sqrt(warmup_steps=WARMUP, timescale=31),
        lambda o: transformers.get_inverse_sqrt_schedule(o, WARMUP, timescale=31),
    ),
    "trapezoid, linear": (
        trapezoid(TOTAL, warmup_steps=WARMUP, decay_steps=29),
        lambda o: wsd(o, num_decay_steps=29, decay_type="linear"),
    ),
    "trapezoid, 1-sqrt": (
        trapezoid(TOTAL, warmup_steps=WARMUP, decay_steps=29, decay="1-sqrt"),
        lambda o: wsd(o, num_decay_steps=29, decay_type="1-sqrt"),
    ),
    "trapezoid, cosine": (
        trapezoid(TOTAL, warmup_steps=WARMUP, decay_steps=29, decay="cosine"),
        lambda o: wsd(o, num_decay_steps=29, decay_type="cosine"),
    ),
}


@pytest.mark.parametrize("name", PARITY)
def test_multipliers_are_those_of_transformers(name):
    schedule, build = PARITY[name]
    optimizer = optimizer_at(0.003)
    theirs = rates(build(optimizer), optimizer, TOTAL + 1)
    ours = [0.003 * schedule(step) for step in range(TOTAL + 1)]
    assert ours == pytest.approx(theirs, abs=0.003e-7)


def test_trapezoid_with_a_floor_is_that_of_transformers_after_the_warmup():
    # Before: theirs warms up from the floor, ours from 0.
    schedule = trapezoid(TOTAL, warmup_steps=WARMUP, decay_steps=29, final=0.1, decay="1-sqrt")
    optimizer = optimizer_at(1.0)
    scheduler = wsd(optimizer, num_decay_steps=29, decay_type="1-sqrt", min_lr_ratio=0.1)
    theirs = rates(scheduler, optimizer, TOTAL + 9)
    ours = [schedule(step) for step in range(TOTAL + 9)]
    assert ours[WARMUP:] == pytest.approx(theirs[WARMUP:], abs=1e-7)


def test_multipliers_are_those_of_torch():
    schedulers = torch.optim.lr_scheduler
    for schedule, build in (
        (
            cosine(TOTAL, final=0.05),
            lambda o: schedulers.CosineAnnealingLR(o, TOTAL, eta_min=0.05),
        ),
        (
            linear(TOTAL, final=0.25),
            lambda o: schedulers.LinearLR(o, 1.0, end_factor=0.25, total_iters=TOTAL),
        ),
        (
            polynomial(TOTAL, power=2.5),
            lambda o: schedulers.PolynomialLR(o, total_iters=TOTAL, power=2.5),
        ),
    ):
        optimizer = optimizer_at(1.0)
        theirs = rates(build(optimizer), optimizer, TOTAL + 1)
        assert [schedule(step) for step in range(TOTAL + 1)] == pytest.approx(theirs, abs=1e-7)


def test_noam_is_the_formula_of_the_paper():
    schedule = noam(512, warmup_steps=4000)
    # n = 1, n = warm-up (the peak, 1 / sqrt(512 * 4000)), and n = 4 * warm-up: half the peak.
    peak = 1 / math.sqrt(512 * 4000)
    assert schedule(0) == pytest.approx(peak / 4000, rel=1e-12)
    assert schedule(3999) == pytest.approx(peak, rel=1e-12)
    assert schedule(15999) == pytest.approx(peak / 2, rel=1e-12)
    assert max(range(8000), key=schedule) == 3999


def test_the_worked_numbers_of_the_docstrings():
    schedule = cosine(total_steps=1000, warmup_steps=100)
    shown = [schedule(step) for step in (0, 50, 100, 550, 1000)]
    assert shown == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0], abs=1e-12)
    level = trapezoid(100, warmup_steps=10)  # decays over the last fifth
    assert [level(step) for step in (0, 5, 10, 80, 90, 100, 500)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    )
    steep = trapezoid(100, decay_steps=100, decay="1-sqrt")
    assert [steep(step) for step in (0, 25, 100)] == pytest.approx([1.0, 0.5, 0.0])
    assert inverse_sqrt(warmup_steps=100)(400) == pytest.approx(0.5)


@given(
    total=st.integers(1, 300),
    share=st.floats(0, 1),
    final=st.floats(0, 1),
    power=st.floats(0.1, 4),
)
def test_every_ending_schedule_rises_then_falls_to_its_end(total, share, final, power):
    warmup = int(share * total)
    for schedule in (
        linear(total, warmup_steps=warmup, final=final),
        polynomial(total, warmup_steps=warmup, final=final, power=power),
        cosine(total, warmup_steps=warmup, final=final),
        trapezoid(total, warmup_steps=warmup, final=final),
        trapezoid(total, warmup_steps=warmup, final=final, decay="1-sqrt"),
    ):
        values = [schedule(step) for step in range(total + 3)]
        up, down = values[: warmup + 1], values[warmup:]
        if warmup < total:
            assert values[warmup] == 1.0
            assert up == sorted(up)
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(down))
        assert values[total:] == pytest.approx([final] * 3, abs=1e-12)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: linear(10, warmup_steps=11), "warmup_steps=11"),
        (lambda: linear(0), "total_steps=0"),
        (lambda: cosine(10, final=1.5), "1.5"),
        (lambda: cosine(10, final=-0.1), "-0.1"),
        (lambda: cosine(10, cycles=0), "cycles"),
        (lambda: cosine(10, cycles=1.5, restarts=True), "1.5"),
        (lambda: polynomial(10, power=0), "power"),
        (lambda: trapezoid(10, warmup_steps=6, decay_steps=5), "6 [+] 5 > 10"),
        (lambda: trapezoid(10, decay="sqrt"), "'sqrt'"),  # type: ignore[arg-type]
        (lambda: constant(warmup_steps=-1), "-1"),
        (lambda: constant(warmup_steps=2.5), "2.5"),  # type: ignore[arg-type]
        (lambda: inverse_sqrt(warmup_steps=5, timescale=0), "timescale"),
        (lambda: noam(512, warmup_steps=0), "512, 0"),
    ],
)
def test_wrong_numbers_are_named(build, says):
    with pytest.raises(ValueError, match=says):
        build()
