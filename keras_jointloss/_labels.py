"""Labels of items: exact conversion, validation and items without a label."""

from typing import Any

import numpy as np
from keras import ops

from keras_jointloss import _backend
from keras_jointloss._backend import host_values
from keras_jointloss._loops import running_loop
from keras_jointloss._math import value_range
from keras_jointloss._validation import validate_count


def validate_unlabelled(value: Any, same_label: str | None = "positive") -> int | None:
    """Returns `value` if it can be the label that marks items without one.

    Args:
        value: The argument to validate.
        same_label: The argument `same_label`; `None` if there are no labels.

    Raises:
        ValueError: If `value` is neither `None` nor a whole number, or if it is given without
            labels.
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
        ValueError: If the backend would truncate 64-bit integers to 32 bits, which could make
            different labels equal.
    """
    tensor = ops.convert_to_tensor(labels)
    given = None if ops.is_tensor(labels) else np.asarray(labels)
    if given is not None and given.size and given.dtype.kind in "iu":
        least, largest = value_range(tensor.dtype)
        if given.min() < least or given.max() > largest:
            raise ValueError(
                f"Expected labels from {least} to {largest}, since "
                f"{_backend.name()} stores integers in 32 bits here. Replace ids with their "
                "indices, `np.unique(ids, return_inverse=True)[1]`. "
                f"Received: labels from {given.min()} to {given.max()}"
            )
    return tensor


def as_labels(labels):
    """Returns labels of shape `(batch, 1)` as `(batch,)`, and others unchanged."""
    return ops.squeeze(labels, 1) if len(labels.shape) == 2 and labels.shape[1] == 1 else labels


def labelled(labels, valid, unlabelled: int | None):
    """Returns the mask of the valid items that have a label.

    Args:
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool, or `None` if all items are valid.
        unlabelled: The label that marks items without one; in a row of classes, the value of every
            entry. `None` if every item has a label.

    Returns:
        `(batch,)`, bool, or `None` if all items are valid and have a label.
    """
    if unlabelled is None:
        return valid
    least, largest = value_range(labels.dtype)
    if not least <= unlabelled <= largest:
        return valid
    has_label = ops.not_equal(labels, ops.cast(unlabelled, labels.dtype))
    if len(has_label.shape) == 2:
        has_label = ops.any(has_label, axis=1)
    return has_label if valid is None else ops.logical_and(valid, has_label)


def check_labels(labels, valid, name: str, is_pair: bool) -> None:
    """Raises `ValueError` if a valid item has a label out of range.

    The label of a pair and each entry of a class row lie in [0, 1]. The check needs values that
    the host can read: it does nothing in a compiled function or for PyTorch tensors on an
    accelerator.

    Args:
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool, or `None` if all items are valid.
        name: The name of the loss or metric, for the message.
        is_pair: Whether the labels are those of pairs; otherwise they are classes.
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
    if running_loop() == "compute_output_spec":  # Keras builds the model, with arbitrary values.
        return
    if is_pair:
        expected = (
            "labels from 0 (a pair that does not match) to 1 (a pair that does). "
            "Pass (y + 1) / 2 in place of labels -1 and 1"
        )
    else:
        expected = (
            "class rows with 1 for each class of an item and 0 for the others. "
            "Pass one id per item as (batch,)"
        )
    raise ValueError(f"{name} expects {expected}. Received: labels from {least:g} to {largest:g}")
