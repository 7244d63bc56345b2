"""Numbers about a model in training: how good it is on held-out text, how fast it goes, and which
learning rate and batch size suit it. Everything here is also reached through `training`.

README: "Reading a run", "Throughput", "The critical batch".
"""

from __future__ import annotations

import copy
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from numerics import bits_per_byte, cross_entropy
from token_dataset import TokenShards

if TYPE_CHECKING:
    from training import TrainingStep

# Dense peak of the matrix units in TFLOP/s: (bfloat16 and float16, float32 without TF32), from the
# makers' data sheets without sparsity. The first name found in the device's name wins.
_PEAK_TFLOPS = (
    ("B200", 2250.0, 75.0),
    ("GH200", 989.0, 67.0),
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100 NVL", 835.0, 60.0),
    ("H100", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("L40", 181.0, 90.5),
    ("L4", 121.0, 30.3),
    ("A10G", 70.0, 35.0),
    ("A10", 125.0, 31.2),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
    ("T4", 65.0, 8.1),
)


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """What a model needs to encode held-out text: `nats` for `tokens` tokens of `num_bytes` bytes.

    Bits per byte compare across tokenizers, nats a token do not.
    """

    nats: float
    tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        return float(bits_per_byte(self.nats, self.num_bytes))

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)


@torch.no_grad()
def evaluate_bits_per_byte(
    model: nn.Module,
    shards: TokenShards,
    *,
    batch_size: int,
    seq_len: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    max_tokens: int | None = None,
    stride: int | None = None,
) -> HeldOutLoss:
    """Score every token of a stream exactly once, the first included (after an end-of-text token).

    Windows of `seq_len` move on by `stride` (default: `seq_len`), and only tokens that no earlier
    window has scored count. A smaller stride gives each of them at least `seq_len - stride` tokens
    of context and costs `seq_len / stride` times as much. The last window reaches back to be full.

    Args:
        model: `model(ids (B, T)) -> logits (B, T, V)`; left in the mode it was in.
        dtype: bfloat16 or float16 runs the model under autocast; the loss is summed in float32.
        max_tokens: score only the first that many tokens (and their own bytes).

    Raises:
        ValueError: a number below 1, or stride > seq_len.
    """
    stride = seq_len if stride is None else stride
    if min(batch_size, seq_len, stride, max_tokens or 1) < 1 or stride > seq_len:
        raise ValueError(
            "batch_size, seq_len, stride and max_tokens must be at least 1 and stride at most "
            f"seq_len; got {batch_size=}, {seq_len=}, {stride=}, {max_tokens=}"
        )
    count = min(len(shards), max_tokens or len(shards))
    if count < len(shards):
        pieces = _ranges(count, 1 << 20)
        num_bytes = sum(shards.byte_count(shards.read(*piece)) for piece in pieces)
    else:
        num_bytes = shards.num_bytes
    device = torch.device(device)
    was_training = model.training
    model.eval()
    losses = []
    try:
        for ids, targets in _scored_windows(shards, count, batch_size, seq_len, stride):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(ids.to(device))  # (B, T, V)
            losses.append(cross_entropy(logits, targets.to(device), reduction="sum"))
    finally:
        model.train(was_training)
    nats = math.fsum(loss.item() for loss in losses)
    return HeldOutLoss(nats=nats, tokens=count, num_bytes=num_bytes)


def _ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _scored_windows(
    shards: TokenShards, count: int, batch_size: int, seq_len: int, stride: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, targets) whose targets are -100 where an earlier window has scored them."""
    seq_len = min(seq_len, count)
    # Window w scores tokens scored[w] … ends[w] - 1; the first scores a whole window.
    ends = [*range(seq_len, count, stride), count]
    rows: list[np.ndarray] = []
    fresh: list[int] = []
    scored = 0
    for end in ends:
        start = end - seq_len
        before = [shards.eos_id] if start == 0 else shards.read(start - 1, start)
        rows.append(np.concatenate([before, shards.read(start, end)]))  # (T + 1,)
        fresh.append(end - scored)
        scored = end
        if len(rows) == batch_size or end == count:
            windows = torch.from_numpy(np.stack(rows))  # (B, T + 1)
            targets = windows[:, 1:].clone()  # (B, T)
            for target, new in zip(targets, fresh, strict=True):
                target[: seq_len - new] = -100
            yield windows[:, :-1], targets
            rows, fresh = [], []


def measure_step_seconds(
    step: Callable[[], object],
    *,
    warmup: int = 2,
    rounds: int = 5,
    device: torch.device | None = None,
) -> float:
    """Median seconds of a call, after `warmup` calls that are not counted. The calls do what they
    do: hand in a step on a copy, or put the state back, where the model must not move.
    """
    if warmup < 0 or rounds < 1:
        raise ValueError(f"warmup must be at least 0 and rounds at least 1; got {warmup}, {rounds}")
    seconds = []
    for number in range(warmup + rounds):
        _wait_for(device)
        start = time.perf_counter()
        step()
        _wait_for(device)
        if number >= warmup:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()


def peak_flops(device: torch.device | str, dtype: torch.dtype = torch.float32) -> float | None:
    """The most FLOP/s that a device can do in matrix products of this type: a GPU's by its name,
    from its data sheet; a CPU's measured, with the threads that PyTorch uses (a few tenths of a
    second); None for a device that is not known.
    """
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next(
            (_tflops(row, dtype) for row in _PEAK_TFLOPS if re.search(rf"\b{row[0]}\b", name)), None
        )
    if device.type != "cpu":
        return None
    size = 1024
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, size, size, generator=generator).to(dtype)
    fastest = min(measure_step_seconds(lambda: left @ right, warmup=1, rounds=3) for _ in range(3))
    return 2 * size**3 / fastest


def _tflops(row: tuple[str, float, float], dtype: torch.dtype) -> float:
    return 1e12 * (row[1] if dtype in (torch.bfloat16, torch.float16) else row[2])


def model_flops_utilization(
    *, flops_per_token: float, tokens_per_second: float, peak: float | None
) -> float | None:
    """The share of a device's peak that goes into the model's own arithmetic (MFU; Chowdhery et
    al. 2022, appendix B): recomputation does not count as work. None where the peak is unknown.
    """
    return None if peak is None else flops_per_token * tokens_per_second / peak


@dataclass(frozen=True, kw_only=True)
class LRRange:
    """What `lr_range_test` saw: multipliers of the peak rates, the loss at each, smoothed, and the
    multiplier at which the loss fell fastest.
    """

    multipliers: tuple[float, ...]
    losses: tuple[float, ...]
    steepest: float


def lr_range_test(
    training: TrainingStep,
    batches: Iterable[Sequence[Tensor]],
    *,
    lowest: float = 1e-3,
    highest: float = 10.0,
    num_steps: int = 100,
    smoothing: float = 0.8,
) -> LRRange:
    """Raise the learning rate geometrically over `num_steps` steps, from `lowest` to `highest`
    times the optimiser's own, and see where the loss falls fastest and where it blows up (Smith
    2017). It ends early once the smoothed loss is 1.3 times its lowest. The training, the global
    CPU generator too, is left as it was.

    Raises:
        ValueError: rates or steps out of range, or too few steps came before it blew up.
    """
    if not 0 < lowest < highest or num_steps < 4 or not 0 <= smoothing < 1:
        raise ValueError(
            "need 0 < lowest < highest, 4 steps and a smoothing in [0, 1); got "
            f"{lowest=}, {highest=}, {num_steps=}, {smoothing=}"
        )
    before, schedule = copy.deepcopy(training.state_dict()), training.schedule
    first = training.step
    growth = (highest / lowest) ** (1 / (num_steps - 1))
    multipliers: list[float] = []
    losses: list[float] = []
    average = 0.0
    training.schedule = lambda step: lowest * growth ** (step - first)
    try:
        with torch.random.fork_rng(devices=[]):
            for number, batch in zip(range(num_steps), batches, strict=False):
                try:
                    loss = float(training(batch)["loss"])
                except FloatingPointError:  # this is the blowing up that we are looking for
                    break
                average = smoothing * average + (1 - smoothing) * loss
                losses.append(average / (1 - smoothing ** (number + 1)))
                multipliers.append(lowest * growth**number)
                if not math.isfinite(loss) or losses[-1] > 1.3 * min(losses):
                    break
    finally:
        training.schedule = schedule
        training.load_state_dict(before)
    if len(losses) < 4:
        raise ValueError(f"the loss blew up within {len(losses)} steps; begin lower than {lowest}")
    slopes = np.gradient(np.array(losses), np.log(multipliers))
    return LRRange(
        multipliers=tuple(multipliers),
        losses=tuple(losses),
        steepest=multipliers[int(np.argmin(slopes))],
    )


def gradient_noise_scale(training: TrainingStep, batch: Sequence[Tensor]) -> float:
    """The simple noise scale tr(S) / |G|^2 in loss terms (tokens): about the batch size beyond
    which more tokens a step stop paying (McCandlish et al. 2018, appendix A.1).

    A single estimate is noisy, and negative where noise hides |G|: where it matters, average
    `gradient_moments` over many batches first and divide then.

    Raises:
        ValueError: accumulation is 1, so that there is one size only.
    """
    signal, noise = gradient_moments(training, batch)
    return noise / signal


def gradient_moments(training: TrainingStep, batch: Sequence[Tensor]) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and tr(S): the true gradient's square, and one term's variance.

    The gradient of a batch of n terms has the expected square |G|^2 + tr(S) / n. Two sizes, the
    micro-batches and the whole, give two equations for the two unknowns. Gradients are cleared;
    the weights do not move.

    Raises:
        ValueError: accumulation is 1, so that there is one size only.
    """
    size = training.config.micro_batch_size
    starts = range(0, len(batch[0]), size)
    if len(starts) < 2:
        raise ValueError("the noise scale needs at least two micro-batches; the batch makes one")
    total = [torch.zeros_like(p, dtype=torch.float32) for p in training.parameters]
    small_squares = []
    terms = 0.0
    for start in starts:
        training.optimizer.zero_grad(set_to_none=True)
        micro = tuple(tensor[start : start + size].to(training.device) for tensor in batch)
        summed, count = training.loss(training.model, micro)
        summed.backward()
        terms += count.item()
        square = 0.0
        for part, parameter in zip(total, training.parameters, strict=True):
            if parameter.grad is not None:
                part += parameter.grad
                square += parameter.grad.pow(2).sum().item()
        small_squares.append(square / count.item() ** 2)
    training.optimizer.zero_grad(set_to_none=True)
    small, big = (
        statistics.fmean(small_squares),
        sum(p.pow(2).sum().item() for p in total) / terms**2,
    )
    few = terms / len(starts)
    signal = (terms * big - few * small) / (terms - few)  # |G|^2
    noise = (small - big) / (1 / few - 1 / terms)  # tr(S)
    return signal, noise
