"""Tiny world as material for this topic: stories to pre-train on, questions to fine-tune on, and
four tasks as text in, text out.

The questions need a text to be *read*. A man and a woman are introduced, and then "she" does
something. Who was named first, the man or the woman? And is "she" the first or the second? One must
know which names are women's, which text can teach, and which of the two stood first, which a bag of
words cannot say; for the second question, both at once.

README, "What we measured". Letters: N texts, T length.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sequence_data import Vocabulary, pad_sequences
from tiny_language import words
from tiny_lexicon import MEN
from tiny_world import Question, Story, TinyWorld, TinyWorldConfig

SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[END]")
PAD_ID, CLS_ID, SEP_ID, MASK_ID, END_ID = range(5)
Ask = Literal["first", "pronoun"]
TASKS = ("translate", "summarise", "answer", "classify")
_QUESTION_WORDS = ("What", "is", "are", "the", "like", "?")
_GIST_WORDS = ("begins", "ends", "goes", "from", "to", "at", "and", "is", "left", "with", "nothing")
LABELS = ("polite", "rude")
_ENDLESS = 10**9  # stories are made as they are asked for


class LabelledTexts(NamedTuple):
    """ids: (N, T), padded on the right with PAD_ID. labels: (N,)."""

    ids: Tensor
    labels: Tensor


class TextTask(NamedTuple):
    """One example of text to text, in words; `source` begins with the task's name and a colon."""

    task: str
    source: list[str]
    target: list[str]


def reading_world() -> TinyWorld:
    """Stories of two sentences: who is where, and what one of them does. About 35 words."""
    return TinyWorld(
        TinyWorldConfig(
            min_sentences=2, max_sentences=2, num_people=12, num_places=12, num_things=12
        )
    )


def many_task_world() -> TinyWorld:
    """Stories of two or three sentences, one deed in seven rude."""
    return TinyWorld(TinyWorldConfig(min_sentences=2, max_sentences=3, rudeness=0.15))


def reading_vocabulary(world: TinyWorld) -> Vocabulary:
    """The world's words; none is unknown."""
    return Vocabulary(world.vocabulary, specials=SPECIALS)


def story_rows(
    world: TinyWorld, vocabulary: Vocabulary, count: int, *, seed: int, max_seq_len: int
) -> Tensor:
    """[CLS] story [SEP], cut at `max_seq_len`: (N, T), to pre-train on."""
    rows = [
        [CLS_ID, *vocabulary.encode(words(story.text)), SEP_ID][:max_seq_len]
        for story in world.stories(count, seed=seed)
    ]
    return pad_sequences(rows, pad_id=PAD_ID)[0]


def reading_questions(
    world: TinyWorld,
    vocabulary: Vocabulary,
    count: int,
    *,
    ask: Ask,
    seed: int,
    max_seq_len: int,
) -> LabelledTexts:
    """[CLS] story [SEP], and a label for each of `count` stories.

    Two people are introduced, a man and a woman, and the second sentence names neither of them, but
    says "he" or "she".

    Args:
        ask: "first" = is the person named first a man (0) or a woman (1)? "pronoun" = does the
            pronoun mean the person named first (0) or second (1)? The stories are the same.

    Raises:
        ValueError: a text that does not fit into `max_seq_len`, or an unknown question.
    """
    if ask not in get_args(Ask):
        raise ValueError(f"ask is {ask!r}; it must be one of {get_args(Ask)}")
    rows, labels = [], []
    for story, second in islice(_referring(world, seed), count):
        row = [CLS_ID, *vocabulary.encode(words(story.text)), SEP_ID]
        if len(row) > max_seq_len:
            raise ValueError(f"a text of {len(row)} tokens does not fit into {max_seq_len}")
        rows.append(row)
        labels.append(int(second if ask == "pronoun" else next(iter(story.people)) not in MEN))
    return LabelledTexts(pad_sequences(rows, pad_id=PAD_ID)[0], torch.tensor(labels))


def _referring(world: TinyWorld, seed: int) -> Iterator[tuple[Story, bool]]:
    """Stories without end whose last sentence says he or she, and whether that is the second."""
    for story in world.stories(_ENDLESS, seed=seed):
        people = list(story.people)
        if len(people) != 2 or (people[0] in MEN) == (people[1] in MEN):
            continue
        last = [word.lower() for word in words(story.sentences[-1])]
        pronouns = {"he", "she"}.intersection(last)
        if len(pronouns) == 1 and not {person.lower() for person in people}.intersection(last):
            yield story, (people[1] in MEN) == ("he" in pronouns)


def _asked(world: TinyWorld, seed: int, *, answers: int) -> Iterator[tuple[Story, Question]]:
    """Stories without end in which so many different things are said of things, and a question."""
    for number, story in enumerate(world.stories(_ENDLESS, seed=seed)):
        questions = [q for q in story.questions if q.kind == "what-like"]
        if len({question.answer for question in questions}) >= answers:
            yield story, questions[number % len(questions)]


def word_counts(texts: LabelledTexts, vocab_size: int) -> Tensor:
    """How often each id stands in each text: (N, V) fp32, padding not counted."""
    counts = torch.zeros(len(texts.ids), vocab_size)
    counts.scatter_add_(1, texts.ids, torch.ones(texts.ids.shape))
    counts[:, PAD_ID] = 0
    return counts


# --- text to text -----------------------------------------------------------------------------


def text_tasks(world: TinyWorld, count: int, *, seed: int) -> list[TextTask]:
    """`count` examples, the four tasks in turn, each about a story of its own.

    translate a sentence into the second language; summarise a story as its gist; answer what
    something is like; classify whether somebody is insulted, half of the examples each.
    """
    found: list[TextTask] = []
    asked = _asked(world, seed, answers=1)
    plain = world.stories(_ENDLESS, seed=seed)
    polite = (story for story in world.stories(_ENDLESS, seed=seed) if not story.rude_sentences)
    rude = (story for story in world.stories(_ENDLESS, seed=seed) if story.rude_sentences)
    stories = {"polite": polite, "rude": rude}
    for number in range(count):
        task = TASKS[number % len(TASKS)]
        if task == "answer":
            story, question = next(asked)
            source, target = [*words(question.text), *words(story.text)], [question.answer]
        elif task == "classify":
            label = LABELS[number // len(TASKS) % 2]
            source, target = words(next(stories[label]).text), [label]
        else:
            story = next(plain)
            if task == "summarise":
                source, target = words(story.text), words(story.gist)
            else:
                place = number % len(story.sentences)
                source = words(story.sentences[place])
                target = story.foreign_sentences[place].split()
        found.append(TextTask(task, [task, ":", *source], target))
    return found


def task_vocabulary(world: TinyWorld, *, sentinels: int = 0) -> Vocabulary:
    """Both languages, the questions' words, tasks and labels; one table for all."""
    symbols = {":", *TASKS, *LABELS, *_QUESTION_WORDS, *_GIST_WORDS}
    symbols |= {*world.vocabulary, *world.foreign_vocabulary}
    marks = tuple(f"[X{i}]" for i in range(sentinels))
    return Vocabulary(sorted(symbols), specials=(*SPECIALS, *marks))
