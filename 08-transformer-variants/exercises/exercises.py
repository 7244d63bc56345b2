"""Exercises of topic 08, in order of difficulty. Grade yourself:

    pytest 08-transformer-variants/exercises

Replace each `raise NotImplementedError` by your answer, and each `...` by a number. What you leave
untouched counts as not attempted. Hints stand at the end of the docstrings, the gentlest first;
read one, try again, then read the next. `solutions.py` explains why, not only what.

Letters: B batch, T positions, D model width, K head width, V vocabulary, P side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# 1 · implement ------------------------------------------------------------------------------------


def spoil(
    ids: Tensor, chosen: Tensor, fate: Tensor, drawn: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    """BERT's 80/10/10, with the dice already thrown.

    A chosen token becomes `mask_id` where fate < 0.8, the drawn token where 0.8 <= fate < 0.9, and
    stays otherwise. What is not chosen stays and has no loss.

    Args: ids, drawn (B, T) int64; chosen (B, T) bool; fate (B, T) in [0, 1).
    Returns: (inputs, targets), each (B, T); targets are the old tokens where chosen, else -100.
    The arguments are not changed.

    Hints: (a) `torch.where` twice. (b) Does a chosen token that stays have a target?
    """
    raise NotImplementedError


# 2 · implement ------------------------------------------------------------------------------------


def put_together(inputs: Sequence[int], targets: Sequence[int], first_sentinel: int) -> list[int]:
    """Undo span corruption: ids from `first_sentinel` on are sentinels, all others are text.

    Args: inputs: kept tokens and sentinels. targets: sentinel, span, sentinel, span, …
    Returns: the text.

    Example: [5, 90, 6, 91], [90, 7, 8, 91, 9] with first_sentinel 90 -> [5, 7, 8, 6, 9].

    Hints: (a) First make a dictionary from each sentinel to its span. (b) Then walk the inputs.
    """
    raise NotImplementedError


# 3 · derive ---------------------------------------------------------------------------------------

# T5's span corruption, 15 % in spans of 3 on average, of a text of 2,000 tokens. Without the token
# that ends a text:
T5_INPUT_LENGTH: int = ...  # type: ignore[assignment]
T5_TARGET_LENGTH: int = ...  # type: ignore[assignment]
# A ViT with a class token on 384 x 384 pixels, patches of 16 x 16: how many tokens?
VIT_TOKENS: int = ...  # type: ignore[assignment]
# The matrix and bias that turn a patch of 32 x 32 pixels of three colours into 768 numbers:
PATCH_PARAMETERS: int = ...  # type: ignore[assignment]
# Mean length of a span that is geometric with p = 1/2 and cut off after four (to 1e-6):
MEAN_SPAN: float = ...  # type: ignore[assignment]


# 4 · implement ------------------------------------------------------------------------------------


def patches(images: Tensor, P: int) -> Tensor:
    """Cut images into squares, without a loop: what ViT's first matrix reads.

    Args: images (B, C, H, W); P divides H and W.
    Returns: (B, H/P · W/P, C·P·P): patches row by row from the top left; inside a patch first the
    channel, then the row, then the column, as in a convolution's weight.

    Hints: (a) `view` H as (H/P, P) and W as (W/P, P). (b) Which of the six axes belong to the
    patch's place, and which to its content? (c) `permute`, then `reshape`.
    """
    raise NotImplementedError


# 5 · implement ------------------------------------------------------------------------------------


def contrastive_loss(images: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """CLIP's loss: which caption is this picture's, and which picture is this caption's?

    Args: images, texts (B, D), the i-th of each belong together; not yet of unit length.
    Returns: the mean of the two directions' cross-entropies, a scalar.

    Hints: (a) Normalise first. (b) One (B, B) table serves both directions. (c) The right answer of
    row i is i.
    """
    raise NotImplementedError


# 6 · debug ----------------------------------------------------------------------------------------


def answer_span(start: Tensor, end: Tensor, max_length: int) -> tuple[int, int]:
    """The best answer (first, last), both inclusive, of at most `max_length` tokens.

    This runs, and on most texts it is right. On some it returns a last token before the first, or
    an answer of half the text. Mend it and remove the first line.

    Args: start, end (T,): scores. The score of an answer is the sum of its two.

    Hints: (a) What if the best start stands behind the best end? (b) All pairs are a (T, T) table.
    (c) `triu` and `tril` keep a band of it.
    """
    raise NotImplementedError  # remove this line
    return int(start.argmax()), int(end.argmax())


# 7 · debug ----------------------------------------------------------------------------------------


def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention with features elu(x) + 1, each position seeing itself and what is before.

    This runs and its loss falls. Two bugs: one lets the future in, one makes the weights of a
    position not sum to one. Mend both and remove the first line.

    Args: q, k (B, T, K); v (B, T, M). Returns: (B, T, M).

    Hints: (a) Which sums must be running sums? (b) With v all ones, what must come out? (c) Change
    the last position and look at the first.
    """
    raise NotImplementedError  # remove this line
    fq, fk = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1  # (B, T, K)
    states = torch.einsum("btk,btm->btkm", fk, v).cumsum(dim=1)  # (B, T, K, M)
    total = fk.sum(dim=1, keepdim=True)  # (B, 1, K)
    weights = (fq * total).sum(dim=2, keepdim=True)  # (B, T, 1)
    return torch.einsum("btk,btkm->btm", fq, states) / weights


# 8 · predict --------------------------------------------------------------------------------------

# Commit to these before you run anything (nats, to within 0.01). A fresh network says the same of
# everything. Its loss at the start as
MASKED_LM_LOSS: float = ...  # type: ignore[assignment]  # a masked language model, V = 30,000
NEXT_SENTENCE_LOSS: float = ...  # type: ignore[assignment]  # next-sentence prediction
SPAN_LOSS: float = ...  # type: ignore[assignment]  # finding an answer in 384 tokens (mean of start and end)
CLIP_LOSS: float = ...  # type: ignore[assignment]  # CLIP with a batch of 256
# ELECTRA's discriminator, when 15 % of the tokens are chosen, the generator is right about a third
# of them, and the discriminator has learned how common replacements are and nothing else:
DETECTION_LOSS: float = ...  # type: ignore[assignment]


# 9 · implement ------------------------------------------------------------------------------------


def positive_features(x: Tensor, omega: Tensor) -> Tensor:
    """Performer's features: their products estimate e^(q·k), and no feature is negative.

    Args: x (N, K); omega (M, K), rows drawn from N(0, I).
    Returns: (N, M), such that the mean over draws of phi(q) · phi(k) is e^(q·k).

    Hints: (a) README, "Efficient attention". (b) There are M draws and the product sums over them:
    what must each feature be divided by?
    """
    raise NotImplementedError


# 10 · extend --------------------------------------------------------------------------------------


def who_is_meant(names: Tensor, said: Tensor, labels: Tensor) -> Tensor:
    """The question of this topic's experiment, bare: who is meant, the first or the second?

    A text is (first name, second name, pronoun): names (N, 2) are ids 0 to 39, one woman's and one
    man's in each text, and said (N,) is 0 for "she" and 1 for "he". The label is 0 if the pronoun
    means the first name, 1 if the second.

    Args: labels: those of the first len(labels) texts.
    Returns: the labels of all other texts, as you predict them, (N - len(labels),) int64.

    Train whatever you like. The bar: 95 % right from 400 labels, in under ten seconds.

    Hints: (a) Why can no linear model of counts do it? (b) The label is a parity of two things.
    (c) One number a name is enough: the logit is a difference of two, times the pronoun's sign.
    """
    raise NotImplementedError
