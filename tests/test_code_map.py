"""The picture of the code in the README is drawn from the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import code_map

ROOT = Path(__file__).parent.parent


def test_the_readme_s_picture_is_as_the_code_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert code_map.renew(text) == text, "run: python scripts/code_map.py"


def test_the_readme_s_table_names_the_modules_that_there_are():
    """A topic's row names only modules of its folder, and all that other topics use."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|[^|]*\| ([^|]*)\|[^|]*\|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 16))
    homes = code_map.module_homes()
    shown = code_map.shown_modules(homes, code_map.direct_imports())
    for number, title, names in rows:
        named = set(re.findall(r"`(\w+)`", names))
        own = {name for name, topic in homes.items() if topic.startswith(f"{int(number):02}-")}
        assert named <= own, f"topic {number} has no {named - own}"
        assert own & set(shown) <= named, f"row {number} lacks {own & set(shown) - named}"
        assert bool(own) == ("](" in title), "a topic that has something is linked"


def test_modules_do_not_import_each_other_in_circles():
    used = code_map.direct_imports()
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in sorted(used[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in used:
        visit(name, ())


@pytest.fixture
def tree(tmp_path):
    files = {
        "01-a/base.py": "",
        "01-a/lab.py": "",
        "02-b/helper.py": "import base, lab\n",
        "02-b/middle.py": "from helper import x\n\n\ndef f():\n    import base\n",
        "02-b/alone.py": "import base\n",
        "03-c/pretrain.py": "from middle import f\nimport base\n"
        "if TYPE_CHECKING:\n    from helper import Type\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_own_helpers_are_folded_and_implied_arrows_left_out(tree):
    assert code_map.draw(tree).splitlines() == [
        "```mermaid",
        "flowchart LR",
        '    subgraph t01["01 a"]',
        "        base",
        "    end",
        '    subgraph t02["02 b"]',
        "        middle",
        "    end",
        '    subgraph t03["03 c"]',
        "        pretrain",
        "    end",
        "    base --> middle",
        "    middle --> pretrain",
        "```",
    ]


def test_the_picture_is_renewed_between_its_markers(tree, capsys):
    (tree / "README.md").write_text("a\n<!-- code map -->\nold\n<!-- /code map -->\nb\n")
    assert code_map.main([], tree) == 0
    text = (tree / "README.md").read_text()
    assert text == f"a\n<!-- code map -->\n{code_map.draw(tree)}\n<!-- /code map -->\nb\n"
    assert code_map.main([], tree) == 0
    assert capsys.readouterr().out == "drawn anew\nthe picture is as the code is\n"
    with pytest.raises(ValueError, match="once"):
        code_map.renew("no markers", tree)
