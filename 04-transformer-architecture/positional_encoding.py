"""Telling a transformer where each token stands: sinusoids, a learned table, T5's buckets, ALiBi.

Attention alone sees a set: permute its keys and values together and the output does not change.
Order has to be put in by hand, either into the tokens (`sinusoidal_encoding`,
`LearnedPositions`: added to the embeddings once, before the first layer) or into the scores
(`T5RelativeBias`, `alibi_bias`: a bias for every query-key pair, in every layer). The fifth way,
rotating queries and keys, has a module of its own: `rope_encoding`.

Biases are (1, H, T, S), to be passed as `bias=` to attention. With T < S the last query stands
at the last key, as everywhere in this course, so that decoding with a cache is the same call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_encoding(
    T: int,
    d_model: int,
    *,
    base: float = 10000.0,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The fixed encoding of *Attention Is All You Need* (arXiv:1706.03762), section 3.5.

    PE[p, 2i] = sin(p / base^(2i/D)) and PE[p, 2i+1] = cos(p / base^(2i/D)), for positions
    p = start … start + T - 1. Each pair of columns is a clock hand; moving from p to p + n turns
    every hand by an angle that depends on n alone, so PE[p + n] is one fixed matrix times PE[p].

    Returns (T, D). It is computed in fp64 and rounded once. Worked value, D = 4: position 1 is
    (sin 1, cos 1, sin 0.01, cos 0.01) = (0.8415, 0.5403, 0.0100, 1.0000).
    """
    if T < 0 or start < 0:
        raise ValueError(f"T and start must not be negative, got T={T}, start={start}")
    if d_model < 1:
        raise ValueError(f"d_model must be positive, got {d_model}")
    if not 1.0 < base < math.inf:
        raise ValueError(f"base must be finite and greater than 1, got {base}")
    positions = torch.arange(start, start + T, dtype=torch.float64)  # (T,)
    even_columns = torch.arange(0, d_model, 2, dtype=torch.float64)  # (⌈D/2⌉,)
    angles = positions[:, None] / base ** (even_columns / d_model)  # (T, ⌈D/2⌉)
    table = torch.empty(T, d_model, dtype=torch.float64)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles[:, : d_model // 2].cos()
    return table.to(device=device, dtype=dtype)  # (T, D)


class LearnedPositions(nn.Embedding):
    """One trained vector for each position (BERT, GPT-2); `weight` is (max_seq_len, D).

    Nothing ties neighbours together, so a position that training never reached is noise, and
    beyond `max_seq_len` there is nothing at all: that is an error, not a wrap-around.
    """

    def __init__(self, max_seq_len: int, d_model: int) -> None:
        if max_seq_len < 1:
            raise ValueError(f"max_seq_len must be positive, got {max_seq_len}")
        if d_model < 1:
            raise ValueError(f"d_model must be positive, got {d_model}")
        super().__init__(max_seq_len, d_model)

    def reset_parameters(self) -> None:
        """N(0, 0.02²), GPT-2's scale: the same as its token embeddings'."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """positions: int64, (T,) or (B, T) -> (T, D) or (B, T, D).

        Raises TypeError for positions that are not int64 or int32, ValueError for one outside
        [0, max_seq_len). On an accelerator, where reading a value back would stall every step, the
        device's own index check stands in.
        """
        if positions.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"positions must be int64 or int32, got {positions.dtype}")
        if positions.device.type == "cpu" and positions.numel():
            lowest, highest = (int(p) for p in positions.aminmax())
            if lowest < 0 or highest >= self.num_embeddings:
                raise ValueError(
                    f"positions must lie in [0, max_seq_len={self.num_embeddings}), "
                    f"got {lowest} … {highest}"
                )
        return super().forward(positions)


def relative_position_bucket(
    relative: Tensor, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> Tensor:
    """T5's buckets for key position - query position, int64 in [0, num_buckets), same shape.

    Half of the buckets are single distances 0, 1, 2, …; the other half grow logarithmically up to
    `max_distance`, beyond which all distances share the last (arXiv:1910.10683, section 2.1:
    what matters about far tokens is that they are far). `bidirectional` gives the future its own
    set of buckets; otherwise every future key counts as distance 0, for the mask to remove.

    Raises ValueError for a number of buckets or a distance that `T5RelativeBias` refuses, TypeError
    for distances that are not whole numbers.
    """
    if relative.is_floating_point() or relative.dtype == torch.bool:
        raise TypeError(f"relative must be integers, got {relative.dtype}")
    _check_buckets(num_buckets, max_distance, bidirectional)
    bucket = torch.zeros_like(relative, dtype=torch.int64)
    if bidirectional:
        num_buckets //= 2
        bucket += (relative > 0) * num_buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = num_buckets // 2
    # How far along the logarithmic half: 0 at `exact`, 1 at max_distance. In fp32, and in this
    # order, because a bucket's edge is decided by the rounding that trained the checkpoints.
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (far * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return bucket + torch.where(distance < exact, distance, logarithmic)


class T5RelativeBias(nn.Module):
    """A learned number for each head and each bucket of distance, added to the scores.

    Raffel et al. 2020 (arXiv:1910.10683), section 2.1. `bidirectional` for encoders, not for
    decoders. T5 shares one such table among all layers of a stack and, to match, does not scale
    its scores by 1/√K. Parameter: `weight` (num_buckets, H).
    """

    def __init__(
        self,
        num_heads: int,
        *,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be positive, got {num_heads}")
        _check_buckets(num_buckets, max_distance, bidirectional)
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02²): biases start small, so that attention starts nearly content-only."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, T: int, S: int | None = None) -> Tensor:
        """The bias for T queries and S keys (S = T unless given), (1, H, T, S)."""
        S = _checked_lengths(T, S)
        # T·S pairs, but only T+S-1 distances: look each up once, then slide a window over them.
        relative = torch.arange(-(S - 1), T, device=self.weight.device)  # (T+S-1,)
        bucket = relative_position_bucket(
            relative,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        by_distance = self.weight[bucket].t()  # (H, T+S-1)
        # Query t (at position S-T+t) sees the distances of the window that starts at T-1-t.
        return by_distance.unfold(-1, S, 1).flip(-2).unsqueeze(0)  # (1, H, T, S)


def alibi_slopes(num_heads: int) -> Tensor:
    """ALiBi's slope for each head, (H,) fp32: 2^(-8/H), 2^(-16/H), …, 2^-8.

    Press et al. 2022 (arXiv:2108.12409), section 3. For H no power of two, the authors' code
    takes the slopes of the largest power of two below, then every other slope of the next one.
    Worked value: H = 8 gives 1/2, 1/4, …, 1/256.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be positive, got {num_heads}")

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)]

    below = 2 ** math.floor(math.log2(num_heads))
    slopes = geometric(below) + geometric(2 * below)[0::2]
    return torch.tensor(slopes[:num_heads], dtype=torch.float32)  # (H,)


def alibi_bias(
    num_heads: int, T: int, S: int | None = None, *, device: torch.device | str | None = None
) -> Tensor:
    """ALiBi: -slope · distance added to each score; (1, H, T, S) fp32, S = T unless given.

    The distance is |query position - key position|, so the bias also serves an encoder. Nothing
    is learned, and far keys fade at a rate that does not depend on the length, which is why a
    model trained at T = 64 still works at 512.
    """
    S = _checked_lengths(T, S)
    queries = torch.arange(S - T, S, device=device)  # (T,)
    keys = torch.arange(S, device=device)  # (S,)
    distance = (queries[:, None] - keys[None, :]).abs()  # (T, S)
    slopes = alibi_slopes(num_heads).to(distance.device)  # (H,)
    return (-slopes[:, None, None] * distance).unsqueeze(0)  # (1, H, T, S)


def _check_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> None:
    """Refuse buckets that cannot be halved, or leave the logarithmic half no room."""
    sides = 2 if bidirectional else 1
    if num_buckets < 2 * sides or num_buckets % (2 * sides):
        raise ValueError(
            f"num_buckets must be a positive multiple of {2 * sides} when "
            f"bidirectional={bidirectional}, got {num_buckets}"
        )
    exact = num_buckets // (2 * sides)
    if max_distance <= exact:
        raise ValueError(f"max_distance must exceed the {exact} exact buckets, got {max_distance}")


def _checked_lengths(T: int, S: int | None) -> int:
    S = T if S is None else S
    if not 1 <= T <= S:
        raise ValueError(f"the T queries are the last of S keys: 1 <= T <= S, got T={T}, S={S}")
    return S
