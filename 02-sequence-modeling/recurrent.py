"""Recurrent networks from scratch: Elman, GRU and LSTM cells, a language model, truncated BPTT.

A recurrent layer reads a sequence one position at a time into a state of fixed size. The three
cells differ only in how the new state is made of the old one, and so in what becomes of a gradient
on its way back (README, "Backpropagation through time"):

    Elman (1990)                     h' = tanh(a)                      everything is overwritten
    GRU (Cho et al. 2014)            h' = (1 - z) n + z h              z keeps, entry by entry
    LSTM (Hochreiter, Schmidhuber)   c' = f c + i g,  h' = o tanh(c')  f keeps, o shows

Weights have PyTorch's layout and gate order, so a layer and its `torch.nn` counterpart exchange
state dicts. `fused=True` runs the same weights through PyTorch's compiled loop: equal outputs and
gradients (a test compares them), several times faster. Use it to train for long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from numerics import cross_entropy

CellKind = Literal["rnn", "gru", "lstm"]
_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def elman_step(a: Tensor, state: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """h' = tanh(a + W h + b): a (B, H) is the input's share, state (1, B, H). Returns (1, B, H)."""
    return torch.tanh(a + state[0] @ w.T + b)[None]  # (1, B, H)


def gru_step(a: Tensor, state: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Gates r, z, n in this order: a (B, 3H), w (3H, H). State (1, B, H) in and out.

    r decides how much of the past the candidate n sees, z how much of the past stays. r stands
    outside the matrix product, as in PyTorch and cuDNN; in Cho et al. (2014, eq. 8) it is inside.
    """
    h = state[0]
    a_r, a_z, a_n = a.chunk(3, dim=-1)  # (B, H) each
    u_r, u_z, u_n = (h @ w.T + b).chunk(3, dim=-1)
    r = torch.sigmoid(a_r + u_r)
    z = torch.sigmoid(a_z + u_z)
    n = torch.tanh(a_n + r * u_n)
    return ((1 - z) * n + z * h)[None]  # (1, B, H)


def lstm_step(a: Tensor, state: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Gates i, f, g, o in this order: a (B, 4H), w (4H, H). State (2, B, H) is h and c.

    c' = f c + i g: where f is 1 the cell keeps its value, and passes its gradient on unchanged.
    The forget gate is Gers et al.'s (2000); the LSTM of 1997 had f = 1 throughout.
    """
    h, c = state
    i, f, g, o = (a + h @ w.T + b).chunk(4, dim=-1)  # (B, H) each
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.stack((torch.sigmoid(o) * torch.tanh(c), c))  # (2, B, H)


class RecurrentLayer(nn.Module):
    """One layer: x (B, T, input_size) -> (outputs (B, T, H), last state (S, B, H)).

    S is 2 for an LSTM (h and c) and 1 otherwise. Weights start uniform in +-1/sqrt(H), as in
    `torch.nn`; the LSTM's forget gate starts open, with bias `forget_bias` (Jozefowicz et al.
    2015), so that gradients reach far before anything is learned.

    Raises ValueError for an unknown cell, a wrong width or a wrong state.
    """

    def __init__(
        self,
        cell: CellKind,
        input_size: int,
        hidden_size: int,
        *,
        fused: bool = False,
        forget_bias: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if cell not in _GATES:
            raise ValueError(f"cell must be one of {sorted(_GATES)}, got {cell!r}")
        if input_size < 1 or hidden_size < 1:
            raise ValueError(f"sizes must be 1 or more, got {input_size} and {hidden_size}")
        self.cell, self.hidden_size, self.fused = cell, hidden_size, fused
        self.num_states = 2 if cell == "lstm" else 1
        rows, bound = _GATES[cell] * hidden_size, 1 / math.sqrt(hidden_size)

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))

        self.weight_ih_l0 = weights(rows, input_size)
        self.weight_hh_l0 = weights(rows, hidden_size)
        self.bias_ih_l0 = weights(rows)
        self.bias_hh_l0 = weights(rows)
        if cell == "lstm":
            with torch.no_grad():
                self.bias_ih_l0[hidden_size : 2 * hidden_size] = forget_bias
                self.bias_hh_l0[hidden_size : 2 * hidden_size] = 0.0

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros (S, B, H), where and of what type the weights are."""
        return self.weight_hh_l0.new_zeros(self.num_states, batch_size, self.hidden_size)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """One position: x (B, input_size), state (S, B, H) -> the next state (S, B, H)."""
        return self._advance(x @ self.weight_ih_l0.T + self.bias_ih_l0, state)

    def _advance(self, a: Tensor, state: Tensor) -> Tensor:
        advance = {"rnn": elman_step, "gru": gru_step, "lstm": lstm_step}[self.cell]
        return advance(a, state, self.weight_hh_l0, self.bias_hh_l0)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[2] != self.weight_ih_l0.shape[1]:
            raise ValueError(
                f"x must be (B, T, {self.weight_ih_l0.shape[1]}), got {tuple(x.shape)}"
            )
        if x.shape[1] == 0:
            raise ValueError("x must have at least one position")
        if state is None:
            state = self.initial_state(x.shape[0])
        expected = (self.num_states, x.shape[0], self.hidden_size)
        if state.shape != expected:
            raise ValueError(f"state must be {expected}, got {tuple(state.shape)}")
        if self.fused:
            return self._forward_fused(x, state)
        # The input's share has no recurrence in it: all positions at once, in one product.
        a = x @ self.weight_ih_l0.T + self.bias_ih_l0  # (B, T, gates * H)
        outputs = []
        for t in range(x.shape[1]):
            state = self._advance(a[:, t], state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state  # (B, T, H), (S, B, H)

    def _forward_fused(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        weights: list[Tensor] = [
            self.weight_ih_l0,
            self.weight_hh_l0,
            self.bias_ih_l0,
            self.bias_hh_l0,
        ]
        options = (weights, True, 1, 0.0, self.training, False, True)
        if self.cell == "lstm":
            h, c = state[:1].contiguous(), state[1:].contiguous()
            outputs, h, c = torch.lstm(x, (h, c), *options)
            return outputs, torch.cat((h, c))  # (B, T, H), (2, B, H)
        function = torch.gru if self.cell == "gru" else torch.rnn_tanh
        return function(x, state.contiguous(), *options)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """A recurrent language model: sizes, the cell, and whether PyTorch's compiled loop runs it."""

    vocab_size: int
    d_model: int
    num_layers: int = 1
    cell: CellKind = "lstm"
    embed_dim: int | None = None
    fused: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.embed_dim is not None and self.embed_dim < 1:
            raise ValueError(f"embed_dim must be 1 or more, or None, got {self.embed_dim}")
        if self.cell not in _GATES:
            raise ValueError(f"cell must be one of {sorted(_GATES)}, got {self.cell!r}")

    @property
    def num_parameters(self) -> int:
        """Embedding, layers of gates * H * (input + H + 2), output layer with bias."""
        embed, gates = self.embed_dim or self.d_model, _GATES[self.cell]
        first = gates * self.d_model * (embed + self.d_model + 2)
        others = gates * self.d_model * (2 * self.d_model + 2) * (self.num_layers - 1)
        return self.vocab_size * (embed + self.d_model + 1) + first + others


def matched_width(cell: CellKind, *, vocab_size: int, embed_dim: int, parameters: int) -> int:
    """The width at which a one-layer model comes closest to this many parameters from below.

    Raises ValueError where even width 1 has more, or `parameters` is not finite.
    """
    width = 0
    while math.isfinite(parameters):
        config = RecurrentConfig(
            vocab_size=vocab_size, d_model=width + 1, cell=cell, embed_dim=embed_dim
        )
        if config.num_parameters > parameters:
            break
        width += 1
    if not width:
        raise ValueError(f"no {cell} of these sizes has {parameters} parameters or fewer")
    return width


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers, output layer.

    ids (B, T) -> (logits (B, T, V), state (L, S, B, H)); the state continues where it stopped, so
    a text may be read in pieces of any lengths with the same result.
    """

    def __init__(
        self, config: RecurrentConfig, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        embed = config.embed_dim or config.d_model
        self.embedding = nn.Embedding(config.vocab_size, embed)
        self.layers = nn.ModuleList(
            RecurrentLayer(
                config.cell,
                embed if i == 0 else config.d_model,
                config.d_model,
                fused=config.fused,
                generator=generator,
            )
            for i in range(config.num_layers)
        )
        self.output = nn.Linear(config.d_model, config.vocab_size)
        with torch.no_grad():
            bound = 1 / math.sqrt(config.d_model)
            # As large as the states will be: much smaller inputs are hardly heard at first.
            self.embedding.weight.normal_(generator=generator)
            self.output.weight.uniform_(-bound, bound, generator=generator)
            self.output.bias.zero_()

    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if ids.ndim != 2:
            raise ValueError(f"ids must be (B, T), got {tuple(ids.shape)}")
        if state is not None and len(state) != len(self.layers):
            raise ValueError(f"state must hold {len(self.layers)} layers, got {len(state)}")
        x = self.embedding(ids)  # (B, T, E)
        states = []
        for i, layer in enumerate(self.layers):
            x, last = layer(x, None if state is None else state[i])  # (B, T, H), (S, B, H)
            states.append(last)
        return self.output(x), torch.stack(states)  # (B, T, V), (L, S, B, H)


def continuous_windows(
    ids: Tensor, *, batch_size: int, seq_len: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One long text as B parallel streams, cut into windows: (inputs, targets), (B, T) each.

    Window k + 1 of a row goes on where window k ended, so a state can be carried over. Ends with
    the streams; what does not fill a window is left out. Raises ValueError if nothing fits, unless
    ids are (N,), or for sizes below 1.
    """
    if ids.ndim != 1:
        raise ValueError(f"ids must be one text (N,), got {tuple(ids.shape)}")
    if batch_size < 1 or seq_len < 1:
        raise ValueError(f"sizes must be 1 or more, got {batch_size} and {seq_len}")
    length = (len(ids) - 1) // batch_size
    if length < seq_len:
        raise ValueError(f"{len(ids)} ids do not fill a window of {batch_size} x {seq_len}")
    inputs = ids[: batch_size * length].view(batch_size, length)
    targets = ids[1 : batch_size * length + 1].view(batch_size, length)
    for start in range(0, length - seq_len + 1, seq_len):
        yield inputs[:, start : start + seq_len], targets[:, start : start + seq_len]


class TruncatedBPTT:
    """The training step of a recurrent language model, for `train_loop.fit`.

    The state is carried from window to window, its gradient is not: what happened before the
    window can be remembered but not blamed (Williams and Peng 1990). Gradients are clipped to
    norm `max_norm` (Pascanu et al. 2013), the remedy for those that explode.

    reset_every: the state starts again from zeros every so many windows. Without it a model sees
        the zero state once in its training, and may read nothing that begins with it.
    """

    def __init__(
        self,
        model: RecurrentLM,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float = 1.0,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        reset_every: int | None = None,
    ) -> None:
        if reset_every is not None and reset_every < 1:
            raise ValueError(f"reset_every must be 1 or more, or None, got {reset_every}")
        self.model, self.optimizer, self.max_norm = model, optimizer, max_norm
        self.scheduler, self.reset_every, self.windows = scheduler, reset_every, 0
        self.state: Tensor | None = None

    def __call__(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        inputs, targets = batch
        if self.state is not None and self.state.shape[2] != inputs.shape[0]:
            self.state = None
        if self.reset_every is not None and self.windows % self.reset_every == 0:
            self.state = None
        self.windows += 1
        logits, state = self.model(inputs, self.state)
        self.state = state.detach()  # remembered, not blamed
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return {"loss": loss.detach(), "grad_norm": norm}


@torch.no_grad()
def stream_nats(model: RecurrentLM, ids: Tensor, *, chunk: int = 4096) -> float:
    """Total nats of ids (N,) after the first, read as one stream with the state carried along.

    Raises ValueError unless ids are (N,) and chunk is 1 or more: it would read nothing and say 0.
    """
    if ids.ndim != 1 or chunk < 1:
        raise ValueError(f"ids must be (N,), chunk 1 or more; got {tuple(ids.shape)} and {chunk}")
    state, total = None, 0.0
    for start in range(0, len(ids) - 1, chunk):
        end = min(start + chunk, len(ids) - 1)
        logits, state = model(ids[None, start:end], state)
        loss = cross_entropy(logits[0], ids[start + 1 : end + 1])
        total += float(loss) * (end - start)
    return total


def jacobian_norms(layer: RecurrentLayer, x: Tensor) -> list[float]:
    """Norm of d h_T / d h_t for each t from T back to 0, the largest singular value, one sequence.

    x (T, input_size), or ValueError. Entry k is the norm over k steps, entry 0 is 1. For the LSTM
    the state is (h, c) and the derivative is of c by c: the path that the cell was built for.
    """
    width = layer.weight_ih_l0.shape[1]
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"x must be (T, {width}), got {tuple(x.shape)}")
    states = [layer.initial_state(1)]
    with torch.no_grad():
        for t in range(x.shape[0]):
            states.append(layer.step(x[t : t + 1], states[-1]))
    part = layer.num_states - 1
    H = layer.hidden_size
    product = torch.eye(layer.num_states * H, dtype=x.dtype, device=x.device)
    norms = [1.0]
    for t in range(x.shape[0] - 1, -1, -1):

        def advance(flat: Tensor, t: int = t) -> Tensor:
            state = flat.view(layer.num_states, 1, H)
            return layer.step(x[t : t + 1], state).flatten()

        jacobian = torch.autograd.functional.jacobian(advance, states[t].flatten())
        product = product @ jacobian  # type: ignore[operator]  # (S H, S H)
        block = product[part * H :, part * H :]
        norms.append(float(torch.linalg.matrix_norm(block, ord=2)))
    return norms


def total_loss(model: RecurrentLM, windows: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean nats a position over windows, the state carried along, without gradients."""
    state, total, count = None, 0.0, 0
    with torch.no_grad():
        for inputs, targets in windows:
            logits, state = model(inputs, state)
            total += float(cross_entropy(logits.flatten(0, 1), targets.flatten())) * targets.numel()
            count += targets.numel()
    if count == 0:
        raise ValueError("there must be at least one window")
    return total / count
