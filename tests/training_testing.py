"""Small things to train in tests: a model, batches, a step, a tokenizer of single bytes, shards."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpe import train_bpe
from corpora import Document
from gpt import GPT, GPTConfig
from lr_schedules import Schedule, constant
from token_dataset import TokenShards, write_shards
from tokenizer import Tokenizer
from training import IGNORE_INDEX, LossFn, TrainingConfig, TrainingStep, next_token_loss

VOCAB, ROWS, SEQ = 29, 12, 9


def tiny_gpt(seed: int = 0, **options: Any) -> GPT:
    """Two layers of width 16 for sequences up to 32 of `VOCAB` tokens."""
    generator = torch.Generator().manual_seed(seed)
    config = GPTConfig(
        **{
            "vocab_size": VOCAB,
            "d_model": 16,
            "num_heads": 2,
            "num_layers": 2,
            "max_seq_len": 32,
            **options,
        }
    )
    return GPT(config, generator=generator)


def batch_of(seed: int, *, ignored: bool = True) -> tuple[Tensor, Tensor]:
    """(ids, targets), (ROWS, SEQ) each; with `ignored`, each row has another number of targets."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(VOCAB, (ROWS, SEQ + 1), generator=generator)
    ids, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    if ignored:
        for row in range(ROWS):
            targets[row, : row * SEQ // ROWS] = IGNORE_INDEX
    return ids, targets


def config_of(**options: Any) -> TrainingConfig:
    """A step of ROWS rows of SEQ tokens in one piece, without clipping, but for `options`."""
    return TrainingConfig(
        **{
            "tokens_per_step": ROWS * SEQ,
            "seq_len": SEQ,
            "micro_batch_size": ROWS,
            "clip_norm": None,
            **options,
        }
    )


def step_of(
    model: nn.Module,
    *,
    lr: float = 0.1,
    schedule: Schedule | None = None,
    loss: LossFn = next_token_loss,
    reduce: Any = None,
    **options: Any,
) -> TrainingStep:
    """A TrainingStep with plain gradient descent, `config_of(**options)`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return TrainingStep(
        model,
        optimizer,
        schedule or constant(),
        config_of(**options),
        loss=loss,
        reduce_gradients=reduce,
    )


def averages(step: TrainingStep) -> list[Tensor]:
    """The averaged weights that a step keeps."""
    assert step.average is not None
    return step.average.averages


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of a model, copied, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between tensors of the same name; both have the same names."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def plain_gradients(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """What one forward and backward pass over the whole batch gives, in PyTorch's own words."""
    model = copy.deepcopy(model)
    ids, targets = batch
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
    loss.backward()
    return gradients(model), loss.item()


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """The real tokenizer without a merge: id 0 ends a text, byte b is id b + 1."""
    return Tokenizer.from_bpe(train_bpe(["x"], 256))


def text_shards(folder: Path, *texts: str) -> TokenShards:
    """Texts as byte tokens on disk."""
    documents = [Document(f"text {number}", text) for number, text in enumerate(texts)]
    write_shards(documents, byte_tokenizer(), folder)
    return TokenShards(folder)
