"""Pre-train, then fine-tune: what BERT bought, what each objective buys, and encoder or decoder.

Every objective reads the same stories for the same number of floating-point operations; every
pre-trained network then gets the same new head and is trained on the same questions
(`world_tasks.reading_questions`). `transformer_variants.py` runs this and `variant_studies`.

Letters: B batch, T length, D model width, V vocabulary, N examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from bert import Bert, MaskedLanguageModel, ReplacedTokenDetector
from finetune import DecoderFeatures, SequenceClassifier
from gpt import GPT
from lab import interval, progress
from lr_schedules import linear
from numerics import cross_entropy
from pretraining_objectives import causal_lm, mask_tokens, replace_tokens
from sequence_data import Vocabulary
from translation import train_with_adam
from variant_scale import (
    OBJECTIVES,
    VariantScale,
    decoder_config,
    encoder_config,
    equal_steps,
    generator_config,
    step_flops,
)
from world_tasks import (
    MASK_ID,
    PAD_ID,
    SPECIALS,
    Ask,
    LabelledTexts,
    reading_questions,
    reading_vocabulary,
    reading_world,
    story_rows,
    word_counts,
)

# --- pre-training -----------------------------------------------------------------------------


class Pretrained(NamedTuple):
    """start: what fine-tuning starts from, an encoder or a decoder in `DecoderFeatures`. model: all
    that was trained. steps and loss: of the training, the loss over the last tenth, in nats.
    """

    start: nn.Module
    model: nn.Module
    steps: int
    loss: float


def pretrain_with(
    objective: str, stories: Tensor, scale: VariantScale, vocab_size: int, *, seed: int
) -> Pretrained:
    """Train a fresh network on stories for the budget's FLOPs.

    Args:
        objective: one of `OBJECTIVES`.
        stories: ids (N, T).
    """
    steps = equal_steps(objective, scale, vocab_size, mean_length(stories))
    generator = torch.Generator().manual_seed(seed)
    model, loss_of, keep = _prepare(objective, scale, vocab_size, generator)
    schedule = linear(steps, warmup_steps=max(1, steps // 10))
    losses = train_with_adam(
        model,
        loss_of,
        batches_of(stories, batch_size=scale.batch_size, generator=generator),
        steps=steps,
        rate=lambda step: scale.pretrain_rate * schedule(step),
    )
    tail = losses[-max(1, steps // 10) :]
    return Pretrained(keep(model), model, steps, sum(tail) / len(tail))


def batches_of(
    ids: Tensor, *, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor]]:
    """Random rows without end, (B, T), cut to the longest of them."""
    while True:
        rows = ids[torch.randint(len(ids), (batch_size,), generator=generator)]
        yield (without_padding(rows),)


def without_padding(rows: Tensor) -> Tensor:
    """(B, T) cut to its longest text: columns of nothing but padding cost as much as others."""
    return rows[:, : int((rows != PAD_ID).sum(dim=1).max())]


_Prepared = tuple[nn.Module, Callable[..., Tensor], Callable[[nn.Module], nn.Module]]


def _masked(rate: float) -> Callable[..., _Prepared]:
    def prepare(scale: VariantScale, vocab_size: int, generator: torch.Generator) -> _Prepared:
        model = MaskedLanguageModel(encoder_config(scale, vocab_size), generator=generator)

        def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
            masked = mask_tokens(
                ids,
                vocab_size=vocab_size,
                mask_id=MASK_ID,
                special_ids=range(len(SPECIALS)),
                generator=generator,
                rate=rate,
            )
            only = masked.targets != -100  # (B, T)
            logits = model(masked.inputs, keep=ids != PAD_ID, only=only)  # (M, V)
            return cross_entropy(logits, masked.targets[only])

        return model, loss_of, _encoder_of

    return prepare


def _replaced(scale: VariantScale, vocab_size: int, generator: torch.Generator) -> _Prepared:
    """Both networks are trained at once, the discriminator's loss times 50 (Clark et al. 2020)."""
    both = nn.ModuleDict(
        {
            "small": MaskedLanguageModel(generator_config(scale, vocab_size), generator=generator),
            "large": ReplacedTokenDetector(encoder_config(scale, vocab_size), generator=generator),
        }
    )

    def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
        assert isinstance(model, nn.ModuleDict)
        masked = mask_tokens(
            ids,
            vocab_size=vocab_size,
            mask_id=MASK_ID,
            special_ids=range(len(SPECIALS)),
            generator=generator,
        )
        only = masked.targets != -100  # (B, T)
        keep = ids != PAD_ID  # (B, T)
        logits = model["small"](masked.inputs, keep=keep, only=only)  # (M, V)
        guesses = replace_tokens(ids, masked, logits, generator=generator)
        verdicts = model["large"](guesses.inputs, keep=keep)  # (B, T)
        wrong = nn.functional.binary_cross_entropy_with_logits(
            verdicts[keep], guesses.replaced[keep].float()
        )
        return cross_entropy(logits, masked.targets[only]) + 50.0 * wrong

    return both, loss_of, lambda model: _encoder_of(model["large"])  # type: ignore[index]


def _causal(scale: VariantScale, vocab_size: int, generator: torch.Generator) -> _Prepared:
    model = GPT(decoder_config(scale, vocab_size), generator=generator)
    with torch.no_grad():  # the encoder's initial scale, in GPT-2's proportions
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale.d_model**-0.5 / 0.02)

    def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
        inputs, targets, _ = causal_lm(ids, pad_id=PAD_ID)
        return cross_entropy(model(inputs), targets)

    return model, loss_of, DecoderFeatures


def _encoder_of(model: nn.Module) -> nn.Module:
    encoder: Any = model.encoder
    return encoder


def _prepare(
    objective: str, scale: VariantScale, vocab_size: int, generator: torch.Generator
) -> _Prepared:
    """A fresh model, its loss on a batch of stories, and what to keep of it."""
    if objective == "replaced tokens":
        return _replaced(scale, vocab_size, generator)
    if objective == "next token":
        return _causal(scale, vocab_size, generator)
    rate = 0.40 if objective == "masked tokens, 40 %" else 0.15
    return _masked(rate)(scale, vocab_size, generator)


# --- fine-tuning ------------------------------------------------------------------------------


def finetune_and_score(
    encoder: nn.Module, train: LabelledTexts, test: LabelledTexts, scale: VariantScale, *, seed: int
) -> float:
    """Train a copy of the encoder and a new head on questions; the share of the test's it answers.

    A decoder is pooled at its last token, the only one that has seen everything.
    """
    pool = "last" if isinstance(encoder, DecoderFeatures) else "first"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SequenceClassifier(copy.deepcopy(encoder), 2, pool=pool)
    generator = torch.Generator().manual_seed(seed)
    steps = scale.finetune_steps
    schedule = linear(steps, warmup_steps=max(1, steps // 10))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            chosen = torch.randint(len(train.ids), (scale.batch_size,), generator=generator)
            yield without_padding(train.ids[chosen]), train.labels[chosen]

    train_with_adam(
        model,
        lambda model, ids, labels: cross_entropy(model(ids, keep=ids != PAD_ID), labels),
        batches(),
        steps=steps,
        rate=lambda step: scale.finetune_rate * schedule(step),
    )
    return label_accuracy(model, test)


@torch.no_grad()
def label_accuracy(model: nn.Module, test: LabelledTexts) -> float:
    """The share of texts whose likeliest label is the right one."""
    right = 0
    for ids, labels in zip(test.ids.split(250), test.labels.split(250), strict=True):
        rows = without_padding(ids)
        right += int((model(rows, keep=rows != PAD_ID).argmax(dim=-1) == labels).sum())
    return right / len(test.ids)


def bag_of_words_score(train: LabelledTexts, test: LabelledTexts, vocab_size: int) -> float:
    """Multinomial logistic regression on word counts: what can be known without the order."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=300)
    model.fit(word_counts(train, vocab_size).numpy(), train.labels.numpy())
    return float(model.score(word_counts(test, vocab_size).numpy(), test.labels.numpy()))


# --- the experiments --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Stories to pre-train on and others to score on; for each question, labelled texts to
    fine-tune on and to score on.
    """

    vocabulary: Vocabulary
    stories: Tensor
    held_out: Tensor
    train: dict[str, LabelledTexts]
    test: dict[str, LabelledTexts]


def reading_material(scale: VariantScale) -> Reading:
    """Stories and questions, every part from a seed of its own."""
    world = reading_world()
    vocabulary = reading_vocabulary(world)
    T = scale.max_seq_len

    def labelled(count: int, seed: int) -> dict[str, LabelledTexts]:
        return {
            ask: reading_questions(world, vocabulary, count, ask=ask, seed=seed, max_seq_len=T)
            for ask in get_args(Ask)
        }

    return Reading(
        vocabulary=vocabulary,
        stories=story_rows(world, vocabulary, scale.stories, seed=1, max_seq_len=T),
        held_out=story_rows(world, vocabulary, scale.test_texts, seed=4, max_seq_len=T),
        train=labelled(max(scale.train_sizes), 2),
        test=labelled(scale.test_texts, 3),
    )


def pretrain_all(material: Reading, scale: VariantScale) -> dict[str, list[Pretrained]]:
    """Every objective with every seed."""
    networks: dict[str, list[Pretrained]] = {name: [] for name in OBJECTIVES}
    runs = [(name, seed) for name in OBJECTIVES for seed in range(scale.seeds)]
    for name, seed in progress(runs, desc="pre-training", unit="run"):
        networks[name].append(
            pretrain_with(name, material.stories, scale, len(material.vocabulary), seed=seed)
        )
    return networks


def compare_starts(
    material: Reading, networks: dict[str, list[Pretrained]], scale: VariantScale
) -> dict[str, Any]:
    """Accuracy over the number of labelled texts, for both questions: BERT, a decoder of its size,
    the same encoder from scratch, and a bag of words.
    """
    V = len(material.vocabulary)
    fresh = [
        Bert(
            encoder_config(scale, V),
            pooler=False,
            generator=torch.Generator().manual_seed(100 + seed),
        )
        for seed in range(scale.seeds)
    ]
    starts: dict[str, list[nn.Module]] = {
        "BERT": [found.start for found in networks["masked tokens"]],
        "GPT": [found.start for found in networks["next token"]],
        "from scratch": list[nn.Module](fresh),
    }
    detail: dict[str, dict[str, list[list[float]]]] = {}
    tables: dict[str, Any] = {}
    for ask, test in material.test.items():
        curves: dict[str, list[list[float]]] = {name: [] for name in (*starts, "bag of words")}
        rows: list[list[Any]] = []
        for size in progress(scale.train_sizes, desc=f"fine-tuning: {ask}", unit="size"):
            some = [_sample(material.train[ask], size, seed) for seed in range(scale.seeds)]
            for name, start in starts.items():
                curves[name].append(
                    [
                        finetune_and_score(start[seed], some[seed], test, scale, seed=seed)
                        for seed in range(scale.seeds)
                    ]
                )
            curves["bag of words"].append([bag_of_words_score(each, test, V) for each in some])
            means = [[100 * part for part in interval(c[-1])] for c in curves.values()]
            rows.append([size, *(part for pair in means for part in pair)])
        columns = ["texts"]
        for name in curves:
            columns += [f"{name}, %", "± 95 %"]
        tables[f"starts_{ask}"] = {
            "columns": columns,
            "rows": rows,
            "formats": [",d"] + [".1f"] * (len(columns) - 1),
        }
        detail[ask] = curves
    return {**tables, "starts_detail": detail, "largest_size": max(scale.train_sizes)}


def compare_objectives(
    material: Reading, networks: dict[str, list[Pretrained]], scale: VariantScale
) -> dict[str, Any]:
    """Accuracy after fine-tuning on `compared_size` texts, all pre-trained for equal FLOPs."""
    rows: list[list[Any]] = []
    detail: dict[str, dict[str, list[float]]] = {ask: {} for ask in material.train}
    for name in progress(OBJECTIVES, desc="objectives", unit="arm"):
        loss = sum(found.loss for found in networks[name]) / scale.seeds
        row: list[Any] = [name, networks[name][0].steps, loss]
        for ask, train in material.train.items():
            scores = [
                finetune_and_score(
                    found.start,
                    _sample(train, scale.compared_size, seed),
                    material.test[ask],
                    scale,
                    seed=seed,
                )
                for seed, found in enumerate(networks[name])
            ]
            detail[ask][name] = scores
            row += [100 * part for part in interval(scores)]
        rows.append(row)
    columns = ["objective", "steps", "its loss"]
    for ask in material.train:
        columns += [f"{ask}, %", "± 95 %"]
    return {
        "objectives": {
            "columns": columns,
            "rows": rows,
            "formats": ["", ",d", ".3f"] + [".1f"] * (len(columns) - 3),
        },
        "objectives_detail": detail,
        "compared_size": scale.compared_size,
        "mlm_steps": scale.mlm_steps,
    }


def count_budget(material: Reading, scale: VariantScale) -> dict[str, Any]:
    """What the runs will cost, before they begin: FLOPs a token, steps, and the whole."""
    V, length = len(material.vocabulary), mean_length(material.stories)
    prices = {name: step_flops(name, scale, V, length) for name in OBJECTIVES}
    steps = {name: equal_steps(name, scale, V, length) for name in OBJECTIVES}
    rows = [[name, price / 1e6, steps[name]] for name, price in prices.items()]
    return {
        "budget": {
            "columns": ["objective", "MFLOPs a token", "steps"],
            "rows": rows,
            "formats": ["", ".2f", ",d"],
        },
        "vocabulary": V,
        "names": 2 * reading_world().config.num_people,
        "story_length": length,
        "encoder_parameters": encoder_config(scale, V).num_parameters,
        "pretraining_tflops": scale.mlm_steps
        * scale.batch_size
        * length
        * prices[OBJECTIVES[0]]
        / 1e12,
    }


def mean_length(stories: Tensor) -> int:
    """Real tokens of a story on average, rounded."""
    return round(float((stories != PAD_ID).sum(dim=1).float().mean()))


def _sample(texts: LabelledTexts, count: int, seed: int) -> LabelledTexts:
    """`count` of the texts, drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(texts.ids), generator=generator)[:count]
    return LabelledTexts(texts.ids[chosen], texts.labels[chosen])
