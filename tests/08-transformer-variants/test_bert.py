"""BERT, RoBERTa, ALBERT and ELECTRA against `transformers`, and what must hold of an encoder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from attention import scaled_dot_product_attention
from bert import Bert, BertPretrainingModel, MaskedLanguageModel, ReplacedTokenDetector
from bert_config import BertConfig, bert_preset
from bert_weights import (
    ALBERT_FAMILY,
    BERT_FAMILY,
    BERT_PRETRAINING_FAMILY,
    ELECTRA_FAMILY,
    ELECTRA_GENERATOR_FAMILY,
    ROBERTA_FAMILY,
    bert_family,
    load_bert,
    save_bert,
)
from hf_parity import fill_with_fan_in, from_transformers
from hf_weights import WEIGHTS_NAME
from input_embeddings import SummedEmbeddings
from variants_parity import gaps, padded, random_ids
from weight_rules import Family

TOLERANCE = 1e-10  # in fp64; wrong versions miss by more than 1e-3

KINDS: dict[str, tuple[Family, Any, Any, dict[str, Any]]] = {
    "bert": (BERT_FAMILY, hf.BertForMaskedLM, hf.BertConfig, {}),
    "bert-pretraining": (BERT_PRETRAINING_FAMILY, hf.BertForPreTraining, hf.BertConfig, {}),
    "bert-relu": (BERT_FAMILY, hf.BertForMaskedLM, hf.BertConfig, {"hidden_act": "relu"}),
    "roberta": (ROBERTA_FAMILY, hf.RobertaForMaskedLM, hf.RobertaConfig, {}),
    "albert": (ALBERT_FAMILY, hf.AlbertForMaskedLM, hf.AlbertConfig, {"embedding_size": 12}),
    "electra": (ELECTRA_FAMILY, hf.ElectraForPreTraining, hf.ElectraConfig, {"embedding_size": 9}),
    "electra-wide": (
        ELECTRA_FAMILY,
        hf.ElectraForPreTraining,
        hf.ElectraConfig,
        {"embedding_size": 24},
    ),
    "electra-generator": (
        ELECTRA_GENERATOR_FAMILY,
        hf.ElectraForMaskedLM,
        hf.ElectraConfig,
        {"embedding_size": 30},
    ),
}


def hf_pair(kind: str, **changes: Any) -> tuple[Any, Any, Family]:
    """Ours and theirs of the same weights: odd sizes, an eps that is felt."""
    family, model, config, own = KINDS[kind]
    sizes: dict[str, Any] = {
        "vocab_size": 101,
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "intermediate_size": 41,
        "max_position_embeddings": 31,
        "layer_norm_eps": 1e-3,
        **own,
        **changes,
    }
    torch.manual_seed(0)
    theirs = fill_with_fan_in(model(config(**sizes)).eval(), seed=2)
    return from_transformers(theirs, family), theirs, family


def logits(ours: Any, theirs: Any, ids: Tensor, keep: Tensor, types: Tensor) -> Any:
    """Both models' outputs at the real positions, in pairs."""
    reference = theirs(ids, attention_mask=keep.long(), token_type_ids=types)
    if isinstance(ours, BertPretrainingModel):
        tokens, follows = ours.pretraining_logits(ids, keep=keep, types=types)
        return [
            (tokens[keep], reference.prediction_logits[keep]),
            (follows, reference.seq_relationship_logits),
        ]
    return [(ours(ids, keep=keep, types=types)[keep], reference.logits[keep])]


def tiny(**changes: Any) -> BertConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 37,
        "d_model": 24,
        "num_heads": 4,
        "num_layers": 2,
        "d_ff": 40,
        "max_seq_len": 20,
        "dropout": 0.0,
    }
    return BertConfig(**{**sizes, **changes})


# --- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_of_a_padded_batch(kind: str) -> None:
    ours, theirs, family = hf_pair(kind)
    ids = random_ids(4, 19)
    keep = padded(ids, [19, 1, 7, 18], ours.config.pad_id)
    types = (torch.arange(19) > 8).long().expand(4, 19)
    assert max(gaps(ours, theirs, family, lambda: logits(ours, theirs, ids, keep, types))) < (
        TOLERANCE
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_padding_is_found_without_being_told(kind: str) -> None:
    ours, theirs, _ = hf_pair(kind)
    ids = random_ids(3, 11)
    keep = padded(ids, [4, 11, 9], ours.config.pad_id)
    with torch.no_grad():
        told, reference = ours(ids, keep=keep), theirs(ids, attention_mask=keep.long()).logits
        assert torch.equal(ours(ids)[keep], told[keep])
        torch.testing.assert_close(told[keep], reference[keep], atol=1e-4, rtol=1e-4)


def test_roberta_counts_positions_over_real_tokens() -> None:
    """Left or right, padding does not move a text: its vectors stay what they are alone."""
    ours, theirs, _ = hf_pair("roberta")
    ours.double()
    theirs.double()
    ids = random_ids(1, 9)
    pad = torch.full((1, 5), ours.config.pad_id)
    left, right = torch.cat((pad, ids), 1), torch.cat((ids, pad), 1)
    with torch.no_grad():
        alone = ours(ids)
        torch.testing.assert_close(ours(left)[:, 5:], alone)
        torch.testing.assert_close(ours(right)[:, :9], alone)
        reference = theirs(left, attention_mask=(left != 1).long()).logits[:, 5:]
    torch.testing.assert_close(alone, reference)
    embed = ours.encoder.embeddings
    assert embed.position_ids(torch.tensor([[5, 6, 1, 1]])).tolist() == [[2, 3, 1, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_directories_both_ways(kind: str, tmp_path: Path) -> None:
    ours, theirs, family = hf_pair(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_bert(tmp_path / "theirs")
    assert type(loaded) is type(ours)
    assert loaded.config == ours.config
    assert bert_family(loaded) is family or kind == "electra-wide"
    ids = random_ids(2, 13)
    keep = torch.ones_like(ids, dtype=torch.bool)
    types = torch.zeros_like(ids)
    save_bert(loaded, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        for mine, reference in logits(loaded, again, ids, keep, types):
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)
        for mine, reference in logits(ours, theirs, ids, keep, types):
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)
    assert load_bert(tmp_path / "ours").config == ours.config


def test_old_names_of_a_norm_are_read(tmp_path: Path) -> None:
    """The files of 2018 say gamma and beta, and keep the positions 0, 1, 2, … as a tensor."""
    ours, theirs, _ = hf_pair("bert-pretraining")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    old["bert.embeddings.position_ids"] = torch.arange(31)[None]
    save_file(old, tmp_path / WEIGHTS_NAME)
    ids = random_ids(1, 5)
    assert torch.equal(load_bert(tmp_path)(ids), ours(ids))


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "electra"])
def test_a_directory_with_a_tensor_missing_is_refused(kind: str, tmp_path: Path) -> None:
    _, theirs, _ = hf_pair(kind)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    name = next(n for n in tensors if n.endswith("position_embeddings.weight"))
    del tensors[name]
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=f"missing: {name}"):
        load_bert(tmp_path)


@pytest.mark.parametrize(
    ("kind", "entry", "value"),
    [
        ("bert", "is_decoder", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "tie_word_embeddings", False),
        ("bert", "attention_probs_dropout_prob", 0.3),
        ("bert", "architectures", ["BertForMultipleChoice"]),
        ("albert", "num_hidden_groups", 2),
        ("roberta", "hidden_act", "relu"),
        ("roberta", "pad_token_id", None),
        ("bert", "model_type", "xlnet"),
    ],
)
def test_options_that_we_have_not_are_refused(
    kind: str, entry: str, value: Any, tmp_path: Path
) -> None:
    _, theirs, _ = hf_pair(kind)
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, entry: value}))
    with pytest.raises(ValueError, match=entry):
        load_bert(tmp_path)


def test_a_shape_that_a_layout_cannot_express_is_refused(tmp_path: Path) -> None:
    wide = tiny(share_layers=True)  # ALBERT has always a projection
    with pytest.raises(ValueError, match="embed_dim=None"):
        save_bert(MaskedLanguageModel(wide), tmp_path)
    with pytest.raises(ValueError, match="position_offset=3"):
        save_bert(MaskedLanguageModel(tiny(pad_id=1, position_offset=3)), tmp_path)
    with pytest.raises(ValueError, match="num_types=0"):
        save_bert(MaskedLanguageModel(tiny(num_types=0)), tmp_path)
    with pytest.raises(TypeError, match="no checkpoint layout for a Bert"):
        save_bert(Bert(tiny()), tmp_path)


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("bert-base", "bert", {}),
        ("roberta-base", "roberta", {"max_position_embeddings": 514, "type_vocab_size": 1}),
        (
            "albert-base",
            "albert",
            {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        ),
        ("electra-small", "electra-generator", {}),
    ],
)
def test_presets_have_the_published_sizes(name: str, kind: str, changes: dict[str, Any]) -> None:
    _, model, config, _ = KINDS[kind]
    with torch.device("meta"):
        theirs = model(config(**changes))
        ours = MaskedLanguageModel(bert_preset(name))
    expected = sum(p.numel() for p in theirs.parameters())
    assert bert_preset(name).num_parameters == expected == sum(p.numel() for p in ours.parameters())
    if name == "bert-base":
        assert expected == 109_514_298


def test_flops_count_every_multiplication() -> None:
    """Twice the multiplications of a forward pass, times three; the head only where it is read."""
    config = tiny(embed_dim=10)
    D, E, F, V, L, T = 24, 10, 40, 37, 2, 16
    layer = 4 * D * D + 2 * D * F
    attention = L * 2 * T * D  # scores and mix, a multiplication each
    full = 6 * (L * layer + E * D + attention + D * E + E * V)
    assert config.flops_per_token(T) == full
    assert config.flops_per_token(T, predicted=0.0) == full - 6 * (D * E + E * V)
    assert tiny(share_layers=True).flops_per_token(T) == tiny().flops_per_token(T)


# --- what must hold ------------------------------------------------------------------------------


def test_every_position_sees_every_other() -> None:
    """The Jacobian of an encoder has no empty entry: the future counts as much as the past."""
    torch.manual_seed(0)
    model = Bert(tiny(pad_id=None))
    fill_with_fan_in(model)
    x = model.embeddings(random_ids(1, 6, low=0, high=37)).detach()

    def read(x: Tensor) -> Tensor:
        for block in model.blocks:
            x = block(x)
        return x.sum(-1)[0]  # (T,)

    jacobian: Any = torch.autograd.functional.jacobian(read, x)  # (T, 1, T, D)
    assert (jacobian[:, 0].abs().sum(-1) > 1e-6).all()


def test_padding_changes_nothing() -> None:
    model = Bert(tiny()).eval()
    fill_with_fan_in(model)
    ids = random_ids(2, 8, high=37)
    longer = torch.cat((ids, torch.zeros(2, 5, dtype=torch.int64)), 1)
    with torch.no_grad():
        torch.testing.assert_close(model(longer)[:, :8], model(ids))
        kept_all = model(longer, keep=torch.ones(2, 13, dtype=torch.bool))[:, :8]
        assert (kept_all - model(ids)).abs().max() > 0.01


def test_shared_layers_are_one_and_run_each_time() -> None:
    one = Bert(tiny(num_layers=1)).eval()
    shared = Bert(tiny(num_layers=3, share_layers=True)).eval()
    assert len(shared.blocks) == 1
    shared.load_state_dict(one.state_dict())
    unrolled = Bert(tiny(num_layers=3)).eval()
    state = one.state_dict()
    for i in (1, 2):
        state |= {
            name.replace("blocks.0.", f"blocks.{i}."): tensor
            for name, tensor in one.state_dict().items()
            if name.startswith("blocks.")
        }
    unrolled.load_state_dict(state)
    ids = random_ids(2, 7, high=37)
    assert torch.equal(shared(ids), unrolled(ids))


def test_logits_at_chosen_positions_only() -> None:
    model = MaskedLanguageModel(tiny()).eval()
    ids = random_ids(3, 9, high=37)
    only = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    torch.testing.assert_close(model(ids, only=only), model(ids)[only])
    with pytest.raises(ValueError, match=r"only is \(3, 8\)"):
        model(ids, only=only[:, 1:])


def test_the_decoder_is_the_token_table() -> None:
    model = MaskedLanguageModel(tiny())
    assert model.decoder.weight is model.encoder.embeddings.tokens.weight
    copied = copy.deepcopy(model)
    assert copied.decoder.weight is copied.encoder.embeddings.tokens.weight


def test_a_generator_decides_the_weights() -> None:
    def make(kind: Any, seed: int) -> list[Tensor]:
        model = kind(tiny(), generator=torch.Generator().manual_seed(seed))
        return [p.detach() for p in model.parameters()]

    for kind in (Bert, MaskedLanguageModel, BertPretrainingModel, ReplacedTokenDetector):
        first, again, other = make(kind, 1), make(kind, 1), make(kind, 2)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
        matrices = torch.cat([p.flatten() for p in first if p.dim() == 2])
        assert 0.019 < float(matrices.std()) < 0.021


def test_any_attention_function_will_do() -> None:
    default = Bert(tiny()).eval()
    other = Bert(tiny(), attend=scaled_dot_product_attention).eval()
    other.load_state_dict(default.state_dict())
    ids = random_ids(2, 7, low=0, high=37)
    torch.testing.assert_close(default(ids), other(ids))


def test_dropout_reaches_embeddings_weights_and_sublayers() -> None:
    model = Bert(tiny(dropout=0.5))
    assert model.embeddings.dropout == 0.5
    assert {block.dropout for block in model.blocks} == {0.5}  # type: ignore[union-attr]
    assert {block.attention.dropout for block in model.blocks} == {0.5}  # type: ignore[union-attr]
    ids = random_ids(2, 7, high=37)
    torch.manual_seed(0)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        (torch.full((1, 3), 37), None, r"ids from 37 to 37 must lie in \[0, 37\)"),
        (torch.tensor([[3, -1]]), None, "ids from -1"),
        (torch.ones(2, 21, dtype=torch.int64), None, "21 tokens are more than max_seq_len 20"),
        (torch.ones(4, dtype=torch.int64), None, r"ids has shape \(4,\)"),
        (torch.ones(2, 0, dtype=torch.int64), None, r"ids has shape \(2, 0\)"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 2, dtype=torch.int64), "types has"),
        (torch.ones(2, 3, dtype=torch.int64), torch.full((2, 3), 2), "types from 2 to 2"),
    ],
)
def test_bad_ids_and_types(ids: Tensor, types: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bert(tiny())(ids, types=types)


def test_a_keep_of_another_shape() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    for value in (True, False):
        with pytest.raises(ValueError, match=r"keep has shape \(2, 4\)"):
            Bert(tiny())(ids, keep=torch.full((2, 4), value))


def test_no_pooler_no_pooled() -> None:
    with pytest.raises(ValueError, match="pooler=False"):
        Bert(tiny(), pooler=False).pooled(torch.zeros(1, 2, 24))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "d_model 24 is not a multiple"),
        ({"embed_dim": 0}, "embed_dim is 0"),
        ({"d_model": 24.0}, "d_model is 24.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_bad_presets() -> None:
    with pytest.raises(ValueError, match="no preset 'bert'"):
        bert_preset("bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_offset": 2}, "give pad_id"),
        ({"position_offset": -1}, "position_offset -1 must not be negative"),
        ({"num_types": -1}, "num_types -1"),
        ({"pad_id": 9}, "pad_id is 9"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
    ],
)
def test_bad_embeddings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SummedEmbeddings(9, 4, **{"max_seq_len": 5, **changes})


def test_no_types_where_there_is_no_table() -> None:
    embeddings = SummedEmbeddings(9, 4, max_seq_len=5, num_types=0)
    ids = torch.ones(1, 3, dtype=torch.int64)
    assert embeddings(ids).shape == (1, 3, 4)
    with pytest.raises(ValueError, match="num_types 0"):
        embeddings(ids, types=torch.zeros_like(ids))
