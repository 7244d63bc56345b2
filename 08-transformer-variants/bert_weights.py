"""BERT, RoBERTa, ELECTRA and ALBERT from and to directories in Hugging Face's layout.

Each `Family` is a table of names, strict both ways (see `weight_rules`). Families of one model
type differ in their head; config.json's `architectures` says which one a directory holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bert import BertPretrainingModel, MaskedLanguageModel, ReplacedTokenDetector
from bert_config import BertConfig
from hf_weights import load_pretrained, save_pretrained
from weight_rules import Family, Rule, activation_from_hf, activation_to_hf


def load_bert(
    directory_or_name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """The model in a directory, in eval mode: whichever of `BERT_FAMILIES` config.json names.

    Args and Raises: as `hf_weights.load_pretrained`.

    Returns:
        A `MaskedLanguageModel`, a `BertPretrainingModel` or a `ReplacedTokenDetector`; each has
        its `.encoder`.
    """
    return load_pretrained(directory_or_name, BERT_FAMILIES, dtype=dtype, device=device)


def save_bert(model: nn.Module, directory: str | os.PathLike[str], **options: Any) -> Path:
    """Write a directory that `transformers` loads; see `hf_weights.save_pretrained`.

    Raises:
        TypeError: a model that `load_bert` would not return.
    """
    return save_pretrained(model, directory, bert_family(model), **options)


def bert_family(model: nn.Module) -> Family:
    """The layout in which a model is saved.

    ALBERT is told by its shared layers, RoBERTa by its position offset. A masked language model
    with a projected token table can only be ELECTRA's generator; without one it is BERT.

    Raises:
        TypeError: no such layout.
    """
    config = getattr(model, "config", None)
    if isinstance(config, BertConfig):
        if isinstance(model, ReplacedTokenDetector):
            return ELECTRA_FAMILY
        if isinstance(model, BertPretrainingModel):
            return BERT_PRETRAINING_FAMILY
        if isinstance(model, MaskedLanguageModel):
            if config.share_layers:
                return ALBERT_FAMILY
            if config.position_offset:
                return ROBERTA_FAMILY
            return BERT_FAMILY if config.embed_dim is None else ELECTRA_GENERATOR_FAMILY
    raise TypeError(f"no checkpoint layout for a {type(model).__name__}")


def _config_from_hf(raw: Mapping[str, Any], *, kind: str) -> BertConfig:
    fixed = {
        "tie_word_embeddings": True,
        "is_decoder": False,
        "add_cross_attention": False,
        "position_embedding_type": "absolute",
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    }
    for option, ours in fixed.items():
        if raw.get(option, ours) not in (ours, None):
            raise ValueError(f"{option}={raw[option]} has no equivalent here")
    default = 0.0 if kind == "albert" else 0.1
    dropouts = {
        raw.get(name, default) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")
    }
    if len(dropouts) > 1:
        raise ValueError("hidden_dropout_prob and attention_probs_dropout_prob must be equal")
    pad_id = raw.get("pad_token_id", 1 if kind == "roberta" else 0)
    offset = 0
    if kind == "roberta":
        if pad_id is None:
            raise ValueError("a RoBERTa needs pad_token_id: its positions count from there")
        offset = pad_id + 1
    embed_dim = raw["embedding_size"] if kind in ("albert", "electra") else None
    if kind == "electra" and embed_dim == raw["hidden_size"]:
        embed_dim = None  # ALBERT projects even then
    activation = activation_from_hf(
        raw.get("hidden_act", "gelu_new" if kind == "albert" else "gelu")
    )
    if kind in ("roberta", "electra") and activation != "gelu":
        raise ValueError(f"hidden_act={raw['hidden_act']}: a {kind} head is always of gelu")
    return BertConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        num_heads=raw["num_attention_heads"],
        num_layers=raw["num_hidden_layers"],
        d_ff=raw["intermediate_size"],
        max_seq_len=raw["max_position_embeddings"] - offset,
        dropout=dropouts.pop(),
        num_types=raw.get("type_vocab_size", 2),
        pad_id=pad_id,
        norm_eps=raw.get("layer_norm_eps", 1e-12),
        activation=activation,
        embed_dim=embed_dim,
        position_offset=offset,
        share_layers=kind == "albert",
        init_std=raw.get("initializer_range", 0.02),
    )


def _config_to_hf(config: BertConfig, *, kind: str) -> dict[str, Any]:
    pad_id = config.pad_id
    offset = 0
    if kind == "roberta" and pad_id is not None:
        offset = pad_id + 1
    projects = config.embed_dim is not None
    can_project = {"bert": False, "roberta": False, "albert": True}.get(kind, projects)
    needed = {
        "share_layers": kind == "albert",
        "position_offset": offset,
        "embed_dim": config.embed_dim if projects == can_project else "another",
    }
    for option, value in needed.items():
        if getattr(config, option) != value:
            raise ValueError(
                f"{option}={getattr(config, option)} cannot be expressed in the {kind} layout"
            )
    if kind in ("roberta", "electra") and config.activation != "gelu":
        raise ValueError(f"activation={config.activation} cannot be expressed in the {kind} layout")
    if config.num_types < 1:
        raise ValueError(f"num_types={config.num_types} cannot be expressed in the {kind} layout")
    if kind == "electra" and config.embed_dim == config.d_model:
        raise ValueError("electra has no projection where embed_dim is d_model")
    entries = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_seq_len + offset,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "type_vocab_size": config.num_types,
        "pad_token_id": pad_id,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": activation_to_hf(config.activation),
        "initializer_range": config.init_std,
    }
    if kind in ("albert", "electra"):
        entries["embedding_size"] = config.embed_width
    return entries


_EMBEDDINGS = {
    "word_embeddings.weight": "tokens.weight",
    "position_embeddings.weight": "positions.weight",
    "token_type_embeddings.weight": "types.weight",
    "LayerNorm.weight": "norm.weight",
    "LayerNorm.bias": "norm.bias",
}
_LAYER = {
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.out_proj",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}
_ALBERT_LAYER = {
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.dense": "attention.out_proj",
    "attention.LayerNorm": "attention_norm",
    "ffn": "feed_forward.up",
    "ffn_output": "feed_forward.down",
    "full_layer_layer_norm": "feed_forward_norm",
}


def _pairs(theirs: str, ours: str, when: Callable[[BertConfig], bool] | None = None) -> list[Rule]:
    """Both parameters of a linear layer or a norm."""
    return [Rule(f"{theirs}.{end}", f"{ours}.{end}", when=when) for end in ("weight", "bias")]


def _projects(config: BertConfig) -> bool:
    """Whether the token table is narrower than the model."""
    return config.embed_dim is not None


def _trunk_rules(prefix: str) -> list[Rule]:
    """The encoder's table."""
    rules = [
        Rule(f"{prefix}embeddings.{theirs}", f"encoder.embeddings.{ours}")
        for theirs, ours in _EMBEDDINGS.items()
    ]
    layer, names, block = f"{prefix}encoder.layer.{{i}}", _LAYER, "encoder.blocks.{i}"
    if prefix == "albert.":
        layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
        names, block = _ALBERT_LAYER, "encoder.blocks.0"
        rules += _pairs("albert.encoder.embedding_hidden_mapping_in", "encoder.embeddings.project")
    elif prefix == "electra.":
        project = "electra.embeddings_project"
        rules += _pairs(project, "encoder.embeddings.project", when=_projects)
    for theirs, ours in names.items():
        rules += _pairs(f"{layer}.{theirs}", f"{block}.{ours}")
    return rules


def _head_rules(dense: str, norm: str, decoder: str, bias: str | None) -> list[Rule]:
    """The masked language model's head; `bias` where the decoder's is kept under two names."""
    table = "encoder.embeddings.tokens.weight"
    rules = [*_pairs(dense, "transform"), *_pairs(norm, "transform_norm")]
    rules.append(Rule(f"{decoder}.weight", "decoder.weight", tied_to=table))
    if bias is None:
        return [*rules, Rule(f"{decoder}.bias", "decoder.bias")]
    second = Rule(f"{decoder}.bias", "decoder.bias", tied_to="decoder.bias")
    return [*rules, Rule(bias, "decoder.bias"), second]


def _family(kind: str, architecture: str, head: list[Rule], build: Any) -> Family:
    return Family(
        name=kind,
        architecture=architecture,
        config_type=BertConfig,
        config_from_hf=partial(_config_from_hf, kind=kind),
        config_to_hf=partial(_config_to_hf, kind=kind),
        rules=(*_trunk_rules(f"{kind}."), *head),
        build=build,
        prefix=f"{kind}.",
        ignore=(rf"{kind}\.embeddings\.position_ids",),
        aliases=(
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
    )


_BERT_HEAD = _head_rules(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    "cls.predictions.bias",
)
BERT_FAMILY = _family("bert", "BertForMaskedLM", _BERT_HEAD, MaskedLanguageModel)
BERT_PRETRAINING_FAMILY = _family(
    "bert",
    "BertForPreTraining",
    [
        *_BERT_HEAD,
        *_pairs("bert.pooler.dense", "encoder.pooler"),
        *_pairs("cls.seq_relationship", "next_sentence"),
    ],
    BertPretrainingModel,
)
ROBERTA_FAMILY = _family(
    "roberta",
    "RobertaForMaskedLM",
    _head_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
    MaskedLanguageModel,
)
ALBERT_FAMILY = _family(
    "albert",
    "AlbertForMaskedLM",
    _head_rules(
        "predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"
    ),
    MaskedLanguageModel,
)
ELECTRA_FAMILY = _family(
    "electra",
    "ElectraForPreTraining",
    [
        *_pairs("discriminator_predictions.dense", "transform"),
        *_pairs("discriminator_predictions.dense_prediction", "verdict"),
    ],
    ReplacedTokenDetector,
)
ELECTRA_GENERATOR_FAMILY = _family(
    "electra",
    "ElectraForMaskedLM",
    _head_rules(
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
        None,
    ),
    MaskedLanguageModel,
)
BERT_FAMILIES = (
    BERT_FAMILY,
    BERT_PRETRAINING_FAMILY,
    ROBERTA_FAMILY,
    ALBERT_FAMILY,
    ELECTRA_FAMILY,
    ELECTRA_GENERATOR_FAMILY,
)
