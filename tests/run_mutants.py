"""Apply each mutant to a copy of the tree and require that its tests notice.

    python tests/run_mutants.py                     all of them (make mutants)
    python tests/run_mutants.py --topic 05          one topic's     (make mutants TOPIC=05)
    python tests/run_mutants.py --name offset -j 4  those whose name holds a word

A mutant is killed when its tests fail in the mutated copy (pytest's exit code 1) and pass in an
unmutated one. Exit code 0 means that here and now: a test that passes is a mutant that survived,
and any other code (an import that breaks, no test found, a hang) is a mutant that proves nothing.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from mutant import Mutant

ROOT = Path(__file__).parent.parent
TOPIC = re.compile(r"\d\d-")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one mutant: `killed`, `survived`, `broken` or `hung`."""

    mutant: Mutant
    outcome: str
    seconds: float
    noticed_by: str  # the first test that failed, or pytest's last words


def load_mutants(root: Path = ROOT) -> dict[str, list[Mutant]]:
    """Every topic's mutants, by the name of the topic's folder."""
    found = {}
    for path in sorted((root / "tests" / "mutants").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"mutants_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[path.stem] = module.MUTANTS
    return found


def problems(mutant: Mutant, root: Path = ROOT) -> list[str]:
    """What makes a mutant unfit to run, in sentences; empty when it is fit."""
    found = []
    path = root / mutant.module
    if not path.is_file():
        return [f"{mutant.module} does not exist"]
    source = path.read_text(encoding="utf-8")
    times = source.count(mutant.old)
    if times != 1 or not mutant.old.strip():
        found.append(f"`old` stands {times} times in {mutant.module}, not once")
    if mutant.new == mutant.old:
        found.append("`new` is `old`")
    elif times == 1:
        try:
            changed = ast.parse(source.replace(mutant.old, mutant.new))
        except SyntaxError as error:
            found.append(f"the mutated module does not compile: {error}")
        else:
            if ast.dump(changed) == ast.dump(ast.parse(source)):
                found.append("the mutation changes nothing but layout or comments")
    if not mutant.tests:
        found.append("it names no tests")
    for test in mutant.tests:
        if not (root / test.partition("::")[0]).exists():
            found.append(f"{test} does not exist")
    for word in ("name", "symptom", "finder"):
        if not getattr(mutant, word).strip():
            found.append(f"its {word} is empty")
    return found


def copy_tree(root: Path, target: Path) -> None:
    """Copy the sources: what git tracks and what it would, or all but hidden and built files."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
    )
    if listed.returncode == 0:
        names = [name for name in os.fsdecode(listed.stdout).split("\0") if name]
    else:  # an archive without its repository
        names = [
            str(path.relative_to(root))
            for path in root.rglob("*")
            if not any(
                part.startswith(".") or part in ("runs", "__pycache__")
                for part in path.relative_to(root).parts
            )
        ]
    for name in names:
        source = root / name
        if source.is_file():  # a file that git knows may have been deleted since
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def environment(tree: Path) -> dict[str, str]:
    """The environment in which Python finds the modules of `tree`, not of an installed course.

    pytest's `pythonpath` does that for the tests themselves; this does it for the processes that
    they start too, since PYTHONPATH comes before the editable install's entries.
    """
    folders = [str(path) for path in sorted(tree.iterdir()) if TOPIC.match(path.name)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def run_tests(tree: Path, tests: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """pytest's exit code in `tree` (None if it hung), and the first failure or its last words."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--solutions", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment(tree),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return None, f"no end after {timeout:.0f} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    lines = done.stdout.strip().splitlines() or ["(silent)"]
    return done.returncode, failed[1] if failed else lines[-1]


def found_in(tree: Path, module: str) -> Path:
    """Where a Python started in `tree` finds a module, by its file's name."""
    name = Path(module).stem
    code = f"import importlib.util as u; print(u.find_spec({name!r}).origin)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=environment(tree),
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.strip())


def run_mutant(mutant: Mutant, root: Path, timeout: float) -> Verdict:
    """Mutate a fresh copy and run the tests there."""
    start = time.monotonic()

    def verdict(outcome: str, by: str) -> Verdict:
        seconds = time.monotonic() - start
        return Verdict(mutant=mutant, outcome=outcome, seconds=seconds, noticed_by=by)

    unfit = problems(mutant, root)
    if unfit:
        return verdict("broken", "; ".join(unfit))
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder).resolve()
        copy_tree(root, tree)
        path = tree / mutant.module
        source = path.read_text(encoding="utf-8")
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        found = found_in(tree, mutant.module)
        if found.resolve() != path:
            return verdict("broken", f"tests would import {found}, not the mutated copy")
        code, words = run_tests(tree, mutant.tests, timeout)
    outcome = {0: "survived", 1: "killed", None: "hung"}.get(code, "broken")
    return verdict(outcome, words)


def run_baseline(tests: tuple[str, ...], root: Path, timeout: float) -> str | None:
    """None if the tests pass in an unmutated copy, else what went wrong."""
    with tempfile.TemporaryDirectory(prefix="baseline-") as folder:
        tree = Path(folder).resolve()
        copy_tree(root, tree)
        code, words = run_tests(tree, tests, timeout)
    return None if code == 0 else f"its tests fail without it: {words}"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topic", default="", help="only topics whose folder begins so: 05")
    parser.add_argument("--name", default="", help="only mutants whose name holds this")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a test run may take")
    parser.add_argument("--json", type=Path, help="also write the verdicts to this file")
    options = parser.parse_args(argv)

    chosen = [
        mutant
        for topic, mutants in load_mutants(root).items()
        if topic.startswith(options.topic)
        for mutant in mutants
        if options.name in mutant.name
    ]
    if not chosen:
        print("no mutant has that topic and name", file=sys.stderr)
        return 2

    verdicts = []
    with ThreadPoolExecutor(options.jobs) as pool:
        suites = list(dict.fromkeys(mutant.tests for mutant in chosen))
        print(
            f"{len(chosen)} mutants; first their {len(suites)} sets of tests, unmutated", flush=True
        )
        sound = dict(
            zip(
                suites,
                pool.map(lambda tests: run_baseline(tests, root, options.timeout), suites),
                strict=True,
            )
        )
        ready = [mutant for mutant in chosen if sound[mutant.tests] is None]
        for mutant in chosen:
            complaint = sound[mutant.tests]
            if complaint:
                verdicts.append(
                    Verdict(mutant=mutant, outcome="broken", seconds=0.0, noticed_by=complaint)
                )
        running = pool.map(lambda mutant: run_mutant(mutant, root, options.timeout), ready)
        width = max(len(mutant.name) for mutant in chosen)
        for verdict in [*verdicts, *running]:
            if verdict not in verdicts:
                verdicts.append(verdict)
            print(
                f"{verdict.outcome:8}  {verdict.seconds:5.0f} s  {verdict.mutant.name:{width}}  "
                f"{verdict.mutant.module}  {verdict.noticed_by}",
                flush=True,
            )
    killed = sum(verdict.outcome == "killed" for verdict in verdicts)
    print(f"{killed} of {len(verdicts)} killed")
    if options.json:
        options.json.write_text(json.dumps([asdict(v) for v in verdicts], indent=2) + "\n")
    return 0 if killed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
