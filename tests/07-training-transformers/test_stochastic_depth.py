"""Branches are dropped for whole rows, at the stated rates, unbiased, and only in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stochastic_depth import add_stochastic_depth, drop_branch
from training_testing import tiny_gpt
from transformer import TransformerBlock


def test_a_row_is_dropped_whole_or_scaled() -> None:
    torch.manual_seed(0)
    out = drop_branch(torch.ones(4000, 3, 2), 0.25)
    rows = out[:, 0, 0]
    assert torch.equal(out, rows[:, None, None].expand_as(out))
    torch.testing.assert_close(rows.unique(), torch.tensor([0.0, 4 / 3]))
    # Four standard errors of a share of 0.25 among 4,000 rows.
    assert (rows == 0).float().mean().item() == pytest.approx(0.25, abs=4 * (0.1875 / 4000) ** 0.5)
    assert rows.mean().item() == pytest.approx(1.0, abs=0.04)


def test_rates_rise_with_depth_and_evaluation_is_untouched() -> None:
    model, plain = tiny_gpt(), tiny_gpt()
    assert add_stochastic_depth(model, 0.6) == 4
    assert model.state_dict().keys() == plain.state_dict().keys()
    ids = torch.randint(29, (2000, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.eval()(ids), plain.eval()(ids))
    model.train()
    torch.manual_seed(0)
    seen: list[Any] = []
    for block in model.blocks:  # runs after the hooks that drop
        assert isinstance(block, TransformerBlock)
        for branch in (block.attention, block.feed_forward):
            branch.register_forward_hook(lambda m, a, out: seen.append(out))
    model(ids)
    shares = [(out == 0).flatten(1).all(dim=1).float().mean().item() for out in seen]
    assert shares == [pytest.approx(rate, abs=0.05) for rate in (0.3, 0.3, 0.6, 0.6)]


def test_rate_zero_changes_nothing() -> None:
    x = torch.randn(5, 2)
    assert drop_branch(x, 0.0) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_bad_rates(rate: float) -> None:
    with pytest.raises(ValueError, match=r"the rate must lie in \[0, 1\), got"):
        drop_branch(torch.ones(1), rate)
    with pytest.raises(ValueError, match=r"the rate must lie in"):
        add_stochastic_depth(tiny_gpt(), rate)


def test_a_model_without_blocks() -> None:
    with pytest.raises(ValueError, match="Linear holds no TransformerBlock"):
        add_stochastic_depth(nn.Linear(2, 2), 0.1)
