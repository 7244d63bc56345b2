"""Text as one long stream of token ids on disk.

`write_shards` runs a corpus through a tokenizer once and writes shard files, 2 bytes a token where
the vocabulary allows. `TokenShards` maps them into memory: opening a terabyte costs nothing, and
the operating system keeps the pages that are in use. Both are also reached through
`token_dataset`, whose `TokenBatches` draws from them.

    shard-00000.bin  shard-00001.bin  …   the stream, cut every `shard_tokens`; little endian
    index.json                            what it is, counts and checksums; written last

README: "The data pipeline".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lab import atomic_write

if TYPE_CHECKING:
    from corpora import Document
    from tokenizer import Tokenizer

_INDEX = "index.json"
_FORMAT = "token-shards-1"
_SHARD_NAME = re.compile(r"shard-\d{5}\.bin")
_TEXT_AT_ONCE = 1 << 20  # characters handed to the tokenizer together: bounds the memory


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of a shard folder: its name, its tokens and the SHA-256 of its bytes."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardsInfo:
    """What `index.json` says of a shard folder. `num_bytes` counts the documents' UTF-8 bytes.

    `token_bytes[i]` is the number of bytes that token i stands for (0 for specials), or the whole
    is None where the tokens' bytes do not add up to the text: a tokenizer that changes letters.
    """

    dtype: str
    vocab_size: int
    eos_id: int
    num_documents: int
    num_tokens: int
    num_bytes: int
    token_bytes: tuple[int, ...] | None
    shards: tuple[ShardFile, ...]


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    directory: str | os.PathLike[str],
    *,
    shard_tokens: int = 1 << 26,
) -> ShardsInfo:
    """Tokenise documents into `directory`, an end-of-text token after each; memory stays constant.

    The index is written last and atomically, so a folder that has one is whole. What an
    interrupted call left behind is replaced by the next. Documents may cross shard files.

    Raises:
        ValueError: the folder already holds shards or other files, the tokenizer has no
            end-of-text token, `shard_tokens` < 1, or there is no text at all.
        OSError: the disk is full, say; the unfinished files are removed.
    """
    folder = Path(directory)
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens must be at least 1; got {shard_tokens}")
    if tokenizer.eos_id is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents")
    if (folder / _INDEX).exists():
        raise ValueError(f"{folder} already holds token shards; remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    strangers = [p.name for p in folder.iterdir() if not _SHARD_NAME.fullmatch(p.name)]
    if any(not name.startswith(f".{_INDEX}") for name in strangers):
        raise ValueError(f"{folder} holds other files ({sorted(strangers)[0]}); give a new folder")
    for name in folder.iterdir():
        name.unlink()

    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    num_documents = num_bytes = num_tokens = 0
    lengths = _token_bytes(tokenizer)
    bytes_by_token = 0
    writer = _ShardWriter(folder, dtype, shard_tokens)
    try:
        for texts in _groups(documents):
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                tokens = np.array([*ids, tokenizer.eos_id], dtype=np.int64)
                if tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size:
                    raise ValueError(
                        f"the tokenizer gave ids from {tokens.min()} to {tokens.max()}, and its "
                        f"vocabulary has {tokenizer.vocab_size}"
                    )
                writer.write(tokens.astype(dtype))
                num_documents += 1
                num_bytes += len(text.encode("utf-8"))
                bytes_by_token += int(lengths[tokens].sum())
                num_tokens += len(tokens)
        shards = writer.close()
        if not num_documents:
            raise ValueError(f"no text to write to {folder}: the corpus has no document")
        info = ShardsInfo(
            dtype="uint16" if dtype.itemsize == 2 else "uint32",
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            num_documents=num_documents,
            num_tokens=num_tokens,
            num_bytes=num_bytes,
            token_bytes=tuple(lengths.tolist()) if bytes_by_token == num_bytes else None,
            shards=shards,
        )
        atomic_write(folder / _INDEX, json.dumps({"format": _FORMAT, **asdict(info)}) + "\n")
    except BaseException:
        writer.abandon()  # frees the disk; the folder has no index and so was never whole
        raise
    return info


class TokenShards:
    """The token stream of a folder that `write_shards` wrote, mapped into memory, read only.

    `len(shards)` is the number of tokens. With `verify` every file is read once and compared with
    its checksum (about a second a gigabyte, and it warms the cache); without, only sizes are.

    Raises:
        ValueError: the folder, its index or a shard is missing, cut short or damaged; it names it.
    """

    def __init__(self, directory: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.directory = Path(directory)
        self.info = _read_index(self.directory)
        self.eos_id, self.vocab_size = self.info.eos_id, self.info.vocab_size
        self.num_documents, self.num_bytes = self.info.num_documents, self.info.num_bytes
        dtype = np.dtype(self.info.dtype).newbyteorder("<")
        self._arrays: list[np.ndarray] = []
        for shard in self.info.shards:
            path = self.directory / shard.file
            if not path.is_file():
                raise ValueError(f"token shard {path} is missing; write the shards again")
            size, wanted = path.stat().st_size, shard.tokens * dtype.itemsize
            if size != wanted:
                raise ValueError(
                    f"token shard {path} has {size} bytes where its index says {wanted}; "
                    "write the shards again"
                )
            if verify and _sha256(path) != shard.sha256:
                raise ValueError(
                    f"token shard {path} is damaged: its checksum differs from the index; "
                    "write the shards again"
                )
            self._arrays.append(np.memmap(path, dtype=dtype, mode="r"))
        # _ends[i] is the number of tokens up to the end of shard i.
        self._ends = np.cumsum([shard.tokens for shard in self.info.shards])
        self._token_bytes = (
            None if self.info.token_bytes is None else np.array(self.info.token_bytes)
        )

    def __len__(self) -> int:
        return self.info.num_tokens

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token stands for on average, end-of-text tokens counted in."""
        return self.num_bytes / len(self)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start … stop - 1 of the stream as int64, (stop - start,).

        Raises:
            ValueError: the stretch is not within the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"tokens {start} to {stop} are not within 0 to {len(self)}")
        pieces = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[shard]) - len(self._arrays[shard])
            end = min(stop, int(self._ends[shard]))
            pieces.append(self._arrays[shard][start - first : end - first])
            start, shard = end, shard + 1
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)

    def byte_count(self, tokens: np.ndarray) -> int:
        """The bytes of text that these tokens stand for.

        Raises:
            ValueError: the tokenizer that wrote the shards does not keep every byte.
        """
        if self._token_bytes is None:
            raise ValueError(
                f"the tokens in {self.directory} do not stand for fixed numbers of bytes, so only "
                "the bytes of the whole stream are known"
            )
        return int(self._token_bytes[tokens].sum())


class _ShardWriter:
    """Spreads a stream of tokens over files of `shard_tokens` each."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.finished: list[ShardFile] = []
        self.file: BinaryIO | None = None
        self.room = 0

    def write(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self.file is None:
                path = self.folder / f"shard-{len(self.finished):05d}.bin"
                self.file = open(path, "xb")  # noqa: SIM115 (closed by _finish or abandon)
                self.hash, self.room = hashlib.sha256(), self.shard_tokens
            piece = tokens[: self.room].tobytes()
            self.file.write(piece)
            self.hash.update(piece)
            self.room -= len(tokens[: self.room])
            tokens = tokens[len(piece) // self.dtype.itemsize :]
            if self.room == 0:
                self._finish()

    def close(self) -> tuple[ShardFile, ...]:
        if self.file is not None:
            self._finish()
        return tuple(self.finished)

    def _finish(self) -> None:
        assert self.file is not None
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        name, digest = Path(self.file.name).name, self.hash.hexdigest()
        tokens = self.shard_tokens - self.room
        self.finished.append(ShardFile(file=name, tokens=tokens, sha256=digest))
        self.file = None

    def abandon(self) -> None:
        if self.file is not None:
            self.file.close()
        for path in self.folder.iterdir():
            if _SHARD_NAME.fullmatch(path.name):
                path.unlink()


def _groups(documents: Iterable[Document]) -> Iterator[list[str]]:
    """The documents' texts in lists of about a million characters; empty ones are left out."""
    group: list[str] = []
    size = 0
    for document in documents:
        if not document.text:
            continue
        group.append(document.text)
        size += len(document.text)
        if size >= _TEXT_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """How many bytes each id of the vocabulary stands for, (V,); 0 for specials and unused ids."""
    special = set(tokenizer.special_tokens.values())
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    for i in range(tokenizer.vocab_size):
        with contextlib.suppress(ValueError):  # an id without a token
            lengths[i] = 0 if i in special else len(tokenizer.decode_bytes([i]))
    return lengths


def _read_index(folder: Path) -> ShardsInfo:
    path = folder / _INDEX
    if not path.is_file():
        raise ValueError(f"{folder} holds no token shards (no {_INDEX}), or they are unfinished")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != _FORMAT:
            raise ValueError("it has another format")
        shards = tuple(ShardFile(**shard) for shard in record.pop("shards"))
        lengths = record.pop("token_bytes")
        info = ShardsInfo(
            **record, shards=shards, token_bytes=None if lengths is None else tuple(lengths)
        )
        if info.dtype not in ("uint16", "uint32"):
            raise ValueError(f"it names the type {info.dtype!r}")
        if sum(shard.tokens for shard in shards) != info.num_tokens:
            raise ValueError("its shards do not add up to its tokens")
        if any(not _SHARD_NAME.fullmatch(shard.file) for shard in shards):
            raise ValueError("it names files that are no shards")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"token shard index {path} is damaged ({error}); write the shards again"
        ) from error
    return info


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
