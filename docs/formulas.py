"""Formulas: from the plain notation of docstrings to LaTeX.

In docstrings a formula is an indented block above the first section, so that it can be read in an
editor as it is. The notation: `x_ij` and `sum_{j != i}` for indices, `^2` and `^(1/k)` for powers,
`1/2` for a fraction, `[x]+` for the positive part, ` * ` and ` . ` for products, `<-` for an
assignment, Greek letters by name. Other words are text, and two spaces are a gap.
"""

import re

GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "lambda", "mu", "nu"),
    *("pi", "rho", "sigma", "tau", "phi", "psi", "omega"),
)
COMMANDS = {
    **{name: rf"\{name}" for name in (*GREEK, "exp", "log", "max", "min", "prod", "sum")},
    "argmin": r"\operatorname{argmin}",
    "in": r"\in",
    "log2": r"\log_2",
}
SYMBOLS = {
    "<-": r"\leftarrow",
    "<=": r"\le",
    ">=": r"\ge",
    "!=": r"\ne",
    "==": "=",
    "...": r"\ldots",
    "..": r", \ldots,",
    " || ": r" \;\|\; ",
    " . ": r" \cdot ",
    "*": r"\cdot",
    "]+": "]_{+}",
    "^T": r"^{\top}",
    "^+": "^{+}",
    "-th": r"\text{-th}",
}
#: A word without index or arguments.
WORD = rf"(?!({'|'.join(COMMANDS)})\b)[A-Za-z]{{2,}}(?![\w(])"
TOKEN = re.compile(
    "|".join(
        [
            r"sqrt\((?P<radicand>[^()]*)\)",
            r"\^\((?P<exponent>[^()]*)\)",
            r"(?P<above>\d+)/(?P<below>\w+)",
            f"(?P<symbol>{'|'.join(re.escape(symbol) for symbol in SYMBOLS)})",
            f"(?P<words>{WORD}( {WORD})*)",
            r"(?P<name>(mean|sum)(?=_)|[A-Za-z][A-Za-z0-9]*(_[a-z]{3,})*)(_(?P<index>\w+))?",
            r"(?P<space> +)",
            r"(?P<other>\d+(\.\d+)?|[-+=<>,:/|()\[\]{}^_])",
        ]
    )
)


#: An indented block between empty lines.
BLOCK = re.compile(r"(?<=\n\n)(?: {4}.*(?:\n|$))+(?=\n|$)")
SECTION = re.compile(r"^[A-Z][A-Za-z ]+:$", re.MULTILINE)


def formulas_of(docstring: str) -> list[re.Match]:
    """Returns the formulas of a docstring without indentation."""
    section = SECTION.search(docstring)
    end = section.start() if section else len(docstring)
    blocks = BLOCK.finditer(docstring, 0, end)
    # After `::`, a block is code.
    return [x for x in blocks if not docstring[: x.start()].rstrip().endswith("::")]


def to_latex(block: str) -> str:
    """Returns the LaTeX of a formula in plain notation, one or several lines.

    A line that is indented further than the first continues the line before.
    """
    lines = [line for line in block.splitlines() if line.strip()]
    margin = len(lines[0]) - len(lines[0].lstrip())
    rows = [(line[margin:].startswith(" "), line.strip()) for line in lines]
    if len(rows) == 1:
        return line_to_latex(rows[0][1])
    relation = re.compile(r" (?==|<-)")
    is_aligned = all(continues or relation.search(row) for continues, row in rows)
    cells = []
    for continues, row in rows:
        left, right = relation.split(row, 1) if is_aligned and not continues else ("", row)
        indent = r"\quad " if continues else ""
        cells.append(f"{line_to_latex(left)} & {indent}{line_to_latex(right)}")
    return r"\begin{split} " + r" \\ ".join(cells) + r" \end{split}"


def line_to_latex(text: str) -> str:
    """Returns the LaTeX of one line in plain notation."""
    result, position = "", 0
    while position < len(text):
        token = TOKEN.match(text, position)
        if token is None:
            raise ValueError(
                f"Unknown notation in a formula, at {text[position:]!r}. Expected the notation of "
                f"docs/formulas.py. Received: {text!r}"
            )
        result += _latex_of(token)
        position = token.end()
    if result.count("{") != result.count("}"):
        raise ValueError(f"A formula has a brace without its counterpart. Received: {text!r}")
    return result


def _latex_of(token: re.Match) -> str:
    if token["radicand"]:
        return rf"\sqrt{{{line_to_latex(token['radicand'])}}}"
    if token["exponent"]:
        # A fraction stays in one line.
        return f"^{{{'/'.join(map(line_to_latex, token['exponent'].split('/')))}}}"
    if token["above"]:
        return rf"\tfrac{{{token['above']}}}{{{line_to_latex(token['below'])}}}"
    if token["symbol"]:
        return f"{SYMBOLS[token['symbol']]} "
    if token["words"]:
        return rf"\text{{{token['words']}}}"
    if token["name"]:
        index = token["index"] or ""
        # Two letters are two indices.
        index = index if len(index) <= 2 else _name(index)
        return _name(token["name"]) + (f"_{{{index}}}" if index else "")
    return _gap(token) if token["space"] else token.group()


def _name(name: str) -> str:
    if name in COMMANDS:
        return f"{COMMANDS[name]} "
    if "_" in name:
        return r"\mathrm{" + name.replace("_", r"\_") + "}"
    return name if len(name) == 1 else rf"\text{{{name}}}"


def _gap(space: re.Match) -> str:
    """Returns the gap between factors and words; LaTeX spaces operators by itself."""
    before, after = space.string[: space.start()], space.string[space.end() :]
    if len(space.group()) > 1:
        return r"\quad "
    if before.endswith(" in") or not re.search(r"([\w)\]}|]|\]\+)$", before):
        return " "
    if not re.match(r"(?!in\b)[\w(\[|]", after):
        return " "
    return r"\ " if re.search(rf"\b{WORD}$", before) or re.match(WORD, after) else r"\,"
