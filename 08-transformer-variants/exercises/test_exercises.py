"""Grades `exercises.py`, or with `--solutions` `solutions.py`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finetune import best_span
from span_denoising import span_corruption


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def test_1_spoil(answers):
    """each fate does what it says, and every chosen token is asked for."""
    ids = torch.tensor([[10, 11, 12, 13], [14, 15, 16, 17]])
    chosen = torch.tensor([[True, True, True, False], [False, True, True, True]])
    fate = torch.tensor([[0.79, 0.8, 0.9, 0.1], [0.85, 0.0, 0.899, 0.999]])
    drawn = torch.full((2, 4), 99)
    before = ids.clone()
    inputs, targets = answers.spoil(ids, chosen, fate, drawn, 3)
    assert inputs.tolist() == [[3, 99, 12, 13], [14, 3, 99, 17]]
    assert targets.tolist() == [[10, 11, 12, -100], [-100, 15, 16, 17]]
    assert torch.equal(ids, before)


@pytest.mark.parametrize("seed", range(5))
def test_2_put_together(answers, seed):
    """what span corruption took apart is the text again."""
    ids = torch.randint(0, 90, (60,), generator=seeded(seed)).tolist()
    example = span_corruption(ids, sentinels=range(90, 120), generator=seeded(seed), rate=0.3)
    assert answers.put_together(example.inputs, example.targets, 90) == ids
    assert answers.put_together([5, 90, 6, 91], [90, 7, 8, 91, 9], 90) == [5, 7, 8, 6, 9]


def test_3_lengths(answers):
    """the lengths are those that the objective gives."""
    example = span_corruption(
        list(range(2000)), sentinels=range(5000, 5200), generator=seeded(), rate=0.15
    )
    assert len(example.inputs) == answers.T5_INPUT_LENGTH
    assert len(example.targets) == answers.T5_TARGET_LENGTH


def test_3_vision(answers):
    """a convolution of that kernel and stride has so many places and parameters."""
    places = F.conv2d(torch.zeros(1, 3, 384, 384), torch.zeros(1, 3, 16, 16), stride=16)
    assert places.numel() + 1 == answers.VIT_TOKENS
    layer = torch.nn.Conv2d(3, 768, 32, stride=32)
    assert sum(p.numel() for p in layer.parameters()) == answers.PATCH_PARAMETERS


def test_3_mean_span(answers):
    """the mean of the truncated distribution, summed term by term."""
    weights = [0.5**length for length in range(1, 5)]
    mean = sum(i * w for i, w in enumerate(weights, start=1)) / sum(weights)
    assert abs(answers.MEAN_SPAN - mean) < 1e-6


def test_4_patches(answers):
    """a matrix applied to the patches is the convolution with stride P."""
    images, weight = random(2, 3, 8, 12), random(5, 3, 4, 4, seed=1)
    expected = F.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)
    found = answers.patches(images, 4)
    assert found.shape == (2, 6, 48)
    torch.testing.assert_close(found @ weight.flatten(1).T, expected, atol=1e-4, rtol=1e-4)


def test_5_contrastive_loss(answers):
    """it is both directions' cross-entropy of the cosines, and the batch's order is no matter."""
    images, texts = random(6, 4), random(6, 4, seed=1)
    cosines = F.cosine_similarity(images[:, None], texts[None], dim=-1) / 0.2
    rows = -cosines.log_softmax(1).diagonal().mean()
    columns = -cosines.log_softmax(0).diagonal().mean()
    found = answers.contrastive_loss(images, texts, 0.2)
    torch.testing.assert_close(found, (rows + columns) / 2)
    order = torch.randperm(6, generator=seeded())
    torch.testing.assert_close(answers.contrastive_loss(images[order], texts[order], 0.2), found)


@pytest.mark.parametrize("seed", range(20))
def test_6_answer_span(answers, seed):
    """the best allowed pair, where the two best places are no pair at all too."""
    start, end = random(12, seed=seed), random(12, seed=100 + seed)
    best = best_span(start[None], end[None], max_length=4)
    assert answers.answer_span(start, end, 4) == (int(best.first), int(best.last))


def _weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    scores = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(1, 2)
    scores = scores.tril()
    return scores / scores.sum(dim=2, keepdim=True)


def test_7_causal_linear_attention(answers):
    """the explicit (T, T) weights give the same."""
    q, k, v = random(2, 9, 4), random(2, 9, 4, seed=1), random(2, 9, 5, seed=2)
    torch.testing.assert_close(answers.causal_linear_attention(q, k, v), _weights(q, k) @ v)


def test_7_no_future(answers):
    """changing the last position changes no other."""
    q, k, v = random(1, 6, 4), random(1, 6, 4, seed=1), random(1, 6, 3, seed=2)
    before = answers.causal_linear_attention(q, k, v)
    k, v = k.clone(), v.clone()
    k[:, -1], v[:, -1] = 5.0, 5.0
    torch.testing.assert_close(answers.causal_linear_attention(q, k, v)[:, :-1], before[:, :-1])


def test_8_losses(answers):
    """equal logits cost the logarithm of the number of choices."""
    for found, choices in (
        (answers.MASKED_LM_LOSS, 30_000),
        (answers.NEXT_SENTENCE_LOSS, 2),
        (answers.SPAN_LOSS, 384),
        (answers.CLIP_LOSS, 256),
    ):
        assert abs(found - F.cross_entropy(torch.zeros(1, choices), torch.tensor([0]))) < 0.01


def test_8_detection(answers):
    """the entropy of how common replacements are."""
    share = 0.15 * 2 / 3
    expected = F.binary_cross_entropy(
        torch.full((1000,), share), (torch.arange(1000) < 1000 * share).float()
    )
    assert abs(answers.DETECTION_LOSS - expected) < 0.01


def test_9_positive_features(answers):
    """positive, and right on average over many draws."""
    x = 0.4 * random(6, 3)
    features = answers.positive_features(x, random(200_000, 3, seed=1))
    assert bool((features > 0).all())
    torch.testing.assert_close(features @ features.T, (x @ x.T).exp(), rtol=0.05, atol=0.0)


def test_10_who_is_meant(answers):
    """at least 95 % of the texts without a label."""
    generator = seeded(3)
    women, men = torch.randperm(40, generator=generator).view(2, 20)
    she = women[torch.randint(20, (3000,), generator=generator)]
    he = men[torch.randint(20, (3000,), generator=generator)]
    man_first = torch.randint(2, (3000,), generator=generator)
    pairs = torch.stack((she, he), dim=1)
    names = torch.where(man_first[:, None] == 1, pairs.flip(1), pairs)
    said = torch.randint(2, (3000,), generator=generator)
    labels = (said != man_first).long()
    found = answers.who_is_meant(names, said, labels[:400])
    assert found.shape == (2600,)
    assert (found == labels[400:]).float().mean() >= 0.95
