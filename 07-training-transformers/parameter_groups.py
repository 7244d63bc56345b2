"""A model's parameters, sorted by what their optimiser must know about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class ParameterGroups:
    """A model's parameters sorted for the optimisers: lists of group dicts, each with a `name`."""

    muon: list[dict[str, Any]] = field(default_factory=list)
    adamw: list[dict[str, Any]] = field(default_factory=list)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    muon: bool = False,
    muon_lr: float = 0.02,
    muon_weight_decay: float | None = None,
    embedding_lr: float | None = None,
    head_lr: float | None = None,
    head_names: Sequence[str] = ("unembed", "lm_head"),
) -> ParameterGroups:
    """Sort a model's trainable parameters by what their optimiser must know about them.

    - `matrices`: hidden weights of 2 or 3 dimensions. Decayed. Muon's, if `muon`.
    - `embeddings`: tables of nn.Embedding (rows are looked up, not multiplied). Decayed.
    - `head`: matrices of a module named in `head_names`, unless tied to an embedding. Decayed.
    - `vectors`: gains, biases, scalars. Never decayed: pulling a gain towards 0 has no meaning.

    A tied tensor appears once, with the embeddings. Frozen parameters are left out.

    Args:
        lr: AdamW's learning rate; `embedding_lr` and `head_lr` replace it for their groups.
        muon_weight_decay: Muon's decay; None for `weight_decay`.

    Raises:
        ValueError: the model has nothing to train.
    """
    sorted_parameters: dict[str, list[nn.Parameter]] = {
        "matrices": [],
        "embeddings": [],
        "head": [],
        "vectors": [],
    }
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    for name, p in model.named_parameters():  # names a tied tensor once
        if not p.requires_grad:
            continue
        if id(p) in embeddings:
            kind = "embeddings"
        elif p.ndim not in (2, 3):
            kind = "vectors"
        elif any(part in head_names for part in name.split(".")):
            kind = "head"
        else:
            kind = "matrices"
        sorted_parameters[kind].append(p)
    if not any(sorted_parameters.values()):
        raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")

    rates = {"embeddings": embedding_lr, "head": head_lr}
    groups = ParameterGroups()
    for kind, parameters in sorted_parameters.items():
        if not parameters:
            continue
        if kind == "matrices" and muon:
            decay = weight_decay if muon_weight_decay is None else muon_weight_decay
            groups.muon.append(
                {"name": kind, "params": parameters, "lr": muon_lr, "weight_decay": decay}
            )
            continue
        rate = rates.get(kind)
        groups.adamw.append(
            {
                "name": kind,
                "params": parameters,
                "lr": lr if rate is None else rate,
                "weight_decay": 0.0 if kind == "vectors" else weight_decay,
            }
        )
    return groups
