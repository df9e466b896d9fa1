"""Prints the lower bounds of the package's dependencies as requirements for pip."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"

for dependency in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
    name, bound = re.fullmatch(r"([\w-]+)>=([\w.]+)", dependency).groups()
    print(f"{name}=={bound}")
