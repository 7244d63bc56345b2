"""Run the topics' notebooks from top to bottom and save their outputs: `make notebooks`.

    python scripts/execute_notebooks.py --topic 05

What a rerun would change for no reason (times, versions, the kernel's name) is left out of the
file, so that its history shows only what changed in the lesson.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lab import atomic_write

ROOT = Path(__file__).parent.parent


def execute(path: Path, timeout: float = 600) -> None:
    """Run one notebook in a fresh kernel, in its own folder, and save it in place.

    Raises:
        CellExecutionError: a cell raised. The file is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    nbformat.validate(notebook)
    atomic_write(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topic", default="", help="only topics whose folder begins so: 05")
    options = parser.parse_args(argv)
    notebooks = sorted(root.glob(f"{options.topic}*/notebook.ipynb"))
    if not notebooks:
        print("there is no notebook of that topic", file=sys.stderr)
        return 2
    for path in notebooks:
        start = time.monotonic()
        try:
            execute(path)
        except CellExecutionError as error:
            print(f"{path.relative_to(root)} stopped:\n{error}", file=sys.stderr)
            return 1
        print(f"{path.relative_to(root)}  {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
