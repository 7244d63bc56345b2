"""Pre-tokens: the pieces that a regular expression cuts text into before any vocabulary is used.

No token crosses from one pre-token into the next, so the pattern decides what a token can be at
most, and a text is the same as a bag of pre-tokens to whoever trains on it. The patterns of GPT-2
and of GPT-3.5/4; how to cut a text of any length where the cut changes nothing; and counting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TextIO

import regex

# How GPT-2 cuts text (Radford et al. 2019): contractions; letters, numbers or other signs, each
# with the one space before it; and runs of white space, less their last sign where a word follows.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# How GPT-3.5 and GPT-4 cut it: contractions in either case, any one sign before a word, numbers in
# threes, line ends kept with the signs before them. `tiktoken` spells it with possessive
# quantifiers, which Oniguruma (inside `tokenizers`) reads differently; this spelling means the
# same to all, and `\s+(?![\s\S])` is white space up to the end of the text.
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+(?![\s\S])|\s*[\r\n]|\s+(?!\S)|\s"
)
# Other spellings and relatives for which the proof in `safe_parts` holds: tiktoken's own two; the
# one in Llama 3's and many converted GPT-4 files, which differs from today's only for a line end
# and further white space at the end of a text; and Qwen's, which takes numbers digit by digit.
_CUTTABLE = frozenset(
    {
        GPT2_PATTERN,
        CL100K_PATTERN,
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
# Searched backwards, so that the first match ends at the last cut of a text.
_CUT = regex.compile(r"(?r)(?:\p{L}(?=\P{L})|\p{N}(?=\P{N})|[^\s\p{L}\p{N}](?=[^\S\r\n]))")

_PART_CHARS = 1 << 18  # text handled at a time: a few MB of Python strings once it is cut
_BATCH_CHARS = 1 << 20  # text sent to a worker process at a time


def check_text(text: str) -> None:
    """Refuse what has no UTF-8 form.

    Raises:
        TypeError: `text` is no string.
        ValueError: it holds a lone surrogate, which is half a character.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds a lone surrogate, U+{ord(text[error.start]):04X}, at index "
            f"{error.start}: it is no character and has no UTF-8 form"
        ) from None


def cuts_are_proven(pattern: str) -> bool:
    """Whether `safe_parts` takes this pattern. It then also matches at every character."""
    return pattern in _CUTTABLE


def splitter(pattern: str) -> regex.Pattern[str]:
    """Compile a pattern so that `findall` loses nothing: what lies between two matches comes as a
    piece of its own.

    Raises:
        ValueError: the pattern does not compile, captures groups or matches the empty string.
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups:
        raise ValueError(f"pattern {pattern!r} has a capturing group: write (?:...)")
    if compiled.fullmatch(""):
        raise ValueError(f"pattern {pattern!r} matches the empty string")
    if cuts_are_proven(pattern):
        return compiled
    return regex.compile(rf"(?:{pattern})|(?s:(?:(?!{pattern}).)+)")


def _last_cut(text: str, first: int, uncut: regex.Pattern[str] | None, reach: int) -> int | None:
    end = len(text) - reach
    while match := _CUT.search(text, first, max(end, first)):
        cut = match.end()
        if uncut is None or not any(
            found.start() < cut < found.end()
            for found in uncut.finditer(text, max(0, cut - reach), cut + reach, overlapped=True)
        ):
            return cut
        end = cut
    return None


def safe_parts(
    source: TextIO | Iterable[str],
    pattern: str,
    *,
    part_chars: int = _PART_CHARS,
    uncut: regex.Pattern[str] | None = None,
    reach: int = 0,
) -> Iterator[str]:
    """Cut a stream of text into parts that can be pre-tokenised one by one.

    A cut lies after a letter and before a non-letter, after a number and before a non-number, or
    after any other sign and before white space that is no line end. It changes nothing, because

    1. no alternative of the patterns runs across such a place, so a match ends there anyway;
    2. none looks further: the lookaheads are only tried at the end of white space, and the left
       part ends with something else;
    3. none looks behind, so matching goes on in the right part as it would in the whole.

    Where a text offers no such place (a megabyte without a space may be one pre-token), the part
    grows until one comes.

    Args:
        source: an open text file, or strings that join to the text, cut anywhere.
        pattern: GPT2_PATTERN, CL100K_PATTERN or one of their published relatives.
        part_chars: characters taken in before a cut is sought.
        uncut: strings that must not be cut through (special tokens) ...
        reach: ... and the length of the longest of them.

    Raises:
        ValueError: no cut is known to be safe for this pattern, or part_chars is not positive.
        TypeError: the source does not give strings.
    """
    if not cuts_are_proven(pattern):
        raise ValueError(
            "streaming needs a pattern whose cuts are proven safe (GPT2_PATTERN, CL100K_PATTERN "
            f"and their relatives), not {pattern!r}; encode whole documents instead"
        )
    if part_chars < 1:
        raise ValueError(f"part_chars must be positive, got {part_chars}")
    if isinstance(source, str):
        raise TypeError("source must be a file or an iterable of strings, not one string")
    read = getattr(source, "read", None)
    chunks: Iterable[str] = iter(lambda: read(part_chars), "") if read else source
    held: list[str] = []  # text in which there is no cut
    tail = ""  # the text after it, to be searched together with what comes next
    fresh: list[str] = []
    fresh_chars = 0
    for chunk in chunks:
        if not isinstance(chunk, str):
            raise TypeError(f"source must give strings, not {type(chunk).__name__}")
        fresh.append(chunk)
        fresh_chars += len(chunk)
        if fresh_chars < part_chars:
            continue
        text = tail + "".join(fresh)
        fresh, fresh_chars = [], 0
        cut = _last_cut(text, reach if held else 0, uncut, reach)
        if cut is not None:
            yield "".join((*held, text[:cut]))
            held, tail = [], text[cut:]
        else:
            # What is held is not searched again, so that a text without cuts costs no n². The tail
            # is as long as it must be to see every string of `uncut` around a later cut.
            kept = max(0, len(text) - 2 * reach - 1)
            if kept:
                held.append(text[:kept])
            tail = text[kept:]
    if rest := "".join((*held, tail, *fresh)):
        yield rest


def text_parts(text: str, pattern: str) -> Iterable[str]:
    """A long text in parts, so that its pre-tokens are never all in memory."""
    if len(text) <= _BATCH_CHARS or not cuts_are_proven(pattern):
        return (text,)
    starts = range(0, len(text), _PART_CHARS)
    chunks = (text[start : start + _PART_CHARS] for start in starts)
    return safe_parts(chunks, pattern, part_chars=_PART_CHARS)


def _batches(texts: Iterable[str], pattern: str) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        check_text(text)
        for part in text_parts(text, pattern):
            batch.append(part)
            size += len(part)
            if size >= _BATCH_CHARS:
                yield batch
                batch, size = [], 0
    yield batch


def _count_batch(batch: Sequence[str], pattern: str) -> Counter[str]:
    find = splitter(pattern).findall
    counts: Counter[str] = Counter()
    for text in batch:
        counts.update(find(text))
    return counts


def count_pretokens(
    texts: Iterable[str], pattern: str = GPT2_PATTERN, *, workers: int = 1
) -> Counter[str]:
    """How often each pre-token occurs in the texts. The counts do not depend on `workers`.

    With `workers > 1` that many spawned processes do the cutting: call it from a script under
    `if __name__ == "__main__"`. Each begins by importing that script, which takes seconds where it
    imports PyTorch, so that for some ten megabytes one process is faster.

    Raises:
        TypeError, ValueError: a text is no string or holds a lone surrogate; a bad pattern.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, not one string")
    splitter(pattern)  # a bad pattern is found out here, not in a worker
    counts: Counter[str] = Counter()
    if workers == 1:
        for batch in _batches(texts, pattern):
            counts.update(_count_batch(batch, pattern))
        return counts
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending: deque[Future[Counter[str]]] = deque()
        for batch in _batches(texts, pattern):
            pending.append(pool.submit(_count_batch, batch, pattern))
            if len(pending) > 2 * workers:  # the corpus is never in memory as a whole
                counts.update(pending.popleft().result())
        while pending:
            counts.update(pending.popleft().result())
    return counts
