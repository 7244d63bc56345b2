"""What attention costs: formulas, and time and memory measured over the length.

Time is taken side by side in one process. Memory is taken from the operating system, in a fresh
process for each back end: the most that it ever held, less what it held before. A computed number
of bytes would only repeat what we believe. README, "Shapes and cost".
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attention import AttentionFn, scaled_dot_product_attention, sdpa_attention
from lab import peak_memory_bytes, progress, time_side_by_side
from matmul_attention import matmul_attention

MEBIBYTE = 2**20


def attention_back_ends() -> dict[str, AttentionFn]:
    """The back ends of this topic by the name that tables show."""
    return {
        "reference": scaled_dot_product_attention,
        "SDPA": sdpa_attention,
        "matmul": matmul_attention,
    }


def attention_flops(B: int, H: int, T: int, S: int, K: int, *, causal: bool = False) -> int:
    """Multiplications and additions of q kᵀ and of weights times v: 4 B H T S K.

    `causal` counts the pairs that are allowed, T (2S - T + 1)/2 of them; a kernel that computes
    and hides the rest does twice the work. The backward pass takes two and a half times as much
    where the weights are recomputed (five products for two), twice where they are kept.

    Raises ValueError if causal queries outnumber the keys.
    """
    if causal and T > S:
        raise ValueError(
            f"causal attention of T = {T} queries needs at least as many keys, got {S}"
        )
    pairs = T * (2 * S - T + 1) // 2 if causal else T * S
    return 4 * B * H * pairs * K


def weights_bytes(B: int, H: int, T: int, S: int, *, itemsize: int = 4) -> int:
    """Bytes of one tensor of weights (B, H, T, S): 4 B H T S in fp32."""
    return B * H * T * S * itemsize


def projection_flops(B: int, T: int, D: int, *, kv_width: int | None = None) -> int:
    """Of the four projections of a layer: 8 B T D², less with grouped keys and values.

    kv_width: G·K; None = D.
    """
    return 4 * B * T * D * (D + (D if kv_width is None else kv_width))


def measure_time(
    lengths: Sequence[int], *, num_heads: int, head_width: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Milliseconds of causal attention, forward and backward, for each back end over T."""
    rows = []
    for T in progress(lengths, desc="time", unit="length"):
        q, k, v = _inputs(T, num_heads, head_width, device)
        contestants = {
            name: partial(_forward_backward, attend, q, k, v)
            for name, attend in attention_back_ends().items()
        }
        timings = time_side_by_side(contestants, rounds=rounds)
        milliseconds = [1e3 * timing.median for timing in timings.values()]
        ratio = timings["SDPA"].speedup_over(timings["reference"])
        gflops = 3.5 * attention_flops(1, num_heads, T, T, head_width, causal=True) / 1e9
        rows.append([T, *milliseconds, ratio, gflops / (milliseconds[1] / 1e3)])
    names = [f"{name}, ms" for name in attention_back_ends()]
    columns = ["T", *names, "SDPA over reference, times", "SDPA, GFLOP/s"]
    return {
        "time": {
            "columns": columns,
            "rows": rows,
            "formats": [",d", ".1f", ".1f", ".1f", ".2f", ".0f"],
        },
        "time_longest": rows[-1][0],
        "time_ratio": rows[-1][4],
        "time_growth": {
            name: rows[-1][i + 1] / rows[-2][i + 1] for i, name in enumerate(attention_back_ends())
        },
    }


def measure_memory(
    lengths: Sequence[int], *, num_heads: int, head_width: int, device: torch.device
) -> dict[str, Any]:
    """Measured MiB of causal attention, forward and backward, for each back end over T."""
    columns: dict[str, list[float]] = {}
    context = multiprocessing.get_context("spawn")
    for name in progress(attention_back_ends(), desc="memory", unit="back end"):
        # One process a back end: a peak only ever rises, so lengths go upwards.
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            task = pool.submit(
                peak_mebibytes, name, sorted(lengths), num_heads, head_width, str(device)
            )
            columns[name] = task.result()
    rows = [
        [
            T,
            *(columns[name][i] for name in columns),
            weights_bytes(1, num_heads, T, T) / MEBIBYTE,
        ]
        for i, T in enumerate(sorted(lengths))
    ]
    heads = [f"{name}, MiB" for name in columns]
    last = rows[-1]
    return {
        "memory": {
            "columns": ["T", *heads, "one tensor of weights, MiB"],
            "rows": rows,
            "formats": [",d", ",.0f", ",.0f", ",.0f", ",.0f"],
        },
        "memory_longest": last[0],
        "memory_weights_copies": last[1] / last[4],
        "memory_ratio": last[1] / max(last[2], 1e-9),
    }


def peak_mebibytes(
    name: str, lengths: Sequence[int], num_heads: int, head_width: int, device_name: str
) -> list[float]:
    """MiB that this process held at most, less what it held before, after each length in turn.

    Lengths must rise, since a peak never falls. Includes inputs, output and gradients.
    """
    if list(lengths) != sorted(lengths):
        raise ValueError(f"lengths must rise, got {list(lengths)}")
    device = torch.device(device_name)
    attend = attention_back_ends()[name]
    _forward_backward(attend, *_inputs(16, num_heads, head_width, device))  # libraries wake up
    before = _held(device)
    peaks = []
    for T in lengths:
        _forward_backward(attend, *_inputs(T, num_heads, head_width, device))
        peaks.append((_held(device) - before) / MEBIBYTE)
    return peaks


def _held(device: torch.device) -> int:
    return peak_memory_bytes(device if device.type != "cpu" else None)


def _inputs(
    T: int, num_heads: int, head_width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (1, H, T, K), that want gradients."""
    generator = torch.Generator().manual_seed(T)
    q, k, v = (
        torch.randn(1, num_heads, T, head_width, generator=generator).to(device).requires_grad_()
        for _ in range(3)
    )
    return q, k, v


def _forward_backward(attend: AttentionFn, q: Tensor, k: Tensor, v: Tensor) -> None:
    out = attend(q, k, v, causal=True)
    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
