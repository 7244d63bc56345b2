"""GPT-2 and Qwen3 directories: written by `transformers` and read by us, and the other way."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers import LlamaConfig as HFLlamaConfig

from gpt import GPT, GPTConfig
from hf_parity import compare, fill_with_fan_in, from_transformers, left_padding
from hf_weights import GPT2_FAMILY, load_pretrained, save_pretrained
from text_generation import beam_search, generate

TOLERANCE = 2e-5  # of the largest logit or gradient; the mutants miss by more than 1e-2


def hf_gpt2(*, seed: int = 0, **changes: Any) -> Any:
    """A GPT-2 of odd sizes, every weight, bias and norm with a value of its own."""
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "n_embd": 30,
        "n_head": 5,
        "n_layer": 3,
        "n_positions": 41,
        "n_inner": 77,
        "layer_norm_epsilon": 1e-3,
        "bos_token_id": None,
        "eos_token_id": None,
        **changes,
    }
    torch.manual_seed(seed)
    return fill_with_fan_in(GPT2LMHeadModel(GPT2Config(**sizes)).eval(), seed=seed)


def hf_modern(kind: str, *, tied: bool, seed: int = 0, **changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 36,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "num_hidden_layers": 2,
        "intermediate_size": 50,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        **changes,
    }
    model: Any
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    else:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 300.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
        model = LlamaForCausalLM(HFLlamaConfig(**sizes, rope_parameters=rope))
    return fill_with_fan_in(model.eval(), seed=seed)


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(seed))


def small_gpt(**changes: Any) -> GPT:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "d_model": 30,
        "num_heads": 5,
        "num_layers": 3,
        "max_seq_len": 41,
        "d_ff": 77,
    }
    model = GPT(GPTConfig(**{**sizes, **changes}))
    fill_with_fan_in(model)
    return model.eval()


@pytest.fixture(scope="module")
def families() -> list[Any]:
    """All that there are. (A test of topic 05 may look ahead; its module may not.)"""
    from llama import LLAMA_FAMILY, QWEN3_FAMILY

    return [GPT2_FAMILY, QWEN3_FAMILY, LLAMA_FAMILY]


@pytest.fixture
def gpt2_directory(tmp_path: Path) -> Path:
    hf_gpt2().save_pretrained(tmp_path)
    return tmp_path


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None deletes one."""
    entries = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))


# --- GPT-2, parity -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"activation_function": "relu", "n_inner": None},
        {"activation_function": "gelu", "n_head": 1},
        {"activation_function": "silu", "layer_norm_epsilon": 1e-12},
        {"activation_function": "relu2", "n_layer": 1},
    ],
    ids=str,
)
def test_gpt2_logits_and_gradients(changes: dict[str, Any]) -> None:
    theirs = hf_gpt2(seed=2, **changes)
    ours = from_transformers(theirs, GPT2_FAMILY)
    assert max(compare(ours, theirs, GPT2_FAMILY, random_ids(3, 37))) < TOLERANCE


def test_gpt2_left_padded_batch() -> None:
    theirs = hf_gpt2(seed=3)
    ours = from_transformers(theirs, GPT2_FAMILY)
    gaps = compare(ours, theirs, GPT2_FAMILY, random_ids(4, 29), lengths=[29, 1, 11, 28])
    assert max(gaps) < TOLERANCE


def test_gpt2_cached_steps_equal_theirs() -> None:
    theirs = hf_gpt2(seed=4)
    ours = from_transformers(theirs, GPT2_FAMILY)
    ids, cache, past = random_ids(2, 23), ours.new_cache(2), None
    for part in ids.split([7, 1, 1, 9, 5], dim=1):
        with torch.no_grad():
            expected = theirs(part, past_key_values=past, use_cache=True)
            past = expected.past_key_values
            torch.testing.assert_close(
                ours(part, cache=cache), expected.logits, rtol=1e-5, atol=1e-5
            )


def test_gpt2_greedy_and_beam_tokens() -> None:
    theirs = hf_gpt2(seed=5)
    ours = from_transformers(theirs, GPT2_FAMILY)
    prompts = [random_ids(n, seed=n).tolist() for n in (8, 3, 5)]
    padded = torch.tensor([[0] * (8 - len(p)) + p for p in prompts])
    options = {
        "attention_mask": left_padding([8, 3, 5], 8)[0],
        "max_new_tokens": 25,
        "do_sample": False,
        "pad_token_id": 0,
    }
    greedy = theirs.generate(padded, **options)[:, 8:]
    assert generate(ours, prompts, max_new_tokens=25) == greedy.tolist()
    beams = theirs.generate(padded, num_beams=3, **options)[:, 8:]
    found = beam_search(ours, prompts, num_beams=3, max_new_tokens=25, eos_id=None)
    assert [prompt[0].ids for prompt in found] == beams.tolist()


# --- their directories, read ---------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
def test_a_directory_of_theirs_gives_the_same_logits(
    kind: str, tied: bool, tmp_path: Path, families: list[Any]
) -> None:
    theirs = hf_gpt2(tie_word_embeddings=tied) if kind == "gpt2" else hf_modern(kind, tied=tied)
    theirs.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    ours = load_pretrained(tmp_path, families)
    assert torch.equal(torch.get_rng_state(), before)
    assert not ours.training
    assert (ours.unembed.weight is ours.token_embedding.weight) is tied
    ids = random_ids(2, 39)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept_or_converted(dtype: torch.dtype, gpt2_directory: Path) -> None:
    tensors = {k: v.to(dtype) for k, v in load_file(gpt2_directory / "model.safetensors").items()}
    tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"].float()
    save_file(tensors, gpt2_directory / "model.safetensors", metadata={"format": "pt"})
    kept = load_pretrained(gpt2_directory, [GPT2_FAMILY])
    assert kept.token_embedding.weight.dtype == dtype
    assert kept.blocks[2].attention.k_proj.weight.dtype == dtype
    assert kept.final_norm.weight.dtype == torch.float32
    assert torch.equal(
        kept.blocks[2].feed_forward.up.weight, tensors["transformer.h.2.mlp.c_fc.weight"].t()
    )
    cast = load_pretrained(gpt2_directory, [GPT2_FAMILY], dtype=torch.float32)
    assert {p.dtype for p in cast.parameters()} == {torch.float32}


def test_rotations_stay_exact_in_bf16(tmp_path: Path, families: list[Any]) -> None:
    hf_modern("qwen3", tied=True).bfloat16().save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path, families)
    assert ours.token_embedding.weight.dtype == torch.bfloat16
    assert ours.rope.inv_freq.dtype == torch.float32


def test_sharded_checkpoints_are_read(tmp_path: Path) -> None:
    theirs = hf_gpt2()
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = load_pretrained(tmp_path, [GPT2_FAMILY])
    ids = random_ids(2, 11)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=2e-5, atol=2e-5)


def test_a_bare_model_is_read(tmp_path: Path) -> None:
    """The hub's "gpt2" itself: names without "transformer.", and the old mask buffers."""
    theirs = hf_gpt2()
    bare: GPT2Model = theirs.transformer
    bare.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "wte.weight" in tensors
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 41, 41)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    ours = load_pretrained(str(tmp_path), [GPT2_FAMILY])
    ids = random_ids(2, 11)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=2e-5, atol=2e-5)


def test_loaded_weights_are_their_own_memory(gpt2_directory: Path) -> None:
    ours = load_pretrained(gpt2_directory, [GPT2_FAMILY])
    for parameter in ours.parameters():
        assert parameter.requires_grad
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
    before = (gpt2_directory / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert (gpt2_directory / "model.safetensors").read_bytes() == before


# --- our directories, read by them ---------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
def test_they_load_a_directory_of_ours(
    kind: str, tied: bool, tmp_path: Path, families: list[Any]
) -> None:
    theirs = hf_gpt2(tie_word_embeddings=tied) if kind == "gpt2" else hf_modern(kind, tied=tied)
    family = next(f for f in families if f.name == kind)
    ours = from_transformers(theirs, family)
    assert save_pretrained(ours, tmp_path / "new" / "folder", family) == tmp_path / "new" / "folder"
    auto: Any = AutoModelForCausalLM
    loaded, info = auto.from_pretrained(tmp_path / "new" / "folder", output_loading_info=True)
    assert type(loaded) is type(theirs)
    assert not any(info.values()), info
    assert loaded.dtype == torch.float32
    ids = random_ids(2, 39)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, ours(ids), rtol=2e-5, atol=2e-5)
        assert torch.equal(load_pretrained(tmp_path / "new" / "folder", families)(ids), ours(ids))
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["config.json", "generation_config.json", "model.safetensors"]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
def test_the_tokenizer_travels_along(kind: str, tmp_path: Path, families: list[Any]) -> None:
    from bpe import train_bpe
    from tokenizer import Tokenizer

    text = "the cat sat on the mat; the dog sat on the log. " * 20
    tokenizer = Tokenizer.from_bpe(train_bpe([text], 270))
    size = tokenizer.vocab_size
    theirs = (
        hf_gpt2(vocab_size=size) if kind == "gpt2" else hf_modern(kind, tied=True, vocab_size=size)
    )
    family = next(f for f in families if f.name == kind)
    save_pretrained(from_transformers(theirs, family), tmp_path, family, tokenizer=tokenizer)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for sample in ("the cat sat", " Ünïcode 🙂 <|endoftext|>\n", ""):
        ids = tokenizer.encode(sample, allowed_special="all")
        assert auto(sample)["input_ids"] == ids
        assert auto.decode(ids) == sample
    assert Tokenizer.load(tmp_path).encode(text) == tokenizer.encode(text)
    assert auto.eos_token_id == tokenizer.eos_id
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == tokenizer.eos_id
    assert model.get_input_embeddings().padding_idx is None
    prompt = auto(["the cat"], return_tensors="pt")
    expected = model.generate(**prompt, max_new_tokens=12, do_sample=False)[
        0, prompt.input_ids.shape[1] :
    ]
    ours = load_pretrained(tmp_path, families)
    found = generate(ours, prompt.input_ids, max_new_tokens=12, eos_id=tokenizer.eos_id)
    assert found[0] == expected.tolist()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    from bpe import train_bpe
    from tokenizer import Tokenizer

    tokenizer = Tokenizer.from_bpe(train_bpe(["a b"], 256))
    with pytest.raises(ValueError, match=r"257 ids do not fit the model's vocab_size 97"):
        save_pretrained(small_gpt(), tmp_path, GPT2_FAMILY, tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_the_file_says_that_it_is_pytorchs_and_holds_a_tied_matrix_once(tmp_path: Path) -> None:
    save_pretrained(small_gpt(), tmp_path, GPT2_FAMILY)
    data = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt"}
    assert "lm_head.weight" not in header
    assert header["transformer.h.0.attn.c_attn.weight"]["shape"] == [30, 90]


def test_configs_survive_the_round_trip(tmp_path: Path) -> None:
    for changes in (
        {"activation": "relu_squared", "norm_eps": 1e-3, "dropout": 0.25},
        {"activation": "gelu", "tie_embeddings": False},
        {"activation": "gelu_tanh", "d_ff": None},
        {"activation": "silu"},
        {"activation": "relu"},
    ):
        model = small_gpt(**changes)
        save_pretrained(model, tmp_path, GPT2_FAMILY)
        assert load_pretrained(tmp_path, [GPT2_FAMILY]).config == model.config


def test_a_config_of_nothing_but_required_entries_has_their_defaults(tmp_path: Path) -> None:
    """Old config.json files leave out what was the default."""
    raw: Any = {"vocab_size": 97, "n_embd": 30, "n_head": 5, "n_layer": 3, "n_positions": 41}
    theirs = GPT2Config(**raw)
    ours = GPT2_FAMILY.config_from_hf(raw)
    assert ours == GPT2_FAMILY.config_from_hf(theirs.to_dict())


def test_bf16_models_are_saved_as_bf16(tmp_path: Path) -> None:
    model = small_gpt().bfloat16()
    save_pretrained(model, tmp_path, GPT2_FAMILY)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert load_pretrained(tmp_path, [GPT2_FAMILY]).final_norm.bias.dtype == torch.bfloat16


def test_saving_again_replaces_and_a_failure_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(small_gpt(), tmp_path, GPT2_FAMILY)
    second = small_gpt(num_layers=1)
    save_pretrained(second, tmp_path, GPT2_FAMILY)
    assert load_pretrained(tmp_path, [GPT2_FAMILY]).config == second.config
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(small_gpt(), tmp_path, GPT2_FAMILY)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_the_layout_cannot_say_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bias=False cannot be expressed in the gpt2 layout"):
        save_pretrained(small_gpt(bias=False), tmp_path, GPT2_FAMILY)
    with pytest.raises(TypeError, match=r"family gpt2 saves models whose config is a GPTConfig"):
        save_pretrained(torch.nn.Linear(2, 2), tmp_path, GPT2_FAMILY)
    assert not list(tmp_path.iterdir())


def test_a_model_with_other_parameters_is_refused(tmp_path: Path) -> None:
    model = small_gpt()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"not used by any rule: extra\.weight, extra\.bias"):
        save_pretrained(model, tmp_path, GPT2_FAMILY)


# --- what is wrong is said -----------------------------------------------------------------------


def refused(directory: Path | str, families: Any = (GPT2_FAMILY,)) -> str:
    with pytest.raises(ValueError) as caught:
        load_pretrained(directory, families)
    message = str(caught.value)
    assert message
    assert "\n" not in message.strip()
    return message


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header", "pickle", "absent"])
def test_damaged_weights(damage: str, gpt2_directory: Path) -> None:
    path = gpt2_directory / "model.safetensors"
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[:-1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif damage == "header":
        path.write_bytes(data[:20] + b"\xff" + data[21:])
    elif damage == "pickle":
        torch.save({"a": torch.ones(2)}, path)
    elif damage == "absent":
        path.unlink()
    assert "model.safetensors" in refused(gpt2_directory)


def test_pickled_weights_are_not_opened(gpt2_directory: Path) -> None:
    (gpt2_directory / "model.safetensors").rename(gpt2_directory / "pytorch_model.bin")
    assert "pickles are not opened" in refused(gpt2_directory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable JSON"),
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("[1, 2]", "holds list"),
        ("{}", "model_type None"),
        ('{"model_type": "mamba"}', "model_type 'mamba'; can load gpt2"),
        ('{"model_type": ["gpt2"]}', "model_type"),
        ('{"model_type": "gpt2"}', "no entry 'vocab_size'"),
    ],
)
def test_bad_configs(text: str, message: str, gpt2_directory: Path) -> None:
    (gpt2_directory / "config.json").write_text(text)
    assert message in refused(gpt2_directory)


def test_a_config_that_is_not_text(gpt2_directory: Path) -> None:
    (gpt2_directory / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not readable JSON" in refused(gpt2_directory)
    (gpt2_directory / "config.json").unlink()
    assert "has no config.json" in refused(gpt2_directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 7}, "d_model 30 is not a multiple of num_heads 7"),
        ({"n_layer": 0}, "num_layers is 0"),
        ({"n_embd": "thirty"}, "config.json: "),
        ({"vocab_size": [97]}, "config.json: "),
        ({"n_layer": 2.5}, "config.json: "),
        ({"n_layer": 10**12}, "1000000000000 layers"),
        ({"n_embd": 10**15}, "config.json: "),
        ({"n_inner": 10**12}, "asks for (30, 1000000000000)"),
        ({"layer_norm_epsilon": "tiny"}, "config.json: "),
        ({"activation_function": "mish"}, "'mish' has no equivalent"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"attn_pdrop": 0.3}, "attn_pdrop must be equal"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"n_layer": 4}, "missing: transformer.h.3."),
        ({"n_layer": 2}, "not used by any rule: transformer.h.2."),
        ({"n_inner": 78}, "transformer.h.0.mlp.c_fc.weight has shape (30, 77)"),
        ({"vocab_size": 98}, "asks for (98, 30)"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(
    changes: dict[str, Any], message: str, gpt2_directory: Path
) -> None:
    edit_json(gpt2_directory / "config.json", **changes)
    assert message in refused(gpt2_directory)


def sharded(directory: Path) -> tuple[Path, dict[str, Any]]:
    hf_gpt2().save_pretrained(directory, max_shard_size="10KB")
    index = directory / "model.safetensors.index.json"
    return index, json.loads(index.read_text())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    next(tmp_path.glob("model-00002*")).unlink()
    assert "model-00002" in refused(tmp_path)


def test_an_index_that_lies_is_caught(tmp_path: Path) -> None:
    index, entries = sharded(tmp_path)
    name, file = next(iter(entries["weight_map"].items()))
    other = next(f for f in entries["weight_map"].values() if f != file)
    for wrong, message in (
        ({**entries["weight_map"], name: other}, name),
        ({**entries["weight_map"], name: "../" + file}, "outside the directory"),
        ({**entries["weight_map"], name: str(tmp_path / file)}, "outside the directory"),
        ({**entries["weight_map"], name: 7}, "7"),
        ({}, "no weight_map"),
        ("model.safetensors", "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert message in refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./nowhere", "../nowhere", "a/b/c", "", "gpt2 ", "no-such-user/none"],
)
def test_names_that_are_no_directory(name: str) -> None:
    assert repr(name) in refused(name)


def test_a_file_is_no_directory(gpt2_directory: Path) -> None:
    assert "neither a directory nor" in refused(gpt2_directory / "config.json")
