"""How much less time today's recipe needs for the loss that 2019's recipe ends with.

    python benchmarks/time_to_loss.py            three seeds and an ablation of each ingredient
    python benchmarks/time_to_loss.py --smoke    the same code on a few steps

The 2019 recipe: GPT-2's block, AdamW, cosine schedule, 4 layers of width 128, characters, 12 x 64
tokens a step, 2,000 steps, fp32. Today's has no more parameters: `llama.Llama` with QK-norm, RoPE,
RMSNorm, squared ReLU, zero-initialised outputs; Muon; a trapezoidal schedule; bf16 autocast. Both
run in the same process, in turn, through the course's `TrainingStep`, on the same text, and only
training steps are timed: evaluation is left out on both sides. Learning rates of both were chosen
by a few runs of seed 0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brief_training import corpus_bytes, next_token_windows
from gpt import GPT, GPTConfig
from lab import format_table, interval, progress, script_parser, write_results
from llama import Llama, LlamaConfig
from lr_schedules import Schedule, cosine, trapezoid
from numerics import cross_entropy
from optimizers import AdamW, CombinedOptimizer, Muon, parameter_groups
from sequence_data import Vocabulary
from sublayers import Activation
from training import TrainingConfig, TrainingStep

SEQ_LEN = 64
WIDTH, HEADS, LAYERS = 128, 4, 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Today's recipe; an ablation is the same with one field changed."""

    steps: int = 200
    batch_size: int = 32
    muon: bool = True
    muon_lr: float = 0.05
    adamw_lr: float = 0.016
    zero_init: bool = True
    qk_norm: bool = True
    activation: Activation = "relu_squared"
    soft_cap: float | None = None
    tied: bool = False
    schedule: str = "trapezoid"
    autocast: bool = True
    rope_base: float = 1000.0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Characters as ids: what to train on, and fixed held-out windows (B, T + 1)."""

    train: Tensor
    held_out: Tensor
    vocab_size: int


ABLATIONS: dict[str, dict[str, Any]] = {
    "AdamW in place of Muon": {"muon": False},
    "outputs not zero-initialised": {"zero_init": False},
    "no QK-norm": {"qk_norm": False},
    "GELU in place of squared ReLU": {"activation": "gelu_tanh"},
    "logits soft-capped at 15": {"soft_cap": 15.0},
    "tied embeddings": {"tied": True},
    "cosine in place of trapezoid": {"schedule": "cosine"},
    "fp32 in place of bf16": {"autocast": False},
    "12 windows a step, 533 steps": {"batch_size": 12, "steps": 533},
}


def load_data(max_bytes: int) -> Data:
    """The standard library by characters; those seen fewer than 50 times are one symbol."""
    train, held_out = (
        text.decode("utf-8", errors="ignore")
        for text in corpus_bytes(max_bytes=max_bytes, held_out_bytes=max(20_000, max_bytes // 10))
    )
    vocabulary = Vocabulary.build([train], min_count=50, specials=(Vocabulary.UNKNOWN,))
    scored = torch.tensor(vocabulary.encode(held_out))
    starts = np.linspace(0, len(scored) - SEQ_LEN - 2, min(1024, len(scored) // SEQ_LEN))
    windows = torch.stack([scored[int(s) : int(s) + SEQ_LEN + 1] for s in starts])
    return Data(
        train=torch.tensor(vocabulary.encode(train)), held_out=windows, vocab_size=len(vocabulary)
    )


def recipe_of_2019(data: Data, *, steps: int, seed: int) -> tuple[TrainingStep, int]:
    """GPT-2's block with AdamW and a cosine.

    Of the rates tried, 3e-3 and 6e-3 to a tenth and 6e-3 to 0, the first ended lowest.
    """
    config = GPTConfig(
        vocab_size=data.vocab_size,
        d_model=WIDTH,
        num_heads=HEADS,
        num_layers=LAYERS,
        max_seq_len=SEQ_LEN,
    )
    model = GPT(config, generator=torch.Generator().manual_seed(seed))
    groups = parameter_groups(model, lr=3e-3, weight_decay=0.1)
    optimizer = AdamW(groups.adamw, lr=3e-3, betas=(0.9, 0.95))
    schedule = cosine(steps, warmup_steps=min(100, steps // 10), final=0.1)
    return _training(model, optimizer, schedule, batch_size=12, autocast=False), 12


def recipe_of_today(data: Data, recipe: Recipe, *, seed: int) -> tuple[TrainingStep, int]:
    """The modern arrangement, as the recipe says."""
    config = LlamaConfig(
        vocab_size=data.vocab_size,
        d_model=WIDTH,
        num_heads=HEADS,
        num_layers=LAYERS,
        d_ff=4 * WIDTH,
        max_seq_len=SEQ_LEN,
        gated=False,
        activation=recipe.activation,
        qk_norm=recipe.qk_norm,
        tie_embeddings=recipe.tied,
        logit_soft_cap=recipe.soft_cap,
        zero_init_outputs=recipe.zero_init,
        rope_base=recipe.rope_base,
        init_std=None,
        embedding_std=0.02 if recipe.tied else 1.0,
    )
    model = Llama(config, generator=torch.Generator().manual_seed(seed))
    if recipe.zero_init and not recipe.tied:
        nn.init.zeros_(model.unembed.weight)
    groups = parameter_groups(
        model, lr=recipe.adamw_lr, muon=recipe.muon, muon_lr=recipe.muon_lr, weight_decay=0.0
    )
    adamw = AdamW(groups.adamw, lr=recipe.adamw_lr, betas=(0.8, 0.95), eps=1e-10)
    parts = [Muon(groups.muon, lr=recipe.muon_lr), adamw] if recipe.muon else [adamw]
    steps = recipe.steps
    schedule: Schedule = (
        trapezoid(steps, decay_steps=steps // 2)
        if recipe.schedule == "trapezoid"
        else cosine(steps)
    )
    step = _training(
        model,
        CombinedOptimizer(*parts),
        schedule,
        batch_size=recipe.batch_size,
        autocast=recipe.autocast,
    )
    return step, recipe.batch_size


def train(step: TrainingStep, data: Data, *, batch_size: int, steps: int, seed: int) -> float:
    """Take the steps; returns the seconds that they took, drawing of batches included."""
    batches: Iterator[tuple[Tensor, Tensor]] = next_token_windows(
        data.train, batch_size=batch_size, seq_len=SEQ_LEN, seed=seed
    )
    began = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    return time.perf_counter() - began


@torch.no_grad()
def held_out_loss(step: TrainingStep, data: Data) -> float:
    """Mean nats a character on the held-out windows, in fp32."""
    model = step.model.eval()
    losses = [
        float(cross_entropy(model(windows[:, :-1]), windows[:, 1:])) * len(windows)
        for windows in data.held_out.split(256)
    ]
    model.train()
    return sum(losses) / len(data.held_out)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, write the results."""
    parser = script_parser(
        "Time to the 2019 recipe's final loss.", default_out=Path(__file__).parent / "results"
    )
    args = parser.parse_args(argv)
    began = time.perf_counter()
    steps, seeds = (20, 1) if args.smoke else (2000, 3)
    recipe = Recipe(steps=10) if args.smoke else Recipe()
    data = load_data(200_000 if args.smoke else 4_000_000)
    rows, ratios, targets, losses, parameters = [], [], [], [], (0, 0)
    for seed in progress(range(seeds), desc="both recipes", unit="seed"):
        old, old_batch = recipe_of_2019(data, steps=steps, seed=seed)
        old_seconds = train(old, data, batch_size=old_batch, steps=steps, seed=seed)
        new, new_batch = recipe_of_today(data, recipe, seed=seed)
        new_seconds = train(new, data, batch_size=new_batch, steps=recipe.steps, seed=seed)
        parameters = tuple(sum(p.numel() for p in s.model.parameters()) for s in (old, new))
        targets.append(held_out_loss(old, data))
        losses.append(held_out_loss(new, data))
        ratios.append(old_seconds / new_seconds)
        rows.append([seed, targets[-1], old_seconds, losses[-1], new_seconds, ratios[-1]])
    table = {
        "columns": ["seed", "2019: loss", "seconds", "today: loss", "seconds", "times faster"],
        "rows": rows,
        "formats": ["d", ".3f", ".1f", ".3f", ".1f", ".1f"],
    }
    ablations = [["the recipe", losses[0], rows[0][4]]]
    for name, change in progress(ABLATIONS.items(), desc="ablations", unit="run"):
        changed = replace(recipe, **change)
        if args.smoke:
            changed = replace(changed, steps=10)
        step, batch_size = recipe_of_today(data, changed, seed=0)
        seconds = train(step, data, batch_size=batch_size, steps=changed.steps, seed=0)
        ablations.append([name, held_out_loss(step, data), seconds])
    ablation_table = {
        "columns": ["one thing changed", "final loss", "seconds"],
        "rows": ablations,
        "formats": ["", ".3f", ".1f"],
    }
    speedup, half_width = interval(ratios) if seeds > 1 else (ratios[0], 0.0)
    results = {
        "table": table,
        "ablations": ablation_table,
        "speedup": speedup,
        "speedup_half_width": half_width,
        "reached_in_all_seeds": all(new <= old for new, old in zip(losses, targets, strict=True)),
        "worst_margin_nats": min(old - new for new, old in zip(losses, targets, strict=True)),
        "parameters_2019": parameters[0],
        "parameters_today": parameters[1],
        "steps_2019": steps,
        "steps_today": recipe.steps,
        "vocab_size": data.vocab_size,
    }
    for shown in (table, ablation_table):
        sys.stdout.write(format_table(shown["columns"], shown["rows"], shown["formats"]) + "\n\n")
    reached = "reached" if results["reached_in_all_seeds"] else "NOT reached in every seed"
    sys.stdout.write(
        f"{speedup:.1f} ± {half_width:.1f} times faster; the 2019 loss was {reached}\n"
    )
    write_results(
        Path(args.out) / "time_to_loss.json",
        results,
        command="benchmarks/time_to_loss.py" + (" --smoke" if args.smoke else ""),
        seeds=list(range(seeds)),
        device="cpu",
        wall_seconds=time.perf_counter() - began,
    )
    return 0


def _training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    batch_size: int,
    autocast: bool,
) -> TrainingStep:
    config = TrainingConfig(
        tokens_per_step=batch_size * SEQ_LEN,
        seq_len=SEQ_LEN,
        micro_batch_size=batch_size,
        clip_norm=None if autocast else 1.0,
        autocast=torch.bfloat16 if autocast else None,
    )
    return TrainingStep(model, optimizer, schedule, config)


if __name__ == "__main__":
    sys.exit(main())
