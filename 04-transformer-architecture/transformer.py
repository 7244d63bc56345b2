"""The transformer: blocks made of given parts, stacks of blocks, and the 2017 encoder-decoder.

A block adds to a residual stream: attention mixes positions, the feed-forward layer works on each
position by itself, and a norm stands before (pre-norm) or after (post-norm) each of them. Every
model of this course, from GPT to T5 and ViT, is a stack of this one `TransformerBlock`; they
differ in the parts that they hand it.

`Transformer` is the model of Vaswani et al. 2017, with `greedy_translate` and `beam_translate`.
Letters: B batch, T target length, S source or memory length, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import CrossKVCache, GrowingKVCache, LayerKVCache, MultiHeadAttention
from masks import keep_over_keys
from positional_encoding import sinusoidal_encoding
from sublayers import FeedForward, LayerNorm


class TransformerBlock(nn.Module):
    """Self-attention, optionally cross-attention, then feed-forward, each with norm and residual.

    Pre-norm (Xiong et al. 2020; every LLM today) computes x + f(norm(x)), so the stream itself is
    never normalised and gradients reach every layer. Post-norm (2017) computes norm(x + f(x)).

    Args:
        attention: the self-attention.
        feed_forward: any module (..., D) -> (..., D).
        norm: makes a fresh norm for each sublayer.
        pre_norm: where the norms stand.
        cross_attention: attention to a memory; makes this a decoder block of an encoder-decoder.
        dropout: probability of zeroing an element of each sublayer's output in training; in [0, 1).
    """

    def __init__(
        self,
        *,
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        norm: Callable[[], nn.Module],
        pre_norm: bool = True,
        cross_attention: MultiHeadAttention | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        self.pre_norm = pre_norm
        self.dropout = dropout
        self.attention_norm = norm()
        self.attention = attention
        self.cross_norm = None if cross_attention is None else norm()
        self.cross_attention = cross_attention
        self.feed_forward_norm = norm()
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        keep: Tensor | None = None,
        memory_keep: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        rotary: Callable[[Tensor], Tensor] | None = None,
        cache: LayerKVCache | None = None,
        cross_cache: CrossKVCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Args:
            x: the residual stream (B, T, D).
            memory: what cross-attention reads (B, S, D_memory).
            keep, causal, bias, rotary, cache: for the self-attention, see `MultiHeadAttention`.
            memory_keep, cross_cache: `keep` and `cache` for the cross-attention.

        Raises:
            ValueError: a memory for a block without cross-attention, or none for one with it.
        """
        if (memory is None) != (self.cross_attention is None):
            raise ValueError(
                "memory was given to a block without cross-attention"
                if self.cross_attention is None
                else "this block has cross-attention and needs a memory"
            )
        pre_norm = self.pre_norm
        update = self.attention(
            self.attention_norm(x) if pre_norm else x,
            keep=keep,
            bias=bias,
            causal=causal,
            rotary=rotary,
            cache=cache,
        )  # (B, T, D)
        x = self._add(x, update, self.attention_norm)
        if self.cross_attention is not None and self.cross_norm is not None:
            read = self.cross_norm(x) if pre_norm else x
            update = self.cross_attention(read, memory, keep=memory_keep, cache=cross_cache)
            x = self._add(x, update, self.cross_norm)
        update = self.feed_forward(self.feed_forward_norm(x) if pre_norm else x)
        return self._add(x, update, self.feed_forward_norm)

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        """Add a sublayer's output to the stream; post-norm normalises the sum."""
        if self.dropout and self.training:
            update = F.dropout(update, self.dropout)
        x = x + update
        return x if self.pre_norm else norm(x)


class TransformerStack(nn.Module):
    """Blocks one after another (ValueError for none), and a last norm, which pre-norm needs."""

    def __init__(
        self, blocks: Iterable[TransformerBlock], final_norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if not self.blocks:
            raise ValueError("a stack needs at least one block")
        self.final_norm = final_norm

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.blocks)

    def forward(
        self,
        x: Tensor,
        *,
        caches: Sequence[LayerKVCache] | None = None,
        cross_caches: Sequence[CrossKVCache] | None = None,
        **shared: Any,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), with one cache a block, or ValueError.

        `shared` is what every block is given: `TransformerBlock`'s other arguments.
        """
        for name, given in (("caches", caches), ("cross_caches", cross_caches)):
            if given is not None and len(given) != len(self.blocks):
                raise ValueError(f"{len(given)} {name} for {len(self.blocks)} blocks")
        for i, block in enumerate(self.blocks):
            own = None if caches is None else caches[i]
            cross = None if cross_caches is None else cross_caches[i]
            x = block(x, cache=own, cross_cache=cross, **shared)
        return x if self.final_norm is None else self.final_norm(x)


class DecoderCache:
    """What a decoder need not compute twice for one batch: its own keys, and the memory's."""

    def __init__(self, num_layers: int) -> None:
        self.own = [GrowingKVCache() for _ in range(num_layers)]
        self.cross = [CrossKVCache() for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """How many target positions it holds."""
        return self.own[0].length

    def reorder(self, index: Tensor, *, cross: bool = True) -> None:
        """Make row i the old row index[i]; `cross=False` where every row keeps its memory."""
        for cache in (*self.own, *self.cross) if cross else self.own:
            cache.reorder(index)


class Transformer(nn.Module):
    """The encoder-decoder of "Attention Is All You Need" (Vaswani et al. 2017).

    Post-norm with ReLU feed-forwards, sinusoidal positions, embeddings scaled by √D and, as in
    the paper's section 5.4, dropout on the embeddings and on each sublayer's output. The defaults
    are the paper's base model; 65M parameters there came from one shared vocabulary of 37,000
    (`share_embeddings=True`).

    Args:
        src_vocab_size, tgt_vocab_size: sizes of the two vocabularies.
        d_model, num_heads, num_encoder_layers, num_decoder_layers, d_ff: sizes of the stacks.
        dropout: probability of zeroing an element, where said above.
        max_seq_len: the longest source or target.
        pad_id: padding in `src`; hidden unless a `src_keep` is given.
        pre_norm: norms before the sublayers, and one at the end of each stack.
        tie_embeddings: the output layer is the target embedding (Press and Wolf 2017).
        share_embeddings: source and target share one embedding too.

    Raises:
        ValueError: sizes that are not positive, or shared embeddings of unequal vocabularies.
    """

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        d_model: int = 512,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        d_ff: int = 2048,
        dropout: float = 0.1,
        max_seq_len: int = 2048,
        pad_id: int = 0,
        *,
        pre_norm: bool = False,
        tie_embeddings: bool = True,
        share_embeddings: bool = False,
    ) -> None:
        super().__init__()
        if min(src_vocab_size, tgt_vocab_size, max_seq_len) < 1:
            raise ValueError(
                f"src_vocab_size {src_vocab_size}, tgt_vocab_size {tgt_vocab_size} and "
                f"max_seq_len {max_seq_len} must be at least 1"
            )
        if share_embeddings and src_vocab_size != tgt_vocab_size:
            sizes = f"{src_vocab_size} and {tgt_vocab_size}"
            raise ValueError(f"shared embeddings need one vocabulary; the sizes are {sizes}")
        self.d_model, self.dropout = d_model, dropout
        self.max_seq_len, self.pad_id = max_seq_len, pad_id

        def stack(num_layers: int, cross: bool) -> TransformerStack:
            blocks = [
                TransformerBlock(
                    attention=MultiHeadAttention(d_model, num_heads),
                    feed_forward=FeedForward(d_model, d_ff, activation="relu"),
                    norm=partial(LayerNorm, d_model),
                    pre_norm=pre_norm,
                    cross_attention=MultiHeadAttention(d_model, num_heads) if cross else None,
                    dropout=dropout,
                )
                for _ in range(num_layers)
            ]
            return TransformerStack(blocks, LayerNorm(d_model) if pre_norm else None)

        self.tgt_embedding = nn.Embedding(tgt_vocab_size, d_model)
        self.src_embedding = (
            self.tgt_embedding if share_embeddings else nn.Embedding(src_vocab_size, d_model)
        )
        self.encoder = stack(num_encoder_layers, cross=False)
        self.decoder = stack(num_decoder_layers, cross=True)
        self.unembed = nn.Linear(d_model, tgt_vocab_size, bias=False)
        self.positions: Tensor
        table = sinusoidal_encoding(max_seq_len, d_model)  # (max_seq_len, D)
        self.register_buffer("positions", table, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):  # √D in front makes it variance 1
                nn.init.normal_(module.weight, std=d_model**-0.5)
        if tie_embeddings:
            self.unembed.weight = self.tgt_embedding.weight

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        *,
        src_keep: Tensor | None = None,
        tgt_keep: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of each next target token, given all earlier ones and the source.

        Args:
            src: ids (B, S).
            tgt: ids (B, T), starting with BOS in training and generation alike.
            src_keep: bool (B, S), True = a real token; None = wherever src is not `pad_id`.
            tgt_keep: bool (B, T); None = all. Padding at the end needs none, since a causal
                decoder cannot look there.

        Returns:
            (B, T, V).

        Raises ValueError for wrong shapes, lengths beyond `max_seq_len`, or ids out of range.
        """
        src_keep = src != self.pad_id if src_keep is None else src_keep
        memory = self.encode(src, src_keep=src_keep)
        return self.decode(tgt, memory, memory_keep=src_keep, tgt_keep=tgt_keep)

    def encode(self, src: Tensor, *, src_keep: Tensor | None = None) -> Tensor:
        """Source ids (B, S) -> memory (B, S, D)."""
        src_keep = src != self.pad_id if src_keep is None else src_keep
        x = self._embed(self.src_embedding, src, 0)  # (B, S, D)
        return self.encoder(x, keep=keep_over_keys("src_keep", src_keep, src))

    def decode(
        self,
        tgt: Tensor,
        memory: Tensor,
        *,
        memory_keep: Tensor | None = None,
        tgt_keep: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Target ids (B, T) and memory (B, S, D) -> logits (B, T, V).

        With a `cache`, `tgt` holds only tokens new to it; `tgt_keep` still covers all of them.
        What does not fit is refused before the cache is touched.
        """
        start = 0 if cache is None else cache.length
        x = self._embed(self.tgt_embedding, tgt, start)  # (B, T, D)
        B, T, D = x.shape
        if memory.dim() != 3 or (memory.shape[0], memory.shape[2]) != (B, D):
            raise ValueError(f"memory has shape {tuple(memory.shape)}; it must be ({B}, S, {D})")
        x = self.decoder(
            x,
            memory=memory,
            keep=keep_over_keys("tgt_keep", tgt_keep, torch.empty(B, start + T, device="meta")),
            memory_keep=keep_over_keys("memory_keep", memory_keep, memory),
            causal=True,
            caches=None if cache is None else cache.own,
            cross_caches=None if cache is None else cache.cross,
        )
        return self.unembed(x)  # (B, T, V)

    def new_cache(self) -> DecoderCache:
        """Return an empty cache for `decode`."""
        return DecoderCache(len(self.decoder))

    def _embed(self, embedding: nn.Embedding, ids: Tensor, start: int) -> Tensor:
        """Embed ids (B, T) that stand at positions start, start + 1, …: (B, T, D)."""
        if ids.dim() != 2:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; they must be (batch, length)")
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"ids have dtype {ids.dtype}; they must be int64 or int32")
        end = start + ids.shape[1]
        if end > self.max_seq_len:
            raise ValueError(f"{end} positions; this model has max_seq_len {self.max_seq_len}")
        if ids.is_cpu and ids.numel():  # on an accelerator, reading an id would stall every step
            for i in map(int, ids.aminmax()):
                if not 0 <= i < embedding.num_embeddings:
                    raise ValueError(f"id {i} is outside [0, {embedding.num_embeddings})")
        x = embedding(ids) * math.sqrt(self.d_model) + self.positions[start:end]  # (B, T, D)
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class Translator(Protocol):
    """What the decoders below need of a model: `Transformer`, topic 08's T5 and BART."""

    max_seq_len: int
    pad_id: int

    def encode(self, *args: Any, **kwargs: Any) -> Tensor: ...
    def decode(self, *args: Any, **kwargs: Any) -> Tensor: ...
    def new_cache(self) -> DecoderCache: ...


@torch.no_grad()
def greedy_translate(
    model: Translator,
    src: Tensor,
    *,
    bos_id: int,
    eos_id: int,
    max_new_tokens: int | None = None,
    src_keep: Tensor | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Translate by taking the likeliest token at every step.

    Args:
        model: in whatever mode it is; call `model.eval()` first.
        src: ids (B, S); src_keep as in `Transformer.forward`.
        bos_id, eos_id: what starts and ends a target.
        max_new_tokens: the longest translation, EOS included; None = S + 50, the paper's rule.
        use_cache: False recomputes everything at every step, for comparison.

    Returns:
        One list of ids a sentence, without BOS and EOS.

    Raises:
        ValueError: wrong shapes or lengths.
    """
    keep = src != model.pad_id if src_keep is None else src_keep  # (B, S)
    memory = model.encode(src, src_keep=keep)  # (B, S, D)
    limit = _length_limit(model, src, max_new_tokens)
    cache = model.new_cache() if use_cache else None
    tgt = src.new_full((src.shape[0], 1), bos_id)  # (B, 1)
    live = list(range(src.shape[0]))  # which sentence each row belongs to
    translations: list[list[int]] = [[] for _ in live]
    for _ in range(limit):
        new = tgt if cache is None else tgt[:, cache.length :]
        logits = model.decode(new, memory, memory_keep=keep, cache=cache)
        chosen = logits[:, -1].argmax(dim=-1, keepdim=True)  # (rows, 1)
        tgt = torch.cat((tgt, chosen), dim=1)
        going = []
        for row, token in enumerate(chosen.flatten().tolist()):
            if token != eos_id:
                translations[live[row]].append(token)
                going.append(row)
        if not going:
            break
        if len(going) < len(live):  # finished sentences leave the batch
            index = torch.tensor(going, device=src.device)
            live = [live[row] for row in going]
            tgt, memory, keep = tgt[index], memory[index], keep[index]
            if cache is not None:
                cache.reorder(index)
    return translations


@torch.no_grad()
def beam_translate(
    model: Translator,
    src: Tensor,
    *,
    bos_id: int,
    eos_id: int,
    num_beams: int = 4,
    length_penalty: float = 0.6,
    max_new_tokens: int | None = None,
    src_keep: Tensor | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Translate by following the `num_beams` likeliest beginnings at every step.

    A translation Y of n tokens, EOS among them, scores log P(Y) / ((5 + n) / 6)^length_penalty
    (Wu et al. 2016, equation 14, without coverage); with 0 the shortest tend to win, since every
    token costs probability. The defaults are the 2017 paper's. A sentence is finished when no
    live beam could beat its best finished translation any more, so stopping early loses nothing.

    Args and Returns: as `greedy_translate`.

    Raises:
        ValueError: fewer than one beam, a bad length penalty, wrong shapes or lengths.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; it must be at least 1")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty is {length_penalty}; it must be finite, not negative")
    keep = src != model.pad_id if src_keep is None else src_keep  # (B, S)
    memory = model.encode(src, src_keep=keep)  # (B, S, D)
    limit = _length_limit(model, src, max_new_tokens)
    cache = model.new_cache() if use_cache else None
    norms = [((5 + n) / 6) ** length_penalty for n in range(limit + 1)]
    # A live sentence has `width` rows, one after another; they start as one and branch.
    live, width = list(range(src.shape[0])), 1
    tgt = src.new_full((src.shape[0], 1), bos_id)  # (rows, 1)
    scores = memory.new_zeros(src.shape[0], 1, dtype=torch.float32)  # (live, width)
    best: list[tuple[float, list[int]]] = [(-math.inf, []) for _ in live]
    for length in range(1, limit + 1):
        new = tgt if cache is None else tgt[:, cache.length :]
        logits = model.decode(new, memory, memory_keep=keep, cache=cache)[:, -1]  # (rows, V)
        V = logits.shape[-1]
        totals = torch.log_softmax(logits.float(), dim=-1).view(len(live), width, V)
        totals = (totals + scores[:, :, None]).flatten(1)  # (live, width * V)
        # At most one candidate a beam is EOS, so 2 * num_beams leave num_beams that go on.
        top_scores, top = totals.topk(min(2 * num_beams, totals.shape[1]))
        next_width = min(num_beams, width * (V - 1))
        prefixes = tgt[:, 1:].tolist()
        next_live, branches = [], []
        for i, (sentence, totals_i, top_i) in enumerate(
            zip(live, top_scores.tolist(), top.tolist(), strict=True)
        ):
            going = []
            for rank, (total, candidate) in enumerate(zip(totals_i, top_i, strict=True)):
                row, token = i * width + candidate // V, candidate % V
                if token != eos_id and len(going) < next_width:
                    going.append((total, row, token))
                if rank < num_beams and (token == eos_id or length == limit):
                    ids = prefixes[row] + ([] if token == eos_id else [token])
                    best[sentence] = max(best[sentence], (total / norms[length], ids))
            # Scores only fall, and no divisor is larger than the one at the limit.
            if going and best[sentence][0] < going[0][0] / norms[limit]:
                next_live.append(sentence)
                branches += going
        if not next_live:
            break
        next_scores, rows, tokens = zip(*branches, strict=True)
        index = torch.tensor(rows, device=src.device)
        moved = next_live != live or next_width != width
        live, width = next_live, next_width
        scores = scores.new_tensor(next_scores).view(len(live), width)
        tgt = torch.cat((tgt[index], tgt.new_tensor(tokens)[:, None]), dim=1)
        if moved:  # otherwise each row still belongs to the sentence that it belonged to
            memory, keep = memory[index], keep[index]
        if cache is not None:
            cache.reorder(index, cross=moved)
    return [ids for _, ids in best]


def _length_limit(model: Translator, src: Tensor, max_new_tokens: int | None) -> int:
    """Return how many tokens a translation may have."""
    longest = model.max_seq_len
    if max_new_tokens is None:
        return min(src.shape[1] + 50, longest)
    if not 1 <= max_new_tokens <= longest:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be from 1 to {longest}")
    return max_new_tokens
