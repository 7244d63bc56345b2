"""Sequence to sequence: one recurrent network reads, another writes.

Without `attention` all that the writer knows of the source is one vector, the reader's last state
(Sutskever et al. 2014, Cho et al. 2014): the bottleneck. With `attention` (topic 03) it looks
at all of the reader's states again at every step (Bahdanau et al. 2015, Luong et al. 2015).
README, "Sequence to sequence, and its bottleneck".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recurrent import CellKind, RecurrentLayer


class EncoderDecoder(nn.Module):
    """Recurrent encoder and decoder, one layer each.

    attention: a module called as attention(query (B, D), memory (B, S, M), keep (B, S)) ->
        (context (B, M), weights (B, S)), or None for the bottleneck.
    attend_before: True asks with the previous state, and the new state reads the context
        (Bahdanau); False asks with the new state, and only the output reads it (Luong).
    M is 2 D with a bidirectional encoder and D otherwise (`memory_dim`).

    Raises ValueError for widths below 1 and for lengths that do not fit the source, TypeError for
    lengths that are no integers.
    """

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        d_model: int,
        *,
        embed_dim: int | None = None,
        cell: CellKind = "gru",
        bidirectional: bool = True,
        attention: nn.Module | None = None,
        attend_before: bool = True,
        fused: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("src_vocab_size", src_vocab_size), ("tgt_vocab_size", tgt_vocab_size)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if d_model < 1 or (embed_dim is not None and embed_dim < 1):
            raise ValueError(f"widths must be 1 or more, got {d_model=} and {embed_dim=}")
        embed = embed_dim or d_model
        self.d_model = d_model
        self.memory_dim = 2 * d_model if bidirectional else d_model
        self.attention, self.attend_before = attention, attend_before
        self.src_embedding = nn.Embedding(src_vocab_size, embed)
        self.tgt_embedding = nn.Embedding(tgt_vocab_size, embed)

        def layer(width: int) -> RecurrentLayer:
            return RecurrentLayer(cell, width, d_model, fused=fused, generator=generator)

        self.reader = layer(embed)
        self.backward_reader = layer(embed) if bidirectional else None
        context = self.memory_dim if attention is not None else 0
        self.writer = layer(embed + (context if attend_before else 0))
        self.bridge = nn.Linear(self.memory_dim, self.writer.num_states * d_model)
        self.readout = nn.Linear(d_model + context, d_model)
        self.output = nn.Linear(d_model, tgt_vocab_size)
        with torch.no_grad():
            for embedding in (self.src_embedding, self.tgt_embedding):
                embedding.weight.normal_(0.0, 0.1, generator=generator)
            for linear in (self.bridge, self.readout, self.output):
                bound = linear.in_features**-0.5
                linear.weight.uniform_(-bound, bound, generator=generator)
                linear.bias.zero_()

    def encode(self, src: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """src (B, S) padded on the right, lengths (B,) -> (memory (B, S, M), state (S', B, D)).

        Padding changes nothing: the backward reader starts at each sequence's own end, and the
        final state is each sequence's own. Memory at padded places is 0.
        """
        B, S = src.shape
        if lengths.is_floating_point():
            raise TypeError(f"lengths must be integers, got {lengths.dtype}")
        if lengths.shape != (B,) or not B or int(lengths.min()) < 1 or int(lengths.max()) > S:
            raise ValueError(f"lengths must be {B} numbers in [1, {S}], got {lengths.tolist()}")
        keep = source_mask(lengths, S)
        x = self.src_embedding(src)  # (B, S, E)
        forward, _ = self.reader(x)  # (B, S, D)
        rows = torch.arange(B, device=src.device)
        final = forward[rows, lengths - 1]  # (B, D)
        memory = forward
        if self.backward_reader is not None:
            # Position s of the reversed row is length - 1 - s; padding stays where it is.
            places = torch.arange(S, device=src.device).expand(B, S)
            turned = torch.where(keep, lengths[:, None] - 1 - places, places)  # (B, S)
            backward, _ = self.backward_reader(x[rows[:, None], turned])
            backward = backward[rows[:, None], turned]  # (B, S, D), in the text's order again
            final = torch.cat((final, backward[:, 0]), dim=-1)  # (B, M)
            memory = torch.cat((forward, backward), dim=-1)  # (B, S, M)
        memory = memory * keep[:, :, None]
        state = torch.tanh(self.bridge(final))  # (B, S' D)
        state = state.view(B, self.writer.num_states, self.d_model).transpose(0, 1)
        return memory, state.contiguous()  # (B, S, M), (S', B, D)

    def decode_step(
        self, token: Tensor, state: Tensor, memory: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One token (B,) -> (logits (B, V), next state, attention weights (B, S) or None)."""
        x = self.tgt_embedding(token)  # (B, E)
        if self.attention is None:
            state = self.writer.step(x, state)
            return self._logits(state[0]), state, None
        if self.attend_before:
            context, weights = self.attention(state[0], memory, keep)  # (B, M), (B, S)
            state = self.writer.step(torch.cat((x, context), dim=-1), state)
        else:
            state = self.writer.step(x, state)
            context, weights = self.attention(state[0], memory, keep)
        return self._logits(torch.cat((state[0], context), dim=-1)), state, weights

    def _logits(self, features: Tensor) -> Tensor:
        return self.output(torch.tanh(self.readout(features)))

    def forward(
        self, src: Tensor, lengths: Tensor, tgt_in: Tensor, *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Teacher forcing: each position is given the true tokens before it.

        Returns logits (B, T, V), and with `return_weights` attention weights (B, T, S) too.
        """
        memory, state = self.encode(src, lengths)
        if self.attention is None:
            if return_weights:
                raise ValueError("a model without attention has no weights to return")
            features, _ = self.writer(self.tgt_embedding(tgt_in), state)  # (B, T, D)
            return self._logits(features)  # (B, T, V)
        keep = source_mask(lengths, src.shape[1])
        logits, all_weights = [], []
        for t in range(tgt_in.shape[1]):
            step_logits, state, weights = self.decode_step(tgt_in[:, t], state, memory, keep)
            logits.append(step_logits)
            all_weights.append(weights)
        stacked = torch.stack(logits, dim=1)  # (B, T, V)
        return (stacked, torch.stack(all_weights, dim=1)) if return_weights else stacked


def source_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) -> (B, S) bool, True where the source is real."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


@torch.no_grad()
def greedy_decode(
    model: EncoderDecoder,
    src: Tensor,
    lengths: Tensor,
    *,
    begin_id: int,
    end_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The likeliest token at each step, until `end_id` or `max_new_tokens`; ids without either."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
    memory, state = model.encode(src, lengths)
    keep = source_mask(lengths, src.shape[1])
    token = torch.full_like(lengths, begin_id)
    written: list[list[int]] = [[] for _ in range(len(lengths))]
    open_rows = set(range(len(lengths)))
    for _ in range(max_new_tokens):
        logits, state, _ = model.decode_step(token, state, memory, keep)
        token = logits.argmax(dim=-1)  # (B,)
        for row, chosen in enumerate(token.tolist()):
            if row in open_rows and chosen == end_id:
                open_rows.remove(row)
            elif row in open_rows:
                written[row].append(chosen)
        if not open_rows:
            break
    return written
