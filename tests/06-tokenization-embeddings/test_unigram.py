"""Unigram beside `tokenizers`: segmentations, ids and offsets from the same pieces, and the
likelihood that training reaches; the lattice against enumeration of all cuts."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma as scipy_digamma
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from subword_model import count_words
from text_surfaces import ByteLevelText, MetaspaceText
from tokenizer_parity import library_texts, tricky_text
from unigram import Unigram, byte_piece, log_add
from unigram_training import Lattice, Round, digamma, seed_pieces, train_unigram

TOY = [
    ("<unk>", 0.0),
    ("a", -2.0),
    ("b", -2.5),
    ("ab", -3.0),
    ("abc", -7.0),
    ("bc", -3.5),
    ("c", -3.0),
]


@cache
def toy() -> Unigram:
    return Unigram(TOY, unk_id=0)


def all_cuts(word: str, scores: dict[str, float]) -> dict[tuple[str, ...], float]:
    """Every way of cutting a word into known pieces, with its log-probability."""
    found = {}
    for n in range(len(word)):
        for cuts in combinations(range(1, len(word)), n):
            parts = tuple(word[i:j] for i, j in zip((0, *cuts), (*cuts, len(word)), strict=True))
            if all(part in scores for part in parts):
                found[parts] = sum(scores[part] for part in parts)
    return found


# --- the lattice ------------------------------------------------------------------------------


@given(word=st.text("abc", min_size=1, max_size=9))
def test_lattice_is_the_enumeration_of_all_cuts(word):
    cuts = all_cuts(word, dict(TOY[1:]))
    model = toy()
    z = math.log(sum(map(math.exp, cuts.values())))
    assert model.log_probability(word) == pytest.approx(z, abs=1e-9)
    best = model.best_path(word)
    assert sum(edge.score for edge in best) == pytest.approx(max(cuts.values()))
    want: Counter[str] = Counter()
    for parts, score in cuts.items():
        for part in parts:
            want[part] += math.exp(score - z)  # type: ignore[assignment]
    have = {model.names[id_]: count for id_, count in model.expected_counts(word).items()}
    assert have == pytest.approx(dict(want), abs=1e-9)


@given(words=st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_array_lattice_is_the_lattice_word_by_word(words):
    pieces = [piece for piece, _ in TOY[1:]]
    scores = np.array([score for _, score in TOY[1:]])
    counts = {word: float(place + 1) for place, word in enumerate(words)}
    lattice = Lattice.build(counts, pieces)
    expected, likelihood = lattice.expected(scores)
    model = toy()
    assert likelihood == pytest.approx(
        sum(n * model.log_probability(word) for word, n in counts.items())
    )
    want = np.zeros(len(pieces))
    for word, n in counts.items():
        for id_, share in model.expected_counts(word).items():
            want[id_ - 1] += n * share
    np.testing.assert_allclose(expected, want, atol=1e-9)
    best, on_path = lattice.best(scores)
    viterbi = [sum(edge.score for edge in model.best_path(word)) for word in words]
    np.testing.assert_allclose(best[lattice.last], viterbi)
    assert scores[lattice.piece[on_path]].sum() == pytest.approx(sum(viterbi))


def test_pruned_lattice_is_the_lattice_of_what_is_left():
    pieces = [piece for piece, _ in TOY[1:]]
    counts = {"abcab": 2.0, "bc": 1.0, "abc": 3.0}
    new_id = np.array([1, 0, -1, 2, -1, 3])  # ab and bc go, a and b change places
    pruned = Lattice.build(counts, pieces).kept(new_id)
    fresh = Lattice.build(counts, ["b", "a", "abc", "c"])
    scores = np.array([-1.0, -2.0, -4.0, -3.0])
    for ours, theirs in zip(pruned.expected(scores), fresh.expected(scores), strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_em_never_lowers_the_likelihood():
    """The plain M step, shares of expected counts, is proven not to; training uses another."""
    counts = count_words(library_texts()[-2:], MetaspaceText())
    pieces = [*sorted(set("".join(counts))), *seed_pieces(counts)]
    lattice = Lattice.build({word: float(n) for word, n in counts.items()}, pieces)
    scores = np.full(len(pieces), -math.log(len(pieces)))
    seen = []
    for _ in range(8):
        expected, likelihood = lattice.expected(scores)
        seen.append(likelihood)
        scores = np.log(np.maximum(expected, 1e-30) / expected.sum())
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(seen))
    assert seen[-1] > seen[0] + 50


def test_samples_come_with_the_probability_of_their_cut():
    cuts = all_cuts("abcab", dict(TOY[1:]))
    for temperature in (1.0, 3.0):
        weights = {parts: math.exp(score / temperature) for parts, score in cuts.items()}
        total = sum(weights.values())
        generator = random.Random(3)
        seen: Counter[tuple[str, ...]] = Counter()
        n = 20_000
        for _ in range(n):
            path = toy().sample_path("abcab", generator, temperature=temperature)
            seen[tuple("abcab"[edge.start : edge.end] for edge in path)] += 1
        assert seen.keys() <= cuts.keys()
        for parts, weight in weights.items():
            share = weight / total
            assert abs(seen[parts] / n - share) < 5 * math.sqrt(share * (1 - share) / n) + 1e-4


def test_sampled_text_is_the_text():
    model = trained(byte_level=True)
    text = library_texts()[-1]
    generator = random.Random(0)
    cuts = [model.sample_encode(text, generator, temperature=2.0) for _ in range(3)]
    assert cuts[0] != cuts[1]
    assert all(model.decode_bytes(ids) == text.encode() for ids in cuts)


@given(a=st.floats(-800, 800), b=st.floats(-800, 800))
def test_log_add(a, b):
    assert log_add(a, b) == pytest.approx(np.logaddexp(a, b), abs=1e-9)
    assert log_add(-math.inf, a) == a == log_add(a, -math.inf)


def test_digamma_beside_scipy():
    x = np.concatenate([np.linspace(0.01, 20, 999), [1e3, 1e8]])
    np.testing.assert_allclose(digamma(x), scipy_digamma(x), rtol=1e-9, atol=1e-9)


# --- beside tokenizers ------------------------------------------------------------------------


@cache
def trained(byte_level: bool = False, byte_fallback: bool = False) -> Unigram:
    surface = ByteLevelText() if byte_level else MetaspaceText()
    return train_unigram(library_texts()[-8:], 1200, surface=surface, byte_fallback=byte_fallback)


def reference_for(model: Unigram) -> Tokenizer:
    reference = Tokenizer(
        models.Unigram(list(model.scored_pieces), model.unk_id, model.byte_fallback)
    )
    reference.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if isinstance(model.surface, ByteLevelText)
        else pre_tokenizers.Metaspace(prepend_scheme="never")
    )
    return reference


KINDS = [{}, {"byte_fallback": True}, {"byte_level": True}]


@given(text=tricky_text())
def test_ids_and_offsets_of_any_text(text):
    for kind in KINDS:
        model = trained(**kind)
        want = reference_for(model).encode(text)
        ids, offsets = model.encode_with_offsets(text)
        assert model.encode(text) == ids == want.ids
        assert offsets == want.offsets


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_offsets_of_real_text(kind):
    model = trained(**kind)
    reference = reference_for(model)
    for text in library_texts():
        want = reference.encode(text)
        ids, offsets = model.encode_with_offsets(text)
        assert model.encode(text) == ids == want.ids
        assert offsets == want.offsets


def test_ties_and_unknown_characters_as_in_tokenizers():
    """Of equal cuts the one found first stays; an unknown character costs more than any piece."""
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -2.0), ("bc", -5.0)]
    model = Unigram(pieces, unk_id=0)
    reference = reference_for(model)
    for text in ("ab", "abab", "abc", "bcb", "ac"):
        assert model.encode(text) == reference.encode(text).ids
    assert model.encode("ab") == [3]
    assert model.encode("abc") == [1, 4]


def test_same_segmentation_from_the_pieces_that_tokenizers_learnt():
    reference, theirs = trained_by_tokenizers()
    for text in library_texts():
        assert theirs.encode(text) == reference.encode(text).ids


@cache
def trained_by_tokenizers() -> tuple[Tokenizer, Unigram]:
    reference = Tokenizer(models.Unigram())
    reference.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    reference.train_from_iterator(library_texts()[-8:], trainer)
    model = json.loads(reference.to_str())["model"]
    return reference, Unigram(model["vocab"], unk_id=model["unk_id"])


def likelihood(model: Unigram, counts: Counter[str]) -> float:
    return sum(n * model.log_probability(word) for word, n in counts.items())


def test_training_likelihood_is_that_of_tokenizers():
    """Within half a per cent from its seeds; from seeds counted in the text, better."""
    counts = count_words(library_texts()[-8:], MetaspaceText())
    _, theirs = trained_by_tokenizers()
    same_seeds = train_unigram(library_texts()[-8:], 1200, seeds_by_word=True)
    assert len(same_seeds.vocab) == len(trained().vocab) == len(theirs.vocab) == 1200
    other = likelihood(theirs, counts)
    assert likelihood(same_seeds, counts) / other == pytest.approx(1.0, abs=0.005)
    assert likelihood(trained(), counts) > other  # both are negative
    total = sum(math.exp(score) for piece, score in trained().scored_pieces if piece != "<unk>")
    assert total == pytest.approx(1.0, abs=0.05)  # the last cut is not renormalised


# --- what training promises -------------------------------------------------------------------


def test_seeds_by_word_are_the_nodes_of_the_suffix_tree():
    words = {"banana": 1, "bandana": 9, "ban": 1}
    # "nan" is always followed by an a, so that "nana" says the same, and there is one of it only.
    assert seed_pieces(words, by_word=True) == {"an": 5, "ana": 3, "na": 3, "ban": 3}


def test_seeds_of_the_text_are_counted_with_the_words():
    """A word that shares nothing with others is a seed when it occurs twice."""
    seeds = seed_pieces({"xyz": 2, "abc": 1})
    assert seeds == {"xyz": 2, "yz": 2}
    text = ["xyz uvw " * 50]
    whole = train_unigram(text, 16)
    assert [whole.names[id_] for id_ in whole.encode("xyz uvw")][-1] == "▁uvw"
    spelt = train_unigram(text, 16, seeds_by_word=True)
    assert len(spelt.encode("xyz uvw")) > len(whole.encode("xyz uvw"))


def test_rounds_are_told():
    rounds: list[Round] = []
    train_unigram(library_texts()[-8:-4], 300, rounds=rounds)
    assert len(rounds) > 2
    assert all(a.pieces > b.pieces for a, b in pairwise(rounds))
    assert all(told.after > told.before for told in rounds[:1])


def test_every_character_is_a_piece():
    model = trained()
    assert set("".join(library_texts()[-8:]).replace(" ", "▁")) <= set(model.vocab)
    assert model.unk_id not in model.encode("".join(library_texts()[-8:]))


@given(text=tricky_text())
def test_byte_level_and_fallback_give_every_text_back(text):
    assert (
        trained(byte_level=True).decode_bytes(trained(byte_level=True).encode(text))
        == text.encode()
    )
    fallback = trained(byte_fallback=True)
    text = text.replace("▁", "")
    assert fallback.decode_bytes(fallback.encode(text)) == text.encode()


def test_a_byte_piece_cannot_be_typed():
    model = trained(byte_fallback=True)
    assert model.decode_bytes(model.encode("<0x0A>")) == b"<0x0A>"
    assert model.vocab[byte_piece(10)] not in model.encode("<0x0A>")
    assert reference_for(model).encode("<0x0A>").ids == model.encode("<0x0A>")


def test_unknown_neighbours_are_one_token():
    assert toy().encode("axyzb") == [1, 0, 2]
    assert toy().encode_with_offsets("axyzb")[1] == [(0, 1), (1, 4), (4, 5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Unigram([("a", 0.0), ("a", 0.0)]), "listed twice"),
        (lambda: Unigram([("a", math.nan)]), "no finite number"),
        (lambda: Unigram([("a", 0.0)], unk_id=1), "none of the 1 pieces"),
        (lambda: Unigram([("a", 0.0)], byte_fallback=True), "<0x00>"),
        (lambda: Unigram([("a", 0.0)]).encode("b"), "no unk_id"),
        (lambda: toy().sample_path("ab", random.Random(0), temperature=0), "temperature"),
        (lambda: train_unigram(["abc"], 3), "at least 5"),
        (lambda: train_unigram([], 30), "must be text"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change()
