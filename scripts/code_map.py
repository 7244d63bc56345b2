"""Draw how the code fits together, from its own imports, into the README.

    python scripts/code_map.py           renew the picture in README.md
    python scripts/code_map.py --print   only print it

Shown are the modules that another topic uses, and the command at the end; a module that only its
own topic uses counts as part of its users. An arrow leads from a module to one built on it. Arrows
that follow from others are left out: what is built on `transformer` is built on `attention` too.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import atomic_write

ROOT = Path(__file__).parent.parent
END = "pretrain"  # the command that everything leads to
# Used nearly everywhere: an arrow to all would hide the others.
EVERYWHERE = frozenset({"lab", "lab_results"})
BLOCK = re.compile(r"(<!-- code map -->\n).*?(<!-- /code map -->)", re.DOTALL)


def module_homes(root: Path = ROOT) -> dict[str, str]:
    """Module -> the folder of its topic."""
    return {path.stem: path.parent.name for path in sorted(root.glob("[0-9][0-9]-*/*.py"))}


def direct_imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the course's modules that it imports when it runs, not only for their types."""
    homes = module_homes(root)
    found: dict[str, set[str]] = {}
    for name, topic in homes.items():
        tree = ast.parse((root / topic / f"{name}.py").read_text(encoding="utf-8"))
        for_types = {
            inner
            for node in tree.body
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        nodes = [node for node in ast.walk(tree) if node not in for_types]
        names = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        names |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        found[name] = (names & homes.keys()) - {name}
    return found


def shown_modules(homes: Mapping[str, str], used: Mapping[str, set[str]]) -> list[str]:
    """Modules that another topic's module imports, and the end; in the order of topics."""
    shared = {u for name, us in used.items() for u in us if homes[u] != homes[name]}
    return sorted(
        (shared | {END} & homes.keys()) - EVERYWHERE, key=lambda name: (homes[name], name)
    )


def arrows(
    homes: Mapping[str, str], used: Mapping[str, set[str]], shown: Sequence[str]
) -> list[tuple[str, str]]:
    """(below, above) pairs between shown modules, without those that others imply."""
    below: dict[str, set[str]] = {}
    for name in shown:
        reached, waiting = set(), list(used[name])
        while waiting:
            other = waiting.pop()
            if other in reached:
                continue
            reached.add(other)
            if other not in shown and homes[other] == homes[name]:
                waiting += used[other]
        below[name] = reached & set(shown) - {name}

    def reaches(high: str, low: str) -> bool:
        """Other than directly."""
        seen, waiting = {high}, list(below[high] - {low})
        while waiting:
            other = waiting.pop()
            if low in below[other] and other != low:
                return True
            if other not in seen:
                seen.add(other)
                waiting += below[other]
        return False

    pairs = [(low, high) for high in shown for low in sorted(below[high])]
    return [(low, high) for low, high in pairs if not reaches(high, low)]


def draw(root: Path = ROOT) -> str:
    """The picture as a fenced Mermaid flowchart, one box a topic."""
    homes, used = module_homes(root), direct_imports(root)
    shown = shown_modules(homes, used)
    lines = ["```mermaid", "flowchart LR"]
    for topic in sorted({homes[name] for name in shown}):
        number, _, title = topic.partition("-")
        lines.append(f'    subgraph t{number}["{number} {title.replace("-", " ")}"]')
        lines += [f"        {name}" for name in shown if homes[name] == topic]
        lines.append("    end")
    lines += [f"    {low} --> {high}" for low, high in arrows(homes, used, shown)]
    return "\n".join([*lines, "```"])


def renew(text: str, root: Path = ROOT) -> str:
    """The README with the picture drawn anew between its markers."""
    if len(BLOCK.findall(text)) != 1:
        raise ValueError("the README must hold <!-- code map --> … <!-- /code map --> once")
    return BLOCK.sub(lambda match: f"{match[1]}{draw(root)}\n{match[2]}", text)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="print the picture, write nothing")
    if parser.parse_args(argv).print:
        print(draw(root))
        return 0
    readme = root / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = renew(old, root)
    if new != old:
        atomic_write(readme, new)
    print("drawn anew" if new != old else "the picture is as the code is")
    return 0


if __name__ == "__main__":
    sys.exit(main())
