"""Rotary position embedding (RoPE): a position is an angle.

Su et al., *RoFormer* (arXiv:2104.09864), section 3.4.2. The K numbers of a head are read as K/2
points in the plane. At position m, point i is turned by the angle m * base^(-2i/K). A query
turned by m and a key turned by n have the dot product of the unturned pair turned by n - m, so
attention scores see where a key is *relative* to the query, and nothing has to be learned:

    R(m)^T R(n) = R(n - m)

Layout: half-split. Point i is (x[i], x[i + K/2]), as in the published Llama, Qwen and Mistral
checkpoints; the paper pairs neighbours (x[2i], x[2i+1]), which is the same map after a fixed
permutation of the columns of the query and key projections.

Beyond the length that a model was trained for, its slowest points reach angles that training
never showed. `RoPEScaling` holds the five published repairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

_KINDS = ("linear", "ntk", "dynamic", "yarn", "llama3")
_YARN_FIELDS = (
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
)
_LLAMA3_FIELDS = ("low_freq_factor", "high_freq_factor")
_FIELDS_OF_KIND = {
    "linear": (),
    "ntk": (),
    "dynamic": (),
    "yarn": ("original_max_position_embeddings", *_YARN_FIELDS),
    "llama3": ("original_max_position_embeddings", *_LLAMA3_FIELDS),
}


@dataclass(frozen=True, kw_only=True)
class RoPEScaling:
    """How to stretch RoPE beyond the length that a model was trained for.

    With f_i = base^(-2i/K) radians a position and s = `factor`:

    - `linear`: f_i / s for every i, that is, positions squeezed together (Chen et al.,
      arXiv:2306.15595). Neighbours become s times harder to tell apart.
    - `ntk`: base * s^(K/(K-2)). The fastest point keeps its speed, the slowest is slowed by
      exactly s, the rest lie between.
    - `dynamic`: `ntk` whose s grows with the text: s*L/M - (s - 1) once its length L passes
      M = `max_position_embeddings`, and 1 before. The frequencies then depend on L, so keys
      that were rotated and cached at a shorter L are not those of a run at the full length.
    - `yarn`: points that turn more than `beta_fast` times within the trained length keep their
      speed, those that turn less than `beta_slow` times are slowed by s, with a linear ramp
      between; queries and keys grow by `attention_factor`, 0.1 ln s + 1 unless given
      (Peng et al., arXiv:2309.00071, equations 21-24).
    - `llama3`: the same thought with the ramp in 1/wavelength, between `low_freq_factor` and
      `high_freq_factor` turns (Llama 3.1's released code).

    `original_max_position_embeddings` is the trained length that `yarn` and `llama3` count turns
    in; None means RoPE's own `max_position_embeddings`. `truncate` rounds yarn's ramp to whole
    points; `mscale` and `mscale_all_dim` (DeepSeek's) replace the attention factor by
    (0.1 mscale ln s + 1) / (0.1 mscale_all_dim ln s + 1).

    Raises ValueError for an unknown kind, for a value out of range, and for a field that the
    kind does not read.
    """

    kind: str
    factor: float
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if not (math.isfinite(self.factor) and self.factor >= 1.0):
            raise ValueError(f"factor must be a finite number of at least 1, got {self.factor}")
        used = ("kind", "factor", *_FIELDS_OF_KIND[self.kind])
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in used and value != field.default:
                raise ValueError(f"{self.kind} scaling does not read {field.name}, got {value}")
        original = self.original_max_position_embeddings
        if original is not None and original < 1:
            raise ValueError(f"original_max_position_embeddings must be positive, got {original}")
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                "0 < beta_slow <= beta_fast must hold, "
                f"got beta_slow={self.beta_slow}, beta_fast={self.beta_fast}"
            )
        if self.attention_factor is not None and not 0 < self.attention_factor < math.inf:
            raise ValueError(
                f"attention_factor must be positive and finite, got {self.attention_factor}"
            )
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "0 < low_freq_factor < high_freq_factor must hold, got "
                f"low_freq_factor={self.low_freq_factor}, high_freq_factor={self.high_freq_factor}"
            )

    @classmethod
    def from_hf(
        cls, parameters: Mapping[str, Any], *, max_position_embeddings: int | None = None
    ) -> RoPEScaling | None:
        """Read `rope_parameters` (or the older `rope_scaling`) of a Hugging Face config.json.

        `rope_theta`, the base, is the caller's to read. `max_position_embeddings` is needed only
        where a yarn config leaves `factor` out and means the ratio of the two lengths. Returns
        None for `rope_type` "default". Raises ValueError for a kind or a key that this module
        does not implement: a config half understood gives wrong logits, not an error.
        """
        given = {key: value for key, value in parameters.items() if value is not None}
        given.pop("rope_theta", None)
        old_name = given.pop("type", "default")
        kind = given.pop("rope_type", old_name)
        if given.pop("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(
                "partial_rotary_factor must be 1 here, "
                f"got {parameters['partial_rotary_factor']}: RoPE rotates whole heads"
            )
        if kind == "default":
            if given:
                raise ValueError(f"rope_type 'default' takes no {sorted(given)}")
            return None
        if kind not in _KINDS or kind == "ntk":
            known = ", ".join(("default", *(k for k in _KINDS if k != "ntk")))
            raise ValueError(f"rope_type must be one of {known}, got {kind!r}")
        unknown = sorted(set(given) - {"factor", *_FIELDS_OF_KIND[kind]})
        if unknown:
            raise ValueError(f"rope_type {kind!r} takes no {unknown}")
        if "factor" not in given:
            original = given.get("original_max_position_embeddings")
            if kind != "yarn" or original is None or max_position_embeddings is None:
                raise ValueError(f"rope_type {kind!r} needs a factor, got {dict(parameters)}")
            given["factor"] = max_position_embeddings / original
        return cls(kind=kind, **given)

    def to_hf(self, *, base: float | None = None, dim: int | None = None) -> dict[str, Any]:
        """The `rope_parameters` that `transformers` reads; with `base`, `rope_theta` too.

        `transformers` has no static NTK kind, but it is exactly plain RoPE with another base:
        that is what `ntk` becomes, for which both `base` and `dim` (K) must be given.
        """
        if self.kind == "ntk":
            if base is None or dim is None:
                raise ValueError("ntk scaling is written as another rope_theta: give base and dim")
            return {"rope_type": "default", "rope_theta": _ntk_base(base, dim, self.factor)}
        parameters: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        defaults = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        for name in _FIELDS_OF_KIND[self.kind]:
            value = getattr(self, name)
            # llama3's two factors have no default in transformers: they are always written.
            if value != defaults[name] or name in _LLAMA3_FIELDS:
                parameters[name] = value
        if base is not None:
            parameters["rope_theta"] = base
        return parameters


class Rotation:
    """Turns (B, H, T, K) by fixed angles; what `RoPE.at` returns.

    `cos` and `signed_sin` are (T, K) or (B, 1, T, K), fp32. Both hold an angle's value twice,
    once for each half, and `signed_sin` is negative in the first half: with the halves of x
    swapped by a roll, the rotation (a cos - b sin, b cos + a sin) of all points at once is
    x * cos + swapped * signed_sin. It is done in x's dtype, as `transformers` does.
    """

    def __init__(self, cos: Tensor, signed_sin: Tensor) -> None:
        self._tables = {cos.dtype: (cos, signed_sin)}

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, H, T, K) -> (B, H, T, K), new memory.

        Raises ValueError for shapes that do not fit, TypeError for x that is not floating point.
        """
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        cos, signed_sin = self._tables_for(x.dtype)
        rows_fit = cos.dim() == 2 or (x.dim() == 4 and cos.shape[0] in (1, x.shape[0]))
        if not rows_fit:
            raise ValueError(
                f"positions were given for {cos.shape[0]} sequences; x has shape {tuple(x.shape)}"
            )
        if x.shape[-2:] != cos.shape[-2:]:
            raise ValueError(
                f"x must end in (T, K) = {tuple(cos.shape[-2:])}, the positions and width that "
                f"this rotation was made for, got {tuple(x.shape)}"
            )
        if x.requires_grad and torch.is_grad_enabled():
            return _Rotate.apply(x, cos, signed_sin)
        return _rotate(x, cos, signed_sin)

    def _tables_for(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # One cast a forward pass instead of one a layer: all layers share this object.
        if dtype not in self._tables:
            cos, signed_sin = self._tables[torch.float32]
            self._tables[dtype] = (cos.to(dtype), signed_sin.to(dtype))
        return self._tables[dtype]


class RoPE(nn.Module):
    """Rotary position embedding of heads `dim` (= K) wide, Su et al. 2021, equation 34.

    `max_position_embeddings` is the length that the model was made for. It is no limit: angles
    are computed from the positions, not looked up. It is where `dynamic` scaling begins, and
    what `yarn` and `llama3` take for the trained length unless they say otherwise.

    Has no parameters and no state to save. The frequencies stay fp32 when a model is cast to
    bf16: eight bits of mantissa would misplace every position beyond the first few hundred.
    """

    def __init__(
        self,
        dim: int,
        max_position_embeddings: int = 2048,
        *,
        base: float = 10000.0,
        scaling: RoPEScaling | None = None,
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be a positive even number, got {dim}")
        if max_position_embeddings < 1:
            raise ValueError(
                f"max_position_embeddings must be positive, got {max_position_embeddings}"
            )
        if not 1.0 < base < math.inf:
            raise ValueError(f"base must be finite and greater than 1, got {base}")
        if scaling is not None and scaling.kind in ("ntk", "dynamic") and dim == 2:
            raise ValueError(f"{scaling.kind} scaling needs dim of at least 4, got 2")
        self.dim = dim
        self.max_position_embeddings = max_position_embeddings
        self.base = float(base)
        self.scaling = scaling
        self.attention_factor = _attention_factor(scaling)
        self._signed_freq: Tensor  # (K,)
        device = torch.get_default_device()
        self.register_buffer("_signed_freq", self._signed(0).to(device), persistent=False)

    @property
    def inv_freq(self) -> Tensor:
        """Radians a position for each of the K/2 points, fp32, fastest first; (K/2,)."""
        return self._signed_freq[self.dim // 2 :]

    def at(self, positions: Tensor, *, length: int | None = None) -> Rotation:
        """The rotation at these positions, to be shared by every layer of a forward pass.

        positions: integers, (T,) or (B, T). Returns a function of (B, H, T, K).

        `length` is the length of the text that `dynamic` scaling should assume; unless given,
        the largest position + 1. Give the final length in advance to make cached decoding beyond
        the boundary agree with one uncached pass. Other kinds ignore it.
        """
        if positions.dim() not in (1, 2):
            raise ValueError(f"positions must be (T,) or (B, T), got {tuple(positions.shape)}")
        if positions.is_floating_point() or positions.dtype == torch.bool:
            raise TypeError(f"positions must be integers, got {positions.dtype}")
        signed_freq = self._signed_freq
        if self.scaling is not None and self.scaling.kind == "dynamic":
            if length is None:
                length = int(positions.max()) + 1 if positions.numel() else 0
            if length > self.max_position_embeddings:
                signed_freq = self._signed(length).to(signed_freq.device)
        # cos(-a) = cos(a) and sin(-a) = -sin(a): signed frequencies give both tables directly.
        angles = positions.unsqueeze(-1) * signed_freq  # (T, K) or (B, T, K)
        if angles.dim() == 3:
            angles = angles.unsqueeze(1)  # (B, 1, T, K)
        cos, signed_sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, signed_sin = cos * self.attention_factor, signed_sin * self.attention_factor
        return Rotation(cos, signed_sin)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x (B, H, T, K) turned at `positions`, 0 … T-1 unless given; (B, H, T, K)."""
        if x.dim() < 2:
            raise ValueError(f"x must end in (T, K), got shape {tuple(x.shape)}")
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        return self.at(positions)(x)

    def extra_repr(self) -> str:
        text = f"{self.dim}, max_position_embeddings={self.max_position_embeddings}"
        return f"{text}, base={self.base:g}, scaling={self.scaling}"

    def _signed(self, length: int) -> Tensor:
        """(-f, f), f for a text of `length` positions; made on the CPU so that devices agree."""
        freq = _frequencies(self.dim, self.base, self.max_position_embeddings, self.scaling, length)
        return torch.cat((-freq, freq))  # (K,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RoPE:
        # Every .to(), .half() and to_empty() of a model comes through here: follow the device,
        # but make the frequencies anew instead of rounding them or leaving them unwritten.
        super()._apply(fn, recurse)
        self._signed_freq = self._signed(0).to(self._signed_freq.device)
        return self


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    # A roll and two in-place passes: the fastest eager form on CPU, 2-4 times faster than
    # x * cos + cat((-b, a)) * sin, which allocates four tensors of x's size.
    swapped = torch.roll(x, x.shape[-1] // 2, -1)  # (B, H, T, K)
    return swapped.mul_(signed_sin).addcmul_(x, cos)


class _Rotate(torch.autograd.Function):
    """The rotation with its gradient, the rotation by the negative angle: it keeps no activation.

    dL/dx = R(m)^T dL/dy, and R(m)^T = R(-m); an attention factor multiplies both alike.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        return _rotate(x, cos, signed_sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, signed_sin = ctx.saved_tensors
        return _Rotate.apply(grads[0], cos, -signed_sin), None, None


def _frequencies(
    dim: int, base: float, max_positions: int, scaling: RoPEScaling | None, length: int
) -> Tensor:
    """Radians a position, (K/2,) fp32, for a text of `length` positions."""
    kind = None if scaling is None else scaling.kind
    if scaling is not None and kind == "ntk":
        base = _ntk_base(base, dim, scaling.factor)
    elif scaling is not None and kind == "dynamic":
        growth = max(length, max_positions) / max_positions
        base = _ntk_base(base, dim, scaling.factor * growth - (scaling.factor - 1.0))
    # The steps are those that trained the published checkpoints, rounding included: an error of
    # 1e-7 in a frequency is one of 0.01 radians at position 100,000.
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim  # (K/2,)
    pace = base**exponents  # positions a radian, (K/2,)
    freq = 1.0 / pace
    if scaling is None or kind in ("ntk", "dynamic"):
        return freq
    if kind == "linear":
        return freq / scaling.factor
    trained = scaling.original_max_position_embeddings or max_positions
    if kind == "yarn":
        kept = 1.0 - _yarn_ramp(dim, base, trained, scaling)  # (K/2,)
        return 1.0 / (scaling.factor * pace) * (1.0 - kept) + freq * kept
    wavelength = 2.0 * math.pi / freq  # positions a turn, (K/2,)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((trained / wavelength - scaling.low_freq_factor) / width).clamp(0.0, 1.0)
    return (1.0 - kept) * freq / scaling.factor + kept * freq


def _ntk_base(base: float, dim: int, factor: float) -> float:
    """The base at which the slowest point, i = K/2 - 1, is slowed by `factor`."""
    return base * factor ** (dim / (dim - 2))


def _yarn_ramp(dim: int, base: float, trained: int, scaling: RoPEScaling) -> Tensor:
    """0 for points to keep, 1 for points to slow, linear between; (K/2,)."""

    def point_that_turns(turns: float) -> float:
        """The i, not whole, whose point turns so often within the trained length."""
        return dim * math.log(trained / (turns * 2.0 * math.pi)) / (2.0 * math.log(base))

    low, high = point_that_turns(scaling.beta_fast), point_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    points = torch.arange(dim // 2, dtype=torch.float32, device="cpu")  # (K/2,)
    return ((points - low) / (high - low)).clamp(0.0, 1.0)


def _attention_factor(scaling: RoPEScaling | None) -> float:
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def growth(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return growth(scaling.mscale) / growth(scaling.mscale_all_dim)
    return growth(1.0)
