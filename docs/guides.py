"""Makes notebooks of the guides in `examples/guides`, runs them, and keeps what they print."""

import ast
import hashlib
import json
import logging
import os
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "guides"
#: The pages of the guides, and their notebooks without output.
PAGES = ROOT / "docs" / "guides"
NOTEBOOKS = ROOT / "build" / "notebooks"
#: The order of the guides on the site.
ORDER = (
    "first_steps",
    "weighting",
    "missing_targets",
    "pairs",
    "vae",
    "physics",
    "recommender",
    "conflicts",
    "dashboard",
    "several_devices",
    "extending",
    "coming_from",
    "pitfalls",
)
LINK = re.compile(r"\[(?P<title>[^\]]*)\]\((?P<path>[^):#\s]+)(?P<anchor>#[^)\s]*)?\)")


def write() -> None:
    """Runs all guides and writes their pages, with output, and their notebooks, without.

    A page stays as it is while neither its guide nor the package changes.
    """
    found = {path.stem for path in SCRIPTS.glob("*.py")}
    if found != set(ORDER):
        raise ValueError(
            f"Expected the guides of `ORDER` in {Path(__file__).name}. "
            f"Missing: {sorted(set(ORDER) - found)}. Not in `ORDER`: {sorted(found - set(ORDER))}"
        )
    for folder in (PAGES, NOTEBOOKS):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.stem not in ORDER:
                path.unlink()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        notebooks = list(pool.map(_write_guide, ORDER))
    entries = [
        f"- [{_title(notebook)}]({name}.ipynb): {_summary(notebook)}"
        for name, notebook in zip(ORDER, notebooks, strict=True)
    ]
    toctree = ["```{toctree}", ":hidden:", "", *ORDER, "```"]
    (PAGES / "index.md").write_text("\n".join(["# Guides", "", *entries, "", *toctree, ""]))


def _write_guide(name: str) -> dict:
    script, page = SCRIPTS / f"{name}.py", PAGES / f"{name}.ipynb"
    download = NOTEBOOKS / f"{name}.ipynb"
    source = script.read_text(encoding="utf-8")
    key = _key(source)
    if page.exists() and download.exists():
        notebook = json.loads(page.read_text(encoding="utf-8"))
        if notebook["metadata"].get("key") == key:
            return notebook
    notebook = to_notebook(source)
    download.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
    start = time.perf_counter()
    notebook = run(notebook)
    print(f"The guide {name} took {time.perf_counter() - start:.0f} s.", flush=True)
    notebook["metadata"]["key"] = key
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = link_pages(cell["source"], SCRIPTS, PAGES)
    title, _, text = notebook["cells"][0]["source"].partition("\n")
    files = [
        f"{{download}}`{path.name} <{os.path.relpath(path, PAGES)}>`" for path in (script, download)
    ]
    notebook["cells"][0]["source"] = f"{title}\n\nDownload: {', '.join(files)}\n{text}"
    page.write_text(json.dumps(notebook), encoding="utf-8")
    return notebook


def _key(source: str) -> str:
    """Returns what the output of a guide depends on, as a hash."""
    package = sorted((ROOT / "keras_jointloss").rglob("*.py"))
    texts = [source.encode(), Path(__file__).read_bytes(), *(path.read_bytes() for path in package)]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def to_notebook(source: str) -> dict:
    """Returns the notebook of a script: strings at the top level are text, all else is code."""
    lines = source.splitlines()
    cells, code_start = [], 0

    def add(kind, text):
        if text.strip():
            cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
            output = {"execution_count": None, "outputs": []} if kind == "code" else {}
            cells.append({**cell, **output, "source": text.strip("\n")})

    for statement in ast.parse(source).body:
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Expr) and isinstance(getattr(value, "value", None), str):
            add("code", "\n".join(lines[code_start : statement.lineno - 1]))
            add("markdown", value.value)
            code_start = statement.end_lineno
    add("code", "\n".join(lines[code_start:]))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def link_pages(text: str, folder: Path, pages: Path) -> str:
    """Rewrites the links to files of the repository for the site.

    Links to guides and to what is in `docs` become links between pages, others downloads.

    Args:
        text: Markdown.
        folder: The folder that links are relative to.
        pages: The folder of the page that the text goes to.
    """

    def rewrite(link: re.Match) -> str:
        path = Path(os.path.normpath(folder / link["path"]))
        if not path.exists():
            raise ValueError(f"A link leads to {link['path']!r}, which does not exist.")
        title, anchor = link["title"], link["anchor"] or ""
        if path.parent == SCRIPTS and path.stem in ORDER:
            path = PAGES / f"{path.stem}.ipynb"
        target = os.path.relpath(path, pages)
        if path.is_relative_to(PAGES.parent) or text[: link.start()].endswith("!"):
            return f"[{title}]({target}{anchor})"
        return f"{{download}}`{title.replace('`', '')} <{target}>`"

    return LINK.sub(rewrite, text)


def run(notebook: dict) -> dict:
    """Returns the notebook with its output, run in a folder with the repository's `examples`."""
    # The tests of this file do without them.
    import nbformat
    from nbclient import NotebookClient

    logging.getLogger("traitlets").setLevel("WARNING")
    notebook = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(SCRIPTS.parent)
        client = NotebookClient(
            notebook,
            timeout=600,
            resources={"metadata": {"path": folder}},
            # What TensorFlow's runtime says is no output of the guide.
            extra_arguments=["--IPKernelApp.capture_fd_output=False"],
        )
        environment = {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}
        client.execute(env=environment, stderr=subprocess.DEVNULL)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if is_shown(output)]
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    for number, output in enumerate(outputs):
        if "text" in output:
            output["text"] = as_displayed(output["text"])
        figure = output.get("data", {}).get("application/vnd.plotly.v1+json")
        if figure:
            output["data"] = {"text/html": to_html(figure, f"figure-{number}")}
    return notebook


def is_shown(output: dict) -> bool:
    """Returns whether an output is on the page.

    What TensorFlow logs is not, nor is a value that is plain text: the script prints none.
    """
    if output["output_type"] == "stream":
        return not output["text"].startswith("WARNING:tensorflow:")
    return set(output["data"]) != {"text/plain"}


def as_displayed(text: str) -> str:
    """Returns the last state of lines that overwrite themselves, as progress bars do."""
    lines = text.replace("\b", "").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def to_html(figure: dict, name: str) -> str:
    """Returns the HTML of a Plotly figure, without Plotly itself."""
    data, layout = (json.dumps(figure[key]).replace("</", r"<\/") for key in ("data", "layout"))
    draw = f'Plotly.newPlot("{name}", {data}, {layout}, {{responsive: true}})'
    # The page loads Plotly at its end.
    return f'<div id="{name}"></div><script>window.addEventListener("load", () => {draw})</script>'


def _title(notebook: dict) -> str:
    return notebook["cells"][0]["source"].partition("\n")[0].lstrip("# ")


def _summary(notebook: dict) -> str:
    """Returns the first sentence below the title and the downloads."""
    paragraph = notebook["cells"][0]["source"].split("\n\n")[2]
    sentence = re.split(r"(?<=\.)\s", paragraph.strip(), maxsplit=1)[0]
    return sentence.rstrip(".,:") + "."
