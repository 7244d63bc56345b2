"""One pretraining run from its folder to its report; every stage can be killed and repeated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from gpt import GPT, GPTConfig, flops_per_token, parameter_count
from hf_weights import save_pretrained
from lab import peak_memory_bytes, pick_device, save_figure, write_results
from llama import Llama, LlamaConfig
from pretrain_data import PreparedData, open_prepared, prepare_data, shard_text
from process_group import ProcessGroup
from run_folder import RunError, RunFolder, RunPlan
from run_plan import build_training_step, make_plan
from run_presets import RUN_PRESETS, model_config, run_family, run_schedule
from run_report import (
    XZ_WINDOW,
    compressor_bits,
    loss_figure,
    read_metrics,
    write_report,
)
from token_dataset import TokenBatches
from tokenizer import Tokenizer
from train_loop import Callback, fit
from training import TrainingStep
from training_callbacks import Checkpointer, ConsoleLogger, Evaluator, MetricsLog, SampleWriter
from training_measures import evaluate_bits_per_byte

EVALUATION_TOKENS = 65_536  # while training; at the end all held-out text is scored
EVALUATION_TOKENS_AT_ONCE = 8192
PROMPTS = 3
PROMPT_TOKENS = 12
SAMPLE_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run leaves in memory for the caller to talk to."""

    model: GPT | Llama
    tokenizer: Tokenizer
    bits_per_byte: float


def run_pretraining(
    folder: RunFolder,
    processes: ProcessGroup,
    *,
    say: Callable[[str], None],
    command: str,
    workers: int,
) -> FinishedRun:
    """Do all that is left to do of a run: prepare, plan, train, score, save, report.

    Only the first process writes and speaks. Raises: RunError, CorpusError for what the caller
    can put right.
    """
    began = time.perf_counter()
    settings = folder.settings
    device = processes.device(_device(settings.device))
    skipped = processes.from_first(lambda: prepare_data(folder, say=say, workers=workers))
    data = open_prepared(folder)
    config = model_config(
        settings.arch,
        RUN_PRESETS[settings.arch][settings.preset],
        vocab_size=data.tokenizer.vocab_size,
        context=settings.context,
    )
    plan = folder.plan
    if plan is None:
        say("timing a few steps …")
        plan = make_plan(settings, config, data.train, device=device, processes=processes)
        if processes.is_first:
            folder.advance("training", plan)
    for line in _derived_numbers(folder, plan, data, skipped, config, device, processes):
        say(line)
    step = build_training_step(
        settings,
        config,
        run_schedule(settings.arch, plan.steps),
        device=device,
        micro_batch=plan.micro_batch,
        dtype=plan.dtype,
        processes=processes,
    )
    train(folder, plan, data, step, processes, say=say)
    finished = FinishedRun(
        model=cast("GPT | Llama", step.model), tokenizer=data.tokenizer, bits_per_byte=math.nan
    )
    if processes.is_first:
        finished = finish(folder, plan, data, step, config, say=say, command=command, began=began)
    processes.from_first(lambda: None)  # nobody leaves while the first still writes
    return finished


def train(
    folder: RunFolder,
    plan: RunPlan,
    data: PreparedData,
    step: TrainingStep,
    processes: ProcessGroup,
    *,
    say: Callable[[str], None],
) -> None:
    """Take the steps that are left, from the newest checkpoint that is whole."""
    settings = folder.settings
    batches = TokenBatches(
        data.train,
        batch_size=settings.windows_per_step,
        seq_len=settings.context,
        seed=settings.seed,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    checkpointer = Checkpointer(folder.checkpoints, step, every_steps=plan.checkpoint_every)
    start, damaged = checkpointer.resume()
    for sentence in damaged:
        say(f"warning: {sentence}; using the one before")
    if start:
        say(f"resuming after step {start} of {plan.steps}")
    callbacks: list[Callback] = []
    if processes.is_first:
        evaluator = Evaluator(
            step,
            data.validation,
            every_steps=plan.evaluate_every,
            batch_size=max(1, EVALUATION_TOKENS_AT_ONCE // settings.context),
            seq_len=settings.context,
            max_tokens=EVALUATION_TOKENS,
        )
        tokens_per_step = settings.windows_per_step * settings.context
        logger = ConsoleLogger(
            tokens_per_step=tokens_per_step,
            every_steps=plan.log_every,
            bytes_per_token=data.train.bytes_per_token,
        )
        samples = SampleWriter(
            step,
            data.tokenizer,
            sample_prompts(data, min(PROMPT_TOKENS, settings.context // 4)),
            folder.samples,
            every_steps=plan.evaluate_every,
            max_new_tokens=min(SAMPLE_TOKENS, settings.context // 2),
            seed=settings.seed,
        )
        log = MetricsLog(
            folder.metrics, tokens_per_step=tokens_per_step, every_steps=plan.log_every
        )
        callbacks = [evaluator, logger, log, samples, checkpointer]
    if start < plan.steps:
        fit(step, batches.iterate(start), callbacks, max_steps=plan.steps, start_step=start)


def finish(
    folder: RunFolder,
    plan: RunPlan,
    data: PreparedData,
    step: TrainingStep,
    config: GPTConfig | LlamaConfig,
    *,
    say: Callable[[str], None],
    command: str,
    began: float,
) -> FinishedRun:
    """Score all held-out text, save the model as `transformers` does, and write the report."""
    settings = folder.settings
    model = step.model
    assert isinstance(model, (GPT, Llama))  # build_training_step made it
    save_pretrained(model, folder.path, run_family(settings.arch), tokenizer=data.tokenizer)
    say("scoring the held-out text …")
    held_out = evaluate_bits_per_byte(
        model,
        data.validation,
        batch_size=max(1, EVALUATION_TOKENS_AT_ONCE // settings.context),
        seq_len=settings.context,
        stride=settings.context // 2,
        device=step.device,
        dtype=step.config.autocast or torch.float32,
    )
    text = shard_text(data.validation, data.tokenizer)
    rivals = compressor_bits(text, shard_text(data.train, data.tokenizer, last_bytes=XZ_WINDOW))
    records = read_metrics(folder.metrics)
    save_figure(
        loss_figure(records, bytes_per_token=data.train.bytes_per_token, rivals=rivals),
        folder.path / "loss.png",
    )
    seconds = time.perf_counter() - began
    scores = {
        "this model": held_out.bits_per_byte,
        "gzip -9": rivals.gzip,
        "xz -9": rivals.xz,
        "xz -9 after the training text": rivals.xz_primed,
    }
    facts = _facts(folder, plan, data, config, step)
    facts += [
        ("wall time of this call", f"{seconds / 60:.1f} min"),
        ("peak memory", f"{peak_memory_bytes() / 2**30:.2f} GiB"),
    ]
    sample_command = f"python 10-pretraining-llms/pretrain.py --sample {folder.path}"
    final_samples = _last_section(folder)
    write_report(
        folder.path,
        title=f"A language model of {settings.corpus}",
        facts=facts,
        scores=scores,
        samples=final_samples,
        sample_command=sample_command,
    )
    write_results(
        folder.path / "results.json",
        {
            "bits_per_byte": scores,
            "steps": plan.steps,
            "tokens_per_step": settings.windows_per_step * settings.context,
            "parameters": parameter_count(config),
            "train_tokens": len(data.train),
            "validation_tokens": held_out.tokens,
            "validation_bytes": held_out.num_bytes,
            "peak_memory_bytes": peak_memory_bytes(),
            "dtype": plan.dtype,
            "minutes": seconds / 60,
        },
        command=command,
        seeds=[settings.seed],
        device=step.device,
        wall_seconds=seconds,
    )
    folder.advance("finished")
    _say_result(say, scores, held_out.num_bytes, folder, sample_command, final_samples, seconds)
    return FinishedRun(model=model, tokenizer=data.tokenizer, bits_per_byte=held_out.bits_per_byte)


def sample_prompts(data: PreparedData, length: int) -> list[str]:
    """The first `length` tokens of a few held-out documents: text of the right kind, not seen."""
    ids = data.validation.read(0, min(len(data.validation), 200_000))
    starts = [0, *((ids == data.validation.eos_id).nonzero()[0] + 1).tolist()]
    prompts = []
    for start in starts:
        beginning = ids[start : start + length].tolist()
        if data.validation.eos_id in beginning or not beginning:
            continue  # a document that ends where a prompt would
        text = data.tokenizer.decode(beginning)
        if text.strip() and text not in prompts:
            prompts.append(text)
        if len(prompts) == PROMPTS:
            break
    return prompts or [""]  # an empty prompt begins where a document does


def _device(name: str) -> torch.device:
    try:
        return pick_device(name)
    except ValueError as error:
        raise RunError(f"--device {name}: {error}") from error


def _facts(
    folder: RunFolder,
    plan: RunPlan,
    data: PreparedData,
    config: GPTConfig | LlamaConfig,
    step: TrainingStep,
) -> list[tuple[str, str]]:
    settings = folder.settings
    tokens = plan.steps * settings.windows_per_step * settings.context
    return [
        ("corpus", settings.corpus),
        ("training text", _text_size(data.train)),
        ("held-out text", _text_size(data.validation)),
        ("bytes a token", f"{data.train.bytes_per_token:.2f}"),
        ("model", f"{settings.arch} {settings.preset}, {parameter_count(config):,} parameters"),
        ("steps", f"{plan.steps:,} of {settings.windows_per_step * settings.context:,} tokens"),
        ("training tokens", f"{tokens:,} ({tokens / len(data.train):.2f} epochs)"),
        ("arithmetic", f"{flops_per_token(config, settings.context) * tokens:.2e} FLOPs"),
        ("device, data type", f"{step.device}, {plan.dtype}"),
        ("seed", str(settings.seed)),
    ]


def _derived_numbers(
    folder: RunFolder,
    plan: RunPlan,
    data: PreparedData,
    skipped: dict[str, int],
    config: GPTConfig | LlamaConfig,
    device: torch.device,
    processes: ProcessGroup,
) -> list[str]:
    """Every number that follows from the settings, before the first step."""
    settings = folder.settings
    parameters = parameter_count(config)
    tokens_per_step = settings.windows_per_step * settings.context
    tokens = plan.steps * tokens_per_step
    flops = flops_per_token(config, settings.context) * tokens
    rows = [
        ("training text", _text_size(data.train)),
        ("held-out text", _text_size(data.validation)),
        (
            "vocabulary",
            f"{data.tokenizer.vocab_size:,} tokens, {data.train.bytes_per_token:.2f} bytes each",
        ),
        (
            "model",
            f"{settings.arch} {settings.preset}: {parameters:,} parameters, "
            f"{config.num_layers} layers of width {config.d_model}",
        ),
        (
            "a step",
            f"{settings.windows_per_step} windows of {settings.context}: {tokens_per_step:,} tokens"
            + (f" over {processes.world_size} processes" if processes.world_size > 1 else ""),
        ),
        ("steps", f"{plan.steps:,} = {tokens:,} tokens = {tokens / len(data.train):.2f} epochs"),
        ("tokens a parameter", f"{tokens / parameters:.2f}"),
        ("arithmetic", f"{flops:.2e} FLOPs"),
        ("device", f"{device}, {plan.dtype}, {torch.get_num_threads()} threads"),
        (
            "expected time",
            f"{plan.steps * plan.seconds_per_step / 60:.1f} min at "
            f"{tokens_per_step / plan.seconds_per_step:,.0f} tokens/s",
        ),
        ("folder", str(folder.path)),
    ]
    if skipped:
        what = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        rows.insert(2, ("skipped files", what))
    return [f"{name:<20}{value}" for name, value in rows]


def _text_size(shards: object) -> str:
    return f"{shards.num_documents:,} documents, {shards.num_bytes:,} bytes, {len(shards):,} tokens"  # type: ignore[attr-defined, arg-type]


def _last_section(folder: RunFolder) -> str:
    text = folder.samples.read_text(encoding="utf-8") if folder.samples.exists() else ""
    return text[text.rfind("## Step") :].partition("\n")[2].strip("\n")


def _say_result(
    say: Callable[[str], None],
    scores: dict[str, float],
    num_bytes: int,
    folder: RunFolder,
    sample_command: str,
    samples: str,
    seconds: float,
) -> None:
    say("")
    say("samples, after prompts from held-out text:")
    say(samples)
    say("")
    say(f"bits per byte of {num_bytes:,} held-out bytes:")
    for name, value in scores.items():
        say(f"  {name:<32}{value:.3f}")
    say("")
    say(
        f"done in {seconds / 60:.1f} min, {peak_memory_bytes() / 2**30:.2f} GiB at most; "
        f"see {folder.path / 'report.md'}"
    )
    say(f"talk to it again: {sample_command}")
