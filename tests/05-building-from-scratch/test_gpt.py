"""GPT: its counts, its initialisation, what it may see, and that a cache changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt import GPT, GPTConfig, flops_per_token, gpt_preset, parameter_count
from hf_parity import fill_with_fan_in
from shape_tracer import check_shapes

V, S = 53, 24


def make(**changes) -> GPT:
    sizes = {"vocab_size": V, "d_model": 30, "num_heads": 3, "num_layers": 3, "max_seq_len": S}
    model = GPT(GPTConfig(**{**sizes, **changes}), generator=torch.Generator().manual_seed(0))
    return fill_with_fan_in(model, seed=1).eval()  # type: ignore[return-value]


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_parameter_counts(name, count):
    assert parameter_count(gpt_preset(name)) == count


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_count_is_the_models(bias, tied):
    model = make(bias=bias, tie_embeddings=tied, d_ff=77)
    assert parameter_count(model.config) == sum(p.numel() for p in model.parameters())


def test_flops_are_six_a_weight_and_attention():
    config = make().config
    D, L = config.d_model, config.num_layers
    assert flops_per_token(config, 10) == 6 * (12 * D * D * L + V * D) + 12 * L * D * 10


@pytest.mark.parametrize("layers", [1, 4])
def test_a_fresh_model_has_the_stated_spread(layers):
    config = GPTConfig(
        vocab_size=400, d_model=96, num_heads=4, num_layers=layers, max_seq_len=32, dropout=0.0
    )
    model = GPT(config, generator=torch.Generator().manual_seed(0))
    branch = 0.02 / math.sqrt(2 * layers)
    block: Any = model.blocks[0]
    for weight, std in (
        (model.token_embedding.weight, 0.02),
        (block.attention.q_proj.weight, 0.02),
        (block.attention.out_proj.weight, branch),
        (block.feed_forward.down.weight, branch),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert all(p.eq(0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    assert model.unembed.weight is model.token_embedding.weight


def test_a_seed_decides_the_weights():
    config = gpt_preset("0.8M")
    one, two = (GPT(config, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_no_gradient_comes_from_the_future():
    model, ids = make(), random_ids(2, 9)
    embedded: list[Tensor] = []
    model.token_embedding.register_forward_hook(
        lambda module, args, out: embedded.append(out.detach().requires_grad_()) or embedded[0]
    )
    logits = model(ids)
    for t in range(9):
        (gradient,) = torch.autograd.grad(logits[:, t].sum(), embedded[0], retain_graph=True)
        assert gradient[:, t + 1 :].eq(0).all()
        assert gradient[:, : t + 1].abs().amax(-1).gt(0).all()


def test_shapes_are_what_the_comments_say():
    with check_shapes(GPT.forward, GPT.hidden_states) as report:
        make()(random_ids(2, 7))
    assert report.checked >= 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 1000))
def test_any_chunking_through_the_cache_is_the_whole(chunks, seed):
    T = min(sum(chunks), S)
    ids, model = random_ids(2, T, seed=seed), make()
    with torch.no_grad():
        whole = model(ids)
        cache, parts, at = model.new_cache(2), [], 0
        for size in chunks:
            if at < T:
                parts.append(model(ids[:, at : at + size], cache=cache))
                at += parts[-1].shape[1]
    assert cache.length == T
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_ragged_rows_are_what_they_are_alone(lengths, more):
    model, longest = make(), max(lengths)
    texts = [random_ids(length + sum(more), seed=i) for i, length in enumerate(lengths)]
    padded = torch.stack(
        [
            torch.cat((random_ids(longest - n, seed=99), t[:n]))
            for n, t in zip(lengths, texts, strict=True)
        ]
    )
    with torch.no_grad():
        cache = model.new_cache(len(lengths))
        cache.starts = torch.tensor([longest - n for n in lengths])
        outputs, at = [model(padded, cache=cache)], 0
        for size in more:
            new = torch.stack(
                [t[n + at : n + at + size] for n, t in zip(lengths, texts, strict=True)]
            )
            outputs.append(model(new, cache=cache))
            at += size
        together = torch.cat(outputs, dim=1)
        for row, (n, text) in enumerate(zip(lengths, texts, strict=True)):
            alone = model(text[None])[0]
            torch.testing.assert_close(together[row, longest - n :], alone, atol=1e-5, rtol=1e-4)


def test_last_only_is_the_last_row():
    model, ids = make(), random_ids(3, 8)
    torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


def test_documents_kept_apart_are_what_they_are_alone():
    from masks import document_mask

    model = make()
    first, second = random_ids(1, 5, seed=1), random_ids(1, 6, seed=2)
    ids = torch.cat((first, second), dim=1)
    documents = torch.tensor([[0] * 5 + [1] * 6])
    positions = torch.tensor([[*range(5), *range(6)]])
    together = model(ids, keep=document_mask(documents), positions=positions)
    torch.testing.assert_close(together[:, :5], model(first), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[:, 5:], model(second), atol=1e-5, rtol=1e-4)


def test_dropout_is_off_in_evaluation():
    model = make(dropout=0.3)
    ids = random_ids(1, 6)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        (torch.zeros(5, dtype=torch.long), "shape"),
        (torch.zeros(1, 0, dtype=torch.long), "shape"),
        (torch.zeros(1, S + 1, dtype=torch.long), "max_seq_len"),
        (torch.full((1, 3), V), "vocab_size"),
        (torch.full((1, 3), -1), "vocab_size"),
    ],
)
def test_bad_ids_are_refused(ids, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()(ids)


@pytest.mark.parametrize(
    "changes",
    [{"d_model": 31}, {"vocab_size": 0}, {"num_layers": 0}, {"dropout": 1.0}, {"d_ff": 0}],
)
def test_bad_configs_are_refused(changes):
    with pytest.raises(ValueError, match=r"must|multiple"):
        make(**changes)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="gpt5"):
        gpt_preset("gpt5")
