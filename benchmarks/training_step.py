"""A training step of the course's GPT beside one of `transformers`' GPT-2: same model, same data.

Both start from the same weights, see the same batches and take the same step: forward, loss,
backward, clipping of the gradient's norm, AdamW. Ours is the course's production step (`training`,
`optimizers`, `gpt`, `linear_loss`); theirs is what a user would write around `GPT2LMHeadModel`,
with `torch.optim.AdamW` as it comes, and once more with its fused kernel. All in eager mode, in
three arithmetics that PyTorch offers on a CPU, each for both sides alike:

  fp32         as PyTorch is when you install it
  fp32 oneDNN  `torch.set_float32_matmul_precision("medium")`: fp32 products by oneDNN. On a CPU
               without AMX that is full fp32 and, on some makes, faster than the default MKL; with
               AMX the products are computed in bf16
  bf16         autocast to bfloat16

Under fp32 ours runs once more with its products by oneDNN beside theirs as installed: one public
switch that a user of theirs may turn as well, so that row is no like-for-like; the next block is.
The losses of the two sides are compared step by step: a faster wrong answer is no result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import GPT, GPTConfig, flops_per_token, gpt_preset, parameter_count
from hf_weights import GPT2_FAMILY, load_pretrained, save_pretrained
from lab import (
    Timing,
    format_table,
    interval,
    script_parser,
    seed_everything,
    time_side_by_side,
    write_results,
)
from linear_loss import fused_next_token_loss
from lr_schedules import constant
from optimizers import AdamW
from training import TrainingConfig, TrainingStep

_OURS, _THEIRS, _FUSED = "course", "transformers", "transformers, fused AdamW"
_OURS_ONEDNN = "course, products by oneDNN"
_ARITHMETICS = ("fp32", "fp32 oneDNN", "bf16")
_LEARNING_RATE, _WEIGHT_DECAY, _CLIP_NORM = 3e-4, 0.1, 1.0


def main(argv: list[str] | None = None) -> int:
    """Time the contestants, print the table, write training_step.json."""
    args = _parser().parse_args(argv)
    args.device = torch.device("cpu")  # the claim is about CPUs
    if args.smoke:
        args.rounds = 2
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    started = time.perf_counter()
    config, batch_size, seq_len = _sizes(smoke=args.smoke)
    tokens = batch_size * seq_len
    flops = flops_per_token(config, seq_len) * tokens
    print(
        f"{parameter_count(config):,} parameters (D {config.d_model}, {config.num_layers} layers, "
        f"V {config.vocab_size}), {batch_size} x {seq_len} = {tokens:,} tokens and "
        f"{flops / 1e9:,.1f} GFLOP a step, {args.threads} threads, {args.rounds} rounds"
    )
    batches = _batches(config, batch_size, seq_len, args.seed)
    rows: list[list[Any]] = []
    measured: dict[str, Any] = {}
    for arithmetic in _ARITHMETICS:
        result = _compare(config, batches, arithmetic, args.rounds, args.seed)
        with _arithmetic(arithmetic):
            gflops = _matmul_gflops(config, tokens, arithmetic)
        timings: dict[str, Timing] = result.pop("timings")
        floor = flops / (gflops * 1e9)
        for name, timing in timings.items():
            ratios = timings[_THEIRS].ratios(timing)
            mean, half = interval(ratios)
            rows.append(
                [
                    arithmetic,
                    name,
                    timing.median * 1e3,
                    timing.min * 1e3,
                    timing.max * 1e3,
                    tokens / timing.median,
                    timing.speedup_over(timings[_THEIRS]),
                    f"{mean:.2f} ± {half:.2f}",
                    floor / timing.median,
                ]
            )
        ours = timings[_OURS]
        measured[arithmetic.replace(" ", "_")] = {
            "speedup": ours.speedup_over(timings[_THEIRS]),
            "speedup_over_fused": ours.speedup_over(timings[_FUSED]),
            "tokens_per_second": {name: tokens / t.median for name, t in timings.items()},
            "step_seconds": {name: list(t.seconds) for name, t in timings.items()},
            "matmul_gflops": gflops,
            "floor_seconds": floor,
            "share_of_floor": floor / ours.median,
            **result,
        }
        if _OURS_ONEDNN in timings:
            switched = timings[_OURS_ONEDNN].speedup_over(timings[_THEIRS])
            measured["fp32"]["speedup_of_ours_by_onednn"] = switched
        print(
            f"{arithmetic}: {measured[arithmetic.replace(' ', '_')]['speedup']:.2f} times "
            f"{_THEIRS}'s tokens a second, largest difference of losses "
            f"{result['largest_loss_difference']:.1e}"
        )
    # How near theirs comes to the products' speed bounds what ours could gain.
    shares = {
        name: result["floor_seconds"] / median(result["step_seconds"][_THEIRS])
        for name, result in measured.items()
    }
    columns = ["arithmetic", "contestant", "median ms", "min ms", "max ms", "tokens/s"]
    columns += ["times theirs (median)", "mean and 95 % interval", "share of matmul speed"]
    formats = ["", "", ".0f", ".0f", ".0f", ",.0f", ".2f", "", ".0%"]
    table = {"columns": columns, "rows": rows, "formats": formats}
    print(format_table(columns, rows, formats))
    write_results(
        args.out / "training_step.json",
        {
            **measured,
            "shares": shares,
            "most_possible": {name: 1 / share for name, share in shares.items()},
            "parameters": parameter_count(config),
            "tokens_per_step": tokens,
            "gflop_per_step": flops / 1e9,
            "threads": args.threads,
            "rounds": args.rounds,
            "table": table,
        },
        command=f"python benchmarks/training_step.py {' '.join(argv or sys.argv[1:])}".strip(),
        seeds=[args.seed],
        device=args.device,
        wall_seconds=time.perf_counter() - started,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = script_parser(
        "Time a training step of the course's GPT beside transformers' GPT-2.",
        default_out=Path(__file__).parent / "results",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    return parser


def _sizes(*, smoke: bool) -> tuple[GPTConfig, int, int]:
    if smoke:
        config = GPTConfig(vocab_size=128, d_model=32, num_heads=2, num_layers=2, max_seq_len=16)
        return config, 2, 16
    return gpt_preset("12M", max_seq_len=256), 8, 256


def _batches(
    config: GPTConfig, batch_size: int, seq_len: int, seed: int
) -> Callable[[int], Tensor]:
    """A function from the number of the step to its ids (B, T + 1), the same for every caller."""

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        shape = (batch_size, seq_len + 1)
        # A skewed distribution, so that there is something to learn and the loss must fall.
        uniform = torch.rand(shape, generator=generator)
        return (uniform.pow(3) * config.vocab_size).long()  # (B, T + 1)

    return batch


def _compare(
    config: GPTConfig, batches: Callable[[int], Tensor], arithmetic: str, rounds: int, seed: int
) -> dict[str, Any]:
    """Step all contestants in turn; their timings and how far their losses are apart."""
    with tempfile.TemporaryDirectory() as folder:
        start = GPT(config, generator=torch.Generator().manual_seed(seed))
        save_pretrained(start, folder, GPT2_FAMILY)
        steps = {
            _OURS: _our_steps(load_pretrained(folder, [GPT2_FAMILY]), batches, arithmetic),
            _THEIRS: _their_steps(_their_model(folder), batches, arithmetic, fused=None),
            _FUSED: _their_steps(_their_model(folder), batches, arithmetic, fused=True),
        }
        if arithmetic == "fp32":
            again = load_pretrained(folder, [GPT2_FAMILY])
            steps[_OURS_ONEDNN] = _our_steps(again, batches, "fp32 oneDNN")
    losses: dict[str, list[float]] = {name: [] for name in steps}

    def timed(name: str) -> Callable[[], None]:
        def step() -> None:
            with _arithmetic("fp32 oneDNN" if name == _OURS_ONEDNN else arithmetic):
                losses[name].append(next(steps[name]))

        return step

    timings = time_side_by_side({name: timed(name) for name in steps}, rounds=rounds, warmup=2)
    difference = max(
        abs(ours - theirs)
        for name in steps
        for ours, theirs in zip(losses[_OURS], losses[name], strict=True)
    )
    allowed = 0.05 if arithmetic == "bf16" else 1e-3
    if not difference < allowed:
        raise RuntimeError(f"in {arithmetic} the losses differ by {difference}: {losses}")
    return {
        "timings": timings,
        "largest_loss_difference": difference,
        "first_loss": losses[_OURS][0],
        "last_loss": losses[_OURS][-1],
    }


def _our_steps(model: GPT, batches: Callable[[int], Tensor], arithmetic: str) -> Iterator[float]:
    """The course's step: one loss a `next`."""
    ids = batches(0)
    rows, seq_len = ids.shape[0], ids.shape[1] - 1
    step = TrainingStep(
        model,
        AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY),
        constant(),
        TrainingConfig(
            tokens_per_step=rows * seq_len,
            seq_len=seq_len,
            micro_batch_size=rows,
            clip_norm=_CLIP_NORM,
            autocast=torch.bfloat16 if arithmetic == "bf16" else None,
        ),
        loss=fused_next_token_loss,
    )
    number = 0
    while True:
        ids = batches(number)
        metrics = step((ids[:, :-1], ids[:, 1:]))
        number += 1
        yield float(metrics["loss"])


def _their_model(folder: str) -> Any:
    from transformers import GPT2LMHeadModel  # slow to import, and nobody else needs it

    return GPT2LMHeadModel.from_pretrained(folder).train()


def _their_steps(
    model: Any, batches: Callable[[int], Tensor], arithmetic: str, *, fused: bool | None
) -> Iterator[float]:
    """The loop of the documentation around `GPT2LMHeadModel`: one loss a `next`."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=fused
    )
    number = 0
    while True:
        ids = batches(number)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bf16"):
            # Told which labels are already shifted, it computes our loss on our positions.
            targets = ids[:, 1:].contiguous()
            output = model(ids[:, :-1], labels=targets, shift_labels=targets)
        output.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        optimizer.step()
        number += 1
        yield output.loss.item()


@contextmanager
def _arithmetic(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if name == "fp32 oneDNN" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def _matmul_gflops(config: GPTConfig, tokens: int, arithmetic: str) -> float:
    """What this machine's matrix product reaches on the model's largest hidden layer."""
    dtype = torch.bfloat16 if arithmetic == "bf16" else torch.float32
    d_ff = config.d_ff or 4 * config.d_model
    x = torch.randn(tokens, config.d_model, dtype=dtype)
    weight = torch.randn(d_ff, config.d_model, dtype=dtype)
    timing = time_side_by_side({"linear": lambda: F.linear(x, weight)}, rounds=20, warmup=5)
    return 2 * tokens * config.d_model * d_ff / timing["linear"].median / 1e9


if __name__ == "__main__":
    sys.exit(main())
