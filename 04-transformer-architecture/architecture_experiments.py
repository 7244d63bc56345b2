"""The experiments of topic 04; `transformer_architecture.py` runs them.

Each returns plain results for results.json. Sizes come in an `ArchitectureScale`, so that a smoke
run goes through the same code in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from attention import MultiHeadAttention, scaled_dot_product_attention
from corpora import load_corpus, split_corpus
from lab import count_parameters, interval, progress
from number_words import number_pairs
from numerics import cross_entropy
from scheme_lm import PositionScheme, SchemeLM, bits_by_position, language_loss
from transformer import Transformer
from translation import (
    ParallelText,
    score_translations,
    train_transformer,
    train_with_adam,
    translate_words,
)


@dataclass(frozen=True, kw_only=True)
class ArchitectureScale:
    """How large the experiments are."""

    seeds: int
    train_bytes: int
    held_out_bytes: int
    train_pairs: int
    held_out_pairs: int
    translation_steps: int
    translation_width: int
    ladder_stories: int
    ladder_steps: int
    norm_layers: int
    norm_steps: int
    norm_rate: float
    position_steps: int
    position_width: int
    position_layers: int
    train_length: int
    test_lengths: tuple[int, ...]


DEFAULT_SCALE_04 = ArchitectureScale(
    seeds=3,
    train_bytes=3_000_000,
    held_out_bytes=32_768,
    train_pairs=40_000,
    held_out_pairs=400,
    translation_steps=2200,
    translation_width=96,
    ladder_stories=3500,
    ladder_steps=2000,
    norm_layers=6,
    norm_steps=160,
    norm_rate=1e-3,
    position_steps=220,
    position_width=64,
    position_layers=2,
    train_length=64,
    test_lengths=(64, 128, 256, 512),
)
SMOKE_SCALE_04 = ArchitectureScale(
    seeds=2,
    train_bytes=200_000,
    held_out_bytes=2_048,
    train_pairs=200,
    held_out_pairs=20,
    translation_steps=4,
    translation_width=16,
    ladder_stories=20,
    ladder_steps=4,
    norm_layers=2,
    norm_steps=4,
    norm_rate=1e-3,
    position_steps=4,
    position_width=16,
    position_layers=1,
    train_length=16,
    test_lengths=(16, 32),
)


# --- text ---------------------------------------------------------------------------------------


def library_text(scale: ArchitectureScale) -> tuple[Tensor, Tensor]:
    """(training bytes, held-out bytes) of the standard library's sources, split by document."""
    parts = split_corpus(load_corpus("stdlib"), fraction=0.1, seed=0)
    return tuple(
        _byte_sample(part, limit)
        for part, limit in zip(parts, (scale.train_bytes, scale.held_out_bytes), strict=True)
    )  # type: ignore[return-value]


def byte_windows(
    ids: Tensor, *, batch_size: int, length: int, seed: int
) -> Iterator[tuple[Tensor]]:
    """Random windows (B, T + 1) without end, each in a tuple for `train_with_adam`."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(length + 1)
    while True:
        starts = torch.randint(len(ids) - length, (batch_size, 1), generator=generator)  # (B, 1)
        yield (ids[starts + offsets],)


def _byte_sample(documents: Any, limit: int) -> Tensor:
    """Documents in an order drawn once, one after another, at most `limit` bytes: (N,)."""
    texts = [document.text.encode() for document in documents]
    order = np.random.default_rng(0).permutation(len(texts))
    text = b"".join(texts[i] for i in order)[:limit]
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))


# --- translation --------------------------------------------------------------------------------


def small_transformer(
    text: ParallelText, *, width: int, layers: int = 2, seed: int, pre_norm: bool = False
) -> Transformer:
    """A small 2017 model for this text, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(
            len(text.source),
            len(text.target),
            d_model=width,
            num_heads=4,
            num_encoder_layers=layers,
            num_decoder_layers=layers,
            d_ff=4 * width,
            dropout=0.0,
            max_seq_len=128,
            pad_id=text.pad_id,
            pre_norm=pre_norm,
        )


def translate_text(
    text: ParallelText, scale: ArchitectureScale, *, steps: int, width: int, label: str
) -> tuple[dict[str, Any], Transformer]:
    """Train on the text with each seed; BLEU and exact matches, greedily and with four beams."""
    scores: dict[str, list[dict[str, float]]] = {"greedy": [], "beam": []}
    seconds, model = [], small_transformer(text, width=width, seed=0)
    for seed in progress(range(scale.seeds), desc=label, unit="seed"):
        model = small_transformer(text, width=width, seed=seed)
        began = time.perf_counter()
        train_transformer(model, text, steps=steps, warmup=max(1, steps // 8), seed=seed)
        seconds.append(time.perf_counter() - began)
        for name, beams in (("greedy", 1), ("beam", 4)):
            scores[name].append(asdict(score_translations(model, text, num_beams=beams)))
    rows = []
    for name, found in scores.items():
        columns = [[100 * s["exact"] for s in found], [100 * s["exact_unseen"] for s in found]]
        rows.append([name, *interval([s["bleu"] for s in found]), *(np.mean(c) for c in columns)])
    return {
        "table": {
            "columns": ["search", "BLEU", "± 95 %", "exact, %", "exact among unseen, %"],
            "rows": rows,
            "formats": ["", ".2f", ".2f", ".1f", ".1f"],
        },
        "bleu": rows[0][1],
        "bleu_lowest": min(s["bleu"] for s in scores["greedy"]),
        "exact": rows[0][3],
        "beam_bleu": rows[1][1],
        "parameters": count_parameters(model),
        "train_pairs": len(text.train),
        "held_out_pairs": len(text.held_out),
        "unseen": scores["greedy"][0]["unseen"],
        "steps": steps,
        "seconds": float(np.mean(seconds)),
        "example": _example(model, text),
    }, model


def number_text(scale: ArchitectureScale) -> ParallelText:
    """Spelled-out numbers, English and German; the held-out ones are not in the training text."""
    held_out = scale.held_out_pairs
    pairs = number_pairs(min(scale.train_pairs, 6000) + held_out, seed=1)
    return ParallelText(pairs[held_out:], pairs[:held_out])


def _example(model: Transformer, text: ParallelText) -> dict[str, str]:
    source, reference = text.held_out[0]
    (written,) = translate_words(model, text, [source])
    return {
        "source": " ".join(source),
        "written": " ".join(written),
        "reference": " ".join(reference),
    }


# --- norms --------------------------------------------------------------------------------------


def _norm_model(
    text: ParallelText, scale: ArchitectureScale, *, pre_norm: bool, seed: int
) -> Transformer:
    """A deep, narrow 2017 model for spelled-out numbers."""
    return small_transformer(text, width=64, layers=scale.norm_layers, seed=seed, pre_norm=pre_norm)


def _plain_loss(model: nn.Module, src: Tensor, reads: Tensor, says: Tensor) -> Tensor:
    """Nats a word, without smoothing."""
    return cross_entropy(model(src, reads), says)


def gradients_at_start(text: ParallelText, scale: ArchitectureScale) -> dict[str, Any]:
    """Norm of the gradient of each decoder layer's last matrix in a fresh model, by kind."""
    rows: dict[bool, list[float]] = {}
    batch = text.batch(text.train[:64])
    for pre_norm in (True, False):
        norms = []
        for seed in range(scale.seeds):
            model = _norm_model(text, scale, pre_norm=pre_norm, seed=seed)
            _plain_loss(model, *batch).backward()
            norms.append(
                [
                    float(parameter.grad.norm())
                    for name, parameter in model.decoder.named_parameters()
                    if name.endswith("down.weight") and parameter.grad is not None
                ]
            )
        rows[pre_norm] = np.mean(norms, axis=0).tolist()
    pre, post = rows[True], rows[False]
    return {
        "start_gradients": {"pre": pre, "post": post},
        "start_gradient_ratio": {
            "pre": pre[-1] / pre[0],
            "post": post[-1] / post[0],
            "last_layer": post[-1] / pre[-1],
        },
    }


def compare_norms(scale: ArchitectureScale) -> dict[str, Any]:
    """Train deep translators with norms before and after, with and without warm-up."""
    text = number_text(scale)
    results = gradients_at_start(text, scale)
    held_out = text.batch(text.held_out)
    rows, curves, means = [], {}, []
    cases = [(pre_norm, warm) for pre_norm in (True, False) for warm in (True, False)]
    for pre_norm, warm in progress(cases, desc="norms", unit="case"):
        nats, losses, exact = [], [], []
        for seed in range(scale.seeds):
            model = _norm_model(text, scale, pre_norm=pre_norm, seed=seed)
            warmup = scale.norm_steps // 2 if warm else 0
            losses.append(
                train_with_adam(
                    model,
                    _plain_loss,
                    text.batches(batch_size=32, seed=seed),
                    steps=scale.norm_steps,
                    rate=partial(_warm_then_constant, peak=scale.norm_rate, warmup=warmup),
                    clip=None,
                )
            )
            with torch.no_grad():
                nats.append(float(_plain_loss(model, *held_out)))
            exact.append(100 * score_translations(model, text).exact)
        name = ("pre" if pre_norm else "post") + ("_warm" if warm else "_cold")
        curves[name] = np.mean(losses, axis=0).tolist()
        means.append(float(np.mean(nats)))
        results[f"norm_{name}"] = means[-1]
        kind, warmed = "pre-norm" if pre_norm else "post-norm", "yes" if warm else "no"
        rows.append([kind, warmed, *interval(nats), max(nats), float(np.mean(exact))])
    results["norms"] = {
        "columns": [
            "norms", "warm-up", "held-out nats a word", "± 95 %", "worst seed", "exact, %",
        ],
        "rows": rows,
        "formats": ["", "", ".3f", ".3f", ".3f", ".0f"],
    }  # fmt: skip
    results["norm_curves"] = curves
    results["norm_best"] = min(means)
    results["norm_worst"] = max(means)
    results["norm_layers"] = scale.norm_layers
    results["norm_steps"] = scale.norm_steps
    results["norm_rate"] = scale.norm_rate
    return results


def _warm_then_constant(step: int, *, peak: float, warmup: int) -> float:
    return peak * min(1.0, step / warmup) if warmup else peak


# --- positions ----------------------------------------------------------------------------------


def compare_positions(scale: ArchitectureScale) -> dict[str, Any]:
    """Six schemes trained at one length and scored at longer ones; several seeds."""
    train, held_out = library_text(scale)
    T, longest = scale.train_length, max(scale.test_lengths)
    rows, curves, detail = [], {}, {}
    for scheme in progress(get_args(PositionScheme), desc="positions", unit="scheme"):
        bits: dict[int, list[float]] = {length: [] for length in scale.test_lengths}
        by_position = []
        for seed in range(scale.seeds):
            model = SchemeLM(
                vocab_size=256,
                d_model=scale.position_width,
                num_heads=4,
                num_layers=scale.position_layers,
                scheme=scheme,
                max_seq_len=longest,
                seed=seed,
            )
            train_with_adam(
                model,
                language_loss,
                byte_windows(train, batch_size=16, length=T, seed=seed),
                steps=scale.position_steps,
                rate=partial(_trapezoid, peak=2e-3, steps=scale.position_steps),
            )
            for length in scale.test_lengths:
                found = bits_by_position(model, _held_out_windows(held_out, length))
                bits[length].append(float(found.mean()))
                if length == longest:
                    by_position.append(found)
        means = {length: interval(values) for length, values in bits.items()}
        rows.append([scheme, *(mean for mean, _ in means.values()), means[longest][1]])
        detail[scheme] = {
            str(length): {"mean": mean, "half_width": half}
            for length, (mean, half) in means.items()
        }
        curve = torch.stack(by_position).mean(dim=0)  # (longest,)
        bins = curve.view(-1, min(16, longest // 2)).mean(dim=1)
        curves[scheme] = bins.tolist()
    return {
        "positions": {
            "columns": ["scheme", *(f"T = {n}" for n in scale.test_lengths), "± 95 % at the last"],
            "rows": rows,
            "formats": ["", *(".3f" for _ in scale.test_lengths), ".3f"],
        },
        "positions_detail": detail,
        "position_curves": curves,
        "train_length": T,
        "position_parameters": count_parameters(
            SchemeLM(
                vocab_size=256,
                d_model=scale.position_width,
                num_heads=4,
                num_layers=scale.position_layers,
                scheme="none",
            )
        ),
    }


def _trapezoid(step: int, *, peak: float, steps: int) -> float:
    """Up over a tenth of the steps, down to zero over the last half."""
    return peak * min(1.0, 10 * step / steps, 2 * (steps + 1 - step) / steps)


def _held_out_windows(ids: Tensor, length: int) -> Tensor:
    """The text cut into windows (N, T + 1) that together score every byte but the first once."""
    count = (len(ids) - 1) // length
    return torch.stack([ids[i * length : (i + 1) * length + 1] for i in range(count)])


# --- cost ---------------------------------------------------------------------------------------


def count_base_model() -> dict[str, Any]:
    """Parameters and multiplications of the 2017 base model, by formula and by counting."""
    V, D, F, L = 37_000, 512, 2048, 6
    with torch.device("meta"):
        model = Transformer(V, V, share_embeddings=True)
    attention, feed_forward, norm = 4 * (D * D + D), 2 * D * F + F + D, 2 * D
    encoder = L * (attention + feed_forward + 2 * norm)
    decoder = L * (2 * attention + feed_forward + 3 * norm)
    return {
        "base": {
            "embedding": V * D,
            "encoder": encoder,
            "decoder": decoder,
            "formula": V * D + encoder + decoder,
            "counted": count_parameters(model),
        }
    }


def count_step_flops(scale: ArchitectureScale) -> dict[str, Any]:
    """FLOPs of one forward pass of the translator: the page's formula against PyTorch's count."""
    from torch.utils.flop_counter import FlopCounterMode

    B, S, T, V = 4, 24, 20, 500
    D, L = scale.translation_width, 2
    F = 4 * D
    model = Transformer(V, V, D, 4, L, L, F, dropout=0.0, pad_id=0).eval()
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):  # PyTorch does not count its own CPU kernel
            module.attend = scaled_dot_product_attention
    src = torch.randint(1, V, (B, S), generator=torch.Generator().manual_seed(0))
    tgt = torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(src, tgt)
    encoder = L * (S * (8 * D * D + 4 * D * F) + 4 * S * S * D)
    self_attention, cross = T * 8 * D * D + 4 * T * T * D, (4 * T + 4 * S) * D * D + 4 * T * S * D
    decoder = L * (self_attention + cross + T * 4 * D * F)
    formula = B * (encoder + decoder + 2 * T * D * V)
    return {
        "flops": {
            "formula": formula,
            "counted": counter.get_total_flops(),
            "ratio": formula / counter.get_total_flops(),
        }
    }
