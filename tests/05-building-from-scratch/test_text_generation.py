"""Generation: `transformers`' greedy and beam tokens, its samplers' cuts, streaming, endings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_parity import fill_with_fan_in, from_transformers
from hf_weights import GPT2_FAMILY
from sampling import SamplingConfig, sample_next, warp_logits
from text_generation import beam_search, generate, stream, stream_text

V, EOS = 41, 7


@pytest.fixture(scope="module")
def theirs() -> Any:
    config = GPT2Config(
        vocab_size=V,
        n_embd=36,
        n_head=3,
        n_layer=2,
        n_positions=40,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return fill_with_fan_in(GPT2LMHeadModel(config), seed=3).eval()


@pytest.fixture(scope="module")
def ours(theirs) -> Any:
    return from_transformers(theirs, GPT2_FAMILY)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, V, (length,), generator=generator).tolist() for length in lengths]


def their_batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ),
    }


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(EOS) + 1] if EOS in row else row


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("lengths", [(5,), (4, 4), (3, 9, 1, 6)])
def test_greedy_tokens_are_those_of_transformers(theirs, ours, lengths, use_cache):
    rows = prompts(*lengths, seed=sum(lengths))
    batch = their_batch(rows)
    expected = theirs.generate(**batch, max_new_tokens=24, do_sample=False)
    expected = [until_end(row) for row in expected[:, batch["input_ids"].shape[1] :].tolist()]
    assert generate(ours, rows, max_new_tokens=24, eos_id=EOS, use_cache=use_cache) == expected


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("lengths", [(5,), (3, 8, 2)])
def test_beam_tokens_are_those_of_transformers(
    theirs, ours, lengths, length_penalty, early_stopping
):
    rows = prompts(*lengths, seed=11)
    batch = their_batch(rows)
    expected = theirs.generate(
        **batch,
        max_new_tokens=12,
        num_beams=4,
        do_sample=False,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    expected = [until_end(row) for row in expected[:, batch["input_ids"].shape[1] :].tolist()]
    found = beam_search(
        ours,
        rows,
        num_beams=4,
        max_new_tokens=12,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_id=EOS,
    )
    assert [best[0].ids for best in found] == expected
    for best in found:
        assert [b.score for b in best] == sorted((b.score for b in best), reverse=True)


def test_beams_are_the_same_without_a_cache(ours):
    rows = prompts(4, 7, seed=2)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8, "eos_id": EOS}
    one, two = (beam_search(ours, rows, use_cache=c, **options) for c in (True, False))
    assert [[b.ids for b in best] for best in one] == [[b.ids for b in best] for best in two]


@pytest.mark.parametrize(
    ("config", "processors"),
    [
        (SamplingConfig(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (SamplingConfig(top_k=5), [TopKLogitsWarper(5)]),
        (SamplingConfig(top_p=0.6), [TopPLogitsWarper(0.6)]),
        (SamplingConfig(min_p=0.2), [MinPLogitsWarper(0.2)]),
        (SamplingConfig(repetition_penalty=1.4), [RepetitionPenaltyLogitsProcessor(1.4)]),
        (
            SamplingConfig(
                repetition_penalty=1.2, temperature=1.5, top_k=12, top_p=0.8, min_p=0.05
            ),
            [
                RepetitionPenaltyLogitsProcessor(1.2),
                TemperatureLogitsWarper(1.5),
                TopKLogitsWarper(12),
                TopPLogitsWarper(0.8),
                MinPLogitsWarper(0.05),
            ],
        ),
    ],
)
def test_the_rules_cut_what_those_of_transformers_cut(config, processors):
    logits = 2.5 * torch.randn(6, V, generator=torch.Generator().manual_seed(1))
    previous = torch.randint(V, (6, 9), generator=torch.Generator().manual_seed(2))
    expected = LogitsProcessorList(processors)(previous, logits.clone())  # type: ignore[arg-type]
    actual = warp_logits(logits, config, previous=previous)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_samples_follow_the_distribution():
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0]]).expand(20_000, 4)
    config = SamplingConfig(temperature=0.8, top_k=3)
    chosen = sample_next(logits, config, generator=torch.Generator().manual_seed(0))
    p = warp_logits(logits[:1], config).softmax(-1)[0]
    counts = torch.bincount(chosen, minlength=4)
    assert counts[3] == 0
    chi_square = ((counts - 20_000 * p) ** 2 / (20_000 * p))[:3].sum()
    assert chi_square < 13.8  # two degrees of freedom, one in a thousand


def test_a_generator_decides_the_samples(ours):
    rows = prompts(4, 2)

    def sampled(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(
            ours, rows, max_new_tokens=20, sampling=SamplingConfig(), generator=generator
        )

    assert sampled(1) == sampled(1) != sampled(2)


def test_streaming_hands_over_the_same_tokens(ours):
    (prompt,) = prompts(6)
    assert (
        list(stream(ours, prompt, max_new_tokens=15, eos_id=EOS))
        == generate(ours, [prompt], max_new_tokens=15, eos_id=EOS)[0]
    )


class Bytes:
    """A tokenizer whose ids are bytes, from 1."""

    eos_id = 0

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - 1 for i in ids).decode("utf-8", errors="replace")


class Parrot(torch.nn.Module):
    """Says a fixed text, whatever it is told."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids, self.said = ids, 0
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"vocab_size": 257, "max_seq_len": 999, "num_layers": 1})

    def forward(self, ids, *, cache=None, keep=None, positions=None, last_only=False):
        logits = torch.zeros(ids.shape[0], 1, 257)
        logits[:, -1, self.ids[self.said]] = 1.0
        self.said += 1
        return logits


@pytest.mark.parametrize("text", ["plain", "naïve ☃ café", "🦜🦜", "é"])
def test_text_is_streamed_in_whole_characters(text):
    codec = Bytes()
    parrot = Parrot([*codec.encode(text), codec.eos_id])
    pieces = list(
        stream_text(parrot, codec, "say: ", max_new_tokens=99, use_cache=False)  # type: ignore[arg-type]
    )
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_broken_character_at_the_end_is_shown_as_such():
    parrot = Parrot([*Bytes().encode("ab"), 0xE2 + 1, 0])
    pieces = list(stream_text(parrot, Bytes(), "x", max_new_tokens=9, use_cache=False))  # type: ignore[arg-type]
    assert "".join(pieces) == "ab\ufffd"


def test_the_model_is_left_in_its_mode(ours):
    ours.train()
    generate(ours, [[1, 2]], max_new_tokens=2)
    assert ours.training
    ours.eval()


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([], {}, "prompt"),
        ([[]], {}, "prompt|empty"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens"),
        ([[1] * 30], {"max_new_tokens": 20}, "max_seq_len"),
        ([[V]], {}, "vocab_size"),
    ],
)
def test_bad_requests_are_refused(ours, rows, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(ours, rows, **{"max_new_tokens": 3, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingConfig(**options)
