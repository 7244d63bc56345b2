"""Text to learn from: the standard library, this course, your own files, the Hugging Face hub.

`load_corpus("stdlib")` works on any machine with no network: Python brings ten megabytes of
prose and code along. Every corpus is a stream of `Document`s in a fixed order that can be
iterated again and again, in constant memory however large the files are.

What is kept faithfully and what is not: text is UTF-8, its bytes unchanged, carriage returns
included; only a byte order mark at the start of a file is dropped, being a mark of the encoding
and not of the text. (The two built-in corpora have their line ends unified, so that they are the
same on Windows.) What cannot be text is skipped and counted by reason in `Corpus.skipped`, never
silently, and never with an error that stops a run over one bad file among thousands. A field
name that a file does not have, though, is a mistake to be told about at once.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from text_files import (
    PIECE_BYTES,
    TEXT_SUFFIXES,
    CorpusError,
    Document,
    checked_text,
    file_documents,
    folder_documents,
    relative_files,
)

__all__ = [
    "Corpus",
    "CorpusError",
    "Document",
    "is_validation",
    "load_corpus",
    "split_corpus",
]

# The standard library, less what is no source to learn from:
# - test suites: half of the bytes, mostly tables of cases, and Debian does not install them;
# - encodings: 1.4 MB of which 1.3 are generated character maps, near-copies of each other;
# - pydoc_data/topics.py: the language reference as one generated file of string literals; its
#   texts are read as documents of their own instead;
# - what belongs to the machine: installed packages, the build's configuration, site hooks.
_STDLIB_FOLDERS_LEFT_OUT = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "lib-dynload"}
    | {"test", "tests", "idle_test", "encodings", "pydoc_data"}
)
_STDLIB_FILES_LEFT_OUT = re.compile(r"_sysconfigdata.*|_sysconfig_vars.*|(site|user)customize\.py")

_Source = Callable[[Counter[str]], Iterator[Document]]


class Corpus:
    """A stream of documents: re-iterable, in a fixed order, never held in memory whole.

    name: what it was loaded as, without folders of this machine.
    skipped: how many files, lines or pieces the latest iteration left out so far, by reason:
        "binary" (holds NUL), "undecodable" (not UTF-8), "empty" (white space), "unreadable",
        "unknown type", "broken line" (of .jsonl), "damaged file" (.parquet), "no text" (the
        field is absent or no string).

    Iterating raises CorpusError if there turns out to be no document at all.
    """

    def __init__(self, name: str, source: _Source, *, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise CorpusError(f"max_bytes must be positive, got {max_bytes}")
        self.name = name
        self.skipped: dict[str, int] = {}
        self._source = source
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[Document]:
        skipped: Counter[str] = Counter()
        self.skipped = skipped
        empty = True
        for document in self._documents(skipped):
            empty = False
            yield document
        if empty:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
            raise CorpusError(
                f"the corpus {self.name} holds no text (skipped: {reasons or 'nothing'})"
            )

    def _documents(self, skipped: Counter[str]) -> Iterator[Document]:
        if self._max_bytes is None:
            yield from self._source(skipped)
            return
        total = 0
        for document in self._source(skipped):
            size = len(document.text.encode())
            if total and total + size > self._max_bytes:
                return
            total += size
            yield document

    def __repr__(self) -> str:
        return f"Corpus({self.name!r})"


def load_corpus(
    spec: str | os.PathLike[str], *, max_bytes: int | None = None, text_field: str = "text"
) -> Corpus:
    """Open the corpus that `spec` names:

    - `stdlib`: the source of the installed Python's standard library and its language reference,
      9 to 11 MB; without tests, generated tables and whatever this machine added.
    - `course`: this course's own pages and modules.
    - a path: a .txt, .md, .py, .jsonl or .parquet file, or a folder of them, hidden ones left
      out, in the order of their relative names. A text file is cut at line ends into documents
      of at most 1 MiB; one that is the whole corpus into 64 at least (of 4 KiB at least), so
      that there is something to hold out for validation. A .jsonl line or a .parquet row is a
      document, its text in `text_field`.
    - `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME:CONFIG:SPLIT` (CONFIG may be empty; the split is
      `train` unless given): a data set of the Hugging Face hub, or a local folder of one,
      streamed by the `datasets` library.

    `max_bytes` ends the corpus before the document that would exceed it, except the first.

    Raises CorpusError, here if the spec cannot be opened, or on iteration; TypeError for a spec
    that is neither a string nor a path.
    """
    if not isinstance(spec, (str, os.PathLike)):
        raise TypeError(f"a corpus is named by a string or a path, got {spec!r}")
    spec = os.fspath(spec)
    if not spec:  # as a path it would be the current folder, with whatever lies there
        raise CorpusError("the corpus's name is empty: give stdlib, course, a path or hf:NAME")
    if spec == "stdlib":
        source: _Source = _stdlib_documents
        name = spec
    elif spec == "course":
        source, name = _course_documents, spec
        _course_root()
    elif spec.startswith("hf:"):
        source, name = _open_hub(spec, text_field), spec
    else:
        source, name = _open_path(spec, text_field)
    return Corpus(name, source, max_bytes=max_bytes)


def is_validation(document: Document, *, fraction: float, seed: int) -> bool:
    """Whether a document belongs to the held-out share.

    Decided by a hash of its text and the seed: no list to keep, the same on every machine, and
    equal documents fall on the same side, so that no exact copy leaks from one to the other.
    """
    _check_fraction(fraction)
    return _share(document, seed) < fraction


def split_corpus(corpus: Corpus, *, fraction: float, seed: int) -> tuple[Corpus, Corpus]:
    """(train, validation): two views of one corpus, by document, as `is_validation` decides.

    Where chance would leave a side of a small corpus empty, the document nearest to the border
    goes there. Raises CorpusError if all documents are equal: one text cannot be both.
    """
    _check_fraction(fraction)
    lowest, highest = 1.0, 0.0
    for document in corpus:
        share = _share(document, seed)
        lowest, highest = min(lowest, share), max(highest, share)
        if lowest < fraction <= highest:
            break
    else:
        if lowest == highest:
            raise CorpusError(
                f"the corpus {corpus.name} is a single document: it cannot be split into training "
                "and validation text; give more text"
            )
    border = fraction
    if lowest >= fraction:
        border = math.nextafter(lowest, 2.0)  # the lowest alone is held out
    elif highest < fraction:
        border = highest  # the highest alone is trained on

    def side(validation: bool, skipped: Counter[str]) -> Iterator[Document]:
        for document in corpus._documents(skipped):
            if (_share(document, seed) < border) == validation:
                yield document

    return (
        Corpus(f"{corpus.name} (train)", partial(side, False)),
        Corpus(f"{corpus.name} (validation)", partial(side, True)),
    )


def _check_fraction(fraction: float) -> None:
    if not 0.0 < fraction < 1.0:
        raise CorpusError(f"the validation fraction must lie between 0 and 1, got {fraction}")


def _share(document: Document, seed: int) -> float:
    """A number in [0, 1) that looks random and depends on the text and the seed alone."""
    digest = hashlib.blake2b(document.text.encode(), digest_size=6, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big") / 2.0**48


def _open_path(spec: str, text_field: str) -> tuple[_Source, str]:
    path = Path(spec)
    name = path.name or path.resolve().name or spec
    if path.is_dir():
        return partial(folder_documents, path, text_field), name
    if not path.exists():
        raise CorpusError(
            f"no file or folder {spec!r} (a corpus is stdlib, course, a path or hf:NAME)"
        )
    if path.suffix.lower() not in TEXT_SUFFIXES:
        raise CorpusError(f"a corpus file must end in {', '.join(TEXT_SUFFIXES)}, got {spec!r}")
    pieces = min(PIECE_BYTES, max(path.stat().st_size // 64, 4096))
    return partial(file_documents, path, path.name, text_field, pieces), name


# ---------------------------------------------------------------------------------------------
# The two built-in corpora


def _stdlib_documents(skipped: Counter[str]) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        relative
        for relative in relative_files(root, Counter(), _STDLIB_FOLDERS_LEFT_OUT)
        if relative.endswith(".py")
        and not _STDLIB_FILES_LEFT_OUT.fullmatch(relative.rpartition("/")[2])
        and not relative.startswith("config-")
    ]
    if len(files) < 100:  # an embedded Python keeps its library compiled, in an archive
        raise CorpusError(
            f"this Python has its standard library not as source files ({len(files)} found): "
            "give a path of your own text instead"
        )
    topics = _language_reference()
    for name in sorted([*files, *topics]):
        if name in topics:
            text = checked_text(topics[name], skipped)
            if text is not None:
                yield Document(name, text)
        else:
            yield from _unified_documents(root / name, name, skipped)


def _language_reference() -> dict[str, str]:
    """What `help("assert")` prints, by name: chapters of the Python language reference."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return {}
    return {f"pydoc_data/topics/{name}": text for name, text in topics.items()}


def _course_root() -> Path:
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        raise CorpusError("the corpus 'course' needs a checkout of the course, not an installation")
    return root


def _course_documents(skipped: Counter[str]) -> Iterator[Document]:
    root = _course_root()
    # Pages and modules; not the exercises, whose solutions repeat them.
    pages = [*root.glob("*.md"), *root.glob("[01][0-9]-*/*.md"), *root.glob("[01][0-9]-*/*.py")]
    for name in sorted(path.relative_to(root).as_posix() for path in pages):
        yield from _unified_documents(root / name, name, skipped)


def _unified_documents(path: Path, name: str, skipped: Counter[str]) -> Iterator[Document]:
    for document in file_documents(path, name, "text", PIECE_BYTES, skipped):
        yield Document(document.name, document.text.replace("\r\n", "\n"))


# ---------------------------------------------------------------------------------------------
# The hub


def _open_hub(spec: str, text_field: str) -> _Source:
    """hf:NAME[:CONFIG[:SPLIT]]; a Windows path's colon after one letter belongs to the name."""
    match = re.fullmatch(r"hf:((?:[A-Za-z]:[\\/])?[^:]+)(?::([^:]*))?(?::([^:]+))?", spec)
    if match is None:
        raise CorpusError(f"write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT, got {spec!r}")
    return partial(_hub_documents, match[1], match[2] or None, match[3] or "train", text_field)


def _hub_documents(
    name: str, config: str | None, split: str, text_field: str, skipped: Counter[str]
) -> Iterator[Document]:
    label = f"{Path(name).name}/{split}"
    for number, row in enumerate(_hub_rows(name, config, split)):
        if text_field not in row:
            raise CorpusError(f"{label}: no field {text_field!r}; row {number} has {sorted(row)}")
        text = checked_text(row[text_field], skipped)
        if text is not None:
            yield Document(f"{label}:{number}", text)


def _hub_rows(name: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset  # a second to import, so only where it is asked for

    try:
        yield from load_dataset(name, config, split=split, streaming=True)
    except ConnectionError as error:
        raise CorpusError(
            f"cannot reach the data set {name!r}: {error}. It is not on this machine, so the "
            "Hugging Face hub must be reachable and HF_HUB_OFFLINE unset; the corpus stdlib and "
            "local files need no network"
        ) from error
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot open the data set {name!r}: {error}") from error
