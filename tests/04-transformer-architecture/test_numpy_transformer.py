"""The NumPy encoder-decoder against the PyTorch one, from the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from numpy_transformer import NumpyTransformer
from transformer import Transformer


def build(*, d_model=24, dtype=torch.float64, **options):
    torch.manual_seed(3)
    sizes = {"num_heads": 4, "num_encoder_layers": 3, "num_decoder_layers": 2, "d_ff": 37}
    model = Transformer(29, 29, d_model, dropout=0.1, max_seq_len=40, pad_id=2, **sizes, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases away from 1 and 0
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def twin(model, **options):
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return NumpyTransformer(weights, num_heads=4, pad_id=2, **options)


def example():
    generator = torch.Generator().manual_seed(5)
    src = torch.randint(3, 29, (3, 9), generator=generator)
    tgt = torch.randint(29, (3, 7), generator=generator)
    src[1, 6:] = 2
    src[2, 2:] = 2
    return src, tgt


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_the_model(pre_norm, shared):
    model = build(pre_norm=pre_norm, share_embeddings=shared, tie_embeddings=shared)
    src, tgt = example()
    with torch.no_grad():
        expected = model(src, tgt).numpy()
    ours = twin(model, pre_norm=pre_norm).logits(src.numpy(), tgt.numpy())
    np.testing.assert_allclose(ours, expected, atol=1e-10)


def test_equals_the_model_in_single_precision():
    """fp32 weights and an odd number of heads' columns: within 1e-6 of the logits' own size."""
    model = build(dtype=torch.float32, d_model=20)
    src, tgt = example()
    with torch.no_grad():
        expected = model(src, tgt).numpy()
    ours = twin(model).logits(src.numpy(), tgt.numpy())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


def test_tied_weights_may_be_missing():
    model = build(share_embeddings=True)
    src, tgt = example()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    whole = NumpyTransformer(weights, num_heads=4, pad_id=2).logits(src.numpy(), tgt.numpy())
    for name in ("src_embedding.weight", "unembed.weight"):
        weights.pop(name)
    parted = NumpyTransformer(weights, num_heads=4, pad_id=2).logits(src.numpy(), tgt.numpy())
    np.testing.assert_array_equal(parted, whole)


def test_refuses():
    model = build()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="lack tgt_embedding"):
        NumpyTransformer({}, num_heads=4)
    with pytest.raises(ValueError, match="not a multiple of num_heads 5"):
        NumpyTransformer(weights, num_heads=5)
    with pytest.raises(ValueError, match=r"lack .*decoder\.final_norm\.weight"):
        NumpyTransformer(weights, num_heads=4, pre_norm=True)
    with pytest.raises(ValueError, match="of no use with pre_norm=False: x"):
        NumpyTransformer({**weights, "x": np.ones(2)}, num_heads=4)
    cut = {name: w for name, w in weights.items() if "blocks.0.feed_forward.up.b" not in name}
    with pytest.raises(ValueError, match=r"lack .*feed_forward\.up\.bias"):
        NumpyTransformer(cut, num_heads=4)
    fewer = {name: w for name, w in weights.items() if not name.startswith("encoder.blocks.1.")}
    with pytest.raises(ValueError, match="blocks of the encoder"):
        NumpyTransformer(fewer, num_heads=4)
    with pytest.raises(ValueError, match="of no use with pre_norm=False"):
        twin(build(pre_norm=True))
    with pytest.raises(ValueError, match=r"id 29 is outside \[0, 29\)"):
        twin(model).logits(np.array([[29]]), np.array([[1]]))
    with pytest.raises(ValueError, match="must be \\(batch, length\\)"):
        twin(model).logits(np.array([[3]]), np.array([1]))


def test_a_source_of_nothing_but_padding_is_read_as_zero_and_not_as_nan():
    model = build(pre_norm=False)
    src, tgt = np.array([[2, 2, 2], [3, 4, 2]]), np.array([[1, 5], [1, 6]])
    with torch.no_grad():
        expected = model(torch.from_numpy(src), torch.from_numpy(tgt)).numpy()
    ours = twin(model).logits(src, tgt)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, expected, atol=1e-10)
