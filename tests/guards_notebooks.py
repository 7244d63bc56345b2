"""What must hold for the notebooks as they are committed: executed, in order, with pictures."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat

from guards_code import Tree, public_names

MAX_BYTES = 1_500_000
MIN_PICTURES = 3


def notebook_problems(path: Path, library: dict[str, str]) -> list[str]:
    """What is wrong with one notebook; `library` maps each public name to its module."""
    found = []
    if path.stat().st_size > MAX_BYTES:
        found.append(f"{path.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    pictures = 0
    uses_library = False
    for number, cell in enumerate(cells, start=1):
        where = f"code cell {number}"
        if cell.execution_count != number:
            found.append(f"{where} was not executed in order, in a fresh kernel: make notebooks")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{where} ended in {output.ename}")
            elif output.output_type == "stream" and output.name == "stderr":
                found.append(f"{where} wrote to stderr: {output.text.strip()[:80]}")
            pictures += any(kind.startswith("image/") for kind in output.get("data", {}))
        tree = ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in library:
                found.append(f"{where} defines {node.name} again; import it: {library[node.name]}")
            elif isinstance(node, ast.ImportFrom):
                uses_library |= node.module in library.values()
            elif isinstance(node, ast.Import):
                uses_library |= any(alias.name in library.values() for alias in node.names)
    if pictures < MIN_PICTURES:
        found.append(f"{pictures} pictures, fewer than {MIN_PICTURES}")
    if not uses_library:
        found.append("it imports none of the course's modules")
    return found


def poor_notebooks(tree: Tree) -> list[str]:
    """Every committed notebook reads well without being run."""
    library = {name: path.stem for path in tree.modules for name in public_names(path)}
    library.pop("main", None)
    return [
        f"{tree.show(path)}: {problem}"
        for path in tree.notebooks
        for problem in notebook_problems(path, library)
    ]
