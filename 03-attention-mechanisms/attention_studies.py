"""Small studies of what attention does: saturation, heads, masks, and maps that do not explain.

Each returns plain numbers for results.json; `attention_mechanisms.py` runs them. README, "Why
divide by √K", "Several heads", "Masks", "What a map does not explain".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn

from additive_attention import weights_entropy
from attention import AttentionFn, MultiHeadAttention, attention_weights, sdpa_attention
from lab import count_parameters, interval, progress
from masks import (
    allowed_pairs,
    bigbird_mask,
    block_sparse_mask,
    causal_mask,
    dilated_mask,
    document_mask,
    padding_mask,
    prefix_mask,
    sliding_window_mask,
    strided_mask,
)
from numerics import cross_entropy, softmax
from train_loop import Callback, LoopState, fit

# --- saturation -------------------------------------------------------------------------------


def saturation(
    head_width: int, *, num_keys: int, scale: float, rows: int, seed: int
) -> dict[str, float]:
    """What the softmax makes of random queries and keys with entries of mean 0 and variance 1.

    Returns `variance` of the dot products before scaling (K in theory), `places` = exp of the
    mean entropy (how many keys a query effectively reads), `largest` = the mean largest weight,
    and `gradient` = the median over rows of ‖diag(a) - a aᵀ‖, the size of what comes back through
    the softmax for a gradient of independent entries of variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, rows, 1, head_width, generator=generator, dtype=torch.float64)
    k = torch.randn(1, rows, num_keys, head_width, generator=generator, dtype=torch.float64)
    weights = attention_weights(q, k, scale=scale)[0, :, 0]  # (N, S)
    dots = (q @ k.mT).flatten()
    return {
        "variance": float(dots.var()),
        "places": math.exp(float(weights_entropy(weights).mean())),
        "largest": float(weights.amax(dim=-1).mean()),
        "gradient": float(softmax_jacobian_norm(weights).median()),
    }


def softmax_jacobian_norm(weights: Tensor) -> Tensor:
    """Frobenius norm of diag(a) - a aᵀ for each row a of weights (..., S) -> (...).

    Multiplied out, its square is Σ a² - 2 Σ a³ + (Σ a²)². Uniform weights give √((1 - 1/S)/S),
    one sure place 0. Example: [0.5, 0.5] gives 0.5.
    """
    squares = (weights**2).sum(dim=-1)
    return (squares - 2 * (weights**3).sum(dim=-1) + squares**2).clamp(min=0).sqrt()


def expected_places(variance: float, num_keys: int) -> float:
    """exp of the entropy of a softmax over many normal scores: S e^(-σ²/2), down to 1.

    Below σ² = 2 ln S the sum of exponentials is its mean, and the entropy ln S - σ²/2. Above, the
    largest term is the sum (the freezing of Derrida's random energy model, 1981). An asymptote:
    for a hundred keys the edge is a bend. README, "Why divide by √K".
    """
    return max(1.0, num_keys * math.exp(-variance / 2))


def study_scale(widths: Sequence[int], *, num_keys: int, rows: int, seed: int) -> dict[str, Any]:
    """The table and the curves of the √K study."""
    table, plain, scaled = [], [], []
    for K in widths:
        options = {"num_keys": num_keys, "rows": rows, "seed": seed}
        without = saturation(K, scale=1.0, **options)
        with_scale = saturation(K, scale=1 / math.sqrt(K), **options)
        plain.append(without)
        scaled.append(with_scale)
        table.append(
            [
                K,
                without["variance"],
                without["places"],
                without["largest"],
                without["gradient"],
                with_scale["places"],
                with_scale["largest"],
                with_scale["gradient"],
            ]
        )
    columns = [
        "K",
        "variance of q·k",
        "places read, unscaled",
        "largest weight",
        "gradient",
        "places read, scaled",
        "largest weight ",
        "gradient ",
    ]
    formats = ["d", ".1f", ".2f", ".3f", ".1e", ".1f", ".3f", ".1e"]
    return {
        "scale_study": {"columns": columns, "rows": table, "formats": formats},
        "scale_detail": {
            "widths": list(widths),
            "num_keys": num_keys,
            "unscaled": plain,
            "scaled": scaled,
            "scaled_places_by_theory": expected_places(1.0, num_keys),
            "gradient_ratio_at_widest": scaled[-1]["gradient"] / max(plain[-1]["gradient"], 1e-300),
        },
    }


# --- heads ------------------------------------------------------------------------------------


class LookBackModel(nn.Module):
    """One attention layer and nothing else, asked for several earlier tokens at once.

    At each position it must name the tokens that stand `offsets` places before. A head gives one
    weighted mean of values, so one head can bring one token in readable form; the width of all
    heads together is the same whatever their number.

    Args:
        vocab_size: V. length: T. d_model: D. num_heads: H. offsets: how far back, each ≥ 1.
        attend: the `AttentionFn`.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        d_model: int,
        num_heads: int,
        offsets: Sequence[int],
        *,
        attend: AttentionFn = sdpa_attention,
    ) -> None:
        super().__init__()
        self.vocab_size, self.offsets = vocab_size, tuple(offsets)
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(length, d_model)
        self.attention = MultiHeadAttention(d_model, num_heads, attend=attend)
        self.readout = nn.Linear(d_model, len(self.offsets) * vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits (B, T, offsets, V)."""
        B, T = ids.shape
        x = self.tokens(ids) + self.positions.weight[:T]  # (B, T, D)
        found = self.attention(x, causal=True)  # (B, T, D)
        return self.readout(found).view(B, T, len(self.offsets), self.vocab_size)

    def targets(self, ids: Tensor) -> Tensor:
        """The tokens asked for (B, T, offsets); -100 where there is none so far back."""
        asked = torch.full((*ids.shape, len(self.offsets)), -100)  # (B, T, offsets)
        for i, offset in enumerate(self.offsets):
            asked[:, offset:, i] = ids[:, :-offset]
        return asked


def train_look_back(
    num_heads: int,
    *,
    d_model: int,
    length: int,
    offsets: Sequence[int],
    steps: int,
    seed: int,
    vocab_size: int = 16,
    batch_size: int = 32,
    lr: float = 3e-3,
) -> tuple[LookBackModel, float]:
    """Train on random tokens; return the model and the share of tokens it names rightly on new
    ones.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LookBackModel(vocab_size, length, d_model, num_heads, offsets)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    class Decay(Callback):
        """The learning rate falls linearly to 0: half-learned lookups settle."""

        def on_step(self, state: LoopState) -> None:
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - state.step / state.max_steps)

    def step(ids: Tensor) -> dict[str, Tensor]:
        loss = cross_entropy(model(ids), model.targets(ids))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    def batches():
        while True:
            yield torch.randint(vocab_size, (batch_size, length), generator=generator)

    fit(step, batches(), [Decay()], max_steps=steps)
    ids = torch.randint(vocab_size, (512, length), generator=generator)
    with torch.no_grad():
        targets = model.targets(ids)
        right = (model(ids).argmax(dim=-1) == targets)[targets >= 0]
    return model, float(right.float().mean())


def study_heads(
    head_counts: Sequence[int],
    *,
    d_model: int,
    length: int,
    offsets: Sequence[int],
    steps: int,
    seeds: int,
) -> dict[str, Any]:
    """Accuracy of the look-back task over the number of heads, at one width."""
    rows, detail = [], {}
    for H in progress(head_counts, desc="heads", unit="count"):
        accuracies, parameters = [], 0
        for seed in range(seeds):
            model, accuracy = train_look_back(
                H, d_model=d_model, length=length, offsets=offsets, steps=steps, seed=seed
            )
            accuracies.append(100 * accuracy)
            parameters = count_parameters(model.attention)
        mean, half_width = interval(accuracies)
        rows.append([H, d_model // H, parameters, mean, half_width])
        detail[str(H)] = {"accuracy": mean, "half_width": half_width, "all": accuracies}
    columns = ["heads H", "head width K", "parameters of the layer", "tokens right, %", "± 95 %"]
    return {
        "heads": {"columns": columns, "rows": rows, "formats": ["d", "d", ",d", ".1f", ".1f"]},
        "heads_detail": detail,
        "heads_offsets": len(offsets),
        "heads_chance": 100 / 16,
    }


# --- masks ------------------------------------------------------------------------------------


def mask_gallery(T: int) -> dict[str, Tensor]:
    """The patterns of `masks` at one length, each (T, T) bool, by name. T: a multiple of 16."""
    quarter = T // 4
    documents = torch.repeat_interleave(
        torch.arange(3), torch.tensor([quarter, quarter, T - 2 * quarter])
    )
    layout = torch.eye(T // 8, dtype=torch.bool)
    layout[:, 0] = True
    return {
        "full": torch.ones(T, T, dtype=torch.bool),
        "causal": causal_mask(T),
        "padding": padding_mask(torch.tensor([3 * quarter]), T)[0, 0].expand(T, T),
        "sliding window": sliding_window_mask(T, T // 8),
        "dilated": dilated_mask(T, T // 8, 3),
        "strided": strided_mask(T, math.isqrt(T)),
        "block-sparse": block_sparse_mask(layout, 8),
        "BigBird": bigbird_mask(T, block_size=T // 16, generator=torch.Generator().manual_seed(0)),
        "prefix": prefix_mask(quarter, T),
        "documents, causal": document_mask(documents[None])[0, 0] & causal_mask(T),
    }


def count_masks(T: int, *, block_size: int) -> dict[str, Any]:
    """How many pairs each pattern keeps, and how many whole blocks a kernel could skip."""
    rows = []
    for name, mask in mask_gallery(T).items():
        blocks = mask.view(T // block_size, block_size, T // block_size, block_size)
        needed = blocks.any(dim=3).any(dim=1)
        pairs = allowed_pairs(mask)
        rows.append([name, pairs, 100 * pairs / T**2, 100 * (1 - float(needed.float().mean()))])
    columns = ["mask", "allowed pairs", "of T², %", "blocks that can be skipped, %"]
    return {
        "masks": {"columns": columns, "rows": rows, "formats": ["", ",d", ".1f", ".1f"]},
        "masks_length": T,
        "masks_block": block_size,
    }


# --- maps that do not explain -----------------------------------------------------------------


def other_weights(
    weights: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Other weights with the very same output that look as little as possible at the favourite.

    Weights (S,) over values (S, V) are a distribution a' with a'ᵀ v = aᵀ v: V + 1 linear equations
    in S unknowns, so with S > V + 1 there is room, unless it is at the edge of the simplex. Found
    by linear programming: minimise a' at the argmax of a. None where the solver fails.

    README, "What a map does not explain"; Brunner et al. 2020 call it identifiability.
    """
    S = len(weights)
    objective = np.zeros(S)
    objective[weights.argmax()] = 1.0
    equations = np.vstack([values.T, np.ones(S)])  # (V+1, S)
    answer = linprog(
        objective,
        A_eq=equations,
        b_eq=equations @ weights,
        bounds=(0, 1),
        method="highs",
        options={
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    return answer.x if answer.success else None


def study_maps(*, num_keys: Sequence[int], width: int, rows: int, seed: int) -> dict[str, Any]:
    """How far weights can be moved off their favourite without changing the output at all."""
    generator = np.random.default_rng(seed)
    table = []
    for S in num_keys:
        before, after, distance, change = [], [], [], []
        for _ in range(rows):
            weights = softmax(2.0 * generator.standard_normal(S))
            values = generator.standard_normal((S, width))
            other = other_weights(weights, values)
            if other is None:
                continue
            favourite = weights.argmax()
            before.append(weights[favourite])
            after.append(other[favourite])
            distance.append(0.5 * np.abs(weights - other).sum())
            change.append(np.abs(weights @ values - other @ values).max())
        table.append(
            [S, width, *(float(np.mean(x)) for x in (before, after, distance)), max(change)]
        )
    columns = [
        "keys S",
        "value width",
        "largest weight",
        "the same place in the other map",
        "distance of the maps",
        "largest change of the output",
    ]
    formats = ["d", "d", ".3f", ".3f", ".2f", ".0e"]
    return {"maps": {"columns": columns, "rows": table, "formats": formats}}
