"""The experiments of topic 06 with word vectors: analogies and their control, and PMI."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from embeddings import (
    SkipGramConfig,
    WordVectors,
    pointwise_mutual_information,
    train_skip_gram,
)
from lab import interval, progress
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
from tokenization_experiments import TokenScale

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
        "foreign_words": len(vectors.words),
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


def _pmi_correlation(
    vectors: WordVectors, sentences: Sequence[Sequence[str]], window: int
) -> float:
    """Correlation of u·v with PMI over the pairs that occur."""
    pmi = pointwise_mutual_information(sentences, vectors.words, window)
    assert vectors.contexts is not None
    scores = vectors.vectors @ vectors.contexts.T
    seen = np.isfinite(pmi)
    return float(np.corrcoef(pmi[seen], scores[seen])[0, 1])


def ask_prepositions(scale: TokenScale) -> dict[str, Any]:
    """A place is to its preposition as another place is to its own: true in tiny world without
    exception, and no question for differences of vectors."""
    shares = []
    stories = TinyWorld().stories(scale.stories, seed=60)
    english = [re.findall(r"\w+|[^\w\s]", s) for story in stories for s in story.sentences]
    for seed in progress(range(scale.seeds), desc="prepositions", unit="run"):
        vectors = train_skip_gram(
            english,
            SkipGramConfig(d_model=32, window=3, negatives=5, steps=scale.vector_steps),
            seed=seed,
        )
        questions = [
            (one, before_one, other, before_other)
            for before_one, one in PLACES
            for before_other, other in PLACES
            if before_one != before_other and one in vectors and other in vectors
        ]
        shares.append(100 * vectors.analogy_accuracy(questions))
    mean, half = interval(shares)
    return {"prepositions": {"right_percent": mean, "half": half, "questions": len(questions)}}
