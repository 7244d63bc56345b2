"""T5 and BART from and to directories in Hugging Face's layout: `T5_FAMILY` and `BART_FAMILY`.

Tables of names, strict both ways (see `weight_rules`), for `hf_weights.load_pretrained` and
`save_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bart import Bart, BartConfig
from t5 import T5, T5Config
from weight_rules import Family, Rule, activation_from_hf, activation_to_hf


def _t5_from_hf(raw: Mapping[str, Any]) -> T5Config:
    # Since version 5, `transformers` ties every T5 that has one matrix in its file, and tells 1.1
    # by an entry of its own; before, by `tie_word_embeddings`.
    tied = bool(raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings", True)))
    gated, _, activation = str(raw.get("feed_forward_proj", "relu")).rpartition("-")
    if gated not in ("", "gated"):
        raise ValueError(f"feed_forward_proj={raw['feed_forward_proj']} has no equivalent here")
    if gated and activation == "gelu":
        activation = "gelu_new"  # what "gated-gelu" has always meant there
    start_id = raw.get("decoder_start_token_id")
    pad_id = raw.get("pad_token_id", 0)
    return T5Config(
        vocab_size=raw["vocab_size"],
        d_model=raw["d_model"],
        num_heads=raw["num_heads"],
        num_layers=raw["num_layers"],
        num_decoder_layers=raw.get("num_decoder_layers"),
        d_ff=raw["d_ff"],
        head_dim=raw["d_kv"],
        num_buckets=raw.get("relative_attention_num_buckets", 32),
        max_distance=raw.get("relative_attention_max_distance", 128),
        dropout=raw.get("dropout_rate", 0.1),
        norm_eps=raw.get("layer_norm_epsilon", 1e-6),
        activation=activation_from_hf(activation),
        gated=bool(gated),
        tie_embeddings=tied,
        pad_id=pad_id,
        eos_id=raw.get("eos_token_id", 1),
        start_id=pad_id if start_id is None else start_id,
    )


def _t5_to_hf(config: T5Config) -> dict[str, Any]:
    activation = activation_to_hf(config.activation)
    if config.gated:
        if config.activation == "gelu":
            raise ValueError("a gated activation='gelu' cannot be expressed in the t5 layout")
        activation = "gated-" + activation.replace("gelu_new", "gelu")
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "d_ff": config.d_ff,
        "d_kv": config.head_dim,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": activation,
        "scale_decoder_outputs": config.tie_embeddings,
        "is_encoder_decoder": True,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.start_id,
    }


_T5_SELF = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def _gated(config: T5Config) -> bool:
    return config.gated


def _ungated(config: T5Config) -> bool:
    return not config.gated


def _t5_rules() -> tuple[Rule, ...]:
    """Both stacks' tables; the feed-forward is sublayer 1 of an encoder, 2 of a decoder."""
    rules = [Rule("shared.weight", "embedding.weight")]
    for stack, index, last in (("encoder", "{i}", 1), ("decoder", "{j}", 2)):
        block, ours = f"{stack}.block.{index}.layer", f"{stack}.blocks.{index}"
        for theirs, name in _T5_SELF.items():
            rules.append(
                Rule(f"{block}.0.SelfAttention.{theirs}.weight", f"{ours}.attention.{name}.weight")
            )
            if stack == "decoder":
                cross = f"{block}.1.EncDecAttention.{theirs}.weight"
                rules.append(Rule(cross, f"{ours}.cross_attention.{name}.weight"))
        if stack == "decoder":
            rules.append(Rule(f"{block}.1.layer_norm.weight", f"{ours}.cross_norm.weight"))
        dense = f"{block}.{last}.DenseReluDense"
        rules += [
            Rule(f"{block}.0.layer_norm.weight", f"{ours}.attention_norm.weight"),
            Rule(f"{block}.{last}.layer_norm.weight", f"{ours}.feed_forward_norm.weight"),
            Rule(f"{dense}.wi.weight", f"{ours}.feed_forward.up.weight", when=_ungated),
            Rule(f"{dense}.wi_0.weight", f"{ours}.feed_forward.gate.weight", when=_gated),
            Rule(f"{dense}.wi_1.weight", f"{ours}.feed_forward.up.weight", when=_gated),
            Rule(f"{dense}.wo.weight", f"{ours}.feed_forward.down.weight"),
            Rule(
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{stack}_bias.weight",
            ),
            Rule(f"{stack}.final_layer_norm.weight", f"{stack}.final_norm.weight"),
        ]
    rules.append(Rule("lm_head.weight", "unembed.weight", tied_to="embedding.weight"))
    return tuple(rules)


T5_FAMILY = Family(
    name="t5",
    architecture="T5ForConditionalGeneration",
    config_type=T5Config,
    config_from_hf=_t5_from_hf,
    config_to_hf=_t5_to_hf,
    rules=_t5_rules(),
    build=T5,
    # Copies of `shared`, and a table that 1.0's files hold and no model reads.
    ignore=(
        r"(encoder|decoder)\.embed_tokens\.weight",
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
)


def _bart_from_hf(raw: Mapping[str, Any]) -> BartConfig:
    for ours, theirs in (("ffn_dim", "d_ff"), ("attention_heads", "num_heads")):
        if raw[f"encoder_{ours}"] != raw[f"decoder_{ours}"]:
            raise ValueError(
                f"encoder_{ours} and decoder_{ours} must be equal: we have one {theirs}"
            )
    for option in ("encoder_layerdrop", "decoder_layerdrop", "scale_embedding"):
        if raw.get(option):
            raise ValueError(f"{option}={raw[option]} has no equivalent here")
    if not raw.get("tie_word_embeddings", True):
        raise ValueError("tie_word_embeddings=False has no equivalent here")
    return BartConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["d_model"],
        num_heads=raw["encoder_attention_heads"],
        num_layers=raw["encoder_layers"],
        num_decoder_layers=raw["decoder_layers"],
        d_ff=raw["encoder_ffn_dim"],
        max_seq_len=raw["max_position_embeddings"],
        dropout=raw.get("dropout", 0.1),
        attention_dropout=raw.get("attention_dropout", 0.0),
        activation_dropout=raw.get("activation_dropout", 0.0),
        activation=activation_from_hf(raw.get("activation_function", "gelu")),
        init_std=raw.get("init_std", 0.02),
        pad_id=raw.get("pad_token_id", 1),
        eos_id=raw.get("eos_token_id", 2),
        start_id=raw.get("decoder_start_token_id", 2),
    )


def _bart_to_hf(config: BartConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_layers": config.num_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_ffn_dim": config.d_ff,
        "decoder_ffn_dim": config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "activation_function": activation_to_hf(config.activation),
        "init_std": config.init_std,
        "is_encoder_decoder": True,
        "bos_token_id": None,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.start_id,
        "forced_eos_token_id": None,
    }


_BART_LAYER = {
    "self_attn": "attention",
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn": "cross_attention",
    "encoder_attn_layer_norm": "cross_norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.down",
    "final_layer_norm": "feed_forward_norm",
}


def _bart_rules() -> tuple[Rule, ...]:
    rules = [
        Rule("model.shared.weight", "embedding.weight"),
        Rule("final_logits_bias", "logits_bias"),
        Rule("lm_head.weight", "unembed.weight", tied_to="embedding.weight"),
    ]
    for stack, index in (("encoder", "{i}"), ("decoder", "{j}")):
        their_stack = f"model.{stack}"
        positions = f"{their_stack}.embed_positions.weight"
        rules.append(Rule(positions, f"{stack}_positions.weight"))
        for end in ("weight", "bias"):
            norm = f"{their_stack}.layernorm_embedding.{end}"
            rules.append(Rule(norm, f"{stack}_norm.{end}"))
            for theirs, ours in _BART_LAYER.items():
                if theirs.startswith("encoder_attn") and stack == "encoder":
                    continue
                parts = [""]
                if theirs.endswith("_attn"):  # an attention is four linear layers
                    parts = [".q_proj", ".k_proj", ".v_proj", ".out_proj"]
                rules += [
                    Rule(
                        f"{their_stack}.layers.{index}.{theirs}{part}.{end}",
                        f"{stack}.blocks.{index}.{ours}{part}.{end}",
                    )
                    for part in parts
                ]
    return tuple(rules)


BART_FAMILY = Family(
    name="bart",
    architecture="BartForConditionalGeneration",
    config_type=BartConfig,
    config_from_hf=_bart_from_hf,
    config_to_hf=_bart_to_hf,
    rules=_bart_rules(),
    build=Bart,
    prefix="model.",
    ignore=(r"model\.(encoder|decoder)\.embed_tokens\.weight",),
)
