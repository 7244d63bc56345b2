"""The one interface between text and ids: a model of ordinary text, special tokens, files.

A special token such as <|endoftext|> is an instruction to whoever reads the ids. In a text it is
only found where the caller allows it: in what a user has typed it is ordinary characters, so that
nobody ends a document, or speaks as somebody else, by typing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TextIO

import regex

from bpe import BPE
from pretokens import check_text, safe_parts
from subword_model import SubwordModel
from tokenizer_files import (
    EOS_TOKEN,
    PAD_TOKENS,
    TokenizerParts,
    read_gpt2_files,
    read_roles,
    read_tiktoken,
    read_tokenizer_json,
    tokenizer_config_json,
    tokenizer_json,
)
from unigram import Unigram
from wordpiece import WordPiece

BERT_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")

AllowedSpecial = Collection[str] | Literal["all"]


def _different(special_tokens: Sequence[str]) -> list[str]:
    if isinstance(special_tokens, str):
        raise TypeError(f"special_tokens must be several names, not one string: {[special_tokens]}")
    names = list(special_tokens)
    if len(set(names)) < len(names):
        raise ValueError(f"special tokens must be different: {names}")
    return names


class Tokenizer:
    """Text to ids and back. `decode(encode(text)) == text` for every string where the model is
    byte-level: every BPE here, and WordPiece and Unigram over `ByteLevelText`.

    Make one with `Tokenizer.from_bpe`, `from_wordpiece`, `from_unigram`, `load` or `from_tiktoken`.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self.parts = parts
        self.model = parts.model
        self.special_tokens = dict(parts.special_tokens)
        added = parts.added_tokens
        self._added = added
        # Where words come without their spaces, decoding puts one before each word and token.
        self._spaced = isinstance(self.model, SubwordModel) and self.model.surface.spaced
        space = " " * self._spaced
        self._bytes = self.model.pieces | {
            id_: (space + token).encode() for token, id_ in added.items()
        }
        self._finders: dict[frozenset[str], regex.Pattern[str] | None] = {}
        self.vocab_size = max(self._bytes) + 1

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, special_tokens={self.special_tokens})"

    def __reduce__(self) -> tuple[object, ...]:
        return Tokenizer, (self.parts,)

    @classmethod
    def from_bpe(
        cls,
        bpe: BPE,
        special_tokens: Sequence[str] | Mapping[str, int] = (EOS_TOKEN,),
        *,
        eos_token: str | None = None,
        bos_token: str | None = None,
        pad_token: str | None = None,
    ) -> Tokenizer:
        """Add special tokens to a trained BPE.

        Args:
            special_tokens: names, which take the first ids and move all others up, as
                `tokenizers` does; or names with ids, where the BPE keeps its own.
            eos_token: the one that ends a document; <|endoftext|> where it is among them.

        Raises:
            ValueError: a name twice, an id that is taken, or a role for an unknown token.
        """
        if not isinstance(special_tokens, Mapping):
            names = _different(special_tokens)
            special_tokens = {name: id_ for id_, name in enumerate(names)}
            bpe = bpe.shifted(len(names))
        if eos_token is None and EOS_TOKEN in special_tokens:
            eos_token = EOS_TOKEN
        return cls(
            TokenizerParts(
                model=bpe,
                special_tokens=special_tokens,
                eos_token=eos_token,
                bos_token=bos_token,
                pad_token=pad_token,
            )
        )

    @classmethod
    def from_wordpiece(
        cls, model: WordPiece, special_tokens: Sequence[str] = BERT_TOKENS, **roles: str | None
    ) -> Tokenizer:
        """Add special tokens to a trained WordPiece: they take the first ids, and the unknown token
        is one of them, too.

        Args:
            roles: eos_token, bos_token, pad_token; <|endoftext|> and [PAD] have theirs anyway.

        Raises:
            ValueError: a name twice, or a role for an unknown token.
        """
        names = _different(special_tokens)
        return cls._with_names(model.shifted(len(names)), names, model.unk_token, roles)

    @classmethod
    def from_unigram(
        cls,
        model: Unigram,
        special_tokens: Sequence[str] = ("<pad>", EOS_TOKEN),
        **roles: str | None,
    ) -> Tokenizer:
        """Add special tokens to a trained Unigram, as `from_wordpiece` does."""
        names = _different(special_tokens)
        unknown = None if model.unk_id is None else model.names[model.unk_id]
        return cls._with_names(model.with_special_tokens(names), names, unknown, roles)

    @classmethod
    def _with_names(
        cls,
        model: SubwordModel,
        names: Sequence[str],
        unknown: str | None,
        roles: Mapping[str, str | None],
    ) -> Tokenizer:
        special = {name: id_ for id_, name in enumerate(names)}
        eos = EOS_TOKEN if EOS_TOKEN in special else None
        pad = next((name for name in PAD_TOKENS if name in special), None)
        if unknown is not None:
            special[unknown] = model.vocab[unknown]
        return cls(
            TokenizerParts(
                model=model,
                special_tokens=special,
                eos_token=roles.get("eos_token", eos),
                bos_token=roles.get("bos_token"),
                pad_token=roles.get("pad_token", pad),
            )
        )

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike[str],
        pattern: str,
        *,
        special_tokens: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """Read one of tiktoken's rank files (`cl100k_base.tiktoken`). It holds neither the pattern
        nor the special tokens.

        Raises:
            ValueError: a damaged line, a missing byte, an id that is taken.
        """
        return cls(read_tiktoken(Path(path), pattern, special_tokens))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.json`, or a directory that holds one or GPT-2's two files.

        Raises:
            ValueError: damaged, or not supported (the message says what): only byte-level BPE
                without a normaliser gives every string back.
            FileNotFoundError: there is no tokenizer at `path`.
        """
        path = Path(path)
        if not path.is_dir():
            return cls(read_tokenizer_json(path))
        if (path / "tokenizer.json").exists():
            parts = read_tokenizer_json(path / "tokenizer.json")
        elif (path / "vocab.json").exists() and (path / "merges.txt").exists():
            parts = read_gpt2_files(path)
        else:
            raise FileNotFoundError(
                f"{path} holds neither tokenizer.json nor vocab.json, merges.txt"
            )
        try:
            return cls(replace(parts, **read_roles(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`, which `tokenizers.Tokenizer.from_file` reads, to a path that
        ends in .json; else to that folder, with the `tokenizer_config.json` that tells
        `transformers.AutoTokenizer` about it and about the roles of special tokens."""
        from lab import atomic_write  # here, since it brings PyTorch, which reading text needs not

        path = Path(path)
        if path.suffix == ".json":
            atomic_write(path, tokenizer_json(self.parts))
            return
        path.mkdir(parents=True, exist_ok=True)
        atomic_write(path / "tokenizer.json", tokenizer_json(self.parts))
        atomic_write(path / "tokenizer_config.json", tokenizer_config_json(self.parts))

    @property
    def bpe(self) -> BPE:
        """The model, where it is a BPE; TypeError where it is another."""
        if not isinstance(self.model, BPE):
            raise TypeError(f"this tokenizer is a {type(self.model).__name__}, not a BPE")
        return self.model

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, if there is one."""
        return self._role_id(self.parts.eos_token)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a sequence, if there is one."""
        return self._role_id(self.parts.bos_token)

    @property
    def pad_id(self) -> int | None:
        """The id that fills up a sequence, if there is one."""
        return self._role_id(self.parts.pad_token)

    def _role_id(self, token: str | None) -> int | None:
        return None if token is None else self._added[token]

    def _finder(self, allowed_special: AllowedSpecial) -> regex.Pattern[str] | None:
        """What finds the added tokens that may occur in a text; the longest where several could."""
        if allowed_special == "all":
            allowed_special = self.special_tokens
        elif isinstance(allowed_special, str):
            raise TypeError('allowed_special must be a set of names or "all", not one name')
        allowed = frozenset(allowed_special)
        if allowed not in self._finders:
            if unknown := allowed - self.special_tokens.keys():
                raise ValueError(f"no special tokens of this tokenizer: {sorted(unknown)}")
            names = sorted(allowed | self.parts.plain_tokens.keys(), key=len, reverse=True)
            self._finders[allowed] = (
                regex.compile("|".join(map(regex.escape, names))) if names else None
            )
        return self._finders[allowed]

    def _segments(self, text: str, finder: regex.Pattern[str]) -> Iterator[tuple[str, bool]]:
        """The text in order: ordinary stretches, and added tokens (True)."""
        begin = 0
        for match in finder.finditer(text):
            yield text[begin : match.start()], False
            yield match.group(), True
            begin = match.end()
        yield text[begin:], False

    def encode(self, text: str, *, allowed_special: AllowedSpecial = frozenset()) -> list[int]:
        """The ids of a text.

        Args:
            allowed_special: the special tokens that may be written in it, or "all". The
                characters of any other one are ordinary text.

        Raises:
            TypeError, ValueError: `text` is no string or holds a lone surrogate; an unknown name.
        """
        finder = self._finder(allowed_special)
        if finder is None:
            return self.model.encode(text)
        check_text(text)
        ids: list[int] = []
        for segment, is_added in self._segments(text, finder):
            if is_added:
                ids.append(self._added[segment])
            else:
                ids.extend(self.model.encode(segment))
        return ids

    def encode_batch(
        self, texts: Iterable[str], *, allowed_special: AllowedSpecial = frozenset()
    ) -> list[list[int]]:
        """The ids of several texts."""
        # In this process: sending texts and ids between processes takes longer than encoding.
        if isinstance(texts, str):
            raise TypeError("texts must be an iterable of strings, not one string")
        return [self.encode(text, allowed_special=allowed_special) for text in texts]

    def encode_with_offsets(
        self, text: str, *, allowed_special: AllowedSpecial = frozenset()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and the characters [start, end) of the text that each has a part in."""
        finder = self._finder(allowed_special)
        check_text(text)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        begin = 0
        for segment, is_added in self._segments(text, finder) if finder else [(text, False)]:
            if is_added:
                ids.append(self._added[segment])
                offsets.append((begin, begin + len(segment)))
            else:
                made, places = self.model.encode_with_offsets(segment)
                ids.extend(made)
                offsets.extend((begin + start, begin + end) for start, end in places)
            begin += len(segment)
        return ids, self._trimmed(ids, offsets) if self.parts.trim_offsets else offsets

    def _trimmed(self, ids: list[int], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        trimmed = []
        for place, (id_, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
            token = self._bytes[id_]
            before = len(token) - len(token.lstrip(b" "))
            after = len(token) - len(token.rstrip(b" "))
            if before == 1 and self.parts.keep_first_space and (place == 0 or start == 0):
                before = 0
            start = min(start + before, end)
            if end >= after:
                end = max(end - after, start)
            trimmed.append((start, end))
        return trimmed

    def encode_iter(
        self,
        source: TextIO | Iterable[str],
        *,
        allowed_special: AllowedSpecial = frozenset(),
        part_chars: int = 1 << 18,
    ) -> Iterator[list[int]]:
        """The ids of a text of any length in constant memory, a list for each part; joined, they
        are those of the whole. See `BPE.encode_iter`.

        Raises:
            ValueError: a pattern for which no cut is known to be safe; a lone surrogate.
        """
        finder = self._finder(allowed_special)
        reach = max(map(len, self._added), default=0) if finder else 0
        for part in safe_parts(
            source, self.model.pattern or "", part_chars=part_chars, uncut=finder, reach=reach
        ):
            yield self.encode(part, allowed_special=allowed_special)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for, which may end within a character.

        Raises:
            ValueError: an id that is not in the vocabulary.
        """
        try:
            written = b"".join(map(self._bytes.__getitem__, ids))
        except KeyError as error:
            raise ValueError(
                f"id {error.args[0]} is not in the vocabulary of {self.vocab_size}"
            ) from None
        return written.removeprefix(b" ") if self._spaced else written

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of the ids; bytes that are no UTF-8 come out as U+FFFD.

        Args:
            skip_special: leave out the special tokens.
        """
        if skip_special:
            special = set(self.special_tokens.values())
            ids = [id_ for id_ in ids if id_ not in special]
        return self.decode_bytes(ids).decode("utf-8", errors="replace")
