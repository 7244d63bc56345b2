"""Every mutant is fit to run, and the runner tells the killed from the rest.

That the tests kill every mutant is for `make mutants` to show: it takes longer than the tests.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import run_mutants
from mutant import Mutant

ROOT = Path(__file__).parent.parent
MUTANTS = [(topic, m) for topic, ms in run_mutants.load_mutants().items() for m in ms]


@pytest.mark.parametrize(
    ("topic", "mutant"), MUTANTS, ids=[f"{topic[:2]}-{mutant.name}" for topic, mutant in MUTANTS]
)
def test_a_mutant_is_fit_to_run(topic, mutant):
    assert run_mutants.problems(mutant) == []
    assert mutant.module.startswith(topic + "/"), "a topic's mutants change that topic's modules"


def test_names_are_unique_and_every_topic_has_five():
    by_topic = run_mutants.load_mutants()
    for topic, mutants in by_topic.items():
        assert (ROOT / topic).is_dir()
        assert len({mutant.name for mutant in mutants}) == len(mutants) >= 5, topic
    with_modules = {path.parent.name for path in ROOT.glob("[0-9][0-9]-*/*.py")}
    assert with_modules <= by_topic.keys()


# --- the runner, on a tree of its own --------------------------------------------------------

GOOD = Mutant(
    name="plus-minus",
    module="01-one/thing.py",
    old="a + b",
    new="a - b",
    tests=("tests/test_thing.py",),
    symptom="sums are differences",
    finder="any sum",
)


@pytest.fixture
def tree(tmp_path):
    """A small course whose tests are in order; `write` lists its mutants."""
    (tmp_path / "01-one").mkdir()
    (tmp_path / "01-one" / "thing.py").write_text(
        "def add(a, b):\n    c = a + b\n    return c  # the sum\n"
    )
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["01-one"]\naddopts = "--import-mode=importlib"\n'
    )
    (tmp_path / "tests" / "test_thing.py").write_text(
        "import subprocess, sys, thing\n"
        "def test_here(): assert thing.add(1, 2) == 3\n"
        "def test_weak(): assert thing.add(1, 0) == 1\n"
        "def test_elsewhere():\n"
        "    code = 'import thing; print(thing.add(1, 2))'\n"
        "    assert subprocess.check_output([sys.executable, '-c', code], text=True) == '3\\n'\n"
    )

    def write(*mutants):
        listed = ",\n".join(repr(mutant) for mutant in mutants)
        (tmp_path / "tests" / "mutants" / "01-one.py").write_text(
            f"from mutant import Mutant\nMUTANTS = [{listed}]\n"
        )
        return tmp_path

    return write


def test_killed_survived_and_broken(tree, tmp_path, capsys):
    def one(test):
        return (f"tests/test_thing.py::{test}",)

    root = tree(
        GOOD,
        replace(GOOD, name="in-a-child-process", tests=one("test_elsewhere")),
        replace(GOOD, name="unseen", tests=one("test_weak")),
        replace(GOOD, name="no-such-test", tests=one("test_nothing")),
        replace(GOOD, name="import-breaks", old="def add", new="1 / 0\ndef add"),
    )
    where = tmp_path / "verdicts.json"
    assert run_mutants.main(["-j", "2", "--json", str(where)], root) == 1
    outcomes = {v["mutant"]["name"]: v["outcome"] for v in json.loads(where.read_text())}
    assert outcomes == {
        "plus-minus": "killed",
        "in-a-child-process": "killed",
        "unseen": "survived",
        "no-such-test": "broken",
        "import-breaks": "broken",
    }
    assert "2 of 5 killed" in capsys.readouterr().out
    assert (root / "01-one" / "thing.py").read_text().count("a + b") == 1


def test_a_mutant_that_never_ends_is_no_kill(tree):
    endless = replace(GOOD, name="endless", old="c = a + b", new="c = a + b\n    while True: pass")
    assert run_mutants.run_mutant(endless, tree(endless), timeout=4).outcome == "hung"


def test_filters_choose_and_all_killed_is_success(tree, capsys):
    root = tree(GOOD, replace(GOOD, name="unseen", tests=("tests/test_thing.py::test_weak",)))
    assert run_mutants.main(["--name", "plus"], root) == 0
    assert "1 of 1 killed" in capsys.readouterr().out
    assert run_mutants.main(["--topic", "02"], root) == 2


def test_tests_that_fail_anyway_kill_nothing(tree, capsys):
    root = tree(GOOD)
    (root / "tests" / "test_thing.py").write_text("def test(): assert False\n")
    assert run_mutants.main([], root) == 1
    assert "its tests fail without it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"module": "01-one/none.py"}, "does not exist"),
        ({"old": "a * b"}, "stands 0 times"),
        ({"old": "c"}, "stands 2 times"),
        ({"new": "a + b"}, "`new` is `old`"),
        ({"new": "a +"}, "does not compile"),
        ({"new": "a  +  b"}, "nothing but layout"),
        ({"old": "# the sum", "new": "# a sum"}, "nothing but layout"),
        ({"tests": ()}, "no tests"),
        ({"tests": ("tests/test_none.py::test",)}, "test_none.py::test does not exist"),
        ({"symptom": " "}, "symptom is empty"),
    ],
)
def test_unfit_mutants_say_why(tree, changes, problem):
    mutant = replace(GOOD, **changes)
    root = tree(mutant)
    found = run_mutants.problems(mutant, root)
    assert len(found) == 1
    assert problem in found[0]


def test_the_copy_holds_what_git_would_and_nothing_built(tree):
    root = tree(GOOD)
    import subprocess

    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".gitignore").write_text("built/\n")
    (root / "built").mkdir()
    (root / "built" / "x").write_text("")
    target = root / "built" / "copy"
    run_mutants.copy_tree(root, target)
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert names == {
        ".gitignore",
        "01-one/thing.py",
        "conftest.py",
        "pyproject.toml",
        "tests/mutants/01-one.py",
        "tests/test_thing.py",
    }
