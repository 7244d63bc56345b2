"""T5, its version 1.1 and BART against `transformers`, and what must hold of both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bart import Bart, BartConfig
from hf_parity import fill_with_fan_in, from_transformers
from hf_weights import WEIGHTS_NAME, load_pretrained, save_pretrained
from seq2seq_weights import BART_FAMILY, T5_FAMILY
from t5 import T5, T5Config, generate_from, shift_right, t5_preset
from variants_parity import gaps, padded, random_ids

# In fp64, but their T5's norm takes its mean square in fp32. Wrong versions miss by more than 1e-3.
TOLERANCE = {"t5": 1e-5, "t5-v1.1": 1e-5, "bart": 1e-10}
FAMILIES = (T5_FAMILY, BART_FAMILY)
KINDS = ("t5", "t5-v1.1", "bart")


def theirs_of(kind: str, folder: Path, **changes: Any) -> Any:
    """A random model of `transformers`; version 1.1's own output matrix comes from a file."""
    torch.manual_seed(0)
    if kind == "bart":
        sizes: dict[str, Any] = {
            "vocab_size": 101,
            "d_model": 24,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 3,
            "decoder_attention_heads": 3,
            "encoder_ffn_dim": 41,
            "decoder_ffn_dim": 41,
            "max_position_embeddings": 40,
        }
        bart: Any = hf.BartForConditionalGeneration(hf.BartConfig(**{**sizes, **changes}))
        bart.final_logits_bias.normal_()
        return fill_with_fan_in(bart.eval())
    sizes = {
        "vocab_size": 101,
        "d_model": 24,
        "d_kv": 5,
        "d_ff": 41,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 3,
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 20,
        "layer_norm_epsilon": 1e-3,
    }
    if kind == "t5-v1.1":
        sizes |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    t5: Any = hf.T5ForConditionalGeneration(hf.T5Config(**{**sizes, **changes}))
    fill_with_fan_in(t5.eval())
    if kind == "t5-v1.1":
        t5.save_pretrained(folder / "v1.1")
        tensors = load_file(folder / "v1.1" / WEIGHTS_NAME)
        tensors["lm_head.weight"] = torch.randn(101, 24) / 5
        save_file(tensors, folder / "v1.1" / WEIGHTS_NAME, metadata={"format": "pt"})
        t5 = hf.T5ForConditionalGeneration.from_pretrained(folder / "v1.1").eval()
        assert t5.lm_head.weight is not t5.shared.weight
    return t5


def hf_pair(kind: str, folder: Path, **changes: Any) -> tuple[Any, Any, Any]:
    """Ours and theirs of the same weights: odd sizes, heads that are not D/H, S and T unequal."""
    theirs = theirs_of(kind, folder, **changes)
    family = BART_FAMILY if kind == "bart" else T5_FAMILY
    return from_transformers(theirs, family), theirs, family


def t5_config(**changes: Any) -> T5Config:
    sizes: dict[str, Any] = {
        "vocab_size": 37,
        "d_model": 24,
        "num_heads": 4,
        "num_layers": 2,
        "d_ff": 40,
        "dropout": 0.0,
        "max_seq_len": 30,
    }
    return T5Config(**{**sizes, **changes})


def bart_config(**changes: Any) -> BartConfig:
    sizes = {f.name: getattr(t5_config(), f.name) for f in dataclasses.fields(T5Config)}
    names = {f.name for f in dataclasses.fields(BartConfig)} - {"activation"}
    shared = {name: value for name, value in sizes.items() if name in names}
    return BartConfig(**{**shared, "pad_id": 1, "eos_id": 2, "start_id": 2, **changes})


def both() -> list[Any]:
    models = [
        T5(t5_config()),
        T5(t5_config(gated=True, activation="gelu_tanh", tie_embeddings=False, num_layers=1)),
        Bart(bart_config()),
    ]
    return [fill_with_fan_in(model.eval()) for model in models]


# --- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_of_a_padded_batch(kind: str, tmp_path: Path) -> None:
    ours, theirs, family = hf_pair(kind, tmp_path)
    src, tgt = random_ids(4, 33), random_ids(4, 19, seed=2)
    src_keep = padded(src, [33, 1, 17, 25], ours.pad_id)
    tgt_keep = padded(tgt, [19, 12, 1, 7], ours.pad_id)

    def outputs() -> list[tuple[Tensor, Tensor]]:
        mine = ours(src, tgt, src_keep=src_keep, tgt_keep=tgt_keep)
        reference = theirs(
            input_ids=src,
            attention_mask=src_keep.long(),
            decoder_input_ids=tgt,
            decoder_attention_mask=tgt_keep.long(),
        ).logits
        return [(mine[tgt_keep], reference[tgt_keep])]

    assert max(gaps(ours, theirs, family, outputs)) < TOLERANCE[kind]


@pytest.mark.parametrize("changes", [{"feed_forward_proj": "gated-silu"}, {"d_kv": 8}], ids=str)
def test_other_t5s(changes: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs, family = hf_pair("t5", tmp_path, **changes)
    src, tgt = random_ids(2, 9), random_ids(2, 25, seed=2)
    output_gap, gradient_gap = gaps(
        ours,
        theirs,
        family,
        lambda: [(ours(src, tgt), theirs(input_ids=src, decoder_input_ids=tgt).logits)],
    )
    assert max(output_gap, gradient_gap) < TOLERANCE["t5"]


@pytest.mark.parametrize("kind", KINDS)
def test_directories_both_ways(kind: str, tmp_path: Path) -> None:
    ours, theirs, family = hf_pair(kind, tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_pretrained(tmp_path / "theirs", FAMILIES)
    assert loaded.config == ours.config
    save_pretrained(loaded, tmp_path / "ours", family)
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    src, tgt = random_ids(2, 13), random_ids(2, 8, seed=2)
    with torch.no_grad():
        expected = theirs(input_ids=src, decoder_input_ids=tgt).logits
        torch.testing.assert_close(loaded(src, tgt), expected, atol=1e-4, rtol=1e-4)
        saved = again(input_ids=src, decoder_input_ids=tgt).logits
        torch.testing.assert_close(saved, expected, atol=1e-4, rtol=1e-4)
    assert load_pretrained(tmp_path / "ours", FAMILIES).config == ours.config


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_theirs(kind: str, tmp_path: Path) -> None:
    # As many decoder layers as encoder layers: `transformers` 5.23 makes T5's cache by the latter.
    layers = {"decoder_layers": 2} if kind == "bart" else {"num_decoder_layers": 2}
    ours, theirs, family = hf_pair(kind, tmp_path, **layers)
    save_pretrained(ours, tmp_path / "ours", family)
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    src = random_ids(3, 11)
    keep = padded(src, [11, 6, 3], ours.pad_id)
    mine = generate_from(ours, src, max_new_tokens=9)
    ids = again.generate(
        src, attention_mask=keep.long(), max_new_tokens=9, do_sample=False, num_beams=1
    )
    for row, text in zip(ids.tolist(), mine, strict=True):
        new = row[1:]
        ends = new.index(ours.config.eos_id) if ours.config.eos_id in new else len(new)
        assert new[:ends] == text


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_directory_with_a_tensor_missing_is_refused(kind: str, tmp_path: Path) -> None:
    theirs_of(kind, tmp_path).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    name = next(n for n in tensors if "decoder" in n and "norm.weight" in n)
    del tensors[name]
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=f"missing: {name}"):
        load_pretrained(tmp_path, FAMILIES)


@pytest.mark.parametrize(
    ("kind", "entry", "value"),
    [
        ("bart", "scale_embedding", True),
        ("bart", "decoder_ffn_dim", 40),
        ("bart", "encoder_layerdrop", 0.1),
        ("bart", "tie_word_embeddings", False),
        ("t5", "feed_forward_proj", "glu-relu"),
    ],
)
def test_options_that_we_have_not_are_refused(
    kind: str, entry: str, value: Any, tmp_path: Path
) -> None:
    theirs_of(kind, tmp_path).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, entry: value}))
    with pytest.raises(ValueError, match=entry):
        load_pretrained(tmp_path, FAMILIES)


def test_the_version_is_told_in_either_spelling(tmp_path: Path) -> None:
    """Files from before `scale_decoder_outputs` say it with `tie_word_embeddings`."""
    _, theirs, _ = hf_pair("t5-v1.1", tmp_path)
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": False}))
    assert not load_pretrained(tmp_path, FAMILIES).config.tie_embeddings


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [("small", 60_506_624), ("base", 222_903_552), ("v1.1-small", 76_961_152)],
)
def test_presets_have_the_published_sizes(name: str, published: int) -> None:
    config = t5_preset(name)
    with torch.device("meta"):
        built = sum(p.numel() for p in T5(config).parameters())
    assert built == config.num_parameters == published


def test_flops_count_every_multiplication() -> None:
    """PyTorch's counter of matrix products; the backward pass has twice the forward's."""
    for config in (t5_config(head_dim=5), t5_config(gated=True, num_decoder_layers=3)):
        model = T5(config).eval()
        src, tgt = random_ids(1, 11, high=37), random_ids(1, 7, high=37)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(src, tgt)
        assert config.flops_per_pair(11, 7) == 3 * counter.get_total_flops()


def test_initial_logits_have_variance_one() -> None:
    for tied in (True, False):
        config = t5_config(vocab_size=500, d_model=128, tie_embeddings=tied)
        model = T5(config, generator=torch.Generator().manual_seed(0)).eval()
        logits = model(random_ids(4, 30, high=500), random_ids(4, 30, high=500))
        assert 0.6 < float(logits.detach().std()) < 1.6


# --- what must hold ------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
def test_cached_equals_uncached_under_any_chunking(index: int) -> None:
    model = both()[index]
    src, tgt = random_ids(2, 9, high=37), random_ids(2, 12, high=37, seed=3)
    keep = padded(src, [9, 4], model.pad_id)
    memory = model.encode(src, src_keep=keep)
    whole = model(src, tgt, src_keep=keep)
    cache, parts = model.new_cache(), []
    for first, last in ((0, 1), (1, 5), (5, 6), (6, 12)):
        parts.append(model(None, tgt[:, first:last], src_keep=keep, memory=memory, cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("index", range(3))
def test_the_future_and_the_padding_are_not_seen(index: int) -> None:
    model = both()[index]
    src, tgt = random_ids(2, 9, high=37), random_ids(2, 8, high=37, seed=3)
    padded(src, [9, 4], model.pad_id)
    logits = model(src, tgt)
    changed = tgt.clone()
    changed[:, 5:] = 4
    torch.testing.assert_close(model(src, changed)[:, :5], logits[:, :5])
    torch.testing.assert_close(model(src[1:, :4], tgt[1:]), logits[1:], atol=1e-5, rtol=1e-4)
    other = src.clone()
    other[:, 0] = 4
    assert ((model(other, tgt) - logits).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_beams_find_what_is_at_least_as_likely() -> None:
    for model in both():
        src = random_ids(3, 9, high=37)

        def log_probability(ids: list[int], row: int, model: Any = model, src: Any = src) -> float:
            text = torch.tensor([[*ids, model.config.eos_id]])[:, :6]
            tgt = shift_right(text, model.config.start_id)
            log_p = model(src[row : row + 1], tgt).log_softmax(-1)
            return float(log_p.gather(2, text[..., None]).sum())

        with torch.no_grad():
            greedy = generate_from(model, src, max_new_tokens=6)
            beams = generate_from(model, src, max_new_tokens=6, num_beams=40)
            for row in range(3):
                wins = log_probability(beams[row], row) - log_probability(greedy[row], row)
                assert wins > -1e-4


def test_shifting_by_hand() -> None:
    targets = torch.tensor([[7, 8, 1, -100], [5, 1, -100, -100]])
    assert shift_right(targets, 0, pad_id=9).tolist() == [[0, 7, 8, 1], [0, 5, 1, 9]]
    assert targets[0, 3] == -100, "the targets are left alone"


def test_t5_reads_farther_than_its_buckets() -> None:
    """Beyond max_distance all distances are one bucket; there is no last position."""
    model = both()[0]
    src = random_ids(1, 300, high=37)
    assert model(src, random_ids(1, 4, high=37)).isfinite().all()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
def test_bad_input(index: int) -> None:
    model = both()[index]
    ids = random_ids(2, 5, high=37)
    memory = model.encode(ids)
    with pytest.raises(ValueError, match="either src or memory"):
        model(ids, ids, memory=memory)
    with pytest.raises(ValueError, match="either src or memory"):
        model(None, ids)
    with pytest.raises(ValueError, match=r"ids from 3 to 37 must lie in \[0, vocab_size=37\)"):
        model(ids, torch.tensor([[3, 37]]))
    with pytest.raises(ValueError, match=r"src_keep has shape \(2, 4\)"):
        model(ids, ids, src_keep=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"ids has shape \(5,\)"):
        model(ids[0], ids)


def test_a_text_beyond_barts_last_position() -> None:
    model = Bart(bart_config(max_seq_len=8))
    ids = random_ids(1, 8, high=37)
    model(ids, ids)
    with pytest.raises(ValueError, match="9 positions; this model has max_seq_len 8"):
        model(random_ids(1, 9, high=37), ids)
    cache = model.new_cache()
    memory = model.encode(ids)
    model(None, ids, memory=memory, cache=cache)
    with pytest.raises(ValueError, match="9 positions"):
        model(None, ids[:, :1], memory=memory, cache=cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "d_model 24 is not a multiple"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"d_ff": -1}, "d_ff is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        t5_config(**changes)
    with pytest.raises(ValueError, match=message):
        bart_config(**changes)


def test_bad_presets_and_layouts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no preset 'huge'"):
        t5_preset("huge")
    with pytest.raises(ValueError, match="activation_dropout is 2"):
        bart_config(activation_dropout=2)
    with pytest.raises(ValueError, match="activation='gelu'"):
        save_pretrained(T5(t5_config(gated=True, activation="gelu")), tmp_path, T5_FAMILY)
