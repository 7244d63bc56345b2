"""Topic 08 as a program: pre-train and fine-tune, four tasks at once, digits, cheaper attention.

    python 08-transformer-variants/transformer_variants.py            minutes on a CPU
    python 08-transformer-variants/transformer_variants.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from efficient_costs import attention_ways, measure_costs
from experiment_log import ExperimentLog
from lab import script_parser, seed_everything
from variant_experiments import (
    compare_objectives,
    compare_starts,
    count_budget,
    pretrain_all,
    reading_material,
)
from variant_figures import objectives_figure, rollout_figure, savings_figure, starts_figure
from variant_scale import DEFAULT_SCALE_08, SMOKE_SCALE_08
from variant_studies import many_tasks, read_digits, roll_out_digits, swap_attention

_HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "Pre-train and fine-tune, four tasks at once, digits, cheaper attention.",
        default_out=_HERE,
        cpu_only=True,
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE_SCALE_08 if args.smoke else DEFAULT_SCALE_08
    log = ExperimentLog("transformer_variants.py", args)

    material = reading_material(scale)
    log.run("What do equal FLOPs buy?", lambda: count_budget(material, scale))
    networks = pretrain_all(material, scale)
    log.run(
        "What does pre-training buy, and for whom?",
        lambda: compare_starts(material, networks, scale),
    )
    log.draw(starts_figure(scale.train_sizes, log.results["starts_detail"]), "starts")
    log.run("Which objective is worth most?", lambda: compare_objectives(material, networks, scale))
    log.draw(
        objectives_figure(log.results["objectives_detail"], size=scale.compared_size), "objectives"
    )
    log.run("Can one model do four tasks?", lambda: many_tasks(scale)[0])

    reader = read_digits(scale)
    log.run("Are sixteen patches a digit?", lambda: reader.found)
    log.draw(rollout_figure(*roll_out_digits(reader), patch=2), "rollout")

    models = [found.model for found in networks["masked tokens"]]
    log.run(
        "What does cheaper attention lose?",
        lambda: swap_attention(
            models, lambda seed: attention_ways(seed=seed, window=8), material, scale
        ),
    )
    log.run(
        "What does it save?",
        lambda: measure_costs(scale.cost_lengths, rounds=1 if args.smoke else 5),
    )
    detail = log.results["costs_detail"]
    log.draw(savings_figure(detail["lengths"], detail["ms"], detail["mib"]), "costs")
    log.finish(seeds=range(scale.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
