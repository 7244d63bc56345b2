"""The band covers what it promises, and the check says which way a curve is off."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from loss_band import band_from_json, check_curve, loss_band, read_losses, smoothed_loss


def _curves(count: int, *, length: int = 60, seed: int = 0) -> list[list[float]]:
    """Falling curves that differ from each other by one level each, drawn from N(0, 0.1^2)."""
    rng = np.random.default_rng(seed)
    shape = 3.0 + 4.0 * np.exp(-np.arange(length) / 20)
    return [list(shape + 0.1 * level) for level in rng.standard_normal(count)]


def test_band_by_hand() -> None:
    """Values 1, 2, 3: mean 2, s = 1, t_2 = 4.3027, so 2 ± 4.3027 · sqrt(4/3) = 2 ± 4.968."""
    band = loss_band([[1.0], [2.0], [3.0]], points=1, window=1)
    assert band.steps == (1,)
    assert band.mean == (2.0,)
    assert band.high[0] - 2 == pytest.approx(4.3027 * math.sqrt(4 / 3), abs=1e-3)
    assert band.low[0] + band.high[0] == pytest.approx(4.0)


def test_the_next_run_is_inside_as_often_as_promised() -> None:
    """1,000 bands of five runs each: the sixth run's last value is inside in 95 % of them."""
    inside = 0
    for trial in range(1000):
        *runs, new = _curves(6, length=8, seed=trial)
        band = loss_band(runs, points=1, window=1)
        inside += band.low[-1] <= new[-1] <= band.high[-1]
    # Four standard errors of a share of 0.95 in 1,000.
    assert abs(inside / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_verdicts() -> None:
    runs = _curves(5)
    band = loss_band(runs, points=12, window=5)
    normal = check_curve(runs[0], band)
    assert (normal.verdict, normal.share_inside, normal.first_outside) == ("normal", 1.0, None)
    slow = check_curve([loss + 1.0 for loss in runs[0]], band)
    assert (slow.verdict, slow.share_inside) == ("above", 0.0)
    assert slow.first_outside == band.steps[0]
    assert check_curve([loss - 1.0 for loss in runs[0]], band).verdict == "below"
    jumped = runs[0][:40] + [loss + 2.0 for loss in runs[0][40:]]
    verdict = check_curve(jumped, band)
    assert verdict.verdict == "above"
    assert verdict.first_outside is not None
    assert 40 < verdict.first_outside <= 45
    assert check_curve([*runs[0][:59], math.nan], band).verdict == "above"


def test_half_a_run_is_compared_as_far_as_it_goes() -> None:
    runs = _curves(4)
    band = loss_band(runs, points=12, window=5)
    verdict = check_curve(runs[1][:31], band)
    assert (verdict.verdict, verdict.last_step) == ("normal", 30)


def test_a_late_return_into_the_band_is_not_normal() -> None:
    runs = _curves(5)
    band = loss_band(runs, points=12, window=1)
    curve = [loss + 3.0 for loss in runs[0][:50]] + runs[0][50:]
    assert check_curve(curve, band).verdict == "above"


def test_smoothing_is_a_mean_of_what_came_before() -> None:
    assert smoothed_loss([4.0, 2.0, 0.0, 9.0], 3, 2) == 1.0
    assert smoothed_loss([4.0, 2.0], 2, 10) == 3.0
    with pytest.raises(ValueError, match="there is no step 3 among 2 losses"):
        smoothed_loss([1.0, 1.0], 3, 2)


def test_bands_survive_json() -> None:
    band = loss_band(_curves(3))
    assert band_from_json(json.loads(json.dumps(band.as_json()))) == band


def test_curves_from_files(tmp_path) -> None:
    lines = [{"step": n, "loss": 5.0 - n, "lr": 1.0} for n in (1, 2, 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (tmp_path / "a.csv").write_text("step,loss\n1,4\n2,3\n3,2\n", "utf-8")
    assert read_losses(tmp_path / "a.jsonl") == read_losses(tmp_path / "a.csv") == [4.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", r"from .jsonl or .csv; got a.txt"),
        ("a.csv", "step,loss\n1,4\n3,2\n", "every step once, from 1"),
        ("a.csv", "step,nats\n1,4\n", "without a step and a loss"),
        ("a.jsonl", '{"step": 1, "loss": null}\n', "without a step and a loss"),
    ],
)
def test_bad_files(tmp_path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_losses(tmp_path / name)


def test_bad_curves() -> None:
    with pytest.raises(ValueError, match=r"at least two curves of one length; got lengths \[3\]"):
        loss_band([[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match=r"got lengths \[1, 2\]"):
        loss_band([[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="end before the band's first step, 5"):
        check_curve([1.0], loss_band(_curves(2), points=12))
