"""Topic 02's experiments: each returns what it measured, as plain numbers and tables."""

from __future__ import annotations

import gzip
import itertools
import lzma
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arithmetic_coding import AdaptiveBytes, SteppingModel, compress_bytes, decompress_bytes
from lab import count_parameters, interval, progress, time_side_by_side
from ngram import NgramModel
from numerics import cross_entropy
from recurrent import (
    CellKind,
    RecurrentConfig,
    RecurrentLayer,
    RecurrentLM,
    TruncatedBPTT,
    continuous_windows,
    jacobian_norms,
    matched_width,
    stream_nats,
)
from seq2seq import EncoderDecoder, greedy_decode
from sequence_data import reverse_task
from tiny_world import TinyWorld
from train_loop import Callback, LoopState, fit

CELLS: tuple[CellKind, ...] = ("rnn", "gru", "lstm")


@dataclass(frozen=True, kw_only=True)
class LadderScale:
    """How much is computed."""

    stories: int = 3500
    held_out_stories: int = 40
    parameters: int = 120_000
    steps: int = 2000
    peak_rate: float = 1e-2
    seeds: int = 3
    orders: tuple[int, ...] = (1, 2, 3, 5, 8, 12)
    distance: int = 60
    widths: tuple[int, ...] = (16, 64)
    longest: int = 16
    bottleneck_steps: int = 700
    coded_bytes: int = 30_000
    lengths: tuple[int, ...] = (32, 128, 512)


SMALL_LADDER = LadderScale(
    stories=150, held_out_stories=10, parameters=20_000, steps=12, orders=(1, 3), distance=10,
    widths=(8,), longest=5, bottleneck_steps=8, coded_bytes=400, lengths=(16, 32), seeds=2,
)  # fmt: skip


def story_bytes(world: TinyWorld, stories: int, *, seed: int) -> bytes:
    """Stories of one seed as a byte string, each closed by a newline."""
    return "".join(f"{story.text}\n" for story in world.stories(stories, seed=seed)).encode()


def byte_ids(data: bytes) -> Tensor:
    """Bytes as ids (N,) int64."""
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).astype(np.int64))


class _Evaluation(Callback):
    """Held-out bits at regular steps, and the seconds of training before each."""

    def __init__(self, model: RecurrentLM, held_out: Tensor, every: int) -> None:
        self.model, self.held_out, self.every = model, held_out, every
        self.curve: list[tuple[int, float, float]] = []
        self.seconds, self._since = 0.0, 0.0

    def on_start(self, state: LoopState) -> None:
        self._since = time.perf_counter()

    def on_step(self, state: LoopState) -> None:
        if state.step % self.every and state.step != state.max_steps:
            return
        self.seconds += time.perf_counter() - self._since
        bits = stream_nats(self.model, self.held_out) / math.log(2) / (len(self.held_out) - 1)
        self.curve.append((state.step, self.seconds, bits))
        self._since = time.perf_counter()


def _forever(ids: Tensor, batch_size: int, seq_len: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from continuous_windows(ids, batch_size=batch_size, seq_len=seq_len)


def climb_the_ladder(scale: LadderScale) -> tuple[dict[str, Any], RecurrentLM, NgramModel]:
    """n-grams, then the three cells at equal parameters; bits per byte beside the floor."""
    world = TinyWorld()
    train = story_bytes(world, scale.stories, seed=0)
    held_stories = list(world.stories(scale.held_out_stories, seed=1))
    held = story_bytes(world, scale.held_out_stories, seed=1)
    floor, error = world.entropy_per_byte(stories=max(100, scale.stories))
    held_floor = -sum(s.log_probability for s in held_stories) / math.log(2) / len(held)
    code = world.compress(story.text for story in held_stories)
    assert world.decompress(code, len(held_stories)) == [s.text for s in held_stories]
    rows: list[list[Any]] = []
    best: tuple[float, NgramModel] | None = None
    for order in progress(scale.orders, desc="n-grams", unit="order"):
        began = time.perf_counter()
        model = NgramModel(train, order=order, vocab_size=256)
        seconds = time.perf_counter() - began
        bits = model.nats(held) / math.log(2) / len(held)
        rows.append([f"{order}-gram", model.num_parameters, bits, 0.0, seconds, "—"])
        if best is None or bits < best[0]:
            best = bits, model
    assert best is not None
    ids, held_ids = byte_ids(train), byte_ids(held)
    curves: dict[str, list[list[tuple[int, float, float]]]] = {cell: [] for cell in CELLS}
    widths, parameters = {}, {}
    last: RecurrentLM | None = None
    runs = list(itertools.product(range(scale.seeds), CELLS))
    for seed, cell in progress(runs, desc="recurrent", unit="run"):
        width = matched_width(cell, vocab_size=256, embed_dim=32, parameters=scale.parameters)
        config = RecurrentConfig(vocab_size=256, d_model=width, cell=cell, embed_dim=32)
        last = RecurrentLM(config, generator=torch.Generator().manual_seed(seed))
        widths[cell], parameters[cell] = width, count_parameters(last)
        optimizer = torch.optim.Adam(last.parameters(), lr=scale.peak_rate)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=scale.peak_rate, total_steps=scale.steps + 1
        )
        evaluation = _Evaluation(last, held_ids, max(1, scale.steps // 10))
        step = TruncatedBPTT(last, optimizer, scheduler=scheduler, reset_every=8)
        fit(step, _forever(ids, 16, 64), [evaluation], max_steps=scale.steps)
        curves[cell].append(evaluation.curve)
    assert last is not None
    budget = min(runs_[-1][1] for several in curves.values() for runs_ in several)
    for cell in CELLS:
        mean, half = interval(run[-1][2] for run in curves[cell])
        # At equal time: the last measurement before the fastest model was done.
        within = [[b for _, s, b in run if s <= 1.02 * budget] for run in curves[cell]]
        timed = f"{sum(w[-1] for w in within) / len(within):.3f}" if all(within) else "—"
        seconds = sum(run[-1][1] for run in curves[cell]) / scale.seeds
        name = f"{cell.upper()}, H = {widths[cell]}"
        rows.append([name, parameters[cell], mean, half, seconds, timed])
    rows.append(["the floor on this text", 0, held_floor, 0.0, 0.0, "—"])
    results = {
        "ladder": {
            "columns": ["model", "parameters", "bits per byte", "±", "seconds", "at equal time"],
            "rows": rows,
            "formats": ["", ",d", ".3f", ".3f", ".1f", ""],
        },
        "curves": {cell: curves[cell] for cell in CELLS},
        "floor": floor,
        "floor_error": error,
        "held_floor": held_floor,
        "coded_floor": 8 * len(code) / len(held),
        "best_ngram": best[0],
        "best_cell": min(row[2] for row in rows[len(scale.orders) : -1]),
        "equal_time_seconds": budget,
        "train_bytes": len(train),
        "held_bytes": len(held),
    }
    return results, last, best[1]


def watch_gradients(scale: LadderScale) -> dict[str, Any]:
    """Norm of the state's Jacobian over distance, beside the powers that theory gives."""
    H, T = 32, scale.distance
    x = 0.1 * torch.randn(T, 8, generator=torch.Generator().manual_seed(0))
    curves: dict[str, list[float]] = {}
    for gain in (0.8, 1.0, 1.2):
        layer = RecurrentLayer("rnn", 8, H, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            square = torch.randn(H, H, generator=torch.Generator().manual_seed(2))
            layer.weight_hh_l0.copy_(gain * torch.linalg.qr(square)[0])
            layer.bias_ih_l0.zero_()
            layer.bias_hh_l0.zero_()
        curves[f"RNN, W = {gain} Q"] = jacobian_norms(layer, x)
    kinds: list[tuple[str, CellKind, float]] = [
        ("GRU", "gru", 0.0),
        ("LSTM, forget bias 0", "lstm", 0.0),
        ("LSTM, forget bias 1", "lstm", 1.0),
    ]
    for name, cell, bias in kinds:
        layer = RecurrentLayer(
            cell, 8, H, forget_bias=bias, generator=torch.Generator().manual_seed(1)
        )
        curves[name] = jacobian_norms(layer, x)
    rate = {name: (c[T] / c[T // 2]) ** (1 / (T - T // 2)) for name, c in curves.items()}
    theory = {f"RNN, W = {gain} Q": gain for gain in (0.8, 1.0, 1.2)}
    # Through the cell alone: sigmoid of the forget gate's bias. The way through h adds to it.
    theory |= {f"LSTM, forget bias {b}": 1 / (1 + math.exp(-b)) for b in (0, 1)}
    rows = [
        [name, f"{theory[name]:.3f}" if name in theory else "—", rate[name], curves[name][T]]
        for name in curves
    ]
    return {
        "gradient": {
            "columns": ["cell", "factor a step, theory", "measured", f"norm over {T} steps"],
            "rows": rows,
            "formats": ["", "", ".3f", ".2e"],
        },
        "gradient_curves": curves,
    }


def squeeze_the_bottleneck(scale: LadderScale) -> dict[str, Any]:
    """Reverse sequences of many lengths through states of different widths."""
    symbols, begin, end = 12, 12, 13
    accuracy: dict[str, dict[str, list[float]]] = {}
    lengths = list(range(2, scale.longest + 1, 2))
    runs = list(itertools.product(scale.widths, range(scale.seeds)))
    for width, seed in progress(runs, desc="bottleneck", unit="run"):
        draw = torch.Generator().manual_seed(seed)
        model = EncoderDecoder(symbols, 14, width, bidirectional=False, generator=draw)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

        def step(length: int, model=model, optimizer=optimizer, draw=draw) -> dict[str, Tensor]:
            source, target = reverse_task(64, length, symbols, generator=draw)
            edge = torch.full((64, 1), begin)
            logits = model(source, torch.full((64,), length), torch.cat((edge, target), 1))
            wanted = torch.cat((target, torch.full((64, 1), end)), 1)
            loss = cross_entropy(logits.flatten(0, 1), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return {"loss": loss.detach()}

        fit(step, itertools.cycle(lengths), max_steps=scale.bottleneck_steps)
        for length in lengths:
            source, target = reverse_task(128, length, symbols, generator=draw)
            written = greedy_decode(
                model, source, torch.full((128,), length), begin_id=begin, end_id=end,
                max_new_tokens=length + 2,
            )  # fmt: skip
            right = sum(
                sum(a == b for a, b in zip(w, t, strict=False)) / length
                for w, t in zip(written, target.tolist(), strict=True)
            )
            accuracy.setdefault(str(width), {}).setdefault(str(length), []).append(right / 128)
    rows = [
        [length, *(sum(a[str(length)]) / len(a[str(length)]) for a in accuracy.values())]
        for length in lengths
    ]
    return {
        "bottleneck": {
            "columns": ["length", *(f"D = {width}" for width in scale.widths)],
            "rows": rows,
            "formats": ["d", *(".2f" for _ in scale.widths)],
        },
        "bottleneck_all": accuracy,
    }


def lstm_coder(model: RecurrentLM) -> SteppingModel:
    """A trained byte-level model as a compressor; the first byte is predicted uniformly."""

    @torch.no_grad()
    def step(state: object, byte: int | None) -> tuple[np.ndarray, object]:
        if byte is None:
            return np.full(256, 1 / 256), None
        logits, state = model(torch.tensor([[byte]]), state)
        return torch.softmax(logits[0, 0].double(), dim=-1).numpy(), state

    return SteppingModel(step)


def compress_with_everything(
    scale: LadderScale, recurrent: RecurrentLM, ngram: NgramModel
) -> dict[str, Any]:
    """One held-out text through every compressor, and back."""
    world = TinyWorld()
    stories = []
    size = 0
    for story in world.stories(10_000, seed=2):
        stories.append(story)
        size += len(story.text) + 1
        if size >= scale.coded_bytes:
            break
    data = "".join(f"{story.text}\n" for story in stories).encode()
    recurrent.eval()
    nats = stream_nats(recurrent, byte_ids(data)) + math.log(256)
    rows: list[list[Any]] = []

    def add(name: str, code: bytes, ideal_bits: float | None, seconds: float) -> None:
        overhead = "—" if ideal_bits is None else f"{8 * len(code) / ideal_bits - 1:.2%}"
        rows.append([name, len(code), 8 * len(code) / len(data), overhead, seconds])

    for name, pack, unpack in (
        ("gzip -9", lambda d: gzip.compress(d, 9), gzip.decompress),
        ("xz -9e", lambda d: lzma.compress(d, preset=9 | lzma.PRESET_EXTREME), lzma.decompress),
    ):
        began = time.perf_counter()
        code = pack(data)
        add(name, code, None, time.perf_counter() - began)
        assert unpack(code) == data
    coders = (
        ("adaptive bytes", AdaptiveBytes(), None),
        (f"{ngram.order}-gram", SteppingModel(ngram.coding_step), ngram.nats(data)),
        ("LSTM", lstm_coder(recurrent), nats),
    )
    for name, coder, ideal in coders:
        began = time.perf_counter()
        code = compress_bytes(data, coder)
        add(name, code, None if ideal is None else ideal / math.log(2), time.perf_counter() - began)
        assert decompress_bytes(code, coder) == data
    began = time.perf_counter()
    code = world.compress(story.text for story in stories)
    ideal = -sum(story.log_probability for story in stories) / math.log(2)
    add("tiny world's grammar", code, ideal, time.perf_counter() - began)
    assert world.decompress(code, len(stories)) == [story.text for story in stories]
    return {
        "compression": {
            "columns": ["compressor", "bytes", "bits per byte", "above cross-entropy", "seconds"],
            "rows": rows,
            "formats": ["", ",d", ".3f", "", ".2f"],
        },
        "compressed_bytes": len(data),
    }


def time_the_chain(scale: LadderScale) -> dict[str, Any]:
    """Forward and backward of an LSTM over T, beside a layer of the same size without a chain."""
    D, B = 64, 8
    rows = []
    for T in scale.lengths:
        x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))
        ours = RecurrentLayer("lstm", D, D)
        fused = RecurrentLayer("lstm", D, D, fused=True)
        parallel = nn.Sequential(nn.Linear(D, 4 * D), nn.Tanh(), nn.Linear(4 * D, D))

        def both(layer: nn.Module, x: Tensor = x) -> None:
            out = layer(x)
            (out[0] if isinstance(out, tuple) else out).sum().backward()

        timing = time_side_by_side(
            {
                "ours": lambda m=ours: both(m),
                "fused": lambda m=fused: both(m),
                "parallel": lambda m=parallel: both(m),
            },
            rounds=5,
        )
        ms = [1000 * timing[name].median for name in ("ours", "fused", "parallel")]
        rows.append([T, *ms, ms[1] / ms[2]])
    return {
        "chain": {
            "columns": [
                "T",
                "ours, ms",
                "compiled loop, ms",
                "parallel, ms",
                "compiled / parallel",
            ],
            "rows": rows,
            "formats": ["d", ".1f", ".2f", ".2f", ".1f"],
        }
    }
