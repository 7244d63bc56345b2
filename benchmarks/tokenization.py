"""Training a byte-level BPE and encoding with it, beside `tokenizers` and `tiktoken`.

The text is the standard library, the merges and ids are checked to be the same for all, and the
contestants take turns. Training has two threads on either side (ours: one process, or two that cut
the text), encoding one. Memory is what a fresh process holds at its peak above what it held before.

Recounting all pairs before every merge is measured where it is feasible. At the full size its time
is an estimate: that of a step at the beginning, scaled with the number of symbols left later on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, pre_tokenizers, trainers

from bpe import BPE, train_bpe, train_bpe_by_recounting
from corpora import load_corpus
from lab import Timing, peak_memory_bytes, progress, script_parser, time_side_by_side
from lab_results import format_table, write_results
from pretokens import count_pretokens
from tokenizer import Tokenizer

_COLUMNS = ("task", "contestant", "seconds", "MB/s", "times tokenizers", "slowest", "fastest")
_FORMATS = ("", "", ".2f", ".2f", ".2f", ".2f", ".2f")
_BYTES = 256


def main(argv: list[str] | None = None) -> int:
    """Time everything, print the table, write tokenization.json."""
    args = _parser().parse_args(argv)
    # Read when `tokenizers` first starts its threads, which it has not done yet.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    started = time.perf_counter()
    size, merges, small_size, small_merges = 10_000_000, 8000, 2_000_000, 4000
    streamed = 100_000_000
    rounds = args.rounds
    if args.smoke:
        size, merges, small_size, small_merges = 300_000, 300, 50_000, 30
        streamed, rounds = 1_000_000, 2
    texts = [document.text for document in load_corpus("stdlib", max_bytes=size)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {megabytes:.2f} MB, {merges:,} merges, {args.threads} threads")
    results: dict[str, Any] = {
        "megabytes": megabytes,
        "documents": len(texts),
        "merges": merges,
        "threads": args.threads,
        "rounds": rounds,
    }
    rows: list[list[Any]] = []

    bpe = train_bpe(texts, _BYTES + merges)
    _check_training(bpe, _train_theirs(texts, merges))
    for name, timings in progress(
        {
            "train": lambda: _race_training(texts, merges, args.threads, rounds),
            "encode": lambda: _race_encoding(texts, bpe, rounds),
        }.items(),
        desc="races",
        unit="race",
    ):
        results[name] = _compare(timings(), megabytes)
        rows.extend(
            [name, contestant, *cells.values()] for contestant, cells in results[name].items()
        )

    results["recounting"] = _recounting(texts, bpe, small_size, small_merges, results["train"])
    results["memory"] = _memory(texts, bpe, merges, streamed)
    results["table"] = {"columns": list(_COLUMNS), "rows": rows}
    print(format_table(_COLUMNS, rows, _FORMATS))
    recount, memory = results["recounting"], results["memory"]
    print(
        f"recounting {recount['megabytes']:.2f} MB to {small_merges:,} merges: "
        f"{recount['seconds']:.1f} s, {recount['times_slower']:.0f} times ours; at the full size, "
        f"estimated, {recount['estimated_full_seconds']:.0f} s, "
        f"{recount['estimated_full_times_slower']:.0f} times ours"
    )
    print("peak memory, MB: " + ", ".join(f"{name} {mb:.0f}" for name, mb in memory.items()))
    path = (args.out or Path(__file__).parent / "results") / "tokenization.json"
    write_results(
        path,
        results,
        command=" ".join(["python", "benchmarks/tokenization.py", *(argv or sys.argv[1:])]),
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
        epilog="Nothing here is random and nothing runs on a GPU: --seed, --device change nothing.",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads in training (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each race (default: 7)")
    return parser


# --- races -----------------------------------------------------------------------------------


def _train_theirs(texts: list[str], merges: int) -> Theirs:
    theirs = Theirs(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_BYTES + merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def _check_training(bpe: BPE, theirs: Theirs) -> None:
    """A faster wrong answer is no result."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        theirs.save(str(path))
        read = Tokenizer.load(path).bpe
    if (read.merges, read.vocab) != (bpe.merges, bpe.vocab):
        raise RuntimeError("the merges are not those of tokenizers")


def _race_training(texts: list[str], merges: int, threads: int, rounds: int) -> dict[str, Timing]:
    return time_side_by_side(
        {
            "tokenizers": lambda: _train_theirs(texts, merges),
            "ours, one process": lambda: train_bpe(texts, _BYTES + merges),
            f"ours, {threads} processes": lambda: train_bpe(
                texts, _BYTES + merges, workers=threads
            ),
        },
        rounds=rounds,
    )


def _race_encoding(texts: list[str], bpe: BPE, rounds: int) -> dict[str, Timing]:
    ours = Tokenizer.from_bpe(bpe, ())
    with tempfile.TemporaryDirectory() as folder:
        ours.save(Path(folder) / "tokenizer.json")
        file = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
    theirs = Theirs.from_str(file)
    ranks = tiktoken.Encoding(
        "bpe", pat_str=bpe.pattern, mergeable_ranks=bpe.vocab, special_tokens={}
    )
    # One text at a time is one thread's work in each of them.
    contestants: dict[str, Callable[[], list[Any]]] = {
        "tokenizers": lambda: [theirs.encode(text).ids for text in texts],
        "tokenizers, no offsets": lambda: [theirs.encode_batch_fast([t])[0].ids for t in texts],
        "tiktoken": lambda: [ranks.encode_ordinary(text) for text in texts],
        "ours": lambda: [ours.encode(text) for text in texts],
        "ours, nothing seen before": lambda: _encode_anew(bpe, texts),
        "ours, with offsets": lambda: [ours.encode_with_offsets(text)[0] for text in texts],
    }
    want = contestants["tokenizers"]()
    for name, encode in contestants.items():
        if encode() != want:
            raise RuntimeError(f"{name} does not give the ids of tokenizers")
    return time_side_by_side(contestants, rounds=rounds)


def _encode_anew(bpe: BPE, texts: list[str]) -> list[list[int]]:
    fresh = bpe.shifted(0)  # a copy that has no word in its cache
    return [fresh.encode(text) for text in texts]


def _compare(timings: dict[str, Timing], megabytes: float) -> dict[str, dict[str, float]]:
    theirs = timings["tokenizers"]
    compared = {}
    for name, timing in timings.items():
        speedups = theirs.ratios(timing)
        compared[name] = {
            "seconds": timing.median,
            "megabytes_per_second": megabytes / timing.median,
            "speedup": statistics.median(speedups),
            "slowest": min(speedups),
            "fastest": max(speedups),
        }
    return compared


# --- recounting and memory -------------------------------------------------------------------


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _recounting(
    texts: list[str], bpe: BPE, size: int, merges: int, training: dict[str, Any]
) -> dict[str, float]:
    some: list[str] = []
    while texts[len(some) :] and sum(map(len, some)) < size:
        some.append(texts[len(some)])
    slow = _seconds(lambda: train_bpe_by_recounting(some, _BYTES + merges))
    fast = statistics.median(_seconds(lambda: train_bpe(some, _BYTES + merges)) for _ in range(3))
    # A step of recounting goes through every symbol of every distinct word.
    first_steps = min(64, len(bpe.merges))  # enough for the noise of the counting to be small
    counting = _seconds(lambda: train_bpe_by_recounting(texts, _BYTES))
    stepping = _seconds(lambda: train_bpe_by_recounting(texts, _BYTES + first_steps)) - counting
    step = stepping / first_steps
    words = [word.encode() for word in count_pretokens(texts)]
    marks = [round(len(bpe.merges) * share) for share in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)]
    left = [_symbols_left(bpe, mark, words) for mark in marks]
    area = sum(
        (marks[i + 1] - marks[i]) * (left[i] + left[i + 1]) / 2 for i in range(len(marks) - 1)
    )
    estimate = counting + step * area / left[0]
    return {
        "megabytes": sum(len(text.encode()) for text in some) / 1e6,
        "merges": merges,
        "seconds": slow,
        "ours_seconds": fast,
        "times_slower": slow / fast,
        "estimated_full_seconds": estimate,
        "estimated_full_times_slower": estimate / training["ours, one process"]["seconds"],
    }


def _symbols_left(bpe: BPE, merges: int, words: list[bytes]) -> int:
    early = BPE(bpe.merges[:merges], bpe.vocab, bpe.pattern)
    return sum(len(early.merge(word)) for word in words)


def _memory(texts: list[str], bpe: BPE, merges: int, streamed: int) -> dict[str, float]:
    """Megabytes that each task adds to a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, long, model = (Path(folder) / name for name in ("corpus", "long", "tokenizer.json"))
        corpus.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        Tokenizer.from_bpe(bpe, ()).save(model)
        with long.open("w", encoding="utf-8", newline="") as file:
            written = 0
            while written < streamed:
                for text in texts:
                    written += file.write(text)
        found = {}
        for name in ("train, ours", "train, tokenizers", "encode, ours", "stream, ours"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                task = pool.submit(_held, name, corpus, long, model, merges)
                found[name] = task.result() / 1e6
    found["streamed file"] = streamed / 1e6
    return found


def _held(name: str, corpus: Path, long: Path, model: Path, merges: int) -> int:
    tokenizer = Tokenizer.load(model)
    texts: list[str] = []
    if not name.startswith("stream"):
        with corpus.open(
            encoding="utf-8"
        ) as lines:  # one by one: a peak here would hide the task's
            texts = [json.loads(line) for line in lines]
    before = peak_memory_bytes()
    if name == "train, ours":
        train_bpe(texts, _BYTES + merges)
    elif name == "train, tokenizers":
        _train_theirs(texts, merges)
    elif name == "encode, ours":
        for text in texts:
            tokenizer.encode(text)
    else:
        with long.open(encoding="utf-8", newline="") as file:
            for _ in tokenizer.encode_iter(file):
                pass
    return peak_memory_bytes() - before


if __name__ == "__main__":
    sys.exit(main())
