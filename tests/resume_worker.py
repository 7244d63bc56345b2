"""A small training run to be killed and resumed.

As a program it imports everything once, then forks a fresh process for each line that it reads
from stdin, "SECONDS FOLDER", kills it with SIGKILL when the seconds are over, and answers with its
exit code, or minus the signal.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from gpt import GPT, GPTConfig
from lr_schedules import trapezoid
from token_dataset import TokenBatches, TokenShards
from train_loop import fit
from training import TrainingConfig, TrainingStep
from training_callbacks import Checkpointer, Evaluator, MetricsLog, SpikeRecovery

STEPS = 24


def train(shards: Path, out: Path, *, every_steps: int = 3) -> None:
    """Train to `STEPS`, from the newest checkpoint under `out` where there is one. Everything that
    makes resuming hard is on: dropout, accumulation, an average of the weights, AdamW, clipping, a
    schedule, evaluations in between, spikes that are repaired.
    """
    torch.set_num_threads(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    tokens = TokenShards(shards)
    config = GPTConfig(
        vocab_size=tokens.vocab_size,
        d_model=16,
        num_heads=2,
        num_layers=2,
        max_seq_len=16,
        dropout=0.2,
    )
    model = GPT(config)
    step = TrainingStep(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.1),
        trapezoid(STEPS, warmup_steps=4),
        TrainingConfig(tokens_per_step=8 * 16, seq_len=16, micro_batch_size=4, ema_decay=0.9),
    )
    batches = TokenBatches(tokens, batch_size=8, seq_len=16, seed=5)
    recovery = SpikeRecovery(
        step,
        window=8,
        threshold=0.1,
        min_rise=0.0,
        patience=1,
        snapshot_every=2,  # not with the checkpoints: the harder case
        max_recoveries=STEPS,
    )
    checkpointer = Checkpointer(
        out / "checkpoints",
        step,
        every_steps=every_steps,
        keep=2,
        config={"steps": STEPS},
        extras={"recovery": recovery},
    )
    start, _ = checkpointer.resume()
    callbacks = [
        recovery,
        Evaluator(step, tokens, every_steps=5, batch_size=8, seq_len=16, max_tokens=200),
        MetricsLog(out / "metrics.jsonl", tokens_per_step=8 * 16),
        checkpointer,
    ]
    fit(step, batches.iterate(start), callbacks, max_steps=STEPS, start_step=start)


def main() -> None:
    """Serve runs on the shards that the command line names."""
    importlib.import_module("torch._dynamo")  # the first optimizer would, in every process anew
    shards = Path(sys.argv[1])
    for line in sys.stdin:
        seconds, out = line.rstrip("\n").split(" ", 1)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(shards, Path(out))
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        end = time.monotonic() + float(seconds)
        ended, status = os.waitpid(child, os.WNOHANG)
        while not ended:
            if time.monotonic() >= end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
            ended, status = os.waitpid(child, os.WNOHANG)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
