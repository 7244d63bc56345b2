"""Talk to a language model on disk: load it, and stream completions of what is typed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TextIO

import torch

from fast_decoding import decoding_copy
from gpt import GPT
from hf_weights import GPT2_FAMILY, Family, load_pretrained
from llama import LLAMA_FAMILY, QWEN3_FAMILY, Llama
from run_folder import RunError
from text_generation import SamplingConfig, stream_text
from tokenizer import Tokenizer

FAMILIES: tuple[Family, ...] = (GPT2_FAMILY, QWEN3_FAMILY, LLAMA_FAMILY)


def load_model_folder(folder: Path, *, device: torch.device) -> tuple[GPT | Llama, Tokenizer]:
    """Read a finished run, or any directory that `transformers` saved for a known architecture.

    Raises: RunError where there is no such folder, or the model or its tokenizer cannot be read.
    """
    if not folder.is_dir():
        raise RunError(f"--sample {folder}: there is no such folder")
    if not (folder / "config.json").is_file():
        unfinished = (folder / "run.json").is_file()
        hint = (
            f"the run is not finished; continue it with --resume {folder}"
            if unfinished
            else "it holds no config.json"
        )
        raise RunError(f"--sample {folder}: {hint}")
    try:
        model = load_pretrained(folder, FAMILIES, device=device)
        tokenizer = Tokenizer.load(folder)
    except (ValueError, OSError) as error:
        raise RunError(f"--sample {folder}: {error}") from error
    return model.eval(), tokenizer


def ready_to_talk(model: GPT | Llama) -> GPT | Llama:
    """The model as it writes fastest: on a CPU a copy whose weights are laid out for decoding."""
    model.eval()
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return decoding_copy(model) if on_cpu else model


def stream_completion(
    model: GPT | Llama,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator,
    out: TextIO,
) -> str:
    """Write the prompt's completion to `out` as it is made, and return it.

    Prompt and completion share the model's context: a completion takes at most half of it, and of
    a longer prompt the end is kept.
    """
    context = model.config.max_seq_len
    max_new_tokens = min(max_new_tokens, max(1, context // 2))
    ids = tokenizer.encode(prompt)
    if len(ids) + max_new_tokens > context:
        prompt = tokenizer.decode(ids[len(ids) - (context - max_new_tokens) :])
    pieces = []
    for piece in stream_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        generator=generator,
    ):
        out.write(piece)
        out.flush()
        pieces.append(piece)
    return "".join(pieces)


def prompt_loop(
    model: GPT | Llama,
    tokenizer: Tokenizer,
    *,
    sampling: SamplingConfig,
    seed: int,
    max_new_tokens: int,
) -> None:
    """Read prompts from the terminal and stream completions, until an empty line or end of input.

    `\\n` in a prompt stands for a line break, so that a prompt may have several lines.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    sys.stdout.write("\nType the start of a text (\\n for a line break); an empty line ends.\n")
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        if not line.strip():
            return
        prompt = line.replace("\\n", "\n")
        sys.stdout.write(prompt)
        with contextlib.suppress(KeyboardInterrupt):  # stops this completion only
            stream_completion(
                model,
                tokenizer,
                prompt,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                generator=generator,
                out=sys.stdout,
            )
        sys.stdout.write("\n\n")
