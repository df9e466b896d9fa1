"""A loss over the labelled targets of a batch."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import reduce_values
from keras_jointloss._core.keras import masked
from keras_jointloss._core.math import divide_or_0
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.validation import invalid
from keras_jointloss.terms._probe import ignores_zeros, is_mean_over_elements
from keras_jointloss.terms.element_weights import validate_rank, weighs_elements
from keras_jointloss.terms.missing.targets import (
    elements,
    expand,
    fill,
    items,
    validate_missing,
    with_rank,
)


class LabelledValue(NamedTuple):
    """The loss of a batch."""

    #: The loss as Keras expects it: under `tf.distribute`, divided by the number of replicas.
    loss: Any
    labelled: Any  # The number of labelled targets
    targets: Any  # The number of targets, without those that Keras masks
    divisor: Any  # What the mean divides by; `None` if the loss is a sum


class LabelledLoss:
    """Computes a loss over the labelled targets of a batch.

        loss = sum_i w_i * loss_i / n

    where `i` runs over the labelled targets, `w_i` is the sample weight and `n` the number of the
    labelled targets, or, for the reduction `"mean_with_sample_weight"`, the sum of their weights.
    Where a target is an element of a row, `w_i` may be the weight of a row or of the element.
    Without labelled targets the loss is 0.

    If the loss is a mean over the last axis, a target is an element of `(batch, ..., k)`. Otherwise
    it is a row, which is labelled if all of its elements are. A trial in the constructor finds out.
    A loss that returns one number for a batch or an item, such as `keras.losses.Dice`, receives 0
    for missing targets and for their predictions, which must not change its value.
    """

    def __init__(
        self, compute: Callable[[Any, Any], Any], reduction: Any, dtype: str, missing: float
    ):
        validate_reduction(reduction, missing)
        self.missing = validate_missing(missing)
        self._compute = compute
        self._reduction = reduction
        self.dtype = dtype
        #: Whether the loss is a mean over the last axis.
        self.is_elementwise = is_mean_over_elements(compute)
        #: Whether the loss is one number for a batch or an item, such as `keras.losses.Dice`.
        self.ignores_zeros = not self.is_elementwise and ignores_zeros(compute)

    def __call__(self, y_true, y_pred, sample_weight=None) -> LabelledValue:
        if keras.tree.is_nested(y_pred) or keras.tree.is_nested(y_true):
            raise ValueError(
                "Expected one tensor as target and prediction of an output with missing targets. "
                f"Received: y_true={y_true!r}, y_pred={y_pred!r}"
            )
        y_true, plain_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        values = self._values(y_true, plain_pred)
        return labelled_value(*values, y_pred, sample_weight, self._reduction, self.dtype)

    def has_weight(self, y_true, y_pred, sample_weight):
        """Returns whether any labelled target has a weight other than 0."""
        y_true, plain_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        weighs = ops.not_equal(ops.convert_to_tensor(sample_weight), 0)
        batch = elements(y_true, plain_pred, self.missing) if self.is_elementwise else None
        if batch is None:
            labelled = items(y_true, plain_pred, self.missing)
        elif weighs_elements(weighs, batch[1]):
            labelled = ops.any(ops.logical_and(batch[2], weighs), axis=-1)
            weighs = ops.ones_like(labelled)
        else:
            labelled = ops.any(batch[2], axis=-1)
        labelled = ops.cast(labelled, self.dtype)
        weighs = expand(ops.cast(weighs, self.dtype), len(labelled.shape))
        return reduce_values(labelled, y_pred, weighs) > 0

    def _values(self, y_true, y_pred) -> tuple[Any, Any, bool]:
        """Returns the values, which targets are labelled, and whether these are elements.

        Of the shape `(batch, ...)`, with a last axis of elements if there are any. The value of a
        target that is not labelled is 0.
        """
        batch = elements(y_true, y_pred, self.missing) if self.is_elementwise else None
        if batch is not None:
            return *self._values_of_elements(*batch), True
        if self.ignores_zeros:
            return *self._with_zeros(y_true, y_pred), False
        mask = items(y_true, y_pred, self.missing)
        values = self._compute(*fill(y_true, y_pred, mask))
        if not len(values.shape):
            raise ValueError(
                "Expected a loss that returns one value for each item of an output with missing "
                "targets, or a scalar that targets and predictions of 0 do not change. Received: a "
                "loss that returns another scalar"
            )
        mask = with_rank(mask, len(values.shape))
        if any(
            a != b and None not in (a, b) for a, b in zip(mask.shape, values.shape, strict=True)
        ):
            raise ValueError(
                "Expected a loss that returns one value for each item of an output with missing "
                f"targets. Received: a loss of the shape {tuple(values.shape)} for targets of the "
                f"shape {tuple(y_true.shape)}"
            )
        # Of the shape of the values, whose axes the mask may have with size 1.
        mask = ops.broadcast_to(mask, ops.shape(values))
        return ops.where(mask, values, 0), ops.cast(mask, values.dtype), False

    def _values_of_elements(self, y_true, y_pred, mask) -> tuple[Any, Any]:
        y_true, y_pred = fill(y_true, y_pred, mask)
        columns = [ops.reshape(y, (-1, 1)) for y in (y_true, y_pred)]
        values = ops.reshape(self._compute(*columns), ops.shape(mask))
        values, labelled = ops.where(mask, values, 0), ops.cast(mask, values.dtype)
        if self._reduction == "sum":
            # The loss of an item is a mean over its elements. Missing ones count as 0.
            values = ops.divide(values, ops.shape(mask)[-1])
        return values, labelled

    def _with_zeros(self, y_true, y_pred) -> tuple[Any, Any]:
        batch = elements(y_true, y_pred, self.missing)
        if batch is None:
            mask = items(y_true, y_pred, self.missing)
        else:
            y_true, y_pred, mask = batch
        value = self._compute(*fill(y_true, y_pred, mask, prediction=0.0))
        if len(value.shape) > 1:
            raise ValueError(
                "Expected a loss that returns one value for each item or for a batch of an output "
                f"with missing targets. Received: a loss of the shape {tuple(value.shape)}"
            )
        has_label = ops.any(mask, axis=tuple(range(1, len(mask.shape))))  # (batch,)
        labelled = ops.cast(has_label, value.dtype)
        if self._reduction == "sum" and not len(value.shape):
            value = divide_or_0(value, ops.sum(labelled))
        return ops.where(has_label, value, 0), labelled


def labelled_value(
    values, labelled, has_element_axis: bool, y_pred, sample_weight, reduction: str, dtype: str
) -> LabelledValue:
    """Returns the loss of a batch from the values of its targets, which are 0 if not labelled.

    Args:
        values: Of the shape `(batch, ...)`, with a last axis of elements if there are any.
        labelled: Whether each is labelled, 1 or 0.
        has_element_axis: Whether there is an axis of elements.
        y_pred: The prediction, whose mask of Keras applies.
        sample_weight: As in a loss.
        reduction: As in a loss, not `"none"`.
        dtype: That of the loss.
    """
    weighted, is_weighted = labelled, sample_weight is not None
    if has_element_axis and weighs_elements(sample_weight, values):
        weight = ops.cast(sample_weight, values.dtype)
        values, weighted, sample_weight = values * weight, labelled * weight, None
    elif is_weighted:
        validate_rank(values[..., 0] if has_element_axis else values, sample_weight)
    first = values[..., 0] if has_element_axis else values
    is_unmasked = masked(first, y_pred, dtype=dtype) is None
    size, ones = math.prod(ops.shape(values)), None if is_unmasked else ops.ones_like(values)
    if has_element_axis and not (is_unmasked and sample_weight is None):
        values, labelled, ones, weighted = (
            None if x is None else ops.sum(x, axis=-1) for x in (values, labelled, ones, weighted)
        )

    def total(values, weight=None):
        if weight is None and is_unmasked:
            return ops.sum(values)
        return reduce_values(values, y_pred, weight, "sum", dtype)

    loss, count, divisor = total(values, sample_weight), total(labelled), None
    if reduction != "sum":
        is_weighted = is_weighted and reduction == "mean_with_sample_weight"
        divisor = total(weighted, sample_weight) if is_weighted else count
        loss = _mean(loss, divisor)
    targets = size if is_unmasked else total(ones)
    return LabelledValue(loss, count, targets, divisor)


def validate_reduction(reduction: Any, missing: Any) -> None:
    """Raises `ValueError` if a loss has no reduction, although targets may be missing."""
    if reduction in (None, "none"):
        raise invalid(
            "missing", "None for a loss without a reduction", missing, f", reduction={reduction!r}"
        )


def _mean(total, divisor):
    """Returns `total / divisor`, as one replica's part of the mean over all replicas."""
    mean, replicas = divide_or_0(total, divisor), current_replicas()
    return mean if replicas.count == 1 else replicas.own_mean(mean / replicas.loss_divisor, divisor)
