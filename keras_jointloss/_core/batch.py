"""A batch and what it says about its items: masks, weights and class labels."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_jointloss._core import backend as _backend
from keras_jointloss._core.backend import host_values
from keras_jointloss._core.keras import masked, reduced_as_loss
from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.math import value_range
from keras_jointloss._core.validation import invalid, shown, validate_count

#: What the names of dtypes contain that are no real numbers.
_NOT_REAL = ("complex", "str", "<U", ">U", "|S", "object", "datetime", "timedelta")


class Batch(NamedTuple):
    """What a loss or metric on views compares."""

    views: Any  # `(batch, views, dim)`, float
    labels: Any = None  # `(batch,)` or `(batch, classes)`, or `None`
    mask: Any = None  # `(batch,)`, bool: which items to include. `None` for all
    sample_weight: Any = None  # `(batch,)`, or `None`
    sampling_probability: Any = None  # `(batch,)`, or `None`
    guide: Any = None  # `(batch, views, guide_dim)`, the views embedded by another model, or `None`

    def size(self, dtype):
        """Returns the number of items, those that the mask excludes too, as a scalar."""
        return ops.cast(ops.shape(self.views)[0], dtype)

    def valid(self):
        """Returns which items take part: the mask without those of weight 0; `None` for all."""
        if self.sample_weight is None:
            return self.mask
        weighs = ops.not_equal(self.sample_weight, 0)
        return weighs if self.mask is None else ops.logical_and(self.mask, weighs)


class Items(NamedTuple):
    """Some successive items of a batch, whose losses are wanted; the others are candidates only."""

    start: Any  # The index of the first
    size: Any  # How many


def rows_of(x, items: Items | None, count: int = 1):
    """Returns the rows of some items, each of which has `count` rows; all if `items` is `None`."""
    if x is None or items is None:
        return x
    return x[count * items.start : count * (items.start + items.size)]


def finite_items(views):
    """Returns 1 for each item whose views are finite, and NaN for the others: `(batch,)`.

    Comparisons with NaN are false, and the hinge of an infinite distance is 0: a loss can be finite
    although its gradient is not. Its product with this factor is NaN, like the gradient of it.
    """
    is_finite = ops.isfinite(ops.sum(ops.stop_gradient(views), axis=(1, 2)))
    return ops.where(is_finite, ops.ones_like(views[:, 0, 0]), math.nan)


def stacked(views):
    """Returns `(batch, views, dim)` unchanged, and one view per item, `(batch, dim)`, as such."""
    return views[:, None] if len(views.shape) == 2 else views


def reduce_values(values, y_pred, sample_weight=None, reduction="sum", dtype=None):
    """Reduces the values of items, `(batch, ...)`, as Keras reduces those of a loss.

    The mask of `y_pred` applies; the other arguments are those of a loss.
    """
    return reduced(reduced_as_loss(values, y_pred, sample_weight, reduction, dtype), reduction)


def reduced(loss, reduction):
    """Returns what a loss of Keras returned, as 0 if a replica without items runs eagerly.

    Keras does not reduce the values of no items, of the shape `(0,)`.
    """
    is_unreduced = tuple(loss.shape) == (0,) and reduction not in (None, "none")
    return ops.sum(loss) if is_unreduced else loss


def item_weights(sample_weight, views):
    """Returns the weight of each item, `(batch,)`, from a number or one per item."""
    weight = ops.reshape(ops.convert_to_tensor(sample_weight), (-1,))
    return ops.broadcast_to(weight, ops.shape(views)[:1])


def valid_items(views, sample_weight=None):
    """Returns the mask of included items, `(batch,)`, bool, or `None` if all are known to be.

    An item is excluded if its weight is 0, or if Keras masks a view of it. The views are
    `(batch, views, dim)` or `(batch, dim)`, the weight is a number or one per item.
    """
    first = stacked(ops.convert_to_tensor(views))[:, 0, :1]
    mask = masked(ops.ones_like(first, dtype=keras.config.floatx()), views)  # (batch, 1 or views)
    valid = None if mask is None else ops.all(mask > 0, axis=1)
    if sample_weight is None:
        return valid
    weighs = ops.not_equal(item_weights(sample_weight, views), 0)
    return weighs if valid is None else ops.logical_and(valid, weighs)


def validate_unlabelled(value: Any, same_label: str | None = "positive") -> int | None:
    """Returns `value` if it is a label that can mark items without one, or `None`.

    It must be `None` if `same_label` is: then there are no labels.
    """
    if value is not None and same_label is None:
        raise invalid("unlabelled", "None, since same_label=None", value)
    return None if value is None else validate_count(value, "unlabelled", minimum=-(2**31))


def check_numbers(value: Any, name: str, owner: str) -> None:
    """Raises `ValueError` unless a value is an array of real numbers.

    The owner is what it is passed to, and the name that of the argument.
    """
    dtype, cause = str(getattr(value, "dtype", "")), None
    is_array = not (value is None or isinstance(value, str | bytes | Mapping))
    if is_array and not dtype:  # A number, or a list of lists.
        try:
            dtype = str(ops.convert_to_tensor(value).dtype)
        except Exception as error:  # Each backend raises its own.
            is_array, cause = False, error
    if not is_array or not _is_real(dtype):
        raise ValueError(
            f"{owner} expects an array of numbers as `{name}`. Received: {name}={shown(value)}"
        ) from cause


@functools.cache  # Asked for every array of a step that runs eagerly.
def _is_real(dtype: str) -> bool:
    return not any(x in dtype for x in _NOT_REAL)


def validate_batch_axis(shape: Any, name: str) -> None:
    """Raises `ValueError` if the inputs of a layer with this shape have no batch axis."""
    if shape is None or shape == ():
        raise ValueError(
            f"{name!r} expects tensors with a batch axis. Received: input_shape={shape}"
        )


def label_tensor(labels: Any):
    """Returns labels as a tensor.

    Raises `ValueError` if the backend would truncate 64-bit integers to 32 bits, which could make
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
    """Returns the mask of the valid items that have a label, `(batch,)`, or `None` if all do.

    Labels are `(batch,)` or `(batch, classes)`. The label `unlabelled` marks items without one: in
    a row of classes, it is the value of every entry.
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


def validate_views(shape, least: int, most: float, name: str) -> None:
    """Raises `ValueError` unless a shape is that of `least` to `most` stacked views of each item.

    One view of each may also have the shape `(batch, dim)`.
    """
    views = shape[1] if len(shape) == 3 else int(len(shape) == 2)
    has_no_features = len(shape) > 0 and shape[-1] == 0
    if has_no_features or (views is not None and not least <= views <= most):
        more = "" if most == least else " or more" if most == math.inf else f" to {most:g}"
        one = " or one view of shape (batch, dim)" if least == 1 else ""
        raise ValueError(
            f"{name} expects stacked views of shape (batch, {least}{more}, dim){one}. "
            f"Received: shape={tuple(shape)}"
        )


def validate_vector(
    shape, size: int | None, name: str, what: str = "labels", may_be_classes: bool = False
) -> None:
    """Raises `ValueError` if a shape does not hold one number, or a row of classes, per item."""
    is_matrix = len(shape) == 2 and (shape[1] in (1, None) or may_be_classes)
    differs = len(shape) > 0 and None not in (shape[0], size) and shape[0] != size
    if differs or not (len(shape) == 1 or is_matrix):
        batch = size or "batch"
        classes = f" or ({batch}, classes)" if may_be_classes else ""
        raise ValueError(
            f"{name} expects {what} of shape ({batch},) or ({batch}, 1){classes}. "
            f"Received: shape={tuple(shape)}"
        )


def validate_items(count: int | None, sample_weight: Any, name: str) -> None:
    """Raises `ValueError` if there are no items, or another number of weights."""
    # One of several replicas may have none of the items of a small batch.
    if count == 0 and _backend.current_replicas().count == 1:
        raise ValueError(f"{name} expects one item or more. Received: y_pred of an empty batch")
    if sample_weight is None:
        return
    check_numbers(sample_weight, "sample_weight", name)
    shape = tuple(ops.convert_to_tensor(sample_weight).shape)
    differs = shape and None not in (shape[0], count) and shape[0] not in (1, count)
    if differs or any(size not in (1, None) for size in shape[1:]):
        raise ValueError(
            f"{name} expects `sample_weight` of shape ({count},). "
            f"Received: sample_weight of shape {shape}"
        )


def check_labels(labels, valid, name: str, kind: str | None) -> None:
    """Raises `ValueError` if a valid item has a label out of range.

    The label of a pair and each entry of a class row lie in [0, 1]; other labels are finite. The
    check needs values that the host can read: it does nothing in a compiled function or for PyTorch
    tensors on an accelerator. The name is that of the loss or metric, the kind that of the labels:
    `"pair"`, `"score"`, or a class.
    """
    is_id = kind not in ("pair", "score") and len(labels.shape) < 2
    if is_id and "float" not in keras.backend.standardize_dtype(labels.dtype):
        return
    values, included = host_values(labels), None if valid is None else host_values(valid)
    if values is None or (included is None and valid is not None):
        return
    values = values if included is None else values[included]
    if values.dtype == bool or not values.size:
        return
    least, largest = values.min(), values.max()
    is_score = kind == "score"
    if is_score or is_id:
        is_valid = bool(np.isfinite([least, largest]).all())
    else:
        is_valid = least >= 0 and largest <= 1
    if is_valid:
        return
    if running_loop() == "compute_output_spec":  # Keras builds the model, with arbitrary values.
        return
    if is_score:
        expected = "finite scores"
    elif is_id:
        expected = "finite labels"
    elif kind == "pair":
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
