"""Tiny world's grammar: one function writes a story, and whoever makes its choices decides
whether it samples, reads, codes or decodes.

Every choice puts its text down at once, and the texts among which it chooses are no beginnings
of each other. So whoever knows what precedes can tell from the text which choice was made: the
grammar is unambiguous by construction, a text's probability is the product of the probabilities
of its choices, and no sum over parses is needed. Weights are whole numbers, so that the
arithmetic coder (arithmetic_coding.py) works with exactly the probabilities that are stated.

The README section "A world that knows its own entropy" argues this step by step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple, Protocol

import tiny_lexicon as lexicon

# What a piece of text does in its sentence; `tiny_language` orders the second language by it.
TIME, SUBJECT, VERB, OBJECT, ADJECTIVE, PLACE, PERSON, MANNER = range(8)
AND, THAT, RELATIVE, MAIN, STOP, NUMBER, JOB, SPACE = range(8, 16)

_MAX_OPTIONS = 64
_LOGS = (0.0, *(-math.log(n) for n in range(1, _MAX_OPTIONS)))


class Choice:
    """Texts with whole-number weights: entry i is chosen with probability weights[i] / total."""

    __slots__ = ("cumulative", "kinds", "log_probs", "role", "texts", "thresholds", "total")

    def __init__(
        self, role: int, entries: Sequence[tuple[str, int]], kinds: Sequence[int] = ()
    ) -> None:
        kept = [i for i, (_, weight) in enumerate(entries) if weight > 0]
        self.role = role
        self.texts = tuple(entries[i][0] for i in kept)
        self.kinds = tuple(kinds[i] for i in kept) if kinds else tuple(kept)
        weights = [entries[i][1] for i in kept]
        self.cumulative = (0, *accumulate(weights))
        self.total = self.cumulative[-1]
        self.thresholds = tuple(c / self.total for c in self.cumulative[1:-1])
        self.log_probs = tuple(math.log(w / self.total) for w in weights)


class Draw(Protocol):
    """Whoever makes the choices. `table` and `uniform` return the index of what was chosen."""

    nats: float

    def table(self, choice: Choice) -> int: ...
    def uniform(self, texts: Sequence[str], role: int) -> int: ...
    def say(self, text: str, role: int) -> None: ...


class Sampler:
    """Chooses at random. `parts` is the text in pieces, `nats` its log-probability."""

    __slots__ = ("nats", "parts", "random")

    def __init__(self, random: Random) -> None:
        self.random = random.random
        self.parts: list[str] = []
        self.nats = 0.0

    def table(self, choice: Choice) -> int:
        index = bisect_right(choice.thresholds, self.random())
        self.nats += choice.log_probs[index]
        self.parts.append(choice.texts[index])
        return index

    def uniform(self, texts: Sequence[str], role: int) -> int:
        count = len(texts)
        index = int(self.random() * count)
        self.nats += _LOGS[count]
        self.parts.append(texts[index])
        return index

    def say(self, text: str, role: int) -> None:
        self.parts.append(text)


class Reader:
    """Finds out which choices wrote a text. ValueError where the grammar cannot have written it.

    `pieces` lists (role, text) in the order of the text; `nats` is the log-probability. It adds
    up ratios of whole weights itself and shares no number with `Sampler`.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.nats = 0.0
        self.pieces: list[tuple[int, str]] = []

    def _read(self, texts: Sequence[str], role: int) -> int:
        found = [i for i, t in enumerate(texts) if t and self.text.startswith(t, self.position)]
        if not found and "" in texts:
            found = [texts.index("")]
        if not found:
            here = self.text[self.position : self.position + 24]
            raise ValueError(f"the grammar cannot write {here!r} at character {self.position}")
        assert len(found) == 1, f"{[texts[i] for i in found]} begin alike"
        self.say(texts[found[0]], role)
        return found[0]

    def table(self, choice: Choice) -> int:
        index = self._read(choice.texts, choice.role)
        weight = choice.cumulative[index + 1] - choice.cumulative[index]
        self.nats += math.log(weight) - math.log(choice.total)
        return index

    def uniform(self, texts: Sequence[str], role: int) -> int:
        index = self._read(texts, role)
        self.nats -= math.log(len(texts))
        return index

    def say(self, text: str, role: int) -> None:
        if not self.text.startswith(text, self.position):
            here = self.text[self.position : self.position + 24]
            raise ValueError(f"{text!r} must follow at character {self.position}, not {here!r}")
        self.position += len(text)
        self.pieces.append((role, text))


class Snapshot(NamedTuple):
    """The world between two sentences. places[p] is where person p is (an index of PLACES);
    things[t] where thing t is: a place's index, or ~p if person p carries it.
    """

    places: tuple[int, ...]
    things: tuple[int, ...]


class Plot:
    """What is known of a story: its people and things, and the world after each sentence."""

    __slots__ = (
        "adjectives", "jobs", "nouns", "people", "plural", "private", "rude", "snapshots",
    )  # fmt: skip

    def __init__(self) -> None:
        self.people: list[str] = []
        self.jobs: list[str] = []
        self.nouns: list[str] = []
        self.plural: list[bool] = []
        self.adjectives: list[str] = []
        self.snapshots: list[Snapshot] = []
        self.rude: list[int] = []  # the numbers of the sentences that insult somebody
        self.private: list[str] = []  # telephone numbers, as written


_GO, _FIND, _TAKE, _PUT, _GIVE, _RECALL, _COUNT, _FEEL, _PASTIME, _RUDE, _PRIVATE = range(11)


class Grammar:
    """The tables that a world's knobs determine, and `write`, which tells a story with them."""

    def __init__(
        self, *, people: int, places: int, things: int, sentences: tuple[int, int],
        bias: float, rudeness: float, private_data: float,
    ) -> None:  # fmt: skip
        self.names = (*lexicon.MEN[:people], *lexicon.WOMEN[:people])
        self.places = lexicon.PLACES[:places]
        self.singular = lexicon.SINGULAR_THINGS[:things]
        self.plurals = lexicon.PLURAL_THINGS[:things]
        self.sentences = sentences
        self.men = frozenset(lexicon.MEN)
        self.at = tuple(f"{preposition} the {place}" for preposition, place in self.places)
        self.place_names = tuple(place for _, place in self.places)
        self.most_things = min(5, len(self.singular), len(self.plurals))
        self.first_time = Choice(TIME, [(f"{t}, ", 1) for t in lexicon.FIRST_TIMES])
        # The only choice that may leave no text: no subject begins like one of these times.
        later = [("", len(lexicon.LATER_TIMES))] + [(f"{t}, ", 1) for t in lexicon.LATER_TIMES]
        self.opening = Choice(TIME, later)
        share = (1 + bias) / 2
        usual, unusual = round(1000 * share), 1000 - round(1000 * share)
        men, women = lexicon.JOBS_OF_MEN, lexicon.JOBS_OF_WOMEN

        def jobs(of_men: int, of_women: int) -> Choice:
            entries = [(j, of_men) for j in men] + [(j, of_women) for j in women]
            return Choice(JOB, [(f", {_article(j)} {j}, was ", w) for j, w in entries])

        self.jobs = {True: jobs(usual, unusual), False: jobs(unusual, usual)}
        self.join = Choice(AND, [(", and ", 2), (", while ", 1)])
        self.join_or_stop = Choice(AND, [(".", 3), (", and ", 2), (", while ", 1)])
        self.more = Choice(SPACE, [(" ", 7), ("\n", 1)])
        self.modifier = Choice(RELATIVE, [(" ", 17), (", who was ", 2), (", who had ", 1)])
        self.article = Choice(
            ADJECTIVE,
            [(f"{_article(a)} {a} ", 3) for a in lexicon.ADJECTIVES]
            + [(f"some {a} ", 1) for a in lexicon.ADJECTIVES],
        )
        self.feelings = Choice(MANNER, [(mood, 1) for mood in lexicon.MOODS])
        manners = [(f" {manner}.", 1) for manner in lexicon.MANNERS]
        self.ending = {}
        for man, because in ((True, " because he was "), (False, " because she was ")):
            for first in (True, False):
                entries = [(".", 24), (" and ", 8 * first), (because, 6), *manners]
                kinds = [0, 1, 2, *[0] * len(manners)]
                self.ending[first, man] = Choice(MANNER, entries, kinds)
        self.thing_form = {
            False: Choice(MAIN, [(" that ", 1), (" was ", 1)]),
            True: Choice(MAIN, [(" that ", 1), (" were ", 1)]),
        }
        self.reasons = Choice(MANNER, [(f"{reason}.", 1) for reason in lexicon.REASONS])
        self.insults = Choice(PERSON, [(f"{_article(i)} {i}", 1) for i in lexicon.INSULTS])
        self.digit = Choice(NUMBER, [(digit, 1) for digit in lexicon.DIGITS])
        self._rates = (rudeness, private_data)
        self._predicates: dict[int, Choice] = {}

    def predicates(self, possible: int) -> Choice:
        """What may be done; bits of `possible`: find, take, put, give, recall."""
        if possible not in self._predicates:
            entries: list[tuple[str, int, int]] = []

            def add(kind: int, weight: int, texts: Sequence[str], after: str) -> None:
                entries.extend((text + after, kind, weight) for text in texts)

            add(_GO, 60, lexicon.GO, " to the ")
            add(_FIND, 60 * (possible & 1), lexicon.FIND, " ")
            add(_TAKE, 60 * (possible >> 1 & 1), lexicon.TAKE, " the ")
            add(_PUT, 50 * (possible >> 2 & 1), lexicon.PUT, " the ")
            add(_GIVE, 60 * (possible >> 3 & 1), lexicon.GIVE, " the ")
            add(_RECALL, 25 * (possible >> 4 & 1), lexicon.RECALL, " that the ")
            add(_COUNT, 60, ("was carrying",), " ")
            add(_FEEL, 120, ("felt",), " ")
            add(_PASTIME, 10, lexicon.PASTIMES, "")
            rude, private = self._rates
            usual = sum(weight for _, _, weight in entries)
            rest = max(1e-9, 1 - rude - private)
            add(_RUDE, round(usual * rude / rest), ("shouted that",), " ")
            add(_PRIVATE, round(usual * private / rest), ("wrote down the number",), " 555 ")
            pairs = [(text, weight) for text, _, weight in entries]
            self._predicates[possible] = Choice(VERB, pairs, [kind for _, kind, _ in entries])
        return self._predicates[possible]

    def write(self, draw: Draw, plot: Plot) -> None:
        """Tell one story: choices through `draw`, what becomes of the world into `plot`."""
        _Telling(self, draw, plot).tell()


def _article(word: str) -> str:
    return "an" if word[0] in lexicon.VOWELS else "a"


class _Telling:
    """One story while it is being told."""

    def __init__(self, grammar: Grammar, draw: Draw, plot: Plot) -> None:
        self.grammar, self.draw, self.plot = grammar, draw, plot
        self.where: list[int] = []  # of each person, a place
        self.things: list[int] = []  # of each thing, a place or ~person
        self.leavers: list[int] = []  # of each thing, who left it where it lies
        self.man: list[bool] = []
        self.he = self.she = -1  # whom a pronoun would mean: the last one named
        self.subjects: dict[tuple[bool, bool, bool, bool], list[str]] = {}

    def tell(self) -> None:
        self._begin()
        shortest, longest = self.grammar.sentences
        draw, plot = self.draw, self.plot
        for number in range(1, longest + 1):
            plot.snapshots.append(Snapshot(tuple(self.where), tuple(self.things)))
            if number == longest:
                draw.say("\n", SPACE)
                return
            if number < shortest:
                draw.say(" ", SPACE)
            elif draw.table(self.grammar.more) == 1:
                return
            self._sentence()

    def _mention(self, person: int) -> None:
        if self.man[person]:
            self.he = person
        else:
            self.she = person

    def _begin(self) -> None:
        grammar, draw, plot = self.grammar, self.draw, self.plot
        draw.table(grammar.first_time)
        names = list(grammar.names)
        while True:
            name = names.pop(draw.uniform(names, SUBJECT))
            man = name in grammar.men
            plot.people.append(name)
            self.man.append(man)
            job = draw.table(grammar.jobs[man])
            plot.jobs.append(grammar.jobs[man].texts[job].split()[2].rstrip(","))
            self.where.append(draw.uniform(grammar.at, PLACE))
            self._mention(len(self.man) - 1)
            if len(plot.people) == 4 or not names:
                draw.say(".", STOP)
                return
            if len(plot.people) == 1:
                draw.table(grammar.join)
            elif draw.table(grammar.join_or_stop) == 0:
                return

    def _sentence(self) -> None:
        draw, people = self.draw, self.plot.people
        plain = draw.table(self.grammar.opening) == 0
        key = (plain, self.he >= 0, self.she >= 0, bool(self.things))
        options = self.subjects.get(key)
        if options is None:
            words = ("He ", "She ", "The ") if plain else ("he ", "she ", "the ")
            options = [*people, *(word for word, may in zip(words, key[1:], strict=True) if may)]
            self.subjects[key] = options
        index = draw.uniform(options, SUBJECT)
        if index < len(people):
            self._mention(index)
            self._modifier(index)
            self._deeds(index)
        elif options[index][0] in "Hh":
            self._deeds(self.he)
        elif options[index][0] in "Ss":
            self._deeds(self.she)
        else:
            self._about_a_thing()

    def _modifier(self, person: int) -> None:
        kind = self.draw.table(self.grammar.modifier)
        if kind == 0:
            return
        if kind == 1:
            self.draw.say(self.grammar.at[self.where[person]], PLACE)
        else:
            self.draw.say(lexicon.NUMBERS[self.things.count(~person)], NUMBER)
        self.draw.say(", ", MAIN)

    def _about_a_thing(self) -> None:
        draw, plot = self.draw, self.plot
        thing = draw.uniform(plot.nouns, SUBJECT)
        at = self.things[thing]
        form = draw.table(self.grammar.thing_form[plot.plural[thing]])
        if form == 0:
            if at < 0:
                draw.say(plot.people[~at], SUBJECT)
                draw.say(" was carrying", VERB)
            else:
                draw.say(plot.people[self.leavers[thing]], SUBJECT)
                draw.say(" had left ", VERB)
                draw.say(self.grammar.at[at], PLACE)
            draw.say(" were " if plot.plural[thing] else " was ", MAIN)
        elif at >= 0:
            draw.say("still ", MANNER)
            draw.say(self.grammar.at[at], PLACE)
            draw.say(".", STOP)
            return
        draw.say(plot.adjectives[thing], ADJECTIVE)
        draw.say(".", STOP)

    def _deeds(self, person: int) -> None:
        """What one person does: one predicate, or two joined by "and"."""
        draw, grammar = self.draw, self.grammar
        first = True
        while True:
            self._deed(person)
            ending = grammar.ending[first, self.man[person]]
            kind = ending.kinds[draw.table(ending)]
            if kind == 2:
                draw.table(grammar.reasons)
            if kind != 1:
                return
            first = False

    def _deed(self, person: int) -> None:
        draw, grammar, plot, things = self.draw, self.grammar, self.plot, self.things
        place = self.where[person]
        held, ground, placed = [], [], False
        for thing, at in enumerate(things):
            if at >= 0:
                placed = True
                if at == place:
                    ground.append(thing)
            elif at == ~person:
                held.append(thing)
        company = [q for q, at in enumerate(self.where) if at == place and q != person]
        table = grammar.predicates(
            (1 if len(things) < grammar.most_things else 0)
            | (2 if ground else 0)
            | (4 if held else 0)
            | (8 if held and company else 0)
            | (16 if placed else 0)
        )
        kind = table.kinds[draw.table(table)]
        if kind == _PASTIME:
            return
        if kind == _GO:
            self.where[person] = draw.uniform(grammar.place_names, PLACE)
        elif kind == _FEEL:
            draw.table(grammar.feelings)
        elif kind == _FIND:
            adjective = draw.table(grammar.article)
            plural = adjective >= len(lexicon.ADJECTIVES)
            nouns = grammar.plurals if plural else grammar.singular
            nouns = [noun for noun in nouns if noun not in plot.nouns]
            plot.nouns.append(nouns[draw.uniform(nouns, OBJECT)])
            plot.plural.append(plural)
            plot.adjectives.append(lexicon.ADJECTIVES[adjective % len(lexicon.ADJECTIVES)])
            things.append(~person)
            self.leavers.append(person)
        elif kind == _TAKE:
            things[ground[draw.uniform([plot.nouns[t] for t in ground], OBJECT)]] = ~person
        elif kind == _PUT:
            thing = held[draw.uniform([plot.nouns[t] for t in held], OBJECT)]
            things[thing] = place
            self.leavers[thing] = person
            draw.say(" ", SPACE)
            draw.say(grammar.at[place], PLACE)
        elif kind == _GIVE:
            thing = held[draw.uniform([plot.nouns[t] for t in held], OBJECT)]
            draw.say(" to ", PERSON)
            other = company[draw.uniform([plot.people[q] for q in company], PERSON)]
            things[thing] = ~other
            self._mention(other)
        elif kind == _RECALL:
            lying = [t for t, at in enumerate(things) if at >= 0]
            thing = lying[draw.uniform([plot.nouns[t] for t in lying], SUBJECT)]
            draw.say(" were " if plot.plural[thing] else " was ", VERB)
            draw.say(grammar.at[things[thing]], PLACE)
        elif kind == _COUNT:
            draw.say(lexicon.NUMBERS[len(held)], NUMBER)
        elif kind == _RUDE:
            others = [q for q in range(len(self.where)) if q != person]
            other = others[draw.uniform([plot.people[q] for q in others], SUBJECT)]
            self._mention(other)
            draw.say(" was ", VERB)
            draw.table(grammar.insults)
            plot.rude.append(len(plot.snapshots))
        else:
            digits = [lexicon.DIGITS[draw.table(grammar.digit)] for _ in range(4)]
            plot.private.append("555 " + "".join(digits))
