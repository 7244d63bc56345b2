"""Tiny world: probabilities, state, questions, translation, planted faults."""

import itertools
import math
import re
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_lexicon as lexicon
from tiny_grammar import Choice, Grammar, Plot, Sampler
from tiny_language import _stem, words
from tiny_world import TinyWorld, TinyWorldConfig

WORLD = TinyWorld()
FAULTY = TinyWorld(TinyWorldConfig(bias=0.5, rudeness=0.05, private_data=0.05, duplicates=0.2))


@pytest.mark.parametrize("world", [WORLD, FAULTY], ids=["clean", "faulty"])
def test_the_reader_finds_the_probability_that_the_sampler_stated(world):
    for story in world.stories(300, seed=5):
        assert world.log_probability(story.text) == pytest.approx(story.log_probability, abs=1e-9)


class _Branch(Exception):
    """A choice that the prefix of choices does not cover yet."""


class _Enumerator:
    """Replays a prefix of choices, and says how many options the next one has."""

    def __init__(self, prefix):
        self.prefix, self.used, self.nats, self.parts = prefix, 0, 0.0, []

    def _choose(self, texts, probabilities):
        if self.used == len(self.prefix):
            raise _Branch(len(texts))
        index = self.prefix[self.used]
        self.used += 1
        self.nats += math.log(probabilities[index])
        self.parts.append(texts[index])
        return index

    def table(self, choice: Choice):
        borders = choice.cumulative
        shares = [(b - a) / choice.total for a, b in itertools.pairwise(borders)]
        return self._choose(choice.texts, shares)

    def uniform(self, texts, role):
        return self._choose(texts, [1 / len(texts)] * len(texts))

    def say(self, text, role):
        self.parts.append(text)


def test_all_stories_of_a_small_world_are_different_and_their_probabilities_add_up_to_one():
    config = TinyWorldConfig(
        min_sentences=1, max_sentences=1, num_people=1, num_places=1, num_things=1
    )
    world = TinyWorld(config)
    found = {}
    open_prefixes: list[tuple[int, ...]] = [()]
    while open_prefixes:
        prefix = open_prefixes.pop()
        draw = _Enumerator(prefix)
        try:
            world.grammar.write(draw, Plot())
        except _Branch as branch:
            open_prefixes.extend((*prefix, i) for i in range(branch.args[0]))
            continue
        text = "".join(draw.parts)[:-1]
        assert text not in found
        found[text] = draw.nats
    assert len(found) > 10_000
    assert math.fsum(math.exp(nats) for nats in found.values()) == pytest.approx(1, abs=1e-9)
    for text in list(found)[::997]:
        assert world.log_probability(text) == pytest.approx(found[text], abs=1e-9)


def test_no_entry_of_a_list_is_the_beginning_of_another():
    lists = [value for value in vars(lexicon).values() if isinstance(value, tuple)]
    things = (*lexicon.SINGULAR_THINGS, *lexicon.PLURAL_THINGS)
    for entries in (*lists, things, (*lexicon.MEN, *lexicon.WOMEN)):
        if not isinstance(entries[0], str) or entries is lexicon.NUMBERS:
            continue
        for one, other in itertools.permutations(entries, 2):
            assert not f"{other} ".startswith(f"{one} "), (one, other)
    for one, other in itertools.permutations(things, 2):
        assert not other.startswith(one), (one, other)


def test_two_ways_to_the_entropy_agree():
    value, error = WORLD.entropy_per_byte(stories=2000, seed=3)
    texts = [story.text for story in WORLD.stories(800, seed=9)]
    code = WORLD.compress(texts)
    coded = 8 * len(code) / sum(len(text) + 1 for text in texts)
    assert error < 0.01 * value
    assert coded == pytest.approx(value, rel=0.01)
    assert WORLD.decompress(code, len(texts)) == texts


def test_the_code_is_as_long_as_the_probabilities_say():
    stories = list(FAULTY.stories(200, seed=2))
    bits = -sum(story.log_probability for story in stories) / math.log(2)
    code = FAULTY.compress(story.text for story in stories)
    assert bits <= 8 * len(code) <= bits + 10


def test_sampled_frequencies_are_the_stated_probabilities():
    table = WORLD.grammar.predicates(0)
    draw = Sampler(Random(0))
    counts = [0] * len(table.texts)
    for _ in range(20_000):
        counts[draw.table(table)] += 1
    expected = [20_000 * math.exp(log) for log in table.log_probs]
    chi2 = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))
    freedom = len(counts) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


@given(st.integers(0, 2**60))
@settings(max_examples=30, deadline=None)
def test_a_story_is_its_sentences_and_each_has_a_state_and_a_translation(seed):
    story = WORLD.story(seed)
    assert " ".join(story.sentences) == story.text
    assert len(story.sentences) == len(story.states) == len(story.foreign_sentences)
    assert 4 <= len(story.sentences) <= 20
    english, foreign = set(WORLD.vocabulary), set(WORLD.foreign_vocabulary)
    for sentence, other, pairs in zip(
        story.sentences, story.foreign_sentences, story.alignments, strict=True
    ):
        source, target = words(sentence), other.split(" ")
        assert {i for i, _ in pairs} == set(range(len(source)))
        assert {j for _, j in pairs} == set(range(len(target)))
        assert set(source) <= english
        assert set(target) <= foreign


def test_the_state_says_what_the_text_says():
    """Statements about where things are, read with regular expressions, against the states."""
    checked = 0
    for story in WORLD.stories(400, seed=1):
        for sentence, state in zip(story.sentences, story.states, strict=True):
            for thing, place in re.findall(
                r"(\w+) (?:was|were) still (?:in|at|on) the (\w+)\.", sentence
            ):
                assert state.things[thing] == ("in", place)
                checked += 1
            for thing, person in re.findall(r"the (\w+) that (\w+) was carrying", sentence.lower()):
                assert state.things[thing] == ("with", person.capitalize())
                checked += 1
            moved = re.search(
                r"(?:^|, )([A-Z][a-z]+) (?:went|ran|drove|moved) to the (\w+)( |\.)", sentence
            )
            if moved and " and " not in sentence and moved[1] in state.places:
                assert state.places[moved[1]] == moved[2]
                checked += 1
    assert checked > 300


def test_number_agrees_across_the_relative_clause():
    singular, plural = 0, 0
    for story in WORLD.stories(1500, seed=4):
        for sentence in story.sentences:
            before = sentence.split(" that ")[0].split()
            if " that " in sentence and before[-2:-1] in (["the"], ["The"]):
                head = before[-1]
                verb = sentence.rstrip(".").split()[-2]
                assert verb == ("were" if head in lexicon.PLURAL_THINGS else "was"), sentence
                singular += verb == "was"
                plural += verb == "were"
    assert singular > 20
    assert plural > 20


def test_questions_have_the_answers_of_the_last_state():
    kinds = set()
    for story in WORLD.stories(60, seed=8):
        last = story.states[-1]
        for question in story.questions:
            kinds.add(question.kind)
            subject = words(question.text)[-2]
            if question.kind == "where-person":
                assert question.answer == last.places[subject]
            if question.kind == "who-has":
                assert subject in last.carried_by(question.answer)
            if question.kind == "before-place":
                assert question.answer != last.places[words(question.text)[2]]
            if question.kind in ("where-person", "before-place", "what-like", "who-has"):
                assert question.answer in story.text
        assert story.gist.startswith(next(iter(last.places)))
    assert len(kinds) == 6


def test_a_sentence_translated_by_hand():
    text = "One morning, Kate, a baker, was in the garden, and Tom, a pilot, was at the lake."
    text += " She found some red keys. The keys that Kate was carrying were red. He danced."
    assert WORLD.log_probability(text) < 0
    story = next(s for s in WORLD.stories(2000, seed=0) if " found some " in s.text)
    number = next(i for i, s in enumerate(story.sentences) if " found some " in s)
    english, foreign = words(story.sentences[number]), story.foreign_sentences[number].split()
    noun_at = english.index("some") + 2
    targets = [j for i, j in story.alignments[number] if i == noun_at]
    verb = [j for i, j in story.alignments[number] if english[i] == "found"]
    adjective = [j for i, j in story.alignments[number] if i == noun_at - 1]
    assert adjective == [targets[0] + 1]  # the adjective stands behind its noun
    assert verb[0] > adjective[0]  # and the verb behind both
    assert foreign[targets[0]][-2:] == foreign[adjective[0]][-2:]  # which agree
    assert foreign[targets[0]][-2:] in ("on", "an")


def test_different_words_have_different_roots():
    lemmas = [*lexicon.SINGULAR_THINGS, *lexicon.PLURAL_THINGS, *lexicon.ADJECTIVES]
    lemmas += [place for _, place in lexicon.PLACES]
    lemmas += [*lexicon.JOBS_OF_MEN, *lexicon.JOBS_OF_WOMEN, *lexicon.INSULTS, *lexicon.MOODS]
    lemmas += [*lexicon.REASONS, *lexicon.MANNERS, *lexicon.FIRST_TIMES, *lexicon.LATER_TIMES]
    lemmas += [*lexicon.GO, *lexicon.FIND, *lexicon.TAKE, *lexicon.PUT, *lexicon.GIVE]
    lemmas += [*lexicon.RECALL, *lexicon.PASTIMES]
    roots = [_stem(lemma) for lemma in lemmas]
    assert len(set(roots)) == len(set(lemmas))


def test_stories_depend_on_the_seed_and_their_number_alone():
    ten = [story.text for story in WORLD.stories(10, seed=7)]
    assert [story.text for story in WORLD.stories(20, seed=7)][:10] == ten
    assert [story.text for story in WORLD.stories(10, seed=8)] != ten
    code = (
        "from tiny_world import TinyWorld; print([s.text for s in TinyWorld().stories(10, seed=7)])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == repr(ten)


def test_planted_faults_are_where_the_truth_says():
    rude = private = 0
    for story in FAULTY.stories(300, seed=0):
        said = {i for i, s in enumerate(story.sentences) if "shouted that" in s}
        assert set(story.rude_sentences) == said
        assert story.text.count("555 ") == len(story.private_data)
        assert all(number in story.text for number in story.private_data)
        rude += len(said)
        private += len(story.private_data)
    assert rude > 20
    assert private > 20
    assert not any("555" in s.text or "shouted" in s.text for s in WORLD.stories(300, seed=0))


def test_duplicates_are_word_for_word_and_named():
    stories = list(FAULTY.stories(500, seed=3))
    copies = [i for i, story in enumerate(stories) if story.duplicate_of is not None]
    assert 60 < len(copies) < 140
    for i in copies:
        original = stories[i].duplicate_of
        assert original is not None
        assert original < i
        assert stories[i].text == stories[original].text
    originals = [story.text for story in stories if story.duplicate_of is None]
    assert len(set(originals)) == len(originals)


@pytest.mark.parametrize(("bias", "share"), [(-1, 0.0), (0, 0.5), (0.5, 0.75), (1, 1.0)])
def test_bias_is_the_share_of_stereotypes(bias, share):
    world = TinyWorld(TinyWorldConfig(bias=bias))
    pairs = [pair for story in world.stories(400) for pair in story.people.items()]
    as_expected = sum((n in lexicon.MEN) == (job in lexicon.JOBS_OF_MEN) for n, job in pairs)
    assert as_expected / len(pairs) == pytest.approx(share, abs=0.06)


def test_translation_pairs_are_the_first_sentences():
    pairs = WORLD.translation_pairs(25, seed=2)
    assert len(pairs) == 25
    assert WORLD.translation_pairs(10, seed=2) == pairs[:10]
    first = next(WORLD.stories(1, seed=2))
    assert pairs[0].source == words(first.sentences[0])
    assert pairs[0].target == first.foreign_sentences[0].split()
    assert WORLD.translation_pairs(0, seed=2) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Nonsense.",
        "One morning, Kate, a baker, was in the garden, and Tom, a pilot, was at the lake",
        "One morning, Kate, a baker, was in the garden, and Kate, a pilot, was at the lake.",
        "One morning, Kate, an baker, was in the garden, and Tom, a pilot, was at the lake.",
    ],
)
def test_what_the_grammar_cannot_write_is_refused(text):
    with pytest.raises(ValueError, match="character"):
        WORLD.log_probability(text)


def test_a_false_statement_and_a_text_that_goes_on_are_refused():
    text = "One morning, Kate, a baker, was in the garden, and Tom, a pilot, was at the lake. "
    rest = " He danced. She danced. He danced."
    assert WORLD.log_probability(text + "Kate was carrying nothing." + rest) < 0
    with pytest.raises(ValueError, match="nothing"):
        WORLD.log_probability(text + "Kate was carrying one thing." + rest)
    story = next(s for s in WORLD.stories(2000) if len(s.sentences) == 20)
    with pytest.raises(ValueError, match="must follow"):
        WORLD.log_probability(story.text + " He danced.")
    with pytest.raises(TypeError, match="string"):
        WORLD.log_probability(b"bytes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "knobs",
    [
        {"min_sentences": 0},
        {"min_sentences": 9, "max_sentences": 8},
        {"bias": 1.5},
        {"rudeness": -0.1},
        {"rudeness": 0.6, "private_data": 0.6},
        {"num_people": 0},
        {"num_things": 500},
    ],
)
def test_impossible_configurations_are_refused(knobs):
    with pytest.raises(ValueError, match="must"):
        TinyWorldConfig(**knobs)


def test_the_world_is_large_enough_to_be_interesting():
    assert len(WORLD.vocabulary) >= 300
    assert isinstance(WORLD.grammar, Grammar)


def test_pronouns_and_gifts():
    """A pronoun is the last one named of that sex; a gift changes hands."""
    gifts = pronouns = 0
    for story in WORLD.stories(3000, seed=6):
        men = [name for name in story.people if name in lexicon.MEN]
        for number, sentence in enumerate(story.sentences[1:], start=1):
            given = re.fullmatch(
                r"(?:[A-Z][\w ]+, )?\w+ (?:gave|handed|passed) the (\w+) to (\w+)\.", sentence
            )
            if given:
                assert story.states[number].things[given[1]] == ("with", given[2])
                gifts += 1
            moved = re.fullmatch(r"He (?:went|ran|drove|moved) to the (\w+)\.", sentence)
            named = [w for w in words(" ".join(story.sentences[:number])) if w in men]
            plain = not any(" that " in s for s in story.sentences[:number])
            if moved and len(men) > 1 and plain:
                assert story.states[number].places[named[-1]] == moved[1]
                pronouns += 1
    assert gifts > 3
    assert pronouns > 20
