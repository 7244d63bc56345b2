"""How large topic 08's experiments are, and what a step of each objective costs.

Letters: T length, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bert_config import BertConfig
from gpt import GPTConfig
from world_tasks import PAD_ID

OBJECTIVES = ("masked tokens", "masked tokens, 40 %", "replaced tokens", "next token")


@dataclass(frozen=True, kw_only=True)
class VariantScale:
    """How large the experiments are.

    mlm_steps: of masking 15 %; the FLOPs of all the others' pre-training follow from it.
    train_sizes: questions to fine-tune on. compared_size: the one at which objectives are compared.
    """

    seeds: int
    d_model: int
    num_layers: int
    num_heads: int
    max_seq_len: int
    stories: int
    batch_size: int
    mlm_steps: int
    pretrain_rate: float
    finetune_steps: int
    finetune_rate: float
    train_sizes: tuple[int, ...]
    compared_size: int
    test_texts: int
    task_examples: int
    task_steps: int
    task_tests: int
    digit_steps: int
    swap_steps: int
    cost_lengths: tuple[int, ...]


DEFAULT_SCALE_08 = VariantScale(
    seeds=3,
    d_model=64,
    num_layers=2,
    num_heads=4,
    max_seq_len=80,
    stories=16_000,
    batch_size=32,
    mlm_steps=700,
    pretrain_rate=3e-3,
    finetune_steps=60,
    finetune_rate=1e-3,
    train_sizes=(50, 200, 800, 3200, 12_800),
    compared_size=800,
    test_texts=500,
    task_examples=16_000,
    task_steps=800,
    task_tests=150,
    digit_steps=500,
    swap_steps=50,
    cost_lengths=(256, 512, 1024, 2048),
)
SMOKE_SCALE_08 = VariantScale(
    seeds=2,
    d_model=16,
    num_layers=1,
    num_heads=2,
    max_seq_len=80,
    stories=60,
    batch_size=4,
    mlm_steps=3,
    pretrain_rate=1e-3,
    finetune_steps=2,
    finetune_rate=1e-3,
    train_sizes=(4, 8),
    compared_size=8,
    test_texts=12,
    task_examples=40,
    task_steps=2,
    task_tests=4,
    digit_steps=3,
    swap_steps=2,
    cost_lengths=(64, 128),
)


# --- networks and their FLOPs -----------------------------------------------------------------


def encoder_config(scale: VariantScale, vocab_size: int, **changes: Any) -> BertConfig:
    """The encoder of all comparisons, without dropout: no text is seen often enough to learn it."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": scale.d_model,
        "num_layers": scale.num_layers,
        "num_heads": scale.num_heads,
        "max_seq_len": scale.max_seq_len,
        "num_types": 1,
        "pad_id": PAD_ID,
        "dropout": 0.0,
        # 0.02 is for widths near 768; 1/√D is the same idea for any.
        "init_std": scale.d_model**-0.5,
        **changes,
    }
    return BertConfig(**sizes)


def decoder_config(scale: VariantScale, vocab_size: int) -> GPTConfig:
    """The decoder of the same width, depth and vocabulary."""
    return GPTConfig(
        vocab_size=vocab_size,
        d_model=scale.d_model,
        num_layers=scale.num_layers,
        num_heads=scale.num_heads,
        max_seq_len=scale.max_seq_len,
    )


def generator_config(scale: VariantScale, vocab_size: int) -> BertConfig:
    """ELECTRA's generator: a quarter of the width (Clark et al. 2020, section 3.2)."""
    width = max(8, scale.d_model // 4)
    return encoder_config(scale, vocab_size, d_model=width, num_heads=max(1, scale.num_heads // 4))


def step_flops(objective: str, scale: VariantScale, vocab_size: int, length: int) -> float:
    """FLOPs of one token's step: what differs is how many positions need the whole vocabulary.

    Raises:
        ValueError: an objective that is not in `OBJECTIVES`.
    """
    encoder = encoder_config(scale, vocab_size)
    if objective == "masked tokens":
        return encoder.flops_per_token(length, predicted=0.15)
    if objective == "masked tokens, 40 %":
        return encoder.flops_per_token(length, predicted=0.40)
    if objective == "replaced tokens":
        generator = generator_config(scale, vocab_size)
        small = generator.flops_per_token(length, predicted=0.15)
        # The discriminator's head is one matrix (D, D) at every token.
        return small + encoder.flops_per_token(length, predicted=0.0) + 6 * scale.d_model**2
    if objective == "next token":
        return decoder_config(scale, vocab_size).flops_per_token(length)
    raise ValueError(f"objective is {objective!r}; it must be one of {OBJECTIVES}")


def equal_steps(objective: str, scale: VariantScale, vocab_size: int, length: int) -> int:
    """Steps that cost what `mlm_steps` of masked tokens do."""
    first = step_flops(OBJECTIVES[0], scale, vocab_size, length)
    return max(1, round(scale.mlm_steps * first / step_flops(objective, scale, vocab_size, length)))
