"""The base class of the metrics on views."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import (
    Batch,
    Items,
    as_labels,
    check_labels,
    check_numbers,
    item_weights,
    label_tensor,
    labelled,
    rows_of,
    stacked,
    valid_items,
    validate_vector,
    validate_views,
)
from keras_jointloss._core.keras_models import set_mode
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.registry import find
from keras_jointloss._core.replicas import global_batch, is_after_call
from keras_jointloss._core.types import Config, DType, Labels, Mask, Shape, Tensor, Weights
from keras_jointloss._core.validation import (
    invalid,
    validate_distinct,
    validate_list,
    validate_name,
)


class ViewsMetric(keras.metrics.Metric):
    """Base class of the metrics that compare the views of each item.

    The views are two (or more) embeddings of the same item, stacked on axis 1. Each item has a
    value, computed within its batch. The metric is the weighted mean of the values over all items
    since the last reset:

        finish( sum_i weight_i count_i value_i / sum_i weight_i count_i )

    It is `finish(0)` before the first item. It is NaN once an item that takes part has a view with
    NaN or infinity, whether or not its value depends on them. Under `tf.distribute` the batch is
    that of all replicas, except where a layer updates the metric in its `call`.

    A subclass overrides `values`, and `finish` if the metric is not the mean itself. It validates
    its own arguments and passes them to `__init__` as keyword arguments. They become attributes and
    part of the config. `values` and `finish` work on tensors alone and keep no state. If
    `takes_items` is true, `values` has an argument `items`, so that each of several replicas
    computes the values of its own items alone.

    Args:
        name: Name of the metric.
        dtype: As in `keras.metrics.Metric`. The computation uses at least float32.
        **arguments: The validated arguments of the subclass.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, float; for a metric of any number of views, also `(batch, dim)`
        for one view per item. `y_true`: `(batch,)` or `(batch, 1)`, labels, if the
        metric needs them; otherwise it is not used. `sample_weight`: a number, `(batch,)` or
        `(batch, 1)`. An item that has weight 0 or a view that Keras masks is excluded: it is not
        evaluated, and other items are not compared with it.

    Raises:
        ValueError: If `y_pred`, the labels or the weights have the wrong shape.

    Example:

    >>> class MeanNorm(ViewsMetric):
    ...     def values(self, views, labels=None, valid=None):
    ...         norms = ops.mean(ops.norm(views, axis=-1), axis=-1)
    ...         return norms, ops.ones_like(norms)
    >>> float(MeanNorm()(ops.zeros(1), ops.array([[[3.0, 4.0], [0.0, 1.0]]])))
    3.0
    """

    #: The number of views per item; `None` for any number.
    views: int | None = 2
    #: Whether the metric needs labels.
    has_labels: bool = False
    #: Whether `values` takes `items`, to compute the values of some items among all.
    takes_items: bool = False
    #: The label that marks items without one, which are excluded.
    unlabelled: int | None = None
    #: Whether a larger value is better, for callbacks that compare epochs; `None` if neither is.
    higher_is_better: bool | None = None

    if TYPE_CHECKING:  # The arguments, which are attributes.

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, name: str | None = None, dtype: DType = None, **arguments: Any):
        super().__init__(name=validate_name(name), dtype=dtype)
        if self.higher_is_better is not None:
            set_mode(self, self.higher_is_better)
        self._argument_names = tuple(arguments)
        for argument, value in arguments.items():
            setattr(self, argument, value)
        self._total = self.add_variable((), "zeros", dtype=self.dtype, name="total")
        self._weight = self.add_variable((), "zeros", dtype=self.dtype, name="weight")

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the value of each item and how much it counts.

        A metric whose `takes_items` is true receives `items` as a further argument.

        Args:
            views: `(batch, views, dim)`, float32 or float64.
            labels: `(batch,)`, or `None` if `has_labels` is false.
            valid: `(batch,)`, bool: which items to include; `None` for all.
            items: `Items(start, size)`, the successive items whose values to return, among the
                others; `None` for all.

        Returns:
            Two tensors `(batch,)`, of the dtype of `views`. The count is 0 for an item that is
            excluded or for which the metric is undefined; its value is finite all the same, if
            the views are. With
            `items`, one value and count for each of them.
        """
        raise NotImplementedError

    def finish(self, mean: Tensor) -> Tensor:
        """Returns the metric for the mean of the values, a scalar tensor."""
        return mean

    def sums(
        self,
        views: Tensor,
        labels: Labels = None,
        valid: Mask = None,
        weight: Weights = None,
        items: Items | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the contributions of a batch to the two sums whose quotient is the mean.

        Args:
            views: `(batch, views, dim)`, float.
            labels: As in `values`.
            valid: As in `values`.
            weight: `(batch,)`, or `None` if every item has weight 1.
            items: `Items(start, size)`, the successive items to sum over, among the others; `None`
                for all.

        Returns:
            Two scalars, at least float32: the sum over the items of value times count times
            weight, and the sum of count times weight.
        """
        views = ops.cast(views, float_dtype(views.dtype))
        if self.has_labels:
            valid = labelled(labels, valid, self.unlabelled)
        if valid is not None:
            # A padded item may hold NaN or infinity, whose product with 0 is NaN.
            views = ops.where(valid[:, None, None], views, ops.zeros_like(views))
        if self.takes_items:
            compute: Callable[..., tuple[Tensor, Tensor]] = self.values
            values, counts = compute(views, labels, valid, items)
        else:
            values, counts = (rows_of(x, items) for x in self.values(views, labels, valid))
        if weight is not None:
            counts = counts * ops.cast(rows_of(weight, items), counts.dtype)
        # Comparisons with NaN are false: values could be finite.
        is_finite = ops.isfinite(ops.sum(rows_of(views, items)))
        return ops.where(is_finite, ops.sum(values * counts), math.nan), ops.sum(counts)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Weights = None) -> None:
        name = type(self).__name__
        check_numbers(y_pred, "y_pred", name)
        views = ops.convert_to_tensor(y_pred)
        y_pred = y_pred if ops.is_tensor(y_pred) else views
        self.validate_views(views.shape)
        views = stacked(views)
        labels = None
        if self.has_labels:
            check_numbers(y_true, "y_true", name)
            labels = label_tensor(y_true)
            validate_vector(labels.shape, views.shape[0], name)
            labels = as_labels(labels)
        if sample_weight is not None:
            check_numbers(sample_weight, "sample_weight", name)
            sample_weight = ops.convert_to_tensor(sample_weight)
            if len(sample_weight.shape) > 0:
                validate_vector(sample_weight.shape, views.shape[0], name, "weights")
            sample_weight = item_weights(sample_weight, views)
        valid = valid_items(y_pred, sample_weight)
        if labels is not None:
            check_labels(labels, valid, name, None)
        batch = Batch(views, labels, valid, sample_weight)
        is_gathered = is_after_call()
        batch, items = global_batch(batch) if is_gathered else (batch, None)
        inputs = batch.views, batch.labels, batch.mask, batch.sample_weight
        sums = (ops.cast(x, self._total.dtype) for x in self.sums(*inputs, items=items))
        if is_gathered:
            sums = ops.unstack(current_replicas().state_sum(ops.stack([*sums])))
        total, weight = sums
        self._total.assign_add(total)
        self._weight.assign_add(weight)

    def result(self) -> Tensor:
        return self.finish(ops.divide_no_nan(self._total, self._weight))

    def get_config(self) -> Config:
        return {**super().get_config(), **{x: getattr(self, x) for x in self._argument_names}}

    def validate_views(self, shape: Shape) -> None:
        """Raises `ValueError` if `shape` is not a shape of stacked views, or of single ones."""
        least, most = (1, math.inf) if self.views is None else (self.views, self.views)
        validate_views(shape, least, most, type(self).__name__)


def all_or(valid, views):
    """Returns `valid`, or a mask of all items if it is `None`: `(batch,)`, bool."""
    return ops.ones_like(views[:, 0, 0], dtype="bool") if valid is None else valid


def own_pairs(views, items=None):
    """Returns the mask of pairs of an item with itself: `(batch, batch)`, bool.

    With `items`, the rows of these items alone.
    """
    index = ops.arange(ops.shape(views)[0], dtype="int32")
    return rows_of(index, items)[:, None] == index[None, :]


def other_pairs(views, valid, labels=None, items=None):
    """Returns the mask of pairs of different valid items: `(batch, batch)`, bool.

    With `labels`, only pairs of items with different labels remain. With `items`, the rows of these
    items alone.
    """
    others = ops.logical_not(own_pairs(views, items))
    if labels is not None:
        others = ops.logical_and(others, rows_of(labels, items)[:, None] != labels[None, :])
    both = ops.logical_and(rows_of(valid, items)[:, None], valid[None, :])
    return ops.logical_and(others, both)


def validate_metrics(metrics, has_labels):
    """Returns the metrics as a tuple, or raises `ValueError` if one cannot be computed here."""
    metrics = validate_list(metrics, "metrics", "metrics")
    metrics = [find(metric, ViewsMetric, "metrics", "metrics") for metric in metrics]
    for metric in metrics:
        if metric.has_labels and not has_labels:
            expected = "metrics without labels, since the loss has none"
            raise invalid("metrics", expected, received=repr(metric.name))
    validate_distinct(metrics, "metrics")
    return tuple(metrics)
