"""Exercises of topic 02, in order of difficulty. Grade yourself:

    pytest 02-sequence-modeling/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first.
`solutions.py` explains why, not only what.

Letters: B batch, T positions, H width of the state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# 1 · implement ------------------------------------------------------------------------------------


def bits_of(probabilities: Sequence[float]) -> float:
    """What an ideal code spends on a message whose symbols had these probabilities, in bits.

    Hints: (a) A symbol of probability 1/2 costs one bit. (b) Costs add up where probabilities
    multiply.
    """
    raise NotImplementedError


# 2 · implement ------------------------------------------------------------------------------------


def continuation_counts(ids: Sequence[int]) -> dict[int, int]:
    """After how many different symbols each symbol occurs: Kneser and Ney's lowest order.

    The first symbol of the text follows its beginning, which counts as one more symbol. Symbols
    that do not occur are not listed. Example: [0, 1, 0, 1] -> {0: 2, 1: 1}.

    Hints: (a) Count pairs once, however often they occur. (b) A set of (previous, symbol).
    """
    raise NotImplementedError


# 3 · implement ------------------------------------------------------------------------------------


def elman_forward(x: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor) -> Tensor:
    """All states of h_t = tanh(w_x x_t + w_h h_{t-1} + b) from h_0 = 0.

    Args: x (B, T, I), w_x (H, I), w_h (H, H), b (H,). Returns: (B, T, H).

    Hints: (a) x @ w_x.T needs no loop. (b) Collect the states in a list, then `torch.stack`.
    """
    raise NotImplementedError


# 4 · derive ---------------------------------------------------------------------------------------


def elman_backward(
    x: Tensor, states: Tensor, w_h: Tensor, grad_states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Backpropagation through time, written out: no autograd.

    Args: x (B, T, I); states (B, T, H), what `elman_forward` returned; grad_states (B, T, H), the
    derivative of the loss by each state directly. Returns the loss's derivatives by w_x (H, I),
    w_h (H, H) and b (H,).

    Hints: (a) Go from T to 1 and carry the gradient that arrives from the future. (b) delta_t =
    (grad_states_t + w_h^T delta_{t+1}) * (1 - h_t^2). (c) w_h was used with h_{t-1}, and h_0 = 0.
    """
    raise NotImplementedError


# 5 · derive ---------------------------------------------------------------------------------------

# An LSTM's forget gate is 0.9 at every step. After how many whole steps has the cell forgotten at
# least 99 % of a value (take the cell alone: i = 0)?
STEPS_TO_FORGET: int = ...  # type: ignore[assignment]
# How many numbers does a GRU layer learn with 100 inputs and width 200 (PyTorch's two biases)?
GRU_PARAMETERS: int = ...  # type: ignore[assignment]

# 6 · debug ----------------------------------------------------------------------------------------


def clip_by_norm(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """The gradients scaled so that their common norm is at most `max_norm`.

    The version below clips each tensor by itself, which turns the direction of the whole step.
    Find and repair that, and see to it that small gradients stay as they are.

    Hints: (a) All gradients are one long vector. (b) One factor for all, never above 1.
    """
    if not gradients:
        return []
    raise NotImplementedError  # repair the next line, and put it here
    # return [g / g.norm() * max_norm for g in gradients]


# 7 · predict --------------------------------------------------------------------------------------

# W is 0.5 times an orthogonal matrix, inputs are 0, the state starts at 0. What is the norm of the
# derivative of the state by the state 10 steps before?
JACOBIAN_AFTER_TEN: float = ...  # type: ignore[assignment]
# A byte-level model needs 2 bits a byte on English. To how many bytes does it bring 1,000,000?
COMPRESSED_BYTES: int = ...  # type: ignore[assignment]

# 8 · extend ---------------------------------------------------------------------------------------


def train_to_recall(steps: int) -> torch.nn.Module:
    """A model that remembers the first symbol of a sequence to its end.

    Train any recurrent model of yours on sequences of 25 random ids in [0, 8): it is called with
    ids (B, 25) and returns logits (B, 8) for the *first* id of each row. The bar: at least 95 % on
    new sequences, after at most `steps` updates (the grader gives 400).

    Hints: (a) `RecurrentLayer("lstm", ...)` with a large `forget_bias`. (b) The last output only
    needs to be scored. (c) Adam at 0.01, batches of 64.
    """
    raise NotImplementedError
