"""What cheaper attention costs: time side by side, and memory in a process of its own.

Topic 03's `attention_costs` does the same for exact attention; see there for why memory is taken
from the operating system. Letters: H heads, T length, K head width.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attention import AttentionFn
from attention_costs import MEBIBYTE
from efficient_attention import (
    BigBirdAttention,
    PerformerAttention,
    SlidingWindowAttention,
    linear_attention,
)
from lab import peak_memory_bytes, progress, time_side_by_side
from matmul_attention import matmul_attention

WINDOW = 32  # a query sees 31 keys on either side; BigBird's blocks are half as wide
FEATURES = 64  # Performer's random features


def attention_ways(*, seed: int = 0, window: int = WINDOW) -> dict[str, AttentionFn]:
    """Full attention and its cheaper kin, by the names that tables show."""
    return {
        "full": matmul_attention,
        "window": SlidingWindowAttention(window),
        "BigBird": BigBirdAttention(block_size=max(4, window // 2), seed=seed),
        "linear": linear_attention,
        "Performer": PerformerAttention(FEATURES, seed=seed),
    }


def measure_costs(lengths: Sequence[int], *, rounds: int) -> dict[str, Any]:
    """Milliseconds and MiB of one layer's attention, forward and backward, over the length."""
    names = list(attention_ways())
    times: dict[str, list[float]] = {name: [] for name in names}
    for T in progress(lengths, desc="time", unit="length"):
        q, k, v = _inputs(T)
        contestants = {
            name: partial(_there_and_back, attend, q, k, v)
            for name, attend in attention_ways().items()
        }
        for name, timing in time_side_by_side(contestants, rounds=rounds).items():
            times[name].append(1e3 * timing.median)
    memory: dict[str, list[float]] = {}
    context = multiprocessing.get_context("spawn")
    for name in progress(names, desc="memory", unit="way"):
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            memory[name] = pool.submit(held_mebibytes, name, sorted(lengths)).result()
    longest = len(lengths) - 1
    return {
        "costs_ms": _table(lengths, times, ".1f"),
        "costs_mib": _table(lengths, memory, ".0f"),
        "costs_detail": {"lengths": list(lengths), "ms": times, "mib": memory},
        "costs_longest": max(lengths),
        "faster_at_longest": {
            name.lower(): times["full"][longest] / times[name][longest] for name in names
        },
        "smaller_at_longest": {
            name.lower(): memory["full"][longest] / max(memory[name][longest], 0.1)
            for name in names
        },
    }


def held_mebibytes(name: str, lengths: Sequence[int]) -> list[float]:
    """MiB that this process held at most, less what it held before, after each length in turn.

    Raises:
        ValueError: lengths that do not rise: a peak never falls.
    """
    if list(lengths) != sorted(lengths):
        raise ValueError(f"lengths must rise, got {list(lengths)}")
    attend = attention_ways()[name]
    _there_and_back(attend, *_inputs(64))  # libraries wake up
    before = peak_memory_bytes()
    found = []
    for T in lengths:
        _there_and_back(attend, *_inputs(T))
        found.append((peak_memory_bytes() - before) / MEBIBYTE)
    return found


def _table(lengths: Sequence[int], values: dict[str, list[float]], form: str) -> dict[str, Any]:
    rows = [[T, *(values[name][i] for name in values)] for i, T in enumerate(lengths)]
    return {"columns": ["T", *values], "rows": rows, "formats": [",d"] + [form] * len(values)}


def _inputs(T: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of four heads, each (1, 4, T, 32), that want gradients."""
    generator = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(1, 4, T, 32, generator=generator).requires_grad_() for _ in range(3))
    return q, k, v


def _there_and_back(attend: AttentionFn, q: Tensor, k: Tensor, v: Tensor) -> None:
    out = attend(q, k, v)
    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
