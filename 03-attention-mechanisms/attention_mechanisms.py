"""Topic 03 as a program: what attention reads, what it costs, what its maps tell.

    python 03-attention-mechanisms/attention_mechanisms.py            under ten minutes on a CPU
    python 03-attention-mechanisms/attention_mechanisms.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_experiments import compare_attentions, sure_and_possible, translator_weights
from attention_costs import attention_flops, measure_memory, measure_time, projection_flops
from attention_figures import (
    alignment_figure,
    costs_figure,
    heads_figure,
    length_figure,
    masks_figure,
    scale_figure,
)
from attention_studies import count_masks, mask_gallery, study_heads, study_maps, study_scale
from experiment_log import ExperimentLog
from lab import script_parser, seed_everything

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class AttentionScale:
    """How large the experiments are."""

    widths: tuple[int, ...] = (4, 16, 64, 256, 1024)
    study_rows: int = 4000
    map_rows: int = 200
    head_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    head_steps: int = 500
    seeds: int = 3
    time_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    memory_lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    rounds: int = 3
    train_pairs: int = 20_000
    test_pairs: int = 1500
    d_model: int = 64
    translation_steps: int = 600


SMOKE = AttentionScale(
    widths=(4, 64, 256),
    study_rows=100,
    map_rows=5,
    head_counts=(1, 4),
    head_steps=5,
    seeds=2,
    time_lengths=(32, 64),
    memory_lengths=(64, 128),
    rounds=1,
    train_pairs=300,
    test_pairs=60,
    d_model=16,
    translation_steps=3,
)


def crossing_length(d_model: int) -> dict[str, Any]:
    """Where scores and mixtures cost as much as the four projections: T = 2 D, causal T ≈ 4 D."""
    T, heads = 2 * d_model, d_model // 64
    scores = attention_flops(1, heads, T, T, 64)
    return {
        "crossing_d_model": d_model,
        "crossing_length": T,
        "crossing_score_gflops": scores / 1e9,
        "crossing_projection_gflops": projection_flops(1, T, d_model) / 1e9,
    }


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "Measure attention: saturation, masks, heads, maps, time and memory.", default_out=_HERE
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE if args.smoke else AttentionScale()
    log = ExperimentLog("attention_mechanisms.py", args)

    log.run("At which length do scores cost as much as projections?", lambda: crossing_length(768))
    log.run("Which pairs does each mask allow?", lambda: count_masks(64, block_size=8))
    log.draw(masks_figure(mask_gallery(64)), "masks")
    log.run(
        "What does 1/√K save?",
        lambda: study_scale(scale.widths, num_keys=64, rows=scale.study_rows, seed=args.seed),
    )
    log.draw(scale_figure(log.results["scale_detail"]), "scale")
    log.run(
        "Can other weights give the same output?",
        lambda: study_maps(
            num_keys=(8, 16, 32, 64, 128), width=16, rows=scale.map_rows, seed=args.seed
        ),
    )
    log.run(
        "Four lookups at once: how many heads?",
        lambda: study_heads(
            scale.head_counts,
            d_model=64,
            length=16,
            offsets=(1, 2, 3, 5),
            steps=scale.head_steps,
            seeds=scale.seeds,
        ),
    )
    log.draw(heads_figure(log.results["heads_detail"], log.results["heads_offsets"]), "heads")
    log.run(
        "What memory does each back end need?",
        lambda: measure_memory(
            scale.memory_lengths, num_heads=8, head_width=64, device=args.device
        ),
    )
    log.run(
        "And what time?",
        lambda: measure_time(
            scale.time_lengths,
            num_heads=8,
            head_width=64,
            rounds=scale.rounds,
            device=args.device,
        ),
    )
    log.draw(costs_figure(log.results["time"], log.results["memory"]), "costs")
    shown: dict[str, Any] = {}

    def translate() -> dict[str, Any]:
        new, models = compare_attentions(
            train=scale.train_pairs,
            test=scale.test_pairs,
            d_model=scale.d_model,
            steps=scale.translation_steps,
            seeds=scale.seeds,
        )
        shown.update(models)
        return new

    log.run("Translation: what does looking back buy, and where does it look?", translate)
    log.draw(length_figure(log.results["translation_detail"]), "length")
    data = shown["data"]
    pair = next(p for p in data.test if 9 <= len(p.source) <= 12)
    weights = translator_weights(shown["additive"], data, [pair])[0]
    drawn = alignment_figure(weights, pair.source, pair.target, sure_and_possible(pair)[1])
    log.draw(drawn, "alignment")
    log.finish(seeds=range(scale.seeds), device=args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
