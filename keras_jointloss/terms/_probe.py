"""Finds out by a trial how a loss or metric combines the elements of its targets.

Each function calls another one, of targets and predictions, with arrays of four items and three
classes, and compares what it returns.
"""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

_TRUE = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], "float32")
_PREDICTED = np.array(
    [[0.15, 0.55, 0.3], [0.35, 0.45, 0.2], [0.25, 0.65, 0.1], [0.05, 0.6, 0.35]], "float32"
)
_OTHER = np.array(
    [[0.95, 0.03, 0.02], [0.2, 0.1, 0.7], [0.4, 0.55, 0.05], [0.6, 0.15, 0.25]], "float32"
)


def is_separable(compute: Callable[[Any, Any], Any]) -> bool:
    """Returns whether a function is a mean over all elements of `(batch, k)` arrays."""
    column = _try(compute, _TRUE.reshape(-1, 1), _PREDICTED.reshape(-1, 1))
    rows, other = _try(compute, _TRUE, _PREDICTED), _try(compute, _TRUE, _OTHER)
    # A result that does not change with the prediction says nothing.
    return _are_close(rows, column) and not _are_close(rows, other)


def is_mean_over_elements(compute: Callable[[Any, Any], Any]) -> bool:
    """Returns whether a function returns the mean over the last axis, `(batch,)`."""

    def mean(y_true, y_pred):
        values = compute(y_true, y_pred)
        return ops.mean(values) if tuple(values.shape) == (len(y_true),) else None

    return is_separable(mean)


def returns_scalar(compute: Callable[[Any, Any], Any]) -> bool:
    """Returns whether a function returns one number for a batch."""
    value = _try(compute, _TRUE, _PREDICTED)
    return value is not None and value.shape == ()


def ignores_zeros(compute: Callable[[Any, Any], Any]) -> bool:
    """Returns whether zeros change nothing in what a function returns for a batch or its items.

    Such a function returns one number for a batch, which rows of zeros do not change, or one for
    each item, which zeros in any of several axes of the item do not change.
    """
    batch = [x.reshape(2, 2, 3) for x in (_TRUE, _PREDICTED)]
    for arrays, axis, shape in (
        ((_TRUE, _PREDICTED), 0, ()),
        (batch, 1, (2,)),
        ([x[..., None] for x in batch], 1, (2,)),
    ):
        value = _try(compute, *arrays)
        padded = _try(compute, *(np.concatenate([x, np.zeros_like(x)], axis) for x in arrays))
        if value is not None and value.shape == shape and _are_close(value, padded):
            return True
    return False


def outside_of_traces(probe: Callable[[], bool]) -> bool:
    """Returns what a probe returns, wherever it is called.

    In a step that a backend traces, nothing can be tried. Another thread traces nothing.
    """
    # Not needed to import the package.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(probe).result()


def _try(compute: Callable[[Any, Any], Any], *batch: np.ndarray) -> np.ndarray | None:
    """Returns the result as an array, or `None` if the function does not work.

    On a GPU, a class that does not exist ends all use of the GPU by PyTorch and gives a number on
    TensorFlow and JAX. On the CPU it is an error on PyTorch and TensorFlow.
    """
    try:
        with warnings.catch_warnings(), keras.device("cpu"):
            warnings.simplefilter("ignore")
            result = compute(*(ops.convert_to_tensor(values) for values in batch))
            return None if result is None else ops.convert_to_numpy(result)
    except Exception:  # It may require other shapes or values, whatever error that is.
        return None


def _are_close(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return False
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-6))
