"""Results are run, quoted and never mixed up; pages that quote what is not there change nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

import execute_notebooks
import measure
from lab import renew_markers

ROOT = Path(__file__).parent.parent

SCRIPT = """
import argparse
from pathlib import Path
from lab import write_results

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true")
smoke = parser.parse_args().smoke
out = Path(__file__).parent / {out!r}
if not smoke:
    write_results(out, {{"x": {x}}}, command="c", seeds=[0], device="cpu", wall_seconds=0)
raise SystemExit({code})
"""


@pytest.fixture
def tree(tmp_path):
    """Two topics with results and a benchmark, each with a page that quotes them."""
    for name, x in (("01-first-steps", 1), ("02-more", 2)):
        (tmp_path / name).mkdir()
        script = name[3:].replace("-", "_") + ".py"
        (tmp_path / name / script).write_text(SCRIPT.format(out="results.json", x=x, code=0))
        (tmp_path / name / "README.md").write_text(
            "<!-- r:x -->?<!-- /r --> <!-- r:benchmarks.race.x -->?<!-- /r -->"
        )
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "race.py").write_text(
        SCRIPT.format(out="results/race.json", x=3, code=0)
    )
    (tmp_path / "benchmarks" / "README.md").write_text("<!-- r:race.x -->?<!-- /r -->")
    (tmp_path / "README.md").write_text(
        "<!-- r:02-more.x -->?<!-- /r --> <!-- r:benchmarks.race.x -->?<!-- /r -->"
    )
    return tmp_path


def test_every_page_quotes_what_is_its_own(tree):
    scripts = [measure.topic_script(topic) for topic in measure.topic_folders(tree)]
    assert measure.run(scripts, tree, smoke=False) == 0
    assert measure.main(["bench"], tree) == 0
    assert (tree / "01-first-steps" / "README.md").read_text() == (
        "<!-- r:x -->1<!-- /r --> <!-- r:benchmarks.race.x -->3<!-- /r -->"
    )
    assert (tree / "benchmarks" / "README.md").read_text() == "<!-- r:race.x -->3<!-- /r -->"
    assert (tree / "README.md").read_text() == (
        "<!-- r:02-more.x -->2<!-- /r --> <!-- r:benchmarks.race.x -->3<!-- /r -->"
    )
    assert measure.renew_pages(tree) == []


def test_a_page_that_quotes_what_is_not_there_changes_nothing(tree):
    measure.main(["bench", "--smoke"], tree)
    before = {page: page.read_text() for page in tree.rglob("*.md")}
    with pytest.raises(ValueError, match=r"README.md: marker 'x'"):
        measure.renew_pages(tree)
    assert {page: page.read_text() for page in tree.rglob("*.md")} == before


def test_a_script_that_fails_stops_the_rest(tree, capsys):
    path = tree / "01-first-steps" / "first_steps.py"
    path.write_text(path.read_text().replace("SystemExit(0)", "SystemExit(3)"))
    assert measure.main(["results"], tree) == 3
    assert not (tree / "02-more" / "results.json").exists()
    assert "first_steps.py ended with exit code 3" in capsys.readouterr().err


def test_filters_and_smoke(tree):
    assert measure.main(["results", "--topic", "02", "--smoke"], tree) == 0
    assert not list(tree.rglob("results.json"))
    assert measure.main(["results", "--topic", "09"], tree) == 2
    assert measure.main(["bench", "--name", "marathon"], tree) == 2


@pytest.mark.parametrize(
    "page", measure.quoting_pages(), ids=lambda page: str(page.relative_to(ROOT))
)
def test_readme_numbers_equal_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert renew_markers(text, measure.quoting_pages()[page]) == text, "run make results"


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("[0-9][0-9]-*/results.json"), *ROOT.glob("benchmarks/results/*.json")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_results_say_where_they_came_from(path):
    run = json.loads(path.read_text(encoding="utf-8"))["run"]
    assert {"command", "commit", "seeds", "versions", "device", "wall_seconds"} <= run.keys()
    assert "--smoke" not in run["command"], "a smoke run's numbers say nothing"


# --- notebooks -------------------------------------------------------------------------------


def write_notebook(path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata["kernelspec"] = {"name": "elsewhere", "display_name": "my laptop"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def test_notebooks_are_executed_in_place_and_alike_every_time(tmp_path):
    path = tmp_path / "05-x" / "notebook.ipynb"
    write_notebook(path, "import os, sys; x = os.getcwd()", "print(x); sys.executable")
    assert execute_notebooks.main(["--topic", "05"], tmp_path) == 0
    once = path.read_text()
    second = nbformat.read(path, as_version=4).cells[1]
    assert second.outputs[0].text.strip() == str(path.parent)
    assert Path(eval(second.outputs[1].data["text/plain"])).samefile(sys.executable)
    assert "my laptop" not in once
    assert "iopub" not in once
    assert execute_notebooks.main([], tmp_path) == 0
    assert path.read_text() == once


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path, capsys):
    path = tmp_path / "05-x" / "notebook.ipynb"
    write_notebook(path, "1 / 0")
    before = path.read_text()
    with pytest.raises(CellExecutionError):
        execute_notebooks.execute(path)
    assert execute_notebooks.main([], tmp_path) == 1
    assert path.read_text() == before
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert execute_notebooks.main(["--topic", "11"], tmp_path) == 2
