"""Skip-gram: its loss and optimum by formula, its geometry where it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from embeddings import (
    SkipGramConfig,
    WordVectors,
    best_score,
    pointwise_mutual_information,
    skip_gram_loss,
    skip_gram_pairs,
    train_skip_gram,
)

SENTENCES = [["he", "runs", "home"], ["she", "sings", "aloud"], ["he", "runs", "far"]] * 20


def test_pairs_by_hand():
    centres, contexts = skip_gram_pairs([[0, 1, 2], [3, 4]], 1)
    pairs = sorted(zip(centres.tolist(), contexts.tolist(), strict=True))
    assert pairs == [(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3)]
    centres, _ = skip_gram_pairs([[0, 1, 2], [3, 4]], 5)
    assert len(centres) == 8


def test_gradient_is_the_formula():
    """Toward the context by 1 - σ(score), away from noise by σ(score)."""
    generator = torch.Generator().manual_seed(0)
    v, u, noise = (
        torch.randn(*s, generator=generator, dtype=torch.float64)
        for s in ((1, 5), (1, 5), (1, 3, 5))
    )
    v.requires_grad_()
    u.requires_grad_()
    skip_gram_loss(v, u, noise).backward()
    true = torch.sigmoid((v * u).sum()).detach()
    false = torch.sigmoid(noise[0] @ v[0]).detach()  # (k,)
    want = -(1 - true) * u.detach() + (false[:, None] * noise[0]).sum(0)
    torch.testing.assert_close(v.grad, want)
    torch.testing.assert_close(u.grad, -(1 - true) * v.detach())


def test_loss_at_the_start_is_that_of_coins():
    losses: list[float] = []
    train_skip_gram(SENTENCES, SkipGramConfig(steps=1, negatives=4), losses=losses)
    assert losses[0] == pytest.approx(5 * math.log(2), abs=1e-5)


def test_best_score_is_the_minimum():
    """d/dx of -n ln σ(x) - k m ln σ(-x) is zero at ln(n / (k m))."""
    x = torch.tensor(best_score(30.0, 2.5, 4), dtype=torch.float64, requires_grad=True)
    loss = -30 * torch.nn.functional.logsigmoid(x) - 4 * 2.5 * torch.nn.functional.logsigmoid(-x)
    loss.backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(0.0, abs=1e-9)


def test_scores_approach_pmi_less_ln_k():
    """Levy and Goldberg's theorem, with room for every score (D = V) and noise at power 1."""
    random = np.random.default_rng(0)
    topics = [["a", "b", "c", "d"], ["c", "d", "e", "f"]]
    sentences = [
        [topics[t][i] for i in random.integers(4, size=6)] for t in random.integers(2, size=800)
    ]
    config = SkipGramConfig(
        d_model=6, window=2, negatives=3, noise_power=1.0, steps=1200, lr=0.03, batch_size=4096
    )
    vectors = train_skip_gram(sentences, config)
    pmi = pointwise_mutual_information(sentences, vectors.words, 2)
    assert vectors.contexts is not None
    scores = vectors.vectors @ vectors.contexts.T
    seen = np.isfinite(pmi)
    assert seen.mean() > 0.7
    np.testing.assert_allclose(scores[seen], (pmi - math.log(3))[seen], atol=0.15)


def test_nearest_and_analogy_by_hand():
    words = ["man", "woman", "king", "queen", "stone"]
    vectors = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 1], [-1, -1, 0]], np.float32)
    made = WordVectors(words, vectors)
    assert made.nearest("king", 2)[0][0] == "man"
    assert made.analogy("man", "king", "woman")[0][0] == "queen"
    assert made.analogy_accuracy([("man", "king", "woman", "queen")]) == 1.0
    assert (
        made.analogy_accuracy(
            [("man", "king", "woman", "queen"), ("man", "king", "woman", "stone")]
        )
        == 0.5
    )
    flat = made.projection()
    assert flat.shape == (5, 2)
    assert "queen" in made
    assert "prince" not in made


def test_the_words_of_the_question_are_no_answers():
    """A small shift leaves c the nearest word to b - a + c."""
    vectors = np.array([[1, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.3, 1]], np.float32)
    made = WordVectors(["cold", "colder", "warm", "warmer"], vectors)
    assert made.analogy("cold", "colder", "warm")[0][0] == "warmer"
    assert len(made.analogy("cold", "colder", "warm", count=9)) == 1


def test_words_of_like_company_are_near():
    fruit, tools = ["pear", "plum", "fig"], ["saw", "drill", "file"]
    sentences = [[who, "eats", one] for who in ("he", "she") for one in fruit]
    sentences += [[who, "mends", "with", one] for who in ("he", "she") for one in tools]
    vectors = train_skip_gram(sentences * 10, SkipGramConfig(steps=300, d_model=8))
    assert {word for word, _ in vectors.nearest("pear", 2)} == {"plum", "fig"}
    assert {word for word, _ in vectors.nearest("drill", 2)} == {"saw", "file"}


def test_the_seed_decides():
    config = SkipGramConfig(steps=5, subsample=0.05)
    one, two, other = (train_skip_gram(SENTENCES, config, seed=s).vectors for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: SkipGramConfig(window=0), "window must be"),
        (lambda: SkipGramConfig(lr=0.0), "lr must be"),
        (lambda: train_skip_gram([["a"]]), "fewer than two"),
        (lambda: WordVectors(["a", "a"], np.zeros((2, 2), np.float32)), "twice"),
        (lambda: WordVectors(["a"], np.zeros((2, 2), np.float32)), "a row for each"),
        (lambda: WordVectors(["a"], np.zeros((1, 2), np.float32)).nearest("b"), "no vector"),
        (lambda: WordVectors(["a"], np.zeros((1, 2), np.float32)).analogy_accuracy([]), "question"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change()
