"""Train the 2017 encoder-decoder on pairs of sentences, and score what it writes.

`ParallelText` turns sentences into batches of ids, `train_transformer` runs the paper's recipe
(section 5: Adam with β₂ = 0.98, warm-up and 1/√step decay, label smoothing 0.1), and
`score_translations` reports BLEU and exact matches. The page's section "The encoder-decoder,
whole" says what each is for.

Letters: B batch, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bleu import corpus_bleu
from numerics import cross_entropy
from sequence_data import Vocabulary, pad_sequences
from train_loop import fit
from transformer import Transformer, beam_translate, greedy_translate

WordPair = tuple[list[str], list[str]]


@dataclass(frozen=True, kw_only=True)
class TranslationScore:
    """How good translations are.

    bleu: per cent. exact: share of sentences that equal their reference word for word.
    exact_unseen: the same among sentences whose source is not in the training text; NaN if none.
    unseen: how many those are.
    """

    bleu: float
    exact: float
    exact_unseen: float
    unseen: int


class ParallelText:
    """Sentence pairs split into training and held-out text, with the two vocabularies.

    Words come from the training pairs alone; a word first met afterwards is UNKNOWN.

    Raises:
        ValueError: no pairs on one of the sides.
    """

    def __init__(self, train: Sequence[WordPair], held_out: Sequence[WordPair]) -> None:
        if not train or not held_out:
            raise ValueError(
                f"there must be pairs to train on and to score; got {len(train)} and "
                f"{len(held_out)}"
            )
        self.train = list(train)
        self.held_out = list(held_out)
        self.source = Vocabulary.build(source for source, _ in self.train)
        self.target = Vocabulary.build(target for _, target in self.train)
        self._seen = {tuple(source) for source, _ in self.train}
        self.pad_id = self.source.id(Vocabulary.PAD)
        self.begin_id = self.target.id(Vocabulary.BEGIN)
        self.end_id = self.target.id(Vocabulary.END)

    def is_seen(self, source: Sequence[str]) -> bool:
        """Is this sentence a source of the training text?"""
        return tuple(source) in self._seen

    def sources(self, pairs: Sequence[WordPair]) -> Tensor:
        """Source ids (B, S), padded on the right."""
        ids, _ = pad_sequences([self.source.encode(s) for s, _ in pairs], pad_id=self.pad_id)
        return ids

    def batch(self, pairs: Sequence[WordPair]) -> tuple[Tensor, Tensor, Tensor]:
        """(source (B, S), what the decoder reads (B, T), what it must say (B, T)).

        The decoder reads BEGIN w1 … wn and must say w1 … wn END: the same words, one place apart.
        Padding among the targets is -100, which the loss leaves out.
        """
        targets = [self.target.encode(target) for _, target in pairs]
        reads, _ = pad_sequences([[self.begin_id, *ids] for ids in targets], pad_id=self.pad_id)
        says, keep = pad_sequences([[*ids, self.end_id] for ids in targets], pad_id=self.pad_id)
        return self.sources(pairs), reads, says.masked_fill(~keep, -100)

    def batches(self, *, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Training batches without end; sentences of like length stand together."""
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.tensor([len(source) for source, _ in self.train], dtype=torch.float32)
        while True:
            noise = torch.rand(len(lengths), generator=generator)
            order = (lengths + noise).argsort()  # by length, equals in random order
            groups = order.split(batch_size)
            for i in torch.randperm(len(groups), generator=generator).tolist():
                yield self.batch([self.train[j] for j in groups[i].tolist()])


def paper_rate(step: int, *, peak: float, warmup: int) -> float:
    """The learning rate of step 1, 2, …: linear to `peak` over `warmup` steps, then 1/√step.

    Vaswani et al. 2017, equation 3, with the peak as a number of its own (theirs is
    1/√(D · warmup)). `warmup=0` begins at the peak.
    """
    if step < 1 or warmup < 0:
        raise ValueError(f"step must be at least 1 and warmup 0; got {step} and {warmup}")
    if not warmup:
        return peak
    return peak * min(step / warmup, (warmup / step) ** 0.5)


def train_with_adam(
    model: nn.Module,
    loss_of: Callable[..., Tensor],
    batches: Iterator[Any],
    *,
    steps: int,
    rate: Callable[[int], float],
    clip: float | None = 1.0,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Take steps of Adam (β = 0.9, 0.98) on `loss_of(model, *batch)`; return the losses.

    Args:
        rate: from the step's number, counted from 1, to its learning rate.
        clip: largest norm of the gradient; None leaves it as it is.
        on_step: called with the step's number and its loss.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.98), eps=1e-9)
    losses: list[float] = []

    def step(batch: Any) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = rate(len(losses) + 1)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, *batch)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(len(losses), losses[-1])
        return {"loss": losses[-1]}

    model.train()
    fit(step, batches, max_steps=steps)
    model.eval()
    return losses


def train_transformer(
    model: Transformer,
    text: ParallelText,
    *,
    steps: int,
    batch_size: int = 64,
    peak: float = 2e-3,
    warmup: int = 100,
    label_smoothing: float = 0.1,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """The paper's recipe on this text; returns the (smoothed) training losses.

    Where the paper averages its last checkpoints, the rate falls to zero over the last quarter.
    """

    def loss_of(model: nn.Module, src: Tensor, reads: Tensor, says: Tensor) -> Tensor:
        logits = model(src, reads)  # (B, T, V)
        return cross_entropy(logits, says, label_smoothing=label_smoothing)

    return train_with_adam(
        model,
        loss_of,
        text.batches(batch_size=batch_size, seed=seed),
        steps=steps,
        rate=lambda step: (
            paper_rate(step, peak=peak, warmup=warmup) * min(1.0, 4 * (steps + 1 - step) / steps)
        ),
        on_step=on_step,
    )


def translate_words(
    model: Transformer,
    text: ParallelText,
    sources: Sequence[Sequence[str]],
    *,
    num_beams: int = 1,
    batch_size: int = 128,
) -> list[list[str]]:
    """Translate sentences of words: greedily with one beam, by beam search with more."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    found: list[list[str]] = [[] for _ in sources]
    search = greedy_translate if num_beams == 1 else partial(beam_translate, num_beams=num_beams)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        src = text.sources([(list(sources[i]), []) for i in rows])  # (B, S)
        written = search(model, src, bos_id=text.begin_id, eos_id=text.end_id)
        for i, ids in zip(rows, written, strict=True):
            found[i] = text.target.decode(ids, skip_specials=False)
    return found


def score_translations(
    model: Transformer, text: ParallelText, *, num_beams: int = 1
) -> TranslationScore:
    """Translate the held-out sentences and compare with their references."""
    sources = [source for source, _ in text.held_out]
    references = [target for _, target in text.held_out]
    hypotheses = translate_words(model, text, sources, num_beams=num_beams)
    same = [h == r for h, r in zip(hypotheses, references, strict=True)]
    new = [ok for ok, source in zip(same, sources, strict=True) if not text.is_seen(source)]
    return TranslationScore(
        bleu=corpus_bleu(hypotheses, references).score,
        exact=sum(same) / len(same),
        exact_unseen=sum(new) / len(new) if new else float("nan"),
        unseen=len(new),
    )
