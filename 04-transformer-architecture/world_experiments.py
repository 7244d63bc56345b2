"""Topic 04's experiments in tiny world: its second language, and the ladder's next rung."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from architecture_experiments import ArchitectureScale, byte_windows, translate_text
from lab import count_parameters, interval, progress, read_results
from scheme_lm import SchemeLM, bits_by_position, language_loss
from tiny_world import TinyWorld
from translation import ParallelText, train_with_adam


def world_text(scale: ArchitectureScale) -> ParallelText:
    """Tiny world's sentences in both languages; the held-out ones come from other stories."""
    world = TinyWorld()
    train, held_out = (
        [(pair.source, pair.target) for pair in world.translation_pairs(count, seed=seed)]
        for count, seed in ((scale.train_pairs, 0), (scale.held_out_pairs, 1))
    )
    return ParallelText(train, held_out)


def translate_world(scale: ArchitectureScale) -> dict[str, Any]:
    """The 2017 model between tiny world's two languages."""
    found, _ = translate_text(
        world_text(scale),
        scale,
        steps=scale.translation_steps,
        width=scale.translation_width,
        label="tiny world",
    )
    return {"world": found}


def climb_with_attention(scale: ArchitectureScale, *, topic_02: Path) -> dict[str, Any]:
    """The transformer on topic 02's ladder: the same text, size and batches.

    Args:
        topic_02: that topic's results.json, whose rows stand above ours where it exists.
    """
    world = TinyWorld()
    train = _story_bytes(world, scale.ladder_stories, seed=0)
    stories = list(world.stories(40, seed=1))
    held_out = _story_bytes(world, 40, seed=1)
    floor = -sum(s.log_probability for s in stories) / math.log(2) / len(held_out)
    bits, seconds, parameters = [], [], 0
    for seed in progress(range(scale.seeds), desc="ladder", unit="seed"):
        model = SchemeLM(
            vocab_size=256, d_model=64, num_heads=4, num_layers=2, scheme="rope", seed=seed
        )
        parameters = count_parameters(model)
        began = time.perf_counter()
        train_with_adam(
            model,
            language_loss,
            byte_windows(train, batch_size=16, length=64, seed=seed),
            steps=scale.ladder_steps,
            rate=partial(_one_cycle, peak=4e-3, steps=scale.ladder_steps),
        )
        seconds.append(time.perf_counter() - began)
        bits.append(_sliding_bits(model, held_out, window=64))
    mean, half_width = interval(bits)
    rows: list[list[Any]] = []
    if topic_02.exists():
        ladder = read_results(topic_02)["ladder"]["rows"]
        rows = [row[:5] for row in ladder if row[1]]  # the floor's row has no parameters
    rows.append(["transformer, D = 64", parameters, mean, half_width, float(np.mean(seconds))])
    rows.append(["the floor on this text", 0, floor, 0.0, 0.0])
    return {
        "ladder": {
            "columns": ["model", "parameters", "bits per byte", "± 95 %", "seconds"],
            "rows": rows,
            "formats": ["", ",d", ".3f", ".3f", ".1f"],
        },
        "ladder_bits": mean,
        "ladder_half_width": half_width,
        "ladder_floor": floor,
        "ladder_seconds": float(np.mean(seconds)),
        "ladder_parameters": parameters,
    }


def _one_cycle(step: int, *, peak: float, steps: int) -> float:
    """Up over 30 % of the steps and down to nothing, both along a cosine."""
    rising = 0.3 * steps
    if step < rising:
        return peak * (1 - math.cos(math.pi * step / rising)) / 2
    return peak * (1 + math.cos(math.pi * (step - rising) / (steps + 1 - rising))) / 2


def _story_bytes(world: TinyWorld, count: int, *, seed: int) -> Tensor:
    text = "".join(f"{story.text}\n" for story in world.stories(count, seed=seed)).encode()
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))  # (N,)


def _sliding_bits(model: SchemeLM, ids: Tensor, *, window: int) -> float:
    """Bits per byte, every byte but the first with at least half a window of context if there is
    so much: windows overlap by half, and only their second halves count, the first one's whole.
    """
    half = window // 2
    count = (len(ids) - 1 - window) // half + 1
    rows = torch.stack([ids[i * half : i * half + window + 1] for i in range(count)])
    first = bits_by_position(model, rows[:1])
    later = bits_by_position(model, rows)[half:].sum() * count  # includes the first row's
    total = float(first[:half].sum() + later)
    return total / (half + count * half)
