"""The main job end to end: it trains, resumes bit for bit, and says no where it must."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_weights import load_pretrained
from pretrain import main
from run_report import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "10-pretraining-llms" / "pretrain.py"
TINY = ("--preset", "smoke", "--vocab-size", "400", "--context", "32", "--tokens-per-step", "512")
SHORT = (*TINY, "--tokens", "20000", "--device", "cpu", "--dtype", "float32")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder with a few hundred kilobytes of real text in several files."""
    folder = tmp_path_factory.mktemp("corpus")
    library = Path(sysconfig.get_path("stdlib"))
    for package in ("json", "email", "logging"):
        for file in sorted((library / package).glob("*.py")):
            shutil.copy(file, folder / f"{package}_{file.name}")
    return folder


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory) -> Path:
    """A finished run of the modern arrangement."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["--corpus", str(corpus), "--out", str(out), *SHORT]) == 0
    return out


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        call, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, **options
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_run_leaves_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "report.md",
        "results.json",
        "loss.png",
        "samples.md",
        "metrics.jsonl",
        "run.json",
    } <= names
    results = json.loads((finished / "results.json").read_text())["results"]
    report = (finished / "report.md").read_text()
    assert f"{results['bits_per_byte']['this model']:.3f}" in report
    # A few seconds of training beat knowing nothing (8 bits) by far.
    assert results["bits_per_byte"]["this model"] < 4.5
    assert results["bits_per_byte"]["xz -9"] < results["bits_per_byte"]["gzip -9"] < 3.5


def test_transformers_reads_the_run_and_agrees(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from completion import FAMILIES
    from tokenizer import Tokenizer

    theirs = AutoModelForCausalLM.from_pretrained(finished).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(finished)
    ours, tokenizer = load_pretrained(finished, FAMILIES), Tokenizer.load(finished)
    text = "def parse(self, text):\n    return [int(x) for x in text]  # ünïcode ☃\n"
    ids = tokenizer.encode(text)
    assert their_tokenizer(text)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == text
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    with torch.no_grad():
        batch = torch.tensor([ids[:32]])
        torch.testing.assert_close(ours(batch), theirs(batch).logits, atol=1e-4, rtol=1e-4)


def test_the_classic_arrangement_is_gpt2(corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "classic"
    quick = (*TINY, "--tokens", "1024", "--device", "cpu", "--dtype", "float32")
    assert main(["--corpus", str(corpus), "--out", str(out), "--arch", "gpt2", *quick]) == 0
    assert type(AutoModelForCausalLM.from_pretrained(out)).__name__ == "GPT2LMHeadModel"


def test_a_seed_decides_everything(corpus, finished, tmp_path):
    for seed, same in (("0", True), ("1", False)):
        out = tmp_path / seed
        assert main(["--corpus", str(corpus), "--out", str(out), "--seed", seed, *SHORT]) == 0
        ours, theirs = weights(out), weights(finished)
        equal = all(
            torch.equal(ours[name], theirs[name])
            for name in theirs
            if ours[name].shape == theirs[name].shape
        )
        assert equal == same


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of a run in a process of its own that nobody disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    done = run("--corpus", str(corpus), "--out", str(out), *SHORT)
    assert done.returncode == 0, done.stderr
    return weights(out)


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_weights(corpus, unbroken, tmp_path):
    out = tmp_path / "run"
    chance = random.Random(0)
    resumed = 0
    call = ["--corpus", str(corpus), "--out", str(out), *SHORT]
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *call],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # Wait for the first signs of work, so that a slow import is not all that is killed.
        deadline = time.monotonic() + 60
        while not (out / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 4.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        call = ["--resume", str(out)]
        resumed += 1
    done = run(*call)
    assert done.returncode == 0, done.stderr
    assert resumed == 4
    ended = weights(out)
    assert ended.keys() == unbroken.keys()
    assert all(torch.equal(ended[name], unbroken[name]) for name in ended)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(corpus, unbroken, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["--corpus", str(corpus), "--out", str(out), *SHORT]) == 0
    # Back to the middle of the run: two checkpoints, the newer one broken.
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    newest = checkpoints[-1]
    victim = max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "state": "training"}))
    capsys.readouterr()
    assert main(["--resume", str(out)]) == 0
    assert f"warning: checkpoint {newest} is damaged" in capsys.readouterr().out


def test_two_processes_end_where_one_does(corpus, tmp_path):
    few = (*TINY, "--tokens", "2560", "--device", "cpu", "--dtype", "float32")
    assert main(["--corpus", str(corpus), "--out", str(tmp_path / "one"), *few]) == 0
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*call, str(SCRIPT), "--corpus", str(corpus), "--out", str(tmp_path / "two"), *few],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "over 2 processes" in done.stdout
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # Sums in another order differ in the last bits. Adam's first steps are the gradient's signs,
    # so where a gradient is nearly 0 a single weight may move the other way.
    for name, expected in one.items():
        differences = (two[name] - expected).abs()
        assert differences.mean() < 5e-4, name
    ours, theirs = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert len(ours) == len(theirs) == 5
    for left, right in zip(ours, theirs, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-3)
        assert left["tokens"] == right["tokens"]


def test_piped_it_exits_and_prompts_come_from_standard_input(finished):
    done = run("--sample", str(finished), "--max-new-tokens", "5", "--seed", "3", input="def f(\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def f(")
    again = run(
        "--sample", str(finished), "--max-new-tokens", "5", "--seed", "3", "--prompt", "def f("
    )
    assert again.stdout == done.stdout


def test_a_directory_of_transformers_can_be_sampled(tmp_path, finished, capsys):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(finished).save_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["--sample", str(tmp_path), "--prompt", "abc", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("abc")


def says_no(capsys, *arguments: str) -> str:
    """The one sentence with which a call is refused."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("pretrain.py: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_wrong_input_gets_one_sentence_and_changes_nothing(corpus, finished, tmp_path, capsys):
    out = tmp_path / "out"
    new = ("--out", str(out), *SHORT)
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("to be or not to be\n" * 3)
    (tmp_path / "short" / "b.txt").write_text("that is the question\n" * 3)
    for path in ("nowhere", "empty", "blank.txt", "binary.txt", "short"):
        says_no(capsys, "--corpus", str(tmp_path / path), *new)
        assert not out.exists(), path
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for arguments, words in (
        (("--corpus", str(corpus), "--out", str(finished), *SHORT), "already holds a run"),
        (("--resume", str(finished), "--seed", "9"), "seed was 0, now 9"),
        (("--resume", str(tmp_path / "nowhere")), "no run"),
        (("--resume", str(finished), "--out", str(out)), "--out"),
        (("--corpus", str(corpus), "--preset", "900B", "--out", str(out)), "900B"),
        (("--corpus", str(corpus), *new, "--vocab-size", "3"), "--vocab-size 3"),
        (("--sample", str(tmp_path / "nowhere")), "no such folder"),
        (("--sample", str(corpus)), "config.json"),
        (("--sample", str(finished), "--prompt", "a", "--temperature", "-1"), "temperature"),
    ):
        assert words in says_no(capsys, *arguments)
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    assert absent in says_no(capsys, "--corpus", str(corpus), *new, "--device", absent)
    assert not out.exists()
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert "finished" in says_no(capsys, "--resume", str(finished))
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_binary_files_among_text_are_skipped_and_counted(corpus, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(corpus, mixed)
    (mixed / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00" * 99)
    quick = (*TINY, "--tokens", "512", "--device", "cpu", "--dtype", "float32")
    capsys.readouterr()
    assert main(["--corpus", str(mixed), "--out", str(tmp_path / "out"), *quick]) == 0
    assert "skipped files" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(
    corpus, unbroken, tmp_path, capsys, monkeypatch
):
    import training_callbacks

    save, calls = training_callbacks.save_checkpoint, []

    def full_the_second_time(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
        return save(*arguments, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(training_callbacks, "save_checkpoint", full_the_second_time)
    sentence = says_no(capsys, "--corpus", str(corpus), "--out", str(out), *SHORT)
    assert "No space left" in sentence
    assert "--resume" in sentence
    assert main(["--resume", str(out)]) == 0
    assert (out / "model.safetensors").exists()
