"""The experiments of topic 01; `prerequisites.py` runs them.

Each returns plain results for results.json. Sizes come in a `FoundationScale`, so that a smoke run
goes through the same code in seconds.
"""

from __future__ import annotations

import collections
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autograd_engine import Variable
from digits_data import load_digit_images, minibatches, xor_examples
from expression_graphs import disagreement, engine_loss, numeric_gradient, random_graph
from floating_point import (
    BF16,
    FORMATS,
    FP16,
    FP32,
    compensated_sum,
    round_to_format,
    running_sum,
    stable_roots,
    textbook_roots,
    textbook_variance,
    two_pass_variance,
)
from gradient_descent import (
    SGD,
    Adam,
    Momentum,
    Nesterov,
    RMSProp,
    descend,
    quadratic_bowl,
    rosenbrock,
    saddle,
    steps_to_reach,
)
from lab import interval, progress, time_side_by_side
from linear_algebra import low_rank, matmul_by_loops
from neural_network import (
    EngineMLP,
    HandMLP,
    MLPConfig,
    TorchNetwork,
    accuracy,
    gradient_step,
    signal_by_depth,
)
from train_loop import fit

OPTIMIZERS: dict[str, type[SGD]] = {
    "SGD": SGD,
    "momentum": Momentum,
    "Nesterov": Nesterov,
    "RMSProp": RMSProp,
    "Adam": Adam,
}


@dataclass(frozen=True, kw_only=True)
class FoundationScale:
    """How large the experiments are."""

    graphs: int
    difference_graphs: int
    twin_steps: int
    xor_seeds: int
    xor_steps: int
    digit_seeds: int
    digit_steps: int
    comparison_seeds: int
    comparison_steps: int
    matmul_sizes: tuple[int, ...]
    loop_limit: int
    walk_steps: int
    rounds: int


DEFAULT_FOUNDATIONS = FoundationScale(
    graphs=20_000,
    difference_graphs=30,
    twin_steps=500,
    xor_seeds=100,
    xor_steps=300,
    digit_seeds=10,
    digit_steps=1500,
    comparison_seeds=3,
    comparison_steps=300,
    matmul_sizes=(16, 32, 64, 128, 256, 512, 1024),
    loop_limit=128,
    walk_steps=5000,
    rounds=7,
)
SMOKE_FOUNDATIONS = FoundationScale(
    graphs=100,
    difference_graphs=3,
    twin_steps=10,
    xor_seeds=4,
    xor_steps=30,
    digit_seeds=2,
    digit_steps=30,
    comparison_seeds=2,
    comparison_steps=10,
    matmul_sizes=(16, 32),
    loop_limit=16,
    walk_steps=100,
    rounds=2,
)


def compare_engine(scale: FoundationScale) -> dict[str, Any]:
    """Our gradients against PyTorch's on random graphs, and finite differences at every step h."""
    errors = [
        disagreement(random_graph(seed))
        for seed in progress(range(scale.graphs), desc="random graphs", unit="graph")
    ]
    steps = [10.0**-k for k in np.arange(1, 13.5, 0.5)]
    worst: dict[float, list[float]] = collections.defaultdict(list)
    for seed in range(scale.difference_graphs):
        graph = random_graph(seed, smooth=True)
        leaves = [Variable(leaf, requires_grad=True) for leaf in graph.leaves]
        loss = engine_loss(graph, leaves)
        if not loss.requires_grad:
            continue
        loss.backward()
        place = next(i for i, leaf in enumerate(leaves) if leaf.grad is not None)
        exact = leaves[place].grad
        assert exact is not None

        def value(x, graph=graph, place=place):
            changed = [*graph.leaves[:place], x, *graph.leaves[place + 1 :]]
            return engine_loss(graph, [Variable(x) for x in changed]).item()

        for h in steps:
            estimate = numeric_gradient(value, graph.leaves[place], h)
            worst[h].append(float(np.abs(estimate - exact).max() / (1 + np.abs(exact).max())))
    return {
        "graphs": scale.graphs,
        "graphs_worst": max(errors),
        "graphs_median": statistics.median(errors),
        "graphs_within": sum(error < 1e-10 for error in errors),
        "differences": [[h, statistics.median(worst[h])] for h in steps],
        "differences_best_step": min(steps, key=lambda h: statistics.median(worst[h])),
        "differences_best_error": min(statistics.median(worst[h]) for h in steps),
    }


def compare_three_networks(scale: FoundationScale) -> dict[str, Any]:
    """Train one network three ways on the same batches: do the weights stay the same?"""
    config = MLPConfig(sizes=(64, 128, 10))
    digits = load_digit_images(seed=0)
    networks = {
        "by hand": HandMLP(config, seed=0),
        "our engine": EngineMLP(config, seed=0),
        "PyTorch": TorchNetwork(config, seed=0),
    }
    for network in networks.values():
        step = gradient_step(network, Adam(network.parameters, lr=2e-3))
        batches = minibatches(digits.train_x, digits.train_y, batch_size=64, seed=0)
        fit(step, batches, max_steps=scale.twin_steps)
    hand = networks["by hand"].parameters
    x, y = digits.train_x[:64], digits.train_y[:64]
    times = time_side_by_side(
        {
            name: (lambda net=network: [net.loss_and_gradients(x, y) for _ in range(50)])
            for name, network in networks.items()
        },
        rounds=scale.rounds,
    )
    rows = []
    for name, network in networks.items():
        pairs = zip(network.parameters, hand, strict=True)
        apart = max(float(np.abs(a - b).max()) for a, b in pairs)
        rows.append([name, apart, 1e6 * times[name].median / 50])
    columns = ["gradients", "largest difference of a weight", "µs a gradient"]
    return {
        "twins": {"columns": columns, "rows": rows, "formats": ["", ".1e", ".0f"]},
        "twins_steps": scale.twin_steps,
        "twins_parameters": config.num_parameters,
        "twins_hand_us": rows[0][2],
        # Forward, the weights' gradients, and the hidden layer's; nobody asks for the input's.
        "twins_hand_gflops": 2 * 64 * (2 * 64 * 128 + 3 * 128 * 10) / rows[0][2] / 1e3,
    }


def count_xor_solved(scale: FoundationScale) -> dict[str, Any]:
    """Of many seeds, how many learn XOR, by the number of hidden units?"""
    x, y = xor_examples()
    rows = []
    for width in progress((0, 2, 3, 4, 8), desc="xor", unit="width"):
        row: list[Any] = [width if width else "none (linear)"]
        pairs: tuple[tuple[Any, Any], ...] = (("tanh", "xavier"), ("relu", "he"))
        for nonlinearity, start in pairs:
            solved = 0
            for seed in range(scale.xor_seeds):
                sizes = (2, width, 2) if width else (2, 2)
                config = MLPConfig(sizes=sizes, nonlinearity=nonlinearity, initialisation=start)
                network = HandMLP(config, seed=seed)
                step = gradient_step(network, Adam(network.parameters, lr=0.05))
                for _ in range(scale.xor_steps):
                    step((x, y))
                solved += accuracy(network, x, y) == 1.0
            row.append(solved)
        rows.append(row)
    columns = ["hidden units", "solved with tanh", "solved with ReLU"]
    return {
        "xor": {"columns": columns, "rows": rows, "formats": ["", "d", "d"]},
        "xor_seeds": scale.xor_seeds,
        "xor_solved": rows[-1][1],
    }


def train_digits(scale: FoundationScale) -> tuple[dict[str, Any], HandMLP]:
    """The MLP with hand-derived gradients on handwritten digits, and a linear model beside it."""
    rows, curves = [], []
    network = HandMLP(MLPConfig(sizes=(64, 128, 10)))
    for name, sizes in (("linear", (64, 10)), ("128 hidden units", (64, 128, 10))):
        scores, train_scores = [], []
        for seed in progress(range(scale.digit_seeds), desc=name, unit="seed"):
            digits = load_digit_images(seed=seed)
            network = HandMLP(MLPConfig(sizes=sizes), seed=seed)
            optimizer = Adam(network.parameters, lr=2e-3)
            step = gradient_step(network, optimizer)
            batches = minibatches(digits.train_x, digits.train_y, batch_size=64, seed=seed)
            curve = []
            for number, batch in zip(range(scale.digit_steps), batches, strict=False):
                optimizer.lr = 2e-3 * (1 - number / scale.digit_steps)  # down to 0 in a line
                curve.append(step(batch)["loss"])
            scores.append(100 * accuracy(network, digits.test_x, digits.test_y))
            train_scores.append(100 * accuracy(network, digits.train_x, digits.train_y))
            if len(sizes) == 3:
                curves.append(curve[:: max(1, scale.digit_steps // 100)])
        mean, half = interval(scores)
        train = statistics.fmean(train_scores)
        rows.append([name, network.config.num_parameters, train, mean, half, min(scores)])
    columns = ["network", "parameters", "training %", "test %", "± 95 %", "worst seed"]
    results = {
        "digits": {
            "columns": columns,
            "rows": rows,
            "formats": ["", ",d", ".1f", ".2f", ".2f", ".2f"],
        },
        "digits_accuracy": rows[-1][3],
        "digits_half_width": rows[-1][4],
        "digits_worst": rows[-1][5],
        "digits_linear": rows[0][3],
        "digits_seeds": scale.digit_seeds,
        "digits_test_images": len(load_digit_images(seed=0).test_y),
        "digits_curves": curves,
    }
    return results, network


def compare_initialisations(scale: FoundationScale) -> dict[str, Any]:
    """Signal and gradient through ten fresh layers, and what training makes of each start."""
    digits = load_digit_images(seed=0)
    sizes = (64, *(128,) * 9, 10)
    rows, signals = [], {}
    for start in ("he", "xavier", "tiny", "huge", "zeros"):
        config = MLPConfig(sizes=sizes, initialisation=start)
        outputs, gradients = signal_by_depth(config, digits.train_x)
        signals[start] = outputs
        scores = []
        for seed in range(scale.comparison_seeds):
            network = HandMLP(config, seed=seed)
            step = gradient_step(network, Adam(network.parameters, lr=1e-3))
            batches = minibatches(digits.train_x, digits.train_y, batch_size=64, seed=seed)
            fit(step, batches, max_steps=scale.comparison_steps)
            scores.append(100 * accuracy(network, digits.test_x, digits.test_y))
        rows.append([start, outputs[0], outputs[-2], gradients[0], *interval(scores)])
    columns = ["start", "layer 1", "layer 9", "gradient of layer 1", "test %", "± 95 %"]
    formats = ["", ".2g", ".2g", ".1e", ".1f", ".1f"]
    return {
        "starts": {"columns": columns, "rows": rows, "formats": formats},
        "starts_signals": signals,
        "starts_steps": scale.comparison_steps,
    }


def compare_optimizers(scale: FoundationScale) -> dict[str, Any]:
    """Steps to the minimum on three surfaces, and loss on the digits, each at its best lr of a
    grid.
    """
    grid = [10.0 ** (k / 4) for k in range(-16, 5)]
    surfaces = {"ravine": quadratic_bowl(100.0), "rosenbrock": rosenbrock(), "saddle": saddle()}
    digits = load_digit_images(seed=0)
    config = MLPConfig(sizes=(64, 128, 10))
    rows, paths = [], {name: {} for name in surfaces}
    for name, kind in progress(OPTIMIZERS.items(), desc="optimisers", unit="optimiser"):
        row: list[Any] = [name]
        for which, surface in surfaces.items():
            best: tuple[float, float] = (float("inf"), grid[0])
            for lr in grid:
                path = descend(
                    lambda p, lr=lr, kind=kind: kind(p, lr=lr), surface, steps=scale.walk_steps
                )
                reached = steps_to_reach(path, surface)
                best = min(best, (float("inf") if reached is None else reached, lr))
            path = descend(
                lambda p, lr=best[1], kind=kind: kind(p, lr=lr), surface, steps=scale.walk_steps
            )
            shown = int(min(best[0], scale.walk_steps))
            paths[which][name] = path[: shown + 1][:: max(1, shown // 300)].tolist()
            row.append(f"{best[0]:,.0f}" if np.isfinite(best[0]) else "not reached")

        def final_loss(lr: float, seed: int, kind=kind) -> float:
            network = HandMLP(config, seed=seed)
            step = gradient_step(network, kind(network.parameters, lr=lr))
            batches = minibatches(digits.train_x, digits.train_y, batch_size=64, seed=seed)
            with np.errstate(all="ignore"):
                fit(step, batches, max_steps=scale.comparison_steps)
                loss, _ = network.loss_and_gradients(digits.test_x, digits.test_y)
            return loss if np.isfinite(loss) else float("inf")

        chosen = min(grid[4:], key=lambda lr: final_loss(lr, 99))
        losses = [final_loss(chosen, seed) for seed in range(scale.comparison_seeds)]
        rows.append([*row, f"{chosen:.2g}", *interval(losses)])
    columns = ["optimiser", "ravine", "Rosenbrock", "saddle", "digits: lr", "test loss", "± 95 %"]
    return {
        "optimizers": {"columns": columns, "rows": rows, "formats": [*[""] * 5, ".3f", ".3f"]},
        "optimizers_paths": paths,
    }


def time_products(scale: FoundationScale) -> dict[str, Any]:
    """One matrix product by loops, in NumPy and in PyTorch, in fp32; and an addition beside it."""
    rng = np.random.default_rng(0)
    rows, best = [], 0.0
    for size in progress(scale.matmul_sizes, desc="products", unit="size"):
        a, b = rng.normal(size=(2, size, size)).astype(np.float32)
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        repeats = max(3, 2**26 // size**3)
        contestants = {
            "numpy": lambda a=a, b=b, n=repeats: [a @ b for _ in range(n)],
            "torch": lambda a=ta, b=tb, n=repeats: [a @ b for _ in range(n)],
        }
        times = time_side_by_side(contestants, rounds=scale.rounds)
        flops = 2 * size**3
        rates = {name: flops * repeats / time.median / 1e9 for name, time in times.items()}
        best = max(best, *rates.values())
        slow: list[Any] = ["–", "–"]
        if size <= scale.loop_limit:
            la, lb = a.tolist(), b.tolist()
            began = time.perf_counter()
            matmul_by_loops(la, lb)
            seconds = time.perf_counter() - began
            slow = [
                f"{flops / seconds / 1e9:.3f}",
                f"{rates['numpy'] * 1e9 * seconds / flops:,.0f}",
            ]
        rows.append([size, slow[0], rates["numpy"], rates["torch"], slow[1]])
    length = 2**24 if scale.rounds > 2 else 2**16
    x, out = torch.ones(length), torch.empty(length)
    taken = time_side_by_side({"add": lambda: torch.add(x, 1.0, out=out)}, rounds=scale.rounds)
    rate = length / taken["add"].median / 1e9
    columns = ["n", "loops, GFLOP/s", "NumPy", "PyTorch", "NumPy over loops"]
    return {
        "products": {"columns": columns, "rows": rows, "formats": [",d", "", ".1f", ".1f", ""]},
        "products_best": best,
        "products_loop_ratio": next(r[4] for r in reversed(rows) if r[4] != "–"),
        "addition_gflops": rate,
        "addition_gbytes": 8 * rate,
        "addition_ratio": best / rate,
    }


def measure_rounding(scale: FoundationScale) -> dict[str, Any]:
    """What five formats hold, what their sums lose, and what cancellation destroys."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=100_000)
    rows = []
    for fmt in FORMATS:
        rounded = round_to_format(numbers, fmt)
        relative = np.abs(rounded - numbers) / np.abs(numbers)
        rows.append(
            [
                f"{fmt.name}: 1 + {fmt.exponent_bits} + {fmt.mantissa_bits}",
                f"{fmt.largest:.4g}",
                f"{fmt.smallest_normal:.2g}",
                f"{fmt.epsilon:.2g}",
                fmt.decimal_digits,
                f"{np.median(relative):.1e}",
                f"{float(round_to_format(0.1, fmt)):.10g}",
            ]
        )
    columns = ["format", "largest", "smallest normal", "ε", "digits", "median error", "0.1 is"]
    steps = np.array([1.0, *[1e-3] * (1000 if scale.rounds > 2 else 100)])
    sums = [
        [fmt.name, running_sum(steps, fmt), compensated_sum(steps, fmt)]
        for fmt in (FP32, FP16, BF16)
    ]
    variances = []
    for mean in (0.0, 10.0, 100.0, 1000.0, 10_000.0):
        x = (mean + rng.normal(size=100_000)).astype(np.float32)
        exact = float(x.astype(np.float64).var())
        variances.append([mean, textbook_variance(x), two_pass_variance(x), exact])
    naive, stable = textbook_roots(1.0, 200.0, 0.015), stable_roots(1.0, 200.0, 0.015)
    exact_root = stable_roots(1.0, 200.0, 0.015, np.float64)[0]
    return {
        "formats": {"columns": columns, "rows": rows, "formats": ["", "", "", "", ".1f", "", ""]},
        "sums": {
            "columns": ["total kept in", "rounded after each", "with compensation"],
            "rows": sums,
            "formats": ["", ".4f", ".4f"],
        },
        "sums_terms": len(steps) - 1,
        "variances": {
            "columns": ["mean", "E[x²] − E[x]²", "two passes", "in fp64"],
            "rows": variances,
            "formats": [",.0f", ".4f", ".4f", ".4f"],
        },
        "variances_count": 100_000,
        "root_textbook": naive[0],
        "root_stable": stable[0],
        "root_exact": exact_root,
        "root_error_percent": 100 * abs(naive[0] / exact_root - 1),
    }


def compress_digits(scale: FoundationScale) -> dict[str, Any]:
    """How few directions hold the digits: the singular values of the centred images."""
    x = load_digit_images(seed=0).train_x  # (N, 64)
    s = np.linalg.svd(x, compute_uv=False)
    share = np.cumsum(s**2) / (s**2).sum()
    rows = []
    for rank in (1, 2, 5, 10, 20, 40, 64):
        left = 1 - ((x - low_rank(x, rank)) ** 2).sum() / (x**2).sum()
        rows.append([rank, 100 * float(left), 100 * float(share[rank - 1])])
    columns = ["directions kept", "variance kept, %", "by the singular values, %"]
    return {
        "spectrum": {"columns": columns, "rows": rows, "formats": ["d", ".1f", ".1f"]},
        "singular_values": s.tolist(),
        "directions_for_90": int(np.searchsorted(share, 0.9)) + 1,
    }
