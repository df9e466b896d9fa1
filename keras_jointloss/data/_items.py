"""Inputs, targets and labels as arrays with one row for each item."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.validation import invalid


def to_array(value: Any, name: str) -> np.ndarray:
    """Returns an array with rows in place of a tensor, a list of numbers, etc."""
    array = ops.convert_to_numpy(value) if ops.is_tensor(value) else np.asanyarray(value)
    if not array.ndim or not len(array):
        expected = "an array, or a list, tuple or dict of arrays, with a row for each item"
        raise invalid(name, expected, received=f"{name} with {value!r}")
    return array


def to_arrays(values: Any, name: str) -> Any:
    """Returns a structure of arrays in place of one of tensors etc."""
    return keras.tree.map_structure(lambda value: to_array(value, name), values)


def count_items(**structures: Any) -> int:
    """Returns the number of rows, which all arrays must have. `None` has no rows."""
    sizes = {
        name: {len(x) for x in keras.tree.flatten(values)}
        for name, values in structures.items()
        if values is not None
    }
    first, *_ = sizes.values()
    for name, found in sizes.items():
        if len(found) != 1 or found != first or not max(found):
            expected = "arrays with the same number of rows, at least one, as all others"
            received = ", ".join(f"{key} of {sorted(size)} rows" for key, size in sizes.items())
            raise invalid(name, expected, received=received)
    return first.pop()


def take(values: Any, indices: np.ndarray) -> Any:
    """Returns some rows of each array."""
    return keras.tree.map_structure(lambda x: x[indices], values)


def named_or_given(value: Any, name: str, x: Any, y: Any) -> np.ndarray:
    """Returns labels: an entry of the targets or of the inputs, if it is given by name."""
    if not isinstance(value, str):
        return to_array(value, name)
    named = [part for part in (y, x) if isinstance(part, Mapping)]
    for part in named:
        if value in part:
            return np.asarray(part[value])
    names = sorted({str(key) for part in named for key in part})
    raise invalid(name, f"an array, or a name of the targets or inputs, which are {names}", value)


def class_numbers(labels: np.ndarray, unlabelled: int | None = None) -> np.ndarray:
    """Returns the class of each item from 0, -1 for an item without a label: `(items,)`, int.

    Labels are `(items,)`, or rows, which are of the same class if they are equal. NaN, and what is
    `unlabelled`, is no label.
    """
    rows = labels.reshape(len(labels), -1)
    is_labelled = np.ones(len(rows), "bool")
    if rows.dtype.kind == "f":
        is_labelled = ~np.isnan(rows).any(axis=1)
    if unlabelled is not None:
        is_labelled &= (rows != unlabelled).any(axis=1)
    known = rows[is_labelled]
    known = known[:, 0] if known.shape[1] == 1 else known
    found = np.unique(known, axis=0, return_inverse=True)[1]
    numbers = np.full(len(rows), -1)
    numbers[is_labelled] = found.reshape(-1)
    return numbers
