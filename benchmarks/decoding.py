"""Greedy decoding with a KV cache, one text at a time, beside `transformers`' `generate`.

Same weights, same prompt, same tokens out, fp32, eager mode. Two contestants are the course's:

  course           `generate(model, …)`, the model as it is trained
  course, blocked  `generate(decoding_copy(model), …)`: the same weights laid out for decoding

Decoding one token reads every weight once and does two operations with it, so memory sets a floor
under its time: bytes of weights / bandwidth. The bandwidth is measured here, with matrix-vector
products over a matrix far larger than any cache, and each contestant's share of what it would
reach at the floor is in the table. A share of 100% would be a program with no work but reading.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fast_decoding import decoding_copy
from gpt import GPT, GPTConfig, gpt_preset, parameter_count
from hf_weights import GPT2_FAMILY, save_pretrained
from lab import progress, script_parser, seed_everything, time_side_by_side
from lab_results import format_table, write_results
from text_generation import generate

_COURSE, _BLOCKED, _THEIRS = "course", "course, blocked", "transformers"
_PROMPT_LENGTH = 16
_COLUMNS = ("model", "contestant", "tokens/s", "times transformers", "slowest", "fastest", "floor")
_FORMATS = ("", "", ".1f", ".2f", ".2f", ".2f", ".0%")


def main(argv: list[str] | None = None) -> int:
    """Time the contestants at each size, print the table, write decoding.json."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    started = time.perf_counter()
    # Preset, new tokens, rounds.
    plan = [("12M", 128, args.rounds), ("gpt2", 48, max(3, args.rounds // 2))]
    matrix_rows = 8192
    if args.smoke:
        plan, matrix_rows = [("0.8M", 8, 2)], 256

    bandwidth = _bandwidth(matrix_rows)
    print(f"{args.threads} threads, {bandwidth / 1e9:.1f} GB/s in a matrix-vector product")
    results: dict[str, Any] = {"threads": args.threads, "bandwidth_gb_s": bandwidth / 1e9}
    rows: list[list[Any]] = []
    for name, new_tokens, rounds in progress(plan, desc="sizes", unit="model"):
        size = _race(gpt_preset(name), new_tokens, rounds, bandwidth, args.seed)
        results[name.replace(".", "_")] = size
        for contestant, numbers in size["contestants"].items():
            rows.append(
                [
                    f"{name} ({size['parameters'] / 1e6:.1f}M)",
                    contestant,
                    numbers["tokens_per_second"],
                    numbers["speedup"],
                    numbers["slowest"],
                    numbers["fastest"],
                    numbers["share_of_floor"],
                ]
            )
        print(
            f"{name}: {size['weight_megabytes']:.0f} MB a token, floor "
            f"{size['floor_ms']:.2f} ms; the output layer alone {size['head_megabytes']:.0f} MB, "
            f"{size['head_ms']['as trained']:.2f} ms as trained, "
            f"{size['head_ms']['blocked']:.2f} ms in blocks"
        )
    results["table"] = {"columns": list(_COLUMNS), "rows": rows, "formats": list(_FORMATS)}
    print(format_table(_COLUMNS, rows, _FORMATS))
    path = (args.out or Path(__file__).parent / "results") / "decoding.json"
    write_results(
        path,
        results,
        command=" ".join(["python", "benchmarks/decoding.py", *(argv or sys.argv[1:])]),
        seeds=[args.seed],
        device="cpu",
        wall_seconds=time.perf_counter() - started,
    )
    print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = script_parser(
        (__doc__ or "").splitlines()[0],
        default_out=Path(__file__).parent / "results",
        epilog="The claim is about CPUs: --device is accepted, and ignored.",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds at 12M (default: 11)")
    return parser


def _race(
    config: GPTConfig, new_tokens: int, rounds: int, bandwidth: float, seed: int
) -> dict[str, Any]:
    """Time all contestants at one size."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(seed)
    model = _varied(GPT(config, generator=generator).eval(), generator)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, GPT2_FAMILY)
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    # Neither side may stop early or be asked to look for an end token.
    theirs.generation_config.eos_token_id = None
    blocked = decoding_copy(model)
    prompt = torch.randint(config.vocab_size, (1, _PROMPT_LENGTH), generator=generator)

    def their_tokens() -> list[int]:
        out: Tensor = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return out[0, _PROMPT_LENGTH:].tolist()

    contestants = {
        _COURSE: lambda: generate(model, prompt, max_new_tokens=new_tokens)[0],
        _BLOCKED: lambda: generate(blocked, prompt, max_new_tokens=new_tokens)[0],
        _THEIRS: their_tokens,
    }
    tokens = {name: run() for name, run in contestants.items()}
    if any(found != tokens[_THEIRS] for found in tokens.values()):
        raise RuntimeError(f"the contestants do not write the same tokens: {tokens}")
    timings = time_side_by_side(contestants, rounds=rounds)

    bytes_read = _bytes_read(config)
    floor = bytes_read / bandwidth
    numbers = {}
    for name, timing in timings.items():
        ratios = timings[_THEIRS].ratios(timing)
        numbers[name] = {
            "tokens_per_second": new_tokens / timing.median,
            "speedup": timing.speedup_over(timings[_THEIRS]),
            "slowest": min(ratios),
            "fastest": max(ratios),
            "share_of_floor": floor / (timing.median / new_tokens),
            "best_share_of_floor": floor / (timing.min / new_tokens),
        }
    return {
        "parameters": parameter_count(config),
        "new_tokens": new_tokens,
        "rounds": rounds,
        "distinct_tokens": len(set(tokens[_THEIRS])),
        "weight_megabytes": bytes_read / 1e6,
        "floor_ms": 1e3 * floor,
        "head_megabytes": config.vocab_size * config.d_model * 4 / 1e6,
        "head_ms": _head_milliseconds(model, blocked, rounds),
        "contestants": numbers,
    }


def _bytes_read(config: GPTConfig) -> int:
    """Bytes of fp32 weights that one token needs: all but the tables, of which it needs a row."""
    positions = config.max_seq_len * config.d_model
    unread = positions + (0 if config.tie_embeddings else config.vocab_size * config.d_model)
    return 4 * (parameter_count(config) - unread)


def _bandwidth(rows: int) -> float:
    """Bytes a second in the fastest matrix-vector product over a matrix of rows × 16,384."""
    matrix = torch.randn(rows, 16_384)
    vector = torch.randn(16_384)
    blocks = torch.get_num_threads()
    parts = vector.view(blocks, 1, -1) if 16_384 % blocks == 0 else vector.view(1, 1, -1)
    # The same memory read as (in, out), its rows shared out among the threads.
    shared = matrix.view(parts.shape[0], parts.shape[2], rows)
    with torch.inference_mode():
        timings = time_side_by_side(
            {"mv": lambda: torch.mv(matrix, vector), "blocks": lambda: torch.bmm(parts, shared)},
            rounds=9,
        )
    return matrix.nbytes / min(timing.min for timing in timings.values())


def _head_milliseconds(model: GPT, blocked: GPT, rounds: int) -> dict[str, float]:
    """Median time of the output layer by itself, for one position."""
    x = torch.randn(1, 1, model.config.d_model)
    with torch.inference_mode():
        timings = time_side_by_side(
            {"as trained": lambda: model.unembed(x), "blocked": lambda: blocked.unembed(x)},
            rounds=rounds,
        )
    return {name: 1e3 * timing.median for name, timing in timings.items()}


@torch.no_grad()
def _varied(model: GPT, generator: torch.Generator) -> GPT:
    """Draw matrices large enough that the model does not write one token for ever."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(std=module.weight.shape[1] ** -0.5, generator=generator)
    return model


if __name__ == "__main__":
    sys.exit(main())
