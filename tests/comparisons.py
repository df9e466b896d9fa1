"""Comparisons of whole structures: arrays and tensors, or logs."""

import keras
import numpy as np
import pytest
from keras import ops


def assert_all_close(actual, expected, rtol=1e-7, atol=0.0, what=""):
    """Asserts that tensors or arrays are close, one by one in lists, or by name in dicts.

    Of dicts, `actual` may have more names.
    """
    if isinstance(expected, dict):
        pairs = {name: (actual[name], value) for name, value in expected.items()}
    else:
        pairs = dict(enumerate(zip(actual, expected, strict=True)))
    for name, pair in pairs.items():
        leaves = [[ops.convert_to_numpy(x) for x in keras.tree.flatten(y)] for y in pair]
        for x, y in zip(*leaves, strict=True):
            np.testing.assert_allclose(x, y, rtol, atol, err_msg=f"{what} {name}".strip())


def approx_logs(expected, rel=1e-5, abs=None):
    """Returns logs that those are equal to that have the same names and nearly these values."""
    return {name: pytest.approx(values, rel, abs) for name, values in expected.items()}
