"""Who may attend to whom: boolean masks, True = may attend.

A mask is a tensor that broadcasts to (B, H, T, S): T queries, S keys. Wherever the two differ, the
*last* query stands at the *last* key, as in decoding with a cache: query t has position t + S - T,
and its distance to key s is t + S - T - s (negative for keys in its future).

The patterns that thin out the T² pairs differ in how many they keep; each docstring gives the
count, `allowed_pairs` counts any mask, and the README compares them. A mask alone saves no time: a
kernel that computes every score and hides most of them does all the work. It is the pattern that a
kernel can skip by whole blocks (`block_sparse_mask`, topic 09) that pays.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor


def causal_mask(T: int, S: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """Each query sees the keys that are no later than itself.

    Args:
        T: queries. S: keys; None = T.
        device: where to make it.

    Returns:
        (T, S). For S = T it allows T (T + 1) / 2 pairs: 10 of 16 for T = 4.

    Raises:
        ValueError: a length below 1.
    """
    S = _key_length(T, S)
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def padding_mask(lengths: Tensor, S: int, *, side: str = "right") -> Tensor:
    """Only real tokens are seen, when sequences of unequal lengths are padded to S.

    Args:
        lengths: whole numbers (B,), from 0 to S.
        S: the padded length.
        side: where the padding stands, "right" or "left".

    Returns:
        (B, 1, 1, S), on the device of `lengths`.

    Raises:
        ValueError: lengths that are not (B,), or not from 0 to S (looked at on a CPU only, since
            an accelerator would have to wait), an S below 1, or an unknown side.
        TypeError: lengths that are not a tensor of whole numbers.
    """
    _check_tensor("lengths", lengths)
    if lengths.dim() != 1:
        raise ValueError(f"lengths have shape {tuple(lengths.shape)}; they must be (batch,)")
    _key_length(1, S)
    if side not in ("right", "left"):
        raise ValueError(f"side is {side!r}; it must be 'right' or 'left'")
    _check_counts("lengths", lengths, S)
    place = torch.arange(S, device=lengths.device)  # (S,)
    if side == "left":
        place = place.flip(0)
    return (place < lengths[:, None])[:, None, None, :]  # (B, 1, 1, S)


def keep_over_keys(name: str, keep: Tensor | None, source: Tensor) -> Tensor | None:
    """Give a batch's keep, one a token, the shape that attention takes: (B, S) -> (B, 1, 1, S).

    Args:
        name: what to call it in an error.
        keep: bool (B, S), True = a real token; None = all, and the answer is None.
        source: what it belongs to: ids (B, S) or vectors (B, S, D).

    Raises:
        ValueError: another shape. TypeError: a keep that is not bool.
    """
    if keep is None:
        return None
    _check_tensor(name, keep)
    if keep.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {keep.dtype}; it must be bool, True = a real token")
    wanted = source.shape[:2]
    if keep.shape != wanted:
        raise ValueError(f"{name} has shape {tuple(keep.shape)}; it must be {tuple(wanted)}")
    return keep[:, None, None, :]


def sliding_window_mask(
    T: int,
    window: int,
    S: int | None = None,
    *,
    causal: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Each query sees the `window` keys nearest before it, itself among them.

    Beltagy et al. 2020 (Longformer); Mistral 7B with 4,096. L layers see L · (window - 1) back.

    Args:
        T: queries. S: keys; None = T.
        window: how many keys, at least 1; without `causal` as many on the other side.
        causal: whether the future is hidden.

    Returns:
        (T, S). For S = T ≥ window it allows window · T - window (window - 1) / 2 pairs.

    Raises:
        ValueError: a length or a window below 1.
    """
    return dilated_mask(T, window, 1, S, causal=causal, device=device)


def dilated_mask(
    T: int,
    window: int,
    dilation: int,
    S: int | None = None,
    *,
    causal: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Each query sees `window` keys at distances 0, dilation, 2 · dilation, …

    The reach of a wider window for the price of a narrow one (Longformer, section 3.1); different
    heads or layers use different dilations to cover the gaps.

    Args:
        T: queries. S: keys; None = T.
        window: how many keys, at least 1; without `causal` as many on the other side.
        dilation: the step between them; 1 is the sliding window.
        causal: whether the future is hidden.

    Returns:
        (T, S).

    Raises:
        ValueError: a length, a window or a dilation below 1.
    """
    _at_least_one(window=window, dilation=dilation)
    distance = _distances(T, S, device)
    if not causal:
        distance = distance.abs()
    return (distance >= 0) & (distance < window * dilation) & (distance % dilation == 0)


def strided_mask(
    T: int, stride: int, S: int | None = None, *, device: torch.device | None = None
) -> Tensor:
    """Each query sees the `stride` nearest keys before it and every `stride`-th one before those.

    Child et al. 2019 (Sparse Transformers): with stride √T every pair is joined in two steps, for
    about 2 T √T pairs instead of T²/2.

    Args:
        T: queries. S: keys; None = T.
        stride: at least 1.

    Returns:
        (T, S), causal.

    Raises:
        ValueError: a length or a stride below 1.
    """
    _at_least_one(stride=stride)
    distance = _distances(T, S, device)
    return (distance >= 0) & ((distance < stride) | (distance % stride == 0))


def block_sparse_mask(
    layout: Tensor, block_size: int, T: int | None = None, S: int | None = None
) -> Tensor:
    """Each True of `layout` allows one block of block_size × block_size pairs.

    Gray et al. 2017. A kernel can skip a block that is all False, so this is the form in which
    sparsity saves time.

    Args:
        layout: bool (query blocks, key blocks).
        block_size: at least 1.
        T, S: crop to so many queries and keys where the last block is not full; None = all.

    Returns:
        (T, S), on the layout's device.

    Raises:
        ValueError: a layout that is not two-dimensional or has no block, or does not cover T
            and S.
        TypeError: a layout that is not bool.
    """
    _at_least_one(block_size=block_size)
    _check_tensor("layout", layout)
    if layout.dtype != torch.bool:
        raise TypeError(f"layout has dtype {layout.dtype}; it must be bool")
    if layout.dim() != 2 or not layout.numel():
        raise ValueError(
            f"layout has shape {tuple(layout.shape)}; it must be two-dimensional, with a block"
        )
    mask = layout.repeat_interleave(block_size, dim=0).repeat_interleave(block_size, dim=1)
    T = mask.shape[0] if T is None else T
    S = mask.shape[1] if S is None else S
    for name, length, covered in (("T", T, mask.shape[0]), ("S", S, mask.shape[1])):
        if not covered - block_size < length <= covered:
            raise ValueError(
                f"{name} is {length}, but blocks of {block_size} in a layout of "
                f"{tuple(layout.shape)} cover {covered - block_size + 1} to {covered}"
            )
    return mask[:T, :S]


def bigbird_mask(
    T: int,
    *,
    block_size: int,
    num_global_blocks: int = 1,
    num_window_blocks: int = 3,
    num_random_blocks: int = 1,
    generator: torch.Generator,
) -> Tensor:
    """Window, global and random blocks together, for encoders.

    Zaheer et al. 2020 (BigBird): neighbours carry local structure, the first blocks see and are
    seen by all, and random blocks make every path short, as in a small-world graph. With enough
    global tokens such a sparse attention can still compute whatever full attention can.

    Args:
        T: queries and keys.
        block_size: tokens in a block.
        num_global_blocks: the first blocks, which attend everywhere and are attended by all.
        num_window_blocks: odd: a block, and its neighbours on both sides.
        num_random_blocks: for each other row of blocks, so many more that it does not yet see
            (or all that are left).
        generator: decides which, on the CPU.

    Returns:
        (T, T) on the CPU, not causal.

    Raises:
        ValueError: sizes below 1, counts below 0, or an even window.
    """
    _at_least_one(T=T, block_size=block_size, num_window_blocks=num_window_blocks)
    if num_window_blocks % 2 == 0:
        raise ValueError(f"num_window_blocks is {num_window_blocks}; it must be odd")
    if num_global_blocks < 0 or num_random_blocks < 0:
        raise ValueError(
            f"num_global_blocks {num_global_blocks} and num_random_blocks {num_random_blocks} "
            "must not be negative"
        )
    blocks = -(-T // block_size)
    layout = sliding_window_mask(blocks, (num_window_blocks + 1) // 2, causal=False)
    layout[:num_global_blocks] = True
    layout[:, :num_global_blocks] = True
    if num_random_blocks:
        lottery = torch.rand(blocks, blocks, generator=generator).masked_fill(layout, 2.0)
        drawn = lottery.argsort(dim=1)[:, :num_random_blocks]  # the unseen come first
        layout.scatter_(1, drawn, True)
    return block_sparse_mask(layout, block_size, T, T)


def prefix_mask(
    prefix: int | Tensor,
    T: int,
    S: int | None = None,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Causal, except that every query sees the whole prefix.

    Prefix language models (T5, UL2, PaliGemma) read their input in both directions and write
    their output in one.

    Args:
        prefix: how many of the first keys; or whole numbers (B,), one a sequence.
        T: queries. S: keys; None = T.
        device: where to make it; a tensor's own device when `prefix` is one.

    Returns:
        (T, S), or (B, 1, T, S) for a tensor of prefixes.

    Raises:
        ValueError: a length below 1, a negative prefix, or prefixes that are not (B,).
        TypeError: prefixes that are not whole numbers.
    """
    S = _key_length(T, S)
    if isinstance(prefix, Tensor):
        if prefix.dim() != 1:
            raise ValueError(f"prefix has shape {tuple(prefix.shape)}; it must be (batch,)")
        _check_counts("prefix", prefix, None)
        read = torch.arange(S, device=prefix.device) < prefix[:, None]  # (B, S)
        return causal_mask(T, S, device=prefix.device) | read[:, None, None]  # (B, 1, T, S)
    _whole_number("prefix", prefix)
    if prefix < 0:
        raise ValueError(f"prefix is {prefix}; it must not be negative")
    mask = causal_mask(T, S, device=device)
    mask[:, :prefix] = True
    return mask


def document_mask(document_ids: Tensor) -> Tensor:
    """Only tokens of one's own document are seen, when several are packed into a row.

    Args:
        document_ids: whole numbers (B, T); equal means the same document.

    Returns:
        (B, 1, T, T). It hides no future: call attention with causal=True as well. Documents of
        n₁, n₂, … tokens allow n₁² + n₂² + … pairs.

    Raises:
        ValueError: ids that are not (B, T). TypeError: ids that are not a tensor.
    """
    _check_tensor("document_ids", document_ids)
    if document_ids.dim() != 2:
        raise ValueError(
            f"document_ids have shape {tuple(document_ids.shape)}; they must be (batch, length)"
        )
    return (document_ids[:, :, None] == document_ids[:, None, :])[:, None]  # (B, 1, T, T)


def combine_masks(*masks: Tensor) -> Tensor:
    """Allow what every mask allows; they broadcast against each other.

    Raises:
        ValueError: no mask, or shapes that do not fit. TypeError: one that is not bool.
    """
    if not masks:
        raise ValueError("combine_masks needs at least one mask")
    for mask in masks:
        _check_tensor("a mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask has dtype {mask.dtype}; it must be bool")
    try:
        torch.broadcast_shapes(*(mask.shape for mask in masks))
    except RuntimeError:
        shapes = ", ".join(str(tuple(mask.shape)) for mask in masks)
        raise ValueError(f"masks of shapes {shapes} do not broadcast to one") from None
    combined = masks[0]
    for mask in masks[1:]:
        combined = combined & mask
    return combined


def allowed_pairs(mask: Tensor, shape: tuple[int, ...] | None = None) -> int:
    """Count the query-key pairs that a mask allows.

    Args:
        mask: bool.
        shape: broadcast the mask to it first, as attention does: a padding mask (B, 1, 1, S)
            counts each key once, and T times in the shape (B, 1, T, S).

    Raises:
        TypeError: a mask that is not bool. ValueError: one that does not broadcast to `shape`.
    """
    _check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; it must be bool")
    if shape is not None:
        try:
            mask = mask.expand(shape)
        except RuntimeError:
            raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to {shape}") from None
    return int(mask.sum())


def _distances(T: int, S: int | None, device: torch.device | None) -> Tensor:
    """How far each key lies behind each query: (T, S), negative for the future."""
    S = _key_length(T, S)
    query_positions = torch.arange(S - T, S, device=device)  # (T,)
    return query_positions[:, None] - torch.arange(S, device=device)  # (T, S)


def _key_length(T: int, S: int | None) -> int:
    """Return S, or T in its place; refuse lengths below 1."""
    S = T if S is None else S
    _at_least_one(T=T, S=S)
    return S


def _at_least_one(**sizes: int) -> None:
    """Refuse sizes that are no whole numbers, or below 1."""
    for name, size in sizes.items():
        _whole_number(name, size)
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def _check_tensor(name: str, x: object) -> None:
    """Refuse lists, arrays and None by name, before an attribute is missing somewhere below."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a torch.Tensor")


def _whole_number(name: str, size: int) -> None:
    """Refuse what cannot count: 2.5 would otherwise be rounded somewhere, silently."""
    try:
        operator.index(size)
    except TypeError:
        raise TypeError(f"{name} is {size!r}; it must be a whole number") from None


def _check_counts(name: str, counts: Tensor, highest: int | None) -> None:
    """Refuse a tensor of counts of another dtype, and on a CPU counts outside 0 … highest."""
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {counts.dtype}; it must hold whole numbers")
    if not counts.is_cpu or not counts.numel():
        return
    for count in map(int, counts.aminmax()):
        if count < 0 or (highest is not None and count > highest):
            rule = "not be negative" if highest is None else f"lie in 0 … {highest}"
            raise ValueError(f"{name} holds {count}; each must {rule}")
