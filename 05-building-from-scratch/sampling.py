"""Choosing the next token from a model's logits: one sampler for the whole course.

README, "Sampling". Letters: B rows, S tokens so far, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to choose the next token. The rules apply in the order of the fields below.

    Args:
        repetition_penalty: a token that is already in the text has a positive logit divided and a
            negative one multiplied by this (Keskar et al. 2019); 1 = off.
        temperature: divides the logits. Below 1 the likely become likelier; 0 always takes the
            likeliest (greedy), and the rules below then do not matter.
        top_k: keep the k likeliest tokens (Fan et al. 2018); None = all.
        top_p: keep the fewest tokens that together reach probability p (nucleus sampling,
            Holtzman et al. 2020); None = all.
        min_p: keep the tokens at least min_p times as likely as the likeliest (Nguyen et al.
            2024); None = all.

    Raises:
        ValueError: a number outside its range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be positive"
            )
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1], or None")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be in [0, 1], or None")


GREEDY = SamplingConfig(temperature=0.0)


def warp_logits(
    logits: Tensor, config: SamplingConfig, *, previous: Tensor | None = None
) -> Tensor:
    """Apply the config's rules to logits; what may not be chosen gets -inf.

    Args:
        logits: (B, V), floating point.
        config: the rules. With temperature 0 only the repetition penalty applies.
        previous: (B, S) int64, each row's text so far for the repetition penalty; a negative
            number (padding) stands for no token.

    Returns:
        (B, V) fp32, not normalised.

    Raises:
        ValueError: logits or `previous` of another shape, or a penalty without `previous`.

    Example: probabilities 0.5, 0.3, 0.15, 0.05 under top_p = 0.7 keep the first two: 0.5 alone
    does not reach 0.7.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it must be (batch, vocabulary)")
    logits = logits.float()
    if config.repetition_penalty != 1.0:
        logits = _penalise_repetition(logits, config.repetition_penalty, previous)
    if config.temperature == 0.0:
        return logits
    if config.temperature != 1.0:
        logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[1]:
        kth = logits.topk(config.top_k, dim=1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if config.top_p is not None and config.top_p < 1.0:
        ordered, order = logits.sort(dim=1, descending=True)  # (B, V), likeliest first
        probabilities = ordered.softmax(dim=1)
        # A token goes when those before it have reached p already; so the first always stays.
        reached_before = probabilities.cumsum(dim=1) - probabilities >= config.top_p
        logits = logits.masked_fill(reached_before.scatter(1, order, reached_before), -math.inf)
    if config.min_p:
        # p < min_p · p_max, in logs: the normaliser cancels.
        threshold = logits.amax(dim=1, keepdim=True) + math.log(config.min_p)  # (B, 1)
        logits = logits.masked_fill(logits < threshold, -math.inf)
    return logits


def sample_next(
    logits: Tensor,
    config: SamplingConfig,
    *,
    generator: torch.Generator | None = None,
    previous: Tensor | None = None,
) -> Tensor:
    """Choose each row's next token: (B, V) logits to (B,) int64.

    Args and errors as in `warp_logits`; `generator` is where randomness comes from (None =
    PyTorch's global one), unused when greedy.
    """
    if config == GREEDY:
        return logits.argmax(dim=-1)
    logits = warp_logits(logits, config, previous=previous)
    if config.temperature == 0.0:
        return logits.argmax(dim=1)
    return torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


def _penalise_repetition(logits: Tensor, penalty: float, previous: Tensor | None) -> Tensor:
    """Make the tokens of `previous` (B, S) less likely; see `SamplingConfig`."""
    if previous is None:
        raise ValueError("a repetition penalty needs `previous`, the tokens so far")
    B, V = logits.shape
    if previous.dim() != 2 or previous.shape[0] != B or previous.dtype != torch.int64:
        raise ValueError(
            f"previous is {tuple(previous.shape)} {previous.dtype}; it must be ({B}, length) int64"
        )
    seen = torch.zeros(B, V + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, previous.clamp(min=-1) % (V + 1), True)  # padding's -1 is the spare column V
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen[:, :V], penalised, logits)
