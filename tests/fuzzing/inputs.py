"""Searches for arguments and batches that end in anything but a clear error or a right value."""

import collections
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzzing import calls, constructors
from tests.fuzzing.call_targets import ITEMS
from tests.fuzzing.call_targets import targets as call_targets
from tests.fuzzing.changes import CHANGES


class Search(NamedTuple):
    """What was found.

    Attributes:
        tried: The number of inputs.
        problems: The inputs that ended wrong, each with what is wrong.
    """

    tried: int
    problems: list[str]

    def __str__(self) -> str:
        lines = [f"{self.tried:6d}  inputs", f"{len(self.problems):6d}  without a clear end"]
        return "\n".join([*lines, *self.problems[:100]])


def _shown(name: str, given: Any, problem: str) -> str:
    return f"{name} with {str(given)[:300]}\n    {problem}"


def _collected(check: Callable[[Any], str | None], cases: Iterable[Any]) -> Search:
    found = collections.OrderedDict()
    tried = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases:
            tried += 1
            if (problem := check(case)) is not None:
                found[problem] = None
    return Search(tried, list(found))


def _drawn(
    check: Callable[[Any], str | None], strategy: st.SearchStrategy, examples: int
) -> Search:
    """Returns what `examples` inputs of a strategy find, the same in each run."""
    cases: list[Any] = []
    options = {"derandomize": True, "database": None, "deadline": None}

    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        **options,
    )
    @given(strategy)
    def draw(case):
        cases.append(case)

    draw()
    return _collected(check, cases)


def _check_constructor(case: tuple[str, dict]) -> str | None:
    name, changed = case
    problem = constructors.problem(constructors.targets()[name], changed)
    return None if problem is None else _shown(name, changed, problem)


def _check_call(case: tuple[str, dict, int]) -> str | None:
    name, changes, size = case
    problem = calls.problem(call_targets()[name], changes, size)
    return None if problem is None else _shown(name, f"{changes} of {size} items", problem)


def drawn_constructors(examples: int) -> Search:
    """Searches among constructors with one or two arguments of any value."""

    def of(name):
        names = st.sampled_from(sorted(constructors.targets()[name].parameters))
        values = st.dictionaries(names, constructors.ANY_VALUE, min_size=1, max_size=2)
        return st.tuples(st.just(name), values)

    names = [name for name, x in constructors.targets().items() if x.parameters]
    return _drawn(_check_constructor, st.sampled_from(names).flatmap(of), examples)


def drawn_calls(examples: int) -> Search:
    """Searches among calls with up to three changed arrays, in batches of several sizes."""

    def of(name):
        names = st.sampled_from(sorted(call_targets()[name].arrays))
        changes = st.dictionaries(names, calls.ANY_CHANGE, max_size=3)
        return st.tuples(st.just(name), changes, st.sampled_from([1, 2, 3, ITEMS]))

    return _drawn(_check_call, st.sampled_from(sorted(call_targets())).flatmap(of), examples)


def every_argument() -> Search:
    """Tries every value of a list as every argument of every constructor."""
    pairs = [
        (name, x) for name, target in constructors.targets().items() for x in target.parameters
    ]
    cases = itertools.product(pairs, constructors.VALUES)
    return _collected(_check_constructor, ((pair[0], {pair[1]: value}) for pair, value in cases))


def every_array() -> Search:
    """Tries every change of every array of every call."""
    pairs = [(name, x) for name, target in call_targets().items() for x in target.arrays]
    cases = itertools.product(pairs, CHANGES)
    return _collected(_check_call, ((p[0], {p[1]: change}, ITEMS) for p, change in cases))
