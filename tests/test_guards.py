"""The guards over the whole tree, and for each of them a small tree in which it finds something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import guards_code
import guards_notebooks
import guards_pages

ROOT = Path(__file__).parent.parent
GUARDS = [
    guards_code.forward_imports,
    guards_code.names_defined_twice,
    guards_code.clashing_module_names,
    guards_code.undeclared_imports,
    guards_code.import_effects,
    guards_code.scripts_without_options,
    guards_code.long_files,
    guards_code.forbidden_code,
    guards_code.forbidden_words,
    guards_pages.broken_links,
    guards_pages.unknown_symbols,
    guards_pages.false_quotations,
    guards_pages.wrong_formulas,
    guards_notebooks.poor_notebooks,
]


@pytest.fixture(scope="module")
def course():
    return guards_code.Tree(ROOT)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_the_tree(guard, course):
    found = guard(course)
    assert not found, "\n" + "\n".join(found)


# --- a tree in which they find something -----------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A course of two topics from {path: text}; without its files it violates nothing."""

    def write(files):
        project = (
            '[project]\nname = "x"\ndependencies = ["numpy>=1", "scikit-learn"]\n'
            '[project.optional-dependencies]\ndev = ["pytest"]\n'
        )
        files = {
            "pyproject.toml": project,
            "01-one/first.py": "import numpy\n\n\ndef one():\n    return numpy.ones(1)\n",
            "02-two/second.py": "from first import one\n\n_TWICE = (2, one)\n",
            "02-two/README.md": "# Two\n\n$x$ is [one](../01-one/first.py).\n",
            **files,
        }
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return guards_code.Tree(tmp_path)

    return write


def test_a_tree_in_order_passes_every_guard(tree):
    good = tree({})
    assert [finding for guard in GUARDS for finding in guard(good)] == []


NOTE = "TO" + "DO"
SCRIPT = "def main(argv=None):\n    '--smoke'\n\n\nif __name__ == '__main__':\n    main()\n"
BAD_CODE = [
    (guards_code.forward_imports, {"01-one/a.py": "import second\n"}, "a.py:1 imports second"),
    (
        guards_code.forward_imports,
        {"01-one/a.py": "def f():\n    from second import x\n    return x\n"},
        "a.py:2 imports second from the later 02-two",
    ),
    (
        guards_code.forward_imports,
        {"01-one/exercises/a.py": "import second\n"},
        "exercises/a.py:1 imports second",
    ),
    (
        guards_code.forward_imports,
        {"01-one/a.py": "import helper\n", "tests/helper.py": ""},
        "imports helper, which is no topic's module",
    ),
    (guards_code.names_defined_twice, {"02-two/a.py": "def one():\n    pass\n"}, "one is defined"),
    (
        guards_code.names_defined_twice,
        {"01-one/a.py": "SIZE = 1\n", "02-two/b.py": "SIZE: int = 2\n"},
        "SIZE is defined in 01-one/a.py:1, 02-two/b.py:1",
    ),
    (guards_code.clashing_module_names, {"02-two/first.py": ""}, "the name of 01-one/first.py"),
    (guards_code.clashing_module_names, {"benchmarks/first.py": ""}, "has the name of"),
    (guards_code.clashing_module_names, {"01-one/random.py": ""}, "a standard module"),
    (guards_code.clashing_module_names, {"01-one/tokenizers.py": ""}, "an installed package"),
    (guards_code.clashing_module_names, {"01-one/evaluate.py": ""}, "an installed package"),
    (
        guards_code.clashing_module_names,
        {"01-one/Two-Words.py": ""},
        "no name that can be imported",
    ),
    (guards_code.undeclared_imports, {"01-one/a.py": "import tqdm\n"}, "imports tqdm, not in"),
    (guards_code.undeclared_imports, {"01-one/a.py": "import pytest\n"}, "imports pytest, not in"),
    (guards_code.undeclared_imports, {"tests/test_a.py": "import nothere\n"}, "imports nothere"),
    (guards_code.import_effects, {"01-one/a.py": "print(1)\n"}, "a.py:1 does more than define"),
    (guards_code.import_effects, {"01-one/a.py": "X = open('f')\n"}, "does more than define"),
    (guards_code.import_effects, {"01-one/a.py": "import os\nos.environ['A'] = 'b'\n"}, "a.py:2"),
    (guards_code.import_effects, {"01-one/a.py": "for i in range(3):\n    pass\n"}, "does more"),
    (
        guards_code.import_effects,
        {"01-one/a.py": "try:\n    import x\nfinally:\n    pass\n"},
        "more",
    ),
    (guards_code.scripts_without_options, {"01-one/one.py": ""}, "has no main(argv=None)"),
    (
        guards_code.scripts_without_options,
        {"benchmarks/a.py": SCRIPT.replace("=None", "")},
        "cannot be called without arguments",
    ),
    (
        guards_code.scripts_without_options,
        {"01-one/one.py": SCRIPT.replace("--smoke", "")},
        "has no --smoke",
    ),
    (
        guards_code.scripts_without_options,
        {"01-one/one.py": SCRIPT.partition("if")[0]},
        "does nothing when it is run",
    ),
    (guards_code.long_files, {"01-one/a.py": "#\n" * 501}, "has 501 lines"),
    (guards_code.long_files, {"tests/a.py": "#\n" * 801}, "has 801 lines"),
    (
        guards_code.forbidden_code,
        {"01-one/a.py": "try:\n    f()\nexcept:\n    pass\n"},
        "bare except",
    ),
    (
        guards_code.forbidden_code,
        {"01-one/a.py": "try:\n    f()\nexcept Exception:\n    pass\n"},
        "an error is swallowed",
    ),
    (guards_code.forbidden_code, {"01-one/a.py": "def f():\n    print(1)\n"}, "print in a library"),
    (guards_code.forbidden_code, {"01-one/a.py": "torch.load('f')\n"}, "without weights_only"),
    (guards_code.forbidden_code, {"01-one/a.py": "pickle.loads(b)\n"}, "unpickling"),
    (guards_code.forbidden_code, {"01-one/a.py": "x.cuda()\n"}, "x.cuda() in library code"),
    (guards_code.forbidden_code, {"01-one/a.py": "os.environ['A']\n"}, "reads the environment"),
    (guards_code.forbidden_code, {"01-one/a.py": "raise NotImplementedError\n"}, "outside the"),
    (guards_code.forbidden_words, {"01-one/a.py": f"# {NOTE}: more\n"}, f"a.py:1: {NOTE}"),
    (
        guards_code.forbidden_words,
        {"a.md": "see /" + "home/me/file\n"},
        "a.md:1: an absolute path",
    ),
    (guards_code.forbidden_words, {"a.json": '{"a": "/' + 'work/x"}\n'}, "a.json:1: an absolute"),
]


@pytest.mark.parametrize(
    ("guard", "files", "finding"),
    BAD_CODE,
    ids=[f"{i}-{guard.__name__}" for i, (guard, _, _) in enumerate(BAD_CODE)],
)
def test_code_guards_find(guard, files, finding, tree):
    found = guard(tree(files))
    assert len(found) >= 1
    assert any(finding in sentence for sentence in found), found


@pytest.mark.parametrize(
    "files",
    [
        {"01-one/a.py": "import re\nfrom dataclasses import dataclass\n\nX = re.compile('a')\n"},
        {"01-one/a.py": '"""Why."""\n\nY: tuple[int, ...] = (1, 2 * 3)\nZ = {n: n for n in Y}\n'},
        {"01-one/a.py": "from sklearn import datasets\n\n__all__ = ['datasets']\n"},
        {"01-one/one.py": SCRIPT},
        {"01-one/a.py": "# https://example.org/home/x and a/work/b and </root>\n"},
        {"tests/test_a.py": "import pytest, first, second\n\n\ndef f():\n    print(1)\n"},
        {"02-two/notes.md": "`first.py: one` and `../01-one/first.py: one()`\n"},
    ],
)
def test_guards_let_pass(files, tree):
    good = tree(files)
    assert [finding for guard in GUARDS for finding in guard(good)] == []


MODULE = '''class Model:
    """A model."""

    size: int = 3

    def forward(self, x):
        self.last = x
        return x


def build():
    model = Model()
    return model
'''
PAGES = [
    (guards_pages.broken_links, "[a](missing.md)", "README.md:1: missing.md leads nowhere"),
    (guards_pages.broken_links, '<img src="figures/a.png">', "figures/a.png leads nowhere"),
    (guards_pages.broken_links, "# A b\n[a](#a-c)", "#a-c names no heading"),
    (guards_pages.broken_links, "[x]: none.md", "none.md leads nowhere"),
    (guards_pages.broken_links, "[a](../01-one/README.md#missing)", "names no heading"),
    (guards_pages.unknown_symbols, "`model.py: Modle`", "model.py has no Modle"),
    (guards_pages.unknown_symbols, "`model.py: Model.backward`", "has no Model.backward"),
    (guards_pages.unknown_symbols, "`model.py: build, destroy`", "has no destroy"),
    (guards_pages.unknown_symbols, "`nothing.py: x`", "there is no nothing.py"),
    (
        guards_pages.false_quotations,
        "```python\n# from model.py\ndef build():\n    model = Model(1)\n```",
        "README.md:4: is not in model.py: model = Model(1)",
    ),
    (
        guards_pages.false_quotations,
        "```python\n# from model.py\ndef build():\n# …\nclass Model:\n```",
        "README.md:5: comes earlier in model.py: class Model:",
    ),
    (guards_pages.false_quotations, "```python\n# from none.py\nx\n```", "there is no none.py"),
]


@pytest.mark.parametrize(("guard", "page", "finding"), PAGES)
def test_page_guards_find(guard, page, finding, tree):
    files = {"02-two/README.md": page + "\n", "02-two/model.py": MODULE, "01-one/README.md": ""}
    found = guard(tree(files))
    assert len(found) == 1
    assert finding in found[0]


def test_page_guards_let_pass(tree):
    page = """# It's `the` model: a_b

[up](#its-the-model-a_b), [code](model.py), [out](https://example.org/#x), `[no](link)`

`model.py: Model.forward`, `model.py: Model.size`, `model.py: Model.last`, `model.py: Model, build`

```python
# from model.py
class Model:
    # …
    def forward(self, x):
        return x
```

## The same

## The same

[second](#the-same-1)
"""
    good = tree({"02-two/README.md": page, "02-two/model.py": MODULE})
    assert [finding for guard in GUARDS for finding in guard(good)] == []


@pytest.mark.parametrize(
    "formula",
    [
        r"$x$",
        r"the loss $\ell_t = -\log p_\theta(x_t \mid x_{<t})$, where $t \ge 1$.",
        r"$\mathbf x_t$ and $\mathbf y_t$ and $W_{ij}^{(1)}$ and $W_{jk}^{(2)}$",
        r"costs \$5 and `$x` and $5\%$",
        "$$\n\\begin{aligned}\na &= b \\\\\n  &= \\frac{c}{d}\n\\end{aligned}\n$$",
        r"$$\left(\sum_{i=1}^n x_i^2\right)^{1/2} = \lVert x \rVert_2$$",
        r"| a | $p(x \mid y)$ |",
        r"$\{1, \dots, n\}$ and $\text{in words, naïve}$",
        "```text\n$ make\n```",
        "```math\na_b\n```",
    ],
)
def test_formulas_let_pass(formula, tree):
    page = f"# A\n\nBefore.\n\n{formula}\n\nAfter.\n"
    assert guards_pages.wrong_formulas(tree({"02-two/README.md": page})) == []


@pytest.mark.parametrize(
    ("formula", "finding"),
    [
        (r"$\operatorname{softmax}(x)$", r"\operatorname is not for both"),
        (r"$\bm{x}$", r"\bm is not for both"),
        (r"$\sofmax$", r"\sofmax is not for both"),
        (r"$$\begin{align} a \end{align}$$", "environment align is not"),
        (r"$$\begin{cases} a$$", r"\begin{cases} is not closed"),
        (r"$\frac{a}{b$", "braces do not close"),
        (r"$\left( a$", "do not pair"),
        (r"$a^b^c$", "does not parse"),
        (r"$5%$", "% and # need a backslash"),
        (r"$a<b >c$", "begins an HTML tag"),
        (r"$α$", "write it as a command"),
        (r"$a & b$", "& outside an environment"),
        (r"$ x $", "a space inside the dollars"),
        (r"3$x$", "a letter or digit next to"),
        (r"a $x and b", "a dollar sign without its partner"),
        (r"text $$x$$ text", "$$ stands neither at"),
        ("text\n$$x$$", "an empty line before and after"),
        ("$$\na\n\nb\n$$", "$$ formula holds an empty line|stands neither"),
        ("$$\na\n- b\n$$", "looks like a list"),
        ("$$\na\n=\nb\n$$", "looks like a list, heading"),
        ("| a | $p(x|y)$ |", "ends the cell"),
        (r"$\mathbf{x}_{1}$ and $\mathbf{y}_{2}$", "begins emphasis"),
        (r"$a^*$ and $b^*$", "begins emphasis"),
    ],
)
def test_formulas_find(formula, finding, tree):
    found = guards_pages.wrong_formulas(tree({"02-two/README.md": f"# A\n\n{formula}\n"}))
    assert found
    assert all(sentence.startswith("02-two/README.md:") for sentence in found)
    assert any(part in sentence for part in finding.split("|") for sentence in found), found


def test_formulas_in_notebooks_are_read_too(tree):
    cells = [nbformat.v4.new_markdown_cell(r"$\mathbf{x}_{1}$ and $\mathbf{y}_{2}$, $\bm{x}$")]
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    found = guards_pages.wrong_formulas(tree({"02-two/notebook.ipynb": text}))
    assert len(found) == 1
    assert found[0].startswith("02-two/notebook.ipynb, cell 1: \\bm is not")


# --- notebooks -------------------------------------------------------------------------------

PICTURE = {"output_type": "display_data", "data": {"image/png": "aaaa"}, "metadata": {}}


def notebook(*cells):
    """A notebook of (source, outputs) cells, executed in order."""
    made = [
        nbformat.v4.new_code_cell(
            source, execution_count=n, outputs=[nbformat.from_dict(output) for output in outputs]
        )
        for n, (source, outputs) in enumerate(cells, start=1)
    ]
    return nbformat.writes(nbformat.v4.new_notebook(cells=made))


GOOD_CELLS = [("%matplotlib inline\nfrom first import one", []), ("one()", [PICTURE] * 3)]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (notebook(GOOD_CELLS[0], ("one()", [PICTURE] * 2)), "2 pictures, fewer than 3"),
        (notebook(("1", [PICTURE] * 3)), "imports none of the course's modules"),
        (notebook(*GOOD_CELLS, ("def one():\n    pass", [])), "cell 3 defines one again"),
        (
            notebook(
                *GOOD_CELLS,
                ("1/0", [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]),
            ),
            "cell 3 ended in E",
        ),
        (
            notebook(
                *GOOD_CELLS, ("f()", [{"output_type": "stream", "name": "stderr", "text": "warn"}])
            ),
            "cell 3 wrote to stderr: warn",
        ),
        (
            notebook(*GOOD_CELLS).replace('"execution_count": 2', '"execution_count": 5'),
            "not executed in order",
        ),
        (notebook(*GOOD_CELLS, ("x = '" + "a" * 1_500_000 + "'", [])), "bytes, more than"),
    ],
)
def test_notebook_guard_finds(text, finding, tree):
    found = guards_notebooks.poor_notebooks(tree({"02-two/notebook.ipynb": text}))
    assert len(found) == 1
    assert finding in found[0]


def test_notebook_guard_lets_pass(tree):
    files = {"02-two/notebook.ipynb": notebook(*GOOD_CELLS)}
    assert guards_notebooks.poor_notebooks(tree(files)) == []
    files = {"01-one/notebook.ipynb": notebook(("import second", []))}
    assert "imports second" in guards_code.forward_imports(tree(files))[0]


# --- what only running shows -----------------------------------------------------------------

QUICK_START = [
    (
        "attention",
        "from attention import MultiHeadAttention; MultiHeadAttention(d_model=512, num_heads=8)",
    ),
    (
        "transformer",
        "from transformer import Transformer; "
        "Transformer(src_vocab_size=30000, tgt_vocab_size=30000, d_model=512)",
    ),
    (
        "flash_attention",
        "from flash_attention import FlashAttention; FlashAttention(softmax_scale=1.0)",
    ),
    (
        "rope_encoding",
        "from rope_encoding import RoPE; RoPE(dim=512, max_position_embeddings=2048)",
    ),
]


@pytest.mark.parametrize(("module", "line"), QUICK_START, ids=[module for module, _ in QUICK_START])
def test_quick_start_lines_run_word_for_word(module, line, course, tmp_path):
    if module not in course.home:
        pytest.skip(f"{module} is not written yet")
    done = subprocess.run(
        [sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_the_readme_shows_the_quick_start_lines(course):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for module, line in QUICK_START:
        assert (line in text) == (module in course.home), f"the README's line for {module}"


def test_importing_everything_changes_nothing(course, tmp_path):
    """Modules say nothing, write nothing, start nothing and leave every global setting alone."""
    names = sorted(course.home)
    code = f"""
import json, os, random, signal, sys, threading, warnings
import numpy, torch, matplotlib, tqdm
warnings.simplefilter("error")

def state():
    return repr([
        dict(os.environ), os.getcwd(), sys.path, sys.argv, threading.active_count(),
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
        random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        dict(matplotlib.rcParams), sys.gettrace() is None, sys.excepthook is sys.__excepthook__,
    ])

before = state()
for name in {names!r}:
    __import__(name)
    after = state()
    if after != before:
        sys.exit(f"importing {{name}} changed a global setting")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_results_files_are_json(course):
    for path in course.files:
        if path.suffix == ".json" and path.name != "index.json":
            json.loads(path.read_text(encoding="utf-8"))
