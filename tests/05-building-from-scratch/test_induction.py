"""Repeated texts ask only what can be answered, and the scores look at the right diagonal."""

from __future__ import annotations

import math

import pytest
import torch

from gpt import GPT, GPTConfig
from induction import head_maps, induction_scores, repeated_batches, repetition_loss

HALF, VOCAB = 12, 20


@pytest.fixture
def model() -> GPT:
    config = GPTConfig(
        vocab_size=VOCAB, d_model=16, num_heads=2, num_layers=2, max_seq_len=2 * HALF
    )
    return GPT(config, generator=torch.Generator().manual_seed(0)).eval()


def test_what_is_asked_stands_one_period_back():
    ids, targets = next(repeated_batches(batch_size=64, half=HALF, vocab_size=VOCAB, seed=1))
    assert ids.shape == targets.shape == (64, 2 * HALF - 1)
    periods = set()
    for row, target in zip(ids, targets, strict=True):
        first = int((target != -100).nonzero()[0])
        period = first + 1
        periods.add(period)
        asked = torch.arange(first, 2 * HALF - 1)
        assert torch.equal(target[asked], row[asked + 1 - period])
    assert (min(periods), max(periods)) == (HALF // 3, HALF)
    again, _ = next(repeated_batches(batch_size=64, half=HALF, vocab_size=VOCAB, seed=1))
    assert torch.equal(ids, again)


def test_a_fresh_model_guesses(model):
    assert repetition_loss(model, half=HALF, seed=0) == pytest.approx(math.log(VOCAB), abs=0.1)


def test_maps_are_causal_distributions_and_the_model_is_left_as_it_was(model):
    ids = torch.randint(VOCAB, (3, 2 * HALF), generator=torch.Generator().manual_seed(2))
    before = [block.attention.attend for block in model.blocks]
    logits = model(ids)
    maps = head_maps(model, ids)
    assert [tuple(weights.shape) for weights in maps] == [(3, 2, 2 * HALF, 2 * HALF)] * 2
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 2 * HALF))
        assert weights.triu(1).abs().max() == 0
    with pytest.raises(ValueError):
        head_maps(model, ids.repeat(1, 5))
    assert [block.attention.attend for block in model.blocks] == before
    torch.testing.assert_close(model(ids), logits)


@torch.no_grad()
def test_evenly_spread_attention_has_the_score_that_arithmetic_gives(model):
    for block in model.blocks:
        block.attention.q_proj.weight.zero_()
        block.attention.q_proj.bias.zero_()
    # Query t sees t + 1 keys; the queries of the second half are t = half … 2·half - 1.
    expected = sum(1 / (t + 1) for t in range(HALF, 2 * HALF)) / HALF
    scores = induction_scores(model, half=HALF, seed=3)
    torch.testing.assert_close(scores, torch.full((2, 2), expected))
