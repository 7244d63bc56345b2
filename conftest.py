"""Pytest's settings for the whole tree, and the grader of the exercises.

    pytest 05-building-from-scratch/exercises               grades your exercises.py
    pytest 05-building-from-scratch/exercises --solutions   grades solutions.py

For authors. A topic's `exercises/test_exercises.py` takes the fixture `answers`: the module
`exercises.py` (or `solutions.py`) of its own folder, whichever is being graded. A stub is a
function whose body raises NotImplementedError, or a constant whose value is `...`; a test that
comes upon one is skipped as "not attempted". Every test has a docstring that states the property
it checks: a wrong answer is shown that sentence and the assertion's own message, and neither the
test's code nor the values that it compares, which would give the answer away.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("course")
    group.addoption("--solutions", action="store_true", help="grade solutions.py, not exercises.py")
    group.addoption("--network", action="store_true", help="run the tests that need the internet")
    group.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_configure(config: pytest.Config) -> None:
    # Tests never wait for a hub that may not be there, and subprocesses that they start neither.
    if not config.getoption("--network"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # As many processes as cores already: threads inside each would only get in each other's way.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    # A property that fails, fails for everybody and every time; a slow machine fails none.
    settings.register_profile("course", deadline=None, derandomize=True, print_blob=False)
    settings.load_profile("course")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("network") and not item.config.getoption("--network"):
        pytest.skip("needs the internet: run with --network")
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("takes minutes: run with --slow")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


# --- the grader ------------------------------------------------------------------------------

# Where an assertion's message goes over to the values compared: pytest's own comparison, then
# what torch.testing and numpy.testing print.
_VALUES = re.compile(r"\n(?=assert |Expected \S+ but got | *(?:ACTUAL|DESIRED|x|y): )")


class Answers:
    """The graded module: its attributes, except that a missing or untouched one ends the test."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._module, name):
            pytest.fail(f"{Path(str(self._module.__file__)).name} has no {name!r}", pytrace=False)
        value = getattr(self._module, name)
        if value is ...:
            pytest.skip(f"not attempted: {name}")
        return value


def _graded_file(item: pytest.Item) -> Path | None:
    """The file that a test grades, None for a test that is no exercise's."""
    if item.path.parent.name != "exercises":
        return None
    name = "solutions.py" if item.config.getoption("--solutions") else "exercises.py"
    return item.path.parent / name


def _load(path: Path) -> ModuleType:
    """Import by path, under a name of its own: every topic has an exercises.py."""
    name = f"{path.parent.parent.name}_{path.stem}".replace("-", "_")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and spawned workers look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@pytest.fixture
def answers(request: pytest.FixtureRequest) -> Answers:
    """The answers that are graded: `exercises.py`, or with `--solutions` `solutions.py`."""
    path = _graded_file(request.node)
    if path is None:
        pytest.fail("the fixture `answers` is for tests in a folder named exercises", pytrace=False)
    if not path.exists():
        pytest.fail(f"{path} does not exist", pytrace=False)
    try:
        return Answers(_load(path))
    except Exception as error:
        shown = "".join(traceback.format_exception_only(error)).strip()
        pytest.fail(f"{path.name} cannot be imported:\n{shown}", pytrace=False)


def _frames(error: BaseException, path: Path) -> list[traceback.FrameSummary]:
    return [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    try:
        return (yield)
    except NotImplementedError as error:
        path = _graded_file(item)
        last = traceback.extract_tb(error.__traceback__)[-1]
        if path and path.name == "exercises.py" and last.filename == str(path):
            pytest.skip(f"not attempted: {last.name}")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    path = _graded_file(item)
    if not (report.when == "call" and report.failed and path and path.name == "exercises.py"):
        return report
    assert call.excinfo is not None
    error = call.excinfo.value
    if isinstance(error, pytest.fail.Exception):
        return report
    lines = []
    if item.function.__doc__:  # type: ignore[attr-defined]
        lines.append("Expected: " + " ".join(item.function.__doc__.split()))  # type: ignore[attr-defined]
    if isinstance(error, AssertionError):
        message = _VALUES.split("\n" + str(error))[0].strip()
        if message:
            lines.append(message)
    else:
        lines.append(f"Raised {type(error).__name__}: {error}")
    for frame in _frames(error, path):
        lines.append(f"  {path.name}:{frame.lineno} in {frame.name}: {frame.line}")
    report.longrepr = "\n".join(lines) or "a property that was expected does not hold"
    return report
