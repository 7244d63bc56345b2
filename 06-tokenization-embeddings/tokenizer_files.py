"""Tokenizers as files: `tokenizer.json`, GPT-2's two files, and tiktoken's rank files.

The readers return `TokenizerParts`, which `tokenizer.Tokenizer` works with, and refuse with a
ValueError whatever they could not read as the program does that wrote it. Truncation and padding
settings in a file concern batches, not tokens, and are not applied.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from bpe import BPE, byte_characters
from pretokens import GPT2_PATTERN, cuts_are_proven
from subword_files import read_subword_model, subword_sections
from subword_model import SubwordModel

EOS_TOKEN = "<|endoftext|>"
PAD_TOKENS = ("[PAD]", "<pad>")
_ROLES = ("eos_token", "bos_token", "pad_token")
_CHARACTER = byte_characters()
_BYTE = {character: byte for byte, character in _CHARACTER.items()}

# What `tokenizers` (Oniguruma) and `regex` read differently: possessive counts, line anchors,
# class intersections, \h and the like.
_AMBIGUOUS = regex.compile(r"\{[\d,]+\}\+|(?<!\\)\$|(?<![\\\[])\^|&&|\\[hHGZRXKkg]")


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """What a tokenizer consists of.

    Args:
        model: that of ordinary text.
        special_tokens: token -> id; found in a text only where the caller allows them.
        plain_tokens: token -> id of added tokens that are found in any text.
        eos_token, bos_token, pad_token: those that end, begin and fill up a sequence, if any. The
            readers take <|endoftext|> for the first where a file does not say.
        trim_offsets: whether the offsets of a token leave out the spaces at its ends ...
        keep_first_space: ... but for a single one at the very beginning of the text.

    Raises:
        ValueError: two tokens with one id, one token with two, or a role for an unknown token.
    """

    model: BPE | SubwordModel
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    plain_tokens: Mapping[str, int] = field(default_factory=dict)
    eos_token: str | None = None
    bos_token: str | None = None
    pad_token: str | None = None
    trim_offsets: bool = False
    keep_first_space: bool = False

    def __post_init__(self) -> None:
        pieces = _names(self.model)
        owner = {id_: piece for piece, id_ in pieces.items()}
        if both := self.special_tokens.keys() & self.plain_tokens.keys():
            raise ValueError(f"tokens {sorted(both)} cannot be special and plain")
        added = self.added_tokens
        for token, id_ in added.items():
            if not isinstance(token, str) or not token:
                raise ValueError(f"a special token must be a string that is not empty: {token!r}")
            if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0:
                raise ValueError(f"special token {token!r} needs an id of at least 0, not {id_!r}")
            if pieces.get(token, id_) != id_:
                raise ValueError(f"special token {token!r} is an ordinary piece of the vocabulary")
            if owner.setdefault(id_, token) != token:
                raise ValueError(f"id {id_} belongs to both {owner[id_]!r} and {token!r}")
        for role in _ROLES:
            token = getattr(self, role)
            if token is not None and token not in added:
                raise ValueError(f"{role} {token!r} is none of the special tokens {sorted(added)}")

    @property
    def added_tokens(self) -> dict[str, int]:
        """Special and plain tokens together, by id."""
        added = {**self.special_tokens, **self.plain_tokens}
        return dict(sorted(added.items(), key=lambda item: item[1]))


def _names(model: BPE | SubwordModel) -> dict[str, int]:
    """The vocabulary as files spell it."""
    if isinstance(model, SubwordModel):
        return model.vocab
    return {_shown(piece): id_ for piece, id_ in model.vocab.items()}


def _shown(piece: bytes) -> str:
    return "".join(map(_CHARACTER.__getitem__, piece))


def _check_portable(pattern: str) -> None:
    if found := _AMBIGUOUS.search(pattern):
        raise ValueError(
            f"pattern {pattern!r} is not supported in a file: {found.group()!r} does not mean the "
            "same to `tokenizers` (CL100K_PATTERN and GPT2_PATTERN do)"
        )


# ---------------------------------------------------------------------------------------------
# Writing


def tokenizer_json(parts: TokenizerParts) -> str:
    """The `tokenizer.json` from which `tokenizers.Tokenizer.from_file` makes the same tokenizer.

    Raises:
        ValueError: `tokenizers` would read the pattern in another way.
    """
    if isinstance(parts.model, BPE):
        sections = _bpe_sections(parts, parts.model)
    else:
        if parts.model.pattern is not None:
            _check_portable(parts.model.pattern)
        sections = subword_sections(parts.model, parts.added_tokens)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id_,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token in parts.special_tokens,
            }
            for token, id_ in parts.added_tokens.items()
        ],
        **sections,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _bpe_sections(parts: TokenizerParts, bpe: BPE) -> dict[str, Any]:
    _check_portable(bpe.pattern)
    vocab = _names(bpe) | parts.added_tokens

    def byte_level(**options: bool) -> dict[str, Any]:
        unset = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        return {"type": "ByteLevel", **unset, **options}

    if bpe.pattern == GPT2_PATTERN:
        pre_tokenizer = byte_level(use_regex=True)  # it has this very pattern built in
    else:
        split = {"type": "Split", "pattern": {"Regex": bpe.pattern}}
        split |= {"behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, byte_level()]}
    return {
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level(
            add_prefix_space=parts.keep_first_space, trim_offsets=parts.trim_offsets
        ),
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": bpe.whole_pieces,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": [[_shown(left), _shown(right)] for left, right in bpe.merges],
        },
    }


def tokenizer_config_json(parts: TokenizerParts) -> str:
    """The `tokenizer_config.json` that has `transformers.AutoTokenizer` read the file beside it."""
    content: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    content |= {role: getattr(parts, role) for role in _ROLES if getattr(parts, role) is not None}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------------------------------------
# Reading


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, not {value!r:.80}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {value!r:.80}")
    return value


def _ids(value: Any, what: str) -> dict[str, int]:
    for token, id_ in _object(value, what).items():
        if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0:
            raise ValueError(f"{what}: {token!r} has {id_!r:.80} for an id")
    return value


def _bytes_of(shown: str) -> bytes:
    try:
        return bytes(map(_BYTE.__getitem__, shown))
    except KeyError as error:
        raise ValueError(
            f"vocabulary entry {shown!r} is not byte-level: {error.args[0]!r} stands for no byte"
        ) from None


def _merge_pairs(lines: Iterable[Any], what: str) -> list[tuple[bytes, bytes]]:
    pairs = []
    for number, line in enumerate(lines):
        pair = line.split(" ") if isinstance(line, str) else line
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) for p in pair)
        ):
            raise ValueError(f"{what}: merge {number} must be a pair of pieces, not {line!r:.80}")
        pairs.append((_bytes_of(pair[0]), _bytes_of(pair[1])))
    return pairs


def _pieces(
    vocab: Mapping[str, int], merges: Iterable[tuple[bytes, bytes]], added: Mapping[str, int]
) -> dict[bytes, int]:
    """The vocabulary without the added tokens, but with those that ordinary text needs as well."""
    needed = {bytes([byte]) for byte in range(256)}
    for left, right in merges:
        needed |= {left, right, left + right}
    names = {_shown(piece) for piece in needed}
    return {
        _bytes_of(shown): id_
        for shown, id_ in vocab.items()
        if shown not in added or shown in names
    }


def _steps(value: Any, parts_key: str, what: str) -> list[dict[str, Any]]:
    """A step or a sequence of steps as a list; none for null."""
    if value is None:
        return []
    step = _object(value, what)
    if step.get("type") == "Sequence":
        return [_object(part, what) for part in _list(step.get(parts_key), what)]
    return [step]


def _adds_nothing(step: Mapping[str, Any]) -> bool:
    """Is this the template "the text alone", which `transformers` writes for GPT-2?"""
    alone = [{"Sequence": {"id": "A", "type_id": 0}}]
    return step.get("type") == "TemplateProcessing" and step.get("single") == alone


def _pattern(value: Any) -> str:
    steps = _steps(value, "pretokenizers", "pre_tokenizer")
    kinds = [step.get("type") for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise ValueError(f"pre_tokenizer {kinds} is not supported, only ByteLevel after one Split")
    if steps[-1].get("add_prefix_space", True):
        raise ValueError("add_prefix_space is not supported: it changes the text")
    use_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        if not use_regex:
            raise ValueError("a ByteLevel pre_tokenizer without a regex is not supported")
        return GPT2_PATTERN
    split = steps[0]
    pattern = _object(split.get("pattern"), "the pattern of Split").get("Regex")
    if use_regex or not isinstance(pattern, str):
        raise ValueError(
            f"pre_tokenizer {value!r:.200} is not supported: it splits twice or by a string"
        )
    _check_portable(pattern)
    kept = (split.get("behavior"), bool(split.get("invert")))
    # The other way of writing it drops what the pattern does not match, if there is such a thing.
    if kept != ("Isolated", False) and not (kept == ("Removed", True) and cuts_are_proven(pattern)):
        raise ValueError(f"Split with behavior, invert = {kept} is not supported")
    return pattern


def read_tokenizer_json(path: Path) -> TokenizerParts:
    """Read a byte-level BPE, a WordPiece or a Unigram that `tokenizers` or `transformers` has
    written. What a template puts around a text ([CLS], [SEP]) concerns batches, as padding does.

    Raises:
        ValueError: it is damaged, or of a kind that is not supported; the message says which.
    """
    content = _read_object(path)
    try:
        return _from_content(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _added_tokens(content: Mapping[str, Any]) -> dict[bool, dict[str, int]]:
    """Special (True) and plain (False) tokens with their ids."""
    tokens: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for token in _list(content.get("added_tokens", []), "added_tokens"):
        text = _object(token, "an added token").get("content")
        if not isinstance(text, str):
            raise ValueError(f"the content of an added token must be a string, not {text!r:.80}")
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise ValueError(f"{flag} of the added token {text!r} is not supported")
        tokens[bool(token.get("special"))] |= _ids({text: token.get("id")}, "added_tokens")
    return tokens


def _from_content(content: Mapping[str, Any]) -> TokenizerParts:
    model = _object(content.get("model"), "model")
    if model.get("type") in ("WordPiece", "Unigram"):
        tokens = _added_tokens(content)
        return TokenizerParts(
            model=read_subword_model(content, tokens[True] | tokens[False]),
            special_tokens=tokens[True],
            plain_tokens=tokens[False],
            eos_token=EOS_TOKEN if EOS_TOKEN in tokens[True] else None,
            pad_token=next((name for name in PAD_TOKENS if name in tokens[True]), None),
        )
    # The oldest files do not name the type of a BPE.
    if model.get("type", "BPE" if "merges" in model else None) != "BPE":
        raise ValueError(
            f"model {model.get('type')!r} is not supported, only byte-level BPE, WordPiece, Unigram"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise ValueError(f"model option {option} = {model[option]!r} is not supported")
    if _steps(content.get("normalizer"), "normalizers", "normalizer"):
        raise ValueError(f"normalizer {content['normalizer']!r:.200} is not supported")
    post = _steps(content.get("post_processor"), "processors", "post_processor")
    post = [step for step in post if not _adds_nothing(step)]
    decode = _steps(content.get("decoder"), "decoders", "decoder")
    for what, steps in (("post_processor", post), ("decoder", decode)):
        if len(steps) > 1 or any(step.get("type") != "ByteLevel" for step in steps):
            kinds = [step.get("type") for step in steps]
            raise ValueError(f"{what} {kinds} is not supported, only ByteLevel or none")
    tokens = _added_tokens(content)
    vocab = _ids(model.get("vocab"), "vocab")
    merges = _merge_pairs(_list(model.get("merges"), "merges"), "merges")
    bpe = BPE(
        merges,
        _pieces(vocab, merges, tokens[True] | tokens[False]),
        _pattern(content.get("pre_tokenizer")),
        whole_pieces=bool(model.get("ignore_merges")),
    )
    trim = bool(post and post[0].get("trim_offsets", True))
    return TokenizerParts(
        model=bpe,
        special_tokens=tokens[True],
        plain_tokens=tokens[False],
        eos_token=EOS_TOKEN if EOS_TOKEN in tokens[True] else None,
        trim_offsets=trim,
        keep_first_space=trim and bool(post[0].get("add_prefix_space", True)),
    )


def read_gpt2_files(directory: Path) -> TokenizerParts:
    """Read `vocab.json` and `merges.txt`. A vocabulary entry that no merge makes is a special
    token, such as GPT-2's <|endoftext|>.

    Raises:
        ValueError: a file is damaged or is not byte-level.
    """
    vocab_path, merges_path = directory / "vocab.json", directory / "merges.txt"
    try:
        vocab = _ids(_read_object(vocab_path), "vocab.json")
        added = directory / "added_tokens.json"
        extra = _ids(_read_object(added), "added_tokens.json") if added.exists() else {}
        lines = [line for line in _read_lines(merges_path) if line]
        if lines and lines[0].startswith("#version"):
            del lines[0]
        merges = _merge_pairs(lines, "merges.txt")
        pieces = _pieces(vocab, merges, vocab)
        special = {t: i for t, i in vocab.items() if i not in pieces.values()} | extra
        eos = EOS_TOKEN if EOS_TOKEN in special else None
        return TokenizerParts(model=BPE(merges, pieces), special_tokens=special, eos_token=eos)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def read_roles(directory: Path) -> dict[str, str]:
    """Which tokens end, begin and fill up a sequence, as `transformers` wrote it down beside."""
    roles: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        if not path.exists():
            continue
        content = _read_object(path)
        if content.get("add_prefix_space"):
            raise ValueError(f"{path}: add_prefix_space is not supported: it changes the text")
        for role in _ROLES:
            token = content.get(role)
            if isinstance(token, dict):  # an AddedToken written out
                token = token.get("content")
            if isinstance(token, str):
                roles[role] = token
    return roles


def read_tiktoken(
    path: Path, pattern: str, special_tokens: Mapping[str, int] | None = None
) -> TokenizerParts:
    """Read a rank file: in each line a piece in base 64 and its rank, which is also its id.

    tiktoken merges the two neighbours whose joint piece has the lowest rank. As a table that is:
    each way of making a piece from two others, in the order of the pieces.

    Raises:
        ValueError: a line is damaged, or one of the 256 bytes is missing.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split(" ")
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"{path}, line {number}: must be a piece in base 64 and a rank, not {line!r:.80}"
            ) from error
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    special = dict(special_tokens or {})
    try:
        return TokenizerParts(
            model=BPE(merges, ranks, pattern, whole_pieces=True, by_piece=True),
            special_tokens=special,
            eos_token=EOS_TOKEN if EOS_TOKEN in special else None,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
