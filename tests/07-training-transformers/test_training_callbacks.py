"""Callbacks in `fit`: what they show and keep, and that none of them touches the training."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from typing import Any, cast

import pytest
import torch

from checkpoints import latest_checkpoint
from gpt import GPT, GPTConfig
from lr_schedules import linear
from optimizers import AdamW, CombinedOptimizer, Muon, parameter_groups
from text_generation import SamplingConfig
from token_dataset import TokenBatches
from tokenizer import Tokenizer
from train_loop import Callback, LoopState, fit
from training import TrainingConfig, TrainingStep, evaluate_bits_per_byte
from training_callbacks import (
    Checkpointer,
    ConsoleLogger,
    Evaluator,
    MetricsLog,
    SampleWriter,
    SpikeRecovery,
)
from training_testing import averages, byte_tokenizer, text_shards

SEQ, ROWS = 12, 4
TOKENS = SEQ * ROWS


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return text_shards(tmp_path_factory.mktemp("shards"), "the cat sat on the mat. " * 30)


def training_of(*, lr=0.01, steps=8, dropout=0.2, **options):
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            vocab_size=257,
            d_model=16,
            num_heads=2,
            num_layers=1,
            max_seq_len=64,
            dropout=dropout,
        )
    )
    config = TrainingConfig(
        **{"tokens_per_step": TOKENS, "seq_len": SEQ, "micro_batch_size": ROWS, **options}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return TrainingStep(model, optimizer, linear(steps, warmup_steps=2), config)


def run(training, shards, callbacks=(), *, steps=8, start=0):
    batches = TokenBatches(shards, batch_size=ROWS, seq_len=SEQ, seed=0)
    return fit(training, batches.iterate(start), callbacks, max_steps=steps, start_step=start)


class Recorder(Callback):
    """The metrics of every step, as they are when it is this callback's turn."""

    def __init__(self):
        self.seen = []

    def on_step(self, state):
        self.seen.append({name: state.metric(name) for name in state.metrics})


def test_callbacks_leave_the_training_alone(shards, tmp_path):
    plain, watched = training_of(ema_decay=0.9), training_of(ema_decay=0.9)
    torch.manual_seed(7)
    run(plain, shards)
    torch.manual_seed(7)
    evaluation: dict[str, Any] = {"every_steps": 3, "batch_size": 2, "seq_len": SEQ}
    callbacks = [
        SpikeRecovery(watched),
        Evaluator(watched, shards, max_tokens=100, **evaluation),
        ConsoleLogger(tokens_per_step=TOKENS, every_steps=2, write=lambda line: None),
        MetricsLog(tmp_path / "m.jsonl", tokens_per_step=TOKENS),
        SampleWriter(
            watched, byte_tokenizer(), ["the"], tmp_path / "s.md", every_steps=2, max_new_tokens=9
        ),
        Checkpointer(tmp_path / "c", watched, every_steps=2),
    ]
    run(watched, shards, callbacks)
    assert watched.model.training
    for mine, other in zip(plain.parameters, watched.parameters, strict=True):
        assert torch.equal(mine, other)
    assert all(map(torch.equal, averages(plain), averages(watched)))


def found(pattern, line):
    """The first group of the pattern in the line."""
    match = re.search(pattern, line)
    assert match is not None, line
    return match[1]


# --- ConsoleLogger ----------------------------------------------------------------------------


def test_console_lines_are_aligned_and_say_what_they_promise(shards):
    lines = []
    training = training_of(steps=200)
    recorder = Recorder()
    logger = ConsoleLogger(
        tokens_per_step=TOKENS, every_steps=4, bytes_per_token=2.5, write=lines.append
    )
    evaluator = Evaluator(training, shards, every_steps=8, batch_size=2, seq_len=SEQ)
    run(training, shards, [recorder, evaluator, logger], steps=14)
    assert [found(r"step +(\d+)/14 ", line) for line in lines] == ["4", "8", "12", "14"]
    number = r" *[\d.,e+-]+"
    shape = re.compile(
        rf"step +\d+/14   loss{number}   {number} bits/byte   lr{number}   {number} tok/s   "
        rf"left +\d+:\d\d(   validation bits per byte{number})?"
    )
    assert all(shape.fullmatch(line) for line in lines)
    assert len({len(line) for line in lines if "validation" not in line}) == 1
    assert ["validation" in line for line in lines] == [False, True, False, True]
    # The loss is the mean since the last line; of the last line, over two steps.
    losses = [metrics["loss"] for metrics in recorder.seen]
    for line, some in zip(lines, (losses[:4], losses[4:8], losses[8:12], losses[12:]), strict=True):
        shown = float(found(r"loss +([\d.]+)", line))
        bits = float(found(r"([\d.]+) bits/byte", line))
        mean = sum(some) / len(some)
        assert shown == pytest.approx(mean, abs=6e-4)
        assert bits == pytest.approx(mean / math.log(2) / 2.5, abs=6e-4)


def test_speed_and_time_left_are_those_of_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    lines = []
    logger = ConsoleLogger(tokens_per_step=1000, every_steps=2, write=lines.append)
    state = LoopState(step=10, max_steps=4000)
    logger.on_start(state)
    for _ in range(4):
        now[0] += 2.0 if state.step < 12 else 4.0
        state.step += 1
        state.metrics = {"loss": 1.0}
        logger.on_step(state)
    # Two steps of 2 s, then two of 4 s; 3,986 steps are left at 3 s each since the start.
    assert [found(r"([\d,]+) tok/s", line) for line in lines] == ["500", "250"]
    assert "left 3:19:18" in lines[1]
    assert "lr" not in lines[0]


def test_without_a_terminal_lines_go_to_stdout_and_no_bar_is_drawn(shards, capsys):
    run(training_of(), shards, [ConsoleLogger(tokens_per_step=TOKENS, every_steps=4)])
    captured = capsys.readouterr()
    assert [line[:9] for line in captured.out.splitlines()] == ["step 4/8 ", "step 8/8 "]
    assert captured.err == ""


def test_on_a_terminal_a_bar_moves_and_lines_stand_above_it(shards, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run(training_of(), shards, [ConsoleLogger(tokens_per_step=TOKENS, every_steps=4)])
    assert "8/8" in terminal.getvalue()
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == [
        "step 4/8 ",
        "step 8/8 ",
    ]


# --- MetricsLog -------------------------------------------------------------------------------


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_json_lines(shards, tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder, training = Recorder(), training_of()
    evaluator = Evaluator(training, shards, every_steps=5, batch_size=2, seq_len=SEQ)
    log = MetricsLog(path, tokens_per_step=TOKENS, every_steps=3)
    run(training, shards, [evaluator, recorder, log])
    found = records(path)
    assert [record["step"] for record in found] == [3, 5, 6, 8]
    for record in found:
        seen = recorder.seen[record["step"] - 1]
        assert record["tokens_seen"] == record["step"] * TOKENS
        assert {name: record[name] for name in seen} == seen
        assert ("validation_bits_per_byte" in record) == (record["step"] in (5, 8))
    assert [record["seconds"] for record in found] == sorted(r["seconds"] for r in found)


def test_a_resumed_log_is_cut_back_to_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "seconds": 10.0 * step}) + "\n" for step in range(1, 6)]
    path.write_text("".join(lines) + '{"step": 6, "sec')  # a kill cut the last line
    log = MetricsLog(path, tokens_per_step=10)
    state = LoopState(step=3, max_steps=9)
    log.on_start(state)
    assert [record["step"] for record in records(path)] == [1, 2, 3]
    state.step, state.metrics = 4, {"loss": torch.tensor(0.5)}
    log.on_step(state)
    last = records(path)[-1]
    assert (last["step"], last["tokens_seen"], last["loss"]) == (4, 40, 0.5)
    assert 30.0 <= last["seconds"] < 31.0, "time goes on from where it was"


# --- Evaluator, SampleWriter ------------------------------------------------------------------


def test_the_evaluator_scores_the_average(shards):
    training = training_of(ema_decay=0.9)
    evaluator = Evaluator(training, shards, every_steps=3, batch_size=2, seq_len=SEQ)
    run(training, shards, [evaluator])
    assert [step for step, _ in evaluator.history] == [3, 6, 8]
    options = {"batch_size": 2, "seq_len": SEQ, "device": "cpu"}
    last = evaluate_bits_per_byte(training.model, shards, **options)
    with training.averaged_weights() as model:
        average = evaluate_bits_per_byte(model, shards, **options)
    assert evaluator.history[-1][1] == average
    assert average != last


def test_samples_depend_on_seed_and_step_alone(shards, tmp_path):
    def write(path, steps, start, training):
        writer = SampleWriter(
            training,
            byte_tokenizer(),
            ["the cat", ""],
            path,
            every_steps=2,
            max_new_tokens=9,
            sampling=SamplingConfig(temperature=1.0),
            seed=3,
        )
        run(training, shards, [writer], steps=steps, start=start)
        return writer

    whole = tmp_path / "whole.md"
    write(whole, 5, 0, training_of(dropout=0.0))
    text = whole.read_text()
    assert re.findall(r"^## Step (\d+)$", text, re.MULTILINE) == ["2", "4", "5"]
    assert text.count("    the cat") == 3
    # Resumed from step 2, when steps 4 and 5 had been written already.
    again, training = tmp_path / "again.md", training_of(dropout=0.0)
    write(again, 2, 0, training)
    again.write_text(again.read_text() + "## Step 4\n\n    other\n\n## Step 5\n\n    other\n\n")
    write(again, 5, 2, training)
    assert again.read_text() == text


def test_samples_cannot_break_out_of_their_section(shards, tmp_path):
    class Loud(Tokenizer):
        def decode(self, ids, **options):
            return "\n## Step 1\n```\n<script>"

    path, training = tmp_path / "s.md", training_of()
    writer = SampleWriter(
        training, Loud(byte_tokenizer().parts), ["x"], path, every_steps=8, max_new_tokens=2
    )
    run(training, shards, [writer])
    assert path.read_text() == "## Step 8\n\n    x\n    ## Step 1\n    ```\n    <script>\n\n"


def test_samples_that_cannot_be_are_refused_before_the_run(tmp_path):
    class Endless(Tokenizer):
        eos_id = None  # type: ignore[assignment]

    path, training = tmp_path / "s.md", training_of()
    with pytest.raises(ValueError, match="at least one prompt"):
        SampleWriter(training, byte_tokenizer(), [], path, every_steps=8)
    with pytest.raises(ValueError, match=r"a prompt of 5 tokens and max_new_tokens 60 .* 64"):
        SampleWriter(
            training, byte_tokenizer(), ["x", "the c"], path, every_steps=8, max_new_tokens=60
        )
    with pytest.raises(ValueError, match="an empty prompt needs"):
        SampleWriter(
            training, Endless(byte_tokenizer().parts), [""], path, every_steps=8, max_new_tokens=9
        )


# --- Checkpointer -----------------------------------------------------------------------------


def test_resuming_takes_up_everything(shards, tmp_path):
    unbroken = training_of(ema_decay=0.9)
    torch.manual_seed(1)
    run(unbroken, shards)

    first = training_of(ema_decay=0.9)
    torch.manual_seed(1)
    run(first, shards, [Checkpointer(tmp_path, first, every_steps=3, config={"lr": 0.01})], steps=4)

    torch.manual_seed(99)  # what a new process happens to have
    second = training_of(ema_decay=0.9)
    checkpointer = Checkpointer(tmp_path, second, every_steps=3, config={"lr": 0.01})
    assert checkpointer.resume() == (4, [])
    run(second, shards, [checkpointer], start=4)
    for mine, other in zip(second.parameters, unbroken.parameters, strict=True):
        assert torch.equal(mine, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000006", "step-000008"]


def test_two_optimizers_in_one_are_taken_up_too(shards, tmp_path):
    def fresh():
        plain = training_of(clip_norm=0.5, micro_batch_size=2)
        groups = parameter_groups(plain.model, lr=0.01, weight_decay=0.1, muon=True, muon_lr=0.02)
        optimizer = CombinedOptimizer(Muon(groups.muon), AdamW(groups.adamw))
        return TrainingStep(plain.model, optimizer, plain.schedule, plain.config)

    unbroken = fresh()
    torch.manual_seed(1)
    run(unbroken, shards)
    # The eighth step of linear(8, warmup_steps=2) is at a sixth, in every group of every part.
    found = {group["name"]: group["lr"] for group in unbroken.optimizer.param_groups}
    assert found == pytest.approx(
        {"matrices": 0.02 / 6, "embeddings": 0.01 / 6, "vectors": 0.01 / 6}
    )

    first = fresh()
    torch.manual_seed(1)
    run(first, shards, [Checkpointer(tmp_path, first, every_steps=4)], steps=4)
    second = fresh()
    checkpointer = Checkpointer(tmp_path, second)
    assert checkpointer.resume() == (4, [])
    run(second, shards, [checkpointer], start=4)
    for mine, other in zip(second.parameters, unbroken.parameters, strict=True):
        assert torch.equal(mine, other)


def test_a_damaged_checkpoint_is_passed_over_and_named(shards, tmp_path):
    training = training_of()
    checkpointer = Checkpointer(tmp_path, training, every_steps=4)
    assert checkpointer.resume() == (0, [])
    run(training, shards, [checkpointer])
    (tmp_path / "step-000008" / "optimizer.safetensors").write_bytes(b"?")
    step, damaged = Checkpointer(tmp_path, training_of()).resume()
    assert step == 4
    assert len(damaged) == 1
    assert "step-000008" in damaged[0]
    assert "optimizer.safetensors has 1 bytes" in damaged[0]


def test_changed_settings_are_named(shards, tmp_path):
    training = training_of()
    config = {"lr": 0.01, "betas": (0.9, 0.95), "seed": 1}
    run(training, shards, [Checkpointer(tmp_path, training, config=config)])
    assert Checkpointer(tmp_path, training, config=dict(config)).resume() == (8, [])
    before = copy.deepcopy(training.state_dict())
    with pytest.raises(ValueError, match=r"lr was 0\.01 and is 0\.02; seed was 1 and is None"):
        Checkpointer(tmp_path, training, config={"lr": 0.02, "betas": (0.9, 0.95)}).resume()
    weight = training.model.get_parameter("final_norm.weight")
    assert torch.equal(before["model"]["final_norm.weight"], weight)


def test_checkpoints_by_the_clock(shards, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Clock(Callback):
        def on_step(self, state):
            now[0] += 10.0

    training = training_of()
    saver = Checkpointer(tmp_path, training, every_seconds=25, keep=9)
    run(training, shards, [Clock(), saver])
    assert [int(path.name[5:]) for path in sorted(tmp_path.iterdir())] == [3, 6, 8]


def test_a_run_that_is_stopped_saves_and_one_that_breaks_does_not(shards, tmp_path):
    class Stop(Callback):
        def on_step(self, state):
            state.should_stop = state.step == 3

    class Break(Callback):
        def on_step(self, state):
            if state.step == 3:
                raise KeyboardInterrupt

    training = training_of()
    run(training, shards, [Stop(), Checkpointer(tmp_path / "stop", training)])
    assert latest_checkpoint(tmp_path / "stop")[0] == tmp_path / "stop" / "step-000003"
    training = training_of()
    with pytest.raises(KeyboardInterrupt):
        run(training, shards, [Break(), Checkpointer(tmp_path / "break", training)])
    assert latest_checkpoint(tmp_path / "break") == (None, [])


# --- SpikeRecovery ----------------------------------------------------------------------------


class Spoiler:
    """A training step whose weights are spoilt before one of its steps."""

    def __init__(self, training, at):
        self.training, self.at = training, at

    def __call__(self, batch):
        if self.training.step == self.at:
            with torch.no_grad():
                for parameter in self.training.parameters:
                    parameter.add_(torch.randn(parameter.shape) * 2)
        return self.training(batch)


def test_a_spike_is_undone_and_the_run_goes_on(shards):
    batches = TokenBatches(shards, batch_size=ROWS, seq_len=SEQ, seed=0)
    losses = {}
    for recover in (False, True):
        training = training_of(steps=100, dropout=0.0)
        recovery = SpikeRecovery(training, window=16, patience=2, snapshot_every=5)
        recorder = Recorder()
        callbacks = [recovery, recorder] if recover else [recorder]
        torch.manual_seed(0)
        fit(Spoiler(training, 33), batches, callbacks, max_steps=60)
        losses[recover] = [metrics["loss"] for metrics in recorder.seen]
        if recover:
            # Steps 34 and 35 are bad; the last good weights in memory are step 30's.
            assert recovery.recoveries == [(35, 30)]
            assert recorder.seen[34]["recovered_to_step"] == 30
            assert training.step == 60, "steps go on counting"
    assert losses[True][:35] == losses[False][:35]
    before = sum(losses[True][28:33]) / 5
    assert max(losses[True][35:40]) < before + 0.3
    assert min(losses[False][35:40]) > before + 1.0


def test_a_single_bad_batch_is_no_spike_and_no_part_of_the_yardstick():
    training = training_of()
    recovery = SpikeRecovery(training, window=16, patience=2)
    state = LoopState(step=0, max_steps=99)
    recovery.on_start(state)
    for loss in [3.0, 3.1, 2.9, 3.0, 3.1, 2.9, 3.0, 3.05, 9.0, 3.0, 9.0, 3.1, math.nan, 3.0]:
        state.step += 1
        state.metrics = {"loss": loss}
        recovery.on_step(state)
    assert recovery.recoveries == []
    assert max(recovery.good_losses) == 3.1
    assert recovery.is_suspicious(3.5)
    assert not recovery.is_suspicious(3.29), "a rise below min_rise is never suspicious"
    assert recovery.is_suspicious(math.inf)


def test_too_few_losses_judge_nothing_but_nonsense():
    recovery = SpikeRecovery(training_of(), window=16)
    recovery.good_losses.extend([1.0] * 7)
    assert not recovery.is_suspicious(100.0)
    assert recovery.is_suspicious(math.nan)


def test_a_run_that_does_not_heal_stops():
    recovery = SpikeRecovery(training_of(), patience=1, max_recoveries=2)
    state = LoopState(step=0, max_steps=99)
    recovery.on_start(state)
    state.metrics = {"loss": math.nan}
    for step in (1, 2):
        state.step = step
        recovery.on_step(state)
    state.step = 3
    with pytest.raises(FloatingPointError, match="step 3: the loss is nan after 2 recoveries"):
        recovery.on_step(state)


@pytest.mark.parametrize(
    "build",
    [
        lambda t: ConsoleLogger(tokens_per_step=1, every_steps=0),
        lambda t: MetricsLog("x", tokens_per_step=1, every_steps=0),
        lambda t: Evaluator(t, cast(Any, None), every_steps=0, batch_size=1, seq_len=1),
        lambda t: Checkpointer("x", t, every_steps=0),
        lambda t: Checkpointer("x", t, every_seconds=0.0),
        lambda t: SpikeRecovery(t, window=0),
        lambda t: SpikeRecovery(t, threshold=0.0),
    ],
)
def test_intervals_are_positive(build):
    with pytest.raises(ValueError, match=r"must be (at least 1|positive)"):
        build(training_of())
