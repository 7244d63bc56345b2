"""Converters between checkpoint layouts, as tables of names that are read in both directions.

Somebody else's GPT-2 is the same function as ours with other names on its tensors. So a converter
is data, not code: a `Family` lists, as `Rule`s, which of their tensors is which of ours;
`import_state` reads that table forwards and `export_state` backwards. Both are strict: a tensor
that is missing, left over or of the wrong shape is an error that names it, because a weight that
is silently not loaded makes a model that works, badly.

`hf_weights` does the files. README section "Other people's weights".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sublayers import Activation

# Hugging Face's names of our activations. Where two mean the same, the first is what we write.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Rule:
    """One line of a converter: their tensor is this tensor of ours (or these, stacked).

    `{i}` in a name stands for the layer index and makes the rule one rule for each layer; `{j}`
    does so for the layers of a decoder that has its own number of them.

    Args:
        theirs: the name in the checkpoint, for example "transformer.h.{i}.attn.c_attn.weight".
        ours: the name in our `state_dict()`. Several names mean that the checkpoint keeps them
            fused in one tensor, one after the other along our dimension 0 (the output features).
        transpose: their matrix is (in, out), as in GPT-2's `Conv1D`; ours are (out, in).
        tied_to: where `config.tie_embeddings` is set, `ours` is the same parameter as this one.
            It is then not written, and on reading it may be absent or must be equal.
        when: a question to the config; the tensor exists only where the answer is yes. None =
            always.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transpose: bool = False
    tied_to: str | None = None
    when: Callable[[Any], bool] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def at(self, layer: int) -> Rule:
        """The same rule with `{i}` or `{j}` filled in."""
        index = re.compile(r"\{[ij]\}")
        ours = tuple(index.sub(str(layer), name) for name in self.targets)
        theirs = index.sub(str(layer), self.theirs)
        return replace(self, theirs=theirs, ours=ours)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything there is to know about one architecture's checkpoints.

    Args:
        name: the `model_type` in config.json.
        architecture: the class name that `transformers` should build ("GPT2LMHeadModel").
        config_type: our config dataclass; it has `num_layers` and `tie_embeddings` (and
            `num_decoder_layers` where the rules have a `{j}`).
        config_from_hf: config.json as a dict -> our config. Raises KeyError for an entry that
            must be there and ValueError for an option that we do not have.
        config_to_hf: our config -> the architecture's entries of config.json. Raises ValueError
            that names the option when the layout cannot express it.
        rules: the table of names.
        build: our config -> a model with such weights.
        prefix: what a checkpoint of the bare model, without its output layer, leaves out of
            its names ("transformer."). Both spellings are read, the full one is written.
        ignore: regular expressions of names that hold no weights (buffers in old files).
        aliases: older spellings, as (regular expression, replacement): BERT's first checkpoints
            call a norm's weight and bias gamma and beta.
    """

    name: str
    architecture: str
    config_type: type
    config_from_hf: Callable[[Mapping[str, Any]], Any]
    config_to_hf: Callable[[Any], dict[str, Any]]
    rules: tuple[Rule, ...] = field(repr=False)
    build: Callable[[Any], nn.Module]
    prefix: str = ""
    ignore: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    def rules_for(self, config: Any) -> Iterator[Rule]:
        """The table with one line for each tensor of a model with this config."""
        for rule in self.rules:
            if rule.when is not None and not rule.when(config):
                continue
            layers = config.num_layers if "{i}" in rule.theirs else 1
            layers = config.num_decoder_layers if "{j}" in rule.theirs else layers
            yield from (rule.at(layer) for layer in range(layers))


def import_state(
    theirs: Mapping[str, Tensor],
    family: Family,
    config: Any,
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, Tensor]:
    """Renames, transposes and splits a checkpoint's tensors into ours.

    Args:
        theirs: the checkpoint's tensors by their names. dtypes are kept.
        shapes: our shape for each of our names: `{n: p.shape for n, p in model.state_dict()…}`.

    Returns:
        Our tensors by our names, each parameter once (a tied one under its first name), as views
        of `theirs` where possible.

    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape, or should be tied and is not.
    """
    left = _with_full_names(theirs, family, config)
    state: dict[str, Tensor] = {}
    missing = []
    for rule in family.rules_for(config):
        tied_to = rule.tied_to if config.tie_embeddings else None
        if rule.theirs not in left:
            if tied_to is None:
                missing.append(rule.theirs)
            continue
        tensor = left.pop(rule.theirs)
        parts = _split(tensor, rule, [tuple(shapes[name]) for name in rule.targets])
        if tied_to is None:
            state.update(zip(rule.targets, parts, strict=True))
        elif tied_to in state and not torch.equal(parts[0], state[tied_to]):
            raise ValueError(
                f"{rule.theirs} differs from the embedding although config.json ties them "
                "(tie_word_embeddings); set that to false if they were trained apart"
            )
    if missing or left:
        raise ValueError(_name_the_difference(missing, left, family))
    return state


def export_state(
    ours: Mapping[str, Tensor], family: Family, config: Any, *, strict: bool = True
) -> dict[str, Tensor]:
    """The inverse of `import_state`. Works on anything with the parameters' names and shapes,
    gradients too: each rule is linear.

    Args:
        ours: tensors by our names. Tied parameters are taken under their first name.
        strict: False permits parameters to be absent (those without a gradient); their
            checkpoint tensors are then left out.

    Raises:
        ValueError: one of ours is missing or appears in no rule.
    """
    left = dict(ours)
    theirs: dict[str, Tensor] = {}
    missing = []
    for rule in family.rules_for(config):
        if rule.tied_to is not None and config.tie_embeddings:
            for name in rule.targets:
                left.pop(name, None)
            continue
        absent = [name for name in rule.targets if name not in left]
        if absent:
            missing += absent
            continue
        parts = [left.pop(name) for name in rule.targets]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        theirs[rule.theirs] = (tensor.t() if rule.transpose else tensor).contiguous()
    if left or (missing and strict):
        raise ValueError(_name_the_difference(missing, left, family))
    return theirs


def activation_from_hf(name: str) -> Activation:
    """Return our name of one of `transformers`' activations. ValueError if we have it not."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} has no equivalent here; known: {[*_ACTIVATIONS]}")
    return _ACTIVATIONS[name]


def activation_to_hf(activation: Activation) -> str:
    """Return `transformers`' name of one of our activations."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


def _split(tensor: Tensor, rule: Rule, shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """Their one tensor as our tensors of these shapes."""
    rows = [shape[0] for shape in shapes]
    needed = (sum(rows), *shapes[0][1:])
    needed = needed[::-1] if rule.transpose else needed
    if tuple(tensor.shape) != needed:
        raise ValueError(
            f"{rule.theirs} has shape {tuple(tensor.shape)} in the checkpoint, but config.json "
            f"asks for {needed} ({' + '.join(rule.targets)})"
        )
    return (tensor.t() if rule.transpose else tensor).split(rows)


def _with_full_names(
    theirs: Mapping[str, Tensor], family: Family, config: Any
) -> dict[str, Tensor]:
    """The checkpoint with the family's prefix on every name and its ignored buffers dropped."""
    expected = {rule.theirs for rule in family.rules_for(config)}
    full: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        for old, new in family.aliases:
            name = re.sub(old, new, name)
        long_name = name
        if name not in expected and family.prefix and not name.startswith(family.prefix):
            long_name = family.prefix + name
        if any(re.fullmatch(pattern, long_name) for pattern in family.ignore):
            continue
        # Only a name that the prefix makes known is respelled, so errors quote the file's own.
        long_name = long_name if long_name in expected else name
        if long_name in full:
            raise ValueError(f"the checkpoint holds {long_name} twice, with and without its prefix")
        full[long_name] = tensor
    return full


def _name_the_difference(missing: Iterable[str], unused: Iterable[str], family: Family) -> str:
    """The sentence for tensors that one side has and the other has not."""

    def some(names: Iterable[str]) -> str:
        names = list(names)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return ", ".join(names[:5]) + more

    missing, unused = list(missing), list(unused)
    told = [f"missing: {some(missing)}"] if missing else []
    told += [f"not used by any rule: {some(unused)}"] if unused else []
    return f"tensors do not match the {family.name} layout; {'; '.join(told)}"
