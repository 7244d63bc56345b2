"""The set-up script: each missing prerequisite is a sentence, and nothing half made stays behind.

Python is played by a small shell script, so that every way to fail can be had in an instant. It
keeps a list of the installations that it was asked for, and fails the one that it is told to.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = [
    *("sh", "cat", "cksum", "uname", "df", "awk", "grep", "rm", "mv", "ls", "dirname", "env"),
    *("mkdir", "cp", "touch", "sleep"),  # of the Python's player
]
PYTHON = """#!/bin/sh
case "$*" in
*version_info*) exit {old} ;;
*ensurepip*) exit {bare} ;;
*platform*) echo 3.{minor}.0 ;;
*"-m venv"*)
    mkdir -p .venv/bin .venv/lib/python3/site-packages && cp "$0" .venv/bin/python
    [ -f break-venv ] && exit 1
    touch .venv/pyvenv.cfg ;;
*"-m pip --version"*) [ ! -f break-pip ] ;;
*install*)
    echo "$*" >>installs
    case "$*" in *requirements.txt*) ;; *) exit 0 ;; esac
    [ -f hang ] && sleep 60
    [ -f failure ] || exit 0
    cat failure >.venv/install.log
    exit 1 ;;
*"import torch"*) [ ! -f break-import ] ;;
esac
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the set-up script is for POSIX shells")


class Machine:
    """A folder with the course's set-up in it, and a PATH with few things on it."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "a tree"
        self.path = folder / "bin"
        self.path.mkdir()
        for tool in TOOLS:
            where = shutil.which(tool)
            assert where, tool
            (self.path / tool).symlink_to(where)
        (self.tree / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup.sh", self.tree / "scripts")
        for name in ("requirements.txt", "pyproject.toml"):
            (self.tree / name).write_text("one\n")

    def add_python(self, name: str, *, old: int = 0, bare: int = 0, minor: int = 12) -> Path:
        path = self.path / name
        path.write_text(PYTHON.format(old=old, bare=bare, minor=minor))
        path.chmod(0o755)
        return path

    def setup(self, **environment: str) -> tuple[int, str]:
        """Exit code, and the last line that was printed."""
        done = subprocess.run(
            ["sh", str(self.tree / "scripts" / "setup.sh")],
            env={"PATH": str(self.path), **environment},
            capture_output=True,
            text=True,
        )
        lines = (done.stdout + done.stderr).strip().splitlines()
        return done.returncode, lines[-1] if lines else ""

    def do(self, name: str, text: str = "") -> None:
        """Tell the Python to misbehave."""
        (self.tree / name).write_text(text)

    def installs(self) -> int:
        path = self.tree / "installs"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def venv(self) -> Path:
        return self.tree / ".venv"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_second_call_does_nothing(machine):
    machine.add_python("python3")
    assert machine.setup()[0] == 0
    assert (machine.venv / "complete").exists()
    assert machine.installs() == 2
    assert machine.setup() == (0, "")
    assert machine.installs() == 2


def test_changed_requirements_and_a_moved_tree_are_installed_again(machine, tmp_path):
    machine.add_python("python3")
    machine.setup()
    machine.do("requirements.txt", "two\n")
    assert machine.setup()[0] == 0
    assert machine.installs() == 4
    machine.tree.rename(tmp_path / "moved")
    machine.tree = tmp_path / "moved"
    assert machine.setup()[0] == 0
    assert machine.installs() == 6


def test_no_python(machine):
    code, said = machine.setup()
    assert code == 1
    assert said.startswith("setup: no Python was found: install Python 3.11 or newer")
    assert not machine.venv.exists()


def test_an_old_python(machine):
    machine.add_python("python3", old=1, minor=9)
    code, said = machine.setup()
    assert code == 1
    assert "Python 3.11 or newer is needed, and python3 is 3.9.0" in said
    assert not machine.venv.exists()


def test_a_python_without_venv(machine):
    machine.add_python("python3", bare=1)
    code, said = machine.setup()
    assert code == 1
    assert "lacks the venv or ensurepip module" in said
    assert not machine.venv.exists()


def test_the_first_python_that_will_do_is_taken(machine):
    machine.add_python("python3.13", bare=1, minor=13)
    machine.add_python("python3.12", old=1)
    (machine.path / "python3.11").write_text("#!/bin/sh\nexit 127\n")  # a version manager's stub
    (machine.path / "python3.11").chmod(0o755)
    good = machine.add_python("python3", minor=14)
    assert machine.setup()[0] == 0
    assert (machine.venv / "bin" / "python").read_text() == good.read_text()


def test_a_python_named_by_hand(machine, tmp_path):
    machine.add_python("python3", old=1)
    named = machine.add_python("my python")
    assert "PYTHON=/nowhere is no Python" in machine.setup(PYTHON="/nowhere")[1]
    assert machine.setup(PYTHON=str(named))[0] == 0


NETWORK = "WARNING: Retrying: Failed to establish a new connection: [Errno -2]\n"
FAILURES = [
    (NETWORK + "ERROR: No matching distribution found for torch==2\n", "could not be fetched"),
    ("ERROR: Could not install: [Errno 28] No space left on device\n", "the disk is full"),
    ("ERROR: No matching distribution found for torch==2\n", "no release for Python 3.12.0"),
    ("ERROR: something new\n", "for the reason that pip gives above"),
]


@pytest.mark.parametrize(("log", "sentence"), FAILURES)
def test_an_installation_that_fails_says_why_and_is_taken_up_again(machine, log, sentence):
    machine.add_python("python3")
    machine.do("failure", log)
    code, said = machine.setup()
    assert code == 1
    assert said.startswith("setup: ")
    assert sentence in said
    assert not (machine.venv / "complete").exists()
    (machine.tree / "failure").unlink()
    assert machine.setup()[0] == 0
    assert (machine.venv / "complete").exists()


def test_an_environment_that_could_not_be_made_is_removed(machine):
    machine.add_python("python3")
    machine.do("break-venv")
    code, said = machine.setup()
    assert code == 1
    assert "could not make a virtual environment" in said or "disk is full" in said
    assert not machine.venv.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_installation_that_is_killed_is_taken_up_again(machine, how):
    machine.add_python("python3")
    machine.do("hang")
    child = subprocess.Popen(
        ["sh", str(machine.tree / "scripts" / "setup.sh")],
        env={"PATH": str(machine.path)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while machine.installs() < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, how)
    assert child.wait() != 0
    assert not (machine.venv / "complete").exists()
    (machine.tree / "hang").unlink()
    assert machine.setup()[0] == 0
    assert machine.installs() == 4


def test_a_package_that_was_half_installed_is_installed_again(machine):
    machine.add_python("python3")
    machine.do("failure", "interrupted")
    machine.setup()
    packages = machine.venv / "lib" / "python3" / "site-packages"
    for name, files in {"whole-1.dist-info": ["INSTALLER"], "half-1.dist-info": []}.items():
        (packages / name).mkdir(parents=True)
        for file in ["METADATA", *files]:
            (packages / name / file).write_text("")
    (machine.tree / "failure").unlink()
    assert machine.setup()[0] == 0
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


def test_an_environment_without_a_working_pip_is_made_anew(machine):
    machine.add_python("python3")
    machine.setup()
    (machine.venv / "complete").unlink()
    (machine.venv / "old").write_text("")
    machine.do("break-pip")
    assert machine.setup()[0] == 0
    assert not (machine.venv / "old").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(machine):
    machine.add_python("python3")
    machine.setup()
    (machine.venv / "bin" / "python").unlink()
    assert machine.setup()[0] == 0
    assert machine.installs() == 4


def test_a_folder_that_is_no_environment_is_not_touched(machine):
    machine.add_python("python3")
    machine.venv.mkdir()
    (machine.venv / "letters.txt").write_text("dear")
    code, said = machine.setup()
    assert code == 1
    assert "is in the way" in said
    assert (machine.venv / "letters.txt").read_text() == "dear"


def test_what_does_not_import_is_not_complete(machine):
    machine.add_python("python3")
    machine.do("break-import")
    code, said = machine.setup()
    assert code == 1
    assert "does not import" in said
    assert not (machine.venv / "complete").exists()


def test_requirements_are_exact_and_cover_the_project():
    """Every dependency of pyproject.toml is pinned, and no pin is of one machine's hardware."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[-1] == "-e ."
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins[:-1]), pins
    names = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins}
    assert not [name for name in names if name.startswith(("nvidia", "triton", "cuda"))]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]
        assert name in names, f"{name} has no pin"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for target in ("run", "test", "notebooks", "results", "bench", "mutants", "lint"):
        assert f"\n  {target} " in done.stdout
