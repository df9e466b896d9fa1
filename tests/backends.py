"""Marks for tests that need not run on every backend. Compiling takes most of the time of a run.

Compiled training, custom gradients, dtypes, files and replicas are tested on each backend.
"""

import pkgutil

import keras
import pytest

import keras_jointloss as kj

#: Tests of values that all backends compute by the same operations of `keras.ops`: on PyTorch,
#: which compiles nothing.
values_only = pytest.mark.backend("torch")
#: Tests of Python code around the steps or of numerics that one backend that compiles suffices for.
once_compiled = pytest.mark.backend("tensorflow", "torch")


def importable_modules() -> list[str]:
    """Returns the names of the modules of the package, without those of other backends."""
    others = {"jax", "tensorflow", "torch"} - {keras.backend.backend()}
    names = [info.name for info in pkgutil.walk_packages(kj.__path__, f"{kj.__name__}.")]
    return [x for x in names if not (".backend." in x and others & {*x.split(".")})]
