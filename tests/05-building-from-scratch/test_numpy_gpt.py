"""The NumPy twin gives the PyTorch model's logits and tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpt import GPT, GPTConfig
from numpy_gpt import NumpyGPT
from text_generation import generate


def twins(**changes):
    config = GPTConfig(
        **{
            "vocab_size": 61,
            "d_model": 36,
            "num_heads": 3,
            "num_layers": 3,
            "max_seq_len": 29,
            **changes,
        }
    )
    model = GPT(config, generator=torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initialisation's special values
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return model, NumpyGPT(weights, config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [1, 2, 17, 29])
def test_same_logits(tied, bias, length):
    model, twin = twins(tie_embeddings=tied, bias=bias)
    ids = torch.randint(61, (length,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(ids[None])[0].numpy()
    np.testing.assert_allclose(twin.logits(ids.numpy()), expected, atol=1e-4, rtol=1e-5)


def test_float64_weights_agree_to_rounding():
    model, _ = twins()
    model = model.double()
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None])[0].numpy()
    np.testing.assert_allclose(NumpyGPT(weights, model.config).logits(ids), expected, atol=1e-9)


def test_same_greedy_tokens():
    model, twin = twins()
    assert twin.generate([5, 20, 7], 20) == generate(model, [[5, 20, 7]], max_new_tokens=20)[0]


@pytest.mark.parametrize("ids", [[], list(range(30)), [[1, 2]], [-1], [61]])
def test_bad_ids_are_refused(ids):
    _, twin = twins()
    with pytest.raises(ValueError, match="ids"):
        twin.logits(ids)


def test_missing_weights_and_other_activations_are_named():
    model, twin = twins()
    weights = dict(twin.weights)
    del weights["final_norm.weight"]
    with pytest.raises(ValueError, match=r"final_norm\.weight"):
        NumpyGPT(weights, model.config)
    with pytest.raises(ValueError, match="relu"):
        twins(activation="relu")
