"""Pretrain a language model: from raw text to a model of your own, in one command.

    python 10-pretraining-llms/pretrain.py                        the default: minutes on a laptop
    python 10-pretraining-llms/pretrain.py --smoke                the whole way in under a minute
    python 10-pretraining-llms/pretrain.py --corpus ~/notes       your own text
    python 10-pretraining-llms/pretrain.py --resume               go on where a run was stopped
    python 10-pretraining-llms/pretrain.py --sample runs/stdlib   talk to a finished run
    torchrun --nproc-per-node 2 10-pretraining-llms/pretrain.py   two processes, one model

What happens, in order: the corpus is split by document into training and held-out text; a
byte-pair tokenizer is trained on the first; both are written as token shards; a decoder is trained
on them for a time or a number of tokens; it is scored on the held-out text beside gzip and xz; and
the run's folder is left as a checkpoint that `transformers` loads.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import textwrap
from pathlib import Path

import torch

from completion import load_model_folder, prompt_loop, ready_to_talk, stream_completion
from corpora import CorpusError
from lab import pick_device, seed_everything
from pretrain_run import run_pretraining
from process_group import ProcessGroup
from run_folder import (
    Architecture,
    RunError,
    RunFolder,
    RunSettings,
    free_run_folder,
    latest_unfinished_run,
)
from run_presets import DEFAULT_PRESETS, RUN_PRESETS
from text_generation import SamplingConfig

RUNS = Path("runs")
DEFAULT_MINUTES = 5.5
SMOKE_TOKENS = 60_000
EXIT_WRONG_INPUT = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO)


def build_parser() -> argparse.ArgumentParser:
    """The command line; `--help` says what each choice costs and changes."""
    parser = argparse.ArgumentParser(
        prog="pretrain.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog=textwrap.dedent("""\
            a time budget is turned into a number of steps once, at the start, by timing a few
            steps; the number is written into run.json, and everything after it is determined by
            the seed. --tokens says the number directly.

            what to expect: a model of a few million parameters learns how its text looks (names,
            indentation, brackets that close) and little of what it means. Twice the time buys a
            few per cent of a bit; more text and a larger --preset together buy more.
            """),
    )
    what = parser.add_argument_group("what is learned")
    what.add_argument(
        "--corpus",
        metavar="C",
        help="stdlib: the Python standard library on this machine (default); course: this "
        "course's own pages and modules; PATH: a file or folder of .txt, .md, .py, .jsonl, "
        ".parquet; hf:NAME: a data set of the Hugging Face hub, streamed",
    )
    what.add_argument(
        "--arch",
        choices=tuple(RUN_PRESETS),
        help="modern: Qwen3's arrangement (default); gpt2: the classic one",
    )
    sizes = "; ".join(f"{arch}: {', '.join(presets)}" for arch, presets in RUN_PRESETS.items())
    what.add_argument(
        "--preset",
        metavar="SIZE",
        help=f"size of the model ({sizes}; default {DEFAULT_PRESETS['modern']})",
    )
    what.add_argument(
        "--vocab-size",
        type=int,
        metavar="V",
        help="tokens the tokenizer learns (default: the preset's)",
    )
    what.add_argument(
        "--context",
        type=int,
        metavar="T",
        help="tokens the model sees at once (default: the preset's)",
    )
    how = parser.add_argument_group("how long and how")
    budget = how.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes", type=float, metavar="M", help=f"training time (default {DEFAULT_MINUTES:g})"
    )
    budget.add_argument(
        "--tokens", type=int, metavar="N", help="training tokens, instead of a time"
    )
    how.add_argument(
        "--tokens-per-step",
        type=int,
        metavar="N",
        help="tokens in one optimiser step (default: the preset's)",
    )
    how.add_argument(
        "--lr",
        type=float,
        dest="learning_rate",
        metavar="LR",
        help="peak learning rate of the matrices (default: the preset's)",
    )
    how.add_argument("--device", help="auto (default), cpu, cuda, mps")
    how.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        help="auto (default) times both and takes the faster; master weights are float32",
    )
    how.add_argument("--seed", type=int, help="default 0")
    how.add_argument(
        "--smoke",
        action="store_true",
        default=None,
        help="the whole way on 1 MB of text with a tiny model, under a minute",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new folder for the run (default: the first free runs/CORPUS)",
    )
    where.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=RUNS,
        metavar="DIR",
        help="go on with a run that was stopped; without DIR, the latest under runs/",
    )
    talk = parser.add_argument_group("talking to a model")
    talk.add_argument(
        "--sample",
        type=Path,
        metavar="DIR",
        help="a finished run, or any directory that transformers saved for GPT-2, Qwen3 or Llama",
    )
    talk.add_argument(
        "--prompt", metavar="TEXT", help="complete this text and exit (default: ask for prompts)"
    )
    talk.add_argument(
        "--max-new-tokens",
        type=int,
        default=200,
        metavar="N",
        help="length of a completion (default 200)",
    )
    talk.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="0 always takes the likeliest token (default 0.8)",
    )
    talk.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help="sample from this much of the probability (default 0.95)",
    )
    return parser


def settings_given(args: argparse.Namespace) -> dict[str, object]:
    """The settings that stand on the command line, and only these."""
    names = RunSettings.__dataclass_fields__
    return {
        name: value for name, value in vars(args).items() if name in names and value is not None
    }


def complete_settings(given: dict[str, object]) -> RunSettings:
    """Fill in what the command line leaves open.

    Raises: RunError where a value is unknown or out of range.
    """
    smoke = bool(given.get("smoke", False))
    arch: Architecture = "gpt2" if given.get("arch") == "gpt2" else "modern"
    name = str(given.get("preset", "smoke" if smoke else DEFAULT_PRESETS[arch]))
    presets = RUN_PRESETS[arch]
    if name not in presets:
        raise RunError(
            f"--preset {name} is not known for --arch {arch}; choose from {', '.join(presets)}"
        )
    preset = presets[name]
    settings: dict[str, object] = {
        "corpus": "stdlib",
        "arch": arch,
        "preset": name,
        "vocab_size": preset.vocab_size,
        "context": preset.context,
        "tokens_per_step": preset.tokens_per_step,
        "learning_rate": preset.learning_rate,
        "minutes": None,
        "tokens": None,
        "device": "auto",
        "dtype": "auto",
        "seed": 0,
        "smoke": smoke,
    }
    settings.update(given)
    if settings["minutes"] is None and settings["tokens"] is None:
        settings["tokens" if smoke else "minutes"] = SMOKE_TOKENS if smoke else DEFAULT_MINUTES
    return RunSettings(**settings)  # type: ignore[arg-type]


def open_or_create(args: argparse.Namespace) -> RunFolder:
    """The folder that this call works in: a new one, or with --resume an old one.

    Raises: RunError where the folder is taken, missing, damaged, or the settings differ.
    """
    given = settings_given(args)
    if args.resume is not None:
        if args.out is not None:
            raise RunError("--resume goes on in its own folder; leave out --out")
        path = latest_unfinished_run(RUNS) if args.resume == RUNS else args.resume
        folder = RunFolder.open(path)
        folder.check_unchanged(given)
        if folder.state == "finished":
            raise RunError(
                f"--resume {path}: that run is finished; talk to it with --sample {path}"
            )
        folder.lock()
        return folder
    settings = complete_settings(given)
    try:
        pick_device(settings.device)
    except ValueError as error:
        raise RunError(f"--device {settings.device}: {error}") from error
    stem = "smoke" if settings.smoke else Path(settings.corpus.replace(":", "-")).name or "run"
    return RunFolder.create(args.out or free_run_folder(RUNS, stem), settings)


def sample(args: argparse.Namespace) -> None:
    """Complete `--prompt`, or ask for prompts where there is a terminal.

    Raises: RunError where the folder holds no model that can be read.
    """
    try:
        device = pick_device(args.device or "auto")
        sampling = SamplingConfig(temperature=args.temperature, top_p=args.top_p)
    except ValueError as error:
        raise RunError(str(error)) from error
    model, tokenizer = load_model_folder(args.sample, device=device)
    model = ready_to_talk(model)
    seed = args.seed or 0
    if args.prompt is None and sys.stdin.isatty():
        prompt_loop(
            model, tokenizer, sampling=sampling, seed=seed, max_new_tokens=args.max_new_tokens
        )
        return
    generator = torch.Generator().manual_seed(seed)
    prompts = [args.prompt] if args.prompt is not None else sys.stdin.read().splitlines()
    for prompt in prompts:
        sys.stdout.write(prompt)
        stream_completion(
            model,
            tokenizer,
            prompt,
            max_new_tokens=args.max_new_tokens,
            sampling=sampling,
            generator=generator,
            out=sys.stdout,
        )
        sys.stdout.write("\n")


def pretrain(args: argparse.Namespace, processes: ProcessGroup) -> None:
    """Start or continue a run, and talk to its model where there is a terminal.

    Raises: RunError, CorpusError where the input is wrong; a new run's folder is then taken away.
    """
    owned: list[RunFolder] = []  # the first process's, which alone holds the folder's lock

    def claim() -> Path:
        owned.append(open_or_create(args))
        return owned[0].path

    path = processes.from_first(claim)
    folder = owned[0] if owned else RunFolder.open(path)
    seed_everything(folder.settings.seed)

    def say(line: str) -> None:
        if processes.is_first:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    try:
        finished = run_pretraining(
            folder,
            processes,
            say=say,
            command=" ".join(["pretrain.py", *sys.argv[1:]]),
            workers=1,  # on a few megabytes, starting more costs more than they save
        )
    except (RunError, CorpusError):
        if owned and folder.plan is None:
            folder.discard()  # nothing was learned yet, so a corrected call finds the place free
        raise
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        what = f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
        raise RunError(f"{what}; put that right and go on with --resume {folder.path}") from error
    finally:
        folder.release()
    if processes.world_size == 1 and sys.stdin.isatty() and sys.stdout.isatty():
        sampling = SamplingConfig(temperature=args.temperature, top_p=args.top_p)
        prompt_loop(
            ready_to_talk(finished.model),
            finished.tokenizer,
            sampling=sampling,
            seed=folder.settings.seed,
            max_new_tokens=args.max_new_tokens,
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 when done, 2 with one sentence on stderr when the input is wrong."""
    args = build_parser().parse_args(argv)
    try:
        if args.sample is not None:
            sample(args)
            return 0
        with ProcessGroup.from_environment(os.environ) as processes:
            pretrain(args, processes)
        return 0
    except (RunError, CorpusError) as error:
        sys.stderr.write(f"pretrain.py: {error}\n")
    return EXIT_WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
