"""Missing targets: which they are, and what a loss or metric receives in their place.

A loss or metric is still computed for missing targets, since shapes must not depend on the data.
So both target and prediction are replaced by constants for which values and derivatives are finite,
and the result is replaced by 0. The gradient of a missing target is then exactly 0.
"""

import math
from typing import Any

import keras
import numpy as np

from keras_jointloss._core.math import value_range
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.validation import validate_number

_EXPECTED = "NaN or a finite number"
#: A prediction that is valid as a probability, a logit and a number.
PREDICTION = 0.5


def validate_missing(value: Any) -> float:
    """Returns NaN or a finite number, which can mark a missing target, as a float."""
    if isinstance(value, np.ndarray | np.generic) and value.shape == ():
        value = value.item()
    is_nan = isinstance(value, float) and math.isnan(value)
    return math.nan if is_nan else validate_number(value, "missing", expected=_EXPECTED)


def serialize_missing(value: Any) -> Any:
    """Returns a form of a number, or of numbers by name, for a config: JSON has no NaN."""
    return keras.tree.map_structure(lambda x: "nan" if math.isnan(x) else x, value)


def deserialize_missing(value: Any) -> Any:
    """Returns the number, or numbers by name, from a config."""
    return keras.tree.map_structure(lambda x: math.nan if x == "nan" else x, value)


def is_labelled(y_true, missing: float):
    """Returns which targets are not missing: bool, of the shape of `y_true`."""
    dtype = keras.backend.standardize_dtype(y_true.dtype)
    if "float" in dtype:
        if math.isnan(missing):
            return ops.logical_not(ops.isnan(y_true))
        return ops.not_equal(y_true, ops.cast(missing, dtype))
    least, largest = value_range(dtype)
    if missing.is_integer() and least <= missing <= largest:
        return ops.not_equal(y_true, ops.cast(int(missing), dtype))
    return ops.cast(ops.ones_like(y_true), "bool")


def match_ranks(y_true, y_pred):
    """Gives targets and predictions the same rank if one has an extra last axis of size 1."""
    true_rank, pred_rank = len(y_true.shape), len(y_pred.shape)
    if true_rank == pred_rank + 1 and y_true.shape[-1] == 1:
        if pred_rank == 1:
            return y_true, ops.expand_dims(y_pred, -1)
        return ops.squeeze(y_true, -1), y_pred
    if pred_rank == true_rank + 1 and y_pred.shape[-1] == 1:
        if true_rank == 1:
            return ops.expand_dims(y_true, -1), y_pred
        return y_true, ops.squeeze(y_pred, -1)
    return y_true, y_pred


def fill(y_true, y_pred, labelled, prediction: float = PREDICTION):
    """Replaces missing targets by 0 and their predictions by a constant.

    Targets and predictions are `(batch, ...)`. Which of them to keep may have a lower rank: axes of
    size 1 are added at the end.
    """
    true_mask, pred_mask = (expand(labelled, len(y.shape)) for y in (y_true, y_pred))
    y_true = ops.where(true_mask, y_true, ops.zeros_like(y_true))
    return y_true, ops.where(pred_mask, y_pred, ops.cast(prediction, y_pred.dtype))


def expand(mask, rank: int):
    """Appends axes of size 1 up to a rank."""
    axes = tuple(range(len(mask.shape), rank))
    return ops.expand_dims(mask, axes) if axes else mask


def pairs_of_elements(y_true, y_pred):
    """Returns targets and predictions, `(batch, ..., k)`, whose elements correspond.

    `None` if the shapes do not correspond element by element.
    """
    y_true, y_pred = match_ranks(y_true, y_pred)
    if len(y_true.shape) != len(y_pred.shape):
        return None
    if len(y_true.shape) == 1:
        y_true, y_pred = ops.expand_dims(y_true, -1), ops.expand_dims(y_pred, -1)
    if y_true.shape[1:] != y_pred.shape[1:]:
        shape = ops.shape(ops.zeros_like(y_true, dtype=y_pred.dtype) + ops.zeros_like(y_pred))
        y_true, y_pred = ops.broadcast_to(y_true, shape), ops.broadcast_to(y_pred, shape)
    return y_true, y_pred


def elements(y_true, y_pred, missing: float):
    """Returns the pair of `pairs_of_elements`, and which targets are labelled, or `None`."""
    pair = pairs_of_elements(y_true, y_pred)
    return None if pair is None else (*pair, is_labelled(pair[0], missing))


def items(y_true, y_pred, missing: float):
    """Returns which items, or positions within them, have a complete target.

    Of the shape `(batch, ...)`, without the last axis of `y_pred`, bool. The last axis of `y_true`
    is the target of an item if `y_pred` has the same rank, as for one-hot rows. With sparse labels,
    each entry of `y_true` is one.
    """
    labelled = is_labelled(y_true, missing)
    true_rank, pred_rank = len(y_true.shape), len(y_pred.shape)
    if true_rank == 1:
        return labelled
    if true_rank >= pred_rank:
        return ops.all(labelled, axis=-1)
    pairs = zip(y_true.shape[1:], y_pred.shape[1:-1], strict=False)
    if true_rank == pred_rank - 1 and all(a == b or None in (a, b) for a, b in pairs):
        return labelled
    return ops.all(labelled, axis=tuple(range(1, true_rank)))


def with_rank(mask, rank: int):
    """Returns a mask of items with the given rank: true where all of the dropped axes are."""
    if len(mask.shape) <= rank:
        return expand(mask, rank)
    return ops.all(mask, axis=tuple(range(rank, len(mask.shape))))
