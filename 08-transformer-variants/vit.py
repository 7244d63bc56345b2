"""ViT: a picture is a sentence of patches.

Cut the picture into squares, turn each into a vector with one matrix, add a learned vector for its
place, and hand the sequence to an encoder that knows nothing of pictures (Dosovitskiy et al. 2021).
The blocks are topic 04's, pre-norm with GELU. A class token in front, or the mean over all
patches, is what the classifier reads.

`attention_rollout` follows attention through the layers, back to the picture; `resize_positions`
and `resize_patches` fit a trained model to other picture and patch sizes.

README, "Vision". Letters: B batch, C channels, P patch side, g patches along a side, N tokens
(g², and one more with a class token), D model width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import AttentionFn, MultiHeadAttention
from attention import attention_weights as exact_weights
from matmul_attention import fast_attention
from sublayers import Activation, FeedForward, LayerNorm
from transformer import TransformerBlock
from weight_rules import Family, Rule, activation_from_hf, activation_to_hf

PatchPool = Literal["cls", "mean"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of a `ViT`.

    Args:
        image_size: side of the square picture, in pixels. patch_size: P, which divides it.
        num_classes: how many labels.
        d_model, num_heads, num_layers: D, H and L; H divides D.
        channels: C.
        d_ff: feed-forward width F; None = 4·D (and the field then reads 4·D).
        pool: what the classifier reads: a class token ("cls") or the patches' mean ("mean").
        dropout: on the embeddings, the attention weights and the sublayers' outputs.
        norm_eps: added to the variance in every norm.
        activation: of the feed-forward layers.
        init_std: standard deviation of new matrices.

    Raises:
        ValueError: a size that is not positive or does not divide, an unknown pool, or a dropout
            outside [0, 1).
    """

    image_size: int
    patch_size: int
    num_classes: int
    d_model: int
    num_heads: int
    num_layers: int
    channels: int = 3
    d_ff: int | None = None
    pool: PatchPool = "cls"
    dropout: float = 0.0
    norm_eps: float = 1e-12
    activation: Activation = "gelu"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        sizes = ("image_size", "patch_size", "num_classes", "d_model", "num_heads", "num_layers")
        for name in (*sizes, "channels", "d_ff"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; it must be a whole number of at least 1")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.pool not in get_args(PatchPool):
            raise ValueError(f"pool is {self.pool!r}; it must be one of {get_args(PatchPool)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def tie_embeddings(self) -> bool:
        """False: what goes in are pixels, what comes out are labels."""
        return False

    @property
    def grid(self) -> int:
        """Patches along a side, g."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """The length N of the sequence: g², and the class token where there is one."""
        return self.grid**2 + (self.pool == "cls")

    @property
    def ff_width(self) -> int:
        """The feed-forward width F."""
        assert self.d_ff is not None, "__post_init__ fills it in"
        return self.d_ff

    @property
    def num_parameters(self) -> int:
        """How many numbers the model learns."""
        D, F_ = self.d_model, self.ff_width
        patches = self.channels * self.patch_size**2 * D + D
        tokens = self.num_tokens * D + D * (self.pool == "cls")
        layer = 4 * D * D + 2 * D * F_ + (4 * D + F_ + D) + 2 * (2 * D)
        return patches + tokens + self.num_layers * layer + 2 * D + (D + 1) * self.num_classes

    def flops_per_image(self) -> int:
        """FLOPs of a training step's forward and backward for one picture.

        Counted as in `gpt.GPTConfig.flops_per_token`, for N tokens; patches and the classifier
        are matrices like any other. Halving P makes N four times as large, and attention's part
        sixteen times.
        """
        D, N = self.d_model, self.num_tokens
        matrices = self.num_layers * (4 * D * D + 2 * D * self.ff_width)
        ends = self.grid**2 * self.channels * self.patch_size**2 * D + D * self.num_classes
        return 6 * (N * matrices + ends) + 12 * self.num_layers * D * N * N


# Name: patch_size, d_model, num_heads, num_layers (Dosovitskiy et al. 2021, table 1; tiny and
# small are DeiT's, Touvron et al. 2021, table 1).
_VITS = {
    "tiny/16": (16, 192, 3, 12),
    "small/16": (16, 384, 6, 12),
    "base/16": (16, 768, 12, 12),
    "base/32": (32, 768, 12, 12),
    "large/16": (16, 1024, 16, 24),
}


def vit_preset(name: str, **overrides: Any) -> ViTConfig:
    """Return a published shape, for pictures of 224 pixels and 1,000 classes.

    Args:
        name: "tiny/16", "small/16", "base/16" (86,567,656 parameters), "base/32" or "large/16".
        overrides: `ViTConfig` fields to change.

    Raises:
        ValueError: no preset of that name. TypeError: no such field.
    """
    if name not in _VITS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(_VITS)}")
    fields = ("patch_size", "d_model", "num_heads", "num_layers")
    shape = {"image_size": 224, "num_classes": 1000, **dict(zip(fields, _VITS[name], strict=True))}
    return ViTConfig(**{**shape, **overrides})


class ViT(nn.Module):
    """A picture classifier made of an encoder.

    Args:
        config: its shape.
        attend: the `AttentionFn` of every layer.
        generator: random numbers for the initial weights; None = PyTorch's global generator.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        attend: AttentionFn = fast_attention,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        D, P = config.d_model, config.patch_size
        # A convolution whose stride is its width is one matrix for each patch: (D, C·P·P).
        self.patches = nn.Conv2d(config.channels, D, P, stride=P)
        self.class_token = nn.Parameter(torch.empty(1, 1, D)) if config.pool == "cls" else None
        self.positions = nn.Parameter(torch.empty(1, config.num_tokens, D))
        self.embedding_dropout = nn.Dropout(config.dropout)
        norm = partial(LayerNorm, D, eps=config.norm_eps)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                attention=MultiHeadAttention(
                    D, config.num_heads, attend=attend, dropout=config.dropout
                ),
                feed_forward=FeedForward(D, config.ff_width, activation=config.activation),
                norm=norm,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = norm()
        self.to_classes = nn.Linear(D, config.num_classes)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw everything from N(0, init_std²); biases become 0, norms' weights 1."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=self.config.init_std, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, C, image_size, image_size) -> logits (B, num_classes).

        Raises:
            ValueError: pictures of another shape.
        """
        hidden = self.hidden_states(images)  # (B, N, D)
        pooled = hidden[:, 0] if self.config.pool == "cls" else hidden.mean(dim=1)  # (B, D)
        return self.to_classes(pooled)

    def hidden_states(self, images: Tensor) -> Tensor:
        """Return the tokens after the last norm, (B, N, D)."""
        x = self._embed(images)  # (B, N, D)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)

    @torch.no_grad()
    def attention_weights(self, images: Tensor) -> list[Tensor]:
        """Return each layer's weights (B, H, N, N), computed by the reference softmax."""
        x = self._embed(images)  # (B, N, D)
        collected = []
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            attention = block.attention
            h = block.attention_norm(x)
            q, k = (
                projection(h).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj)
            )  # (B, H, N, K)
            collected.append(exact_weights(q, k))
            x = block(x)
        return collected

    def _embed(self, images: Tensor) -> Tensor:
        """(B, C, image_size, image_size) -> (B, N, D)."""
        config = self.config
        wanted = (config.channels, config.image_size, config.image_size)
        if images.dim() != 4 or images.shape[1:] != wanted:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; it must be (batch, "
                f"channels={wanted[0]}, {wanted[1]}, {wanted[2]})"
            )
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, g·g, D)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)  # (B, N, D)
        return self.embedding_dropout(x + self.positions)


def attention_rollout(weights: Sequence[Tensor], *, pool: PatchPool = "cls") -> Tensor:
    """How much each patch went into what the classifier reads, following all layers.

    Abnar and Zuidema 2020, section 3: a layer passes on half of its attention (the mean over
    heads) and half of the residual stream, A = (W + I) / 2, and layers multiply. Every row of a
    product of such matrices sums to 1. It follows the paths and not what the values carry along
    them, so read it as a picture of where information could have come from.

    Args:
        weights: (B, H, N, N) for each layer, first to last, as from `ViT.attention_weights`.
        pool: "cls" follows the first token, and leaves it out of the answer; "mean" all tokens.

    Returns:
        (B, number of patches), each row summing to 1.

    Raises:
        ValueError: no layers, or an unknown pool.
    """
    if not weights:
        raise ValueError("attention_rollout needs the weights of at least one layer")
    if pool not in get_args(PatchPool):
        raise ValueError(f"pool is {pool!r}; it must be one of {get_args(PatchPool)}")
    identity = torch.eye(weights[0].shape[-1], device=weights[0].device)  # (N, N)
    rolled = identity
    for layer in weights:
        mixed = (layer.mean(dim=1) + identity) / 2  # (B, N, N)
        rolled = mixed @ rolled
    if pool == "mean":
        return rolled.mean(dim=1)
    patches = rolled[:, 0, 1:]  # (B, N - 1)
    return patches / patches.sum(dim=-1, keepdim=True)


def resize_positions(table: Tensor, grid: int, *, class_token: bool = True) -> Tensor:
    """Stretch a table of positions to another number of patches (Dosovitskiy et al. 2021, 3.2).

    Positions are learned for one grid; between its points they are interpolated (bicubic).

    Args:
        table: (1, N, D), of a square grid. grid: patches along a side, from now on.
        class_token: whether the first row is a class token's, which is kept.

    Returns:
        (1, grid² or grid² + 1, D).

    Raises:
        ValueError: a table of another shape, or a grid below 1.
    """
    first, places = table[:, : int(class_token)], table[:, int(class_token) :]
    old = round(places.shape[1] ** 0.5)
    if table.dim() != 3 or table.shape[0] != 1 or old * old != places.shape[1] or not old:
        raise ValueError(f"table has shape {tuple(table.shape)}; its places must form a square")
    if grid < 1:
        raise ValueError(f"grid is {grid}; it must be at least 1")
    square = places.view(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, old, old)
    stretched = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat((first, stretched.flatten(2).transpose(1, 2)), dim=1)


def resize_patches(weight: Tensor, patch_size: int) -> Tensor:
    """Fit the patch matrix to patches of another size (Beyer et al. 2023, FlexiViT, section 3.4).

    Stretching a patch is linear, x ↦ R x. What we want is a matrix W' with W' R x = W x for every
    patch: W' = W R⁺, with the pseudo-inverse. Stretching the matrix itself like a picture would
    multiply its answers by the ratio of the areas.

    Args:
        weight: (D, C, P, P). patch_size: P from now on.

    Returns:
        (D, C, patch_size, patch_size). Growing is exact; shrinking is the least-squares best.

    Raises:
        ValueError: a weight that is not square, or a size below 1.
    """
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be (D, C, P, P)")
    if patch_size < 1:
        raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
    P = weight.shape[-1]
    basis = torch.eye(P * P, dtype=torch.float64).view(P * P, 1, P, P)
    # Row i is the i-th pixel's patch, stretched: the transpose of R.
    stretched = F.interpolate(basis, size=(patch_size, patch_size), mode="bilinear").flatten(1)
    inverse = torch.linalg.pinv(stretched.t())  # (P², patch_size²)
    flat = weight.detach().double().flatten(2) @ inverse.to(weight.device)  # (D, C, patch_size²)
    return flat.unflatten(-1, (patch_size, patch_size)).to(weight.dtype)


@torch.no_grad()
def resized(model: ViT, *, image_size: int, patch_size: int | None = None) -> ViT:
    """Return a copy of a model for pictures, and perhaps patches, of another size.

    Raises:
        ValueError: sizes that do not divide.
    """
    P = model.config.patch_size if patch_size is None else patch_size
    config = replace(model.config, image_size=image_size, patch_size=P)
    copy = ViT(config).to(model.positions)
    state = model.state_dict()
    state["positions"] = resize_positions(
        model.positions, config.grid, class_token=config.pool == "cls"
    )
    state["patches.weight"] = resize_patches(model.patches.weight, P)
    copy.load_state_dict(state)
    return copy.train(model.training)


# --- Hugging Face --------------------------------------------------------------------------------


def _config_from_hf(raw: Mapping[str, Any]) -> ViTConfig:
    if not raw.get("qkv_bias", True):
        raise ValueError("qkv_bias=False has no equivalent here")
    for name in ("image_size", "patch_size"):
        if not isinstance(raw[name], int):
            raise ValueError(f"{name}={raw[name]}: pictures and patches are square here")
    dropouts = {
        raw.get(name, 0.0) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")
    }
    if len(dropouts) > 1:
        raise ValueError("hidden_dropout_prob and attention_probs_dropout_prob must be equal")
    return ViTConfig(
        image_size=raw["image_size"],
        patch_size=raw["patch_size"],
        channels=raw.get("num_channels", 3),
        num_classes=len(raw["id2label"]) if "id2label" in raw else raw.get("num_labels", 2),
        d_model=raw["hidden_size"],
        num_heads=raw["num_attention_heads"],
        num_layers=raw["num_hidden_layers"],
        d_ff=raw["intermediate_size"],
        dropout=dropouts.pop(),
        norm_eps=raw.get("layer_norm_eps", 1e-12),
        activation=activation_from_hf(raw.get("hidden_act", "gelu")),
        init_std=raw.get("initializer_range", 0.02),
    )


def _config_to_hf(config: ViTConfig) -> dict[str, Any]:
    if config.pool != "cls":
        raise ValueError(f"pool={config.pool!r} cannot be expressed in the vit layout")
    labels = [f"LABEL_{i}" for i in range(config.num_classes)]
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.d_ff,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": activation_to_hf(config.activation),
        "initializer_range": config.init_std,
        "qkv_bias": True,
    }


# In the files; `transformers` 5 has other names for the last six in memory.
_LAYER_NAMES = {
    "layernorm_before": "attention_norm",
    "layernorm_after": "feed_forward_norm",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.out_proj",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
}
_NAMES = {
    "vit.embeddings.patch_embeddings.projection": "patches",
    "vit.layernorm": "final_norm",
    "classifier": "to_classes",
    **{
        f"vit.encoder.layer.{{i}}.{theirs}": f"blocks.{{i}}.{ours}"
        for theirs, ours in _LAYER_NAMES.items()
    },
}
VIT_FAMILY = Family(
    name="vit",
    architecture="ViTForImageClassification",
    config_type=ViTConfig,
    config_from_hf=_config_from_hf,
    config_to_hf=_config_to_hf,
    rules=(
        Rule("vit.embeddings.cls_token", "class_token"),
        Rule("vit.embeddings.position_embeddings", "positions"),
        *(
            Rule(f"{theirs}.{end}", f"{ours}.{end}")
            for theirs, ours in _NAMES.items()
            for end in ("weight", "bias")
        ),
    ),
    build=ViT,
    prefix="vit.",
    aliases=(
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
)
