"""From a corpus to token shards: split by document, train the tokenizer, write both sides.

Each stage ends by writing its result whole (tokenizer.json; the index of a shard folder), so a
run that was killed here starts again at the first stage whose result is missing. The split looks
only at a document's content, never at its place, so copies of one document fall on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bpe import train_bpe
from corpora import Document, load_corpus, split_corpus
from run_folder import RunError, RunFolder
from token_shards import TokenShards, write_shards
from tokenizer import Tokenizer

VALIDATION_FRACTION = 0.1
VALIDATION_BYTES = 4 * 2**20  # more held-out text than this is left unused
TOKENIZER_BYTES = 64 * 2**20  # the tokenizer is trained on at most this much of the training text
SMOKE_BYTES = 2**20
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A run's tokenizer and its two sides of the corpus."""

    tokenizer: Tokenizer
    train: TokenShards
    validation: TokenShards


def prepare_data(
    folder: RunFolder, *, say: Callable[[str], None], workers: int = 1
) -> dict[str, int]:
    """Make the tokenizer and both shard folders of a run, where they are not there already.

    Returns: how many files were skipped, by reason; empty where nothing was read.

    Raises: CorpusError where the corpus does not exist or holds no text; RunError where it is too
    small for the run's context.
    """
    settings = folder.settings
    tokenizer_file = folder.path / "tokenizer.json"
    sides = ((folder.train_shards, None), (folder.validation_shards, VALIDATION_BYTES))
    if tokenizer_file.exists() and all((where / "index.json").exists() for where, _ in sides):
        return {}
    corpus = load_corpus(settings.corpus, max_bytes=SMOKE_BYTES if settings.smoke else None)
    train, validation = split_corpus(corpus, fraction=VALIDATION_FRACTION, seed=settings.seed)
    if not tokenizer_file.exists():
        say(f"training the tokenizer on {corpus.name} …")
        texts = (document.text for document in _up_to(train, TOKENIZER_BYTES))
        # One id is kept for END_OF_TEXT.
        bpe = train_bpe(texts, settings.vocab_size - 1, workers=workers)
        Tokenizer.from_bpe(bpe, special_tokens=(END_OF_TEXT,)).save(folder.path)
    tokenizer = Tokenizer.load(folder.path)
    say("writing the token shards …")
    for documents, (where, limit) in zip((train, validation), sides, strict=True):
        if not (where / "index.json").exists():
            write_shards(documents if limit is None else _up_to(documents, limit), tokenizer, where)
    prepared = open_prepared(folder)
    for name, shards in (("training", prepared.train), ("held-out", prepared.validation)):
        if len(shards) <= settings.context:
            raise RunError(
                f"corpus {settings.corpus!r} is too small: its {name} part has {len(shards):,} "
                f"tokens and one window needs {settings.context + 1:,}; give more text or a "
                "smaller --context"
            )
    return dict(train.skipped)  # its iteration went through all files


def open_prepared(folder: RunFolder) -> PreparedData:
    """Read what `prepare_data` made.

    Raises: RunError where a file is missing or damaged; it says which.
    """
    try:
        return PreparedData(
            tokenizer=Tokenizer.load(folder.path),
            train=TokenShards(folder.train_shards),
            validation=TokenShards(folder.validation_shards),
        )
    except (ValueError, OSError) as error:
        raise RunError(f"{folder.path}: {error}") from error


def shard_text(
    shards: TokenShards, tokenizer: Tokenizer, *, last_bytes: int | None = None
) -> bytes:
    """The text that a shard folder holds, joined, as UTF-8; at most its last `last_bytes`.

    Byte-level tokens lose nothing, so the shards are the corpus and it need not be read again.
    """
    size, start = 1 << 16, len(shards)
    pieces: list[bytes] = []
    total = 0
    while start > 0 and (last_bytes is None or total < last_bytes):
        stop, start = start, max(0, start - size)
        ids = shards.read(start, stop)
        pieces.append(tokenizer.decode_bytes(ids[ids != shards.eos_id].tolist()))
        total += len(pieces[-1])
    text = b"".join(reversed(pieces))
    return text if last_bytes is None else text[len(text) - min(len(text), last_bytes) :]


def _up_to(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    """Documents from the start until `limit` bytes have been given; always at least one."""
    total = 0
    for document in documents:
        yield document
        total += len(document.text.encode("utf-8"))
        if total >= limit:
            return
