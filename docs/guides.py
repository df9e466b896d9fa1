"""Makes notebooks of the guides in `examples/guides`, runs them, and keeps what they print."""

import logging
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import plotly.io

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "guides"
#: The pages of the guides, and their notebooks without output.
PAGES = ROOT / "docs" / "guides"
NOTEBOOKS = ROOT / "build" / "notebooks"
#: Where a page begins as README does, up to a heading.
README = re.compile(r'<!-- README\.md up to "(?P<heading>.+)" -->\n')
#: What TensorFlow logs.
LOGGED = re.compile(r"^WARNING:tensorflow:.*\n?", re.MULTILINE)
LINK = re.compile(r"\]\((?P<path>[^):#\s]+)(?P<anchor>#[^)\s]*)?\)")
PLOTLY = "application/vnd.plotly.v1+json"


def write() -> None:
    """Runs the guides and writes their pages, with output, and their notebooks, without.

    A page stays as it is while neither its guide nor the package changes.
    """
    logging.getLogger("traitlets").setLevel("WARNING")
    for folder in (PAGES, NOTEBOOKS):
        folder.mkdir(parents=True, exist_ok=True)
    for page in PAGES.iterdir():
        if not (SCRIPTS / f"{page.stem}.py").exists():
            page.unlink()
    sources = [Path(__file__), *(ROOT / "keras_jointloss").rglob("*.py")]
    changed = max(path.stat().st_mtime for path in sources)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda script: _write_guide(script, changed), SCRIPTS.glob("*.py")))


def _write_guide(script: Path, changed: float) -> None:
    page, download = (folder / f"{script.stem}.ipynb" for folder in (PAGES, NOTEBOOKS))
    if page.exists() and page.stat().st_mtime > max(changed, script.stat().st_mtime):
        return
    # The tests of this file do without it, and without nbclient.
    import jupytext

    notebook = jupytext.read(script, fmt="py:percent")
    jupytext.write(notebook, download)
    run(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = link_pages(cell.source, SCRIPTS, PAGES)
    title, _, text = notebook.cells[0].source.partition("\n")
    files = (f"{{download}}`{x.name} <{os.path.relpath(x, PAGES)}>`" for x in (script, download))
    needs = "[What it needs](../index.md#install)"
    notebook.cells[0].source = f"{title}\n\nDownload: {', '.join(files)}. {needs}.\n{text}"
    jupytext.write(notebook, page)


def run(notebook) -> None:
    """Adds to a notebook what its page shows, run in a folder with the repository's `examples`.

    What TensorFlow logs is not on the page, nor is a value that is plain text: the script prints
    none. Lines that overwrite themselves, as progress bars do, are shown in their last state.
    """
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(SCRIPTS.parent)
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
            # What TensorFlow's runtime says is no output of the guide.
            extra_arguments=["--IPKernelApp.capture_fd_output=False"],
        )
        environment = {
            **os.environ,
            "PLOTLY_RENDERER": "plotly_mimetype",
            # Of tqdm, where no widgets are installed: it names a file of this machine.
            "PYTHONWARNINGS": "ignore:IProgress not found",
        }
        client.execute(env=environment, stderr=subprocess.DEVNULL)
    plotly_js = "../_static/plotly.min.js"  # Once in a page.
    for cell in notebook.cells:
        shown = [output for output in cell.get("outputs", ()) if is_shown(output)]
        for output in shown:
            if output["output_type"] == "stream":
                output["text"] = LOGGED.sub("", output["text"])
            if PLOTLY in output.get("data", {}):
                figure, config = output.data[PLOTLY], {"responsive": True}
                text = plotly.io.to_html(figure, config, False, plotly_js, full_html=False)
                output.data, plotly_js = {"text/html": text}, False
        if "outputs" in cell:
            cell.outputs = shown


def is_shown(output) -> bool:
    """Returns whether an output is on the page."""
    if output["output_type"] == "stream":
        return bool(LOGGED.sub("", output["text"]))
    return set(output["data"]) != {"text/plain"}


def link_pages(text: str, folder: Path, pages: Path) -> str:
    """Rewrites the links to files for a page; those to guides lead to their pages.

    Sphinx refuses a link that leads nowhere, and makes downloads of files that are no pages.

    Args:
        text: Markdown.
        folder: The folder that links are relative to.
        pages: The folder of the page that the text goes to.
    """

    def rewrite(link: re.Match) -> str:
        path = Path(os.path.normpath(folder / link["path"]))
        if path.parent == SCRIPTS and path.exists():
            path = PAGES / f"{path.stem}.ipynb"
        return f"]({os.path.relpath(path, pages)}{link['anchor'] or ''})"

    return LINK.sub(rewrite, text)


def include_readme(text: str) -> str:
    """Puts the beginning of README where a page in `docs` asks for it."""

    def beginning(mark: re.Match) -> str:
        readme, found, _ = (ROOT / "README.md").read_text("utf-8").partition(mark["heading"])
        if not found:
            raise ValueError(f"README.md has no heading {mark['heading']!r}.")
        return link_pages(readme, ROOT, ROOT / "docs")

    return README.sub(beginning, text)
