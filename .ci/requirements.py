"""Prints requirements of the package, for `pip install -r`: a line for each.

Usage: `requirements.py EXTRA` prints those of an extra, without the package itself;
`requirements.py --lower-bounds` the lower bounds of the package's own.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))[
    "project"
]


def of_extra(extra: str) -> Iterator[str]:
    """Returns the requirements of an extra, and of the extras of the package that it contains."""
    for requirement in PROJECT["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{PROJECT['name']}\[(.+)\]", requirement)
        if own is None:
            yield requirement
        else:
            for name in own[1].split(","):
                yield from of_extra(name)


def lower_bounds() -> Iterator[str]:
    """Returns the oldest version of each requirement of the package."""
    for requirement in PROJECT["dependencies"]:
        name, bound = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement).groups()
        yield f"{name}=={bound}"


(argument,) = sys.argv[1:]
print(*(lower_bounds() if argument == "--lower-bounds" else of_extra(argument)), sep="\n")
