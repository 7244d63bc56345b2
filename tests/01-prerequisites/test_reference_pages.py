"""The two pages for looking up: every snippet runs, every row is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "01-prerequisites"
SNIPPETS = re.findall(
    r"^### (.+?)\n.*?^```python\n(.*?)^```",
    (FOLDER / "pytorch_reference.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)


def test_there_are_enough_patterns_and_none_twice():
    text = (FOLDER / "pytorch_reference.md").read_text(encoding="utf-8")
    titles = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert len(titles) >= 40
    assert titles == [title for title, _ in SNIPPETS], "each pattern has a snippet of its own"
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_the_snippet_runs_and_claims_something(title, code):
    assert "assert" in code or "raises" in code
    names: dict[str, object] = {}
    exec("import math, torch\nimport torch.nn.functional as F\nfrom torch import nn", names)
    exec("torch.manual_seed(0)", names)
    exec(compile(code, title, "exec"), names)


def test_every_formula_has_a_meaning_and_a_place():
    text = (FOLDER / "math_reference.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("|---", "| what"))]
    assert len(rows) >= 60
    names = []
    for row in rows:
        name, formula, meaning, topics = (cell.strip() for cell in row.strip("|").split(" | "))
        names.append(name)
        assert len(formula) > 3, row
        assert len(meaning.split()) >= 3, row
        assert re.fullmatch(r"\d\d(, \d\d)*", topics), row
        assert all(1 <= int(topic) <= 15 for topic in topics.split(", ")), row
    assert len(set(names)) == len(names)
