"""One model for four tasks, images as sentences, and what cheaper attention costs in quality.

`transformer_variants.py` runs these after `variant_experiments`' comparisons.
Letters: B batch, S source length, T target length or length, N patches.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention import AttentionFn, MultiHeadAttention
from bert import MaskedLanguageModel
from bleu import corpus_bleu
from digits_data import load_digit_images
from lab import count_parameters, interval, progress
from lr_schedules import linear
from numerics import cross_entropy
from pretraining_objectives import mask_tokens
from sequence_data import Vocabulary, pad_sequences
from t5 import T5, T5Config, generate_from, shift_right
from translation import train_with_adam
from variant_experiments import Reading, batches_of
from variant_scale import VariantScale
from vit import ViT, ViTConfig, attention_rollout
from world_tasks import (
    END_ID,
    MASK_ID,
    PAD_ID,
    SPECIALS,
    TASKS,
    TextTask,
    many_task_world,
    task_vocabulary,
    text_tasks,
)

# --- four tasks -------------------------------------------------------------------------------


def many_tasks(scale: VariantScale) -> tuple[dict[str, Any], list[TextTask], list[list[str]]]:
    """Train one T5 on four tasks at once and score each on stories that it has not seen.

    Returns: the findings, the test examples, and what the model wrote for each of them.
    """
    world = many_task_world()
    vocabulary = task_vocabulary(world)
    train = text_tasks(world, scale.task_examples, seed=1)
    test = text_tasks(world, scale.task_tests * len(TASKS), seed=2)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=scale.d_model,
        num_heads=scale.num_heads,
        num_layers=scale.num_layers,
        d_ff=4 * scale.d_model,
        dropout=0.0,
        pad_id=PAD_ID,
        eos_id=END_ID,
        start_id=PAD_ID,
        num_buckets=32,
        max_distance=128,
    )
    model = T5(config, generator=torch.Generator().manual_seed(0))
    steps = scale.task_steps
    schedule = linear(steps, warmup_steps=max(1, steps // 10))
    bar = progress(desc="four tasks", total=steps, unit="step")

    def count(_step: int, _loss: float) -> None:
        bar.update(1)

    with bar:
        train_with_adam(
            model,
            lambda model, src, tgt, says: cross_entropy(model(src, tgt), says),
            task_batches(train, vocabulary, batch_size=scale.batch_size, seed=0),
            steps=steps,
            rate=lambda step: scale.pretrain_rate * schedule(step),
            on_step=count,
        )
    wrote = answer_tasks(model, vocabulary, test)
    rows = score_tasks(test, wrote, train)
    return (
        {
            "tasks": {
                "columns": ["task", "examples", "exact, %", "words, %", "best constant answer, %"],
                "rows": rows,
                "formats": ["", ",d", ".1f", ".1f", ".1f"],
            },
            "task_exact": {row[0]: row[2] for row in rows},
            "task_bleu": {
                task: corpus_bleu(
                    [w for e, w in zip(test, wrote, strict=True) if e.task == task],
                    [e.target for e in test if e.task == task],
                ).score
                for task in ("translate", "summarise")
            },
            "task_parameters": count_parameters(model),
            "task_examples": scale.task_examples,
        },
        test,
        wrote,
    )


def task_batches(
    examples: Sequence[TextTask], vocabulary: Vocabulary, *, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches without end, the tasks mixed: (source (B, S), decoder's input (B, T), targets)."""
    sources = [vocabulary.encode(example.source) for example in examples]
    targets = [[*vocabulary.encode(example.target), END_ID] for example in examples]
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(examples), (batch_size,), generator=generator).tolist()
        src, _ = pad_sequences([sources[i] for i in chosen], pad_id=PAD_ID)
        says, keep = pad_sequences([targets[i] for i in chosen], pad_id=PAD_ID)
        says = says.masked_fill(~keep, -100)
        yield src, shift_right(says, PAD_ID, pad_id=PAD_ID), says


def answer_tasks(model: T5, vocabulary: Vocabulary, tests: Sequence[TextTask]) -> list[list[str]]:
    """What the model writes for each source, greedily, in words."""
    order = sorted(range(len(tests)), key=lambda i: len(tests[i].source))
    wrote: list[list[str]] = [[] for _ in tests]
    for first in range(0, len(order), 100):
        rows = order[first : first + 100]
        src, _ = pad_sequences([vocabulary.encode(tests[i].source) for i in rows], pad_id=PAD_ID)
        for i, ids in zip(rows, generate_from(model, src, max_new_tokens=40), strict=True):
            wrote[i] = vocabulary.decode(ids)
    return wrote


def score_tasks(
    tests: Sequence[TextTask], wrote: Sequence[list[str]], train: Sequence[TextTask]
) -> list[list[Any]]:
    """A row a task: its name, examples, exact matches, the share of words that are right (F1, their
    order aside), and what the commonest answer of the training text would get.
    """
    rows: list[list[Any]] = []
    for task in TASKS:
        pairs = [(e.target, w) for e, w in zip(tests, wrote, strict=True) if e.task == task]
        wanted = [target for target, _ in pairs]
        exact = sum(target == written for target, written in pairs) / len(pairs)
        answers = Counter(tuple(example.target) for example in train if example.task == task)
        commonest = list(answers.most_common(1)[0][0])
        constant = sum(target == commonest for target in wanted) / len(wanted)
        words = sum(word_f1(written, target) for target, written in pairs) / len(pairs)
        rows.append([task, len(pairs), 100 * exact, 100 * words, 100 * constant])
    return rows


def word_f1(written: Sequence[str], wanted: Sequence[str]) -> float:
    """Twice the common words over all words of both: 1 for the same words in any order."""
    common = sum((Counter(written) & Counter(wanted)).values())
    return 2 * common / (len(written) + len(wanted)) if written or wanted else 1.0


# --- images -----------------------------------------------------------------------------------


class DigitReader(NamedTuple):
    """found: the findings. model: the first seed's ViT. images (N, 1, 8, 8), ink (N, 1, 8, 8) and
    classes (N,): its test images as it reads them and as they look, and what they are.
    """

    found: dict[str, Any]
    model: ViT
    images: Tensor
    ink: Tensor
    classes: Tensor


def read_digits(scale: VariantScale) -> DigitReader:
    """A ViT on 1,797 handwritten digits, patches of 2 x 2, a new split and start for every seed."""
    scores, kept = [], None
    for seed in progress(range(scale.seeds), desc="digits", unit="seed"):
        split = load_digit_images(seed=seed)
        mean = _as_images(split.mean[None])  # (1, 1, 8, 8)
        train_x, test_x = _as_images(split.train_x), _as_images(split.test_x)
        train_y, test_y = torch.from_numpy(split.train_y), torch.from_numpy(split.test_y)
        config = ViTConfig(
            image_size=8,
            patch_size=2,
            channels=1,
            num_classes=10,
            d_model=scale.d_model,
            num_heads=scale.num_heads,
            num_layers=scale.num_layers,
            dropout=0.0,
            init_std=scale.d_model**-0.5,
        )
        model = ViT(config, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)

        def batches(
            x: Tensor = train_x,
            y: Tensor = train_y,
            mean: Tensor = mean,
            generator: torch.Generator = generator,
        ) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                chosen = torch.randint(len(x), (64,), generator=generator)
                yield shift_images(x[chosen] + mean, generator) - mean, y[chosen]

        schedule = linear(scale.digit_steps, warmup_steps=max(1, scale.digit_steps // 10))
        train_with_adam(
            model,
            lambda model, x, y: cross_entropy(model(x), y),
            batches(),
            steps=scale.digit_steps,
            rate=lambda step, schedule=schedule: 2e-3 * schedule(step),
        )
        with torch.no_grad():
            scores.append(float((model(test_x).argmax(dim=-1) == test_y).float().mean()))
        if kept is None:
            kept = (model, test_x, test_x + mean, test_y)
    assert kept is not None, "there is at least one seed"
    mean_score, half = interval(scores)
    found = {
        "digits": {
            "accuracy": 100 * mean_score,
            "half_width": 100 * half,
            "worst": 100 * min(scores),
            "parameters": count_parameters(kept[0]),
            "test_images": len(kept[3]),
        }
    }
    return DigitReader(found, *kept)


@torch.no_grad()
def roll_out_digits(
    reader: DigitReader, *, count: int = 6
) -> tuple[Tensor, list[Tensor], list[str]]:
    """Images (n, 8, 8), where the class token's vector came from (4, 4) each, and titles.

    The shares are those of the patches alone; the class token keeps a part for itself.
    """
    images = reader.images[:count]
    said = reader.model(images).argmax(dim=-1).tolist()
    shares = attention_rollout(reader.model.attention_weights(images))  # (n, patches)
    maps = [row.view(4, 4) / row.sum() for row in shares[:, -16:]]
    titles = [f"{int(c)}, read {s}" for c, s in zip(reader.classes[:count], said, strict=True)]
    return reader.ink[:count, 0], maps, titles


def shift_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) moved by -1, 0 or 1 pixels each way; what comes in is empty paper.

    A ViT knows nothing of neighbourhood, so it is shown what a convolution would know: a digit
    that has moved is the same digit.
    """
    B, _, H, W = images.shape
    moves = torch.randint(3, (2, B), generator=generator)  # (2, B)
    padded = nn.functional.pad(images, (1, 1, 1, 1))  # (B, C, H + 2, W + 2)
    rows = moves[0][:, None] + torch.arange(H)  # (B, H)
    columns = moves[1][:, None] + torch.arange(W)  # (B, W)
    batch = torch.arange(B)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _as_images(pixels: Any) -> Tensor:
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8)


# --- cheaper attention ------------------------------------------------------------------------


def swap_attention(
    models: Sequence[nn.Module],
    ways: Callable[[int], Mapping[str, AttentionFn]],
    material: Reading,
    scale: VariantScale,
) -> dict[str, Any]:
    """Put another attention into trained encoders: the loss at once, and after some more steps.

    Args:
        models: masked language models trained with full attention, one a seed.
        ways: from a seed to attention functions by name; the first is full attention, which is
            trained on as well, so that all have seen the same.
    """
    rows: list[list[Any]] = []
    detail: dict[str, list[list[float]]] = {}
    for name in progress(ways(0), desc="attention", unit="way"):
        at_once, later = [], []
        for seed, trained in enumerate(models):
            model = copy.deepcopy(trained)
            attend = ways(seed)[name]
            for module in model.modules():
                if isinstance(module, MultiHeadAttention):
                    module.attend = attend
            at_once.append(masked_loss(model, material.held_out, seed=seed))
            _go_on(model, material.stories, scale, seed=seed)
            later.append(masked_loss(model, material.held_out, seed=seed))
        detail[name] = [at_once, later]
        rows.append([name, *interval(at_once), *interval(later)])
    return {
        "swapped": {
            "columns": ["attention", "loss at once", "± 95 %", "loss after training", "± 95 %"],
            "rows": rows,
            "formats": ["", ".3f", ".3f", ".3f", ".3f"],
        },
        "swapped_detail": detail,
        "swap_steps": scale.swap_steps,
    }


def _go_on(model: nn.Module, stories: Tensor, scale: VariantScale, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    schedule = linear(scale.swap_steps, warmup_steps=max(1, scale.swap_steps // 10))
    train_with_adam(
        model,
        lambda model, ids: _loss_of_masked(model, ids, generator),
        batches_of(stories, batch_size=scale.batch_size, generator=generator),
        steps=scale.swap_steps,
        rate=lambda step: scale.finetune_rate * schedule(step),
    )


@torch.no_grad()
def masked_loss(model: nn.Module, held_out: Tensor, *, seed: int) -> float:
    """Nats a hidden token of held-out stories, the same tokens hidden for every model of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return float(_loss_of_masked(model, held_out, generator))


def _loss_of_masked(model: nn.Module, ids: Tensor, generator: torch.Generator) -> Tensor:
    assert isinstance(model, MaskedLanguageModel)
    masked = mask_tokens(
        ids,
        vocab_size=model.config.vocab_size,
        mask_id=MASK_ID,
        special_ids=range(len(SPECIALS)),
        generator=generator,
    )
    only = masked.targets != -100  # (B, T)
    logits = model(masked.inputs, keep=ids != PAD_ID, only=only)  # (M, V)
    return cross_entropy(logits, masked.targets[only])
