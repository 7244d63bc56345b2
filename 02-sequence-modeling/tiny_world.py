"""Tiny world: short English stories from a grammar that knows everything about what it wrote.

`TinyWorld().story(seed)` is a story with its exact log-probability, the state of the world after
each sentence, questions with answers, a gist, and a translation with its word alignments. The
entropy of the whole source is known, so a loss curve has a floor drawn under it.

    world = TinyWorld()
    story = world.story(0)
    story.text, story.log_probability, story.questions[0].answer

A corpus is the stories' texts, each closed by a newline. The newline is part of the code (it says
that the story is over), so `entropy_per_byte` counts it; `Story.text` is without it.

The README section "A world that knows its own entropy" shows why the grammar is unambiguous.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

import tiny_lexicon as lexicon
from arithmetic_coding import ArithmeticDecoder, ArithmeticEncoder
from tiny_grammar import Choice, Grammar, Plot, Reader, Sampler, Snapshot
from tiny_language import foreign_words, split_pieces, translate_pieces, words


@dataclass(frozen=True, kw_only=True)
class TinyWorldConfig:
    """The world's size and its planted faults.

    min_sentences, max_sentences: of a story; in between it ends after each with 1/8.
    num_people: of each sex; num_places, num_things: how many of the lexicon's are used.
    bias: from -1 to 1; (1 + bias) / 2 of the jobs follow the stereotype, 0 is fair.
    rudeness, private_data: share of the deeds that insult somebody, or give a phone number away.
    duplicates: share of the stories of `stories` that repeat an earlier one.
    """

    min_sentences: int = 4
    max_sentences: int = 20
    num_people: int = 20
    num_places: int = 30
    num_things: int = 47
    bias: float = 0.0
    rudeness: float = 0.0
    private_data: float = 0.0
    duplicates: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_sentences <= self.max_sentences:
            raise ValueError(
                "1 <= min_sentences <= max_sentences must hold, got "
                f"{self.min_sentences} and {self.max_sentences}"
            )
        sizes = (
            ("num_people", 1, len(lexicon.MEN)),
            ("num_places", 1, len(lexicon.PLACES)),
            ("num_things", 1, len(lexicon.SINGULAR_THINGS)),
        )
        for name, low, high in sizes:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")
        if not -1 <= self.bias <= 1:
            raise ValueError(f"bias must lie in [-1, 1], got {self.bias}")
        for name in ("rudeness", "private_data", "duplicates"):
            if not 0 <= getattr(self, name) <= 0.9:
                raise ValueError(f"{name} must lie in [0, 0.9], got {getattr(self, name)}")
        if self.rudeness + self.private_data > 0.9:
            raise ValueError("rudeness and private_data together must not exceed 0.9")


@dataclass(frozen=True)
class WorldState:
    """Where everybody and everything is. `places` maps a person to a place; `things` a thing to
    ("in", place) where it lies or ("with", person) who carries it.
    """

    places: dict[str, str]
    things: dict[str, tuple[str, str]]

    def carried_by(self, person: str) -> list[str]:
        """The things that a person carries, in the order in which they entered the story."""
        return [thing for thing, at in self.things.items() if at == ("with", person)]


@dataclass(frozen=True)
class Question:
    """A question about a story as a whole. kind: where-person, where-thing, who-has, how-many,
    before-place or what-like.
    """

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class SentencePair:
    """A sentence in both languages as words; alignment is (source index, target index) pairs."""

    source: list[str]
    target: list[str]
    alignment: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Story:
    """A story and what is known of it. All but text and log-probability is worked out on access.

    log_probability: of the text with its closing newline, in nats.
    duplicate_of: the number of the story that `TinyWorld.stories` repeated here, or None.
    """

    text: str
    log_probability: float
    plot: Plot = field(repr=False)
    grammar: Grammar = field(repr=False)
    duplicate_of: int | None = None

    @cached_property
    def states(self) -> tuple[WorldState, ...]:
        """The state of the world after each sentence."""
        return tuple(self._state(snapshot) for snapshot in self.plot.snapshots)

    def _state(self, snapshot: Snapshot) -> WorldState:
        places, people = self.grammar.place_names, self.plot.people
        return WorldState(
            {person: places[at] for person, at in zip(people, snapshot.places, strict=True)},
            {
                noun: ("in", places[at]) if at >= 0 else ("with", people[~at])
                for noun, at in zip(self.plot.nouns, snapshot.things, strict=False)
            },
        )

    @cached_property
    def _sentences(self) -> list[list[tuple[int, str]]]:
        reader = Reader(self.text + "\n")
        self.grammar.write(reader, Plot())
        return split_pieces(reader.pieces)

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The sentences; joined by spaces they are the text."""
        return tuple("".join(text for _, text in pieces) for pieces in self._sentences)

    @cached_property
    def _translations(self) -> list[tuple[list[str], tuple[tuple[int, int], ...]]]:
        return [translate_pieces(pieces) for pieces in self._sentences]

    @cached_property
    def foreign_sentences(self) -> tuple[str, ...]:
        """Each sentence in the second language, its words separated by spaces."""
        return tuple(" ".join(foreign) for foreign, _ in self._translations)

    @property
    def translation(self) -> str:
        """The whole story in the second language."""
        return " ".join(self.foreign_sentences)

    @property
    def alignments(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each sentence pairs (index into `words(sentence)`, index of the foreign word)."""
        return tuple(alignment for _, alignment in self._translations)

    @property
    def rude_sentences(self) -> tuple[int, ...]:
        """The numbers of the sentences in which somebody is insulted."""
        return tuple(self.plot.rude)

    @property
    def private_data(self) -> tuple[str, ...]:
        """The telephone numbers in the text."""
        return tuple(self.plot.private)

    @property
    def people(self) -> dict[str, str]:
        """Everybody in the story, with their jobs."""
        return dict(zip(self.plot.people, self.plot.jobs, strict=True))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """Questions about the end of the story, in a fixed order; the text answers all of them."""
        last, found = self.states[-1], []
        for person, place in last.places.items():
            found.append(Question(f"Where is {person}?", place, "where-person"))
            held = lexicon.NUMBERS[len(last.carried_by(person))].split()[0]
            answer = "zero" if held == "nothing" else held
            found.append(Question(f"How many things does {person} carry?", answer, "how-many"))
            ways = itertools.groupby(state.places[person] for state in self.states)
            visited = [place for place, _ in ways]
            if len(visited) > 1:
                text = f"Where was {person} before the {visited[-1]}?"
                found.append(Question(text, visited[-2], "before-place"))
        for index, (thing, (how, at)) in enumerate(last.things.items()):
            plural, like = self.plot.plural[index], self.plot.adjectives[index]
            be = "are" if plural else "is"
            where = last.places[at] if how == "with" else at
            found.append(Question(f"Where {be} the {thing}?", where, "where-thing"))
            if how == "with":
                found.append(Question(f"Who has the {thing}?", at, "who-has"))
            found.append(Question(f"What {be} the {thing} like?", like, "what-like"))
        return tuple(found)

    @property
    def gist(self) -> str:
        """One sentence: the first person's way, and what they carry at the end."""
        person = self.plot.people[0]
        begin, end = self.states[0].places[person], self.states[-1].places[person]
        moved = f"goes from the {begin} to the {end}"
        way = f"begins and ends at the {end}" if begin == end else moved
        held = [f"the {thing}" for thing in self.states[-1].carried_by(person)]
        return f"{person} {way} and is left with {' and '.join(held) or 'nothing'}."


class TinyWorld:
    """A world of one configuration. Stories depend on the configuration and the seed alone."""

    def __init__(self, config: TinyWorldConfig | None = None) -> None:
        self.config = config = config or TinyWorldConfig()
        self.grammar = Grammar(
            people=config.num_people,
            places=config.num_places,
            things=config.num_things,
            sentences=(config.min_sentences, config.max_sentences),
            bias=config.bias,
            rudeness=config.rudeness,
            private_data=config.private_data,
        )

    def story(self, seed: int) -> Story:
        """The story of a seed; the same on every machine and in every process.

        Raises ValueError for a negative seed, TypeError for one that is no integer: `Random` takes
        -1 for 1, and None for the time of day.
        """
        if not isinstance(seed, int):
            raise TypeError(f"seed must be an integer, got {seed!r}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        return self._sample(Random(seed), None)

    def _sample(self, random: Random, duplicate_of: int | None) -> Story:
        sampler, plot = Sampler(random), Plot()
        self.grammar.write(sampler, plot)
        text = "".join(sampler.parts)[:-1]
        return Story(text, sampler.nats, plot, self.grammar, duplicate_of)

    def stories(self, count: int, *, seed: int = 0) -> Iterator[Story]:
        """The stories 0 to count - 1 of a seed; the i-th depends on (seed, i) alone.

        With `duplicates` above 0, that share of them repeats an earlier story word for word.
        """
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        for i in range(count):
            number, original = i, None
            while self.config.duplicates and number:
                fate = Random(f"{seed}/{number}/copy")
                if fate.random() >= self.config.duplicates:
                    break
                number = original = fate.randrange(number)
            yield self._sample(Random(f"{seed}/{number}"), original)

    def log_probability(self, text: str) -> float:
        """Log-probability of a whole story's text in nats (its closing newline included).

        Raises ValueError where the grammar cannot write the text: a wrong word, a false statement
        about the world, or a text that ends too early.
        """
        if not isinstance(text, str):
            raise TypeError(f"a story is a string, got {text!r}")
        reader = Reader(text + "\n")
        self.grammar.write(reader, Plot())
        if reader.position != len(reader.text):
            raise ValueError(f"the story is over at character {reader.position}, the text is not")
        return reader.nats

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The English words and marks, as `words` splits them, in alphabetical order."""
        found: set[str] = set()
        for texts in self._all_texts():
            found.update(itertools.chain.from_iterable(words(text) for text in texts))
        return tuple(sorted(found))

    def _all_texts(self) -> Iterator[Sequence[str]]:
        grammar = self.grammar
        tables = [value for value in vars(grammar).values() if isinstance(value, Choice)]
        for several in (grammar.jobs, grammar.ending, grammar.thing_form):
            tables.extend(several.values())
        tables.extend(grammar.predicates(possible) for possible in range(32))
        yield from (table.texts for table in tables if table is not grammar.digit)
        yield from (grammar.names, grammar.at, grammar.singular, grammar.plurals)
        yield lexicon.NUMBERS
        yield ("The the He he She she still that was carrying had left to were",)
        yield lexicon.ADJECTIVES
        if self.config.private_data:
            yield [f"{number:04d}" for number in range(10_000)]

    @cached_property
    def foreign_vocabulary(self) -> tuple[str, ...]:
        """The second language's words and marks, in alphabetical order."""
        grammar = self.grammar
        found = foreign_words(grammar.names, grammar.place_names, grammar.singular, grammar.plurals)
        if self.config.private_data:
            found.update(["555", *(f"{number:04d}" for number in range(10_000))])
        return tuple(sorted(found))

    def translation_pairs(self, count: int, *, seed: int) -> list[SentencePair]:
        """The first `count` sentences of the stories of a seed, in both languages."""
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        pairs: list[SentencePair] = []
        # Far more stories than are needed: the generator stops at the pair that fills the list.
        for story in self.stories(count + 1, seed=seed):
            for english, (foreign, alignment) in zip(
                story.sentences, story._translations, strict=True
            ):
                if len(pairs) == count:
                    return pairs
                pairs.append(SentencePair(words(english), foreign, alignment))
        return pairs

    def entropy_per_byte(self, *, stories: int = 4000, seed: int = 1) -> tuple[float, float]:
        """The source's entropy in bits per byte of its corpus, sampled: (value, standard error).

        E[-log2 p(story)] / E[bytes]; the error is that of a ratio of two means.
        """
        if stories < 2:
            raise ValueError(f"stories must be 2 or more, got {stories}")
        bits, sizes = [], []
        for story in self.stories(stories, seed=seed):
            bits.append(-story.log_probability / math.log(2))
            sizes.append(len(story.text) + 1)
        ratio = sum(bits) / sum(sizes)
        squares = sum((b - ratio * n) ** 2 for b, n in zip(bits, sizes, strict=True))
        return ratio, math.sqrt(squares / (stories - 1) / stories) / (sum(sizes) / stories)

    def compress(self, texts: Iterable[str]) -> bytes:
        """Stories as one arithmetic code, coded with the grammar's own probabilities.

        Raises TypeError for a single string, ValueError where the grammar cannot write a text.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be several strings: give a list of one")
        encoder = ArithmeticEncoder()
        for text in texts:
            reader = _EncodingReader(text + "\n", encoder)
            self.grammar.write(reader, Plot())
            if reader.position != len(reader.text):
                raise ValueError(f"the story is over at character {reader.position}")
        return encoder.finish()

    def decompress(self, code: bytes, count: int) -> list[str]:
        """The first `count` stories of a code that `compress` wrote.

        The code does not say how many there are: a larger count goes on with stories that nobody
        wrote. Raises ValueError for a negative count.
        """
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        decoder, texts = ArithmeticDecoder(code), []
        for _ in range(count):
            draw = _DecodingDraw(decoder)
            self.grammar.write(draw, Plot())
            texts.append("".join(draw.parts)[:-1])
        return texts


class _EncodingReader(Reader):
    """Reads a text and passes each choice it finds to the encoder."""

    def __init__(self, text: str, encoder: ArithmeticEncoder) -> None:
        super().__init__(text)
        self._encoder = encoder

    def table(self, choice: Choice) -> int:
        index = super().table(choice)
        borders = choice.cumulative
        self._encoder.encode(borders[index], borders[index + 1], choice.total)
        return index

    def uniform(self, texts: Sequence[str], role: int) -> int:
        index = super().uniform(texts, role)
        self._encoder.encode(index, index + 1, len(texts))
        return index


class _DecodingDraw:
    """Makes the choices that the code names."""

    def __init__(self, decoder: ArithmeticDecoder) -> None:
        self._decoder = decoder
        self.parts: list[str] = []
        self.nats = 0.0

    def table(self, choice: Choice) -> int:
        target, index = self._decoder.target(choice.total), 0
        while choice.cumulative[index + 1] <= target:
            index += 1
        self._decoder.consume(choice.cumulative[index], choice.cumulative[index + 1], choice.total)
        self.parts.append(choice.texts[index])
        return index

    def uniform(self, texts: Sequence[str], role: int) -> int:
        index = self._decoder.target(len(texts))
        self._decoder.consume(index, index + 1, len(texts))
        self.parts.append(texts[index])
        return index

    def say(self, text: str, role: int) -> None:
        self.parts.append(text)
