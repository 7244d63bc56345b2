"""Scripts print what they find, keep all of it, and say which call found it."""

from __future__ import annotations

import pytest

from experiment_log import ExperimentLog
from lab import new_figure, read_results, read_run, script_parser


def parsed(tmp_path, *arguments):
    parser = script_parser("A script.", default_out=tmp_path)
    return parser.parse_args(["--out", str(tmp_path / "new"), *arguments])


def test_all_that_was_found_is_kept_and_what_can_be_read_is_printed(tmp_path, capsys):
    log = ExperimentLog("topic.py", parsed(tmp_path))
    table = {"columns": ["a", "b"], "rows": [["x", 1.25]], "formats": ["", ".1f"]}
    log.run("How many?", lambda: {"count": 12345, "name": "this one", "curve": [1, 2]})
    log.run("Which?", lambda: {"world": {"table": table, "bleu": 90.5}, "world_detail": {"z": 1}})
    log.draw(new_figure()[0], "drawn")
    log.finish(seeds=[0, 1])
    printed = capsys.readouterr().out
    for expected in (
        "How many?",
        "count: 1.234e+04",
        "name: this one",
        "| x   | 1.2 |",
        "world.bleu: 90.5",
    ):
        assert expected in printed
    assert "curve" not in printed
    assert "z" not in printed
    results = read_results(tmp_path / "new" / "results.json")
    assert results["world"] == {"table": table, "bleu": 90.5}
    assert (results["count"], results["curve"], results["world_detail"]["z"]) == (12345, [1, 2], 1)
    assert (tmp_path / "new" / "figures" / "drawn.png").stat().st_size > 1000
    run = read_run(tmp_path / "new" / "results.json")
    assert (run["command"], run["seeds"], run["device"]) == ("topic.py", [0, 1], "cpu")
    assert run["wall_seconds"] >= 0


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(["--smoke"], "topic.py --smoke"), (["--seed", "3"], "topic.py --seed 3")],
)
def test_options_that_change_results_stand_in_the_command(tmp_path, arguments, command):
    log = ExperimentLog("topic.py", parsed(tmp_path, *arguments))
    log.finish(seeds=[0])
    assert read_run(tmp_path / "new" / "results.json")["command"] == command


def test_a_failing_experiment_leaves_earlier_results_on_disk_as_they_were(tmp_path):
    first = ExperimentLog("topic.py", parsed(tmp_path))
    first.run("?", lambda: {"x": 1})
    first.finish(seeds=[0])
    second = ExperimentLog("topic.py", parsed(tmp_path))
    with pytest.raises(ZeroDivisionError):
        second.run("?", lambda: {"x": 1 / 0})
    second.results["x"] = float("nan")
    with pytest.raises(ValueError, match=r"NaN|JSON"):
        second.finish(seeds=[0])
    assert read_results(tmp_path / "new" / "results.json") == {"x": 1}
