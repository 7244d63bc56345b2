"""The modern decoder: the arrangement that Llama, Mistral, Qwen and most others have settled on.

The same residual stream as `gpt`, with five parts exchanged, none of which changes the shape of
the computation: positions are rotations of queries and keys instead of learned vectors (RoPE, Su
et al. 2021), norms have no mean and no bias (RMSNorm, Zhang and Sennrich 2019), feed-forwards are
gated (SwiGLU, Shazeer 2020), several query heads share a key/value head (GQA, Ainslie et al.
2023), and queries and keys are normalised before they meet (QK-norm, Henry et al. 2020). The
first four are Llama's (Touvron et al. 2023); with the fifth it is Qwen3 (Yang et al. 2025).

Everything is built from topics 03 and 04. `QWEN3_FAMILY` and `LLAMA_FAMILY` let
`hf_weights.load_pretrained` and `save_pretrained` exchange these models with `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention import MultiHeadAttention
from kv_cache import KVCache
from llama_config import LlamaConfig, llama_preset
from matmul_attention import fast_attention
from rope_encoding import RoPE, RoPEScaling
from sublayers import FeedForward, GatedFeedForward, RMSNorm
from transformer import TransformerBlock
from weight_rules import Family, Rule, activation_from_hf, activation_to_hf

__all__ = [
    "LLAMA_FAMILY",
    "QWEN3_FAMILY",
    "Llama",
    "LlamaConfig",
    "llama_family",
    "llama_preset",
]


class Llama(nn.Module):
    """A decoder-only language model in today's arrangement; ids in, logits out.

    Args:
        config: its shape.
        generator: random numbers for the initial weights; None = PyTorch's global generator.
    """

    def __init__(self, config: LlamaConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.rope = RoPE(
            config.head_width,
            config.max_seq_len,
            base=config.rope_base,
            scaling=config.rope_scaling,
        )
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembed.weight = self.token_embedding.weight
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights, as the config's `init_std` and its neighbours say."""
        config = self.config
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif config.zero_init_outputs and name.endswith(("out_proj.weight", "down.weight")):
                parameter.zero_()
            elif name == "token_embedding.weight":
                std = config.embedding_std or config.init_std or 0.02
                parameter.normal_(std=std, generator=generator)
            else:
                std = config.init_std or 1.0 / math.sqrt(parameter.shape[1])
                parameter.normal_(std=std, generator=generator)

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        keep: Tensor | None = None,
        positions: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the logits of the token after each position.

        Args:
            ids: (B, T) int64, the tokens that follow what the cache holds (or all of them).
                Rotations have no last position, so more than `max_seq_len` is allowed; whether
                the model makes sense of them is the scaling rule's matter.
            cache: keys and values of the tokens before, from `new_cache`; this call adds its own.
            keep: bool, broadcastable to (B, H, T, S), True = may attend; on top of causality and
                of what a ragged cache hides.
            positions: int64 (T,) or (B, T); None = they go on from the cache's, or from 0.
            last_only: compute the logits after the last position only.

        Returns:
            (B, T, V), or (B, 1, V) with `last_only`.

        Raises:
            ValueError: ids that are not (B, T) or not in [0, V), or a cache without room.
        """
        hidden = self.hidden_states(ids, cache=cache, keep=keep, positions=positions)  # (B, T, D)
        logits = self.unembed(hidden[:, -1:] if last_only else hidden)  # (B, T, V)
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def hidden_states(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        keep: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return what the output layer reads, (B, T, D). Arguments and errors as in `forward`."""
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; it must be (batch, length >= 1)")
        T = ids.shape[1]
        if cache is not None and cache.num_layers != len(self.blocks):
            raise ValueError(f"a cache of {cache.num_layers} layers for {len(self.blocks)} blocks")
        ragged = None if cache is None else cache.keep(T)  # (B, 1, T, S)
        if ragged is not None:
            keep = ragged if keep is None else keep & ragged
        if positions is None:
            positions = torch.arange(T, device=ids.device) if cache is None else cache.positions(T)
        rotary = self.rope.at(positions)  # made once, shared by every layer
        x = self._embed(ids)  # (B, T, D)
        for index, block in enumerate(self.blocks):
            x = block(
                x,
                keep=keep,
                causal=ragged is None,
                rotary=rotary,
                cache=None if cache is None else cache.layer(index),
            )
        if cache is not None:
            cache.advance(T)
        return self.final_norm(x)  # (B, T, D)

    def new_cache(self, batch_size: int, max_seq_len: int | None = None) -> KVCache:
        """Return an empty cache for `batch_size` texts of up to `max_seq_len` (the config's)."""
        config = self.config
        weight = self.token_embedding.weight
        return KVCache(
            config.num_layers,
            batch_size,
            config.kv_heads,
            config.max_seq_len if max_seq_len is None else max_seq_len,
            config.head_width,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        try:
            return self.token_embedding(ids)
        except IndexError as error:
            raise ValueError(
                f"ids from {int(ids.min())} to {int(ids.max())} must lie in "
                f"[0, vocab_size={self.config.vocab_size})"
            ) from error


def _block(config: LlamaConfig) -> TransformerBlock:
    """One pre-norm layer of the arrangement, from the parts of topics 03 and 04."""

    def norm(width: int = config.d_model) -> RMSNorm:
        return RMSNorm(width, eps=config.norm_eps)

    attention = MultiHeadAttention(
        config.d_model,
        config.num_heads,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_width,
        attend=fast_attention,
        qk_norm=norm if config.qk_norm else False,
        bias=False,
        dropout=config.dropout,
    )
    feed_forward = GatedFeedForward if config.gated else FeedForward
    return TransformerBlock(
        attention=attention,
        feed_forward=feed_forward(
            config.d_model, config.d_ff, activation=config.activation, bias=False
        ),
        norm=norm,
        dropout=config.dropout,
    )


# --- Hugging Face --------------------------------------------------------------------------------


def _rope_from_hf(raw: Mapping[str, Any]) -> tuple[float, RoPEScaling | None]:
    """θ and the scaling rule, in the spelling of transformers 5 or of the versions before."""
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    for name, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", 1.0)):
        parameters.setdefault(name, raw.get(name, default))
    scaling = RoPEScaling.from_hf(
        parameters, max_position_embeddings=raw["max_position_embeddings"]
    )
    return float(parameters["rope_theta"]), scaling


def _config_from_hf(raw: Mapping[str, Any], *, qk_norm: bool) -> LlamaConfig:
    for option in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if raw.get(option):
            raise ValueError(f"{option}={raw[option]} has no equivalent here")
    if any(kind != "full_attention" for kind in raw.get("layer_types") or ()):
        raise ValueError("layer_types other than full_attention have no equivalent here")
    base, scaling = _rope_from_hf(raw)
    return LlamaConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        num_heads=raw["num_attention_heads"],
        # Llama's may be absent; Qwen3's default is a number that fits only its own sizes.
        num_kv_heads=raw["num_key_value_heads"] if qk_norm else raw.get("num_key_value_heads"),
        head_dim=raw["head_dim"] if qk_norm else raw.get("head_dim"),
        num_layers=raw["num_hidden_layers"],
        d_ff=raw["intermediate_size"],
        max_seq_len=raw["max_position_embeddings"],
        rope_base=base,
        rope_scaling=scaling,
        qk_norm=qk_norm,
        tie_embeddings=raw.get("tie_word_embeddings", False),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        activation=activation_from_hf(raw.get("hidden_act", "silu")),
        dropout=raw.get("attention_dropout", 0.0),
        init_std=raw.get("initializer_range", 0.02),
    )


def _config_to_hf(config: LlamaConfig, *, name: str, qk_norm: bool) -> dict[str, Any]:
    for option, needed in (("qk_norm", qk_norm), ("gated", True), ("logit_soft_cap", None)):
        if (value := getattr(config, option)) != needed:
            raise ValueError(f"{option}={value} cannot be expressed in the {name} layout")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_scaling is not None:
        rope = config.rope_scaling.to_hf(base=config.rope_base, dim=config.head_width)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": activation_to_hf(config.activation),
        "attention_dropout": config.dropout,
        "attention_bias": False,
        "initializer_range": config.init_std or 0.02,
    }


def _rules(*, qk_norm: bool) -> tuple[Rule, ...]:
    theirs, ours = "model.layers.{i}.", "blocks.{i}."
    rules = [
        Rule("model.embed_tokens.weight", "token_embedding.weight"),
        Rule(f"{theirs}input_layernorm.weight", f"{ours}attention_norm.weight"),
        Rule(f"{theirs}self_attn.q_proj.weight", f"{ours}attention.q_proj.weight"),
        Rule(f"{theirs}self_attn.k_proj.weight", f"{ours}attention.k_proj.weight"),
        Rule(f"{theirs}self_attn.v_proj.weight", f"{ours}attention.v_proj.weight"),
        Rule(f"{theirs}self_attn.o_proj.weight", f"{ours}attention.out_proj.weight"),
        Rule(f"{theirs}post_attention_layernorm.weight", f"{ours}feed_forward_norm.weight"),
        Rule(f"{theirs}mlp.gate_proj.weight", f"{ours}feed_forward.gate.weight"),
        Rule(f"{theirs}mlp.up_proj.weight", f"{ours}feed_forward.up.weight"),
        Rule(f"{theirs}mlp.down_proj.weight", f"{ours}feed_forward.down.weight"),
        Rule("model.norm.weight", "final_norm.weight"),
        Rule("lm_head.weight", "unembed.weight", tied_to="token_embedding.weight"),
    ]
    if qk_norm:
        rules += [
            Rule(f"{theirs}self_attn.q_norm.weight", f"{ours}attention.q_norm.weight"),
            Rule(f"{theirs}self_attn.k_norm.weight", f"{ours}attention.k_norm.weight"),
        ]
    return tuple(rules)


def _family(name: str, architecture: str, *, qk_norm: bool) -> Family:
    return Family(
        name=name,
        architecture=architecture,
        config_type=LlamaConfig,
        config_from_hf=partial(_config_from_hf, qk_norm=qk_norm),
        config_to_hf=partial(_config_to_hf, name=name, qk_norm=qk_norm),
        rules=_rules(qk_norm=qk_norm),
        build=Llama,
        prefix="model.",
        ignore=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    )


QWEN3_FAMILY = _family("qwen3", "Qwen3ForCausalLM", qk_norm=True)
LLAMA_FAMILY = _family("llama", "LlamaForCausalLM", qk_norm=False)


def llama_family(config: LlamaConfig) -> Family:
    """The layout in which to save a model with this config."""
    return QWEN3_FAMILY if config.qk_norm else LLAMA_FAMILY
