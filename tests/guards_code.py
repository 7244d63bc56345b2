"""What must hold for all code of the course, read from its syntax trees. Each guard is a function
of the tree that returns its violations as sentences; `test_guards.py` runs them, and shows each of
them a small tree in which it must find something.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

import nbformat

TOPIC = re.compile(r"\d\d-[a-z0-9-]+")
MAX_LINES = 500
MAX_TEST_LINES = 800
# Names that installed packages would like to have, whether they are installed here or not.
TAKEN = {"accelerate", "evaluate", "flash_attn", "peft", "trl", "triton", "vllm"}
# Called at import time they only make the thing that is being defined.
MAKERS = {
    "Fraction", "NewType", "ParamSpec", "Path", "TypeVar", "bytes", "cast", "compile", "dict",
    "field", "float", "frozenset", "int", "len", "log", "max", "min", "namedtuple", "range",
    "resolve", "set", "sorted", "sqrt", "str", "sum", "timedelta", "tuple", "zip",
}  # fmt: skip


class Tree:
    """A checkout: its topics, its modules and their syntax trees."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def files(self) -> list[Path]:
        """All files that belong to the tree, or would if they were added."""
        command = ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others"]
        listed = subprocess.run([*command, "--exclude-standard"], capture_output=True, text=True)
        if listed.returncode == 0:
            paths = [self.root / name for name in listed.stdout.split("\0") if name]
        else:
            paths = [path for path in self.root.rglob("*") if "__pycache__" not in path.parts]
        return sorted({path for path in paths if path.is_file()})

    @cached_property
    def topics(self) -> list[Path]:
        return sorted(p for p in self.root.iterdir() if p.is_dir() and TOPIC.fullmatch(p.name))

    @cached_property
    def modules(self) -> list[Path]:
        """The library modules and scripts: what lies in the topic folders themselves."""
        return [path for path in self.python if path.parent in self.topics]

    @cached_property
    def python(self) -> list[Path]:
        return [path for path in self.files if path.suffix == ".py"]

    @cached_property
    def pages(self) -> list[Path]:
        return [path for path in self.files if path.suffix == ".md"]

    @cached_property
    def notebooks(self) -> list[Path]:
        return [path for path in self.files if path.suffix == ".ipynb"]

    @cached_property
    def home(self) -> dict[str, Path]:
        """Module name -> the topic that it belongs to."""
        return {path.stem: path.parent for path in self.modules}

    def show(self, path: Path, node: ast.AST | None = None) -> str:
        line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""  # type: ignore[attr-defined]
        return f"{path.relative_to(self.root)}{line}"

    def topic_of(self, path: Path) -> Path | None:
        return next((topic for topic in self.topics if topic in path.parents), None)


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a module, or of a notebook's code cells one after the other."""
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        return ast.parse(re.sub(r"^[%!].*$", "", "\n".join(cells), flags=re.MULTILINE))
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The first names of all that a file imports, anywhere in it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0], node


def public_names(path: Path) -> dict[str, ast.AST]:
    """What a module defines at its top level for others to use."""
    found: dict[str, ast.AST] = {}
    for node in parse(path).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        found[name.id] = node
    return {name: node for name, node in found.items() if not name.startswith("_")}


# --- the guards ------------------------------------------------------------------------------


def forward_imports(tree: Tree) -> list[str]:
    """A topic's modules, exercises and notebook import only from their own topic or earlier ones;
    and from no test or script of the repository.
    """
    found = []
    outside = {p.stem for p in tree.python if p.parent.name in ("tests", "scripts", "benchmarks")}
    for path in [*tree.python, *tree.notebooks]:
        topic = tree.topic_of(path)
        if topic is None or tree.root / "tests" in path.parents:
            continue
        for name, node in imports(path):
            home = tree.home.get(name)
            if home is not None and home.name[:2] > topic.name[:2]:
                found.append(f"{tree.show(path, node)} imports {name} from the later {home.name}")
            if home is None and name in outside:
                found.append(f"{tree.show(path, node)} imports {name}, which is no topic's module")
    return found


def names_defined_twice(tree: Tree) -> list[str]:
    """A public name has one home."""
    homes: dict[str, list[str]] = {}
    for path in tree.modules:
        for name, node in public_names(path).items():
            if name != "main":
                homes.setdefault(name, []).append(tree.show(path, node))
    return [f"{name} is defined in {', '.join(at)}" for name, at in homes.items() if len(at) > 1]


def clashing_module_names(tree: Tree) -> list[str]:
    """A module's name is unique in the tree, and is no standard or installed module's."""
    found = []
    own = {"transformers-from-fundamentals"}
    installed = {
        name for name, dists in metadata.packages_distributions().items() if {*dists} - own
    }
    seen: dict[str, Path] = {}
    helpers = [
        path
        for path in tree.python
        if path.parent.name in ("benchmarks", "scripts", "tests")
        and path.parent.parent == tree.root
    ]
    for path in [*tree.modules, *helpers]:
        if path.stem in seen:
            found.append(f"{tree.show(path)} has the name of {tree.show(seen[path.stem])}")
        seen[path.stem] = path
        if path.stem in sys.stdlib_module_names:
            found.append(f"{tree.show(path)} has the name of a standard module")
        if path.stem in installed or path.stem in TAKEN:
            found.append(f"{tree.show(path)} has the name of an installed package")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", path.stem):
            found.append(f"{tree.show(path)} is no name that can be imported")
    return found


def _declared(root: Path) -> tuple[set[str], set[str]]:
    """The distributions that pyproject.toml names: of the course, and with the dev extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
        return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match}

    main = names(project["dependencies"])
    return main, main | names(project.get("optional-dependencies", {}).get("dev", []))


def undeclared_imports(tree: Tree) -> list[str]:
    """Whatever is imported is the standard library's, ours, or named in pyproject.toml; by the
    dev extra only where nothing but tests and upkeep needs it.
    """
    found = []
    main, dev = _declared(tree.root)
    distributions = metadata.packages_distributions()
    ours = {path.stem for path in tree.python} | {"conftest"}
    for path in [*tree.python, *tree.notebooks]:
        # What a reader runs needs the course's own dependencies alone.
        shipped = path.parent in [*tree.topics, tree.root / "benchmarks"]
        for name, node in imports(path):
            if name in sys.stdlib_module_names or name in ours:
                continue
            if name == "IPython" and path.suffix == ".ipynb":
                continue  # what runs a notebook
            known = {re.sub(r"[-_.]+", "-", d).lower() for d in distributions.get(name, [name])}
            if not known & (main if shipped else dev):
                found.append(f"{tree.show(path, node)} imports {name}, not in pyproject.toml")
    return found


def _defines_only(value: ast.expr, own: set[str]) -> bool:
    """Does evaluating this at import time do nothing but make a value?"""
    for node in ast.walk(value):
        if isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
            return False
        if isinstance(node, ast.Call):
            callee = node.func
            name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
            method = isinstance(callee, ast.Attribute) and isinstance(
                callee.value, (ast.Constant, ast.Call, ast.Name)
            )
            text = method and name in ("join", "split", "format", "encode", "items", "keys")
            # A class (configs and tables of rules are dataclasses), or a function of the course.
            if not (name in MAKERS or text or re.match(r"_?[A-Z]", name) or name in own):
                return False
    return True


def import_effects(tree: Tree) -> list[str]:
    """Importing a module defines, and does nothing else."""
    found = []
    for path in tree.modules:
        own = {node.name for node in parse(path).body if isinstance(node, ast.FunctionDef)}
        for node in parse(path).body:
            if isinstance(node, ast.ImportFrom) and node.module in tree.home:
                own |= {alias.asname or alias.name for alias in node.names}
        for node in parse(path).body:
            definition = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
            if isinstance(node, definition):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = all(isinstance(target, (ast.Name, ast.Tuple)) for target in targets)
                if names and (node.value is None or _defines_only(node.value, own)):
                    continue
            if isinstance(node, ast.If) and ast.unparse(node.test) in (
                "TYPE_CHECKING",
                "__name__ == '__main__'",
            ):
                continue
            found.append(f"{tree.show(path, node)} does more than define: {ast.unparse(node)[:60]}")
    return found


def scripts_without_options(tree: Tree) -> list[str]:
    """A script has `main(argv=None)`, and knows `--smoke`; it is run by its `__main__` clause."""
    found = []
    for path in tree.python:
        benchmark = path.parent == tree.root / "benchmarks"
        if not benchmark and path.parent not in tree.topics:
            continue
        source = path.read_text(encoding="utf-8")
        runs = any(
            isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            for node in parse(path).body
        )
        named = path.stem == path.parent.name[3:].replace("-", "_")
        if not (benchmark or named or runs):
            continue
        main = public_names(path).get("main")
        arguments = main.args if isinstance(main, ast.FunctionDef) else None
        if arguments is None or [a.arg for a in arguments.args][:1] != ["argv"]:
            found.append(f"{tree.show(path)} has no main(argv=None)")
        elif len(arguments.defaults) != len(arguments.args):
            found.append(f"{tree.show(path, main)}: main cannot be called without arguments")
        if not runs:
            found.append(f"{tree.show(path)} does nothing when it is run")
        if not re.search(r"--smoke|\bscript_parser\(", source):
            found.append(f"{tree.show(path)} has no --smoke")
    return found


def long_files(tree: Tree) -> list[str]:
    """A file reads from top to bottom in one sitting."""
    found = []
    for path in tree.python:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > (MAX_LINES if path in tree.modules else MAX_TEST_LINES):
            found.append(f"{tree.show(path)} has {lines} lines, more than it may have")
    return found


def forbidden_code(tree: Tree) -> list[str]:
    """Bare except, silenced errors, unpickled strangers, devices by name, prints in libraries."""
    found = []
    for path in tree.python:
        library = path in tree.modules and "main" not in public_names(path)
        for node in ast.walk(parse(path)):
            where = tree.show(path, node)
            if isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    found.append(f"{where}: bare except")
                broad = node.type is not None and ast.unparse(node.type) == "Exception"
                if broad and all(isinstance(line, ast.Pass) for line in node.body):
                    found.append(f"{where}: an error is swallowed")
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if called == "print" and library and "file" not in words:
                    found.append(f"{where}: print in a library module")
                if called in ("pickle.load", "pickle.loads"):
                    found.append(f"{where}: unpickling runs whatever the file says")
                if called == "torch.load" and words.get("weights_only") != "True":
                    found.append(f"{where}: torch.load without weights_only=True")
                if path in tree.modules and (called.endswith(".cuda") or called == "plt.show"):
                    found.append(f"{where}: {called}() in library code")
            elif isinstance(node, ast.Name) and node.id == "NotImplementedError":
                if path.name != "exercises.py" and path not in (
                    tree.root / "conftest.py",
                    tree.root / "tests" / "guards_code.py",
                ):
                    found.append(f"{where}: NotImplementedError outside the exercises")
            elif isinstance(node, ast.Attribute) and library and ast.unparse(node) == "os.environ":
                found.append(f"{where}: a library module reads the environment")
    return found


def forbidden_words(tree: Tree) -> list[str]:
    """No notes to oneself, and no path of somebody's machine, in any text of the tree."""
    found = []
    # Put together here, so that this file does not hold what it looks for.
    note = re.compile(r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
    folders = "|".join(["work", "root", "opt", "home", "tmp", "Users"])
    machine = re.compile(rf"(?<![\w.<>:/$*\\)\]}}~-])/(?:{folders})(?![\w-])(?!/\.\.\.)")
    for path in tree.files:
        if path.suffix not in (".py", ".md", ".toml", ".txt", ".sh", ".json", ".ipynb", ""):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            where = f"{path.relative_to(tree.root)}:{number}"
            if path.suffix == ".ipynb" and '"image/' in line:
                continue  # a picture's bytes as letters may spell anything
            for match in note.finditer(line):
                found.append(f"{where}: {match.group()}")
            for match in machine.finditer(line):
                found.append(f"{where}: an absolute path, {line[match.start() :][:40]}")
    return found
