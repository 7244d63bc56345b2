"""The table engine: every tensor accounted for, in both directions, or a sentence that names it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weight_rules import Family, Rule, export_state, import_state


@dataclass(frozen=True)
class ToyConfig:
    num_layers: int = 2
    tie_embeddings: bool = False


TOY = Family(
    name="toy",
    architecture="ToyForCausalLM",
    config_type=ToyConfig,
    config_from_hf=lambda raw: ToyConfig(),
    config_to_hf=lambda config: {},
    rules=(
        Rule("model.emb", "embedding"),
        Rule("model.l.{i}.qkv", ("blocks.{i}.q", "blocks.{i}.k", "blocks.{i}.v"), transpose=True),
        Rule("model.l.{i}.qkv_bias", ("blocks.{i}.qb", "blocks.{i}.kb", "blocks.{i}.vb")),
        Rule("model.l.{i}.out", "blocks.{i}.out"),
        Rule("head", "unembed", tied_to="embedding"),
    ),
    build=lambda config: nn.Module(),
    prefix="model.",
    ignore=(r"model\.l\.\d+\.mask",),
)


def our_shapes(num_layers: int = 2) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embedding": (11, 6), "unembed": (11, 6)}
    for i in range(num_layers):
        block = f"blocks.{i}."
        shapes |= {block + "q": (6, 5), block + "k": (2, 5), block + "v": (3, 5)}
        shapes |= {block + "qb": (6,), block + "kb": (2,), block + "vb": (3,)}
        shapes[block + "out"] = (5, 7)
    return shapes


def random_state(
    *, num_layers: int = 2, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in our_shapes(num_layers).items()
    }
    if tied:
        del state["unembed"]
    return state


@settings(max_examples=25, deadline=None)
@given(
    num_layers=st.integers(1, 12),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_import_undoes_export(num_layers: int, tied: bool, dtype: torch.dtype, seed: int) -> None:
    config = ToyConfig(num_layers, tied)
    ours = random_state(num_layers=num_layers, tied=tied, dtype=dtype, seed=seed)
    theirs = export_state(ours, TOY, config)
    back = import_state(theirs, TOY, config, our_shapes(num_layers))
    assert back.keys() == ours.keys()
    for name, tensor in ours.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor), name


def test_export_writes_their_arrangement() -> None:
    ours = random_state()
    theirs = export_state(ours, TOY, ToyConfig())
    fused = theirs["model.l.1.qkv"]
    assert fused.shape == (5, 11)  # (in, out)
    assert fused.is_contiguous()
    assert torch.equal(fused[:, :6], ours["blocks.1.q"].t())
    assert torch.equal(fused[:, 6:8], ours["blocks.1.k"].t())
    assert torch.equal(fused[:, 8:], ours["blocks.1.v"].t())
    assert torch.equal(theirs["head"], ours["unembed"])
    assert len(theirs) == 2 + 3 * 2


def test_a_tied_head_is_neither_written_nor_needed_but_may_be_there() -> None:
    ours = random_state(tied=True)
    config = ToyConfig(tie_embeddings=True)
    theirs = export_state(ours, TOY, config)
    assert "head" not in theirs
    assert "unembed" not in import_state(theirs, TOY, config, our_shapes())
    theirs["head"] = theirs["model.emb"].clone()
    assert "unembed" not in import_state(theirs, TOY, config, our_shapes())
    theirs["head"][3, 3] += 1
    with pytest.raises(ValueError, match=r"head differs from the embedding.*tie_word_embeddings"):
        import_state(theirs, TOY, config, our_shapes())


def test_an_untied_head_is_needed() -> None:
    theirs = export_state(random_state(tied=True), TOY, ToyConfig(tie_embeddings=True))
    with pytest.raises(ValueError, match=r"missing: head"):
        import_state(theirs, TOY, ToyConfig(), our_shapes())


def test_missing_and_unused_tensors_are_named() -> None:
    theirs = export_state(random_state(), TOY, ToyConfig())
    del theirs["model.l.1.out"]
    theirs["model.l.2.out"] = torch.zeros(5, 7)
    with pytest.raises(ValueError, match=r"missing: model\.l\.1\.out; .*rule: model\.l\.2\.out"):
        import_state(theirs, TOY, ToyConfig(), our_shapes())
    ours = random_state()
    del ours["blocks.0.k"]
    ours["blocks.0.gate"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.k; .*blocks\.0\.gate"):
        export_state(ours, TOY, ToyConfig())


def test_many_missing_tensors_are_counted() -> None:
    with pytest.raises(ValueError, match=r"and 3 more"):
        import_state({}, TOY, ToyConfig(), our_shapes())


@pytest.mark.parametrize(
    ("name", "shape", "needed"),
    [
        ("model.l.0.qkv", (11, 5), (5, 11)),  # not transposed
        ("model.l.0.qkv", (5, 12), (5, 11)),
        ("model.l.0.qkv_bias", (10,), (11,)),
        ("model.l.0.qkv_bias", (11, 1), (11,)),
        ("model.emb", (11,), (11, 6)),
        ("model.emb", (), (11, 6)),
        ("head", (12, 6), (11, 6)),
    ],
)
def test_a_wrong_shape_names_both(
    name: str, shape: tuple[int, ...], needed: tuple[int, ...]
) -> None:
    theirs = export_state(random_state(), TOY, ToyConfig())
    theirs[name] = torch.zeros(shape)
    with pytest.raises(ValueError) as caught:
        import_state(theirs, TOY, ToyConfig(), our_shapes())
    for part in (name, str(shape), str(needed)):
        assert part in str(caught.value)


def test_a_bare_models_names_are_read_without_their_prefix() -> None:
    config = ToyConfig(tie_embeddings=True)
    ours = random_state(tied=True)
    theirs = export_state(ours, TOY, config)
    bare = {name.removeprefix("model."): tensor for name, tensor in theirs.items()}
    back = import_state(bare, TOY, config, our_shapes())
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())
    with pytest.raises(ValueError, match=r"holds model\.emb twice"):
        import_state({**theirs, "emb": bare["emb"]}, TOY, config, our_shapes())
    with pytest.raises(ValueError, match=r"not used by any rule: surprise"):
        import_state({**bare, "surprise": bare["emb"]}, TOY, config, our_shapes())


def test_buffers_of_old_files_are_skipped_in_either_spelling() -> None:
    theirs = export_state(random_state(), TOY, ToyConfig())
    theirs |= {"model.l.0.mask": torch.ones(3, 3), "l.1.mask": torch.ones(3, 3)}
    assert "blocks.0.mask" not in import_state(theirs, TOY, ToyConfig(), our_shapes())
    theirs["model.l.x.mask"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"model\.l\.x\.mask"):
        import_state(theirs, TOY, ToyConfig(), our_shapes())


def test_gradients_that_are_absent_may_be_left_out() -> None:
    ours = random_state()
    del ours["blocks.0.out"]
    theirs = export_state(ours, TOY, ToyConfig(), strict=False)
    assert "model.l.0.out" not in theirs
    assert "model.l.1.out" in theirs


def test_a_rule_may_hold_for_some_configs_only() -> None:
    extra = Rule(
        "model.l.{i}.extra", "blocks.{i}.extra", when=lambda config: config.num_layers == 1
    )
    family = replace(TOY, rules=(*TOY.rules, extra))
    one, two = ToyConfig(num_layers=1), ToyConfig(num_layers=2)
    assert "model.l.0.extra" in {rule.theirs for rule in family.rules_for(one)}
    theirs = export_state(random_state(), family, two)
    assert import_state(theirs, family, two, our_shapes()).keys() == random_state().keys()
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.extra"):
        export_state(random_state(num_layers=1), family, one)


def test_older_spellings_are_read_and_never_written() -> None:
    family = replace(TOY, aliases=((r"\.OUT$", ".out"),))
    theirs = export_state(random_state(), family, ToyConfig())
    old = {name.replace(".out", ".OUT"): tensor for name, tensor in theirs.items()}
    assert old.keys() != theirs.keys()
    back = import_state(old, family, ToyConfig(), our_shapes())
    assert torch.equal(back["blocks.1.out"], random_state()["blocks.1.out"])
