"""Llama and Qwen3 against `transformers`, and what must hold of any decoder."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig as HFLlamaConfig
from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hf_parity import compare, fill_with_fan_in, from_transformers, left_padding
from llama import LLAMA_FAMILY, QWEN3_FAMILY, Llama, LlamaConfig, llama_family, llama_preset
from rope_encoding import RoPEScaling
from text_generation import beam_search, generate
from weight_rules import Family

TOLERANCE = 2e-5  # of the largest logit or gradient; the mutants miss by more than 1e-2

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
}


def hf_pair(family: Family, *, seed: int = 0, scaling: str = "default", **changes: Any) -> Any:
    """Ours and theirs: odd sizes, three query heads a key head, heads wider than D/H."""
    rope = {"rope_type": scaling, "rope_theta": 500.0, **SCALINGS[scaling]}
    if scaling in ("yarn", "llama3"):
        changes = {"max_position_embeddings": 64, **changes}
    sizes: dict[str, Any] = {
        "vocab_size": 101,
        "hidden_size": 42,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "num_hidden_layers": 3,
        "intermediate_size": 75,
        "max_position_embeddings": 29,
        "rms_norm_eps": 1e-3,
        "rope_parameters": rope,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        **changes,
    }
    torch.manual_seed(seed)
    if family is QWEN3_FAMILY:
        theirs: Any = Qwen3ForCausalLM(Qwen3Config(**sizes))
    else:
        theirs = LlamaForCausalLM(HFLlamaConfig(**sizes))
    fill_with_fan_in(theirs.eval(), seed=seed)
    return from_transformers(theirs, family), theirs


def random_ids(*shape: int, vocab_size: int = 101, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def tiny(**changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 37,
        "d_model": 24,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "num_layers": 2,
        "d_ff": 40,
        "max_seq_len": 32,
    }
    return LlamaConfig(**{**sizes, **changes})


def filled(config: LlamaConfig, seed: int = 0) -> Llama:
    model = Llama(config)
    fill_with_fan_in(model, seed=seed)
    return model.eval()


# --- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [QWEN3_FAMILY, LLAMA_FAMILY], ids=lambda f: f.name)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients(family: Family, tied: bool) -> None:
    ours, theirs = hf_pair(family, tie_word_embeddings=tied)
    assert ours.config.tie_embeddings is tied
    assert max(compare(ours, theirs, family, random_ids(3, 23))) < TOLERANCE


@pytest.mark.parametrize("family", [QWEN3_FAMILY, LLAMA_FAMILY], ids=lambda f: f.name)
def test_logits_and_gradients_of_a_left_padded_batch(family: Family) -> None:
    ours, theirs = hf_pair(family, seed=3)
    gaps = compare(ours, theirs, family, random_ids(4, 19), lengths=[19, 1, 7, 18])
    assert max(gaps) < TOLERANCE


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "yarn", "llama3"])
def test_scaled_rotations_beyond_the_boundary(scaling: str) -> None:
    """97 tokens: past 29, where dynamic begins, and past every trained length."""
    family = LLAMA_FAMILY if scaling == "llama3" else QWEN3_FAMILY
    ours, theirs = hf_pair(family, scaling=scaling, seed=5)
    assert ours.config.rope_scaling.kind == scaling
    assert max(compare(ours, theirs, family, random_ids(2, 97))) < TOLERANCE
    plain = Llama(dataclasses.replace(ours.config, rope_scaling=None)).eval()
    plain.load_state_dict(ours.state_dict())
    ids = random_ids(2, 97)
    assert (plain(ids) - ours(ids)).abs().max() > 100 * TOLERANCE * ours(ids).abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"head_dim": 4, "hidden_act": "gelu"},
        {"hidden_act": "relu2", "rms_norm_eps": 1e-12},
        {"num_hidden_layers": 1, "hidden_act": "gelu_pytorch_tanh"},
    ],
    ids=str,
)
def test_other_shapes_and_gates(changes: dict[str, Any]) -> None:
    ours, theirs = hf_pair(QWEN3_FAMILY, seed=7, **changes)
    assert max(compare(ours, theirs, QWEN3_FAMILY, random_ids(2, 21))) < TOLERANCE


def test_bf16_weights_give_what_theirs_give() -> None:
    """bf16 has 8 bits, so tables or norms that were rounded once more would be off by 1 %."""
    ours, theirs = hf_pair(QWEN3_FAMILY, seed=9)
    ids = random_ids(2, 21)
    exact = theirs(ids).logits.detach()
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    with torch.no_grad():
        our_gap = (ours(ids).float() - exact).abs().mean()
        their_gap = (theirs(ids).logits.float() - exact).abs().mean()
    assert our_gap < 1.25 * their_gap


@pytest.mark.parametrize("family", [QWEN3_FAMILY, LLAMA_FAMILY], ids=lambda f: f.name)
def test_greedy_tokens(family: Family) -> None:
    ours, theirs = hf_pair(family, seed=11, max_position_embeddings=64)
    prompts = [row[:n].tolist() for row, n in zip(random_ids(3, 9), (9, 2, 5), strict=True)]
    mask, _, _ = left_padding([9, 2, 5], 9)
    padded = torch.tensor([[0] * (9 - len(p)) + p for p in prompts])
    expected = theirs.generate(
        padded, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=0
    )[:, 9:]
    for use_cache in (True, False):
        assert generate(ours, prompts, max_new_tokens=30, use_cache=use_cache) == expected.tolist()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beam_tokens(length_penalty: float) -> None:
    ours, theirs = hf_pair(QWEN3_FAMILY, seed=13, max_position_embeddings=64)
    ids = random_ids(2, 6)
    expected = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=15,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=length_penalty,
        do_sample=False,
        eos_token_id=17,
        pad_token_id=0,
    )[:, 6:]
    found = beam_search(
        ours, ids, num_beams=4, max_new_tokens=15, length_penalty=length_penalty, eos_id=17
    )
    rows = [beam.ids for prompt in found for beam in prompt]
    width = expected.shape[1]
    assert [row + [0] * (width - len(row)) for row in rows] == expected.tolist()


# --- what must hold of any decoder ---------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[1] * 17, [17], [5, 1, 7, 4], [16, 1]], ids=str)
def test_cached_equals_uncached_under_any_chunking(chunks: list[int]) -> None:
    model = filled(tiny())
    ids = random_ids(3, 17, vocab_size=37)
    cache = model.new_cache(3)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
        whole = model(ids)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


def test_cached_ragged_rows_equal_each_row_alone() -> None:
    model = filled(tiny(rope_scaling=RoPEScaling(kind="yarn", factor=4.0)))
    ids, lengths = random_ids(3, 13, vocab_size=37), [13, 4, 9]
    cache = model.new_cache(3)
    cache.starts = torch.tensor([13 - length for length in lengths])
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in ids.split([6, 4, 1, 2], dim=1)]
        together = torch.cat(parts, 1)
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, 13 - length :])
            torch.testing.assert_close(together[row, -length:], alone[0], rtol=1e-5, atol=1e-5)


def test_no_logit_depends_on_a_later_token() -> None:
    model = filled(tiny())
    ids = random_ids(1, 12, vocab_size=37)
    seen = {}

    def keep_embedding(module: Any, args: Any, output: Tensor) -> Tensor:
        seen["x"] = output.detach().requires_grad_()
        return seen["x"]

    model.token_embedding.register_forward_hook(keep_embedding)
    logits = model(ids)
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), seen["x"], retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert (reach[t + 1 :] == 0).all()
        assert (reach[: t + 1] > 0).all()


def test_last_only_hidden_states_and_unembed_agree() -> None:
    model = filled(tiny(logit_soft_cap=3.0))
    ids = random_ids(2, 7, vocab_size=37)
    whole = model(ids)
    torch.testing.assert_close(model(ids, last_only=True), whole[:, -1:])
    raw = model.unembed(model.hidden_states(ids))
    torch.testing.assert_close(3.0 * torch.tanh(raw / 3.0), whole)
    assert raw.abs().max() > 3.0 > whole.abs().max()


def test_shifting_all_positions_changes_nothing() -> None:
    """Rotations know relative positions only."""
    model = filled(tiny())
    ids = random_ids(2, 9, vocab_size=37)
    shifted = model(ids, positions=torch.arange(9) + 1000)
    torch.testing.assert_close(model(ids), shifted, rtol=1e-3, atol=1e-3)
    stretched = model(ids, positions=torch.arange(9) * 2)
    assert (stretched - shifted).abs().max() > 0.1


def test_copies_and_state_dicts_keep_the_tie_and_the_logits() -> None:
    for tied in (True, False):
        model = filled(tiny(tie_embeddings=tied))
        ids = random_ids(2, 9, vocab_size=37)
        twin = copy.deepcopy(model)
        assert (twin.unembed.weight is twin.token_embedding.weight) is tied
        other = Llama(model.config)
        other.load_state_dict(model.state_dict())
        assert torch.equal(twin(ids), model(ids))
        assert torch.equal(other(ids), model(ids))


def test_a_model_made_on_meta_gives_the_same_logits_once_filled() -> None:
    model = filled(tiny())
    with torch.device("meta"):
        shell = Llama(model.config)
    shell = shell.to_empty(device="cpu")
    shell.load_state_dict(model.state_dict())
    ids = random_ids(2, 9, vocab_size=37)
    assert torch.equal(shell.eval()(ids), model(ids))


# --- initial weights -----------------------------------------------------------------------------


def test_the_generator_decides_the_weights() -> None:
    models = [Llama(tiny(), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    first, second, third = (dict(m.named_parameters()) for m in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.attention.q_proj.weight"],
                           third["blocks.0.attention.q_proj.weight"])  # fmt: skip


def test_zeroed_outputs_make_every_block_the_identity() -> None:
    model = Llama(tiny(zero_init_outputs=True)).eval()
    ids = random_ids(2, 9, vocab_size=37)
    expected = model.unembed(model.final_norm(model.token_embedding(ids)))
    assert torch.equal(model(ids), expected)
    assert all((p != 0).all() for name, p in model.named_parameters() if "q_proj" in name)


def test_standard_deviations_are_the_configs() -> None:
    sizes = {"vocab_size": 500, "d_model": 128, "head_dim": 64, "d_ff": 400}
    generator = torch.Generator().manual_seed(0)
    model = Llama(tiny(**sizes, init_std=0.05, embedding_std=0.3), generator=generator)
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters()}
    assert spread["token_embedding.weight"] == pytest.approx(0.3, rel=0.05)
    assert spread["blocks.1.feed_forward.down.weight"] == pytest.approx(0.05, rel=0.05)
    model = Llama(tiny(**sizes, init_std=None, tie_embeddings=False), generator=generator)
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters()}
    assert spread["token_embedding.weight"] == pytest.approx(0.02, rel=0.05)
    assert spread["unembed.weight"] == pytest.approx(128**-0.5, rel=0.05)
    assert spread["blocks.1.feed_forward.down.weight"] == pytest.approx(400**-0.5, rel=0.05)


def test_the_first_loss_is_that_of_guessing() -> None:
    model = Llama(llama_preset("1M"), generator=torch.Generator().manual_seed(0))
    ids = random_ids(4, 65, vocab_size=2048)
    logits = model(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(math.log(2048), abs=0.1)


def test_dropout_acts_in_training_only() -> None:
    model = filled(tiny(dropout=0.3))
    ids = random_ids(2, 9, vocab_size=37)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_an_ungated_feed_forward_has_two_matrices() -> None:
    model = filled(tiny(gated=False, activation="relu_squared"))
    assert not hasattr(model.blocks[0].feed_forward, "gate")
    assert model(random_ids(2, 9, vocab_size=37)).isfinite().all()


# --- configs -------------------------------------------------------------------------------------

PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_have_the_published_sizes(name: str) -> None:
    config = llama_preset(name)
    assert config.num_parameters == PUBLISHED[name]
    family = llama_family(config)
    hf_class: Any = Qwen3ForCausalLM if family is QWEN3_FAMILY else LlamaForCausalLM
    entries = {**family.config_to_hf(config), "tie_word_embeddings": config.tie_embeddings}
    with torch.device("meta"):
        ours: Any = Llama(config)
        theirs: Any = hf_class(hf_class.config_class(**entries))
    assert sum(p.numel() for p in ours.parameters()) == PUBLISHED[name]
    assert theirs.num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", ["1M", "3M", "7M", "12M", "25M"])
def test_small_presets_are_about_as_large_as_their_names(name: str) -> None:
    config = llama_preset(name)
    assert config.num_parameters == pytest.approx(1e6 * float(name[:-1]), rel=0.15)
    model = Llama(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"qk_norm": False}, {"gated": False}], ids=str
)
def test_parameters_and_flops_are_counted_as_they_are(changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    model = Llama(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    mixing = 12 * config.num_layers * config.num_heads * config.head_width * 31
    assert config.flops_per_token(31) == 6 * matrices + mixing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"d_ff": 2.5}, r"d_ff is 2\.5"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0"),
        ({"head_dim": None, "d_model": 25}, "d_model 25 is not a multiple"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"activation": "swish"}, "activation is 'swish'"),
        ({"norm_eps": 0.0}, "norm_eps is 0"),
        ({"rope_base": math.inf}, "rope_base is inf"),
        ({"logit_soft_cap": -1.0}, "logit_soft_cap is -1"),
        ({"init_std": math.nan}, "init_std is nan"),
    ],
    ids=str,
)
def test_a_bad_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_unknown_presets_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no preset '8M'; there are 1M, "):
        llama_preset("8M")
    with pytest.raises(TypeError, match="n_layers"):
        llama_preset("1M", n_layers=3)
    assert llama_preset("1M", vocab_size=300).vocab_size == 300


def test_bad_ids_are_refused() -> None:
    model = filled(tiny())
    with pytest.raises(ValueError, match=r"ids has shape \(5,\)"):
        model(torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"ids has shape \(2, 0\)"):
        model(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"vocab_size=37"):
        model(torch.tensor([[1, 37]]))
    cache = model.new_cache(1, 3)
    with torch.no_grad(), pytest.raises(ValueError, match="max_seq_len 3"):
        model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
    deeper = Llama(tiny(num_layers=3)).new_cache(1)
    with torch.no_grad(), pytest.raises(ValueError, match="cache of 3 layers for 2 blocks"):
        model(torch.zeros(1, 4, dtype=torch.long), cache=deeper)


def test_an_empty_batch_has_empty_logits() -> None:
    assert filled(tiny())(torch.zeros(0, 5, dtype=torch.long)).shape == (0, 5, 37)


def test_a_forward_that_fails_midway_leaves_the_cache_usable() -> None:
    model = filled(tiny())
    ids, cache = random_ids(2, 9, vocab_size=37), model.new_cache(2)

    def fail(module: Any, args: Any) -> None:
        raise RuntimeError("interrupted")

    with torch.no_grad():
        model(ids[:, :4], cache=cache)
        hook = model.blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            model(ids[:, 4:7], cache=cache)
        hook.remove()
        torch.testing.assert_close(model(ids[:, 4:], cache=cache), model(ids)[:, 4:])


# --- the layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "option"),
    [
        (QWEN3_FAMILY, {"qk_norm": False}, "qk_norm=False"),
        (LLAMA_FAMILY, {"qk_norm": True}, "qk_norm=True"),
        (QWEN3_FAMILY, {"gated": False}, "gated=False"),
        (QWEN3_FAMILY, {"logit_soft_cap": 30.0}, r"logit_soft_cap=30\.0"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_what_the_layout_cannot_say_is_named(
    family: Family, changes: dict[str, Any], option: str
) -> None:
    with pytest.raises(ValueError, match=f"{option} cannot be expressed in the {family.name}"):
        family.config_to_hf(tiny(**changes))


@pytest.mark.parametrize(
    ("family", "entries", "message"),
    [
        (QWEN3_FAMILY, {"attention_bias": True}, "attention_bias=True"),
        (LLAMA_FAMILY, {"mlp_bias": True}, "mlp_bias=True"),
        (QWEN3_FAMILY, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN3_FAMILY, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (QWEN3_FAMILY, {"hidden_act": "mish"}, "mish"),
        (LLAMA_FAMILY, {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        (LLAMA_FAMILY, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_what_we_do_not_have_is_named(
    family: Family, entries: dict[str, Any], message: str
) -> None:
    raw = {**family.config_to_hf(tiny(qk_norm=family is QWEN3_FAMILY)), **entries}
    if "rope_scaling" in entries or "partial_rotary_factor" in entries:
        del raw["rope_parameters"]
    with pytest.raises(ValueError, match=message):
        family.config_from_hf(raw)


def test_configs_survive_the_round_trip() -> None:
    for kind, options in [
        ("linear", {}),
        ("dynamic", {}),
        ("yarn", {"original_max_position_embeddings": 8, "beta_fast": 20.0}),
        ("llama3", {"original_max_position_embeddings": 8, "high_freq_factor": 5.0}),
    ]:
        scaling = RoPEScaling(kind=kind, factor=2.0, **options)
        config = tiny(rope_scaling=scaling, rope_base=123.0, norm_eps=1e-4, dropout=0.25)
        entries = {**QWEN3_FAMILY.config_to_hf(config), "tie_word_embeddings": True}
        assert QWEN3_FAMILY.config_from_hf(entries) == config
    ntk = tiny(rope_scaling=RoPEScaling(kind="ntk", factor=2.0))
    entries = {**QWEN3_FAMILY.config_to_hf(ntk), "tie_word_embeddings": True}
    back = QWEN3_FAMILY.config_from_hf(entries)
    assert back.rope_scaling is None  # the same rotations, spelled as another base
    ids = random_ids(2, 9, vocab_size=37)
    assert torch.equal(filled(ntk)(ids), filled(back)(ids))


def test_the_old_spelling_of_rotations_is_read() -> None:
    raw = LLAMA_FAMILY.config_to_hf(tiny(qk_norm=False))
    del raw["rope_parameters"], raw["head_dim"]
    raw |= {"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    config = LLAMA_FAMILY.config_from_hf(raw)
    assert config.rope_base == 77.0
    assert config.rope_scaling == RoPEScaling(kind="linear", factor=2.0)
    assert config.head_width == 6
