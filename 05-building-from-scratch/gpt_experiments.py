"""The experiments of topic 05 that train or time a GPT; `building_from_scratch.py` runs them.

Each returns plain results for results.json. Sizes come in a `Scale`, so that a smoke run goes
through the same code in seconds.
"""

from __future__ import annotations

import io
import lzma
import math
import re
import time
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from brief_training import (
    Texts,
    byte_texts,
    corpus_bytes,
    held_out_bits,
    next_token_windows,
    train_briefly,
)
from debugging import shifted_loss
from gpt import GPT, GPTConfig
from gpt_steps import STEPS, build_step
from induction import induction_scores, repeated_batches, repetition_loss
from lab import interval, progress
from numerics import cross_entropy
from text_generation import SamplingConfig, generate


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the experiments are."""

    train_bytes: int
    held_out_bytes: int
    seeds: int
    d_model: int
    num_heads: int
    num_layers: int
    seq_len: int
    batch_size: int
    steps: int
    subword_steps: int
    subword_vocab: int
    induction_steps: int
    clinic_layers: int
    clinic_steps: int
    overfit_steps: int
    cache_lengths: tuple[int, ...]
    sampled_tokens: int


DEFAULT_SCALE = Scale(
    train_bytes=4_000_000,
    held_out_bytes=50_000,
    seeds=3,
    d_model=128,
    num_heads=4,
    num_layers=4,
    seq_len=64,
    batch_size=16,
    steps=250,
    subword_steps=400,
    subword_vocab=1024,
    induction_steps=600,
    clinic_layers=2,
    clinic_steps=100,
    overfit_steps=150,
    cache_lengths=(32, 64, 128, 256, 512, 1024),
    sampled_tokens=2000,
)
SMOKE_SCALE = Scale(
    train_bytes=200_000,
    held_out_bytes=4_000,
    seeds=2,
    d_model=32,
    num_heads=4,
    num_layers=2,
    seq_len=32,
    batch_size=4,
    steps=5,
    subword_steps=5,
    subword_vocab=300,
    induction_steps=5,
    clinic_layers=2,
    clinic_steps=5,
    overfit_steps=5,
    cache_lengths=(16, 32, 64),
    sampled_tokens=200,
)


def new_gpt(scale: Scale, *, vocab_size: int, seed: int, **changes: Any) -> GPT:
    """A GPT of the scale's size, its weights drawn from the seed."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": scale.d_model,
        "num_heads": scale.num_heads,
        "num_layers": scale.num_layers,
        "max_seq_len": scale.seq_len,
        **changes,
    }
    return GPT(GPTConfig(**sizes), generator=torch.Generator().manual_seed(seed))


def compare_steps(scale: Scale) -> dict[str, Any]:
    """Train all nine steps of the construction on the same text, for the same number of steps."""
    rows, detail = [], {}
    texts = byte_texts(max_bytes=scale.train_bytes, held_out_bytes=scale.held_out_bytes)
    for step in progress(STEPS, desc="nine steps", unit="step"):
        bits, parameters = [], 0
        for seed in range(scale.seeds):
            model = build_step(
                step.number,
                vocab_size=texts.vocab_size,
                d_model=scale.d_model,
                num_heads=scale.num_heads,
                num_layers=scale.num_layers,
                max_seq_len=scale.seq_len,
                seed=seed,
            )
            parameters = sum(p.numel() for p in model.parameters())
            train_briefly(model, _windows(texts, scale, seed), steps=scale.steps)
            bits.append(held_out_bits(model, texts, seq_len=scale.seq_len))
        mean, half_width = interval(bits)
        rows.append([f"{step.number} {step.name}", step.adds, parameters, mean, half_width])
        detail[str(step.number)] = {"bits_per_byte": mean, "half_width": half_width, "all": bits}
    columns = ["step", "what it adds", "parameters", "held-out bits per byte", "± 95 %"]
    formats = ["", "", ",d", ".3f", ".3f"]
    return {
        "steps": {"columns": columns, "rows": rows, "formats": formats},
        "steps_detail": detail,
    }


def compare_initial_losses(scale: Scale) -> dict[str, Any]:
    """The loss of a fresh model, with GPT-2's initialisation and with PyTorch's embeddings."""
    vocab_size = 4096
    ids = torch.randint(vocab_size, (16, scale.seq_len), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(vocab_size, ids.shape, generator=torch.Generator().manual_seed(2))
    gpt = new_gpt(scale, vocab_size=vocab_size, seed=0)
    unit = new_gpt(scale, vocab_size=vocab_size, seed=0)
    with torch.no_grad():
        unit.token_embedding.weight.normal_(generator=torch.Generator().manual_seed(3))
        logits = gpt(ids)
        return {
            "initial_loss": {
                "vocab_size": vocab_size,
                "d_model": scale.d_model,
                "ln_vocab": math.log(vocab_size),
                "predicted": math.log(vocab_size) + scale.d_model * 0.02**2 / 2,
                "measured": float(cross_entropy(logits, targets)),
                "logit_std": float(logits.std()),
                "unit_init": float(shifted_loss(unit, ids, targets)),
            }
        }


def compare_residual_scaling(scale: Scale) -> dict[str, Any]:
    """The stream's standard deviation after the last block, with and without 1/sqrt(2L)."""
    rows = []
    ids = torch.randint(256, (8, scale.seq_len), generator=torch.Generator().manual_seed(4))
    for layers in (2, 4, 8, 16, 32):
        deviations = []
        for scaled in (True, False):
            model = new_gpt(scale, vocab_size=256, seed=0, num_layers=layers)
            if not scaled:
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        if name.endswith(("out_proj.weight", "down.weight")):
                            parameter.mul_(math.sqrt(2 * layers))
            seen: list[Tensor] = []

            def see(module: nn.Module, args: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
                seen.append(args[0])

            model.final_norm.register_forward_pre_hook(see)
            with torch.no_grad():
                model(ids)
            deviations.append(float(seen[0].std()))
        rows.append([layers, *deviations])
    columns = ["layers", "std of the stream, scaled", "not scaled"]
    return {"residual_init": {"columns": columns, "rows": rows, "formats": ["d", ".3f", ".3f"]}}


def compare_characters_and_subwords(scale: Scale) -> tuple[dict[str, Any], GPT, LibraryTokenizer]:
    """One GPT reads bytes, one reads subwords; same width, depth, tokens a step and steps.

    Returns the results, and the subword model of the last seed with its tokenizer.
    """
    train, held_out = corpus_bytes(max_bytes=scale.train_bytes, held_out_bytes=scale.held_out_bytes)
    tokenizer = library_bpe(train, scale.subword_vocab)
    kinds = {
        "characters": byte_texts(max_bytes=scale.train_bytes, held_out_bytes=scale.held_out_bytes),
        "subwords": Texts(
            train=_encode(tokenizer, train),
            held_out=_encode(tokenizer, held_out),
            held_out_bytes=len(held_out),
            vocab_size=tokenizer.get_vocab_size(),
        ),
    }
    rows, detail = [], {}
    model = new_gpt(scale, vocab_size=1, seed=0)  # replaced below
    for kind, texts in kinds.items():
        bits, seconds = [], []
        for seed in progress(range(scale.seeds), desc=kind, unit="seed"):
            model = new_gpt(scale, vocab_size=texts.vocab_size, seed=seed, max_seq_len=1024)
            began = time.perf_counter()
            train_briefly(model, _windows(texts, scale, seed), steps=scale.subword_steps)
            seconds.append(time.perf_counter() - began)
            bits.append(held_out_bits(model, texts, seq_len=scale.seq_len))
        mean, half_width = interval(bits)
        bytes_a_token = texts.held_out_bytes / len(texts.held_out)
        rows.append(
            [
                kind,
                texts.vocab_size,
                model.config.num_parameters,
                bytes_a_token,
                bytes_a_token * scale.seq_len,
                mean,
                half_width,
                sum(seconds) / len(seconds),
            ]
        )
        detail[kind] = {"bits_per_byte": mean, "half_width": half_width, "all": bits}
    columns = [
        "tokens",
        "vocabulary",
        "parameters",
        "bytes a token",
        "context in bytes",
        "held-out bits per byte",
        "± 95 %",
        "seconds",
    ]
    formats = ["", ",d", ",d", ".2f", ".0f", ".3f", ".3f", ".0f"]
    results = {
        "char_vs_subword": {"columns": columns, "rows": rows, "formats": formats},
        "char_vs_subword_detail": detail,
        "char_vs_subword_xz": 8 * len(lzma.compress(held_out, preset=9)) / len(held_out),
        "char_vs_subword_steps": scale.subword_steps,
    }
    return results, model, tokenizer


def measure_cache(scale: Scale) -> dict[str, Any]:
    """Milliseconds a token at each length of the context, with and without the cache."""
    longest = max(scale.cache_lengths)
    model = new_gpt(scale, vocab_size=256, seed=0, max_seq_len=longest + 8).eval()
    ids = torch.randint(256, (1, longest), generator=torch.Generator().manual_seed(5))
    rows = []
    for length in progress(scale.cache_lengths, desc="cache", unit="length"):
        with torch.inference_mode():
            without = _median_ms(lambda n=length: model(ids[:, :n], last_only=True))
            cache = model.new_cache(1)
            model(ids[:, : length - 1], cache=cache)

            def one_token(cache=cache, n=length) -> None:
                model(ids[:, n - 1 : n], cache=cache, last_only=True)
                cache.truncate(n - 1)

            with_cache = _median_ms(one_token)
        rows.append([length, without, with_cache, without / with_cache])
    cache = model.new_cache(1)
    config = model.config
    columns = ["context T", "without cache, ms a token", "with cache, ms a token", "ratio"]
    return {
        "cache": {"columns": columns, "rows": rows, "formats": [",d", ".2f", ".2f", ".1f"]},
        "cache_ratio_at_max": rows[-1][-1],
        "cache_max_context": longest,
        "cache_bytes_a_token": cache.nbytes / cache.max_seq_len,
        "cache_bytes_a_token_by_formula": 2 * config.num_layers * config.d_model * 4,
    }


def measure_sampling(model: GPT, tokenizer: LibraryTokenizer, scale: Scale) -> dict[str, Any]:
    """How temperature and top-p trade words that exist against words that vary.

    Every setting continues the same beginnings, an eighth of a window of held-out text each, to
    the length of the windows that the model was trained on, and no further.
    """
    train, held_out = corpus_bytes(max_bytes=scale.train_bytes, held_out_bytes=scale.held_out_bytes)
    known = set(_words(train.decode("utf-8", errors="replace")))
    rows = []
    ids = tokenizer.encode(held_out.decode("utf-8", errors="replace")).ids
    begun = max(1, scale.seq_len // 8)
    length = scale.seq_len - begun
    count = min(max(1, scale.sampled_tokens // length), len(ids) // scale.seq_len)
    prompts = [ids[i * scale.seq_len :][:begun] for i in range(count)]
    settings = [
        (0.0, None),
        (0.5, None),
        (0.8, None),
        (0.8, 0.9),
        (1.0, None),
        (1.0, 0.9),
        (1.4, None),
    ]
    for temperature, top_p in progress(settings, desc="sampling", unit="setting"):
        texts = generate(
            model,
            prompts,
            max_new_tokens=length,
            sampling=SamplingConfig(temperature=temperature, top_p=top_p),
            generator=torch.Generator().manual_seed(6),
        )
        words = [word for text in texts for word in _words(tokenizer.decode(text))]
        rows.append(
            [
                f"{temperature:g}" if temperature else "0 (greedy)",
                "–" if top_p is None else f"{top_p:g}",
                100 * sum(word in known for word in words) / max(1, len(words)),
                100 * len(set(words)) / max(1, len(words)),
            ]
        )
    columns = ["temperature", "top-p", "words known, %", "distinct words, %"]
    return {"sampling": {"columns": columns, "rows": rows, "formats": ["", "", ".1f", ".1f"]}}


def watch_induction(scale: Scale) -> tuple[dict[str, Any], GPT]:
    """Train one layer and two on repeated random tokens: the results, and a two-layer GPT."""
    half, vocab_size = min(24, scale.seq_len // 2), 32
    results: dict[str, Any] = {
        "half": half,
        "vocab_size": vocab_size,
        "steps": scale.induction_steps,
        "ln_vocab": math.log(vocab_size),
    }
    rows = []
    model = new_gpt(scale, vocab_size=vocab_size, seed=0)
    for layers in (1, 2):
        losses, scores, curves = [], [], []
        for seed in progress(range(scale.seeds), desc=f"induction, {layers} layer(s)", unit="seed"):
            model = new_gpt(
                scale, vocab_size=vocab_size, seed=seed, num_layers=layers, max_seq_len=2 * half
            )
            curve: list[list[float]] = []

            def record(step: int, loss: float, model=model, curve=curve) -> None:
                if step % max(1, scale.induction_steps // 25) == 0:
                    model.eval()
                    curve.append([step, repetition_loss(model, half=half, seed=7)])
                    model.train()

            train_briefly(
                model,
                repeated_batches(batch_size=32, half=half, vocab_size=vocab_size, seed=seed),
                steps=scale.induction_steps,
                on_step=record,
            )
            losses.append(repetition_loss(model, half=half, seed=7))
            scores.append(float(induction_scores(model, half=half, seed=8).max()))
            curves.append(curve)
        loss, loss_width = interval(losses)
        score, score_width = interval(scores)
        rows.append([layers, loss, loss_width, score, score_width])
        results[f"{layers}_layers"] = {
            "second_half_loss": loss,
            "half_width": loss_width,
            "best_head_score": score,
            "losses": losses,
            "scores": scores,
            "curves": curves,
        }
    columns = ["layers", "nats, second half", "± 95 %", "best head's score", "± 95 % "]
    table = {"columns": columns, "rows": rows, "formats": ["d", ".2f", ".2f", ".2f", ".2f"]}
    return {"induction": results, "induction_table": table}, model


def profile_step(scale: Scale) -> dict[str, Any]:
    """Where the time of one training step goes, and how much of it is matrix products."""
    texts = byte_texts(max_bytes=200_000, held_out_bytes=1000)
    model = new_gpt(scale, vocab_size=256, seed=0)
    ids, targets = next(_windows(texts, scale, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        shifted_loss(model, ids, targets).backward()
        optimizer.step()

    milliseconds = _median_ms(step)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(5):
            step()
    events = [e for e in profile.key_averages() if e.self_cpu_time_total > 0]
    total = sum(e.self_cpu_time_total for e in events)
    events.sort(key=lambda e: -e.self_cpu_time_total)
    rows = [[e.key, 100 * e.self_cpu_time_total / total, e.count // 5] for e in events[:8]]
    products = re.compile(r"aten::(addmm|mm|bmm|matmul|linear)$")
    matrix_share = sum(e.self_cpu_time_total for e in events if products.match(e.key)) / total
    left, right = torch.randn(2, 1024, 1024)
    peak = 2 * 1024**3 / (_median_ms(lambda: left @ right) / 1e3)
    flops = model.config.flops_per_token(scale.seq_len) * ids.numel()
    achieved = flops / (milliseconds / 1e3)
    columns = ["operation", "share of the time, %", "calls a step"]
    return {
        "profile": {"columns": columns, "rows": rows, "formats": ["", ".1f", "d"]},
        "profile_matrix_share": 100 * matrix_share,
        "profile_step_ms": milliseconds,
        "profile_gflops": achieved / 1e9,
        "profile_peak_gflops": peak / 1e9,
        "profile_mfu": 100 * achieved / peak,
    }


def library_bpe(text: bytes, vocab_size: int) -> LibraryTokenizer:
    """A byte-level BPE trained by the `tokenizers` library; topic 06 writes our own."""
    tokenizer = LibraryTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = io.StringIO(text.decode("utf-8", errors="ignore"))
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def _encode(tokenizer: LibraryTokenizer, text: bytes) -> Tensor:
    return torch.tensor(tokenizer.encode(text.decode("utf-8", errors="ignore")).ids)


def _windows(texts: Texts, scale: Scale, seed: int):
    return next_token_windows(
        texts.train, batch_size=scale.batch_size, seq_len=scale.seq_len, seed=seed
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]{3,}", text)


def _median_ms(call, *, rounds: int = 31) -> float:
    """Median milliseconds of a call, after two that are not counted."""
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[rounds // 2]
