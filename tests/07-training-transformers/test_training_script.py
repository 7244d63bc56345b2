"""What a reader does with the script besides the experiments: train one recipe, check a curve."""

from __future__ import annotations

import json

import numpy as np
import pytest

import training_transformers
from lab import read_results
from loss_band import band_from_json, read_losses


@pytest.fixture
def curve(tmp_path):
    """Writes losses as a metrics file and gives its path."""

    def write(losses) -> str:
        path = tmp_path / "metrics.jsonl"
        lines = [json.dumps({"step": n, "loss": loss}) for n, loss in enumerate(losses, start=1)]
        path.write_text("\n".join(lines), "utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("recipe", ["base", "2019", "today"])
def test_the_mean_curve_is_normal_and_a_shifted_one_is_not(recipe, curve, capsys) -> None:
    bands = read_results(training_transformers._HERE / "results.json")["bands"]
    band = band_from_json(bands[recipe])
    steps = np.arange(1, band.steps[-1] + 1)
    mean = np.interp(steps, np.array(band.steps) - band.window / 2, band.mean)
    # Before the first point the mean is not known, and an interpolation there says nothing.
    options = ["--recipe", recipe]
    assert training_transformers.main(["--check", curve(mean + 1.0), *options]) == 1
    assert "above the band" in capsys.readouterr().out
    assert training_transformers.main(["--check", curve(mean - 1.0), *options]) == 1
    assert "below the band" in capsys.readouterr().out
    training_transformers.main(["--check", curve(mean), *options])
    told = capsys.readouterr().out
    assert f"at step {band.steps[-1]}: " in told


def test_a_check_of_nothing_is_refused(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        training_transformers.main(["--check", str(tmp_path / "none.jsonl")])
    assert "none.jsonl" in capsys.readouterr().err


def test_one_recipe_trains_and_goes_on_where_it_was(tmp_path, capsys) -> None:
    command = ["--train", "base", "--smoke", "--seed", "2", "--checkpoint-every", "25"]
    assert training_transformers.main([*command, "--out", str(tmp_path)]) == 0
    losses = read_losses(tmp_path / "metrics.jsonl")
    assert len(losses) == 60
    assert losses[-1] < losses[0]
    assert "parameters, 200 steps of 1,024 tokens" in capsys.readouterr().out
    assert training_transformers.main([*command, "--out", str(tmp_path)]) == 0
    assert "going on from step 60" in capsys.readouterr().out
    assert read_losses(tmp_path / "metrics.jsonl") == losses
    with pytest.raises(ValueError, match="seed was 2 and is 3"):
        training_transformers.main([*command, "--seed", "3", "--out", str(tmp_path)])
