"""The layout for decoding changes where weights lie, not what a model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fast_decoding import decoding_copy
from gpt import GPT, GPTConfig
from hf_parity import fill_with_fan_in
from llama import Llama, LlamaConfig
from text_generation import generate

SIZES: dict[str, Any] = {"vocab_size": 61, "d_model": 36, "num_layers": 2, "max_seq_len": 40}


def small_gpt(**changes: Any) -> GPT:
    config = GPTConfig(**{**SIZES, "num_heads": 3, "d_ff": 50, **changes})
    return fill_with_fan_in(GPT(config), seed=4)  # type: ignore[return-value]


def small_llama() -> Llama:
    config = LlamaConfig(**SIZES, num_heads=6, num_kv_heads=2, d_ff=50)
    return fill_with_fan_in(Llama(config), seed=4)  # type: ignore[return-value]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])  # 61 outputs: none but 1 divides them
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_same_logits(threads, shape, bias):
    model = small_gpt(bias=bias).eval()
    fast = decoding_copy(model, threads=threads)
    ids = torch.randint(61, shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(fast(ids), model(ids), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(
            fast(ids, last_only=True), model(ids, last_only=True), atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("build", [small_gpt, small_llama])
def test_same_tokens_cached_and_ragged(build):
    model = build()
    fast = decoding_copy(model, threads=2)
    prompts = [[3, 9, 27], [5], [11, 4, 60, 2, 8]]
    expected = generate(model, prompts, max_new_tokens=20)
    assert generate(fast, prompts, max_new_tokens=20) == expected
    assert generate(fast, prompts, max_new_tokens=20, use_cache=False) == expected


def test_the_joint_product_is_computed_once_for_one_input_and_never_for_another():
    model = small_gpt(bias=True)
    copied, original = list[Any](decoding_copy(model, threads=2).blocks), list[Any](model.blocks)
    ours, theirs = copied[0].attention, original[0].attention
    x, y = torch.randn(2, 1, 4, 36, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours.q_proj(x), ours.q_proj(x))
    for asked in (x, y, x):  # also in an order that no attention has
        for name in ("k_proj", "q_proj", "v_proj"):
            expected = getattr(theirs, name)(asked)
            torch.testing.assert_close(getattr(ours, name)(asked), expected)
    assert ours.q_proj.joint is ours.v_proj.joint
    assert ours.q_proj.joint._seen is None


def test_the_copy_is_its_own_and_the_model_stays_as_it_was():
    model = small_gpt().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = decoding_copy(model, threads=2)
    assert model.training
    assert not fast.training
    assert any(isinstance(module, nn.Linear) for module in model.modules())
    assert not any(isinstance(module, nn.Linear) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits = fast(ids)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(fast(ids), logits)
    model.load_state_dict(before)
    assert model.unembed.weight is model.token_embedding.weight


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="threads is 0"):
        decoding_copy(small_gpt(), threads=0)
    with pytest.raises(ValueError, match=r"\['meta'\]; this layout is for CPUs"):
        decoding_copy(small_gpt().to("meta"))
