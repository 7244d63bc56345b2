"""What is talked to writes what the trained model would write."""

from __future__ import annotations

import torch
from torch import nn

from completion import ready_to_talk
from hf_parity import fill_with_fan_in
from llama import Llama, LlamaConfig
from text_generation import generate


def test_the_model_that_talks_is_laid_out_for_decoding_and_writes_the_same():
    config = LlamaConfig(
        vocab_size=61,
        d_model=36,
        num_layers=2,
        max_seq_len=40,
        num_heads=6,
        num_kv_heads=2,
        d_ff=50,
    )
    model = fill_with_fan_in(Llama(config), seed=4).train()
    talking = ready_to_talk(model)  # type: ignore[arg-type]
    assert not model.training
    assert not any(isinstance(module, nn.Linear) for module in talking.modules())
    prompts = torch.tensor([[3, 9, 27], [5, 1, 60]])
    expected = generate(model, prompts, max_new_tokens=20)  # type: ignore[arg-type]
    assert generate(talking, prompts, max_new_tokens=20) == expected


def test_elsewhere_than_on_a_cpu_the_model_stays_as_it_is():
    config = LlamaConfig(
        vocab_size=61, d_model=36, num_layers=1, max_seq_len=40, num_heads=6, d_ff=50
    )
    model = Llama(config).to("meta")
    assert ready_to_talk(model) is model
