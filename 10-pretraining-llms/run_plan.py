"""Turn a budget into a plan: time a few steps once, then write down a number.

Everything that depends on how fast this machine happens to be is decided here and recorded, so
that what follows depends on the seed alone.
"""

from __future__ import annotations

import math

import torch

from gpt import GPTConfig
from linear_loss import fused_next_token_loss
from llama import LlamaConfig
from lr_schedules import Schedule, constant
from process_group import ProcessGroup
from run_folder import RunError, RunPlan, RunSettings
from run_presets import build_model, run_optimizer
from token_dataset import TokenBatches
from token_shards import TokenShards
from training import TrainingConfig, TrainingStep, all_reduce_gradients
from training_measures import measure_step_seconds

TOKENS_AT_ONCE = {"cpu": 8192, "cuda": 65536, "mps": 16384}  # bounds the memory of the logits
CHECKPOINT_SECONDS = 30.0
EVALUATIONS = 8
LOG_LINES = 60
TIMED_STEPS = 5


def micro_batch_size(windows: int, context: int, device_type: str) -> int:
    """The largest divisor of `windows` whose tokens fit through the model at once."""
    fitting = [
        size
        for size in range(1, windows + 1)
        if windows % size == 0 and size * context <= TOKENS_AT_ONCE.get(device_type, 8192)
    ]
    return max(fitting, default=1)


def training_config(
    settings: RunSettings, *, micro_batch: int, dtype: str, world_size: int
) -> TrainingConfig:
    """The production step's settings for this run."""
    return TrainingConfig(
        tokens_per_step=settings.windows_per_step * settings.context,
        seq_len=settings.context,
        micro_batch_size=micro_batch,
        world_size=world_size,
        autocast=torch.bfloat16 if dtype == "bfloat16" else None,
    )


def build_training_step(
    settings: RunSettings,
    config: GPTConfig | LlamaConfig,
    schedule: Schedule,
    *,
    device: torch.device,
    micro_batch: int,
    dtype: str,
    processes: ProcessGroup,
) -> TrainingStep:
    """A new model with its optimiser, as the training step that `fit` calls."""
    model = build_model(config, seed=settings.seed).to(device)
    optimizer = run_optimizer(settings.arch, model, learning_rate=settings.learning_rate)
    return TrainingStep(
        model,
        optimizer,
        schedule,
        training_config(
            settings, micro_batch=micro_batch, dtype=dtype, world_size=processes.world_size
        ),
        reduce_gradients=all_reduce_gradients if processes.world_size > 1 else None,
        loss=fused_next_token_loss,
    )


def make_plan(
    settings: RunSettings,
    config: GPTConfig | LlamaConfig,
    train: TokenShards,
    *,
    device: torch.device,
    processes: ProcessGroup,
) -> RunPlan:
    """Time steps of a throw-away model in each data type that may be used, and choose.

    Raises: RunError where the corpus has fewer windows than a step needs, the processes cannot
    share a step evenly, or the time is too short for a single step.
    """
    windows, world = settings.windows_per_step, processes.world_size
    if windows % world:
        raise RunError(
            f"{world} processes cannot share a step of {windows} windows evenly; choose "
            f"--tokens-per-step as a multiple of {world * settings.context:,}"
        )
    micro_batch = micro_batch_size(windows // world, settings.context, device.type)
    try:
        batches = TokenBatches(
            train,
            batch_size=windows,
            seq_len=settings.context,
            seed=settings.seed,
            rank=processes.rank,
            world_size=world,
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    seconds = {}
    for dtype in data_types(settings.dtype, device):
        step = build_training_step(
            settings,
            config,
            constant(),
            device=device,
            micro_batch=micro_batch,
            dtype=dtype,
            processes=processes,
        )
        upcoming = batches.iterate()
        seconds[dtype] = measure_step_seconds(
            lambda step=step, upcoming=upcoming: step(next(upcoming)),
            rounds=TIMED_STEPS,
            device=device,
        )
    # Every process measured, and the first one's clock decides.
    return processes.from_first(lambda: plan_from_timing(settings, seconds, micro_batch))


def data_types(dtype: str, device: torch.device) -> tuple[str, ...]:
    """The data types to try: the one asked for, or for "auto" all that the device computes in.

    Raises: RunError where the device cannot compute in the one asked for.
    """
    if device.type == "cuda" and dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise RunError("--dtype bfloat16: this GPU does not compute in bfloat16; use float32")
    if dtype != "auto":
        return (dtype,)
    if device.type == "cuda":
        return ("bfloat16",) if torch.cuda.is_bf16_supported() else ("float32",)
    return ("float32", "bfloat16") if device.type == "cpu" else ("float32",)


def plan_from_timing(settings: RunSettings, seconds: dict[str, float], micro_batch: int) -> RunPlan:
    """The plan that follows from the settings and the measured seconds a step of each data type.

    Raises: RunError where the time is too short for a single step.
    """
    dtype = min(seconds, key=lambda name: seconds[name])
    step_seconds = seconds[dtype]
    tokens_per_step = settings.windows_per_step * settings.context
    if settings.tokens is not None:
        steps = math.ceil(settings.tokens / tokens_per_step)
    else:
        assert settings.minutes is not None  # RunSettings sees to it
        steps = int(settings.minutes * 60 / step_seconds)
        if steps < 1:
            raise RunError(
                f"--minutes {settings.minutes:g} is too short: one step takes {step_seconds:.1f} s"
            )
    return RunPlan(
        steps=steps,
        dtype=dtype,
        micro_batch=micro_batch,
        checkpoint_every=max(1, min(round(CHECKPOINT_SECONDS / step_seconds), steps // 5)),
        log_every=max(1, steps // LOG_LINES),
        evaluate_every=max(1, steps // EVALUATIONS),
        seconds_per_step=step_seconds,
    )
