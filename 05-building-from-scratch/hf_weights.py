"""Models from and to directories in Hugging Face's layout, and GPT-2's table of names.

`load_pretrained` reads what `transformers` wrote, `save_pretrained` writes what `transformers`
reads; which of their tensors is which of ours stands in a `Family` (see `weight_rules`), here
`GPT2_FAMILY`; later topics bring their own.

Only safetensors and JSON are read. A pickle can run any code when it is opened, so
`pytorch_model.bin` is refused. README section "Other people's weights".
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt import GPT, GPTConfig
from lab_results import atomic_write
from weight_rules import (
    Family,
    Rule,
    activation_from_hf,
    activation_to_hf,
    export_state,
    import_state,
)

__all__ = [
    "GPT2_FAMILY",
    "INDEX_NAME",
    "WEIGHTS_NAME",
    "Family",
    "Rule",
    "SavableTokenizer",
    "export_state",
    "import_state",
    "load_pretrained",
    "save_pretrained",
]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_RANDOM_FILLERS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"})


class SavableTokenizer(Protocol):
    """What `save_pretrained` needs of a tokenizer; topic 06's `Tokenizer` is one."""

    vocab_size: int

    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    def save(self, path: Path, /) -> None: ...


def load_pretrained(
    directory_or_name: str | os.PathLike[str],
    families: Iterable[Family],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """A model from a directory that `transformers` or `save_pretrained` wrote, or from the hub.

    Args:
        directory_or_name: a local directory, or a hub name ("gpt2", "Qwen/Qwen3-0.6B") that is
            then downloaded or taken from the local cache.
        families: the architectures to accept, told apart by config.json's `model_type`, and
            families of one type (BERT with one head or another) by its `architectures`.
        dtype: of the parameters; None keeps each tensor's own.
        device: where the model goes; None is the CPU.

    Returns:
        The model, in eval mode. The global random state is not touched.

    Raises:
        ValueError: no such directory or hub model, a file that is damaged or of another kind,
            an architecture or an option that is not among `families`, or tensors that do not
            match the architecture.
    """
    directory = _find(directory_or_name)
    config_path = directory / "config.json"
    raw = _read_json(config_path)
    family = _choose(tuple(families), raw, config_path)
    if raw.get("quantization_config"):
        raise ValueError(f"{config_path}: quantised weights cannot be read")
    tensors = _read_weights(directory)
    try:
        config = family.config_from_hf(raw)
        if config.num_layers > len(tensors):  # before building as many
            raise ValueError(f"{config.num_layers} layers, but {len(tensors)} tensors in all")
        with torch.device("meta"):  # shapes cost nothing there, however large
            shell = family.build(config)
    except KeyError as error:
        raise ValueError(f"{config_path} has no entry {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{config_path}: {error}") from error
    shapes = {name: tensor.shape for name, tensor in shell.state_dict().items()}
    try:
        state = import_state(tensors, family, config, shapes)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error

    with _Uninitialised():
        model = family.build(config)
    parameters = dict(model.named_parameters())
    for name, tensor in state.items():
        # A copy: the file's pages are mapped into memory, and a parameter must own its own.
        parameters[name].data = tensor.detach().to(
            device=device or "cpu", dtype=dtype, copy=True, memory_format=torch.contiguous_format
        )
    return model.to(device or "cpu").eval()


def save_pretrained(
    model: nn.Module,
    directory: str | os.PathLike[str],
    family: Family,
    *,
    tokenizer: SavableTokenizer | None = None,
) -> Path:
    """Writes a directory that `AutoModelForCausalLM` and `AutoTokenizer` load.

    config.json, model.safetensors, generation_config.json and, with a tokenizer, tokenizer.json
    and tokenizer_config.json. Every file appears whole or not at all.

    Returns:
        The directory.

    Raises:
        TypeError: the model is not one of this family's.
        ValueError: the layout has no equivalent for one of the config's options, or the
            tokenizer has more ids than the model has rows.
    """
    config: Any = getattr(model, "config", None)
    if not isinstance(config, family.config_type):
        raise TypeError(
            f"family {family.name} saves models whose config is a {family.config_type.__name__}, "
            f"not {type(config).__name__}"
        )
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer's {tokenizer.vocab_size} ids do not fit "
            f"the model's vocab_size {config.vocab_size}"
        )
    entries = family.config_to_hf(config)
    parameters = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    tensors = export_state(parameters, family, config)
    dtype = next(iter(tensors.values())).dtype
    for tensor in tensors.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    specials: dict[str, int | None] = dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id")
    )
    if tokenizer is not None:
        specials = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            # Padding is masked, so any id will do; without one `transformers` warns at each batch.
            "pad_token_id": tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id,
        }
    header = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "dtype": str(dtype).removeprefix("torch."),
        "tie_word_embeddings": config.tie_embeddings,
    }

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _replace(
        directory / WEIGHTS_NAME,
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
    )
    if tokenizer is not None:
        tokenizer.save(directory)
    told = ("eos_token_id", "pad_token_id", "decoder_start_token_id")
    own = {name: entries[name] for name in told if name in entries}
    _write_json(directory / "generation_config.json", {**specials, **own})
    # In config.json a padding id would make that row of the embedding untrainable there.
    _write_json(directory / "config.json", {**header, **specials, "pad_token_id": None, **entries})
    return directory


def _choose(families: tuple[Family, ...], raw: Mapping[str, Any], config_path: Path) -> Family:
    """The family that config.json asks for."""
    of_type = [family for family in families if family.name == raw.get("model_type")]
    if not of_type:
        raise ValueError(
            f"{config_path} is of model_type {raw.get('model_type')!r}; "
            f"can load {', '.join(sorted({family.name for family in families}))}"
        )
    if len(of_type) == 1:
        return of_type[0]
    wanted = raw.get("architectures") or []
    for family in of_type:
        if family.architecture in wanted:
            return family
    raise ValueError(
        f"{config_path} is of architectures {wanted}; of model_type {of_type[0].name!r} "
        f"can load {', '.join(sorted(family.architecture for family in of_type))}"
    )


def _find(directory_or_name: str | os.PathLike[str]) -> Path:
    """The local directory, or the hub's snapshot of that name."""
    path = Path(directory_or_name).expanduser()
    name = str(directory_or_name)
    if name and path.is_dir():
        return path
    if path.exists() or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"{name!r} is neither a directory nor the name of a model on the hub")
    try:
        # The patterns keep pickled weights, and everything else that we do not read, away.
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is not a directory here, and the hub did not give a model of that name: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__} where an object was expected")
    return value


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """Every tensor in the directory's safetensors files, by name, memory-mapped."""
    if (directory / WEIGHTS_NAME).exists():
        return _read_safetensors(directory / WEIGHTS_NAME)
    if not (directory / INDEX_NAME).exists():
        pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
        hint = f" (only {pickled[0]}: pickles are not opened, convert it)" if pickled else ""
        raise ValueError(f"{directory} has no {WEIGHTS_NAME} or {INDEX_NAME}{hint}")
    weight_map = _read_json(directory / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{directory / INDEX_NAME} has no weight_map")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard:
            raise ValueError(f"{directory / INDEX_NAME} points outside the directory: {shard!r}")
        listed = {name for name, file in weight_map.items() if file == shard}
        held = _read_safetensors(directory / shard)
        if held.keys() != listed:
            odd = sorted(held.keys() ^ listed)[0]
            raise ValueError(f"{directory / INDEX_NAME} and {shard} disagree about {odd}")
        tensors.update(held)
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Has `write` write a temporary file, then puts that in `path`'s place at once."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _write_json(path: Path, entries: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(entries, indent=2, sort_keys=True) + "\n")


class _Uninitialised(TorchFunctionMode):
    """Leaves new parameters unfilled: loading replaces them, and random numbers are slow."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM_FILLERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


# --- GPT-2 ---------------------------------------------------------------------------------------


def _gpt2_config(raw: Mapping[str, Any]) -> GPTConfig:
    """config.json of a GPT-2 as our config. Absent entries have `transformers`' defaults."""
    unsupported = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    for option, ours in unsupported.items():
        if raw.get(option, ours) != ours:
            raise ValueError(f"{option}={raw[option]} has no equivalent here")
    dropouts = {raw.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(dropouts) > 1:
        raise ValueError("resid_pdrop, embd_pdrop and attn_pdrop must be equal: we have one")
    return GPTConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["n_embd"],
        num_heads=raw["n_head"],
        num_layers=raw["n_layer"],
        d_ff=raw.get("n_inner"),
        max_seq_len=raw["n_positions"],
        dropout=dropouts.pop(),
        activation=activation_from_hf(raw.get("activation_function", "gelu_new")),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
    )


def _gpt2_entries(config: GPTConfig) -> dict[str, Any]:
    if not config.bias:
        raise ValueError("bias=False cannot be expressed in the gpt2 layout")
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "n_inner": config.d_ff,
        "n_positions": config.max_seq_len,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "activation_function": activation_to_hf(config.activation),
        "layer_norm_epsilon": config.norm_eps,
    }


def _gpt2_rules() -> tuple[Rule, ...]:
    theirs, ours = "transformer.h.{i}.", "blocks.{i}."
    rules = [
        Rule("transformer.wte.weight", "token_embedding.weight"),
        Rule("transformer.wpe.weight", "position_embedding.weight"),
    ]
    for kind in ("weight", "bias"):
        fused = tuple(f"{ours}attention.{letter}_proj.{kind}" for letter in "qkv")
        matrix = kind == "weight"  # Conv1D keeps matrices as (in, out)
        rules += [
            Rule(f"{theirs}ln_1.{kind}", f"{ours}attention_norm.{kind}"),
            Rule(f"{theirs}attn.c_attn.{kind}", fused, transpose=matrix),
            Rule(f"{theirs}attn.c_proj.{kind}", f"{ours}attention.out_proj.{kind}", matrix),
            Rule(f"{theirs}ln_2.{kind}", f"{ours}feed_forward_norm.{kind}"),
            Rule(f"{theirs}mlp.c_fc.{kind}", f"{ours}feed_forward.up.{kind}", matrix),
            Rule(f"{theirs}mlp.c_proj.{kind}", f"{ours}feed_forward.down.{kind}", matrix),
            Rule(f"transformer.ln_f.{kind}", f"final_norm.{kind}"),
        ]
    rules.append(Rule("lm_head.weight", "unembed.weight", tied_to="token_embedding.weight"))
    return tuple(rules)


GPT2_FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    config_type=GPTConfig,
    config_from_hf=_gpt2_config,
    config_to_hf=_gpt2_entries,
    rules=_gpt2_rules(),
    build=GPT,
    prefix="transformer.",
    ignore=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
)
