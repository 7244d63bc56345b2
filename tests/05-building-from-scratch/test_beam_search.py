"""Beam search where it matters: beams change places, and texts end at different lengths."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gpt import GPT
from hf_parity import fill_with_fan_in, from_transformers
from hf_weights import GPT2_FAMILY
from text_generation import beam_search

EOS, V, NEW = 2, 13, 7
PROMPTS = [[4, 9, 1, 5], [7], [3, 12, 8]]


@pytest.fixture(scope="module")
def pair() -> tuple[GPT, GPT2LMHeadModel]:
    """Ours and theirs: a model whose every weight matters and whose end token is likely."""
    config = GPT2Config(
        vocab_size=V, n_embd=24, n_head=3, n_layer=2, n_positions=32, bos_token_id=EOS,
        eos_token_id=EOS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    theirs = fill_with_fan_in(GPT2LMHeadModel(config), seed=8)
    return from_transformers(theirs, GPT2_FAMILY), theirs.eval()  # type: ignore[return-value]


def log_probability(model: GPT, prompt: list[int], added: list[int]) -> float:
    """Log P of a continuation, in one uncached pass."""
    with torch.no_grad():
        log_p = model(torch.tensor([prompt + added]))[0].log_softmax(dim=-1)  # (T, V)
    return sum(float(log_p[len(prompt) + i - 1, token]) for i, token in enumerate(added))


def their_beams(
    theirs: GPT2LMHeadModel, num_beams: int, length_penalty: float, early_stopping: bool
) -> list[list[int]]:
    T = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (T - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in PROMPTS])
    out: Tensor = theirs.generate(  # type: ignore[assignment, operator]
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        do_sample=False,
        pad_token_id=EOS,
    )
    rows = out[:, T:].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_the_tokens_are_those_of_transformers(pair, num_beams, length_penalty, early_stopping):
    ours, theirs = pair
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    found = beam_search(
        ours, PROMPTS, num_beams=num_beams, max_new_tokens=NEW, eos_id=EOS, **options
    )
    assert [best[0].ids for best in found] == their_beams(theirs, num_beams, **options)


def test_scores_are_what_they_say_with_and_without_a_cache(pair):
    ours, _ = pair
    for use_cache, penalty in itertools.product([True, False], [0.0, 0.7, 2.0]):
        found = beam_search(
            ours, PROMPTS, num_beams=4, max_new_tokens=NEW, eos_id=EOS, length_penalty=penalty,
            use_cache=use_cache,
        )  # fmt: skip
        for prompt, best in zip(PROMPTS, found, strict=True):
            assert len(best) == 4
            for hypothesis in best:
                log_p = log_probability(ours, prompt, hypothesis.ids)
                assert hypothesis.score == pytest.approx(
                    log_p / len(hypothesis.ids) ** penalty, abs=1e-4
                )


def test_the_length_penalty_decides_the_length(pair):
    ours, _ = pair
    lengths = []
    for penalty in (-1.0, 0.0, 3.0):
        found = beam_search(
            ours, PROMPTS, num_beams=5, max_new_tokens=NEW, eos_id=EOS, length_penalty=penalty
        )
        lengths.append(sum(len(best[0].ids) for best in found))
    assert lengths[0] <= lengths[1] < lengths[2]


def test_enough_beams_find_the_likeliest_of_all(pair):
    ours, _ = pair
    prompt, steps = [4, 9], 3
    texts = torch.cartesian_prod(*[torch.arange(V)] * steps)  # (V³, 3)
    with torch.no_grad():
        log_p = ours(torch.cat((torch.tensor(prompt).expand(len(texts), -1), texts), dim=1))
    log_p = log_p.log_softmax(dim=-1)[:, len(prompt) - 1 : -1]  # (V³, 3, V)
    chosen = log_p.gather(2, texts[:, :, None])[:, :, 0]  # (V³, 3)
    everything: dict[tuple[int, ...], float] = {}
    for text, terms in zip(texts.tolist(), chosen.tolist(), strict=True):
        n = text.index(EOS) + 1 if EOS in text else steps
        everything[tuple(text[:n])] = sum(terms[:n])
    ranked = sorted(everything, key=lambda text: -everything[text])[:5]
    [found] = beam_search(
        ours, [prompt], num_beams=V**2, max_new_tokens=steps, eos_id=EOS, length_penalty=0.0
    )
    assert [tuple(best.ids) for best in found[:5]] == ranked
    assert found[0].score == pytest.approx(everything[ranked[0]], abs=1e-4)
