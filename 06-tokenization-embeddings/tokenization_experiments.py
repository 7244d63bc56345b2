"""The experiments of topic 06: what vocabularies buy, what they cost, and what vectors know."""

from __future__ import annotations

import math
import random
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from bpe import train_bpe
from brief_training import Texts, held_out_bits, next_token_windows, train_briefly
from corpora import load_corpus
from embeddings import (
    SkipGramConfig,
    WordVectors,
    pointwise_mutual_information,
    train_skip_gram,
)
from gpt import GPT, GPTConfig
from lab import interval, progress, time_side_by_side
from plain_tokens import character_vocabulary, coverage, word_vocabulary
from pretokens import count_pretokens
from subword_model import count_words
from text_surfaces import BertText, ByteLevelText, MetaspaceText
from tiny_lexicon import (
    FIND,
    GIVE,
    GO,
    JOBS_OF_MEN,
    JOBS_OF_WOMEN,
    MOODS,
    PLACES,
    PUT,
    REASONS,
    TAKE,
)
from tiny_world import TinyWorld
from tokenizer import Tokenizer
from unigram import Unigram
from unigram_training import Lattice, train_unigram
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

    text_bytes: int = 200_000
    held_out_bytes: int = 50_000
    vocab_sizes: tuple[int, ...] = (768, 1536, 3072)
    vocab_size: int = 1024
    compute_sizes: tuple[int, ...] = (320, 1024, 4096)
    byte_steps: int = 150
    d_model: int = 64
    num_layers: int = 2
    seq_len: int = 64
    batch_size: int = 16
    seeds: int = 3
    speed_bytes: tuple[int, ...] = (100_000, 300_000)
    rounds: int = 3
    parallel_bytes: tuple[int, ...] = (10_000_000, 40_000_000, 80_000_000)
    stories: int = 1500
    vector_steps: int = 700


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
            train_unigram([text], vocab_size, surface=ByteLevelText()), ()
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


# --- beside tokenizers -----------------------------------------------------------------------


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
    for name in ("prose", "code", "tiny world"):
        train = corpora[name][0]
        counts = {w: float(n) for w, n in count_words([train], MetaspaceText()).items()}
        size = scale.vocab_sizes[-1] if name != "tiny world" else scale.vocab_sizes[0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            train_with_library("Unigram", [train], size).save(str(path))
            theirs = Tokenizer.load(path).model
        assert isinstance(theirs, Unigram)
        other = _likelihood(theirs.scored_pieces, counts)
        bits = 1 / math.log(2) / len(train.encode())
        row: list[Any] = [name, len(theirs.vocab), -other * bits]
        for by_word in (True, False):
            ours = train_unigram([train], size, seeds_by_word=by_word)
            mine = _likelihood(ours.scored_pieces, counts)
            row += [-mine * bits, 100 * (mine / other - 1)]
            if by_word:
                worst = max(worst, abs(mine / other - 1))
        rows.append(row)
    columns = [
        "corpus",
        "vocabulary",
        "`tokenizers`, bits a byte",
        "ours from its seeds",
        "longer by, %",
        "ours from the text's seeds",
        "longer by, % ",
    ]
    return {
        "likelihoods": {
            "columns": columns,
            "rows": rows,
            "formats": ["", ",d", ".4f", ".4f", ".2f", ".4f", ".2f"],
        },
        "likelihood_worst_percent": 100 * worst,
    }


def compare_speed(corpora: Mapping[str, tuple[str, str]], scale: TokenScale) -> dict[str, Any]:
    """Seconds to train and megabytes a second to encode, ours and the library's, side by side."""
    train_ours: dict[str, Callable[[Sequence[str]], Any]] = {
        "BPE": lambda texts: train_bpe(texts, scale.vocab_size),
        "WordPiece": lambda texts: train_wordpiece(
            texts, scale.vocab_size, surface=ByteLevelText()
        ),
        "Unigram": lambda texts: train_unigram(texts, scale.vocab_size),
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


# --- what a language model makes of it -------------------------------------------------------


def _texts(tokenizer: Tokenizer | None, train: str, held_out: str) -> Texts:
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


def _bits(texts: Texts, scale: TokenScale, seed: int) -> float:
    model = GPT(_config(texts.vocab_size, scale), generator=torch.Generator().manual_seed(seed))
    windows = next_token_windows(
        texts.train, batch_size=scale.batch_size, seq_len=scale.seq_len, seed=seed
    )
    train_briefly(model, windows, steps=_steps(texts.vocab_size, scale), lr=3e-3)
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
            texts = _texts(tokenizer, train, held_out)
            bits = [_bits(texts, scale, seed) for seed in range(scale.seeds)]
            mean, half = interval(bits)
            steps = _steps(texts.vocab_size, scale)
            read = steps * scale.batch_size * scale.seq_len
            read_bytes = read * len(train.encode()) / len(texts.train)
            rows.append([name, kind, steps, read_bytes / 1e6, mean, half])
            detail.append({"corpus": name, "kind": kind, "bits": mean, "half": half})
    train, held_out = corpora["prose"]
    sizes = []
    for size in scale.compute_sizes:
        texts = _texts(Tokenizer.from_bpe(train_bpe([train], size), ()), train, held_out)
        mean, half = interval([_bits(texts, scale, seed) for seed in range(scale.seeds)])
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


# --- vectors ---------------------------------------------------------------------------------

_CLASSES = {
    "going": GO,
    "finding": FIND,
    "taking": TAKE,
    "putting": PUT,
    "giving": GIVE,
    "jobs": (*JOBS_OF_MEN, *JOBS_OF_WOMEN),
    "feelings": (*MOODS, *REASONS),
}


def agreement_questions(
    stories: Sequence[Any], *, min_count: int = 10
) -> list[tuple[str, str, str, frozenset[str]]]:
    """Analogies of gender in tiny world's second language, (a, b, c, right answers).

    Verbs, jobs and feelings end in -o for a man and in -a for a woman. a is to b (the same word,
    -o and -a) as c (-o) is to any -a word of c's kind: the grammar takes the verbs of going for
    one another at random, so no text can tell which of them it is.
    """
    kind_of = {word: kind for kind, words in _CLASSES.items() for word in words}
    seen: Counter[tuple[str, str]] = Counter()
    for story in stories:
        for english, foreign, pairs in zip(
            story.sentences, story.foreign_sentences, story.alignments, strict=True
        ):
            source, target = (
                re.findall(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]", english),
                foreign.split(),
            )
            for i, j in pairs:
                if source[i] in kind_of:
                    seen[target[j], kind_of[source[i]]] += 1
    forms: defaultdict[str, dict[str, str]] = defaultdict(dict)  # stem -> ending -> kind
    for (word, kind), count in seen.items():
        if count >= min_count and word[-1] in "oa":
            forms[word[:-1]][word[-1]] = kind
    both = {s: ends["o"] for s, ends in forms.items() if ends.get("o", 1) == ends.get("a", 2)}
    women: defaultdict[str, set[str]] = defaultdict(set)
    for stem, kind in both.items():
        women[kind].add(stem + "a")
    return [
        (first + "o", first + "a", second + "o", frozenset(women[kind]))
        for first in both
        for second, kind in both.items()
        if first != second
    ]


def score_questions(
    vectors: WordVectors, questions: Sequence[tuple[str, str, str, frozenset[str]]]
) -> dict[str, float]:
    """Shares of right answers: by analogy, by c's nearest neighbour alone, and by chance."""
    known = [q for q in questions if all(word in vectors for word in q[:3])]
    by_analogy = sum(vectors.analogy(a, b, c)[0][0] in right for a, b, c, right in known)
    nearest = {c: vectors.nearest(c)[0][0] for _, _, c, _ in known}
    by_neighbour = sum(nearest[c] in right for _, _, c, right in known)
    chance = sum(len(right) for *_, right in known) / len(vectors.words)
    count = max(1, len(known))
    return {
        "questions": len(known),
        "analogy": by_analogy / count,
        "neighbour": by_neighbour / count,
        "chance": chance / count,
    }


def compare_windows(scale: TokenScale) -> tuple[dict[str, Any], WordVectors]:
    """Skip-gram on the second language: analogies by window, and scores beside PMI. Returns the
    findings, and English vectors for the picture."""
    stories = list(TinyWorld().stories(scale.stories, seed=60))
    foreign = [s.split() for story in stories for s in story.foreign_sentences]
    questions = agreement_questions(stories, min_count=max(2, scale.stories // 150))
    random.Random(0).shuffle(questions)
    questions = questions[:800]
    rows = []
    correlations = []
    runs = [(window, seed) for window in (1, 3, 8) for seed in range(scale.seeds)]
    found: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
    for window, seed in progress(runs, desc="vectors", unit="run"):
        config = SkipGramConfig(
            d_model=32, window=window, negatives=5, steps=scale.vector_steps, batch_size=2048
        )
        vectors = train_skip_gram(foreign, config, seed=seed)
        found[window].append(score_questions(vectors, questions))
        if window == 3:
            correlations.append(_pmi_correlation(vectors, foreign, window))
    for window, scores in found.items():
        mean, half = interval([100 * score["analogy"] for score in scores])
        neighbour, _ = interval([100 * score["neighbour"] for score in scores])
        rows.append([window, mean, half, neighbour, 100 * scores[0]["chance"]])
    english = [re.findall(r"\w+|[^\w\s]", s) for story in stories for s in story.sentences]
    vectors = train_skip_gram(
        english,
        SkipGramConfig(d_model=32, window=3, negatives=5, steps=scale.vector_steps),
    )
    mean, half = interval(correlations)
    return {
        "analogies": {
            "columns": [
                "window",
                "analogies right, %",
                "± 95 %",
                "nearest neighbour instead, %",
                "chance, %",
            ],
            "rows": rows,
            "formats": ["d", ".1f", ".1f", ".1f", ".1f"],
        },
        "analogy_questions": found[3][0]["questions"],
        "preposition_percent": 100 * _preposition_accuracy(vectors),
        "pmi": {"correlation": mean, "half": half},
        "neighbours": {
            "columns": ["word", "nearest"],
            "rows": [
                [word, ", ".join(name for name, _ in vectors.nearest(word, 4))]
                for word in ("kitchen", "red", "Maria", "boots", "walked", "nurse")
                if word in vectors
            ],
        },
    }, vectors


def _preposition_accuracy(vectors: WordVectors) -> float:
    """A place is to its preposition as another place is to its own: true without exception, and no
    question for differences of vectors."""
    questions = [
        (one, before_one, other, before_other)
        for before_one, one in PLACES
        for before_other, other in PLACES
        if before_one != before_other and one in vectors and other in vectors
    ]
    return vectors.analogy_accuracy(questions)


def _pmi_correlation(
    vectors: WordVectors, sentences: Sequence[Sequence[str]], window: int
) -> float:
    """Correlation of u·v with PMI over the pairs that occur."""
    pmi = pointwise_mutual_information(sentences, vectors.words, window)
    assert vectors.contexts is not None
    scores = vectors.vectors @ vectors.contexts.T
    seen = np.isfinite(pmi)
    return float(np.corrcoef(pmi[seen], scores[seen])[0, 1])
