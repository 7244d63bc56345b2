"""A translation that fits in a minute: spelled-out numbers, from English into German.

The smallest real pair of languages with everything a translator must do: words that correspond
one to one (three, drei), a word order that differs (forty seven is "seven and forty"), a form
that depends on a neighbour (eins, but ein hundert) and a word that the source has not (und).
German writes a number as one word; here its parts stand apart, as words.
"""

from __future__ import annotations

import numpy as np

_ENGLISH = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
    "eighteen", "nineteen",
]  # fmt: skip
_ENGLISH_TENS = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]  # fmt: skip
_GERMAN = [
    "null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun",
    "zehn", "elf", "zwölf", "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn",
    "achtzehn", "neunzehn",
]  # fmt: skip
_GERMAN_TENS = [
    "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig",
    "neunzig",
]  # fmt: skip
LARGEST_NUMBER = 999_999


def english_number(number: int) -> list[str]:
    """Spell a number: 2047 -> two thousand forty seven.

    Raises ValueError outside 0 … 999,999.
    """
    _check(number)
    thousands, rest = divmod(number, 1000)
    if thousands:
        return [*english_number(thousands), "thousand", *(english_number(rest) if rest else [])]
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return [_ENGLISH[hundreds], "hundred", *(english_number(rest) if rest else [])]
    if number < 20:
        return [_ENGLISH[number]]
    tens, units = divmod(number, 10)
    return [_ENGLISH_TENS[tens - 2], *([_ENGLISH[units]] if units else [])]


def german_number(number: int) -> list[str]:
    """Spell a number: 2047 -> zwei tausend sieben und vierzig; 101 -> ein hundert eins.

    Raises ValueError outside 0 … 999,999.
    """
    _check(number)
    return _german(number, last=True)


def number_pairs(count: int, *, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Different numbers, drawn without repetition, as (English words, German words).

    One draw in ten is from below 1,000, so that short ones are not forgotten. The pairs of a
    larger count begin with those of a smaller one: split the list to keep some aside.

    Raises ValueError for a count outside 1 … 100,000.
    """
    if not 1 <= count <= 100_000:
        raise ValueError(f"count must lie in 1 … 100,000, got {count}")
    generator = np.random.default_rng(seed)
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        low = generator.random() < 0.1
        numbers[int(generator.integers(1000 if low else LARGEST_NUMBER + 1))] = None
    return [(english_number(n), german_number(n)) for n in numbers]


def _german(number: int, *, last: bool) -> list[str]:
    """`last`: nothing follows, so a one at the end is eins."""
    thousands, rest = divmod(number, 1000)
    if thousands:
        tail = _german(rest, last=last) if rest else []
        return [*_german(thousands, last=False), "tausend", *tail]
    hundreds, rest = divmod(number, 100)
    if hundreds:
        tail = _german(rest, last=last) if rest else []
        return ["ein" if hundreds == 1 else _GERMAN[hundreds], "hundert", *tail]
    if number < 20:
        return ["ein" if number == 1 and not last else _GERMAN[number]]
    tens, units = divmod(number, 10)
    if not units:
        return [_GERMAN_TENS[tens - 2]]
    return ["ein" if units == 1 else _GERMAN[units], "und", _GERMAN_TENS[tens - 2]]


def _check(number: int) -> None:
    if not 0 <= number <= LARGEST_NUMBER:
        raise ValueError(f"number must lie in 0 … {LARGEST_NUMBER:,}, got {number}")
