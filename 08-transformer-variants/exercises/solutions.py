"""Solutions of topic 08's exercises, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# 1 ------------------------------------------------------------------------------------------------


def spoil(
    ids: Tensor, chosen: Tensor, fate: Tensor, drawn: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Targets depend on `chosen` alone: a token that stays is asked for like the others.

    That is the point of the 10 % that stay. Without a loss there, the network could tell from the
    data that a visible token is never asked for.
    """
    inputs = torch.where(chosen & (fate < 0.8), torch.full_like(ids, mask_id), ids)
    inputs = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), drawn, inputs)
    return inputs, torch.where(chosen, ids, torch.full_like(ids, -100))


# 2 ------------------------------------------------------------------------------------------------


def put_together(inputs: Sequence[int], targets: Sequence[int], first_sentinel: int) -> list[int]:
    """Nothing is lost and nothing stands twice: that is what makes 15 % the true rate."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in targets:
        if token >= first_sentinel:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    text: list[int] = []
    for token in inputs:
        text += spans[token] if token >= first_sentinel else [token]
    return text


# 3 ------------------------------------------------------------------------------------------------

# 300 tokens go, in 100 spans: 1,700 stay beside 100 sentinels; 300 come out behind 100.
T5_INPUT_LENGTH = 2000 - 300 + 100
T5_TARGET_LENGTH = 300 + 100
VIT_TOKENS = (384 // 16) ** 2 + 1
PATCH_PARAMETERS = 32 * 32 * 3 * 768 + 768
# 1/p - n qⁿ / (1 - qⁿ) with p = q = 1/2, n = 4.
MEAN_SPAN = 2 - 4 * (1 / 16) / (15 / 16)


# 4 ------------------------------------------------------------------------------------------------


def patches(images: Tensor, P: int) -> Tensor:
    """Two of the six axes say which patch, four what is in it... and B comes first.

    A matrix applied to this is a convolution of kernel and stride P with the weight
    (D, C, P, P) flattened in the same order, which is how ViT's checkpoints store it.
    """
    B, C, H, W = images.shape
    cut = images.view(B, C, H // P, P, W // P, P)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // P) * (W // P), C * P * P)


# 5 ------------------------------------------------------------------------------------------------


def contrastive_loss(images: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """Rows ask for the caption, columns for the picture: one table, read in both directions."""
    table = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / temperature  # (B, B)
    right = torch.arange(len(table), device=table.device)
    return (F.cross_entropy(table, right) + F.cross_entropy(table.T, right)) / 2


# 6 ------------------------------------------------------------------------------------------------


def answer_span(start: Tensor, end: Tensor, max_length: int) -> tuple[int, int]:
    """Two best places are not the best pair: the constraint joins them.

    T² sums cost nothing beside the network that made the scores.
    """
    T = len(start)
    band = torch.ones(T, T, dtype=torch.bool).triu().tril(max_length - 1)
    scores = (start[:, None] + end[None, :]).masked_fill(~band, -torch.inf)
    place = int(scores.argmax())
    return place // T, place % T


# 7 ------------------------------------------------------------------------------------------------


def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The normaliser must run along with the states: both sum over what has been seen.

    One line was two bugs. A total over all positions holds the future's keys, and it is not the sum
    of the weights that this position gave.
    """
    fq, fk = F.elu(q) + 1, F.elu(k) + 1  # (B, T, K)
    states = torch.einsum("btk,btm->btkm", fk, v).cumsum(dim=1)  # (B, T, K, M)
    total = fk.cumsum(dim=1)  # (B, T, K)
    weights = (fq * total).sum(dim=2, keepdim=True)  # (B, T, 1)
    return torch.einsum("btk,btkm->btm", fq, states) / weights


# 8 ------------------------------------------------------------------------------------------------

MASKED_LM_LOSS = math.log(30_000)
NEXT_SENTENCE_LOSS = math.log(2)
SPAN_LOSS = math.log(384)  # the mean of two equal terms
CLIP_LOSS = math.log(256)
# A right guess is no replacement: a tenth of all tokens are replaced, and knowing just that costs
# the entropy of (0.1, 0.9).
DETECTION_LOSS = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)


# 9 ------------------------------------------------------------------------------------------------


def positive_features(x: Tensor, omega: Tensor) -> Tensor:
    """e^(ω·x - |x|²/2)/√M: the product of two such sums is a mean over M draws.

    Each draw's product is e^(ω·(q+k) - |q|²/2 - |k|²/2), whose mean is e^(q·k) by the Gaussian's
    moment generating function.
    """
    return torch.exp(x @ omega.T - x.square().sum(dim=1, keepdim=True) / 2) / len(omega) ** 0.5


# 10 -----------------------------------------------------------------------------------------------


def who_is_meant(names: Tensor, said: Tensor, labels: Tensor) -> Tensor:
    """A parity is a product: give each name one number and multiply by the pronoun's sign.

    A linear model of counts sees which two names and which pronoun stand there, not in which order,
    and the label changes when the names change places. Even with the order, it adds what it should
    multiply. Pre-training does the same job in the experiment: it has learned the names' numbers
    from the pronouns around them, and the labels only have to teach the product.
    """
    sign = 2.0 * said - 1.0  # (N,)
    scores = nn.Embedding(40, 1)
    nn.init.zeros_(scores.weight)
    optimizer = torch.optim.Adam(scores.parameters(), lr=0.1)

    def logits(rows: slice) -> Tensor:
        each = scores(names[rows]).squeeze(-1)  # (n, 2)
        return (each[:, 0] - each[:, 1]) * sign[rows]

    for _ in range(200):
        optimizer.zero_grad()
        known = slice(len(labels))
        F.binary_cross_entropy_with_logits(logits(known), labels.float()).backward()
        optimizer.step()
    with torch.no_grad():
        return (logits(slice(len(labels), None)) > 0).long()
