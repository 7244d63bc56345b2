"""Sizes and recipes that a pretraining run can be started with, by architecture and name."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpt import GPT, GPTConfig, gpt_preset
from hf_weights import GPT2_FAMILY
from llama import QWEN3_FAMILY, Llama, LlamaConfig, llama_preset
from lr_schedules import Schedule, cosine, trapezoid
from optimizers import AdamW, CombinedOptimizer, Muon, parameter_groups
from run_folder import Architecture
from weight_rules import Family


@dataclass(frozen=True, kw_only=True)
class RunPreset:
    """A model's size with the batch and the learning rate that suit it.

    `learning_rate` is the peak rate of the hidden matrices: Muon's for the modern arrangement,
    AdamW's for GPT-2's.
    """

    model: str
    vocab_size: int
    context: int
    tokens_per_step: int
    learning_rate: float


RUN_PRESETS: dict[Architecture, dict[str, RunPreset]] = {
    "modern": {
        "smoke": RunPreset(
            model="1M", vocab_size=1024, context=128, tokens_per_step=2048, learning_rate=0.02
        ),
        "1M": RunPreset(
            model="1M", vocab_size=2048, context=256, tokens_per_step=4096, learning_rate=0.02
        ),
        "3M": RunPreset(
            model="3M", vocab_size=4096, context=256, tokens_per_step=4096, learning_rate=0.02
        ),
        "7M": RunPreset(
            model="7M", vocab_size=4096, context=256, tokens_per_step=8192, learning_rate=0.02
        ),
        "25M": RunPreset(
            model="25M", vocab_size=8192, context=512, tokens_per_step=32768, learning_rate=0.02
        ),
    },
    "gpt2": {
        "smoke": RunPreset(
            model="0.8M", vocab_size=1024, context=128, tokens_per_step=2048, learning_rate=2e-3
        ),
        "0.8M": RunPreset(
            model="0.8M", vocab_size=2048, context=256, tokens_per_step=4096, learning_rate=2e-3
        ),
        "3M": RunPreset(
            model="3M", vocab_size=4096, context=256, tokens_per_step=8192, learning_rate=1e-3
        ),
        "12M": RunPreset(
            model="12M", vocab_size=8192, context=256, tokens_per_step=8192, learning_rate=1e-3
        ),
    },
}
DEFAULT_PRESETS: dict[Architecture, str] = {"modern": "3M", "gpt2": "3M"}


def model_config(
    arch: Architecture, preset: RunPreset, *, vocab_size: int, context: int
) -> GPTConfig | LlamaConfig:
    """The shape of the model that a run trains."""
    if arch == "gpt2":
        return gpt_preset(preset.model, vocab_size=vocab_size, max_seq_len=context)
    return llama_preset(
        preset.model, vocab_size=vocab_size, max_seq_len=context, zero_init_outputs=True
    )


def build_model(config: GPTConfig | LlamaConfig, *, seed: int) -> GPT | Llama:
    """A new model with weights drawn from `seed`, on the CPU, so that all devices start alike."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(config, GPTConfig):
        return GPT(config, generator=generator)
    return Llama(config, generator=generator)


def run_family(arch: Architecture) -> Family:
    """The layout in which `transformers` knows this architecture."""
    return GPT2_FAMILY if arch == "gpt2" else QWEN3_FAMILY


def run_optimizer(
    arch: Architecture, model: torch.nn.Module, *, learning_rate: float
) -> torch.optim.Optimizer:
    """Muon on the hidden matrices and AdamW on the rest (modern), or AdamW on all (gpt2)."""
    if arch == "gpt2":
        groups = parameter_groups(model, lr=learning_rate, weight_decay=0.1)
        return AdamW(groups.adamw, lr=learning_rate, betas=(0.9, 0.95))
    # The table and the gains see far rarer, smaller gradients than the matrices; their rate is
    # a fixed share of Muon's, so that one number scales the whole recipe.
    groups = parameter_groups(
        model, lr=learning_rate * 0.4, weight_decay=0.0, muon=True, muon_lr=learning_rate
    )
    return CombinedOptimizer(
        Muon(groups.muon, momentum=0.95), AdamW(groups.adamw, betas=(0.9, 0.95))
    )


def run_schedule(arch: Architecture, steps: int) -> Schedule:
    """Warm-up, level and a linear decay (modern), or a cosine (gpt2), over `steps`."""
    warmup = min(100, steps // 20)
    if arch == "gpt2":
        return cosine(steps, warmup_steps=warmup, final=0.1)
    return trapezoid(steps, warmup_steps=warmup, decay_steps=(steps + 1) // 2)
