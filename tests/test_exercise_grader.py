"""The grader: untouched reads "not attempted", wrong says what was expected, right passes."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CI_VARIABLES = {"CI", "BUILD_NUMBER"}

EXERCISES = '''
ANSWER = ...

def double(x):
    """Twice x."""
    raise NotImplementedError

class Adder:
    def add(self, x, y):
        raise NotImplementedError
'''
SOLUTIONS = """
from dataclasses import dataclass

ANSWER = 42

def double(x):
    return 2 * x

@dataclass(frozen=True)
class Adder:
    zero: int = 0
    def add(self, x, y):
        return x + y + self.zero
"""
TESTS = '''
import pytest

def test_answer(answers):
    """The answer is right."""
    assert answers.ANSWER == 42

def test_double(answers):
    """Doubling something and halving it again
    gives it back."""
    secret = 7
    assert answers.double(secret) == 14, "tried with an odd number"

def test_double_refuses(answers):
    """Text is refused."""
    with pytest.raises((AssertionError, ValueError)):
        assert answers.double(3) == 7

def test_add(answers):
    """Sums are right."""
    assert answers.Adder().add(1, 2) == 3
'''

CLOSE = '''
import numpy.testing
import pytest
import torch.testing

@pytest.mark.parametrize("close", [torch.testing.assert_close, numpy.testing.assert_allclose])
def test_close(answers, close):
    """Halves are doubled."""
    close(answers.double(43.5), 87.0)
'''


@pytest.fixture
def grade(tmp_path):
    """Grade a folder of two topics whose second has these exercises: the outcome by test."""

    def run(exercises=EXERCISES, *options, tests=TESTS):
        shutil.copy(ROOT / "conftest.py", tmp_path)
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\naddopts = --import-mode=importlib --strict-markers -ra\n"
            "markers =\n    gpu: .\n    network: .\n"
        )
        for topic, text in (("01-one", SOLUTIONS), ("02-two", exercises)):
            folder = tmp_path / topic / "exercises"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "exercises.py").write_text(text)
            (folder / "solutions.py").write_text(SOLUTIONS)
            (folder / "test_exercises.py").write_text(tests)
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options]
        # With CI set, pytest repeats each failure's message, whole, in its summary.
        env = {name: value for name, value in os.environ.items() if name not in CI_VARIABLES}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
        pattern = r"0(\d)-\w+/exercises/test_exercises.py::(\w+)\S* (\w+)"
        outcomes = re.findall(pattern, done.stdout)
        return {(topic, name): outcome for topic, name, outcome in outcomes}, done.stdout

    return run


def of_topic_2(outcomes):
    return {name: outcome for (topic, name), outcome in outcomes.items() if topic == "2"}


def test_untouched_reads_not_attempted_and_topics_do_not_mix(grade):
    outcomes, text = grade()
    assert set(of_topic_2(outcomes).values()) == {"SKIPPED"}
    assert len(outcomes) == 8
    assert all(outcome == "PASSED" for (topic, _), outcome in outcomes.items() if topic == "1")
    for name in ("ANSWER", "double", "add"):
        assert f"not attempted: {name}" in text


def test_solutions_are_graded_when_asked_for(grade):
    outcomes, _ = grade(EXERCISES, "--solutions")
    assert set(outcomes.values()) == {"PASSED"}
    assert len(outcomes) == 8


def test_a_wrong_answer_is_told_the_property_and_not_the_solution(grade):
    wrong = EXERCISES.replace("raise NotImplementedError", "return x", 1).replace("...", "41")
    outcomes, text = grade(wrong)
    assert of_topic_2(outcomes) == {
        "test_answer": "FAILED",
        "test_double": "FAILED",
        "test_double_refuses": "PASSED",
        "test_add": "SKIPPED",
    }
    assert "Expected: The answer is right." in text
    assert "Expected: Doubling something and halving it again gives it back." in text
    assert "tried with an odd number" in text
    shown = text.partition("= FAILURES =")[2]
    for given_away in ("42", "== 14", "secret"):
        assert given_away not in shown


def test_the_values_that_torch_and_numpy_would_print_are_left_out(grade):
    wrong = EXERCISES.replace("raise NotImplementedError", "return x", 1)
    outcomes, text = grade(wrong, tests=CLOSE)
    assert of_topic_2(outcomes) == {"test_close": "FAILED"}
    assert text.count("Expected: Halves are doubled.") == 2
    assert "Scalars are not close!" in text
    assert "Not equal to tolerance" in text
    assert "87" not in text.partition("= FAILURES =")[2]


def test_an_error_in_an_answer_shows_its_own_line(grade):
    wrong = EXERCISES.replace("raise NotImplementedError", "return x / 0", 1)
    outcomes, text = grade(wrong)
    assert of_topic_2(outcomes)["test_double"] == "FAILED"
    assert "Raised ZeroDivisionError" in text
    assert "exercises.py:6 in double: return x / 0" in text


def test_a_stub_deep_inside_a_library_s_call_is_still_a_stub_but_not_in_solutions(grade):
    nested = EXERCISES.replace("raise NotImplementedError", "return sorted([x], key=inner)[0]", 1)
    nested += "\ndef inner(x):\n    raise NotImplementedError\n"
    outcomes, text = grade(nested)
    assert of_topic_2(outcomes)["test_double"] == "SKIPPED"
    assert "not attempted: inner" in text


@pytest.mark.parametrize(
    ("exercises", "message"),
    [
        ("def double(x)\n", "exercises.py cannot be imported"),
        ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
        ("ANSWER = 42\n", "exercises.py has no 'double'"),
    ],
)
def test_broken_exercise_files_are_named(grade, exercises, message):
    outcomes, text = grade(exercises)
    assert "PASSED" not in {of_topic_2(outcomes)[k] for k in ("test_double", "test_add")}
    assert message in text


def test_network_and_gpu_tests_say_why_they_are_skipped(grade, tmp_path):
    (tmp_path / "test_marked.py").write_text(
        "import pytest\n@pytest.mark.network\ndef test_net(): assert False\n"
    )
    _, text = grade()
    assert "needs the internet: run with --network" in text
    assert "1 failed" not in text
    _, text = grade(EXERCISES, "--network")
    assert "1 failed" in text


@pytest.mark.parametrize(
    "folder", sorted(ROOT.glob("[0-9][0-9]-*/exercises")), ids=lambda folder: folder.parent.name
)
def test_the_course_s_own_exercises_are_untouched(folder):
    """Every one of them, at least six, reads "not attempted"; and each test states a property."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"\d+ skipped in .*", summary), done.stdout
    assert len(set(re.findall(r"not attempted: (\w+)", done.stdout))) >= 6
    tests = ast.parse((folder / "test_exercises.py").read_text(encoding="utf-8"))
    for node in tests.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{node.name} does not say what it expects"
