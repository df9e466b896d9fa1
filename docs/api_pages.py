"""Writes the pages of the API reference: one for each module and for each public name."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import keras_jointloss as kj


class Name(NamedTuple):
    """A public name.

    Attributes:
        module: The public module, such as `keras_jointloss.losses`.
        name: The name in the module.
        value: What it stands for.
    """

    module: str
    name: str
    value: Any

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def directive(self) -> str:
        return "autoclass" if inspect.isclass(self.value) else "autofunction"


def public_modules() -> list[ModuleType]:
    """Returns the package and its public modules."""
    values = (getattr(kj, name) for name in kj.__all__)
    return [kj, *(value for value in values if inspect.ismodule(value))]


def names_of(module: ModuleType) -> Iterator[Name]:
    """Returns the public classes and functions of a module."""
    for name in sorted(module.__all__, key=str.lower):
        value = getattr(module, name)
        if callable(value):
            yield Name(module.__name__, name, value)


def pages_of(module: ModuleType) -> dict[str, list[Name]]:
    """Returns the names by the page they are on: a class has its function with it."""
    names = list(names_of(module))
    functions = {
        getattr(x.value, "function", None): x.full for x in names if inspect.isclass(x.value)
    }
    pages: dict[str, list[Name]] = {}
    for name in sorted(names, key=lambda x: not inspect.isclass(x.value)):
        pages.setdefault(functions.get(name.value, name.full), []).append(name)
    return pages


def write(folder: Path) -> None:
    """Writes all pages to a folder, which is emptied first."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    overview = []
    for module in public_modules():
        pages = pages_of(module)
        title = module.__name__.removeprefix(f"{kj.__name__}.")
        for page, names in pages.items():
            _write(folder / f"{page}.rst", _heading(names[0].name), *map(_entry, names))
        module_page = f"{module.__name__}.module"
        summary = (module.__doc__ or "").partition("\n")[0]
        overview.append((module_page, f"- :doc:`{title} <{module_page}>`: {summary}"))
        _write(
            folder / f"{module_page}.rst",
            _heading(title),
            f".. automodule:: {module.__name__}\n",
            *_tables(list(names_of(module))),
            _toctree(pages),
        )
    entries = "\n".join(entry for _, entry in overview) + "\n"
    _write(folder / "index.rst", _heading("API"), entries, _toctree(page for page, _ in overview))


def _write(path: Path, *parts: str) -> None:
    path.write_text("\n".join(parts), encoding="utf-8")


def _heading(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _entry(name: Name) -> str:
    module = f".. currentmodule:: {name.module}\n"
    return f"{module}\n.. {name.directive}:: {name.name}\n{_options(name)}"


def _options(name: Name) -> str:
    options = "   :members:\n   :exclude-members: function\n   :show-inheritance:\n"
    return options if inspect.isclass(name.value) else ""


def _tables(names: list[Name]) -> Iterator[str]:
    """Returns the tables of classes and of functions, a line for each."""
    for title, is_class in (("Classes", True), ("Functions", False)):
        chosen = [x.name for x in names if inspect.isclass(x.value) == is_class]
        if chosen:
            lines = "".join(f"   {name}\n" for name in chosen)
            yield f".. rubric:: {title}\n\n.. autosummary::\n   :nosignatures:\n\n{lines}"


def _toctree(pages) -> str:
    return ".. toctree::\n   :hidden:\n\n" + "".join(f"   {page}\n" for page in pages)
