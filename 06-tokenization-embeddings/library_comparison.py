"""Topic 06's experiments beside the `tokenizers` library: likelihood, seeds, speed, processes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from bpe import train_bpe
from corpora import load_corpus
from lab import interval, progress, time_side_by_side
from pretokens import count_pretokens
from subword_model import count_words
from text_surfaces import ByteLevelText, MetaspaceText
from tokenization_experiments import TokenScale, encoded_texts, trained_bits
from tokenizer import Tokenizer
from unigram import Unigram
from unigram_training import Lattice, train_unigram
from wordpiece import train_wordpiece


def train_with_library(kind: str, texts: Sequence[str], vocab_size: int) -> Library:
    """The same kind of tokenizer, trained by the `tokenizers` library."""
    options: dict[str, Any] = {"vocab_size": vocab_size, "show_progress": False}
    made: Any
    if kind == "Unigram":
        made = Library(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        trainer: Any = trainers.UnigramTrainer(
            special_tokens=["<unk>"], unk_token="<unk>", **options
        )
    else:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made = Library(models.BPE() if kind == "BPE" else models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = (
            trainers.BpeTrainer(initial_alphabet=alphabet, **options)
            if kind == "BPE"
            else trainers.WordPieceTrainer(
                initial_alphabet=alphabet, special_tokens=["[UNK]"], **options
            )
        )
    made.train_from_iterator(texts, trainer)
    return made


def _likelihood(pieces: Sequence[tuple[str, float]], counts: Mapping[str, float]) -> float:
    """Nats of all words, each summed over its cuts. Entry 0 is <unk>, which no word needs."""
    lattice = Lattice.build(counts, [piece for piece, _ in pieces])
    return lattice.expected(np.array([score for _, score in pieces]))[1]


def compare_likelihoods(
    corpora: Mapping[str, tuple[str, str]], scale: TokenScale
) -> dict[str, Any]:
    """Our Unigram's likelihood of its training text beside that of `UnigramTrainer`'s."""
    rows = []
    worst = 0.0
    for name in ("prose", "code"):
        train = corpora[name][0]
        counts = {w: float(n) for w, n in count_words([train], MetaspaceText()).items()}
        for size in scale.vocab_sizes[::2]:
            ours = train_unigram([train], size, seeds_by_word=True)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "tokenizer.json"
                train_with_library("Unigram", [train], size).save(str(path))
                theirs = Tokenizer.load(path).model
            assert isinstance(theirs, Unigram)
            mine = _likelihood(ours.scored_pieces, counts)
            other = _likelihood(theirs.scored_pieces, counts)
            shared = len(ours.vocab.keys() & theirs.vocab.keys()) / size
            bits = 1 / math.log(2) / len(train.encode())
            worst = max(worst, abs(mine / other - 1))
            rows.append(
                [name, size, -mine * bits, -other * bits, 100 * (mine / other - 1), 100 * shared]
            )
    columns = [
        "corpus",
        "vocabulary",
        "ours, bits a byte",
        "`tokenizers`, bits a byte",
        "ours is longer by, %",
        "pieces in common, %",
    ]
    return {
        "likelihoods": {
            "columns": columns,
            "rows": rows,
            "formats": ["", ",d", ".4f", ".4f", ".2f", ".1f"],
        },
        "likelihood_worst_percent": 100 * worst,
    }


def compare_seeds(corpora: Mapping[str, tuple[str, str]], scale: TokenScale) -> dict[str, Any]:
    """Unigram from seeds counted over distinct words, as the library has it, and in the text: bits
    of the training text, bytes a token of held-out text, and what a GPT makes of tiny world."""
    rows = []
    gpt = {}
    for name, (train, held_out) in progress(corpora.items(), desc="seeds", unit="corpus"):
        surface = ByteLevelText()
        counts = {w: float(n) for w, n in count_words([train], surface).items()}
        row: list[Any] = [name]
        for by_word in (True, False):
            model = train_unigram([train], scale.vocab_size, surface=surface, seeds_by_word=by_word)
            nats = -_likelihood(model.scored_pieces, counts)
            made = Tokenizer.from_unigram(model, ())
            row += [
                nats / math.log(2) / len(train.encode()),
                len(held_out.encode()) / len(made.encode(held_out)),
            ]
            if name == "tiny world":
                texts = encoded_texts(made, train, held_out)
                bits = [trained_bits(texts, scale, seed) for seed in range(scale.seeds)]
                mean, half = interval(bits)
                gpt["by_word" if by_word else "in_text"] = {"bits": mean, "half": half}
        rows.append(row)
    columns = [
        "corpus",
        "by word: bits a byte",
        "bytes a token",
        "in the text: bits a byte",
        "bytes a token ",
    ]
    return {
        "seed_counts": {
            "columns": columns,
            "rows": rows,
            "formats": ["", ".3f", ".2f", ".3f", ".2f"],
        },
        "seed_gpt": gpt,
    }


def compare_speed(corpora: Mapping[str, tuple[str, str]], scale: TokenScale) -> dict[str, Any]:
    """Seconds to train and megabytes a second to encode, ours and the library's, side by side."""
    train_ours: dict[str, Callable[[Sequence[str]], Any]] = {
        "BPE": lambda texts: train_bpe(texts, scale.vocab_size),
        "WordPiece": lambda texts: train_wordpiece(
            texts, scale.vocab_size, surface=ByteLevelText()
        ),
        "Unigram": lambda texts: train_unigram(texts, scale.vocab_size, seeds_by_word=True),
    }
    code = "\n".join(d.text for d in load_corpus("stdlib", max_bytes=2 * max(scale.speed_bytes)))
    training, encoding = [], []
    for kind, train in progress(train_ours.items(), desc="speed", unit="algorithm"):
        for size in scale.speed_bytes:
            texts = [code[:size]]
            timings = time_side_by_side(
                {
                    "ours": partial(train, texts),
                    "theirs": partial(train_with_library, kind, texts, scale.vocab_size),
                },
                rounds=scale.rounds,
            )
            ours, theirs = timings["ours"], timings["theirs"]
            training.append(
                [kind, size / 1e6, ours.median, theirs.median, ours.speedup_over(theirs)]
            )
        model = train([code[: scale.speed_bytes[0]]])
        make = {
            "BPE": Tokenizer.from_bpe,
            "WordPiece": Tokenizer.from_wordpiece,
            "Unigram": Tokenizer.from_unigram,
        }[kind]
        mine = make(model, ())
        with tempfile.TemporaryDirectory() as folder:
            mine.save(Path(folder) / "tokenizer.json")
            library = Library.from_file(str(Path(folder) / "tokenizer.json"))
        text = code[-scale.speed_bytes[-1] :]
        if mine.encode(text) != library.encode(text).ids:
            raise RuntimeError(f"{kind} does not give the ids of tokenizers")
        timings = time_side_by_side(
            {
                "ours": partial(mine.encode, text),
                "theirs": lambda library=library, text=text: library.encode(text).ids,
            },
            rounds=scale.rounds,
        )
        ours, theirs = timings["ours"], timings["theirs"]
        size = len(text.encode()) / 1e6
        encoding.append([kind, size / ours.median, size / theirs.median, ours.speedup_over(theirs)])
    return {
        "training_speed": {
            "columns": ["algorithm", "MB", "ours, s", "`tokenizers`, s", "times as fast"],
            "rows": training,
            "formats": ["", ".1f", ".2f", ".2f", ".2f"],
        },
        "encoding_speed": {
            "columns": ["algorithm", "ours, MB/s", "`tokenizers`, MB/s", "times as fast"],
            "rows": encoding,
            "formats": ["", ".2f", ".2f", ".2f"],
        },
    }


def measure_parallel(scale: TokenScale) -> dict[str, Any]:
    """Counting pre-tokens with one process and with two, over the size of the text."""
    texts = [d.text for d in load_corpus("stdlib")]
    once = sum(map(len, texts))
    rows = []
    for size in progress(scale.parallel_bytes, desc="parallel", unit="size"):
        many = [t for _ in range(max(1, round(size / once))) for t in texts]
        if size < once:
            many = texts[: max(1, len(texts) * size // once)]
        megabytes = sum(map(len, many)) / 1e6
        timings = time_side_by_side(
            {
                "one": partial(count_pretokens, many),
                "two": partial(count_pretokens, many, workers=2),
            },
            rounds=1,
        )
        one, two = timings["one"], timings["two"]
        rows.append([megabytes, one.median, two.median, two.speedup_over(one)])
    return {
        "parallel": {
            "columns": ["MB", "one process, s", "two processes, s", "times as fast"],
            "rows": rows,
            "formats": [".0f", ".2f", ".2f", ".2f"],
        }
    }
