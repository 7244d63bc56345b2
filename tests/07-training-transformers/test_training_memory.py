"""Memory formulas against what autograd is seen to keep, and against the published tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt import GPT, GPTConfig
from training_memory import block_activation_numbers, saved_activation_bytes, training_state_bytes


@pytest.mark.parametrize(("width", "heads", "d_ff"), [(64, 4, None), (96, 3, 100), (40, 1, 160)])
def test_a_block_keeps_what_the_formula_says(width: int, heads: int, d_ff: int | None) -> None:
    """One layer more is one block's numbers more, whatever else the model keeps."""
    kept = []
    for layers in (2, 3):
        config = GPTConfig(
            vocab_size=101,
            d_model=width,
            num_heads=heads,
            num_layers=layers,
            max_seq_len=48,
            d_ff=d_ff,
        )
        model, ids = GPT(config), torch.randint(101, (5, 48))
        kept.append(saved_activation_bytes(model, lambda m=model, x=ids: m(x)))
    assert kept[1] - kept[0] == 4 * 5 * 48 * block_activation_numbers(config)


def test_what_two_operations_keep_counts_once_and_parameters_do_not() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(3, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x * 2.0  # keeps nothing: the factor is a number
        return (layer(y) + layer(y)).sum()  # both keep y, (3, 8)

    assert saved_activation_bytes(layer, forward) == 4 * 3 * 8


def test_rajbhandaris_numbers() -> None:
    """Figure 1 of the ZeRO paper: 7.5 billion parameters on 64 devices, in GB."""
    totals = [
        training_state_bytes(7_500_000_000, zero_stage=stage, world_size=64).total / 1e9
        for stage in (0, 1, 2, 3)
    ]
    assert totals == [pytest.approx(gb, abs=0.06) for gb in (120.0, 31.4, 16.6, 1.9)]


@pytest.mark.parametrize(
    ("optimizer", "bytes_a_weight"), [("adamw", 16), ("muon", 12), ("lion", 12), ("sgd", 8)]
)
def test_bytes_a_weight(optimizer: str, bytes_a_weight: int) -> None:
    """Single precision and mixed precision with a master copy cost the same."""
    for precision in ("fp32", "mixed"):
        states = training_state_bytes(10, precision=precision, optimizer=optimizer)
        assert states.total == 10 * bytes_a_weight


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="optimizer must be one of sgd, momentum, adamw"):
        training_state_bytes(1, optimizer="magic")
    with pytest.raises(ValueError, match=r"zero_stage 0 to 3; got 'mixed', 4"):
        training_state_bytes(1, zero_stage=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts must be at least 1; got 0, 1"):
        training_state_bytes(0)
