"""What makes the site: formulas, notebooks of the guides, links."""

import re
import tomllib
from pathlib import Path

import pytest

from docs import formulas, guides, named_tests

pytestmark = pytest.mark.backend("torch")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("s_ij / t", r"s_{ij} / t"),
        ("sum_{j != i} x_j^2", r"\sum _{j \ne  i}\,x_{j}^2"),
        ("1/2 [m - d]+", r"\tfrac{1}{2}\,[m - d]_{+} "),
        ("(prod_j loss_j)^(1/k)", r"(\prod _{j}\,\text{loss}_{j})^{1/k}"),
        ("w^T G w", r"w^{\top} \,G\,w"),
        (
            "learning_rate * sqrt(v + epsilon)",
            r"\mathrm{learning\_rate} \cdot  \sqrt{v + \epsilon }",
        ),
        ("mean over queries of  P(i)", r"\text{mean over queries of}\quad P(i)"),
        ("mean_{p in P} a . b", r"\text{mean}_{p \in  P}\,a \cdot  b"),
        ("x_i <- x_i + 1", r"x_{i} \leftarrow  x_{i} + 1"),
    ],
)
def test_formula(plain, latex):
    assert formulas.to_latex(f"    {plain}\n") == latex


def test_formula_of_several_lines():
    block = "    a = b\n      + c\n    d <- e\n"
    assert formulas.to_latex(block) == (
        r"\begin{split} a & = b \\  & \quad + c \\ d & \leftarrow  e \end{split}"
    )


@pytest.mark.parametrize("plain", ["x ~ y", r"\alpha", "sum_{i x"])
def test_unknown_notation_is_refused(plain):
    with pytest.raises(ValueError, match="formula"):
        formulas.to_latex(plain)


def test_formulas_are_indented_blocks_above_the_sections():
    docstring = "Title.\n\n    a = b\n\nCode::\n\n    f(x)\n\nArgs:\n    x: One.\n\n    Two.\n"
    assert [block[0].strip() for block in formulas.formulas_of(docstring)] == ["a = b"]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[a](several_devices.py)", "[a](several_devices.ipynb)"),
        ("[a](several_devices.py#one-device)", "[a](several_devices.ipynb#one-device)"),
        ("[b](../../docs/benchmarks.md)", "[b](../benchmarks.md)"),
        ("[c](../emoji.py)", "[c](../../examples/emoji.py)"),
        ("![d](../images/weighting.png)", "![d](../../examples/images/weighting.png)"),
        ("[e](https://keras.io)", "[e](https://keras.io)"),
    ],
)
def test_links_of_guides(link, expected):
    found = guides.link_pages(f"See {link}.", guides.SCRIPTS, guides.PAGES)
    assert found == f"See {expected}."


def test_pages_link_to_guides():
    link = "[a](../examples/guides/several_devices.py)"
    docs = guides.PAGES.parent
    assert guides.link_pages(link, docs, docs) == "[a](guides/several_devices.ipynb)"


@pytest.mark.parametrize(
    "path", [*PAGES, *sorted(guides.SCRIPTS.glob("*.py"))], ids=lambda path: path.name
)
def test_links_to_files_lead_to_files(path):
    # Sphinx checks those of its pages: README is none, and downloads and anchors are not checked.
    for link in guides.LINK.finditer(path.read_text(encoding="utf-8")):
        assert (path.parent / link["path"]).exists(), link["path"]


@pytest.mark.parametrize("script", sorted(guides.SCRIPTS.glob("*.py")), ids=lambda x: x.name)
def test_commands_of_formulas_have_one_backslash(script):
    # A page is made of the text as it is; with two, it would show the name of the command.
    assert not re.search(r"\\\\[A-Za-z]", script.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"output_type": "stream", "text": "0.5\n"}, True),
        ({"output_type": "stream", "text": "WARNING:tensorflow:5 out of the last 13\n"}, False),
        ({"output_type": "execute_result", "data": {"text/plain": "<History>"}}, False),
        ({"output_type": "display_data", "data": {"text/plain": "", "text/html": "<b>"}}, True),
    ],
)
def test_page_shows_what_the_script_prints_and_figures(output, expected):
    assert guides.is_shown(output) is expected


def test_map_of_the_source_names_files_that_exist():
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`([\w/]+(?:\.py|/))`", text)) - {"keras_jointloss/"}
    assert len(files) > 20
    for file in files:
        assert (ROOT / file).exists() or (ROOT / "keras_jointloss" / file).exists(), file


def names_on(page):
    """Returns the tests that a page names, in pairs with their files."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return {(link["path"], link["test"]) for link in named_tests.TEST.finditer(text)}


@pytest.mark.parametrize("page", ["promises.md", "proofs.md"])
def test_page_names_tests_that_exist(page):
    named = names_on(page)
    assert len(named) > 15
    for file, test in named:
        assert test in named_tests.tests_of((ROOT / file).read_text(encoding="utf-8"))


#: What restricts a test to some backends, and their names in brackets.
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
MARKS = {"values_only": ("torch",), "once_compiled": ("tensorflow", "torch")}


def backends_of(file, test):
    """Returns the names of the backends to which marks restrict a test; none if there are none."""
    text = (ROOT / file).read_text(encoding="utf-8")
    marks = re.findall(r"(?m)^pytestmark = (.*(?:\n .*)*)", text)
    decorated = re.search(rf"((?:^@.*\n(?:[ \])].*\n)*)+)def {test}\(", text, re.MULTILINE)
    marks += re.findall(
        r"(?m)^@(?!pytest\.mark\.parametrize)(.*)", decorated[1] if decorated else ""
    )
    found = set()
    for mark in marks:
        for name, backends in MARKS.items():
            found |= set(backends) if name in mark else set()
        found |= set(re.findall(r'"(\w+)"', "".join(re.findall(r"mark\.backend\(.*?\)", mark))))
    return {BACKENDS[name] for name in found}


def test_promises_name_the_backends_of_tests_that_run_on_some():
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    checked = 0
    for promise in re.split(r"(?m)^- \*\*", text)[1:]:
        for link in named_tests.TEST.finditer(promise):
            names = backends_of(link["path"], link["test"])
            checked += bool(names)
            assert all(name in promise for name in names), (link["test"], names)
    assert checked > 20


def test_page_of_proofs_counts_promises_and_their_tests():
    promises, proofs = ((ROOT / "docs" / f"{x}.md").read_text() for x in ("promises", "proofs"))
    counts = re.search(r"more than (\d+) promises name more than (\d+) tests", proofs).groups()
    assert len(re.findall(r"(?m)^- \*\*", promises)) > int(counts[0])
    assert len(names_on("promises.md")) > int(counts[1])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_of_pages_exist(path):
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(targets)
    for module in re.findall(r"python -m (tests[\w.]*)", text):
        assert any(
            (ROOT / f"{module.replace('.', '/')}{x}").exists() for x in (".py", "/__main__.py")
        )
    for file in re.findall(r"tests/test_\w+\.py", text):
        assert (ROOT / file).exists()


def test_names_of_tests_lead_to_their_code():
    text = "See `tests/test_site.py::test_formula` and `x`."
    address = re.search(r'href="(.*?)"', named_tests.link(text))[1]
    assert address == "tests/test_site.html#test_formula"
    pages = {
        name: context["body"]
        for name, context, _ in named_tests.pages(lambda code: f"<div><pre>{code}</pre></div>")
    }
    named = names_on("promises.md") | names_on("proofs.md")
    assert set(pages) == {path.removesuffix(".py") for path, _ in named}
    for path, test in named:
        assert re.search(
            rf'<span id="{test}"></span>(def )?{test}\b', pages[path.removesuffix(".py")]
        )


def test_index_begins_as_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    index = guides.include_readme((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    end = readme.index("## Guides")
    assert index.startswith(guides.link_pages(readme[:end], ROOT, ROOT / "docs"))
    assert index.partition("\n## ")[2].startswith("Install\n")
    assert "(guides/first_steps.ipynb)" in index
    with pytest.raises(ValueError, match="no heading"):
        guides.include_readme('<!-- README.md up to "## Absent" -->\n')


def test_readme_lists_every_guide_and_example():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = text.partition("\n## Guides\n")[2].partition("\n## ")[0]
    for path in [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples/guides").glob("*.py")]:
        assert f"]({path.relative_to(ROOT).as_posix()})" in listed, path.name


def test_readme_names_the_versions_of_python_that_the_package_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    install = (ROOT / "README.md").read_text("utf-8").partition("\n## Install\n")[2]
    assert re.findall(r"3\.\d+", install.partition(", which")[0]) == declared


# What benchmarks take from other libraries is no way to install this one.
OTHERS = ("pip install --no-deps LibMTL",)


@pytest.mark.parametrize(
    "path",
    [*PAGES, *sorted((ROOT / "examples").rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_readme_alone_says_how_to_install(path):
    text = path.read_text(encoding="utf-8")
    commands = [x for x in re.findall(r"pip install [^`&\n]+", text) if x not in OTHERS]
    if path == ROOT / "README.md":
        install = text.partition("## Install\n")[2].partition("\n## ")[0]
        assert all(x in install for x in commands)
        assert {x.partition("[")[0] for x in commands} == {'pip install ".'}
    else:
        assert not commands


def test_ten_numbers_are_those_of_the_pages_that_say_how_they_were_measured():
    text = (ROOT / "docs" / "ten_numbers.md").read_text(encoding="utf-8")
    _, *rows = re.findall(r"(?m)^\| (.+) \|$", text)
    commands = re.findall(r"(?m)^# (\d+).*\n(?=.*(?:python -m tests\.|make ))", text)
    assert commands == [str(i + 1) for i in range(10)]
    for row, i in zip(rows, commands, strict=True):
        position, question, number, beside = row.split("|")
        assert position.strip() == i
        page, heading = re.search(r"\]\((\w+\.md)(?:#([\w-]+))?\)", question).groups()
        source = (ROOT / "docs" / page).read_text(encoding="utf-8")
        if heading:
            titles = re.findall(r"(?m)^## (.+)$", source)
            title = next(x for x in titles if x.lower().replace(" ", "-") == heading)
            source = source.partition(f"## {title}\n")[2].partition("\n## ")[0]
        for figure in re.findall(r"\d[\d,.]*\d|\d+", number + beside):
            assert figure in source, (figure, page)


def test_page_on_citing_has_what_its_file_has():
    file, page = ((ROOT / "docs" / x).read_text("utf-8") for x in ("CITATION.cff", "citation.md"))
    for key, field in {"title": "title", "  - name": "author"}.items():
        value = re.search(rf'(?m)^{key}: "(.+)"$', file)[1]
        assert re.search(rf"{field} = {{{{?{re.escape(value)}}}}}?,", page)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f'  - name: "{project["authors"][0]["name"]}"\nlicense: {project["license"]}\n' in file
