"""Builds the documentation: `make docs`."""

import re
import sys
from pathlib import Path

import plotly
from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.util.inspect import signature, stringify_signature

import keras_jointloss as kj

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docs import NAMES, formulas, guides, named_tests  # noqa: E402

project = "keras_jointloss"
version = release = kj.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
default_role = "literal"
smartquotes_action = "D"  # Dashes only.

templates_path = ["_templates"]
html_theme = "furo"
html_title = "keras_jointloss"
pygments_dark_style = "monokai"
html_static_path = ["style.css", str(Path(plotly.__file__).parent / "package_data/plotly.min.js")]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `guides.run` has run them.

autodoc_inherit_docstrings = False  # Those of Keras stand in Keras.
autodoc_member_order = "bysource"
autosummary_ignore_module_all = False
napoleon_custom_sections = [("Call arguments", "params_style"), "Input shape", "Output shape"]
napoleon_use_ivar = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 88

FULL_NAMES = {value: name for name, value in NAMES.items()}
#: The functions that are on the page of a class, by the class, both as full names.
FUNCTIONS = {
    name: FULL_NAMES[value.function]
    for name, value in NAMES.items()
    if getattr(value, "function", None) in FULL_NAMES
}
autosummary_context = {"functions_of_classes": FUNCTIONS}


def spellings_of(full):
    """Returns what a public name is called in texts, if nothing else is called so."""
    yield full
    yield full.replace("keras_jointloss", "kj", 1)
    name = full.rpartition(".")[2]
    is_unique = sum(other.endswith(f".{name}") for other in NAMES) == 1
    if is_unique and re.search("^[A-Z]|_", name):
        yield name


PUBLIC = {spelling: full for full in NAMES for spelling in spellings_of(full)}


def draw_formulas(app, what, name, obj, options, lines):
    """Turns the formulas of a docstring, and the heading of its example, into directives."""
    text = "\n".join(lines)
    for block in reversed(formulas.formulas_of(text)):
        directive = f".. math::\n\n   {formulas.to_latex(block[0])}\n"
        text = text[: block.start()] + directive + text[block.end() :]
    lines[:] = text.replace("\nExample:\n", "\n.. rubric:: Example\n").split("\n")


def write_signature(app, what, name, obj, options, arguments, returned):
    """Writes the arguments of layers and metrics, which Keras hides from Python."""
    if what == "class" and arguments == "(*args, **kwargs)":
        arguments = signature(obj.__init__, bound_method=True)
        return stringify_signature(arguments, unqualified_typehints=True), returned
    return None


def name_bases(app, name, obj, options, bases):
    """Names base classes as they are public."""
    for position, base in enumerate(bases):
        if base in FULL_NAMES:
            bases[position] = f":py:class:`~{FULL_NAMES[base]}`"


def link_names(app, doctree):
    """Makes links of the public names in the text."""
    for literal in list(doctree.findall(nodes.literal)):
        full = PUBLIC.get(re.sub(r"\(.*\)$", "", literal.astext()))
        if full and not isinstance(
            literal.parent, nodes.title | nodes.reference | addnodes.pending_xref
        ):
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=full, refexplicit=True, refwarn=True
            )
            link["refdoc"] = app.env.docname
            literal.replace_self(link)
            link += literal


def link_files(app, name, source):
    """Makes the links of the pages written by hand lead to pages of guides, and to tests."""
    if "/" not in name:
        text = named_tests.link(guides.include_readme(source[0]))
        source[0] = guides.link_pages(text, HERE, HERE)


def show_tests(app):
    """Makes the pages that the names of tests lead to."""
    return named_tests.pages(lambda code: app.builder.highlighter.highlight_block(code, "python"))


def visit_math(self, node):
    """Writes MathML, which browsers draw by themselves."""
    is_block = isinstance(node, nodes.math_block)
    latex = node.astext()
    if re.search(r"\\\\[A-Za-z]", latex):
        raise ValueError(f"A command of this formula has two backslashes: {latex!r}")
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{split}} {latex} \end{{split}}"
    mathml = convert(latex, display="block" if is_block else "inline")
    if "<mi>&</mi>" in mathml or "\\" in mathml:
        raise ValueError(f"latex2mathml does not know a command of this formula: {latex!r}")
    self.body.append(f'<div class="formula">{mathml}</div>' if is_block else mathml)
    raise nodes.SkipNode


def setup(app):
    """Extends Sphinx by all of this."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("builder-inited", lambda app: guides.write(), priority=100)
    # Before napoleon.
    app.connect("autodoc-process-docstring", draw_formulas, priority=100)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-process-bases", name_bases)
    app.connect("source-read", link_files)
    app.connect("html-collect-pages", show_tests)
    app.connect("doctree-read", link_names)
