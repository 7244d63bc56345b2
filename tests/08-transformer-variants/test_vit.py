"""ViT against `transformers`, its two resizings, and attention rollout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_parity import fill_with_fan_in, from_transformers
from hf_weights import WEIGHTS_NAME, load_pretrained, save_pretrained
from vit import (
    VIT_FAMILY,
    ViT,
    ViTConfig,
    attention_rollout,
    resize_patches,
    resize_positions,
    resized,
    vit_preset,
)
from weight_rules import export_state

TOLERANCE = 1e-10  # in fp64; wrong versions miss by more than 1e-3


def hf_pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 41,
        "image_size": 12,
        "patch_size": 3,
        "num_channels": 2,
        "num_labels": 7,
        "layer_norm_eps": 1e-3,
    }
    theirs: Any = fill_with_fan_in(hf.ViTForImageClassification(hf.ViTConfig(**sizes)).eval())
    with torch.no_grad():
        theirs.vit.embeddings.cls_token.normal_()
        theirs.vit.embeddings.position_embeddings.normal_()
    return from_transformers(theirs, VIT_FAMILY), theirs


def pictures(B: int = 3, C: int = 2, side: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(B, C, side, side, generator=torch.Generator().manual_seed(seed))


def tiny(**changes: Any) -> ViTConfig:
    sizes: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 2,
        "num_classes": 5,
        "d_model": 24,
        "num_heads": 4,
        "num_layers": 2,
        "channels": 1,
    }
    return ViTConfig(**{**sizes, **changes})


def filled(**changes: Any) -> ViT:
    model = ViT(tiny(**changes)).eval()
    fill_with_fan_in(model)
    with torch.no_grad():
        model.positions.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_logits_and_gradients() -> None:
    ours, theirs = hf_pair()
    ours.double()
    theirs.double()
    images = pictures().double()
    weights = torch.randn(3, 7, generator=torch.Generator().manual_seed(2)).double()
    mine, reference = ours(images), theirs(images).logits
    for logits in (mine, reference):
        (logits * weights).sum().backward()
    assert (mine - reference).abs().max() < TOLERANCE
    exported = export_state(
        {name: p.grad for name, p in ours.named_parameters()}, VIT_FAMILY, ours.config
    )
    expected = {}
    for name, parameter in theirs.named_parameters():
        for pattern, replacement in VIT_FAMILY.aliases:
            name = re.sub(pattern, replacement, name)
        expected[name] = parameter.grad
    assert exported.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (exported[name] - gradient).abs().max() < TOLERANCE, name


def test_directories_both_ways(tmp_path: Path) -> None:
    ours, theirs = hf_pair()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_pretrained(tmp_path / "theirs", [VIT_FAMILY])
    save_pretrained(loaded, tmp_path / "ours", VIT_FAMILY)
    again = hf.ViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        expected = theirs(pictures()).logits
        for logits in (loaded(pictures()), ours(pictures()), again(pictures()).logits):
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert load_pretrained(tmp_path / "ours", [VIT_FAMILY]).config == ours.config


def test_directories_that_do_not_fit(tmp_path: Path) -> None:
    _, theirs = hf_pair()
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for entry, value in (
        ("qkv_bias", False),
        ("image_size", [12, 9]),
        ("hidden_dropout_prob", 0.5),
        ("image_size", 9),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**raw, entry: value}))
        with pytest.raises(ValueError, match=f"{entry}|position_embeddings has shape"):
            load_pretrained(tmp_path, [VIT_FAMILY])
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    del tensors["vit.embeddings.cls_token"]
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"missing: vit\.embeddings\.cls_token"):
        load_pretrained(tmp_path, [VIT_FAMILY])
    with pytest.raises(ValueError, match="pool='mean'"):
        save_pretrained(ViT(tiny(pool="mean")), tmp_path, VIT_FAMILY)


def test_a_patch_is_multiplied_by_one_matrix() -> None:
    """The convolution is unfold and a matrix product: rows first, channels outermost."""
    model = filled(channels=3)
    images = pictures(2, 3, 8)
    cut = images.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, g, g, P, P)
    flat = cut.permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 12)
    assert model.patches.bias is not None
    expected = flat @ model.patches.weight.flatten(1).t() + model.patches.bias
    torch.testing.assert_close(model._embed(images)[:, 1:], expected + model.positions[:, 1:])


def test_attention_weights_are_what_the_layers_use() -> None:
    model = filled()
    images = pictures(2, 1, 8)
    weights = model.attention_weights(images)
    assert [w.shape for w in weights] == [(2, 4, 17, 17)] * 2
    block: Any = model.blocks[0]
    h = block.attention_norm(model._embed(images))
    v = block.attention.v_proj(h).unflatten(-1, (4, 6)).transpose(1, 2)
    mixed = (weights[0] @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attention.out_proj(mixed), block.attention(h))


def test_rollout_by_hand() -> None:
    """Two tokens and a class token; layer 1 moves patch 1 to patch 2, layer 2 reads patch 2."""
    first, second = torch.eye(3), torch.eye(3)
    first[2] = torch.tensor([0.0, 1.0, 0.0])
    second[0] = torch.tensor([0.0, 0.0, 1.0])
    rolled = attention_rollout([first[None, None], second[None, None]])
    # Row 0 of (second + I)/2 is [1/2 0 1/2]; times (first + I)/2, whose row 2 is [0 1/2 1/2].
    torch.testing.assert_close(rolled, torch.tensor([[0.5, 0.5]]))
    # With all three rows: [1/2 1/4 1/4], [0 1 0] and [0 1/2 1/2], in the mean.
    mean = attention_rollout([first[None, None], second[None, None]], pool="mean")
    torch.testing.assert_close(mean, torch.tensor([[0.5, 1.75, 0.75]]) / 3)


def test_rollout_is_a_distribution() -> None:
    for pool in ("cls", "mean"):
        model = filled(pool=pool)
        rolled = attention_rollout(model.attention_weights(pictures(3, 1, 8)), pool=pool)
        assert rolled.shape == (3, 16)
        assert (rolled > 0).all()
        torch.testing.assert_close(rolled.sum(-1), torch.ones(3))


def test_positions_are_stretched_as_theirs() -> None:
    ours, theirs = hf_pair()
    larger = resized(ours, image_size=18)
    with torch.no_grad():
        expected = theirs(pictures(side=18), interpolate_pos_encoding=True).logits
        torch.testing.assert_close(larger(pictures(side=18)), expected, atol=1e-5, rtol=1e-4)
    table = ours.positions.detach()
    torch.testing.assert_close(resize_positions(table, 4), table)
    assert resize_positions(table[:, 1:], 7, class_token=False).shape == (1, 49, 24)


def test_a_larger_patch_gives_the_same_vector() -> None:
    """W' · stretch(x) = W · x for every patch, which stretching W like a picture does not give."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 2, 3, 3, generator=generator)
    patch = torch.randn(4, 2, 3, 3, generator=generator)
    larger = F.interpolate(patch, size=(7, 7), mode="bilinear")
    expected = torch.einsum("dcij,bcij->bd", weight, patch)
    found = torch.einsum("dcij,bcij->bd", resize_patches(weight, 7), larger)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    naive = F.interpolate(weight, size=(7, 7), mode="bilinear")
    assert (torch.einsum("dcij,bcij->bd", naive, larger) - expected).abs().max() > 1
    torch.testing.assert_close(resize_patches(weight, 3), weight)


def test_the_whole_model_is_unmoved_by_larger_pixels() -> None:
    model = filled()
    images = pictures(2, 1, 8)
    # Each 2x2 patch by itself becomes 4x4, as the resized matrix expects.
    cut = images.view(2, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(32, 1, 2, 2)
    large = F.interpolate(cut, size=(4, 4), mode="bilinear").view(2, 4, 4, 4, 4)
    large = large.permute(0, 1, 3, 2, 4).reshape(2, 1, 16, 16)
    twice = resized(model, image_size=16, patch_size=4)
    torch.testing.assert_close(twice(large), model(images), atol=1e-4, rtol=1e-4)


def test_the_mean_reads_every_patch_and_the_class_token_has_none() -> None:
    model = filled(pool="mean")
    assert model.class_token is None
    assert model.positions.shape == (1, 16, 24)
    images = pictures(2, 1, 8)
    expected = model.to_classes(model.hidden_states(images).mean(1))
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("name", "published"), [("base/16", 86_567_656), ("tiny/16", 5_717_416)])
def test_presets_have_the_published_sizes(name: str, published: int) -> None:
    with torch.device("meta"):
        built = sum(p.numel() for p in ViT(vit_preset(name)).parameters())
    assert built == vit_preset(name).num_parameters == published


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_flops_count_every_multiplication(pool: Any) -> None:
    """PyTorch's counter of products and convolutions; the backward pass is twice the forward."""
    model = filled(pool=pool)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(pictures(1, 1, 8))
    assert model.config.flops_per_image() == 3 * counter.get_total_flops()
    assert model.config.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [(2, 1, 8, 9), (2, 3, 8, 8), (1, 8, 8), (2, 1, 16, 16)])
def test_pictures_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images has shape .* \(batch, channels=1, 8, 8\)"):
        ViT(tiny())(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "image_size 8 is not a multiple of patch_size 3"),
        ({"num_heads": 5}, "d_model 24 is not a multiple"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"pool": "max"}, "pool is 'max'"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="no preset 'huge'"):
        vit_preset("huge")
    with pytest.raises(ValueError, match="at least one layer"):
        attention_rollout([])
    with pytest.raises(ValueError, match="pool is 'sum'"):
        attention_rollout([torch.eye(3)[None, None]], pool="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must form a square"):
        resize_positions(torch.zeros(1, 12, 4), 5)
    with pytest.raises(ValueError, match="grid is 0"):
        resize_positions(torch.zeros(1, 10, 4), 0)
    with pytest.raises(ValueError, match="patch_size is 0"):
        resize_patches(torch.zeros(4, 1, 2, 2), 0)
    with pytest.raises(ValueError, match=r"must be \(D, C, P, P\)"):
        resize_patches(torch.zeros(4, 1, 2, 3), 4)
