"""A training run said in one object, and the function that makes it happen.

A `Recipe` holds every choice that this topic's experiments vary; `dataclasses.replace(recipe,
beta2=0.999)` is an ablation. `build` turns it into a model, a `TrainingStep` and batches, `train`
runs these and says what came of it. The data is the tiny world, tokenised into shards on disk:
the same pipeline as that of a run that takes days, and a text whose entropy is known.

README: "A recipe and its knobs".
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bpe import train_bpe
from corpora import Document
from gpt import GPT, GPTConfig
from lr_schedules import Schedule, constant, cosine, inverse_sqrt, linear, trapezoid
from numerics import bits_per_byte
from optimizers import AdamW, CombinedOptimizer, Muon, parameter_groups
from other_optimizers import LAMB, Adafactor, Lion
from stochastic_depth import add_stochastic_depth
from sublayers import Activation
from tiny_world import TinyWorld
from token_dataset import TokenBatches, TokenShards, write_shards
from tokenizer import Tokenizer
from train_loop import Callback, LoopState, fit
from training import TrainingConfig, TrainingStep, evaluate_bits_per_byte, next_token_loss

OptimizerName = Literal["adamw", "adam_l2", "muon", "lion", "lamb", "adafactor", "sgd"]
ScheduleName = Literal["constant", "linear", "cosine", "trapezoid", "inverse_sqrt"]
Initialization = Literal["gpt2", "unscaled", "fan_in", "unit_embeddings", "zero_outputs", "modern"]
Precision = Literal["fp32", "bf16", "bf16_weights"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a model is trained. The defaults are the base of the ablations.

    Args:
        lr: the peak learning rate (of AdamW's share, under Muon).
        optimizer: "adam_l2" is Adam with the decay in the gradient; "muon" leaves to AdamW what is
            no hidden matrix.
        warmup: share of the steps over which the rate rises.
        final: the rate at the end, as a share of the peak, where the schedule has an end.
        micro_batch_size: rows at once; None = the whole batch.
        initialization: "gpt2" as topic 05 derives it; "unscaled" without the 1/sqrt(2L) at branch
            ends; "fan_in" N(0, 1/fan-in) for matrices; "unit_embeddings" N(0, 1) embeddings;
            "zero_outputs" zeros at branch ends; "modern" zeros there and in the (untied) output
            layer, N(0, 1) embeddings and N(0, 1/fan-in) for the other matrices.
        precision: "bf16" computes matrix products in bfloat16; "bf16_weights" keeps the weights
            and all that belongs to them in it too.
        short_first: cut the windows of the first half of the steps in two (a curriculum).
    """

    steps: int = 200
    batch_size: int = 16
    seq_len: int = 64
    micro_batch_size: int | None = None
    d_model: int = 64
    num_heads: int = 4
    num_layers: int = 2
    activation: Activation = "gelu_tanh"
    tie_embeddings: bool = True
    bias: bool = True
    initialization: Initialization = "gpt2"
    optimizer: OptimizerName = "adamw"
    lr: float = 6e-3
    muon_lr: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    schedule: ScheduleName = "cosine"
    warmup: float = 0.1
    final: float = 0.0
    clip_norm: float | None = 1.0
    label_smoothing: float = 0.0
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    ema_decay: float | None = None
    precision: Precision = "fp32"
    activation_checkpointing: bool = False
    short_first: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup <= 1:
            raise ValueError(
                "a recipe needs a step, and a warm-up that is a share of the steps; got "
                f"steps={self.steps}, warmup={self.warmup}"
            )
        if self.short_first and self.seq_len % 2:
            raise ValueError(f"short_first halves the windows; seq_len {self.seq_len} is odd")

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup * self.steps)


@dataclass(frozen=True, kw_only=True)
class LessonData:
    """Tiny-world stories as token shards, and what the held-out ones cost who knows everything.

    floor_bits: -log2 of the held-out stories' true probability, divided by their bytes.
    """

    train: TokenShards
    held_out: TokenShards
    tokenizer: Tokenizer
    floor_bits: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What came of a run: a loss and a gradient norm (before clipping) for each step, bits per byte
    of the held-out text at the end (of the averaged weights where these are kept), and the
    seconds of the steps alone.
    """

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    bits_per_byte: float
    seconds: float

    def last_loss(self, steps: int = 10) -> float:
        """Mean training loss of the last steps."""
        tail = self.losses[-steps:]
        return sum(tail) / len(tail)


def prepare_lesson_data(
    folder: str | Path, *, stories: int = 4000, held_out: int = 100, vocab_size: int = 1024
) -> LessonData:
    """The stories' tokenizer and shards in a subfolder named after the sizes; made where missing.

    Training and held-out stories come from different seeds of the world.
    """
    home = Path(folder) / f"stories-{stories}-{held_out}-{vocab_size}"
    world = TinyWorld()
    scored = [story.text for story in world.stories(held_out, seed=2)]
    parts = {"train": home / "train", "held_out": home / "held_out"}
    if not all((part / "index.json").exists() for part in parts.values()):
        texts = {"train": [s.text for s in world.stories(stories, seed=1)], "held_out": scored}
        tokenizer = Tokenizer.from_bpe(train_bpe(texts["train"][:1000], vocab_size - 1))
        home.mkdir(parents=True, exist_ok=True)
        tokenizer.save(home / "tokenizer.json")
        for part, where in parts.items():
            if not (where / "index.json").exists():
                documents = [Document(f"story {n}", text) for n, text in enumerate(texts[part])]
                write_shards(documents, tokenizer, where)
    nats = -sum(world.log_probability(text) for text in scored)
    return LessonData(
        train=TokenShards(parts["train"]),
        held_out=TokenShards(parts["held_out"]),
        tokenizer=Tokenizer.load(home / "tokenizer.json"),
        floor_bits=float(bits_per_byte(nats, sum(len(text.encode()) for text in scored))),
    )


def build_recipe_model(recipe: Recipe, vocab_size: int, *, seed: int) -> GPT:
    """The recipe's GPT, its weights drawn from the seed."""
    config = GPTConfig(
        vocab_size=vocab_size,
        d_model=recipe.d_model,
        num_heads=recipe.num_heads,
        num_layers=recipe.num_layers,
        max_seq_len=recipe.seq_len,
        activation=recipe.activation,
        tie_embeddings=recipe.tie_embeddings,
        bias=recipe.bias,
        dropout=recipe.dropout,
    )
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, generator=generator)
    _initialize(model, recipe.initialization, generator)
    if recipe.stochastic_depth:
        add_stochastic_depth(model, recipe.stochastic_depth)
    return model.to(torch.bfloat16) if recipe.precision == "bf16_weights" else model


@torch.no_grad()
def _initialize(model: GPT, how: Initialization, generator: torch.Generator) -> None:
    modern = how == "modern"
    if modern and model.config.tie_embeddings:
        raise ValueError("modern initialisation zeroes the output layer: untie the embeddings")
    for name, parameter in model.named_parameters():
        ends_branch = name.endswith(("out_proj.weight", "down.weight"))
        hidden = parameter.ndim == 2 and name.startswith("blocks")
        if how == "unscaled" and ends_branch:
            parameter.mul_(math.sqrt(2 * model.config.num_layers))
        elif (how == "zero_outputs" and ends_branch) or (
            modern and (ends_branch or name == "unembed.weight")
        ):
            parameter.zero_()
        elif how in ("fan_in", "modern") and hidden:
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        elif how in ("unit_embeddings", "modern") and name == "token_embedding.weight":
            parameter.normal_(std=1.0, generator=generator)


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser, over `parameter_groups`."""
    betas = (recipe.beta1, recipe.beta2)
    muon = recipe.optimizer == "muon"
    groups = parameter_groups(
        model,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        muon=muon,
        muon_lr=recipe.muon_lr,
        muon_weight_decay=0.0,
    )
    if muon:
        return CombinedOptimizer(Muon(groups.muon), AdamW(groups.adamw, betas=betas))
    makers = {
        "adamw": lambda: AdamW(groups.adamw, betas=betas),
        "adam_l2": lambda: torch.optim.Adam(groups.adamw, betas=betas),
        "lion": lambda: Lion(groups.adamw, betas=betas),
        "lamb": lambda: LAMB(groups.adamw, betas=betas),
        "adafactor": lambda: Adafactor(groups.adamw),
        "sgd": lambda: torch.optim.SGD(groups.adamw, momentum=recipe.beta1),
    }
    return makers[recipe.optimizer]()


def build_schedule(recipe: Recipe) -> Schedule:
    """The recipe's schedule over its own number of steps."""
    steps, warmup = recipe.steps, recipe.warmup_steps
    makers = {
        "constant": lambda: constant(warmup_steps=warmup),
        "linear": lambda: linear(steps, warmup_steps=warmup, final=recipe.final),
        "cosine": lambda: cosine(steps, warmup_steps=warmup, final=recipe.final),
        "trapezoid": lambda: trapezoid(
            steps, warmup_steps=warmup, decay_steps=(steps - warmup) // 2, final=recipe.final
        ),
        "inverse_sqrt": lambda: inverse_sqrt(warmup_steps=warmup),
    }
    return makers[recipe.schedule]()


def build(recipe: Recipe, data: LessonData, *, seed: int) -> tuple[TrainingStep, TokenBatches]:
    """The step and the batches of a recipe: what `fit` needs. The seed draws weights and order."""
    model = build_recipe_model(recipe, data.train.vocab_size, seed=seed)
    config = TrainingConfig(
        tokens_per_step=recipe.tokens_per_step,
        seq_len=recipe.seq_len,
        micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
        clip_norm=recipe.clip_norm,
        autocast=torch.bfloat16 if recipe.precision == "bf16" else None,
        ema_decay=recipe.ema_decay,
        activation_checkpointing=recipe.activation_checkpointing,
    )

    def loss(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return next_token_loss(model, batch, label_smoothing=recipe.label_smoothing)

    training = TrainingStep(
        model, build_optimizer(recipe, model), build_schedule(recipe), config, loss=loss
    )
    batches = TokenBatches(
        data.train, batch_size=recipe.batch_size, seq_len=recipe.seq_len, seed=seed
    )
    return training, batches


def train_recipe(
    recipe: Recipe, data: LessonData, *, seed: int, callbacks: Sequence[Callback] = ()
) -> RunRecord:
    """Train the recipe once and score the held-out stories.

    A run whose loss stops being finite ends there, with infinite bits per byte.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator
        training, batches = build(recipe, data, seed=seed)
        record = _Recorder()
        try:
            fit(
                training,
                _halved(batches, training, recipe) if recipe.short_first else batches.iterate(),
                [record, *callbacks],
                max_steps=recipe.steps,
            )
            bits = held_out_score(training, data, seq_len=recipe.seq_len)
        except FloatingPointError:
            bits = math.inf
    return RunRecord(
        losses=tuple(record.losses),
        grad_norms=tuple(record.grad_norms),
        bits_per_byte=bits,
        seconds=record.seconds,
    )


def held_out_score(
    training: TrainingStep, data: LessonData, *, seq_len: int, max_tokens: int | None = None
) -> float:
    """Bits per byte of the held-out stories, or of their first tokens, with the averaged weights
    where these are kept.
    """
    with training.averaged_weights() as model:
        return evaluate_bits_per_byte(
            model,
            data.held_out,
            batch_size=64,
            seq_len=seq_len,
            device=training.device,
            max_tokens=max_tokens,
        ).bits_per_byte


class _Recorder(Callback):
    """Keeps every step's loss and gradient norm, and counts the seconds of the steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.seconds = 0.0

    def on_start(self, state: LoopState) -> None:
        self._last = time.perf_counter()

    def on_step(self, state: LoopState) -> None:
        self.losses.append(state.metric("loss"))
        self.grad_norms.append(state.metric("grad_norm"))
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now


def _halved(
    batches: TokenBatches, training: TrainingStep, recipe: Recipe
) -> Iterator[tuple[Tensor, ...]]:
    """(B, T) batches, but (2B, T/2) in the first half of the steps: the same tokens."""
    later = training.config
    half = recipe.seq_len // 2
    training.config = replace(later, seq_len=half, micro_batch_size=2 * later.micro_batch_size)
    for number, batch in enumerate(batches.iterate()):
        if number < recipe.steps // 2:
            # (B, T) -> (2B, T/2): a row's halves become rows.
            yield tuple(tensor.reshape(-1, half) for tensor in batch)
        else:
            training.config = later
            yield batch
