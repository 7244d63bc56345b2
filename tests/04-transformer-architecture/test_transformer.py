"""Blocks, stacks and the encoder-decoder against torch.nn, and translation against brute force."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import transformer
from attention import (
    CrossKVCache,
    GrowingKVCache,
    MultiHeadAttention,
    scaled_dot_product_attention,
)
from shape_tracer import check_shapes
from sublayers import FeedForward, GatedFeedForward, LayerNorm, RMSNorm
from transformer import (
    Transformer,
    TransformerBlock,
    TransformerStack,
    beam_translate,
    greedy_translate,
)


def _scatter(module):
    """Biases and norms away from 0 and 1, which would hide that they are unused."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def _gradients(out, inputs):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((out * weight).sum(), inputs)


def _copy_attention(theirs: nn.MultiheadAttention, ours: MultiHeadAttention) -> None:
    assert theirs.in_proj_weight is not None
    q, k, v = theirs.in_proj_weight.chunk(3)
    ours.q_proj.weight.copy_(q)
    ours.k_proj.weight.copy_(k)
    ours.v_proj.weight.copy_(v)
    q, k, v = theirs.in_proj_bias.chunk(3)
    ours.q_proj.bias.copy_(q)
    ours.k_proj.bias.copy_(k)
    ours.v_proj.bias.copy_(v)
    ours.out_proj.load_state_dict(theirs.out_proj.state_dict())


@torch.no_grad()
def _copy_layer(theirs: nn.Module, ours: TransformerBlock) -> None:
    """Give our block the weights of an nn.TransformerEncoderLayer or DecoderLayer."""
    _copy_attention(theirs.get_submodule("self_attn"), ours.attention)  # pyright: ignore
    names = {"attention_norm": "norm1", "feed_forward_norm": "norm2"}
    if ours.cross_attention is not None:
        _copy_attention(theirs.get_submodule("multihead_attn"), ours.cross_attention)  # pyright: ignore
        names = {"attention_norm": "norm1", "cross_norm": "norm2", "feed_forward_norm": "norm3"}
    names |= {"feed_forward.up": "linear1", "feed_forward.down": "linear2"}
    for mine, other in names.items():
        state = theirs.get_submodule(other).state_dict()
        ours.get_submodule(mine).load_state_dict(state)


def _block(d_model=20, *, activation: Any = "relu", pre_norm=True, cross=False, dropout=0.0):
    return TransformerBlock(
        attention=MultiHeadAttention(d_model, 4),
        feed_forward=FeedForward(d_model, 31, activation=activation),
        norm=partial(LayerNorm, d_model),
        pre_norm=pre_norm,
        cross_attention=MultiHeadAttention(d_model, 4) if cross else None,
        dropout=dropout,
    )


def _modern_block(d_model=16):
    return TransformerBlock(
        attention=MultiHeadAttention(d_model, 4, num_kv_heads=2, qk_norm=RMSNorm, bias=False),
        feed_forward=GatedFeedForward(d_model, 24),
        norm=partial(RMSNorm, d_model),
    )


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_encoder_block_equals_pytorch(pre_norm, activation, causal, padded):
    torch.manual_seed(1)
    theirs = nn.TransformerEncoderLayer(
        20, 4, 31, dropout=0.0, activation=activation, batch_first=True, norm_first=pre_norm
    )
    _scatter(theirs)
    ours = _block(activation=activation, pre_norm=pre_norm)
    _copy_layer(theirs, ours)
    x = torch.randn(3, 9, 20, requires_grad=True)
    real = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    expected = theirs(
        x,
        src_mask=torch.ones(9, 9, dtype=torch.bool).triu(1) if causal else None,
        src_key_padding_mask=~real if padded else None,
    )
    out = ours(x, causal=causal, keep=real[:, None, None] if padded else None)
    torch.testing.assert_close(out, expected, atol=5e-6, rtol=1e-5)
    mine = _gradients(
        out, [x, *map(ours.get_parameter, ("feed_forward.up.weight", "attention_norm.weight"))]
    )
    other = _gradients(expected, [x, theirs.linear1.weight, theirs.norm1.get_parameter("weight")])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("padded", [True, False])
def test_decoder_block_equals_pytorch(pre_norm, activation, padded):
    torch.manual_seed(2)
    theirs = nn.TransformerDecoderLayer(
        20, 4, 31, dropout=0.0, activation=activation, batch_first=True, norm_first=pre_norm
    )
    _scatter(theirs)
    ours = _block(activation=activation, pre_norm=pre_norm, cross=True)
    _copy_layer(theirs, ours)
    x = torch.randn(3, 7, 20, requires_grad=True)
    memory = torch.randn(3, 10, 20, requires_grad=True)
    real = torch.arange(10) < torch.tensor([10, 6, 1])[:, None]
    expected = theirs(
        x,
        memory,
        tgt_mask=torch.ones(7, 7, dtype=torch.bool).triu(1),
        memory_key_padding_mask=~real if padded else None,
    )
    out = ours(x, memory=memory, causal=True, memory_keep=real[:, None, None] if padded else None)
    torch.testing.assert_close(out, expected, atol=5e-6, rtol=1e-5)
    names = ("cross_norm.weight", "feed_forward.down.weight")
    mine = _gradients(out, [x, memory, *map(ours.get_parameter, names)])
    other = _gradients(expected, [x, memory, theirs.norm2.weight, theirs.linear2.weight])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-5)


def test_block_hands_bias_and_rotary_to_the_self_attention():
    torch.manual_seed(3)
    block = _modern_block()
    x = torch.randn(2, 5, 16)
    bias = torch.randn(1, 4, 5, 5)

    def double(tensor):
        return 2 * tensor

    normed = block.attention_norm(x)
    attended = block.attention(normed, bias=bias, causal=True, rotary=double)
    expected = x + attended
    expected = expected + block.feed_forward(block.feed_forward_norm(expected))
    out = block(x, bias=bias, causal=True, rotary=double)
    torch.testing.assert_close(out, expected)
    assert (out - block(x, causal=True)).abs().max() > 1e-2


def test_every_norm_is_its_own():
    block = _block(cross=True)
    norms = [block.attention_norm, block.cross_norm, block.feed_forward_norm]
    assert len({id(norm) for norm in norms}) == 3
    assert _block().cross_norm is None


def test_dropout_on_the_residual_updates():
    """With dropout nearly 1 almost every update is lost, and the stream itself passes."""
    torch.manual_seed(4)
    block = _block(cross=True, dropout=0.999)
    x, memory = torch.randn(2, 50, 20), torch.randn(2, 3, 20)
    out = block(x, memory=memory)
    untouched = (out == x).float().mean().item()
    assert untouched == pytest.approx(0.999**3, abs=0.005)
    block.eval()
    assert torch.equal(block(x, memory=memory), block(x, memory=memory))
    assert (block(x, memory=memory) != x).float().mean() > 0.99


def test_stack_is_its_blocks_in_order():
    torch.manual_seed(5)
    blocks = [_modern_block() for _ in range(3)]
    norm = _scatter(RMSNorm(16))
    stack = TransformerStack(iter(blocks), norm)
    assert len(stack) == 3
    assert list(stack) == blocks
    x = torch.randn(2, 5, 16)
    expected = x
    for block in blocks:
        expected = block(expected, causal=True)
    torch.testing.assert_close(stack(x, causal=True), norm(expected))
    without = TransformerStack(blocks)
    torch.testing.assert_close(without(x, causal=True), expected)


def test_no_gradient_from_the_future_through_a_stack():
    torch.manual_seed(6)
    stack = TransformerStack([_modern_block() for _ in range(2)], RMSNorm(16))
    x = torch.randn(1, 5, 16)
    jacobian = torch.autograd.functional.jacobian(lambda y: stack(y, causal=True), x)
    assert isinstance(jacobian, Tensor)
    reach = jacobian[0, :, :, 0].abs().amax(dim=(1, 3))
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert (reach[future] == 0).all()
    assert (reach[~future] > 1e-5).all()


def test_encoder_is_permutation_equivariant_without_positions():
    torch.manual_seed(7)
    stack = TransformerStack([_modern_block() for _ in range(2)])
    x, order = torch.randn(2, 9, 16), torch.randperm(9)
    torch.testing.assert_close(stack(x[:, order]), stack(x)[:, order], atol=5e-6, rtol=1e-5)


@st.composite
def _chunkings(draw):
    length = draw(st.integers(2, 10))
    cuts = draw(st.sets(st.integers(1, length - 1)))
    return [0, *sorted(cuts), length]


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(_chunkings(), st.booleans())
def test_cached_stack_equals_uncached_under_any_chunking(bounds, pre_norm):
    torch.manual_seed(10)
    stack = TransformerStack([_block(pre_norm=pre_norm, cross=True) for _ in range(2)])
    x, memory = torch.randn(3, bounds[-1], 20), torch.randn(3, 4, 20)
    memory_keep = (torch.arange(4) < torch.tensor([4, 2, 1])[:, None])[:, None, None]
    given_memory: dict[str, Any] = {"memory": memory, "memory_keep": memory_keep, "causal": True}
    whole = stack(x, **given_memory)
    caches, cross_caches = [GrowingKVCache(), GrowingKVCache()], [CrossKVCache(), CrossKVCache()]
    pieces = [
        stack(x[:, a:b], caches=caches, cross_caches=cross_caches, **given_memory)
        for a, b in pairwise(bounds)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=5e-6, rtol=1e-5)


# --- the encoder-decoder ----------------------------------------------------------------------


def _model(*, seed=11, sharpness=1.0, vocab=13, **options):
    """A small model in eval mode; sharper weights make translations less uniform."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "d_model": 20,
        "num_heads": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "d_ff": 31,
        "max_seq_len": 40,
        **options,
    }
    model = _scatter(Transformer(17, vocab, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(sharpness)
    return model


def _sources(*lengths, seed=12):
    """Random sources of these lengths, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(1, 17, (len(lengths), max(lengths)), generator=generator)
    return src * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


@pytest.mark.parametrize("pre_norm", [True, False])
def test_transformer_equals_pytorch_layers(pre_norm):
    model = _model(pre_norm=pre_norm)
    layer: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": pre_norm}
    encoder_layers = [nn.TransformerEncoderLayer(20, 4, 31, **layer) for _ in range(2)]
    decoder_layers = [nn.TransformerDecoderLayer(20, 4, 31, **layer) for _ in range(2)]
    for theirs, stack in ((encoder_layers, model.encoder), (decoder_layers, model.decoder)):
        for one, block in zip(theirs, stack, strict=True):
            assert isinstance(block, TransformerBlock)
            _copy_layer(_scatter(one), block)
    src = _sources(9, 4, 1)
    tgt = torch.randint(1, 13, (3, 6))
    pad = src == 0

    def embed(embedding, ids):
        position = torch.arange(ids.shape[1], dtype=torch.float64)[:, None]
        angle = position / 10000 ** (torch.arange(0, 20, 2, dtype=torch.float64) / 20)
        table = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
        return embedding(ids) * math.sqrt(20) + table.float()

    x = embed(model.src_embedding, src)
    for one in encoder_layers:
        x = one(x, src_key_padding_mask=pad)
    memory = model.encoder.final_norm(x) if model.encoder.final_norm else x
    x = embed(model.tgt_embedding, tgt)
    for one in decoder_layers:
        causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
        x = one(x, memory, tgt_mask=causal, memory_key_padding_mask=pad)
    x = model.decoder.final_norm(x) if model.decoder.final_norm else x
    expected = x @ model.tgt_embedding.weight.T
    out = model(src, tgt)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)
    weights = [model.src_embedding.weight, model.tgt_embedding.weight]
    for a, b in zip(_gradients(out, weights), _gradients(expected, weights), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_the_base_model_of_the_paper():
    with torch.device("meta"):
        block_parameters = sum(
            p.numel() for name, p in Transformer(100, 100).named_parameters() if "embed" not in name
        )
    # Attention 4 (D² + D), feed-forward 2 D F + F + D, norms 2 D; decoders have one attention
    # and one norm more.
    D, F = 512, 2048
    attention, feed_forward, norm = 4 * (D * D + D), 2 * D * F + F + D, 2 * D
    encoder = attention + feed_forward + 2 * norm
    assert block_parameters == 6 * encoder + 6 * (encoder + attention + norm)
    # Table 3 gives 65 million with one shared vocabulary of 37,000.
    assert round((block_parameters + 37_000 * D) / 1e6) == 63


def test_quick_start():
    model = Transformer(src_vocab_size=300, tgt_vocab_size=200, d_model=32)
    logits = model(torch.randint(1, 300, (2, 7)), torch.randint(1, 200, (2, 5)))
    assert logits.shape == (2, 5, 200)


def test_initial_scale():
    torch.manual_seed(13)
    model = Transformer(500, 500, d_model=64, num_encoder_layers=1, num_decoder_layers=1).eval()
    embedded = model.src_embedding.weight * math.sqrt(64)
    assert embedded.std().item() == pytest.approx(1.0, abs=0.02)
    logits = model(torch.randint(1, 500, (4, 20)), torch.randint(1, 500, (4, 20)))
    targets = torch.randint(500, (4, 20))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    assert loss == pytest.approx(math.log(500), abs=0.8)


def test_tying():
    tied = _model()
    assert tied.unembed.weight is tied.tgt_embedding.weight
    assert tied.src_embedding is not tied.tgt_embedding
    loose = _model(tie_embeddings=False)
    assert loose.unembed.weight is not loose.tgt_embedding.weight
    shared = Transformer(13, 13, d_model=20, num_heads=4, share_embeddings=True)
    assert shared.src_embedding is shared.tgt_embedding
    assert "positions" not in shared.state_dict()


def test_source_padding_is_not_seen():
    model = _model()
    src, tgt = _sources(9, 4), torch.randint(1, 13, (2, 6))
    alone = model(src[1:, :4], tgt[1:])
    torch.testing.assert_close(model(src, tgt)[1:], alone, atol=1e-5, rtol=1e-5)
    explicit = model(src, tgt, src_keep=torch.arange(9) < torch.tensor([9, 4])[:, None])
    torch.testing.assert_close(explicit, model(src, tgt))
    everything = model(src, tgt, src_keep=torch.ones(2, 9, dtype=torch.bool))
    assert (everything - explicit)[1].abs().max() > 1e-3


def test_target_keep_hides_left_padding():
    """Positions stay, so only what can be attended changes."""
    model = _model()
    src, tgt = _sources(5, 5), torch.randint(1, 13, (2, 6))
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[1, :2] = False
    out = model(src, tgt, tgt_keep=keep)
    other = tgt.clone()
    other[1, :2] = 3
    again = model(src, other, tgt_keep=keep)
    torch.testing.assert_close(again[1, 2:], out[1, 2:])
    torch.testing.assert_close(out[0], model(src, tgt)[0])
    assert (model(src, other) - model(src, tgt))[1, 2:].abs().max() > 1e-3


def test_no_target_sees_its_future_but_all_see_the_source():
    model = _model()
    src, tgt = _sources(5, 7), torch.randint(1, 13, (2, 6))
    changed = tgt.clone()
    changed[:, 4] = (tgt[:, 4] + 1) % 13
    difference = (model(src, tgt) - model(src, changed)).abs().amax(dim=(0, 2))
    assert (difference[:4] == 0).all()
    assert (difference[4:] > 1e-4).all()
    turned = src.clone()
    turned[:, 0] = src[:, 0] % 16 + 1
    difference = (model(src, tgt) - model(turned, tgt)).abs().amax(dim=-1)
    assert (difference > 1e-4).all()


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(_chunkings(), st.booleans())
def test_cached_decoding_equals_uncached_under_any_chunking(bounds, pre_norm):
    model = _model(pre_norm=pre_norm)
    src = _sources(7, 3, 5)
    memory, keep = model.encode(src), src != 0
    tgt = torch.randint(1, 13, (3, bounds[-1]))
    whole = model.decode(tgt, memory, memory_keep=keep)
    torch.testing.assert_close(model(src, tgt), whole)
    cache = model.new_cache()
    pieces = [
        model.decode(tgt[:, a:b], memory, memory_keep=keep, cache=cache)
        for a, b in pairwise(bounds)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.length == bounds[-1]


# --- translation ------------------------------------------------------------------------------

BOS, EOS = 1, 2


@torch.no_grad()
def _log_probabilities(model, src, translations):
    """log P(ids | src) of equally long ids, as the model would write them, EOS included."""
    ids = torch.tensor(translations)
    tgt = torch.cat((torch.full((len(ids), 1), BOS), ids[:, :-1]), dim=1)
    logs = torch.log_softmax(model(src.expand(len(ids), -1), tgt), dim=-1)
    return logs.gather(2, ids[:, :, None]).sum(dim=(1, 2)).tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_takes_the_likeliest_token(use_cache):
    limit, lengths = 10, set()
    for seed in range(4):
        model = _model(seed=seed, sharpness=1.5)
        src = _sources(9, 4, 6, seed=seed)
        found = greedy_translate(
            model, src, bos_id=BOS, eos_id=EOS, max_new_tokens=limit, use_cache=use_cache
        )
        for row, ids in enumerate(found):
            ended = len(ids) < limit
            written = torch.tensor([ids + [EOS] * ended])
            tgt = torch.cat((torch.tensor([[BOS]]), written[:, :-1]), dim=1)
            # Teacher forcing sees the same prefixes, so each token must be the likeliest there.
            assert torch.equal(model(src[row : row + 1], tgt).argmax(-1), written)
        lengths.add(tuple(len(ids) for ids in found))
    assert any(len(set(row)) > 1 for row in lengths), "no batch ended at different times"


@pytest.mark.parametrize("translate", [greedy_translate, beam_translate])
def test_translations_do_not_depend_on_cache_or_company(translate):
    for seed in range(3):
        model = _model(seed=seed, sharpness=1.5)
        lengths = (9, 4, 6, 2, 7)
        src = _sources(*lengths, seed=seed)
        run = partial(translate, model, bos_id=BOS, eos_id=EOS, max_new_tokens=12)
        together = run(src)
        assert run(src, use_cache=False) == together
        for row, length in enumerate(lengths):
            assert run(src[row : row + 1, :length]) == [together[row]]
        assert run(src, src_keep=src != 0) == together


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_translation_of_all(length_penalty):
    """With three words and four tokens at most, every translation can be tried."""
    limit, ended = 4, 0
    for seed in range(4):
        model = _model(seed=seed, sharpness=1.4, vocab=4)
        src = _sources(5, seed=seed)
        scores = {}
        for n in range(1, limit + 1):
            complete = [
                ids
                for ids in product(range(4), repeat=n)
                if EOS not in ids[:-1] and (ids[-1] == EOS or n == limit)
            ]
            totals = _log_probabilities(model, src, complete)
            for ids, total in zip(complete, totals, strict=True):
                shown = ids[:-1] if ids[-1] == EOS else ids
                scores[shown] = total / ((5 + n) / 6) ** length_penalty
        best = max(scores, key=lambda ids: scores[ids])
        (found,) = beam_translate(
            model,
            src,
            bos_id=BOS,
            eos_id=EOS,
            num_beams=64,
            length_penalty=length_penalty,
            max_new_tokens=limit,
        )
        assert tuple(found) == best
        ended += len(best) < limit
    assert ended > 0 or length_penalty == 2.0  # which makes the longest win every time


def test_one_beam_without_length_penalty_is_greedy():
    for seed in range(4):
        model = _model(seed=seed, sharpness=1.5)
        src = _sources(9, 4, 6, seed=seed)
        run: dict[str, Any] = {"bos_id": BOS, "eos_id": EOS, "max_new_tokens": 12}
        beam = beam_translate(model, src, num_beams=1, length_penalty=0.0, **run)
        assert beam == greedy_translate(model, src, **run)


def test_beams_find_likelier_translations_than_greedy():
    gains = []
    for seed in range(6):
        model = _model(seed=seed, sharpness=1.5)
        src = _sources(6, seed=seed)
        run: dict[str, Any] = {"bos_id": BOS, "eos_id": EOS, "max_new_tokens": 6}
        (greedy,) = greedy_translate(model, src, **run)
        (beam,) = beam_translate(model, src, num_beams=8, length_penalty=0.0, **run)
        greedy_score, beam_score = (
            _log_probabilities(model, src, [ids + [EOS] * (len(ids) < 6)])[0]
            for ids in (greedy, beam)
        )
        gains.append(beam_score - greedy_score)
    assert min(gains) > -1e-4
    assert max(gains) > 0.1


def test_a_length_penalty_lengthens():
    total = {}
    for alpha in (0.0, 3.0):
        lengths = []
        for seed in range(6):
            model = _model(seed=seed, sharpness=1.2)
            src = _sources(5, 8, seed=seed)
            found = beam_translate(
                model, src, bos_id=BOS, eos_id=EOS, length_penalty=alpha, max_new_tokens=12
            )
            lengths += [len(ids) for ids in found]
        total[alpha] = sum(lengths)
    assert total[3.0] > total[0.0]


def test_the_default_limit_is_the_paper_s():
    model = _model(max_seq_len=12)
    model.unembed.weight = nn.Parameter(torch.zeros_like(model.unembed.weight))
    src = _sources(5)
    assert greedy_translate(model, src, bos_id=BOS, eos_id=EOS) == [[0] * 12]
    model = _model(max_seq_len=100)
    model.unembed.weight = nn.Parameter(torch.zeros_like(model.unembed.weight))
    assert greedy_translate(model, src, bos_id=BOS, eos_id=EOS) == [[0] * 55]


def test_the_memory_is_projected_once():
    model = _model(sharpness=1.5)
    block = next(iter(model.decoder))
    assert isinstance(block, TransformerBlock)
    assert block.cross_attention is not None
    calls = []
    block.cross_attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    src = _sources(9, 4)
    for translate in (greedy_translate, beam_translate):
        calls.clear()
        found = translate(model, src, bos_id=BOS, eos_id=EOS, max_new_tokens=12)
        assert max(len(ids) for ids in found) > 3
        assert len(calls) == 1


def test_translation_learns():
    """Sixty steps teach it to copy what it has seen: the whole of it can be trained."""
    torch.manual_seed(14)
    model = Transformer(
        8,
        8,
        d_model=32,
        num_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_ff=64,
        dropout=0.0,
        max_seq_len=12,
        pre_norm=True,
    )
    words = torch.randint(3, 8, (16, 5))
    tgt_in = torch.cat((torch.full((16, 1), BOS), words), dim=1)
    tgt_out = torch.cat((words, torch.full((16, 1), EOS)), dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        logits = model(words, tgt_in)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tgt_out.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    run: dict[str, Any] = {"bos_id": BOS, "eos_id": EOS, "max_new_tokens": 10}
    assert greedy_translate(model, words, **run) == words.tolist()
    assert beam_translate(model, words, **run) == words.tolist()


def test_dropout_of_the_embeddings():
    model = _model(dropout=0.5).train()
    src, tgt = _sources(9), torch.randint(1, 13, (1, 6))
    assert (model(src, tgt) - model(src, tgt)).abs().max() > 1e-3
    dropped = model._embed(model.src_embedding, src.repeat(50, 5)[:, :40], 0)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    model.eval()
    assert torch.equal(model(src, tgt), model(src, tgt))


def test_shape_comments():
    model = _model(sharpness=1.5)
    src = _sources(9, 4, 6)
    named = [TransformerBlock, TransformerStack, Transformer, greedy_translate, beam_translate]
    with check_shapes(*named) as report:
        model(src, torch.randint(1, 13, (3, 5)))
        for translate in (greedy_translate, beam_translate):
            translate(model, src, bos_id=BOS, eos_id=EOS, max_new_tokens=8)
    assert report.checked >= 10, report.unchecked


# --- bad input --------------------------------------------------------------------------------


def test_wrong_blocks_and_stacks():
    with pytest.raises(ValueError, match=r"dropout is 1\.0; it must be in \[0, 1\)"):
        _block(dropout=1.0)
    with pytest.raises(ValueError, match="at least one block"):
        TransformerStack([])
    x = torch.randn(2, 3, 20)
    with pytest.raises(ValueError, match="memory was given to a block without cross-attention"):
        _block()(x, memory=x)
    with pytest.raises(ValueError, match="has cross-attention and needs a memory"):
        _block(cross=True)(x)
    stack = TransformerStack([_block(), _block()])
    with pytest.raises(ValueError, match="1 caches for 2 blocks"):
        stack(x, caches=[GrowingKVCache()])
    with pytest.raises(ValueError, match="3 cross_caches for 2 blocks"):
        stack(x, cross_caches=[CrossKVCache() for _ in range(3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"src_vocab_size": 0}, "src_vocab_size 0"),
        ({"tgt_vocab_size": -1}, "tgt_vocab_size -1"),
        ({"max_seq_len": 0}, "max_seq_len 0"),
        ({"num_encoder_layers": 0}, "at least one block"),
        ({"num_heads": 3}, "d_model 20 is not a multiple of num_heads 3"),
        ({"share_embeddings": True}, "one vocabulary; the sizes are 17 and 13"),
        ({"dropout": 1.5}, r"dropout is 1\.5"),
    ],
)
def test_wrong_sizes(arguments, message):
    sizes: dict[str, Any] = {
        "src_vocab_size": 17,
        "tgt_vocab_size": 13,
        "d_model": 20,
        "num_heads": 4,
    }
    with pytest.raises(ValueError, match=message):
        Transformer(**{**sizes, **arguments})


def test_wrong_calls():
    model = _model()
    src, tgt = _sources(5), torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"ids have shape \(5,\); they must be \(batch, length\)"):
        model(src[0], tgt)
    with pytest.raises(ValueError, match="41 positions; this model has max_seq_len 40"):
        model(src, tgt[:, :1].expand(1, 41))
    with pytest.raises(ValueError, match=r"src_keep has shape \(1, 4\); it must be \(1, 5\)"):
        model(src, tgt, src_keep=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"memory_keep has shape \(1, 4\)"):
        model.decode(tgt, model.encode(src), memory_keep=torch.ones(1, 4, dtype=torch.bool))
    memory = model.encode(src)
    with pytest.raises(ValueError, match=r"memory has shape \(1, 5, 4\); it must be \(1, S, 20\)"):
        model.decode(tgt, memory[..., :4])
    with pytest.raises(TypeError, match=r"ids have dtype torch\.float32"):
        model(src, tgt.float())
    run: dict[str, Any] = {"bos_id": BOS, "eos_id": EOS}
    with pytest.raises(ValueError, match="length_penalty is nan"):
        beam_translate(model, src, length_penalty=float("nan"), **run)
    for translate in (greedy_translate, beam_translate):
        with pytest.raises(ValueError, match="max_new_tokens is 0; it must be from 1 to"):
            translate(model, src, max_new_tokens=0, **run)
        with pytest.raises(ValueError, match="max_new_tokens is 41"):
            translate(model, src, max_new_tokens=41, **run)
        with pytest.raises(ValueError, match="ids have shape"):
            translate(model, src[0], **run)
    with pytest.raises(ValueError, match="num_beams is 0"):
        beam_translate(model, src, num_beams=0, **run)
    with pytest.raises(ValueError, match=r"length_penalty is -0\.5"):
        beam_translate(model, src, length_penalty=-0.5, **run)


def test_a_refused_call_leaves_the_cache_as_it_was():
    model = _model()
    src, tgt = _sources(5), torch.ones(1, 3, dtype=torch.long)
    memory, cache = model.encode(src), model.new_cache()
    model.decode(tgt[:, :2], memory, cache=cache)
    with pytest.raises(ValueError, match=r"tgt_keep has shape \(1, 2\); it must be \(1, 3\)"):
        model.decode(tgt[:, 2:], memory, cache=cache, tgt_keep=torch.ones(1, 2).bool())
    with pytest.raises(TypeError, match=r"tgt_keep has dtype torch\.float32"):
        model.decode(tgt[:, 2:], memory, cache=cache, tgt_keep=torch.ones(1, 3))
    with pytest.raises(ValueError, match="memory has shape"):
        model.decode(tgt[:, 2:], memory[..., :4], cache=cache)
    assert [own.length for own in cache.own] == [2] * len(cache.own)
    last = model.decode(tgt[:, 2:], memory, cache=cache)
    whole = model.decode(tgt, memory)
    torch.testing.assert_close(last, whole[:, 2:], atol=1e-5, rtol=1e-5)


def test_the_reference_attention_fits_in():
    """Back ends are chosen by argument, all the way up."""
    torch.manual_seed(15)
    block = _block()
    x = torch.randn(2, 5, 20)
    fused = block(x, causal=True)
    block.attention.attend = scaled_dot_product_attention
    torch.testing.assert_close(block(x, causal=True), fused, atol=1e-6, rtol=1e-5)
    assert transformer.TransformerBlock is TransformerBlock


@pytest.mark.parametrize("wrong", [-1, 11])
@pytest.mark.parametrize("side", ["source", "target"])
def test_an_id_of_no_embedding_is_named(side, wrong):
    model = Transformer(11, 11, 8, 2, 1, 1, 16)
    good, bad = torch.tensor([[3, 4]]), torch.tensor([[3, wrong]])
    with pytest.raises(ValueError, match=rf"id {wrong} is outside \[0, 11\)"):
        model(*((bad, good) if side == "source" else (good, bad)))
