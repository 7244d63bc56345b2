"""Turning a model into text: generation, streaming and beam search.

A language model gives a distribution over the next token. Everything here is about choosing from
it, feeding the choice back, and stopping. It works for any decoder of this course: it knows a
model by `forward(ids, *, cache, keep, positions, last_only)`, `config.max_seq_len` and
`new_cache(batch_size, max_seq_len)`, nothing else.

The rules for choosing are `sampling`'s, and importable from here.

README, "Sampling" and "Beam search". Letters: B rows, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kv_cache import KVCache
from sampling import GREEDY, SamplingConfig, sample_next, warp_logits

__all__ = [
    "GREEDY",
    "BeamHypothesis",
    "DecoderModel",
    "SamplingConfig",
    "TextCodec",
    "beam_search",
    "generate",
    "sample_next",
    "stream",
    "stream_text",
    "warp_logits",
]


class DecoderModel(Protocol):
    """What generation needs of a model. `GPT` is one, and every later decoder."""

    config: Any
    training: bool

    def __call__(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        keep: Tensor | None = None,
        positions: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor: ...
    def new_cache(self, batch_size: int, max_seq_len: int | None = None) -> KVCache: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def modules(self) -> Iterator[nn.Module]: ...


class TextCodec(Protocol):
    """What `stream_text` needs of a tokenizer; topic 06's `Tokenizer` is one."""

    @property
    def eos_id(self) -> int | None: ...
    def encode(self, text: str, /) -> list[int]: ...
    def decode(self, ids: list[int], /) -> str: ...


def generate(
    model: DecoderModel,
    prompts: Tensor | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
    generator: torch.Generator | None = None,
    eos_id: int | Iterable[int] | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Continue each prompt, all of them at once.

    Args:
        model: any decoder; it is run in evaluation mode and left in the mode it was in.
        prompts: (B, T) int64, or lists of ids whose lengths may differ.
        max_new_tokens: how many tokens to add at most.
        sampling: how to choose them.
        generator: where randomness comes from; None = PyTorch's global generator.
        eos_id: the token, or tokens, that end a text.
        use_cache: keep keys and values; without, the same result at quadratic cost.

    Returns:
        Each prompt's continuation, without the prompt. One that ended has its `eos_id` last.

    Raises:
        ValueError: no prompts, an empty prompt, a negative `max_new_tokens`, or more tokens in
            all than `model.config.max_seq_len`.
    """
    ids, starts = _left_padded(model, prompts, max_new_tokens)
    stops = _stop_ids(eos_id)
    text = _Text(model, ids, starts, ids.shape[1] + max_new_tokens, use_cache)
    choices = _choose_tokens(text, max_new_tokens, sampling, generator)
    if not stops:  # nothing to look at on the way, so an accelerator is never waited for
        chosen = list(choices)
        return torch.stack(chosen, dim=1).tolist() if chosen else [[] for _ in range(len(ids))]
    rows: list[list[int]] = [[] for _ in range(len(ids))]
    running = rows
    for chosen in choices:
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if not row or row[-1] not in stops:
                row.append(token)
        running = [row for row in running if row[-1] not in stops]
        if not running:
            break
    return rows


def stream(
    model: DecoderModel,
    prompt_ids: Sequence[int] | Tensor,
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
    generator: torch.Generator | None = None,
    eos_id: int | Iterable[int] | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Continue one prompt, handing over each token as soon as it is chosen.

    The tokens are those of `generate`, the end token included. `prompt_ids` is a list of ids or
    a (T,) tensor; other arguments and errors as in `generate`. Errors come from the call itself,
    not from the first `next`.
    """
    prompt = prompt_ids.tolist() if isinstance(prompt_ids, Tensor) else list(prompt_ids)
    ids, starts = _left_padded(model, [prompt], max_new_tokens)
    stops = _stop_ids(eos_id)
    text = _Text(model, ids, starts, ids.shape[1] + max_new_tokens, use_cache)
    choices = _choose_tokens(text, max_new_tokens, sampling, generator)

    def tokens() -> Iterator[int]:
        for chosen in choices:
            token = int(chosen)
            yield token
            if token in stops:
                return

    return tokens()


def stream_text(
    model: DecoderModel,
    tokenizer: TextCodec,
    text: str,
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[str]:
    """Continue a text, handing over each piece of text as soon as it is certain.

    A token of a byte-level tokenizer may be part of a character: é is two bytes, an emoji four.
    Decoding such a part gives U+FFFD, and the next token changes what it was; so a last U+FFFD is
    held back until it is known. The pieces joined are `tokenizer.decode` of all the tokens.

    Stops at the tokenizer's `eos_id`, which is not handed over. An empty text starts from that
    token, as every document in training did. Other arguments and errors as in `generate`.
    """
    eos_id = tokenizer.eos_id
    prompt = tokenizer.encode(text)
    if not prompt and eos_id is not None:
        prompt = [eos_id]
    tokens = stream(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        generator=generator,
        eos_id=eos_id,
        use_cache=use_cache,
    )
    return _decode_stream(tokenizer, (token for token in tokens if token != eos_id))


@dataclass(frozen=True, kw_only=True)
class BeamHypothesis:
    """A finished beam: its tokens (the end token included) and log P / length^length_penalty."""

    ids: list[int]
    score: float


@torch.inference_mode()
def beam_search(
    model: DecoderModel,
    prompts: Tensor | Sequence[Sequence[int]],
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    eos_id: int | Iterable[int] | None = None,
    early_stopping: bool = False,
    use_cache: bool = True,
) -> list[list[BeamHypothesis]]:
    """Look for the likeliest continuations by following the `num_beams` likeliest beginnings.

    A continuation of n tokens scores log P / n^length_penalty. With 0 short ones win, because
    every token costs probability; with 1 the score is the mean log-probability of a token.

    Args:
        model, prompts, max_new_tokens, eos_id, use_cache: as in `generate`.
        num_beams: how many beginnings are followed for each prompt.
        length_penalty: the exponent above; larger favours longer texts.
        early_stopping: stop a prompt at `num_beams` finished continuations. False goes on while
            the likeliest beginning, scored at its present length, beats the worst of them.

    Returns:
        For each prompt its `num_beams` best finished continuations, best first.

    Raises:
        ValueError: as `generate`, fewer than one beam, or more beams than tokens to choose from.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; it must be at least 1")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; a beam needs at least 1")
    ids, starts = _left_padded(model, prompts, max_new_tokens)
    stops = _stop_ids(eos_id)
    B, T = ids.shape
    text = _Text(model, ids, starts, T + max_new_tokens, use_cache)
    totals = torch.zeros(B, 1, device=ids.device)  # (B, width): each beam's log P; at first one
    found = [_Finished(num_beams, length_penalty, early_stopping) for _ in range(B)]
    for length in range(1, max_new_tokens + 1):
        log_p = text.next_logits().float().log_softmax(dim=1)  # (B · width, V)
        width, V = totals.shape[1], log_p.shape[1]
        scores = (totals.flatten()[:, None] + log_p).view(B, width * V)
        # At most len(stops) candidates a beam end it, so with so many, num_beams can go on.
        wanted = num_beams * max(2, 1 + len(stops))
        scores, flat = scores.topk(min(wanted, width * V), dim=1)  # (B, candidates), best first
        tokens = flat % V
        rows = flat // V + width * torch.arange(B, device=ids.device)[:, None]
        next_width = min(num_beams, width * (V - len(stops)))
        going: list[list[int]] = []  # for each prompt, which of its candidates go on
        for prompt, *columns in zip(
            found, scores.tolist(), rows.tolist(), tokens.tolist(), strict=True
        ):
            ranks = []
            for rank, (total, row, token) in enumerate(zip(*columns, strict=True)):
                if token not in stops and length < max_new_tokens:
                    ranks.append(rank)
                elif rank < num_beams:
                    prompt.add([*text.added(row), token], total)
            going.append(ranks[:next_width])
        if length == max_new_tokens:
            break
        kept = torch.tensor(going, device=ids.device)  # (B, next_width)
        totals = scores.gather(1, kept)
        for prompt, best_total in zip(found, totals[:, 0].tolist(), strict=True):
            prompt.update(best_total, length)
        if all(prompt.done for prompt in found):
            break
        text.reorder(rows.gather(1, kept).flatten())
        text.append(tokens.gather(1, kept).flatten())
    return [prompt.best for prompt in found]


class _Finished:
    """One prompt's best finished continuations, and whether more are worth looking for."""

    def __init__(self, num_beams: int, length_penalty: float, early_stopping: bool) -> None:
        self.best: list[BeamHypothesis] = []  # best first
        self.done = False
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping

    def add(self, ids: list[int], total: float) -> None:
        """Consider a continuation with log-probability `total`."""
        if not self.done:
            score = total / len(ids) ** self._length_penalty
            self.best.append(BeamHypothesis(ids=ids, score=score))
            self.best.sort(key=lambda hypothesis: -hypothesis.score)
            del self.best[self._num_beams :]

    def update(self, best_total: float, length: int) -> None:
        """Decide whether this prompt is done, given the likeliest beam that goes on."""
        if len(self.best) == self._num_beams:
            hope = best_total / length**self._length_penalty
            self.done = self.done or self._early_stopping or hope <= self.best[-1].score


class _Text:
    """Rows of tokens, and how much of them the model has seen.

    Ragged prompts stand left-padded: row b's text begins at column `starts[b]`.
    """

    def __init__(
        self,
        model: DecoderModel,
        ids: Tensor,
        starts: Tensor | None,
        capacity: int,
        use_cache: bool,
    ) -> None:
        B, T = ids.shape
        self._model = model
        self._prompt_length = T
        self._length = T
        self._starts = starts
        self._ids = ids.new_zeros(B, capacity)  # (B, capacity)
        self._ids[:, :T] = ids
        self._cache = model.new_cache(B, capacity) if use_cache else None
        if self._cache is not None and starts is not None:
            self._cache.starts = starts

    def next_logits(self) -> Tensor:
        """Run the model over what it has not seen: (B, V), the logits of each row's next token."""
        with _evaluating(self._model):
            if self._cache is not None:
                unseen = self._ids[:, self._cache.length : self._length]  # (B, T)
                return self._model(unseen, cache=self._cache, last_only=True)[:, -1]
            ids = self._ids[:, : self._length]  # (B, S)
            if self._starts is None:
                return self._model(ids, last_only=True)[:, -1]
            columns = torch.arange(self._length, device=ids.device)  # (S,)
            positions = columns - self._starts[:, None]  # (B, S), negative in the padding
            keep = (positions >= 0)[:, None, None, :]  # (B, 1, 1, S)
            positions = positions.clamp(min=0)
            return self._model(ids, keep=keep, positions=positions, last_only=True)[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Add one token, (B,), to every row."""
        self._ids[:, self._length] = tokens
        self._length += 1

    def reorder(self, index: Tensor) -> None:
        """Make row i the old row index[i]; there may be more or fewer rows than before."""
        self._ids = self._ids[index]
        self._starts = None if self._starts is None else self._starts[index]
        if self._cache is not None:
            self._cache.reorder(index)

    def added(self, row: int) -> list[int]:
        """Return the tokens after the prompt of one row."""
        return self._ids[row, self._prompt_length : self._length].tolist()

    def previous(self) -> Tensor:
        """Return every row's tokens, (B, S), with -1 for padding."""
        ids = self._ids[:, : self._length]
        if self._starts is None:
            return ids
        columns = torch.arange(self._length, device=ids.device)  # (S,)
        return ids.masked_fill(columns < self._starts[:, None], -1)


@torch.inference_mode()
def _choose_tokens(
    text: _Text, max_new_tokens: int, sampling: SamplingConfig, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Yield, step by step, every row's next token, (B,) int64."""
    penalised = sampling.repetition_penalty != 1.0
    for _ in range(max_new_tokens):
        logits = text.next_logits()  # (B, V)
        previous = text.previous() if penalised else None
        chosen = sample_next(logits, sampling, generator=generator, previous=previous)
        yield chosen
        text.append(chosen)


def _decode_stream(tokenizer: TextCodec, tokens: Iterator[int]) -> Iterator[str]:
    """Decode token by token, holding back a last character that may be incomplete.

    `pending` is decoded as a whole each time and only what is new of it is handed over. The token
    before it is decoded along with it, for tokenizers that treat the first token of a text in
    their own way, such as dropping its leading space.
    """
    context: list[int] = []
    pending: list[int] = []
    shown = 0  # characters of decode(context + pending) that have been handed over
    decoded = ""
    for token in tokens:
        pending.append(token)
        decoded = tokenizer.decode(context + pending)
        certain = len(decoded) - decoded.endswith("\ufffd")
        if certain > shown:
            yield decoded[shown:certain]
            shown = certain
        if certain == len(decoded):
            context, pending = pending[-1:], []
            shown = len(tokenizer.decode(context))
    if pending and len(decoded) > shown:
        yield decoded[shown:]


@contextmanager
def _evaluating(model: DecoderModel) -> Iterator[None]:
    """Switch dropout and its like off, and each module back to its own mode afterwards."""
    switched = [module for module in model.modules() if module.training] if model.training else []
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True


def _left_padded(
    model: DecoderModel, prompts: Tensor | Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Check the prompts; return ids (B, T) on the model's device and where each row begins.

    None stands for "all at 0".
    """
    device = next(model.parameters()).device
    rows: list[list[int]]
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2 or prompts.dtype != torch.int64:
            raise ValueError(
                f"prompts is {tuple(prompts.shape)} {prompts.dtype}; it must be (batch, length) "
                "int64, or lists of ids"
            )
        rows = prompts.tolist()
    else:
        rows = [list(prompt) for prompt in prompts]
    if not rows or not all(rows):
        raise ValueError("every prompt needs at least one token, such as the end-of-text token")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must not be negative")
    T = max(len(row) for row in rows)
    if T + max_new_tokens > model.config.max_seq_len:
        raise ValueError(
            f"a prompt of {T} tokens and {max_new_tokens} new ones are more than the model's "
            f"max_seq_len {model.config.max_seq_len}"
        )
    padded = torch.tensor([[0] * (T - len(row)) + row for row in rows], device=device)  # (B, T)
    starts = torch.tensor([T - len(row) for row in rows], device=device)  # (B,)
    return padded, starts if any(len(row) < T for row in rows) else None


def _stop_ids(eos_id: int | Iterable[int] | None) -> frozenset[int]:
    """Return the end tokens as a set."""
    if eos_id is None:
        return frozenset()
    return frozenset([eos_id] if isinstance(eos_id, int) else eos_id)
