"""Marks for tests that need not run on every backend. Compiling takes most of the time of a run.

Compiled training, custom gradients, dtypes, files and replicas are tested on each backend.
"""

import importlib
import pkgutil

import keras
import pytest

import keras_jointloss as kj

BACKEND = keras.backend.backend()
#: The package of the backend, `None` for the others, which need not be installed.
jax, tf, torch = (
    importlib.import_module(name) if name == BACKEND else None
    for name in ("jax", "tensorflow", "torch")
)
#: Tests of values that all backends compute by the same operations of `keras.ops`: on PyTorch,
#: which compiles nothing.
values_only = pytest.mark.backend("torch")
#: Tests of Python code around the steps or of numerics that one backend that compiles suffices for.
once_compiled = pytest.mark.backend("tensorflow", "torch")


def importable_modules() -> list[str]:
    """Returns the names of the modules of the package, without those of other backends."""
    others = {"jax", "tensorflow", "torch"} - {BACKEND}
    names = [info.name for info in pkgutil.walk_packages(kj.__path__, f"{kj.__name__}.")]
    return [x for x in names if not (".backend." in x and others & {*x.split(".")})]
