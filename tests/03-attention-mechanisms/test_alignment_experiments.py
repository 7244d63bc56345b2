"""Translation with attention: batches, the truth about alignments, and a model that learns."""

from __future__ import annotations

import pytest
import torch

from alignment_experiments import (
    ATTENTIONS,
    diagonal_error_rate,
    exact_translations,
    new_translator,
    sure_and_possible,
    train_translator,
    translation_batch,
    translation_data,
    translator_error_rate,
    translator_weights,
    words_right,
)
from sequence_data import Vocabulary
from tiny_world import SentencePair


@pytest.fixture(scope="module")
def data():
    return translation_data(train=200, test=40)


def test_data_and_batches(data):
    seen = {tuple(pair.source) for pair in data.train}
    assert all(tuple(pair.source) not in seen for pair in data.test)
    pairs = data.train[:5]
    source, lengths, given, wanted = translation_batch(data, pairs)
    begin, end = data.target_words.id(Vocabulary.BEGIN), data.target_words.id(Vocabulary.END)
    for row, pair in enumerate(pairs):
        assert data.source_words.decode(source[row, : lengths[row]]) == pair.source
        n = len(pair.target)
        assert given[row, 0] == begin
        assert wanted[row, n] == end
        assert torch.equal(given[row, 1 : n + 1], wanted[row, :n])
        assert (wanted[row, n + 1 :] == -100).all()


def test_sure_where_a_word_has_one_counterpart():
    pair = SentencePair(["a", "b", "c"], ["x", "y"], ((0, 0), (1, 0), (2, 1)))
    sure, possible = sure_and_possible(pair)
    assert sure == {(2, 1)}
    assert possible == {(0, 0), (1, 0), (2, 1)}
    assert 0.0 <= diagonal_error_rate([pair]) <= 1.0


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_attention_plugs_in_and_padding_changes_nothing(data, kind):
    model = new_translator(data, kind, d_model=12, seed=0).eval()
    pairs = sorted(data.train[:30], key=lambda pair: len(pair.source))
    short, long = pairs[0], pairs[-1]
    source, lengths, given, _ = translation_batch(data, [short, long])
    together = model(source, lengths, given)
    source, lengths, given, _ = translation_batch(data, [short])
    torch.testing.assert_close(model(source, lengths, given)[0], together[0, : given.shape[1]])
    if kind == "none":
        return
    weights = translator_weights(model, data, [short, long])[0]
    real = weights[: len(short.target), : len(short.source)]
    torch.testing.assert_close(real.sum(-1), torch.ones(len(short.target)))


def test_a_few_sentences_are_learned_by_heart(data):
    few = type(data)(
        train=data.train[:6],
        test=data.test,
        source_words=data.source_words,
        target_words=data.target_words,
    )
    model = new_translator(few, "additive", d_model=24, seed=0)
    losses = train_translator(model, few, steps=180, seed=0)
    assert losses[-1] < 0.1 < losses[0]
    assert all(exact_translations(model.eval(), few, few.train))
    assert all(hit == real for hit, real in words_right(model, few, few.train))
    assert translator_error_rate(model, few, few.train) <= 1.0


def test_an_unknown_attention_is_refused(data):
    with pytest.raises(ValueError, match="must be one of"):
        new_translator(data, "hard", d_model=8, seed=0)
