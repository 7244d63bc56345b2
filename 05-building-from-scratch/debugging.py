"""Six checks whose result is known in advance, for code that trains without crashing.

A loss curve that looks plausible proves nothing. Each of these costs seconds, has an answer that
a healthy model must give, and asks something that no other asks. They know a model only as
`model(ids) -> logits`; the three that look inside need `token_embedding` and `blocks`.

README, "What goes wrong". Letters: B batch, T positions, D model width, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from numerics import cross_entropy

LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found: whether all is well, a sentence that says why, and its numbers."""

    ok: bool
    message: str
    numbers: dict[str, float] = field(default_factory=dict)


def shifted_loss(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean nats a token of targets (B, T), a scalar: what a healthy training run minimises."""
    return cross_entropy(model(ids), targets)


@torch.no_grad()
def initial_loss_check(
    model: nn.Module,
    ids: Tensor,
    targets: Tensor,
    *,
    loss_of: LossFunction = shifted_loss,
    tolerance: float = 0.25,
) -> Report:
    """A fresh model knows nothing, so its loss is ln V: more is false certainty, less is a leak.

    ln V + σ²/2 is expected for logits of standard deviation σ; `tolerance` nats leave room for
    that and for a small batch. Random targets would be best; real text does nearly as well.
    """
    loss = float(loss_of(model, ids, targets))
    expected = math.log(model(ids).shape[-1])
    ok = abs(loss - expected) <= tolerance
    verdict = "as it should be" if ok else "too high" if loss > expected else "too low: a leak?"
    return Report(
        ok=ok,
        message=f"initial loss {loss:.3f}, ln V = {expected:.3f}: {verdict}",
        numbers={"loss": loss, "ln_vocab": expected},
    )


def overfit_one_batch(
    model: nn.Module,
    ids: Tensor,
    targets: Tensor,
    *,
    loss_of: LossFunction = shifted_loss,
    steps: int = 150,
    lr: float = 3e-3,
    target_loss: float = 0.1,
) -> Report:
    """Train a copy on one batch. It must be able to learn that by heart, and then predict it.

    After training, the true loss on the batch is taken too, with the model in evaluation mode: a
    model that has learned something else than to predict `targets` is found out there.
    """
    model = copy.deepcopy(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        trained = float(loss_of(model, ids, targets))
        true = float(shifted_loss(model.eval(), ids, targets))
    numbers = {"loss": trained, "true_loss": true}
    if trained > target_loss:
        return Report(
            ok=False,
            message=f"after {steps} steps on one batch the loss is {trained:.3f}, "
            f"not below {target_loss}: gradients or targets do not reach the parameters",
            numbers=numbers,
        )
    if true > 2 * target_loss:
        return Report(
            ok=False,
            message=f"the loss that is trained on is {trained:.3f}, yet the next tokens cost "
            f"{true:.3f}: the loss does not measure prediction",
            numbers=numbers,
        )
    return Report(
        ok=True, message=f"one batch learned by heart: {trained:.4f} nats", numbers=numbers
    )


def causal_leak(model: nn.Module, ids: Tensor, *, probes: int = 4) -> Report:
    """Take the Jacobian of outputs by input embeddings: above the diagonal it must be 0, exactly.

    The gradient of one position's logits (weighted at random, so that nothing cancels) with
    respect to every position's embedding is one row; `probes` rows, spread over the text, are
    taken. See `leak_map` for the whole.

    Raises:
        ValueError: fewer than two positions.
    """
    T = ids.shape[1]
    if T < 2:
        raise ValueError(f"ids has {T} position(s); a leak needs at least two")
    rows = sorted({round(i * (T - 2) / max(1, probes - 1)) for i in range(probes)})
    influence = leak_map(model, ids, rows=rows)  # (R, T)
    worst, where = 0.0, (0, 0)
    for row, t in zip(influence, rows, strict=True):
        future = row[t + 1 :]
        if float(future.max()) > worst:
            worst, where = float(future.max()), (t, t + 1 + int(future.argmax()))
    if worst > 0.0:
        return Report(
            ok=False,
            message=f"position {where[0]} depends on position {where[1]}, which comes later "
            f"(gradient {worst:.2e})",
            numbers={"worst": worst},
        )
    return Report(ok=True, message="no position depends on a later one", numbers={"worst": 0.0})


def leak_map(model: nn.Module, ids: Tensor, *, rows: list[int] | None = None) -> Tensor:
    """(R, T): how much the outputs at each of `rows` (default: all) depend on every position."""
    rows = list(range(ids.shape[1])) if rows is None else rows
    training = model.training
    model.eval()
    embedded: list[Tensor] = []

    def catch(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = _part(model, "token_embedding").register_forward_hook(catch)
    try:
        logits = model(ids)  # (B, T, V)
    finally:
        handle.remove()
        model.train(training)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(logits.shape[-1], generator=generator).to(logits)  # (V,)
    influence = []
    for t in rows:
        total = (logits[:, t] * weights).sum()
        (gradient,) = torch.autograd.grad(total, embedded[-1], retain_graph=True)  # (B, T, D)
        influence.append(gradient.abs().amax(dim=(0, 2)))  # (T,)
    return torch.stack(influence)


def gradient_flow(
    model: nn.Module,
    ids: Tensor,
    targets: Tensor,
    *,
    loss_of: LossFunction = shifted_loss,
    largest_ratio: float = 1e3,
) -> Report:
    """The root mean square of each matrix's gradient: none may be 0, nor lie far from the others.

    Zero-initialised output projections make zeros at the very first step, by design: take a step
    before checking such a model.
    """
    model = copy.deepcopy(model).train()
    loss_of(model, ids, targets).backward()
    sizes, silent = {}, []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            silent.append(name)
        elif parameter.grad is None or not bool(parameter.grad.any()):
            # A bias before a softmax over keys cancels out: its gradient is 0 by nature.
            if not name.endswith("k_proj.bias"):
                silent.append(name)
        elif parameter.dim() > 1:
            sizes[name] = float(parameter.grad.pow(2).mean().sqrt())
    if silent:
        return Report(
            ok=False,
            message=f"no gradient reaches {silent[0]}"
            + (f" and {len(silent) - 1} more" if len(silent) > 1 else ""),
            numbers={"silent": len(silent), **sizes},
        )
    small, large = min(sizes, key=lambda n: sizes[n]), max(sizes, key=lambda n: sizes[n])
    ratio = sizes[large] / sizes[small]
    ok = ratio <= largest_ratio
    return Report(
        ok=ok,
        message=f"gradients of {large} are {ratio:.0f} times those of {small}",
        numbers={"ratio": ratio, **sizes},
    )


@torch.no_grad()
def activation_statistics(model: nn.Module, ids: Tensor, *, largest_growth: float = 4.0) -> Report:
    """The standard deviation of the stream after each block, and of the logits.

    The stream may grow slowly: `largest_growth` bounds the factor from one block to the next. At
    initialisation logits have a standard deviation well below 2.
    """
    seen: list[float] = []
    embedded: list[float] = []
    blocks = _part(model, "blocks")
    handles = [
        block.register_forward_hook(lambda module, args, out: seen.append(float(out.std())))
        for block in blocks.children()
    ]
    first = next(iter(blocks.children()))
    handles.append(
        first.register_forward_pre_hook(lambda module, args: embedded.append(float(args[0].std())))
    )
    training = model.training
    try:
        logits = model.eval()(ids)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    stream = [embedded[0], *seen]
    numbers = {f"after_{i}": value for i, value in enumerate(stream)}
    numbers["logits"] = float(logits.std())
    growth = [after / max(before, 1e-12) for before, after in itertools.pairwise(stream[1:])]
    if any(g > largest_growth or g < 1 / largest_growth for g in growth):
        worst = max(growth, key=lambda g: abs(math.log(max(g, 1e-12))))
        return Report(
            ok=False, message=f"a block multiplies the stream by {worst:.2g}", numbers=numbers
        )
    if numbers["logits"] > 2.0:
        return Report(
            ok=False, message=f"fresh logits have std {numbers['logits']:.1f}", numbers=numbers
        )
    return Report(ok=True, message="the stream's size changes slowly", numbers=numbers)


@torch.no_grad()
def dead_units(model: nn.Module, ids: Tensor, *, largest_share: float = 0.05) -> Report:
    """The share of hidden feed-forward units that are (nearly) 0 for every token of the batch.

    A unit on the flat side of its activation for all inputs gets no gradient and stays there.
    """
    peaks: list[Tensor] = []
    handles = []
    for name, module in model.named_modules():
        if name.endswith("feed_forward.down"):
            hook = lambda module, args: peaks.append(args[0].abs().flatten(0, -2).amax(dim=0))  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    if not handles:
        raise ValueError(f"{type(model).__name__} has no feed_forward.down to look at")
    training = model.training
    try:
        model.eval()(ids)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    share = float((torch.cat(peaks) < 1e-6).float().mean())
    return Report(
        ok=share <= largest_share,
        message=f"{share:.1%} of the feed-forward units are silent on this batch",
        numbers={"share": share},
    )


def _part(model: nn.Module, name: str) -> nn.Module:
    if not hasattr(model, name):
        raise ValueError(f"{type(model).__name__} has no {name!r}, which this check looks into")
    return getattr(model, name)
