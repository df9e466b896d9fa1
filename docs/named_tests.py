"""Tests that pages name: links to them, and pages with their code."""

import ast
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The name of a test on a page.
TEST = re.compile(r"`(?P<path>tests/(?P<file>\w+)\.py)::(?P<test>\w+)`")


def link(text: str) -> str:
    """Makes links of the names of tests on a page in `docs`; in a narrow column they may break."""

    def to_html(name: re.Match) -> str:
        address = f"tests/{name['file']}.html#{name['test']}"
        shown = re.sub("(_|::|/)", r"\1<wbr>", f"{name['path']}::{name['test']}")
        # As Sphinx writes a reference to code.
        code = f'<code class="literal"><span class="pre">{shown}</span></code>'
        return f'<a class="reference internal" href="{address}">{code}</a>'

    return TEST.sub(to_html, text)


def tests_of(code: str) -> dict[str, int]:
    """Returns the lines of the tests of a file, counted from 1, by name."""
    lines = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            lines[node.name] = node.lineno
        # `refuses_calls` makes tests.
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            lines[node.targets[0].id] = node.lineno
    return lines


def pages(highlight: Callable[[str], str]) -> Iterator[tuple[str, dict, str]]:
    """Yields a page for each file of which a page names a test: its name, content and template.

    Args:
        highlight: Returns the HTML of Python code, with a line for each of the code.
    """
    texts = (path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
    for path in sorted({match["path"] for text in texts for match in TEST.finditer(text)}):
        code = (ROOT / path).read_text("utf-8")
        before, after = highlight(code).split("<pre>", 1)
        lines = after.split("\n")
        for name, line in tests_of(code).items():
            lines[line - 1] = f'<span id="{name}"></span>{lines[line - 1]}'
        title = html.escape(path)
        body = f"<h1>{title}</h1>{before}<pre>{chr(10).join(lines)}"
        yield path.removesuffix(".py"), {"title": title, "body": body}, "page.html"
