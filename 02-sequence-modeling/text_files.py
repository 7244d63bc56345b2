"""Documents out of files: folders, large texts in pieces, .jsonl lines and .parquet rows.

The reading half of `corpora`. Everything is a generator, so that memory stays constant, and is
handed a counter in which it notes what it had to leave out and why.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Files that can be read, by suffix, and the size of the pieces that large texts are cut into.
TEXT_SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")
PIECE_BYTES = 1 << 20


class CorpusError(ValueError):
    """A corpus that cannot be read as asked; the message says what to change."""


@dataclass(frozen=True)
class Document:
    """One text. `name` says where it came from, relative to the corpus: `email/parser.py`."""

    name: str
    text: str


def folder_documents(root: Path, text_field: str, skipped: Counter[str]) -> Iterator[Document]:
    """The documents of every file below `root`, named by their path from there."""
    for relative in relative_files(root, skipped):
        # Linux allows names that are no text; a document's name is.
        name = relative.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        yield from file_documents(root / relative, name, text_field, PIECE_BYTES, skipped)


def relative_files(
    root: Path, skipped: Counter[str], left_out: frozenset[str] = frozenset()
) -> list[str]:
    """The files below `root`, as paths from there with forward slashes, sorted by these.

    Hidden files and folders and those named in `left_out` are left out. Links are followed, each
    folder is read once, and a folder that may not be read is counted as unreadable.
    """
    found: list[str] = []
    seen: set[str] = set()  # folders by their real path: a link to a parent must not loop
    folders = [""]
    for folder in folders:  # grows as folders are found: the shallowest come first
        real = os.path.realpath(root / folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(real))
        except OSError:
            skipped["unreadable"] += 1
            continue
        for name in names:
            if name.startswith(".") or name in left_out:
                continue
            relative = f"{folder}/{name}" if folder else name
            if os.path.isdir(root / relative):
                folders.append(relative)
            else:
                found.append(relative)
    return sorted(found)


def file_documents(
    path: Path, name: str, text_field: str, piece_bytes: int, skipped: Counter[str]
) -> Iterator[Document]:
    """The documents of one file, called `name`; texts are cut into pieces of `piece_bytes`."""
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES:
        skipped["unknown type"] += 1
        return
    try:
        # A named pipe would wait for a writer forever; a dangling or circular link has no stat.
        if not stat.S_ISREG(path.stat().st_mode):
            skipped["unreadable"] += 1
            return
        if suffix == ".jsonl":
            yield from _jsonl_documents(path, name, text_field, skipped)
        elif suffix == ".parquet":
            yield from _parquet_documents(path, name, text_field, skipped)
        else:
            yield from _text_documents(path, name, piece_bytes, skipped)
    except OSError:
        skipped["unreadable"] += 1


def _text_documents(
    path: Path, name: str, piece_bytes: int, skipped: Counter[str]
) -> Iterator[Document]:
    with open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size <= piece_bytes
        carried = b""
        number = 0
        while True:
            data = carried + file.read(piece_bytes - len(carried))
            if number and not data:
                return
            ended = len(data) < piece_bytes or whole
            cut = len(data) if ended else _last_cut(data)
            piece, carried = data[:cut], data[cut:]
            if number == 0:
                piece = piece.removeprefix(b"\xef\xbb\xbf")  # the byte order mark
            text = _decoded(piece, skipped)
            if text is not None:
                yield Document(name if whole else f"{name}:{number}", text)
            number += 1
            if ended:
                return


def _last_cut(data: bytes) -> int:
    """Where to end a piece: after the last line, or, in a line without end, between characters."""
    line_end = data.rfind(b"\n") + 1
    if line_end:
        return line_end
    cut = len(data) - 1
    while cut > len(data) - 4 and data[cut] & 0xC0 == 0x80:
        cut -= 1  # a continuation byte: its character began earlier
    return cut


def _decoded(data: bytes, skipped: Counter[str]) -> str | None:
    if b"\0" in data:
        skipped["binary"] += 1
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        skipped["undecodable"] += 1
        return None
    return checked_text(text, skipped)


def checked_text(text: Any, skipped: Counter[str]) -> str | None:
    """The text if it is one that can be learned from; counted and None otherwise."""
    if not isinstance(text, str):
        reason = "no text"
    elif not text or text.isspace():
        reason = "empty"
    elif "\0" in text:
        reason = "binary"
    elif _has_lone_surrogate(text):
        reason = "undecodable"
    else:
        return text
    skipped[reason] += 1
    return None


def _has_lone_surrogate(text: str) -> bool:
    # JSON may spell half of a UTF-16 pair; no UTF-8 file can hold it. ASCII is the common case.
    return not text.isascii() and re.search(r"[\ud800-\udfff]", text) is not None


def _jsonl_documents(
    path: Path, name: str, text_field: str, skipped: Counter[str]
) -> Iterator[Document]:
    found = False
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):  # as editors count
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # broken JSON, broken UTF-8, a bomb
                record = None
            if not isinstance(record, dict):
                skipped["broken line"] += 1
                continue
            if not found and text_field not in record:
                raise CorpusError(
                    f"{name}: no field {text_field!r}; line {number} has {sorted(record)}"
                )
            found = True
            text = checked_text(record.get(text_field), skipped)
            if text is not None:
                yield Document(f"{name}:{number}", text)


def _parquet_documents(
    path: Path, name: str, text_field: str, skipped: Counter[str]
) -> Iterator[Document]:
    # Imported where it is needed: it costs a tenth of a second that most runs need not pay.
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if text_field not in file.schema_arrow.names:
                raise CorpusError(
                    f"{name}: no field {text_field!r}; it has {file.schema_arrow.names}"
                )
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                for value in batch.column(0):
                    try:
                        text = checked_text(value.as_py(), skipped)
                    except UnicodeDecodeError:
                        skipped["undecodable"] += 1
                        text = None
                    if text is not None:
                        yield Document(f"{name}:{number}", text)
                    number += 1
    except (pa.ArrowException, OSError):
        skipped["damaged file"] += 1
