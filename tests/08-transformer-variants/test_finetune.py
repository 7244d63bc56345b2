"""The heads against `transformers`' and against definitions that are too slow to use."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bert import Bert, BertConfig
from bert_weights import BERT_PRETRAINING_FAMILY, ROBERTA_FAMILY
from finetune import (
    DecoderFeatures,
    SequenceClassifier,
    SpanExtractor,
    TokenClassifier,
    best_span,
    pool_hidden,
    span_loss,
)
from gpt import GPT, GPTConfig
from hf_parity import fill_with_fan_in
from variants_parity import padded, random_ids
from weight_rules import import_state

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 41,
    "max_position_embeddings": 31,
    "num_labels": 5,
}


def with_their_trunk(ours: Any, theirs: Any, family: Any, heads: dict[str, str]) -> Any:
    """Copy the encoder by the family's table, and the head by the names given."""
    state = theirs.state_dict()
    kind = family.name
    trunk = {n: t for n, t in state.items() if n.startswith(f"{kind}.")}
    rules = tuple(
        rule
        for rule in family.rules
        if rule.theirs.startswith(f"{kind}.")
        and ("pooler" not in rule.theirs or f"{kind}.pooler.dense.weight" in state)
    )
    family = dataclasses.replace(family, rules=rules)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    mine = import_state(trunk, family, ours.encoder.config, shapes)
    for name, reference in heads.items():
        for end in ("weight", "bias"):
            mine[f"{name}.{end}"] = state[f"{reference}.{end}"]
    ours.load_state_dict(mine)
    return ours.eval()


def batch() -> tuple[Tensor, Tensor]:
    ids = random_ids(3, 12)
    return ids, padded(ids, [12, 5, 9], 0)


def test_a_classifier_with_berts_pooler() -> None:
    theirs = fill_with_fan_in(hf.BertForSequenceClassification(hf.BertConfig(**SIZES)).eval())
    config = BERT_PRETRAINING_FAMILY.config_from_hf(hf.BertConfig(**SIZES).to_dict())
    ours = SequenceClassifier(Bert(config), 5)
    assert ours.transform is None
    with_their_trunk(ours, theirs, BERT_PRETRAINING_FAMILY, {"to_labels": "classifier"})
    ids, keep = batch()
    expected = theirs(ids, attention_mask=keep.long()).logits
    torch.testing.assert_close(ours(ids, keep=keep), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=1e-4)


def test_a_classifier_with_robertas_head() -> None:
    theirs: Any = hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZES))
    fill_with_fan_in(theirs.eval())
    config = ROBERTA_FAMILY.config_from_hf(theirs.config.to_dict())
    ours = SequenceClassifier(Bert(config, pooler=False), 5)
    heads = {"transform": "classifier.dense", "to_labels": "classifier.out_proj"}
    with_their_trunk(ours, theirs, ROBERTA_FAMILY, heads)
    ids = random_ids(3, 12)
    keep = padded(ids, [12, 5, 9], 1)
    expected = theirs(ids, attention_mask=keep.long()).logits
    torch.testing.assert_close(ours(ids, keep=keep), expected, atol=1e-5, rtol=1e-4)


def test_a_token_classifier() -> None:
    theirs: Any = hf.BertForTokenClassification(hf.BertConfig(**SIZES))
    fill_with_fan_in(theirs.eval())
    config = BERT_PRETRAINING_FAMILY.config_from_hf(theirs.config.to_dict())
    ours = TokenClassifier(Bert(config, pooler=False), 5)
    with_their_trunk(ours, theirs, BERT_PRETRAINING_FAMILY, {"to_labels": "classifier"})
    ids, keep = batch()
    expected = theirs(ids, attention_mask=keep.long()).logits
    torch.testing.assert_close(ours(ids, keep=keep)[keep], expected[keep], atol=1e-5, rtol=1e-4)


def test_a_span_extractor_and_its_loss() -> None:
    theirs: Any = hf.BertForQuestionAnswering(hf.BertConfig(**{**SIZES, "num_labels": 2}))
    fill_with_fan_in(theirs.eval())
    config = BERT_PRETRAINING_FAMILY.config_from_hf(theirs.config.to_dict())
    ours = SpanExtractor(Bert(config, pooler=False))
    with_their_trunk(ours, theirs, BERT_PRETRAINING_FAMILY, {"to_ends": "qa_outputs"})
    ids, keep = batch()
    first, last = torch.tensor([2, 0, 5]), torch.tensor([4, 3, 5])
    expected = theirs(ids, attention_mask=keep.long(), start_positions=first, end_positions=last)
    start, end = ours(ids, keep=keep)
    torch.testing.assert_close(start[keep], expected.start_logits[keep], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(end[keep], expected.end_logits[keep], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(span_loss(start, end, first, last), expected.loss)


def test_equal_logits_lose_the_logarithm_of_the_length() -> None:
    zeros, first = torch.zeros(2, 8), torch.tensor([3, 5])
    assert math.isclose(float(span_loss(zeros, zeros, first, first)), math.log(8), rel_tol=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_the_best_span_is_the_best_of_all(T: int, max_length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 3, T, generator=generator)
    allowed = torch.rand(3, T, generator=generator) < 0.6
    allowed[:, seed % T] = True
    found = best_span(start, end, allowed=allowed, max_length=max_length)
    for row in range(3):
        scores = {
            (i, j): float(start[row, i] + end[row, j])
            for i in range(T)
            for j in range(i, min(T, i + max_length))
            if allowed[row, i] and allowed[row, j]
        }
        best = max(scores, key=lambda span: scores[span])
        assert (int(found.first[row]), int(found.last[row])) == best
        assert math.isclose(float(found.score[row]), scores[best], rel_tol=1e-6)


def test_an_answer_never_ends_before_it_begins() -> None:
    """Each argmax by itself would say: from 3 to 0."""
    start = torch.tensor([[1.0, 0.0, 0.0, 5.0]])
    end = torch.tensor([[6.0, 0.0, 0.0, 1.0]])
    assert best_span(start, end)[:2] == (torch.tensor([0]), torch.tensor([0]))


def test_pooling_by_hand() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)  # rows [0 1] [2 3] [4 5] and [6 7] [8 9] [10 11]
    keep = torch.tensor([[True, True, False], [False, True, True]])
    assert pool_hidden(hidden, keep, "first").tolist() == [[0, 1], [8, 9]]
    assert pool_hidden(hidden, keep, "last").tolist() == [[2, 3], [10, 11]]
    assert pool_hidden(hidden, keep, "mean").tolist() == [[1, 2], [9, 10]]
    assert pool_hidden(hidden, None, "last").tolist() == [[4, 5], [10, 11]]


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_padding_does_not_change_a_label(pool: Any) -> None:
    config = BertConfig(
        vocab_size=37, d_model=24, num_heads=4, num_layers=2, max_seq_len=20, dropout=0.0
    )
    model = SequenceClassifier(Bert(config, pooler=False), 3, pool=pool).eval()
    fill_with_fan_in(model)
    ids = random_ids(2, 6, high=37)
    longer = torch.cat((ids, torch.zeros(2, 4, dtype=torch.int64)), 1)
    torch.testing.assert_close(model(longer), model(ids))


def test_a_decoder_as_an_encoder() -> None:
    """Its last real vector, whatever padding follows; and nothing of the future in the others."""
    config = GPTConfig(vocab_size=37, d_model=24, num_heads=4, num_layers=2, max_seq_len=20)
    decoder = fill_with_fan_in(GPT(config).eval())
    encoder = DecoderFeatures(decoder)
    model = SequenceClassifier(encoder, 3, pool="last").eval()
    fill_with_fan_in(model.to_labels, seed=4)
    ids = random_ids(3, 10, high=37)
    keep = padded(ids, [10, 4, 7], 0)
    together = model(ids, keep=keep)
    for row, length in enumerate([10, 4, 7]):
        alone = model(ids[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone)
    changed = ids.clone()
    changed[:, 6:] = 5
    torch.testing.assert_close(encoder(changed)[:, :6], encoder(ids)[:, :6])
    with pytest.raises(ValueError, match="no token types"):
        encoder(ids, types=torch.zeros_like(ids))


def test_bad_input() -> None:
    hidden = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="pool is 'max'"):
        pool_hidden(hidden, None, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no real token"):
        pool_hidden(hidden, torch.zeros(2, 3, dtype=torch.bool), "mean")
    with pytest.raises(ValueError, match=r"keep is \(2, 2\)"):
        pool_hidden(hidden, torch.ones(2, 2, dtype=torch.bool), "mean")
    config = BertConfig(vocab_size=37, d_model=24, num_heads=4, num_layers=1)
    encoder = Bert(config)
    with pytest.raises(ValueError, match="num_labels is 0"):
        SequenceClassifier(encoder, 0)
    with pytest.raises(ValueError, match="num_labels is -1"):
        TokenClassifier(encoder, -1)
    with pytest.raises(ValueError, match="pool is 'cls'"):
        SequenceClassifier(encoder, 2, pool="cls")  # type: ignore[arg-type]
    row = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="max_length is 0"):
        best_span(row, row, max_length=0)
    with pytest.raises(ValueError, match=r"must be \(B, T\)"):
        best_span(row, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="no place"):
        best_span(row, row, allowed=torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"allowed is \(1, 3\)"):
        best_span(row, row, allowed=torch.ones(1, 3, dtype=torch.bool))
