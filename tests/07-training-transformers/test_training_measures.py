"""Held-out loss scores each token once; speed, learning-rate range and noise are what they say."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corpora import Document
from gpt import GPT, GPTConfig
from lr_schedules import constant
from token_dataset import TokenShards, write_shards
from tokenizer import Tokenizer
from training import (
    TrainingConfig,
    TrainingStep,
    evaluate_bits_per_byte,
    gradient_noise_scale,
    lr_range_test,
    measure_step_seconds,
    model_flops_utilization,
    peak_flops,
)

VOCAB, EOS = 40, 39


class LetterTokenizer(Tokenizer):
    """One token a letter, which stands for two bytes."""

    eos_id = EOS  # type: ignore[assignment]

    def __init__(self):
        self.vocab_size, self.special_tokens = VOCAB, {"<|endoftext|>": EOS}

    def encode_batch(self, texts, **options):
        return [[ord(letter) - 0x410 for letter in text] for text in texts]

    def decode_bytes(self, ids):
        return "".join(chr(0x410 + i) for i in ids).encode()


def held_out(folder, lengths=(23, 1, 50)):
    generator = torch.Generator().manual_seed(0)
    texts = [
        "".join(chr(0x410 + int(i)) for i in torch.randint(39, (n,), generator=generator))
        for n in lengths
    ]
    write_shards(
        [Document(str(n), text) for n, text in enumerate(texts)],
        LetterTokenizer(),
        folder,
        shard_tokens=20,
    )
    return TokenShards(folder)


class Bigram(nn.Module):
    """A model that looks at one token, so that windows cannot matter to it."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(2 * torch.randn(VOCAB, VOCAB, generator=generator))
        self.seen = 0

    def forward(self, ids):
        assert not self.training
        self.seen += ids.numel()
        return self.table[ids]


def bigram_nats(model, tokens):
    before = [EOS, *tokens[:-1]]
    return F.cross_entropy(
        model.table[torch.tensor(before)].double(), torch.tensor(tokens), reduction="sum"
    ).item()


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "stride", "max_tokens"),
    [
        (1, 10, None, None),
        (3, 10, None, None),
        (2, 7, 3, None),
        (4, 16, 1, None),
        (2, 77, None, None),  # exactly the stream
        (2, 500, None, None),  # longer than the stream
        (2, 10, 4, 31),
        (2, 10, None, 5),
        (2, 10, None, 10_000),
        (3, 1, 1, None),
    ],
)
def test_every_token_is_scored_once(tmp_path, batch_size, seq_len, stride, max_tokens):
    shards, model = held_out(tmp_path), Bigram()
    count = min(77, max_tokens or 77)
    tokens = shards.read(0, count).tolist()
    result = evaluate_bits_per_byte(
        model,
        shards,
        batch_size=batch_size,
        seq_len=seq_len,
        stride=stride,
        max_tokens=max_tokens,
        device="cpu",
    )
    assert result.nats == pytest.approx(bigram_nats(model, tokens), rel=1e-6)
    assert result.tokens == count
    assert result.num_bytes == 2 * sum(token != EOS for token in tokens)
    assert result.bits_per_byte == pytest.approx(result.nats / math.log(2) / result.num_bytes)
    assert result.perplexity == pytest.approx(math.exp(result.nats / count))
    assert model.training
    if stride is None and seq_len < count:
        assert model.seen <= -(-count // seq_len) * seq_len, "more work than one pass"


def tiny_gpt(seed=0, **options):
    config = GPTConfig(
        vocab_size=VOCAB, d_model=16, num_heads=2, num_layers=2, max_seq_len=128, **options
    )
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, generator=generator)
    with torch.no_grad():  # at GPT-2's scale of 0.02 context would hardly matter
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@torch.no_grad()
def naive_nats(model, tokens, contexts):
    """Score token after token, each with its own stretch of context; contexts[i] tokens of it."""
    total = 0.0
    stream = [EOS, *tokens]
    for place, context in enumerate(contexts):
        window = torch.tensor([stream[place + 1 - context : place + 1]])
        total -= model(window)[0, -1].log_softmax(-1)[stream[place + 1]].item()
    return total


def test_windows_give_the_context_they_promise(tmp_path):
    shards = held_out(tmp_path)
    tokens = shards.read(0, 77).tolist()
    model = tiny_gpt(dropout=0.5).eval()
    options = {"batch_size": 3, "seq_len": 16, "device": "cpu"}

    # Side by side: contexts 1 … 16; the last window reaches back, so its 13 tokens begin at 4.
    apart = evaluate_bits_per_byte(model, shards, **options)
    contexts = [place % 16 + 1 for place in range(64)] + list(range(4, 17))
    assert apart.nats == pytest.approx(naive_nats(model, tokens, contexts), rel=1e-5)

    # Moving on by 4: the first window counts whole, then each token has 12 before it or more.
    sliding = evaluate_bits_per_byte(model, shards, stride=4, **options)
    contexts = list(range(1, 17)) + [place % 4 + 13 for place in range(60)] + [16]
    assert sliding.nats == pytest.approx(naive_nats(model, tokens, contexts), rel=1e-5)

    # Token by token: as much context as there is room for.
    full = evaluate_bits_per_byte(model, shards, stride=1, **options)
    contexts = [min(place + 1, 16) for place in range(77)]
    assert full.nats == pytest.approx(naive_nats(model, tokens, contexts), rel=1e-5)
    assert len({round(result.nats, 3) for result in (apart, sliding, full)}) == 3


def test_lower_precision_runs_the_model_and_not_the_loss(tmp_path):
    shards, model = held_out(tmp_path), tiny_gpt().eval()
    options = {"batch_size": 3, "seq_len": 16, "device": "cpu"}
    seen = []
    model.unembed.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    exact = evaluate_bits_per_byte(model, shards, **options)
    half = evaluate_bits_per_byte(model, shards, dtype=torch.bfloat16, **options)
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert half.nats != exact.nats
    assert half.nats == pytest.approx(exact.nats, rel=5e-3)


def test_wrong_numbers_are_refused_and_a_failing_model_is_put_back(tmp_path):
    shards = held_out(tmp_path)
    for options in ({"stride": 11}, {"stride": 0}, {"batch_size": 0}, {"max_tokens": -1}):
        with pytest.raises(ValueError, match="stride at most seq_len"):
            evaluate_bits_per_byte(
                Bigram(), shards, **{"batch_size": 1, "seq_len": 10, "device": "cpu", **options}
            )
    model = tiny_gpt()
    with pytest.raises(ValueError, match="max_seq_len 128"):
        evaluate_bits_per_byte(
            model, held_out(tmp_path / "long", (200,)), batch_size=1, seq_len=129, device="cpu"
        )
    assert model.training


# --- speed ------------------------------------------------------------------------------------


def test_step_seconds_are_a_median_without_the_warmup(monkeypatch):
    now = [0.0]
    durations = iter([50.0, 7.0, 1.0, 2.0, 9.0, 3.0])
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def step():
        now[0] += next(durations)

    assert measure_step_seconds(step, warmup=2, rounds=4) == 2.5
    with pytest.raises(ValueError, match="rounds at least 1"):
        measure_step_seconds(step, rounds=0)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("Tesla T4", 65e12, 8.1e12),
        ("NVIDIA RTX A1000", None, None),
        ("Something New", None, None),
    ],
)
def test_a_gpu_is_known_by_its_name_or_not_at_all(monkeypatch, name, bf16, fp32):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops("cuda", torch.bfloat16) == bf16
    assert peak_flops("cuda") == fp32


def test_a_cpu_is_measured_and_other_devices_are_unknown():
    peak = peak_flops("cpu")
    assert peak is not None
    assert 1e8 < peak < 1e14
    assert peak_flops("meta") is None


def test_utilization_by_hand():
    used = model_flops_utilization(flops_per_token=6e9, tokens_per_second=1e5, peak=1e15)
    assert used == pytest.approx(0.6)
    assert model_flops_utilization(flops_per_token=6e9, tokens_per_second=1e5, peak=None) is None


# --- learning-rate range, noise ---------------------------------------------------------------


def bowl(model, batch):
    """A quadratic bowl: gradient descent diverges beyond lr = 2 / curvature = 0.5."""
    return 2.0 * (model.weight - batch[0]).square().sum(), torch.tensor(float(len(batch[0])))


def bowl_step(**options):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(5.0)
    config = TrainingConfig(
        tokens_per_step=4, seq_len=1, micro_batch_size=4, clip_norm=None, **options
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.1)
    return TrainingStep(model, optimizer, constant(), config, loss=bowl)


def test_the_range_test_finds_the_slope_and_leaves_no_trace():
    step = bowl_step(ema_decay=0.5)
    batches = [(torch.zeros(4, 1),)] * 100
    step(batches[0])
    before, generator = copy.deepcopy(step.state_dict()), torch.get_rng_state()
    schedule = step.schedule
    found = lr_range_test(step, batches, lowest=1e-3, highest=10.0, num_steps=60)
    assert 0.01 < found.steepest < 0.5
    assert 0.3 < found.multipliers[-1] < 3.0, "it ends soon after the bowl's limit"
    assert len(found.multipliers) == len(found.losses) < 60
    assert found.multipliers[1] / found.multipliers[0] == pytest.approx(10_000 ** (1 / 59))
    assert step.schedule is schedule
    assert torch.equal(torch.get_rng_state(), generator)
    after = step.state_dict()
    assert torch.equal(after["model"]["weight"], before["model"]["weight"])
    assert after["average"]["updates"] == before["average"]["updates"]
    assert after["step"] == 1


def test_a_range_test_that_blows_up_at_once_says_so():
    with pytest.raises(ValueError, match="begin lower than 1000"):
        lr_range_test(bowl_step(), [(torch.zeros(4, 1),)] * 100, lowest=1e3, highest=1e4)
    with pytest.raises(ValueError, match="lowest=2"):
        lr_range_test(bowl_step(), [], lowest=2, highest=1)


def test_the_noise_scale_of_a_known_noise():
    """The loss w . x has the gradient x. With x ~ N(mean, 4 I) in 50 dimensions,
    tr(S) / |G|^2 = 4 * 50 / |mean|^2.
    """

    def dot(model, batch):
        return model(batch[0]).sum(), torch.tensor(float(len(batch[0])))

    model = nn.Linear(50, 1, bias=False)
    config = TrainingConfig(tokens_per_step=4096, seq_len=1, micro_batch_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainingStep(model, optimizer, constant(), config, loss=dot)
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((50,), 0.5)
    batch = (mean + 2 * torch.randn(4096, 50, generator=generator),)
    before = model.weight.clone()
    assert gradient_noise_scale(step, batch) == pytest.approx(4 * 50 / 12.5, rel=0.1)
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="at least two micro-batches"):
        gradient_noise_scale(step, (batch[0][:16],))
