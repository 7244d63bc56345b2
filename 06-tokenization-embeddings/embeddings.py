"""Word vectors from company: skip-gram with negative sampling, neighbours, analogies, projections.

Mikolov, Sutskever, Chen, Corrado and Dean (2013), arXiv:1310.4546. A word's vector is trained to
tell the words that really stood near it from words drawn at random. What it converges to is known
(Levy and Goldberg 2014): u · v = PMI(word, context) - ln k.

Derived in README.md, "Embeddings".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from train_loop import fit


@dataclass(frozen=True, kw_only=True)
class SkipGramConfig:
    """How word vectors are trained.

    Args:
        d_model: width of a vector.
        window: words on either side that count as company.
        negatives: k, words drawn at random for each true pair.
        noise_power: noise words are drawn in proportion to their count to this power.
        subsample: words more frequent than this are dropped now and then; 0 keeps all.
        steps, batch_size, lr: of Adam, whose rate falls linearly to zero.

    Raises:
        ValueError: a size that is not positive, a negative subsample.
    """

    d_model: int = 48
    window: int = 4
    negatives: int = 8
    noise_power: float = 0.75
    subsample: float = 0.0
    steps: int = 1500
    batch_size: int = 2048
    lr: float = 0.01

    def __post_init__(self) -> None:
        for name in ("d_model", "window", "negatives", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.lr > 0 and self.noise_power >= 0 and self.subsample >= 0):
            raise ValueError("lr must be positive, noise_power and subsample not negative")


def skip_gram_pairs(
    sentences: Sequence[Sequence[int]], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(centres, contexts), each (pairs,): every word with every other one at most `window` away in
    its sentence."""
    centres: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    contexts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    flat = np.array([id_ for sentence in sentences for id_ in sentence], np.int64)
    owner = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    for distance in range(1, window + 1):
        left, right = flat[:-distance], flat[distance:]
        together = owner[:-distance] == owner[distance:]
        left, right = left[together], right[together]
        centres += [left, right]
        contexts += [right, left]
    return np.concatenate(centres), np.concatenate(contexts)


def skip_gram_loss(centres: Tensor, contexts: Tensor, noise: Tensor) -> Tensor:
    """-ln σ(v·u) - Σ ln σ(-v·u'), the mean over the batch, in nats.

    Args: centres (B, D); contexts (B, D), what stood there; noise (B, k, D), what did not.
    """
    true = (centres * contexts).sum(-1)  # (B,)
    false = (noise @ centres.unsqueeze(-1)).squeeze(-1)  # (B, k)
    return -(F.logsigmoid(true) + F.logsigmoid(-false).sum(-1)).mean()


class WordVectors:
    """A vector for each word, and the questions one asks of them.

    Args:
        words: the vocabulary, in the order of the rows.
        vectors: (V, D) the words' own vectors.
        contexts: (V, D) their vectors as company, if they are kept.

    Raises:
        ValueError: a word twice, or not a row for each word.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors: NDArray[np.float32],
        contexts: NDArray[np.float32] | None = None,
    ) -> None:
        self.words = tuple(words)
        self.vectors = np.asarray(vectors, np.float32)  # (V, D)
        self.contexts = contexts
        self._place = {word: row for row, word in enumerate(self.words)}
        if len(self._place) < len(self.words):
            raise ValueError("a word is listed twice")
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.words):
            raise ValueError(
                f"vectors must be a row for each of {len(self.words)} words, not of shape "
                f"{self.vectors.shape}"
            )
        lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self._unit = self.vectors / np.maximum(lengths, 1e-12)  # (V, D)

    def __contains__(self, word: str) -> bool:
        return word in self._place

    def row(self, word: str) -> int:
        """The word's row; ValueError for a word without one."""
        if word not in self._place:
            raise ValueError(f"there is no vector for {word!r}")
        return self._place[word]

    def _closest(
        self, direction: NDArray[np.float32], but: Sequence[str], count: int
    ) -> list[tuple[str, float]]:
        cosines = self._unit @ (direction / max(float(np.linalg.norm(direction)), 1e-12))  # (V,)
        left_out = {self.row(word) for word in but}
        order = [row for row in np.argsort(-cosines).tolist() if row not in left_out]
        return [(self.words[row], float(cosines[row])) for row in order[:count]]

    def nearest(self, word: str, count: int = 5) -> list[tuple[str, float]]:
        """The words with the highest cosine to this one, and that cosine."""
        return self._closest(self._unit[self.row(word)], [word], count)

    def analogy(self, a: str, b: str, c: str, count: int = 1) -> list[tuple[str, float]]:
        """a is to b as c is to ...: the words closest to b - a + c, none of the three themselves.
        The vectors are made as long as one another first."""
        a_, b_, c_ = (self._unit[self.row(word)] for word in (a, b, c))
        return self._closest(b_ - a_ + c_, [a, b, c], count)

    def analogy_accuracy(self, questions: Sequence[tuple[str, str, str, str]]) -> float:
        """The share of questions (a, b, c, d) whose first answer is d.

        Raises:
            ValueError: no questions, or a word without a vector.
        """
        if not questions:
            raise ValueError("there must be at least one question")
        right = sum(self.analogy(a, b, c)[0][0] == d for a, b, c, d in questions)
        return right / len(questions)

    def projection(self) -> NDArray[np.float32]:
        """(V, 2) the coordinates along the two directions in which the unit vectors vary most."""
        centred = self._unit - self._unit.mean(axis=0)
        _, _, directions = np.linalg.svd(centred, full_matrices=False)
        return centred @ directions[:2].T


def train_skip_gram(
    sentences: Sequence[Sequence[str]],
    config: SkipGramConfig | None = None,
    *,
    seed: int = 0,
    min_count: int = 5,
    losses: list[float] | None = None,
) -> WordVectors:
    """Train vectors for all words that occur `min_count` times.

    Args:
        sentences: lists of words; company does not reach from one into the next.
        losses: a list to which the loss of each step is appended, in nats a pair.

    Raises:
        ValueError: fewer than two words occur often enough.
    """
    config = config or SkipGramConfig()
    counts = Counter(word for sentence in sentences for word in sentence)
    words = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
    if len(words) < 2:
        raise ValueError(f"fewer than two words occur {min_count} times")
    id_of = {word: id_ for id_, word in enumerate(words)}
    generator = torch.Generator().manual_seed(seed)
    ids = _thinned(
        [[id_of[w] for w in sentence if w in id_of] for sentence in sentences],
        np.array([counts[word] for word in words], np.float64),
        config.subsample,
        seed,
    )
    centres, contexts = map(torch.from_numpy, skip_gram_pairs(ids, config.window))
    noise = torch.tensor([counts[word] for word in words], dtype=torch.float64)
    noise = noise**config.noise_power  # (V,)

    # word2vec's start: small own vectors, and contexts at zero, so that every score is zero.
    own = nn.Parameter((torch.rand(len(words), config.d_model, generator=generator) - 0.5) * 0.1)
    company = nn.Parameter(torch.zeros(len(words), config.d_model))
    optimizer = torch.optim.Adam([own, company], lr=config.lr)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = config.batch_size
        while True:
            chosen = torch.randint(len(centres), (size,), generator=generator)  # (B,)
            drawn = torch.multinomial(
                noise, size * config.negatives, replacement=True, generator=generator
            )
            yield centres[chosen], contexts[chosen], drawn.view(size, -1)

    taken = 0

    def step(batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
        nonlocal taken
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - taken / config.steps)
        taken += 1
        centre, context, drawn = batch
        optimizer.zero_grad(set_to_none=True)
        loss = skip_gram_loss(own[centre], company[context], company[drawn])
        loss.backward()
        optimizer.step()
        if losses is not None:
            losses.append(loss.item())
        return {"loss": loss.item()}

    fit(step, batches(), max_steps=config.steps)
    return WordVectors(words, own.detach().numpy(), company.detach().numpy())


def _thinned(
    sentences: Sequence[Sequence[int]], counts: NDArray[np.float64], threshold: float, seed: int
) -> list[list[int]]:
    """Drop a word of share f with probability 1 - sqrt(threshold / f), before windows are made."""
    if threshold == 0:
        return [list(sentence) for sentence in sentences]
    keep = np.minimum(1.0, np.sqrt(threshold / (counts / counts.sum())))
    random = np.random.default_rng(seed)
    return [[id_ for id_ in sentence if random.random() < keep[id_]] for sentence in sentences]


def pointwise_mutual_information(
    sentences: Sequence[Sequence[str]], words: Sequence[str], window: int
) -> NDArray[np.float64]:
    """(V, V) ln p(word, context) / (p(word) p(context)) over the pairs that skip-gram sees; minus
    infinity where a pair never occurs."""
    id_of = {word: id_ for id_, word in enumerate(words)}
    ids = [[id_of[w] for w in sentence if w in id_of] for sentence in sentences]
    centres, contexts = skip_gram_pairs(ids, window)
    joint = np.zeros((len(words), len(words)))
    np.add.at(joint, (centres, contexts), 1.0)
    joint /= joint.sum()
    with np.errstate(divide="ignore"):
        return np.log(joint) - np.log(np.outer(joint.sum(1), joint.sum(0)))


def best_score(pair_count: float, noise_count: float, negatives: int) -> float:
    """The score at which skip-gram's loss is lowest for one pair that is seen `pair_count` times
    and drawn as noise `noise_count` times a negative: ln(pair_count / (negatives noise_count))."""
    return math.log(pair_count / (negatives * noise_count))
