"""Results that say where they came from, and READMEs that quote them.

A topic's script measures and hands a dictionary to `write_results`; the topic's README quotes it
between markers, so that no figure in the text is typed by hand:

    The gap was <!-- r:gap.mean:.2f -->0.83<!-- /r --> bits.

    <!-- table:ladder -->
    (a table, drawn from {"columns": [...], "rows": [[...], ...]})
    <!-- /table -->

Everything here is reached through `lab`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

# One pass over a README: code is matched first, and left alone, so that a page can show a marker.
_MARKER = re.compile(
    r"(?P<fence>^(?P<ticks>`{3,}|~{3,})[^\n]*\n.*?^(?P=ticks)[ \t]*$)"
    r"|(?P<code>(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`))"
    r"|<!-- r:(?P<path>[^:\n]+?)(?::(?P<spec>[^\n]*?))? -->(?P<value>[^\n]*?)<!-- /r -->"
    r"|<!-- table:(?P<table>[^\n]+?) -->\n(?P<body>.*?)<!-- /table -->"
    r"|(?P<stray><!-- (?:r:|/r\b|table:|/table\b)[^\n]*)",
    re.DOTALL | re.MULTILINE,
)
_NUMBER_LIST = re.compile(r"\[\s+(?:[-+\w.]+,\s+)*[-+\w.]+\s+\]")


# ---------------------------------------------------------------------------------------------
# Files


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file whole or not at all: whoever reads `path`, at any moment and after a crash at
    any moment, finds the old content or the new. Text is written as UTF-8, newlines as they are.

    Raises:
        OSError: the folder does not exist, or the disk is full; the old file still stands then.
    """
    target = Path(os.path.realpath(path))
    payload = data.encode("utf-8") if isinstance(data, str) else data
    # In the same folder, since only a rename within one file system is atomic.
    aside = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        # The rename itself is durable only once the folder has reached the disk.
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _plain(value: Any) -> Any:
    """What JSON does not know but has a plain meaning: NumPy, tensors, paths."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (Path, torch.device)):
        return str(value)
    raise TypeError(f"results hold numbers, strings, lists and dicts; got {type(value).__name__}")


def _commit(folder: Path) -> str:
    """The commit that `folder` is at, `+changes` where tracked files differ from it."""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode:
            return "unknown"
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except FileNotFoundError:  # no git: a copy of the sources, say, from an archive
        return "unknown"
    return head.stdout.strip() + ("" if clean.returncode == 0 else "+changes")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy", "transformers", "tokenizers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_results(
    path: str | os.PathLike[str],
    results: Mapping[str, Any],
    *,
    command: str,
    seeds: Sequence[int],
    device: str | torch.device,
    wall_seconds: float,
) -> None:
    """Write `results` as JSON with its provenance beside it: command, commit, seeds, versions,
    device, threads and wall time. Keys are strings; NumPy values and tensors become plain.

    Raises:
        TypeError: a value has no place in JSON.
        ValueError: a number is NaN or infinite: say in words what happened instead.
    """
    content = {
        "run": {
            "command": command,
            "commit": _commit(Path(path).absolute().parent),
            "seeds": list(seeds),
            "versions": _versions(),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "wall_seconds": round(wall_seconds, 1),
        },
        "results": dict(results),
    }
    text = json.dumps(content, indent=2, default=_plain, allow_nan=False, ensure_ascii=False)
    # A curve belongs on one line: a number a line makes a file that nobody can read or compare.
    text = _NUMBER_LIST.sub(lambda match: re.sub(r"\s+", " ", match.group()), text)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text + "\n")


def _read(path: str | os.PathLike[str], part: str) -> dict[str, Any]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"run", "results"} <= content.keys():
        raise ValueError(f"{path} is no results file: it must hold 'run' and 'results'")
    return content[part]


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_results` was given, read back."""
    return _read(path, "results")


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The provenance that `write_results` put beside the results."""
    return _read(path, "run")


# ---------------------------------------------------------------------------------------------
# README markers


def format_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], formats: Sequence[str] | None = None
) -> str:
    """A Markdown table whose source is aligned too, so that a terminal shows it as well.

    `formats` holds one format spec a column (default: strings as they are, floats `.4g`,
    integers with thousands separators). Columns of numbers stand to the right.
    """
    rows = [list(row) for row in rows]
    specs = list(formats) if formats is not None else [""] * len(columns)
    for row in [specs, *rows]:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} in a table of {len(columns)} columns: {row}")

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)

    def show(value: Any, spec: str) -> str:
        if value is None:
            return "–"
        if not is_number(value):
            return str(value).replace("|", "\\|")
        return format(value, spec or ("," if isinstance(value, (int, np.integer)) else ".4g"))

    cells = [[show(value, spec) for value, spec in zip(row, specs, strict=True)] for row in rows]
    places = range(len(columns))
    right = [bool(rows) and all(r[i] is None or is_number(r[i]) for r in rows) for i in places]
    widths = [max(3, *(len(row[i]) for row in [list(columns), *cells])) for i in places]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)]
    return "\n".join([line(list(columns)), line(rule), *map(line, cells)])


def _look_up(results: Any, path: str) -> Any:
    """`a.b.2` in nested dicts and lists. A key may hold dots itself ("0.8M"): longest first."""
    if isinstance(results, Mapping):
        for key in sorted(results, key=len, reverse=True):
            if path == key:
                return results[key]
            if path.startswith(key + "."):
                with contextlib.suppress(KeyError):
                    return _look_up(results[key], path[len(key) + 1 :])
    elif isinstance(results, list):
        index, _, rest = path.partition(".")
        if re.fullmatch(r"-?\d+", index) and -len(results) <= int(index) < len(results):
            return _look_up(results[int(index)], rest) if rest else results[int(index)]
    raise KeyError(path)


def renew_markers(text: str, results: Mapping[str, Any]) -> str:
    """`text` with the content of every marker replaced by what `results` says. Markers in code,
    fenced or inline, are left alone.

    Raises:
        ValueError: a marker's path is not in the results, its format does not fit, or it is
            opened and not closed (an inline one: on the same line).
    """

    def value_at(path: str) -> Any:
        try:
            return _look_up(results, path)
        except KeyError:
            raise ValueError(f"marker {path!r}: the results hold no such value") from None

    def renew(match: re.Match[str]) -> str:
        if match["fence"] or match["code"]:
            return match.group()
        if match["stray"]:
            raise ValueError(f"a marker is not opened and closed properly: {match['stray'][:60]}")
        if match["table"]:
            table = value_at(match["table"])
            if not isinstance(table, Mapping) or not {"columns", "rows"} <= table.keys():
                raise ValueError(f"marker table:{match['table']}: no table of columns and rows")
            drawn = format_table(table["columns"], table["rows"], table.get("formats"))
            return f"<!-- table:{match['table']} -->\n{drawn}\n<!-- /table -->"
        path, spec = match["path"], match["spec"]
        value = value_at(path)
        try:
            shown = format(value, spec or "")
        except (TypeError, ValueError) as error:
            raise ValueError(f"marker r:{path}:{spec or ''}: {error}") from error
        return f"<!-- r:{path}{'' if spec is None else ':' + spec} -->{shown}<!-- /r -->"

    return _MARKER.sub(renew, text)


def renew_readme(
    readme_path: str | os.PathLike[str],
    results_path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
) -> bool:
    """Renew a README's markers in place; True when it changed.

    `results_path` is a results file; or a folder of them, whose markers then begin with the
    file's name (`r:decoding.speedup` reads decoding.json); or a mapping from first name to either.
    """

    def load(source: Any) -> dict[str, Any]:
        if isinstance(source, Mapping):
            return {name: load(path) for name, path in source.items()}
        path = Path(source)
        if path.is_dir():
            return {file.stem: read_results(file) for file in sorted(path.glob("*.json"))}
        return read_results(path)

    old = Path(readme_path).read_text(encoding="utf-8")
    new = renew_markers(old, load(results_path))
    if new != old:
        atomic_write(readme_path, new)
    return new != old
