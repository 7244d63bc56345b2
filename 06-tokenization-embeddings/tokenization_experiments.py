"""The experiments of topic 06 with vocabularies: what they buy, what they cost, and what a language
model makes of them. `library_comparison.py` and `vector_experiments.py` hold the others."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bpe import train_bpe
from brief_training import Texts, held_out_bits, next_token_windows, train_briefly
from corpora import load_corpus
from gpt import GPT, GPTConfig
from lab import interval, progress
from plain_tokens import character_vocabulary, coverage, word_vocabulary
from text_surfaces import BertText, ByteLevelText
from tiny_world import TinyWorld
from tokenizer import Tokenizer
from unigram_training import train_unigram
from wordpiece import train_wordpiece

# One sentence (the first of the Universal Declaration of Human Rights) in eight scripts or tongues.
SAME_SENTENCE = {
    "English": "All human beings are born free and equal in dignity and rights.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。",
}


@dataclass(frozen=True, kw_only=True)
class TokenScale:
    """How large the experiments are.

    text_bytes, held_out_bytes: of each corpus; vocab_sizes: those compared; vocab_size: the one
    that is trained with; byte_steps: training steps of the byte model, whose FLOPs all others get.
    """

    text_bytes: int = 250_000
    held_out_bytes: int = 50_000
    vocab_sizes: tuple[int, ...] = (768, 1536, 3072)
    vocab_size: int = 1024
    compute_sizes: tuple[int, ...] = (320, 1024, 4096)
    byte_steps: int = 250
    d_model: int = 64
    num_layers: int = 2
    seq_len: int = 64
    batch_size: int = 16
    seeds: int = 3
    speed_bytes: tuple[int, ...] = (100_000, 400_000)
    rounds: int = 3
    parallel_bytes: tuple[int, ...] = (10_000_000, 40_000_000, 120_000_000)
    stories: int = 1500
    vector_steps: int = 800


DEFAULT_SCALE_06 = TokenScale()
SMOKE_SCALE_06 = TokenScale(
    text_bytes=20_000,
    held_out_bytes=5_000,
    vocab_sizes=(600, 700),
    vocab_size=600,
    compute_sizes=(320, 600),
    byte_steps=6,
    d_model=16,
    seq_len=16,
    batch_size=4,
    seeds=2,
    speed_bytes=(10_000, 20_000),
    rounds=1,
    parallel_bytes=(),
    stories=60,
    vector_steps=30,
)


# --- corpora ---------------------------------------------------------------------------------


def _split(texts: Sequence[str], scale: TokenScale) -> tuple[str, str]:
    """(training text, held-out text): every fifth document is held out, in a shuffled order."""
    order = list(texts)
    random.Random(0).shuffle(order)
    train = "\n".join(text for place, text in enumerate(order) if place % 5)
    held_out = "\n".join(order[::5])
    return train[: scale.text_bytes], held_out[: scale.held_out_bytes]


def four_corpora(scale: TokenScale) -> dict[str, tuple[str, str]]:
    """Name -> (training text, held-out text). All but the code's odd sign is ASCII."""
    documents = list(load_corpus("stdlib"))
    code = [d.text for d in documents if d.name.endswith(".py")]
    prose = [d.text for d in documents if not d.name.endswith(".py")]
    stories = list(TinyWorld().stories(max(60, scale.text_bytes // 500), seed=6))
    return {
        "code": _split(code, scale),
        "prose": _split(prose, scale),
        "tiny world": _split([story.text for story in stories], scale),
        "second language": _split([story.translation for story in stories], scale),
    }


def byte_level_tokenizers(text: str, vocab_size: int) -> dict[str, Tokenizer]:
    """The three algorithms on the same bytes and words, so that none loses anything."""
    return {
        "BPE": Tokenizer.from_bpe(train_bpe([text], vocab_size), ()),
        "WordPiece": Tokenizer.from_wordpiece(
            train_wordpiece([text], vocab_size, surface=ByteLevelText()), ()
        ),
        "Unigram": Tokenizer.from_unigram(
            # The library's way of counting seeds; `library_comparison.compare_seeds` has the other.
            train_unigram([text], vocab_size, surface=ByteLevelText(), seeds_by_word=True),
            (),
        ),
    }


# --- vocabularies and text -------------------------------------------------------------------


def measure_fertility(corpora: Mapping[str, tuple[str, str]], scale: TokenScale) -> dict[str, Any]:
    """Bytes a token and tokens a word of held-out text, by vocabulary size."""
    rows, detail = [], []
    for name, (train, held_out) in progress(corpora.items(), desc="fertility", unit="corpus"):
        num_words = len(held_out.split())
        num_bytes = len(held_out.encode())
        for size in scale.vocab_sizes:
            row: list[Any] = [name, size]
            for kind, tokenizer in byte_level_tokenizers(train, size).items():
                tokens = len(tokenizer.encode(held_out))
                row.append(num_bytes / tokens)
                detail.append(
                    {"corpus": name, "size": size, "kind": kind, "bytes": num_bytes / tokens}
                )
                if kind == "BPE":
                    fertility = tokens / num_words
            rows.append([*row, fertility])
    columns = ["corpus", "vocabulary", "BPE", "WordPiece", "Unigram", "BPE tokens a word"]
    return {
        "fertility": {"columns": columns, "rows": rows, "formats": ["", ",d", *[".2f"] * 4]},
        "fertility_detail": detail,
    }


def measure_plain(corpora: Mapping[str, tuple[str, str]], scale: TokenScale) -> dict[str, Any]:
    """What characters and words do: length on one side, the unknown on the other; and what BERT's
    own words lose."""
    rows = []
    for name, (train, held_out) in corpora.items():
        by_character = coverage(character_vocabulary([train]), held_out, by_word=False)
        vocabulary = word_vocabulary([train])
        by_word = coverage(vocabulary, held_out, by_word=True)
        small = coverage(word_vocabulary([train], max_size=1000), held_out, by_word=True)
        bert = Tokenizer.from_wordpiece(
            train_wordpiece([train], scale.vocab_size, surface=BertText())
        )
        ids = bert.encode(held_out)
        same = sum(
            bert.decode(bert.encode(line)) == line for line in held_out.splitlines() if line.strip()
        )
        lines = sum(bool(line.strip()) for line in held_out.splitlines())
        rows.append(
            [
                name,
                by_character.bytes_per_token,
                100 * by_character.unknown_share,
                len(vocabulary),
                100 * by_word.unknown_share,
                100 * small.unknown_share,
                100 * ids.count(bert.special_tokens["[UNK]"]) / len(ids),
                100 * same / lines,
            ]
        )
    columns = [
        "corpus",
        "bytes a character",
        "unknown characters, %",
        "distinct words",
        "unknown words, %",
        "with 1,000 words, %",
        "BERT: unknown tokens, %",
        "BERT: lines that come back, %",
    ]
    formats = ["", ".3f", ".2f", ",d", ".1f", ".1f", ".2f", ".1f"]
    return {"plain": {"columns": columns, "rows": rows, "formats": formats}}


def measure_transfer(corpora: Mapping[str, tuple[str, str]], scale: TokenScale) -> dict[str, Any]:
    """A BPE trained on one corpus and used on another; and one sentence in several languages."""
    size = scale.vocab_sizes[-1]
    tokenizers = {
        name: Tokenizer.from_bpe(train_bpe([train], size), ())
        for name, (train, _) in corpora.items()
    }
    rows = [
        [name, *(len(held_out.encode()) / len(t.encode(held_out)) for t in tokenizers.values())]
        for name, (_, held_out) in corpora.items()
    ]
    english = tokenizers["prose"]
    base = len(english.encode(SAME_SENTENCE["English"]))
    scripts = []
    for language, sentence in SAME_SENTENCE.items():
        tokens = len(english.encode(sentence))
        scripts.append([language, len(sentence), len(sentence.encode()), tokens, tokens / base])
    return {
        "transfer": {
            "columns": ["text", *(f"trained on {name}" for name in tokenizers)],
            "rows": rows,
            "formats": ["", *[".2f"] * len(tokenizers)],
        },
        "scripts": {
            "columns": ["language", "characters", "bytes", "tokens", "times English"],
            "rows": scripts,
            "formats": ["", "d", "d", "d", ".1f"],
        },
    }


# --- what a language model makes of it -------------------------------------------------------


def encoded_texts(tokenizer: Tokenizer | None, train: str, held_out: str) -> Texts:
    """Ids of both texts; without a tokenizer their bytes."""

    def ids(text: str) -> torch.Tensor:
        found = list(text.encode()) if tokenizer is None else tokenizer.encode(text)
        return torch.tensor(found)  # (N,)

    return Texts(
        train=ids(train),
        held_out=ids(held_out),
        held_out_bytes=len(held_out.encode()),
        vocab_size=256 if tokenizer is None else tokenizer.vocab_size,
    )


def _config(vocab_size: int, scale: TokenScale) -> GPTConfig:
    return GPTConfig(
        vocab_size=vocab_size,
        d_model=scale.d_model,
        num_heads=4,
        num_layers=scale.num_layers,
        max_seq_len=scale.seq_len,
    )


def _steps(vocab_size: int, scale: TokenScale) -> int:
    """Steps that cost as many FLOPs as the byte model's."""
    byte, own = (_config(size, scale).flops_per_token(scale.seq_len) for size in (256, vocab_size))
    return max(1, round(scale.byte_steps * byte / own))


def trained_bits(texts: Texts, scale: TokenScale, seed: int) -> float:
    """Held-out bits per byte of a GPT trained on these ids with the byte model's FLOPs."""
    model = GPT(_config(texts.vocab_size, scale), generator=torch.Generator().manual_seed(seed))
    windows = next_token_windows(
        texts.train, batch_size=scale.batch_size, seq_len=scale.seq_len, seed=seed
    )
    train_briefly(model, windows, steps=_steps(texts.vocab_size, scale), lr=4e-3)
    return held_out_bits(model, texts, seq_len=scale.seq_len)


def compare_downstream(corpora: Mapping[str, tuple[str, str]], scale: TokenScale) -> dict[str, Any]:
    """Bits per byte of held-out text after the same number of FLOPs, and over vocabulary sizes."""
    rows, detail = [], []
    chosen = ("code", "prose", "tiny world")
    for name in progress(chosen, desc="downstream", unit="corpus"):
        train, held_out = corpora[name]
        kinds: dict[str, Tokenizer | None] = {
            "bytes": None,
            **byte_level_tokenizers(train, scale.vocab_size),
        }
        for kind, tokenizer in kinds.items():
            texts = encoded_texts(tokenizer, train, held_out)
            bits = [trained_bits(texts, scale, seed) for seed in range(scale.seeds)]
            mean, half = interval(bits)
            steps = _steps(texts.vocab_size, scale)
            read = steps * scale.batch_size * scale.seq_len
            read_bytes = read * len(train.encode()) / len(texts.train)
            rows.append([name, kind, steps, read_bytes / 1e6, mean, half])
            detail.append({"corpus": name, "kind": kind, "bits": mean, "half": half})
    train, held_out = corpora["prose"]
    sizes = []
    for size in scale.compute_sizes:
        texts = encoded_texts(Tokenizer.from_bpe(train_bpe([train], size), ()), train, held_out)
        mean, half = interval([trained_bits(texts, scale, seed) for seed in range(scale.seeds)])
        steps = _steps(texts.vocab_size, scale)
        config = _config(texts.vocab_size, scale)
        share = 6 * texts.vocab_size * scale.d_model / config.flops_per_token(scale.seq_len)
        sizes.append([texts.vocab_size, steps, 100 * share, mean, half])
    return {
        "downstream": {
            "columns": ["corpus", "tokens", "steps", "MB read", "bits per byte", "± 95 %"],
            "rows": rows,
            "formats": ["", "", "d", ".2f", ".3f", ".3f"],
        },
        "downstream_detail": detail,
        "byte_steps": scale.byte_steps,
        "trained_vocab_size": scale.vocab_size,
        "prose_bytes_bits": next(r[4] for r in rows if r[:2] == ["prose", "bytes"]),
        "prose_bpe_bits": next(r[4] for r in rows if r[:2] == ["prose", "BPE"]),
        "sizes": {
            "columns": [
                "vocabulary",
                "steps",
                "FLOPs in the output layer, %",
                "bits per byte",
                "± 95 %",
            ],
            "rows": sizes,
            "formats": [",d", "d", ".0f", ".3f", ".3f"],
        },
    }
