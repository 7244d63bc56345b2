"""Run the topics' notebooks from top to bottom and save their outputs: `make notebooks`.

    python scripts/execute_notebooks.py --topic 05

What a rerun would change for no reason (times, versions, the kernel's name, progress bars) is left
out of the file, so that its history shows only what changed in the lesson. Pictures are stored with
a palette, at a quarter of their size, so that the file opens at once on a code host.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

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
    tidy_outputs(notebook)
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})  # type: ignore
    nbformat.validate(notebook)
    atomic_write(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def tidy_outputs(notebook: nbformat.NotebookNode) -> None:
    """Drop progress bars and store each picture with a palette of 32 colours."""
    for cell in notebook.cells:
        kept = []
        for output in cell.get("outputs", ()):
            if output.get("output_type") == "stream" and output.get("name") == "stderr":
                continue
            picture = output.get("data", {}).get("image/png")
            if picture:
                output["data"]["image/png"] = _with_palette(picture)
            kept.append(output)
        if "outputs" in cell:
            cell["outputs"] = kept


def _with_palette(picture: str, *, colours: int = 32, width: int = 560) -> str:
    """A base64 PNG, no wider than `width` pixels, in that many colours of its own."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    if image.width > width:
        height = round(image.height * width / image.width)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


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
