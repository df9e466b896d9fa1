"""All code in README.md and in docstrings runs, and every public name is documented."""

import ast
import doctest
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import keras
import pytest

import keras_jointloss as kj
from docs import NAMES, formulas
from tests.backends import importable_modules

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MODULES = [kj.__name__, *importable_modules()]
BLOCK = re.compile(r"^(?P<indent> *)```python *\n(?P<code>.*?)^ *```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of Python.

    Attributes:
        code: The code, without indentation.
        line: The number of lines of the file before the code.
    """

    code: str
    line: int

    def run(self, namespace: dict, file: str) -> None:
        # The empty lines make errors refer to the line of the file.
        exec(compile("\n" * self.line + self.code, file, "exec"), namespace)


def blocks(text: str, line: int = 0) -> list[Block]:
    """Returns the blocks of a text that starts after `line` lines of the file."""
    return [
        Block(
            re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE),
            line + text[: match.start("code")].count("\n"),
        )
        for match in BLOCK.finditer(text)
    ]


def sections(text: str) -> dict[str, list[Block]]:
    """Returns the blocks of each `##` section that contains any."""
    result = {}
    line = 0
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        title = section.partition("\n")[0].lstrip("# ")
        result[title] = result.get(title, []) + blocks(section, line)
        line += section.count("\n")
    return {title: found for title, found in result.items() if found}


SECTIONS = sections(README.read_text(encoding="utf-8")) if README.exists() else {}


def test_readme_has_code():
    assert README.exists()
    assert SECTIONS


# PyTorch compiles nothing. On other backends, other tests cover the code that the examples use.
@pytest.mark.backend("torch")
@pytest.mark.parametrize("title", SECTIONS)
def test_readme(title, tmp_path, monkeypatch):
    # The code finds the files that it reads, and writes to the folder of the test.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in SECTIONS[title]:
        assert not re.match(r"\s*# *not run", block.code, re.IGNORECASE), f"line {block.line + 1}"
        block.run(namespace, str(README))


@pytest.mark.backend("tensorflow")  # Other backends draw other random numbers.
def test_readme_shows_what_its_first_example_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    section = README.read_text(encoding="utf-8").partition("## First example\n")[2]
    for block in SECTIONS["First example"]:
        block.run({}, str(README))
    shown = re.search(r"^```\n(.*?)^```", BLOCK.sub("", section), re.MULTILINE | re.DOTALL)[1]
    printed = capsys.readouterr().out
    number = re.compile(r"\d+\.\d+")
    assert number.sub("", printed).split() == number.sub("", shown).split()
    values, expected = ([float(x) for x in number.findall(text)] for text in (printed, shown))
    assert values == pytest.approx(expected, rel=0.1)


def with_examples(name: str) -> list[doctest.DocTest]:
    """Returns the docstrings of a module that contain examples of either kind."""
    docstrings = doctest.DocTestFinder(exclude_empty=False).find(importlib.import_module(name))
    return [found for found in docstrings if found.examples or blocks(found.docstring or "")]


@pytest.mark.backend("tensorflow", "torch")
@pytest.mark.parametrize("name", [name for name in MODULES if with_examples(name)])
def test_docstrings(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in with_examples(name):
        namespace = dict(example.globs)
        for block in blocks(example.docstring or "", example.lineno or 0):
            assert ">>>" not in block.code, f"{example.name}: fences around >>>"
            block.run(namespace, str(module.__file__))
        runner.run(example)
    assert runner.failures == 0, capsys.readouterr().out


def test_code_blocks_are_found():
    text = """# Title
```python
a = 1
```
## First
```bash
pip
```
```python
if a:
    b = 2
```
- item
  ```python
  c = 3

  d = 4
  ```
## Second
"""
    assert sections(text) == {
        "Title": [Block("a = 1\n", 2)],
        "First": [Block("if a:\n    b = 2\n", 9), Block("c = 3\n\nd = 4\n", 14)],
    }


def test_errors_name_the_line():
    with pytest.raises(ZeroDivisionError) as error:
        blocks("text\n```python\nx = 1\nx / 0\n```\n")[0].run({}, "README.md")
    assert error.traceback[-1].lineno == 3  # Counted from 0.


CLASSES = {name: value for name, value in NAMES.items() if inspect.isclass(value)}
# A class has formula, example and reference, and describes the arguments that its function shares.
CLASS_OF = {getattr(value, "function", None): value for value in CLASSES.values()}
BASES = (
    *(kj.losses.ViewsLoss, kj.losses.ProxyLoss),
    *(kj.weighting.Weighting, kj.aggregators.Aggregator),
)
METHODS = {
    name: value
    for name, value in CLASSES.items()
    if issubclass(value, BASES) and value not in (*BASES, kj.aggregators.PreferenceAggregator)
}
# They go back to no paper.
WITHOUT_REFERENCE = {
    kj.aggregators.Mean,
    kj.aggregators.Sum,
    kj.losses.CosineEmbedding,
    kj.weighting.Shares,
}


def section(docstring: str, *titles: str) -> str:
    """Returns the text of the first section with one of the titles, empty if there is none."""
    found = re.search(
        rf"^(?:{'|'.join(titles)}):\n((?: {{4}}.*\n|\n)+)", docstring + "\n", re.MULTILINE
    )
    return found[1] if found else ""


@pytest.mark.backend("torch")
@pytest.mark.parametrize("value", NAMES.values(), ids=NAMES)
def test_public_name_is_documented(value):
    docstring = inspect.getdoc(value)
    assert docstring.partition("\n")[0].endswith(".")
    lines = re.findall(
        r"^ {4}\**(\w+(?:, \w+)*):", section(docstring, "Args", "Attributes"), re.MULTILINE
    )
    described = [argument for line in lines for argument in line.split(", ")]
    if isinstance(value, type) and issubclass(value, keras.Layer):
        # Python 3.11.2 takes the signature of Keras' `__new__` where `__init__` is inherited.
        value = functools.partial(value.__init__, None)
    expected = list(inspect.signature(value).parameters)
    if value in CLASS_OF:
        shared = set(inspect.signature(CLASS_OF[value]).parameters) - {*described}
        assert described == [argument for argument in expected if argument not in shared]
        assert f"See `{CLASS_OF[value].__name__}` for the other arguments." in docstring
    else:
        assert described == expected
        assert ">>>" in docstring or "::\n" in docstring


@pytest.mark.backend("torch")
@pytest.mark.parametrize("value", METHODS.values(), ids=METHODS)
def test_method_has_formula_and_reference(value):
    docstring = inspect.getdoc(value)
    assert formulas.formulas_of(docstring)
    if value not in WITHOUT_REFERENCE:
        assert re.search(r"\b(19|20)\d\d\b", section(docstring, "References"))


@pytest.mark.backend("torch")
def test_site_can_draw_all_formulas():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [
        node
        for path in sorted((ROOT / kj.__name__).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    ]
    texts = [docstring for node in nodes if (docstring := ast.get_docstring(node))]
    found = [block[0] for text in texts for block in formulas.formulas_of(text)]
    assert len(found) > 50
    for formula in found:
        assert formulas.to_latex(formula)
        # In a list, what follows a formula would be drawn as a part of it.
        assert re.match(r" {4}\S", formula)
        assert "**" not in formula


def test_contributing_names_every_test_file_once():
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    _, _, table = text.partition("## Where it is tested")
    rows = re.findall(r"^\| .* \| (\w[\w, ]+) \|$", table.partition("\n## ")[0], re.MULTILINE)
    named = [name for row in rows for name in row.split(", ")]
    files = [path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")]
    assert sorted(named) == sorted(files)
