"""Labels of items: exact conversion, checks of their values and items without a label."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss import _backend
from keras_jointloss._backend import host_values
from keras_jointloss._validation import validate_count


def validate_unlabelled(value: Any, same_label: str | None = "positive") -> int | None:
    """Returns `value` if it can be the label of items without a label.

    Args:
        value: What was passed.
        same_label: The argument `same_label`, without which there are no labels.

    Raises:
        ValueError: If `value` is neither `None` nor a whole number, or there are no labels.
    """
    if value is not None and same_label is None:
        raise ValueError(
            "Invalid value for argument `unlabelled`. Expected None, since same_label=None. "
            f"Received: unlabelled={value!r}"
        )
    return None if value is None else validate_count(value, "unlabelled", minimum=-(2**31))


def label_tensor(labels: Any):
    """Returns labels as a tensor.

    Raises:
        ValueError: If the backend would cut 64-bit integers to 32 bits, so that different labels
            could become equal.
    """
    tensor = ops.convert_to_tensor(labels)
    given = None if ops.is_tensor(labels) else np.asarray(labels)
    if given is not None and given.size and given.dtype.kind in "iu":
        least, largest = _range_of(tensor.dtype)
        if given.min() < least or given.max() > largest:
            raise ValueError(
                f"Expected labels from {least} to {largest}, since "
                f"{_backend.name()} keeps integers in 32 bits here. Replace ids by their "
                "index, `np.unique(ids, return_inverse=True)[1]`. "
                f"Received: labels from {given.min()} to {given.max()}"
            )
    return tensor


def as_labels(labels):
    """Returns labels of shape `(batch, 1)` as `(batch,)`, others as they are."""
    return ops.squeeze(labels, 1) if len(labels.shape) == 2 and labels.shape[1] == 1 else labels


def labelled(labels, valid, unlabelled: int | None):
    """Returns which of the valid items have a label.

    Args:
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool, or `None` if all items are valid.
        unlabelled: The label of an item without a label, in a row of classes the value of every
            entry; `None` if every item has a label.

    Returns:
        `(batch,)`, bool, or `None` if all items are valid and have a label.
    """
    if unlabelled is None:
        return valid
    least, largest = _range_of(labels.dtype)
    if not least <= unlabelled <= largest:
        return valid
    has_label = ops.not_equal(labels, ops.cast(unlabelled, labels.dtype))
    if len(has_label.shape) == 2:
        has_label = ops.any(has_label, axis=1)
    return has_label if valid is None else ops.logical_and(valid, has_label)


def check_labels(labels, valid, name: str, is_pair: bool) -> None:
    """Raises `ValueError` if a label of a valid item cannot be meant.

    A pair has a label from 0 to 1, and so has each class in a row of classes. The check needs
    values that the host can read: it does nothing within a compiled function, or for PyTorch
    tensors on an accelerator.

    Args:
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool, or `None` if all items are valid.
        name: What expects the labels, for the message.
        is_pair: Whether labels belong to pairs; else they are classes.
    """
    if not is_pair and len(labels.shape) < 2:
        return
    values, included = host_values(labels), None if valid is None else host_values(valid)
    if values is None or (included is None and valid is not None):
        return
    values = values if included is None else values[included]
    if values.dtype == bool or not values.size:
        return
    least, largest = values.min(), values.max()
    if least >= 0 and largest <= 1:
        return
    if is_pair:
        expected = (
            "labels from 0 (a pair that does not belong together) to 1 (one that does). "
            "Pass (y + 1) / 2 in place of labels -1 and 1"
        )
    else:
        expected = (
            "class rows with 1 for each class of an item and 0 for the others. "
            "Pass one id an item as (batch,)"
        )
    raise ValueError(f"{name} expects {expected}. Received: labels from {least:g} to {largest:g}")


def _range_of(dtype) -> tuple[float, float]:
    """Returns the least and the largest number of a dtype, without bounds for floats."""
    dtype = keras.backend.standardize_dtype(dtype)
    if dtype == "bool":
        return 0, 1
    if "int" not in dtype:
        return -math.inf, math.inf
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
