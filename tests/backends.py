"""Marks for tests that need not run on every backend. Compiling takes most of the time of a run.

Compiled training, custom gradients, dtypes, files and replicas are tested on each backend.
"""

import pytest

#: Tests of values that all backends compute by the same operations of `keras.ops`: on PyTorch,
#: which compiles nothing.
values_only = pytest.mark.backend("torch")
#: Tests of Python code around the steps or of numerics that one backend that compiles suffices for.
once_compiled = pytest.mark.backend("tensorflow", "torch")
