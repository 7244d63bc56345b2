"""A mutant: one way to be wrong that looks right, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One planted bug.

    `old` must stand exactly once in `module`; `new` takes its place in a copy of the tree, where
    `tests` must then fail. `symptom` is what a user would see and `finder` the check that finds
    it: the READMEs' debugging clinics are written from these two.
    """

    name: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]
    symptom: str
    finder: str
