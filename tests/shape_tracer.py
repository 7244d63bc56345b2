"""Hold the code to its shape comments: `scores = q @ k.mT  # (B, H, T, S)` must be true.

    from shape_tracer import check_shapes

    def test_shape_comments():
        with check_shapes(attention.MultiHeadAttention, attention.attention_weights) as report:
            attention.MultiHeadAttention(12, 3)(torch.randn(2, 5, 12))
        assert report.checked >= 4, report.unchecked

While the block runs, every call of the named functions is traced (a class names all its methods;
functions defined inside a named one count too). After each assignment that has a shape comment at
its end, the assigned value's shape is compared with it; so are `return` statements, and parameters
that stand on a line of their own. Use sizes that differ from each other, or two letters can be
exchanged unseen; `check_shapes(f, sizes={"B": 2, "T": 5})` says beforehand what letters mean.

What a comment may say:

    (B, T, D)          a capital letter is bound at its first use in a call and holds for the
                       rest of it; B2, T_max, D' and names_with_underscores are letters too
    (B, t)             a small letter is bound anew in each comment: for what grows in a loop
    (B, 3*D, T+S)      sums, products, exact quotients, even if one letter in them is unknown
    (..., D)           any dimensions in front
    (B,) and (B)       one dimension
    scalar or ()       none; Python numbers are scalars
    (B, T), (B, S)     one for each target of a tuple; a single one holds for all targets
    (T,) or (B, T)     either
    (B, T) bool, why   words after the shape are not read

A value of None is passed over. A list of numbers has one dimension; any other list must have the
shape in each of its elements. Comments that are no shapes are ignored. The block fails, naming
file:line, when a comment is wrong, and also when no commented line ran at all.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import operator
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

Shape = tuple[str, ...]  # the dimensions as written: ("B", "3*D")
_LETTER = re.compile(r"[A-Za-z](\d+|_[A-Za-z0-9]+)*_*|[A-Za-z]\w*_\w*")
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class ShapeCommentError(AssertionError):
    """A shape comment that the running code contradicts, or one that nothing checked."""


# --- reading comments ------------------------------------------------------------------------


def _dimension(text: str) -> ast.expr | None:
    """One dimension's expression, or None if it is not one."""
    try:
        tree = ast.parse(text.replace("'", "_"), mode="eval").body
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        allowed = (
            (isinstance(node, ast.Name) and _LETTER.fullmatch(node.id))
            or (isinstance(node, ast.Constant) and type(node.value) is int)
            or (isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS)
            or isinstance(node, (ast.operator, ast.expr_context))
        )
        if not allowed:
            return None
    return tree


def _one_shape(text: str) -> Shape | None:
    """The dimensions between two parentheses."""
    parts = [part.strip() for part in text.split(",")]
    if parts[-1] == "":  # "()", and the comma of "(B,)"
        parts.pop()
    elif len(parts) == 1 and not re.fullmatch(r"[A-Z]|\.\.\.", parts[0]):
        return None  # a remark in parentheses, not a shape
    if parts.count("...") > 1 or any(p != "..." and _dimension(p) is None for p in parts):
        return None
    return tuple(parts)


def parse_comment(comment: str) -> list[list[Shape]] | None:
    """The shapes that a comment states: a list for the targets, of alternatives for each.

    `# (B, T), (T,) or (B, T)` is [[("B", "T")], [("T",), ("B", "T")]]; None if it states none.
    """
    rest = comment.lstrip("#").strip()
    targets: list[list[Shape]] = []
    joint = ","
    while True:
        match = re.match(r"scalar\b|\(((?:[^()]|\([^()]*\))*)\)", rest)
        shape = None
        if match:
            shape = () if match[1] is None else _one_shape(match[1])
        if match is None or shape is None:
            return targets or None
        if joint == ",":
            targets.append([])
        targets[-1].append(shape)
        rest = rest[match.end() :]
        follows = re.match(r"\s*(,|or\b)\s*(?=\(|scalar\b)", rest)
        if not follows:
            return targets
        joint, rest = follows[1], rest[follows.end() :]


# --- finding the commented statements --------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A commented assignment, return or parameter."""

    path: str
    number: int  # the comment's line
    comment: str
    shapes: list[list[Shape]]
    targets: tuple[ast.expr, ...] = ()  # empty: the value is what is returned

    @property
    def place(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class _Function:
    parameters: list[_Line]
    statements: dict[int, _Line | None]  # by every source line of every simple statement
    first_lines: dict[int, int]  # source line -> first line of its statement


def _comments(path: str) -> dict[int, str]:
    lines = iter(linecache.getlines(path))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}


def _own_statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a function, without those of functions and classes inside it."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from _own_statements(getattr(statement, part, []))
        for handler in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
            yield from _own_statements(handler.body)


def _read_function(node: ast.FunctionDef, path: str, comments: Mapping[int, str]) -> _Function:
    def line(numbers: Sequence[int], targets: Sequence[ast.expr]) -> _Line | None:
        for number in numbers:
            shapes = parse_comment(comments.get(number, ""))
            if shapes:
                return _Line(path, number, comments[number], shapes, tuple(targets))
        return None

    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    ends = [argument.end_lineno for argument in arguments]
    found = [
        line([a.end_lineno or a.lineno], [ast.Name(a.arg, ast.Load())])
        for a in arguments
        if ends.count(a.end_lineno) == 1 and a.lineno > node.lineno
    ]
    statements: dict[int, _Line | None] = {}
    first_lines: dict[int, int] = {}
    for statement in _own_statements(node.body):
        commented = None
        last = statement.end_lineno or statement.lineno
        if isinstance(statement, ast.Assign):
            commented = line([last, statement.lineno], statement.targets)
        elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
            commented = line([last, statement.lineno], [statement.target])
        elif isinstance(statement, ast.Return):
            commented = line([last, statement.lineno], [])
        elif hasattr(statement, "body"):
            continue  # a block: its statements speak for themselves
        for number in range(statement.lineno, last + 1):
            statements[number] = commented
            first_lines[number] = statement.lineno
    return _Function([f for f in found if f], statements, first_lines)


def _code_objects(thing: Any) -> Iterator[CodeType]:
    if isinstance(thing, (staticmethod, classmethod)):
        thing = thing.__func__
    if isinstance(thing, property):
        thing = thing.fget
    if inspect.isclass(thing):
        for member in vars(thing).values():
            inner = inspect.isclass(member) and member.__qualname__.startswith(thing.__qualname__)
            if inspect.isroutine(member) or isinstance(member, property) or inner:
                yield from _code_objects(member)
        return
    thing = inspect.unwrap(thing)
    if inspect.ismethod(thing):
        thing = thing.__func__
    if inspect.isfunction(thing):
        waiting = [thing.__code__]
        while waiting:
            code = waiting.pop()
            yield code
            waiting += [const for const in code.co_consts if isinstance(const, CodeType)]


# --- comparing -------------------------------------------------------------------------------


def _shape_of(value: Any) -> tuple[int, ...] | None:
    if hasattr(value, "shape"):
        return tuple(int(size) for size in value.shape)
    if isinstance(value, (bool, int, float)):
        return ()
    if isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value):
        return (len(value),)
    return None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Fraction:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, sizes), _value(node.right, sizes)
        return Fraction(_OPERATIONS[type(node.op)](left, right))
    if isinstance(node, ast.Name):
        return Fraction(sizes[node.id])
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return Fraction(node.value)


@dataclass
class _Sizes:
    """What the letters of one call stand for, and equations that wait for more letters."""

    known: dict[str, int]
    waiting: list[tuple[str, int]] = field(default_factory=list)

    def fits(self, shape: Shape, actual: tuple[int, ...]) -> str | None:
        """None, or what contradicts. Binds letters only if all fits."""
        dimensions = list(shape)
        if "..." in dimensions:
            place = dimensions.index("...")
            free = len(actual) - len(dimensions) + 1
            dimensions[place : place + 1] = ["..."] * max(free, 0)
        if len(dimensions) != len(actual):
            return f"{len(actual)} dimensions"
        known = {name: size for name, size in self.known.items() if len(name) > 1 or name.isupper()}
        pairs = [(d, n) for d, n in zip(dimensions, actual, strict=True) if d != "..."]
        # Plain letters first: they are what compound dimensions are computed from.
        pairs.sort(key=lambda pair: not _LETTER.fullmatch(pair[0].replace("'", "_")))
        waiting = []
        for text, size in [*pairs, *self.waiting]:
            node = _dimension(text)
            assert node is not None
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            unknown = names - known.keys()
            if len(unknown) > 1:
                waiting.append((text, size))
                continue
            if unknown:
                (name,) = unknown
                try:  # linear in the unknown: size = at_zero + slope * unknown
                    at_zero = _value(node, {**known, name: 0})
                    slope = _value(node, {**known, name: 1}) - at_zero
                    root = (size - at_zero) / slope
                except ZeroDivisionError:
                    waiting.append((text, size))
                    continue
                if root.denominator != 1 or _value(node, {**known, name: int(root)}) != size:
                    return f"{text} cannot be {size}"
                known[name] = int(root)
            elif _value(node, known) != size:
                return f"{text} is {_value(node, known)} here, not {size}"
        self.known, self.waiting = known, waiting
        return None


@dataclass
class ShapeReport:
    """What `check_shapes` saw: filled while its block runs."""

    commented: set[str] = field(default_factory=set)  # every commented place, as file:line
    seen: set[str] = field(default_factory=set)  # those that were compared at least once
    mismatches: list[str] = field(default_factory=list)

    @property
    def checked(self) -> int:
        """How many commented lines were compared with a value."""
        return len(self.seen)

    @property
    def unchecked(self) -> list[str]:
        """Commented places that never ran."""

        def order(place: str) -> tuple[str, int]:
            path, _, number = place.rpartition(":")
            return path, int(number)

        return sorted(self.commented - self.seen, key=order)

    def compare(self, line: _Line, shapes: list[Shape], value: Any, name: str, sizes: _Sizes):
        if value is None:
            return
        actual = _shape_of(value)
        if actual is None and isinstance(value, (list, tuple)):
            for i, element in enumerate(value):
                self.compare(line, shapes, element, f"{name}[{i}]", sizes)
            return
        self.seen.add(line.place)
        if actual is None:
            self.mismatches.append(f"{line.place}: {name} is a {type(value).__name__}: no shape")
            return
        reasons = []
        for shape in shapes:
            reason = sizes.fits(shape, actual)
            if reason is None:
                return
            reasons.append(reason)
        text = f"{line.place}: {name} has shape {actual}, the comment says {line.comment}"
        text += f" ({'; '.join(reasons)})"
        if text not in self.mismatches:
            self.mismatches.append(text)

    def check(self, line: _Line, values: Sequence[tuple[str, Any]], sizes: _Sizes) -> None:
        """Compare one line's targets with its shapes: pairwise, or one shape with all."""
        shapes = line.shapes
        if len(values) == 1 and len(shapes) > 1 and isinstance(values[0][1], (list, tuple)):
            values = [(f"{values[0][0]}[{i}]", part) for i, part in enumerate(values[0][1])]
        if len(shapes) == 1:
            shapes = shapes * len(values)
        if len(shapes) != len(values):
            self.seen.add(line.place)
            self.mismatches.append(
                f"{line.place}: {len(values)} values, {len(shapes)} shapes in {line.comment}"
            )
            return
        for (name, value), alternatives in zip(values, shapes, strict=True):
            self.compare(line, alternatives, value, name, sizes)


_ABSENT = object()


def _resolve(target: ast.expr, frame: FrameType) -> Any:
    """The value of `x` or `self.x` in a frame; `_ABSENT` for anything else, such as `x[i]`."""
    if isinstance(target, ast.Name):
        return frame.f_locals.get(target.id, frame.f_globals.get(target.id, _ABSENT))
    if isinstance(target, ast.Attribute):
        owner = _resolve(target.value, frame)
        return _ABSENT if owner is _ABSENT else getattr(owner, target.attr, _ABSENT)
    return _ABSENT


def _values(line: _Line, frame: FrameType) -> list[list[tuple[str, Any]]]:
    """For each `=` of `a = b, c = …` the names assigned and their values."""
    found = []
    for target in line.targets:
        parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
        values = [(ast.unparse(part), _resolve(part, frame)) for part in parts]
        if all(value is not _ABSENT for _, value in values):
            found.append(values)
    return found


@contextmanager
def check_shapes(*functions: Any, sizes: Mapping[str, int] | None = None) -> Iterator[ShapeReport]:
    """Compare the shape comments of `functions` (functions, methods, classes) with what runs.

    Raises:
        ValueError: none of the functions has a shape comment.
        ShapeCommentError: at the block's end: a comment is wrong, or no commented line ran.
    """
    report = ShapeReport()
    # By identity: code objects compare by content, and equal ones in two files must stay apart.
    known: dict[int, _Function] = {}
    for code in [code for function in functions for code in _code_objects(function)]:
        source = "".join(linecache.getlines(code.co_filename))
        comments = _comments(code.co_filename)
        path = Path(code.co_filename)
        shown = f"{path.parent.name}/{path.name}"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if first == code.co_firstlineno and node.name == code.co_name:
                    known[id(code)] = _read_function(node, shown, comments)  # type: ignore[arg-type]
    for function in known.values():
        for line in [*function.parameters, *function.statements.values()]:
            if line:
                report.commented.add(line.place)
    if not report.commented:
        names = ", ".join(getattr(f, "__qualname__", repr(f)) for f in functions)
        raise ValueError(f"no shape comments in {names or 'no functions'}")

    def enter(frame: FrameType, event: str, argument: Any):
        function = known.get(id(frame.f_code))
        if event != "call" or function is None:
            return None
        letters = _Sizes(dict(sizes or {}))
        running: int | None = None  # first line of the statement that has begun and not ended

        def finish() -> None:
            line = function.statements[running] if running is not None else None
            if line and line.targets:
                for values in _values(line, frame):
                    report.check(line, values, letters)

        def inside(frame: FrameType, event: str, argument: Any):
            nonlocal running
            if event == "line":
                first = function.first_lines.get(frame.f_lineno)
                if first != running or first is None:
                    finish()
                    running = first
            elif event == "exception":
                running = None
            elif event == "return":
                line = function.statements[running] if running is not None else None
                if line and not line.targets:
                    report.check(line, [("the result", argument)], letters)
                else:
                    finish()
                running = None
            return inside

        for line in function.parameters:
            for values in _values(line, frame):
                report.check(line, values, letters)
        return inside

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield report
    finally:
        sys.settrace(before)
    if report.mismatches:
        raise ShapeCommentError("\n".join(report.mismatches))
    if not report.seen:
        raise ShapeCommentError("no line with a shape comment ran: " + ", ".join(report.unchecked))
