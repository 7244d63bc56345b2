"""Tiny world's second language, and the alignment of every word.

It puts the verb last (subject, object, place, verb), the preposition behind its noun, and the
adjective behind its noun. Nouns have a gender that English does not show; adjectives and verbs
agree with it and with the number, across whatever stands between. Articles have no counterpart:
"the" is aligned with its noun. Idioms ("fell asleep") are one word, to which each English word
is aligned. Names stay as they are.

    Anna picked up some red keys .   ->   Anna <keys>i <red>i <picked up>a .
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

import tiny_lexicon as lexicon
from tiny_grammar import (
    ADJECTIVE,
    AND,
    JOB,
    MAIN,
    MANNER,
    NUMBER,
    OBJECT,
    PERSON,
    PLACE,
    RELATIVE,
    SPACE,
    SUBJECT,
    TIME,
    VERB,
)

_WORD = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")
_MARKS = {",", ".", ":"}
_ARTICLES = {"the", "a", "an", "some"}
_POSTPOSITIONS = {"in": "neb", "at": "par", "on": "sul", "to": "kum"}
_CONJUNCTIONS = {"and": "et", "while": "dum", "because": "kar", "that": "ke", "who": "kir"}
_PRONOUNS = {"he": "elo", "she": "ela"}
_VERBS_OF_STATE = {"was": "est", "were": "est", "had": "hab"}
# A sentence of the second language is a row of such slots, each clause from TIME to the verb.
_ORDER = {TIME: 0, SUBJECT: 1, OBJECT: 2, PERSON: 3, PLACE: 4, NUMBER: 5, ADJECTIVE: 5, MANNER: 6}
_VERB_SLOT = 9
_JOINTS = {"and", "because", "was", "he", "she"}  # "because he was" is no idiom
_ENDINGS = {(True, False): "o", (False, False): "a", (True, True): "on", (False, True): "an"}
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "tr")
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "au", "ei")


def words(text: str) -> list[str]:
    """Words, numbers and punctuation marks: "Kate ran." -> ["Kate", "ran", "."]."""
    return _WORD.findall(text)


def split_pieces(pieces: Iterable[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    """A story's (role, text) pieces by sentence, without the spaces between sentences."""
    sentences: list[list[tuple[int, str]]] = [[]]
    for role, text in pieces:
        closed = bool(sentences[-1]) and sentences[-1][-1][1].endswith(".")
        if role == SPACE and closed:
            if text == " ":
                sentences.append([])
        elif text:
            sentences[-1].append((role, text))
    return sentences


def _stem(lemma: str) -> str:
    """A pronounceable root, always the same one for a word or an idiom."""
    number = zlib.crc32(lemma.lower().encode())
    root = ""
    for _ in range(2):
        number, onset = divmod(number, len(_ONSETS))
        number, nucleus = divmod(number, len(_NUCLEI))
        root += _ONSETS[onset] + _NUCLEI[nucleus]
    return root + _ONSETS[number % 14]


def _masculine(noun: str) -> bool:
    """Names and pronouns have their own gender; a thing's is arbitrary, as in many languages."""
    if noun in lexicon.MEN or noun in lexicon.WOMEN:
        return noun in lexicon.MEN
    if noun.lower() in _PRONOUNS:
        return noun.lower() == "he"
    return zlib.crc32(noun.encode()) % 2 == 0


def _inflect(lemma: str, masculine: bool, plural: bool) -> str:
    return _stem(lemma) + _ENDINGS[masculine, plural]


class _Translator:
    """One sentence on its way: clauses are filled slot by slot and put down when they close."""

    def __init__(self) -> None:
        self.target: list[str] = []
        self.pairs: list[tuple[int, int]] = []
        self.clause: list[tuple[int, str, list[int]]] = []  # slot, foreign word, English indices
        self.index = 0  # of the English word
        self.waiting: list[int] = []  # an article: it goes with the noun to come
        self.post: tuple[str, int] | None = None  # a preposition: it goes behind that noun
        self.subject = (True, False)  # masculine, plural
        self.outer: tuple[bool, bool] | None = None  # the subject around a relative clause
        self.noun_adjective: list[tuple[str, int]] = []

    def put(self, slot: int, word: str, english: list[int]) -> None:
        self.clause.append((slot, word, english))

    def close(self) -> None:
        """Put the clause down in the foreign order; equal slots keep theirs."""
        for _, word, english in sorted(self.clause, key=lambda entry: entry[0]):
            self.pairs.extend((i, len(self.target)) for i in english)
            self.target.append(word)
        self.clause = []

    def outside(self, word: str, english: int) -> None:
        """A conjunction or mark: it stands between clauses."""
        self.close()
        self.pairs.append((english, len(self.target)))
        self.target.append(word)

    def phrase(self, slot: int, run: list[tuple[int, str]]) -> None:
        """A row of English words that is one foreign word in this slot."""
        if run:
            text = " ".join(word for _, word in run)
            agrees = slot == _VERB_SLOT
            word = _inflect(text, *self.subject) if agrees else _stem(text) + "e"
            self.put(slot, word, [i for i, _ in run])

    def noun(self, slot: int, word: str, index: int, *, plural: bool) -> None:
        gender = _masculine(word)
        name = word in lexicon.MEN or word in lexicon.WOMEN
        if name:
            foreign = word
        elif word.lower() in _PRONOUNS:
            foreign = _PRONOUNS[word.lower()]
        else:
            foreign = _inflect(word, gender, plural)
        self.put(slot, foreign, [*self.waiting, index])
        for adjective, at in self.noun_adjective:
            self.put(slot, _inflect(adjective, gender, plural), [at])
        if self.post is not None:
            self.put(slot, self.post[0], [self.post[1]])
        self.waiting, self.post, self.noun_adjective = [], None, []
        if slot == SUBJECT:
            self.subject = (gender, plural)


def translate_pieces(
    pieces: Sequence[tuple[int, str]],
) -> tuple[list[str], tuple[tuple[int, int], ...]]:
    """One sentence's (role, text) pieces -> (foreign words, alignment).

    The alignment's pairs are (index into `words` of the English sentence, index of the foreign
    word), sorted; every English word and every foreign word is in at least one.
    """
    t = _Translator()
    merged: list[tuple[int, str]] = []
    for role, text in pieces:
        if role == NUMBER and text.isdigit() and merged[-1][0] == NUMBER:
            merged[-1] = (role, merged[-1][1] + text)  # digits were chosen one by one
        else:
            merged.append((role, text))
    for role, text in merged:
        _translate_piece(t, role, text)
    t.close()
    assert not t.waiting
    assert t.post is None
    return t.target, tuple(sorted(t.pairs))


def _translate_piece(t: _Translator, role: int, text: str) -> None:
    run: list[tuple[int, str]] = []  # English words that wait to become one foreign word
    slot = {VERB: _VERB_SLOT, MAIN: _VERB_SLOT, AND: _VERB_SLOT, RELATIVE: _VERB_SLOT}.get(
        role, role
    )
    if role == MAIN and text != " that ":
        t.close()
        if t.outer is not None:
            t.subject, t.outer = t.outer, None
    idiom = role == VERB and (text in lexicon.PASTIMES or "number" in text)
    for word in words(text):
        index = t.index
        t.index += 1
        small = word.lower()
        if word in _MARKS:
            t.phrase(slot, run)
            run = []
            t.outside(word, index)
        elif word.isdigit():
            t.put(NUMBER, word, [index])
        elif idiom or (
            role in (TIME, MANNER) and small not in ("and", "because", "was", "he", "she")
        ):
            run.append((index, word))
        elif small in _CONJUNCTIONS:
            t.phrase(slot, run)
            run = []
            if (small == "that" and role == MAIN) or small == "who":
                t.outer = t.subject
            t.outside(_CONJUNCTIONS[small], index)
        elif small in _ARTICLES:
            t.waiting.append(index)
        elif (small in _POSTPOSITIONS and role != VERB) or small == "to":
            t.post = (_POSTPOSITIONS[small], index)
        elif small in _PRONOUNS:
            t.noun(SUBJECT, word, index, plural=False)
        elif role in (SUBJECT, OBJECT, PLACE, PERSON):
            t.noun(role, word, index, plural=word in lexicon.PLURAL_THINGS)
        elif role == ADJECTIVE and t.waiting:
            t.noun_adjective.append((word, index))
        elif role == ADJECTIVE:
            t.put(ADJECTIVE, _inflect(word, *t.subject), [index])
        elif role == JOB and small not in _VERBS_OF_STATE:
            t.put(SUBJECT, _inflect(word, *t.subject), [*t.waiting, index])
            t.waiting = []
        elif small in _VERBS_OF_STATE and (role != VERB or text.strip() == small):
            t.phrase(slot, run)
            run = []
            t.put(_VERB_SLOT, _VERBS_OF_STATE[small] + _ENDINGS[t.subject], [index])
        else:
            run.append((index, word))
    t.phrase(slot, run)


def foreign_words(
    names: Iterable[str], places: Iterable[str], singular: Iterable[str], plurals: Iterable[str]
) -> set[str]:
    """Every word of the second language, for a world with these names, places and things."""
    found = {
        *_MARKS,
        *_POSTPOSITIONS.values(),
        *_CONJUNCTIONS.values(),
        *_PRONOUNS.values(),
        *names,
    }
    fixed = (lexicon.FIRST_TIMES, lexicon.LATER_TIMES, lexicon.MANNERS, lexicon.MOODS)
    for texts in (*fixed, lexicon.REASONS, lexicon.NUMBERS, ("still",)):
        found.update(_stem(text) + "e" for text in texts)
    deeds = (lexicon.GO, lexicon.FIND, lexicon.TAKE, lexicon.PUT, lexicon.GIVE, lexicon.RECALL)
    verbs = ("felt", "was carrying", "had left", "shouted", "wrote down the number")
    for texts in (*deeds, lexicon.PASTIMES, verbs, lexicon.JOBS_OF_MEN, lexicon.JOBS_OF_WOMEN):
        found.update(_inflect(text, man, False) for text in texts for man in (True, False))
    for texts, plural in ((places, False), (singular, False), (plurals, True)):
        found.update(_inflect(noun, _masculine(noun), plural) for noun in texts)
    found.update(_inflect(noun, _masculine(noun), False) for noun in lexicon.INSULTS)
    for ending in _ENDINGS.values():
        found.update(_stem(adjective) + ending for adjective in lexicon.ADJECTIVES)
        found.update({"est" + ending, "hab" + ending})
    return found
