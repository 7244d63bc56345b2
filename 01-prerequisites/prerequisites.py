"""Topic 01 as a program: derivatives by machine, networks by hand, and what numbers a computer has.

    python 01-prerequisites/prerequisites.py            some minutes on a CPU
    python 01-prerequisites/prerequisites.py --smoke    the same in miniature

Writes results.json, from which the README's numbers come, and figures/.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from digits_data import load_digit_images
from experiment_log import ExperimentLog
from floating_point import FORMATS, round_to_format
from lab import script_parser, seed_everything
from linear_algebra import low_rank
from neural_network import MLPConfig
from prerequisites_experiments import (
    DEFAULT_FOUNDATIONS,
    SMOKE_FOUNDATIONS,
    compare_engine,
    compare_initialisations,
    compare_optimizers,
    compare_three_networks,
    compress_digits,
    count_xor_solved,
    measure_rounding,
    time_products,
    train_digits,
)
from prerequisites_figures import (
    differences_figure,
    digits_figure,
    formats_figure,
    paths_figure,
    products_figure,
    signals_figure,
    spectrum_figure,
)

_HERE = Path(__file__).resolve().parent


def rounding_by_size() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each format: magnitudes (M,), and the median relative error of rounding there."""
    rng = np.random.default_rng(0)
    sizes = 2.0 ** np.arange(-30, 20)
    found = {}
    for fmt in FORMATS:
        x = sizes[:, None] * rng.uniform(1, 2, size=(len(sizes), 400))  # (M, 400)
        relative = np.abs(round_to_format(x, fmt) - x) / x
        found[fmt.name] = sizes, np.median(relative, axis=1)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run all experiments, print their tables, write results.json and figures/."""
    parser = script_parser(
        "Derivatives by machine, networks by hand, and what numbers a computer has.",
        default_out=_HERE,
        cpu_only=True,
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)
    scale = SMOKE_FOUNDATIONS if args.smoke else DEFAULT_FOUNDATIONS
    log = ExperimentLog("prerequisites.py", args)
    config = MLPConfig(sizes=(64, 128, 10))
    mflop = 6 * config.num_parameters * 64 / 1e6
    sys.stdout.write(
        f"{scale.graphs:,} random graphs; {scale.xor_seeds} seeds of XOR; digits: "
        f"{config.num_parameters:,} parameters, {scale.digit_steps:,} steps, batches of 64, "
        f"{scale.digit_seeds} seeds, at most {mflop:.1f} MFLOP a step\n"
    )

    log.run("Are our gradients PyTorch's?", lambda: compare_engine(scale))
    log.run("One network three ways: the same weights?", lambda: compare_three_networks(scale))
    log.run("How many hidden units does XOR need?", lambda: count_xor_solved(scale))
    log.run("Handwritten digits, gradients by hand", lambda: train_digits(scale)[0])
    log.run("How should a network begin?", lambda: compare_initialisations(scale))
    log.run("Which way down?", lambda: compare_optimizers(scale))
    log.run("What is a matrix product worth?", lambda: time_products(scale))
    log.run("What do 32, 16 and 8 bits hold?", lambda: measure_rounding(scale))
    log.run("How many directions do the digits have?", lambda: compress_digits(scale))

    log.draw(differences_figure(log.results["differences"]), "differences")
    log.draw(digits_figure(log.results["digits_curves"], scale.digit_steps), "digits")
    log.draw(signals_figure(log.results["starts_signals"]), "signals")
    log.draw(paths_figure(log.results["optimizers_paths"]), "paths")
    log.draw(products_figure(log.results["products"]["rows"]), "products")
    log.draw(formats_figure(rounding_by_size()), "formats")
    digits, ranks = load_digit_images(seed=0), (1, 2, 5, 10, 20, 64)
    copies = [digits.mean + low_rank(digits.train_x, rank)[3] for rank in ranks]
    images = np.stack(copies).reshape(-1, 8, 8)
    picture = spectrum_figure(log.results["singular_values"], images, ranks)
    log.draw(picture, "spectrum")
    # Drawn, not quoted: the file stays readable.
    for name in ("optimizers_paths", "digits_curves", "singular_values"):
        del log.results[name]
    log.finish(seeds=range(scale.digit_seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
