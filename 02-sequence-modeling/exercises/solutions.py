"""Solutions of topic 02's exercises, and why they are what they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recurrent import RecurrentLayer


def bits_of(probabilities: Sequence[float]) -> float:
    """Costs add because probabilities multiply; log2 is what makes one of the other."""
    return -math.fsum(math.log2(p) for p in probabilities)


def continuation_counts(ids: Sequence[int]) -> dict[int, int]:
    """A pair counts once: that is the whole difference to a unigram count.

    The beginning is written as None, which equals no id.
    """
    pairs = set(zip([None, *ids[:-1]], ids, strict=True)) if ids else set()
    return dict(Counter(symbol for _, symbol in pairs))


def elman_forward(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor) -> Tensor:
    """The input's share has no recurrence and is one product; only the rest must wait."""
    a = x @ w_x.T + b  # (B, T, H)
    h, states = torch.zeros_like(a[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.tanh(a[:, t] + h @ w_h.T)  # (B, H)
        states.append(h)
    return torch.stack(states, dim=1)  # (B, T, H)


def elman_backward(
    x: Tensor, states: Tensor, w_h: Tensor, grad_states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One delta is carried back: what the loss here says, plus what the future says through w_h.

    The weights are shared by all steps, so their gradient is the sum over steps. The step that
    adds `grad_states[:, t]` is the one most often forgotten when every position has a loss.
    """
    delta = torch.zeros_like(states[:, 0])  # (B, H)
    g_x = torch.zeros(states.shape[2], x.shape[2], dtype=x.dtype)
    g_h, g_b = torch.zeros_like(w_h), torch.zeros_like(states[0, 0])
    for t in range(x.shape[1] - 1, -1, -1):
        delta = (grad_states[:, t] + delta @ w_h) * (1 - states[:, t] ** 2)  # (B, H)
        g_x += delta.T @ x[:, t]
        g_b += delta.sum(0)
        if t > 0:  # h_0 is zero and adds nothing
            g_h += delta.T @ states[:, t - 1]
    return g_x, g_h, g_b


# 0.9**43 = 0.0108 is above 0.01, 0.9**44 = 0.0097 is not.
STEPS_TO_FORGET = math.ceil(math.log(0.01) / math.log(0.9))
# Three gates, each with a row for the inputs, one for the state and two biases.
GRU_PARAMETERS = 3 * 200 * (100 + 200 + 2)


def clip_by_norm(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """One factor for all tensors keeps the direction; `min` leaves small gradients alone.

    The planted version changes how the layers' steps compare, so it trains another model.
    """
    if not gradients:
        return []
    norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
    factor = min(1.0, max_norm / (float(norm) + 1e-12))
    return [g * factor for g in gradients]


# tanh'(0) = 1, so each step multiplies by W, and every singular value of W**10 is 0.5**10.
JACOBIAN_AFTER_TEN = 0.5**10
# Two bits of eight.
COMPRESSED_BYTES = 250_000


class _Recaller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.layer = RecurrentLayer("lstm", 16, 32, fused=True, forget_bias=4.0)
        self.output = nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.layer(self.embedding(ids))  # (B, T, H)
        return self.output(states[:, -1])  # (B, V)


def train_to_recall(steps: int) -> nn.Module:
    """With a forget bias of 4 the gate starts at 0.98: 0.98**25 = 0.6 of the gradient arrives.

    With bias 0 it would be 0.5**25, three hundred-millionths, and nothing would be learned.
    """
    torch.manual_seed(0)
    model = _Recaller()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        ids = torch.randint(8, (64, 25))
        loss = nn.functional.cross_entropy(model(ids), ids[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
