"""Where the source can be mutated: places, each with the mutants of Cosmic Ray for it."""

import ast
import collections
import dataclasses
import difflib
import functools
import hashlib
import itertools
import random
import re

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tests.processes import ROOT

# Those of bits end in a `TypeError` between numbers: every test would kill them.
_ARITHMETIC = "(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)"
_SETS = "(BitOr|BitAnd|BitXor)"
_ORDER = "(Eq|NotEq|Lt|LtE|Gt|GtE)"
# `==` in place of `is` is the same for what the package compares, and `<` of None an error.
_OPERATORS = re.compile(
    "core/("
    "AddNot|NumberReplacer|ExceptionReplacer|RemoveDecorator|ZeroIterationForLoop"
    "|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd"
    "|ReplaceBreakWithContinue|ReplaceContinueWithBreak"
    f"|ReplaceBinaryOperator_({_ARITHMETIC}_{_ARITHMETIC}|{_SETS}_{_SETS})"
    f"|ReplaceComparisonOperator_({_ORDER}_{_ORDER}|Is_IsNot|IsNot_Is)"
    "|ReplaceUnaryOperator_Delete_(Not|USub|Invert))"
)
_ONLY_FOR_TOOLS = re.compile(r"^\s*@(typing\.)?(override|final|overload|runtime_checkable)\b")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of a file: the occurrence of an operator of Cosmic Ray in it."""

    file: str
    line: int
    operator: str
    occurrence: int

    @property
    def family(self):
        return self.file.split("/")[1].removesuffix(".py")

    @property
    def source(self):
        """The file with the change."""
        operator = get_operator(self.operator)()
        return mutate_code(_text(self.file), operator, self.occurrence)

    @property
    def change(self):
        """The lines that differ, as in a diff."""
        old, new = _text(self.file).splitlines(), self.source.splitlines()
        lines = difflib.unified_diff(old, new, lineterm="", n=0)
        return [line for line in lines if not re.match(r"(---|\+\+\+|@@)", line)]

    @property
    def key(self):
        """What the result of the mutant is kept under, as long as its file is the same."""
        text = f"{_text(self.file)}{self.operator}{self.occurrence}"
        return f"{self.file} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


@functools.cache
def _text(file):
    return (ROOT / file).read_text("utf-8")


def files(families):
    """Returns the paths of the files that belong to parts of the package, such as `losses`."""
    found = []
    for family in families:
        path = ROOT / "keras_jointloss" / family
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return [str(path.relative_to(ROOT)) for path in found]


def places(file):
    """Returns the mutants of a file by place, without those that cannot matter."""
    nodes = list(ast_nodes(parso.parse(_text(file))))
    lines = _text(file).splitlines()
    found = collections.defaultdict(list)
    for name in sorted(filter(_OPERATORS.fullmatch, operator_names())):
        operator = get_operator(name)()
        spots = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, (line, column)) in enumerate(spots):
            if not _cannot_matter(node, lines[line - 1]):
                place = file, line, column, name.split("_")[0]
                found[place].append(Mutant(file, line, name, occurrence))
    return found


def sample(families, count, seed):
    """Returns up to `count` mutants, one for each of as many random places."""
    found = {}
    for file in files(families):
        found |= places(file)
    generator = random.Random(seed)
    order = generator.sample(sorted(found), len(found))
    chosen = (generator.sample(found[place], len(found[place])) for place in order)
    # A place without any is no operator, such as the star before keyword arguments.
    compiled = (next(filter(_compiles, mutants), None) for mutants in chosen)
    return list(itertools.islice(filter(None, compiled), count))


def _cannot_matter(node, line):
    """Returns whether a node is in an annotation or a text, or there for people and tools only."""
    if "pragma: no cover" in line or _ONLY_FOR_TOOLS.search(line):
        return True
    child, parent = node, node.parent
    while parent is not None:
        if parent.type in ("fstring", "tfpdef"):
            return True
        if parent.type in ("param", "funcdef") and child is parent.annotation:
            return True
        if parent.type == "annassign" and child is parent.children[1]:
            return True
        if parent.type == "if_stmt" and "TYPE_CHECKING" in parent.children[1].get_code():
            return True
        if parent.type == "argument" and parent.children[0].get_code().strip() == "strict":
            return True
        child, parent = parent, parent.parent
    return False


def _compiles(mutant):
    try:
        compile(mutant.source, mutant.file, "exec")
    except SyntaxError:
        return False
    return True


@functools.cache
def _statements(file):
    return [node for node in ast.walk(ast.parse(_text(file))) if isinstance(node, ast.stmt)]


def lines(mutant):
    """Returns the lines of the innermost statement around a mutant, without those in its body.

    Those of a function belong to its decorators and defaults, too.
    """
    around = [node for node in _statements(mutant.file) if mutant.line in _span(node)]
    node = max(around, key=lambda node: (node.lineno, -node.end_lineno))
    body = [] if isinstance(node, ast.FunctionDef) else getattr(node, "body", [])
    return range(
        _span(node).start, max(mutant.line + 1, body[0].lineno) if body else _span(node).stop
    )


def _span(node):
    decorators = getattr(node, "decorator_list", [])
    return range(min(item.lineno for item in [node, *decorators]), node.end_lineno + 1)
