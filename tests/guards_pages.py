"""What must hold for all pages of the course: links, named symbols, quoted lines, formulas.

Formulas are shown by KaTeX in some places (editors, sites) and by MathJax in others (GitHub), after
Markdown has had its hands on them. What is checked of each:

- latex2mathml parses it, braces, `\\left…\\right` and environments close, and it uses only commands
  that KaTeX and MathJax share and GitHub allows (so no `\\operatorname`, `\\bm`, `\\argmax`);
- plain ASCII, no unescaped `%` or `#`, no `<` that would open an HTML tag;
- `$…$` stands on one line, with no space inside its dollars and no letter or digit outside them;
- `$$…$$` is a paragraph of its own, not in a list or table, with no blank line inside and no line
  that Markdown would take for a list, heading, quotation or underline;
- no `|` in a table's formula (it would end the cell: write `\\mid`);
- no two underscores or asterisks in a paragraph's formulas that Markdown would pair into emphasis.
  An underscore can begin emphasis only after a space or punctuation: write `\\mathbf x_t` for
  `\\mathbf{x}_t`, `W_{ij}^{(1)}` for `W^{(1)}_{ij}`, and `\\ast` for `*`.
"""

from __future__ import annotations

import ast
import re
import string
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import nbformat
from latex2mathml.converter import convert

from guards_code import Tree, parse

_COMMANDS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi
rho varrho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma
Upsilon Phi Psi Omega
mathbb mathbf mathcal mathfrak mathit mathrm mathscr mathsf mathtt boldsymbol text textbf
textit textrm texttt
arg cos cosh cot deg det dim exp gcd inf ker lg lim liminf limsup ln log max min Pr sin sinh sup
tan tanh bmod pmod
frac dfrac tfrac binom sqrt overline underline overbrace underbrace hat widehat tilde widetilde
bar vec dot ddot overset underset stackrel substack boxed phantom hphantom vphantom smash
sum prod int iint oint bigcap bigcup bigoplus bigotimes bigvee bigwedge limits nolimits
times cdot circ ast star bullet div pm mp setminus cup cap odot oplus otimes wedge vee land lor
neg lnot in notin ni subset subseteq supset supseteq emptyset varnothing forall exists nexists
le leq ge geq ll gg lt gt ne neq approx equiv sim simeq cong propto mid nmid parallel perp prec
succ lesssim gtrsim triangleq doteq models vdash top bot intercal dagger
to gets rightarrow leftarrow leftrightarrow Rightarrow Leftarrow Leftrightarrow mapsto implies
iff longrightarrow longleftarrow longmapsto uparrow downarrow nearrow searrow hookrightarrow
infty partial nabla ell hbar Re Im prime dots ldots cdots vdots ddots angle square checkmark
langle rangle lbrace rbrace lbrack rbrack lceil rceil lfloor rfloor vert Vert lvert rvert lVert
rVert backslash left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr
quad qquad displaystyle textstyle scriptstyle mathop mathbin mathrel mathopen mathclose
begin end hline tag notag
"""
_ENVIRONMENTS = """
aligned alignedat array matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix cases gathered
split
"""
COMMANDS = frozenset(_COMMANDS.split()) | frozenset(",;:!{}%#&_$|\\ ")
ENVIRONMENTS = frozenset(_ENVIRONMENTS.split())


# --- reading Markdown ------------------------------------------------------------------------


def without_code(text: str) -> str:
    """The page with code, fenced or inline, and HTML comments blanked, every place kept."""
    pattern = re.compile(
        r"^(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[^\n]*\n.*?^[ \t]*(?P=ticks)[ \t]*$"
        r"|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)|<!--.*?-->",
        re.DOTALL | re.MULTILINE,
    )
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings, and those that it sets itself."""
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    counts: dict[str, int] = {}
    fenced = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$", fenced, re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = counts.get(slug, 0)
        counts[slug] = number + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


# --- links, symbols, quotations --------------------------------------------------------------


def broken_links(tree: Tree) -> list[str]:
    """Every relative link leads to a file of the tree, and its anchor to a heading there."""
    found = []
    files = {path.resolve() for path in tree.files}
    folders = {parent for path in files for parent in path.parents}
    for page in tree.pages:
        text = page.read_text(encoding="utf-8")
        prose = without_code(text)
        links = [*re.finditer(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", prose)]
        links += re.finditer(r"(?:src|href)=\"([^\"]+)\"", prose)
        links += re.finditer(r"^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE)
        for link in links:
            target = link[1]
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            where = f"{tree.show(page)}:{_line(prose, link.start())}"
            name, _, anchor = target.partition("#")
            path = (page.parent / unquote(name)).resolve() if name else page.resolve()
            if path not in files and path not in folders:
                found.append(f"{where}: {target} leads nowhere")
            elif anchor and path.suffix == ".md":
                headings = anchors(path.read_text(encoding="utf-8"))
                if unquote(anchor) not in headings:
                    found.append(f"{where}: {target} names no heading")
    return found


def find_module(tree: Tree, page: Path, name: str) -> Path | None:
    """The file that a page means by `attention.py` or `03-attention-mechanisms/attention.py`."""
    for folder in (page.parent, tree.root):
        if (folder / name).is_file():
            return folder / name
    home = tree.home.get(Path(name).stem) if "/" not in name else None
    return home / name if home else None


def has_symbol(module: ast.AST, dotted: str) -> bool:
    """Is `name`, `Class.method` or `Class.attribute` defined (or imported) there?"""
    first, _, rest = dotted.partition(".")
    for node in (
        ast.walk(module) if isinstance(module, ast.ClassDef) else ast.iter_child_nodes(module)
    ):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == first and (not rest or has_symbol(node, rest)):
                return True
            continue
        names: set[str] = set()
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        names.add(part.id)
                    elif isinstance(part, ast.Attribute) and isinstance(module, ast.ClassDef):
                        names.add(part.attr)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        if first in names and not rest:
            return True
    return False


def unknown_symbols(tree: Tree) -> list[str]:
    """A symbol named as `attention.py: MultiHeadAttention.forward` exists in that file."""
    found = []
    for page in tree.pages:
        text = page.read_text(encoding="utf-8")
        for mention in re.finditer(r"`([\w./-]+\.py): ([A-Za-z_][\w., ]*?)(?:\(\))?`", text):
            where = f"{tree.show(page)}:{_line(text, mention.start())}"
            module = find_module(tree, page, mention[1])
            if module is None:
                found.append(f"{where}: there is no {mention[1]}")
                continue
            for symbol in re.split(r",\s*", mention[2]):
                if not has_symbol(parse(module), symbol):
                    found.append(f"{where}: {mention[1]} has no {symbol}")
    return found


def false_quotations(tree: Tree) -> list[str]:
    """A block of Python that begins with `# from attention.py` shows lines of that file, in their
    order; a comment that the file does not have (`# …`) stands for what is left out.
    """
    found = []
    for page in tree.pages:
        text = page.read_text(encoding="utf-8")
        fences = re.finditer(
            r"^```python\n# from (\S+\.py)\S*\n(.*?)^```", text, re.DOTALL | re.MULTILINE
        )
        for fence in fences:
            start = _line(text, fence.start(2))
            module = find_module(tree, page, fence[1])
            if module is None:
                found.append(f"{tree.show(page)}:{start - 1}: there is no {fence[1]}")
                continue
            lines = [line.strip() for line in module.read_text(encoding="utf-8").splitlines()]
            place = 0
            for number, quoted in enumerate(fence[2].splitlines(), start=start):
                line = quoted.strip()
                if not line or (line.startswith("#") and line not in lines[place:]):
                    continue
                if line not in lines[place:]:
                    why = "comes earlier" if line in lines else "is not"
                    found.append(f"{tree.show(page)}:{number}: {why} in {fence[1]}: {line}")
                    break
                place = lines.index(line, place) + 1
    return found


# --- formulas --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Formula:
    line: int
    text: str
    display: bool


def read_formulas(page: str) -> tuple[list[Formula], list[tuple[int, str]]]:
    """A page's formulas, and what is wrong with how they stand in it, as (line, sentence)."""
    text = without_code(page)
    formulas, wrong = [], []

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    for fence in re.finditer(r"^```math\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        formulas.append(Formula(_line(page, fence.start()), fence[1].strip(), True))
    block = re.compile(r"^\$\$(.*?)\$\$[ \t]*$", re.DOTALL | re.MULTILINE)
    for match in block.finditer(text):
        line, body = _line(text, match.start()), match[1]
        formulas.append(Formula(line, body.strip(), True))
        before, after = text[: match.start()], text[match.end() :]
        if (before.strip() and not before.endswith("\n\n")) or not re.match(
            r"\n\s*(\n|$)|$", after
        ):
            wrong.append((line, "a $$ formula needs an empty line before and after it"))
        if re.search(r"\n[ \t]*\n", body.strip("\n")):
            wrong.append((line, "a $$ formula holds an empty line"))
        if re.search(
            r"^[ \t]*(?:[-+*>][ \t]|#{1,6}[ \t]|\d+[.)][ \t]|=+[ \t]*$|-+[ \t]*$)", body, re.M
        ):
            wrong.append((line, "a line of a $$ formula looks like a list, heading or quotation"))
    text = block.sub(blank, text)
    for match in re.finditer(r"\$\$", text):
        wrong.append(
            (_line(text, match.start()), "$$ stands neither at a line's start nor its end")
        )
    text = text.replace("$$", "  ")
    inline = re.compile(r"(?<!\\)\$((?:[^$\n\\]|\\.)+?)\$")
    for match in inline.finditer(text):
        line, body = _line(text, match.start()), match[1]
        formulas.append(Formula(line, body.strip(), False))
        outside = text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 1]
        if body != body.strip():
            wrong.append((line, f"a space inside the dollars of ${body}$"))
        if re.search(r"[A-Za-z0-9]", outside):
            wrong.append((line, f"a letter or digit next to the dollars of ${body}$"))
        row = text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0]
        if row.lstrip().startswith("|") and re.search(r"(?<!\\)\|", body):
            wrong.append((line, f"| in a table's formula ends the cell: ${body}$"))
    for match in re.finditer(r"(?<!\\)\$", inline.sub(blank, text)):
        wrong.append((_line(text, match.start()), "a dollar sign without its partner"))
    return formulas, wrong


def formula_problems(formula: str) -> list[str]:
    """What is wrong with a formula itself."""
    found = []
    words = re.sub(r"\\text(?:bf|it|rm|tt)?\s*\{[^{}]*\}", r"\\text{}", formula)
    for match in re.finditer(r"\\([A-Za-z]+|.|$)", words, re.DOTALL):
        name = match[1].replace("\n", " ")
        if name not in COMMANDS:
            found.append(f"\\{name} is not for both KaTeX and MathJax")
    if re.search(r"(?<!\\)[%#]", words):
        found.append("% and # need a backslash")
    if re.search(r"<(?:[A-Za-z][A-Za-z0-9-]*[\s/>]|[/!?])", words):
        found.append("this < begins an HTML tag: write \\lt")
    if "](" in words:
        found.append("]( makes a link: put a space between")
    foreign = sorted({character for character in words if character not in string.printable})
    if foreign:
        found.append(f"{' '.join(foreign)} outside \\text: write it as a command")
    depth = 0
    for brace in re.findall(r"\\.|[{}]", formula, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            break
    if depth:
        found.append("its braces do not close")
    if len(re.findall(r"\\left\b", formula)) != len(re.findall(r"\\right\b", formula)):
        found.append("\\left and \\right do not pair")
    stack = []
    for what, name in re.findall(r"\\(begin|end)\{([^}]*)\}", formula):
        if name not in ENVIRONMENTS:
            found.append(f"environment {name} is not for both KaTeX and MathJax")
        if what == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            found.append(f"\\end{{{name}}} closes nothing")
    if stack:
        found.append(f"\\begin{{{stack[-1]}}} is not closed")
    bare = re.sub(r"\\begin\{(\w+)\}.*\\end\{\1\}", "", formula, flags=re.DOTALL)
    if re.search(r"(?<!\\)&", bare):
        found.append("& outside an environment")
    if not found:
        try:
            convert(formula)
        except Exception as error:
            found.append(f"it does not parse: {type(error).__name__} {error}")
    return found


def paired_emphasis(page: str) -> list[tuple[int, str]]:
    """Underscores and asterisks in formulas that Markdown would take for emphasis, by
    CommonMark's rules for what can open and close it.
    """
    found = []
    prose = without_code(page)
    for paragraph in re.finditer(r"(?:[^\n]+\n?)+", prose):
        text = paragraph.group()
        spans = [m.span() for m in re.finditer(r"\$\$.*?\$\$|(?<!\\)\$[^$\n]+\$", text, re.DOTALL)]
        for mark in "_*":
            opener = None
            for match in re.finditer(rf"(?<!\\)\{mark}+", text):
                if not any(start < match.start() < end for start, end in spans):
                    continue
                before = text[match.start() - 1 : match.start()] or " "
                after = text[match.end() : match.end() + 1] or " "
                solid = {c: c in string.punctuation for c in (before, after)}
                left = not after.isspace() and (
                    not solid[after] or before.isspace() or solid[before]
                )
                right = not before.isspace() and (
                    not solid[before] or after.isspace() or solid[after]
                )
                opens = left and (mark == "*" or not right or solid[before])
                closes = right and (mark == "*" or not left or solid[after])
                if opener is not None and closes:
                    line = _line(prose, paragraph.start() + opener)
                    near = text[max(opener - 12, 0) : opener + 12].replace("\n", " ")
                    found.append((line, f"{mark} begins emphasis at …{near}…"))
                    break
                if opens and opener is None:
                    opener = match.start()
    return found


def wrong_formulas(tree: Tree) -> list[str]:
    """Every formula parses, uses shared commands, and survives Markdown."""
    found = []
    for page in tree.pages:
        text = page.read_text(encoding="utf-8")
        formulas, wrong = read_formulas(text)
        for formula in formulas:
            wrong += [
                (formula.line, f"{p}: {formula.text}") for p in formula_problems(formula.text)
            ]
        for line, sentence in sorted(wrong + paired_emphasis(text)):
            found.append(f"{tree.show(page)}:{line}: {sentence}")
    for path in tree.notebooks:  # Jupyter takes formulas out before Markdown sees them
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
            formulas = read_formulas(cell.source)[0] if cell.cell_type == "markdown" else []
            for formula in formulas:
                for problem in formula_problems(formula.text):
                    found.append(f"{tree.show(path)}, cell {number}: {problem}: {formula.text}")
    return found
