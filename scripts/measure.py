"""Run what measures, and quote it: topics' scripts, benchmarks, and the numbers in the READMEs.

    python scripts/measure.py results --topic 05   run a topic's script, then renew the READMEs
    python scripts/measure.py bench --name decode  run the benchmarks of that name, then renew
    python scripts/measure.py readmes              only renew the READMEs

A marker in a README names a value by its path (`lab.renew_markers` says how it is written):

    in a topic's pages       the topic's own results, and `benchmarks.NAME. …`
    in benchmarks/README.md  `NAME. …` for benchmarks/results/NAME.json
    in the README            `05-building-from-scratch. …` and `benchmarks.NAME. …`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import atomic_write, read_results, renew_markers

ROOT = Path(__file__).parent.parent


def topic_folders(root: Path = ROOT) -> list[Path]:
    """The fifteen folders, in order."""
    return sorted(path for path in root.glob("[0-9][0-9]-*") if path.is_dir())


def topic_script(topic: Path) -> Path:
    """A topic's script is named after its folder: 05-building-from-scratch has
    building_from_scratch.py. It need not exist yet.
    """
    return topic / (topic.name[3:].replace("-", "_") + ".py")


def benchmark_scripts(root: Path = ROOT) -> list[Path]:
    """One file a claim of speed."""
    return sorted((root / "benchmarks").glob("[a-z]*.py"))


def quoting_pages(root: Path = ROOT) -> dict[Path, dict[str, Any]]:
    """Every page that may quote results, and the results that it may quote."""
    folder = root / "benchmarks" / "results"
    benchmarks = {path.stem: read_results(path) for path in sorted(folder.glob("*.json"))}
    topics = {}
    pages = {}
    for topic in topic_folders(root):
        own = topic / "results.json"
        if own.exists():
            topics[topic.name] = read_results(own)
        for page in sorted(topic.rglob("*.md")):
            if "runs" not in page.relative_to(topic).parts:
                pages[page] = {**topics.get(topic.name, {}), "benchmarks": benchmarks}
    for page in sorted((root / "benchmarks").glob("*.md")):
        pages[page] = benchmarks
    for page in sorted(root.glob("*.md")):
        pages[page] = {**topics, "benchmarks": benchmarks}
    return pages


def renew_pages(root: Path = ROOT) -> list[Path]:
    """Renew every marker of the tree; the pages that changed.

    Raises:
        ValueError: a page names a value that no results hold. Nothing was written then.
    """
    renewed = {}
    for page, results in quoting_pages(root).items():
        old = page.read_text(encoding="utf-8")
        try:
            new = renew_markers(old, results)
        except ValueError as error:
            raise ValueError(f"{page.relative_to(root)}: {error}") from error
        if new != old:
            renewed[page] = new
    for page, new in renewed.items():
        atomic_write(page, new)
    return list(renewed)


def run(scripts: Sequence[Path], root: Path, smoke: bool) -> int:
    """Run scripts one after another; the first exit code that is not 0, else 0."""
    for script in scripts:
        command = [str(script.relative_to(root)), *(["--smoke"] if smoke else [])]
        print(f"\n=== {' '.join(command)}", flush=True)
        code = subprocess.run([sys.executable, *command], cwd=root).returncode
        if code:
            print(f"{command[0]} ended with exit code {code}", file=sys.stderr)
            return code
    return 0


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["results", "bench", "readmes"])
    parser.add_argument("--topic", default="", help="only topics whose folder begins so: 05")
    parser.add_argument("--name", default="", help="only benchmarks whose file name holds this")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; the READMEs stay as is")
    options = parser.parse_args(argv)

    scripts: list[Path] = []
    if options.what == "results":
        folders = [t for t in topic_folders(root) if t.name.startswith(options.topic)]
        scripts = [topic_script(t) for t in folders if topic_script(t).exists()]
    elif options.what == "bench":
        scripts = [path for path in benchmark_scripts(root) if options.name in path.stem]
    if options.what != "readmes" and not scripts:
        print("there is no script of that topic or name", file=sys.stderr)
        return 2
    code = run(scripts, root, options.smoke)
    if code or options.smoke:
        return code
    changed = renew_pages(root)
    for page in changed:
        print(f"renewed {page.relative_to(root)}")
    if not changed:
        print("every page already says what the results say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
