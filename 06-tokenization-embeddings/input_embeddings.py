"""What stands before the first block of an encoder: token, position and type, summed.

A token id says *what*, its position *where* and its type *in which of two texts*. Each is looked
up in a learned table, the three vectors are added, and the sum is normalised (Devlin et al. 2019,
figure 2). Adding looks like a loss of information; in D dimensions there is room for all three, and
the first layer's projections learn to read them apart.

Letters: B batch, T length, D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from positional_encoding import LearnedPositions
from sublayers import LayerNorm


class SummedEmbeddings(nn.Module):
    """BERT's input layer: token + position + type, layer norm, dropout.

    Args:
        vocab_size: V. d_model: D.
        max_seq_len: the longest text.
        num_types: kinds of text that `types` may name; 0 = no such table.
        norm_eps: added to the variance in the norm.
        dropout: probability of zeroing an element in training.
        pad_id: the id of padding, which `position_offset` needs; None = there is none.
        position_offset: 0 = columns count from 0 (BERT). RoBERTa's pad_id + 1 = real tokens count
            from there and padding, wherever it stands, sits at the position before; so a text's
            vectors do not depend on the side on which it is padded.
        embed_dim: look up vectors of this width E, normalise there, then project to D. A table of
            V·E and a matrix of E·D are far smaller than V·D (ALBERT, Lan et al. 2020, section
            3.1; ELECTRA's small models). None = E is D, without a projection.

    Raises:
        ValueError: sizes below 1, a dropout outside [0, 1), or an offset without a pad_id.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        max_seq_len: int,
        num_types: int = 2,
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        pad_id: int | None = None,
        position_offset: int = 0,
        embed_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = d_model if embed_dim is None else embed_dim
        for name, size in (
            ("vocab_size", vocab_size),
            ("d_model", d_model),
            ("max_seq_len", max_seq_len),
            ("embed_dim", width),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        if num_types < 0 or position_offset < 0:
            raise ValueError(
                f"num_types {num_types} and position_offset {position_offset} must not be negative"
            )
        if position_offset and pad_id is None:
            raise ValueError(f"position_offset {position_offset} counts real tokens: give pad_id")
        if pad_id is not None and not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id is {pad_id}; it must be in [0, vocab_size={vocab_size})")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        self.max_seq_len = max_seq_len
        self.num_types = num_types
        self.dropout = dropout
        self.pad_id = pad_id
        self.position_offset = position_offset
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = LearnedPositions(max_seq_len + position_offset, width)
        self.types = nn.Embedding(num_types, width) if num_types else None
        self.norm = LayerNorm(width, eps=norm_eps)
        self.project = None if embed_dim is None else nn.Linear(embed_dim, d_model)

    def forward(self, ids: Tensor, *, types: Tensor | None = None) -> Tensor:
        """Embed a batch of texts.

        Args:
            ids: (B, T) int64.
            types: (B, T) int64, which of the texts each token belongs to; None = all to text 0.

        Returns:
            (B, T, D).

        Raises:
            ValueError: ids that are not (B, T) or out of range, a text longer than
                `max_seq_len`, or types that do not fit.
        """
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; it must be (batch, length >= 1)")
        T = ids.shape[1]
        if self.max_seq_len < T:
            raise ValueError(f"{T} tokens are more than max_seq_len {self.max_seq_len}")
        _check_range("ids", ids, self.tokens.num_embeddings)
        x = self.tokens(ids) + self._position_vectors(ids)  # (B, T, E)
        if types is not None:
            if self.types is None or types.shape != ids.shape:
                raise ValueError(
                    f"types has shape {tuple(types.shape)} for ids {tuple(ids.shape)} "
                    f"and num_types {self.num_types}"
                )
            _check_range("types", types, self.num_types)
            x = x + self.types(types)
        elif self.types is not None:
            x = x + self.types.weight[0]
        x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return x if self.project is None else self.project(x)  # (B, T, D)

    def position_ids(self, ids: Tensor) -> Tensor:
        """Return the row of the position table that each token of (B, T) reads: int64 (B, T).

        With position_offset = pad_id + 1 = 2, the text [5, 6, 1, 1] reads rows [2, 3, 1, 1].
        """
        real = ids != self.pad_id  # (B, T)
        return real.cumsum(dim=1) * real + (self.position_offset - 1)

    def _position_vectors(self, ids: Tensor) -> Tensor:
        """Return (T, E), or (B, T, E) where padding does not count."""
        if self.position_offset:
            return self.positions(self.position_ids(ids))  # (B, T, E)
        return self.positions.weight[: ids.shape[1]]  # (T, E)


def _check_range(name: str, ids: Tensor, size: int) -> None:
    """Refuse ids outside [0, size). On an accelerator, reading one back would stall every step."""
    if not ids.is_cpu or not ids.numel():
        return
    lowest, highest = map(int, ids.aminmax())
    if lowest < 0 or highest >= size:
        raise ValueError(f"{name} from {lowest} to {highest} must lie in [0, {size})")
