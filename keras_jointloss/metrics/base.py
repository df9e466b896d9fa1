"""The base of the metrics on views."""

import keras
from keras import ops

from keras_jointloss._labels import as_labels, label_tensor, labelled
from keras_jointloss._masks import valid_items
from keras_jointloss._math import float_dtype


class ViewsMetric(keras.metrics.Metric):
    """Base of the metrics that compare the views of each item.

    The views are two (or more) embeddings of the same item, stacked on axis 1. The metric is the
    weighted mean, over all items since the last reset, of a value that each item gets within
    its own batch:

        finish( sum_i weight_i count_i value_i / sum_i weight_i count_i )

    and `finish(0)` before there is any item.

    A subclass writes `values`, `finish` if the metric is not the mean itself, and `get_config` if
    it has arguments of its own. All three work on tensors alone and keep no state.

    Args:
        name: Name of the metric.
        dtype: As in `keras.metrics.Metric`. What comes in is computed in float32 at least.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, float. `y_true`: `(batch,)` or `(batch, 1)`, labels, if the
        metric has any; else it is not looked at. `sample_weight`: a number, `(batch,)` or
        `(batch, 1)`. An item of weight 0, and one with a view that Keras has masked, takes no
        part: it is not looked for, and it is not among those that others are compared with.

    Raises:
        ValueError: If the shape of `y_pred`, the labels or the weights is another.
    """

    #: How many views an item has; `None` for any number.
    views: int | None = 2
    #: Whether the metric needs labels.
    has_labels: bool = False
    #: The label of items without a label, which are excluded.
    unlabelled: int | None = None

    def __init__(self, name: str | None = None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self._total = self.add_variable((), "zeros", dtype=self.dtype, name="total")
        self._weight = self.add_variable((), "zeros", dtype=self.dtype, name="weight")

    def values(self, views, labels=None, valid=None):
        """Returns the value of each item, and how much it counts.

        Args:
            views: `(batch, views, dim)`, float32 or float64.
            labels: `(batch,)`, or `None` where `has_labels` is false.
            valid: `(batch,)`, bool: which items take part; `None` for all.

        Returns:
            Two tensors `(batch,)`, of the dtype of `views`. The count is 0 for an item that takes
            no part or for which the metric is not defined; the value is finite there, too.
        """
        raise NotImplementedError

    def finish(self, mean):
        """Returns the metric for the mean of the values, a scalar tensor."""
        return mean

    def sums(self, views, labels=None, valid=None, weight=None):
        """Returns what a batch adds to the two sums whose quotient is the mean.

        Args:
            views: `(batch, views, dim)`, float.
            labels: As in `values`.
            valid: As in `values`.
            weight: `(batch,)`, or `None` where every item weighs 1.

        Returns:
            Two scalars of float32 at least: the sum of the values, each times its count and
            weight, and the sum of these factors.
        """
        views = ops.cast(views, float_dtype(views.dtype))
        if self.has_labels:
            valid = labelled(labels, valid, self.unlabelled)
        if valid is not None:
            # Whatever stands in a padded item, 0 times it is to be 0.
            views = ops.where(valid[:, None, None], views, ops.zeros_like(views))
        values, counts = self.values(views, labels, valid)
        if weight is not None:
            counts = counts * ops.cast(weight, counts.dtype)
        return ops.sum(values * counts), ops.sum(counts)

    def update_state(self, y_true, y_pred, sample_weight=None):
        views = ops.convert_to_tensor(y_pred)
        self.validate_views(views.shape)
        labels = None
        if self.has_labels:
            labels = label_tensor(y_true)
            self._validate_vector(labels.shape, views.shape[0], "labels")
            labels = as_labels(labels)
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight)
            if len(sample_weight.shape) > 0:
                self._validate_vector(sample_weight.shape, views.shape[0], "weights")
            sample_weight = ops.broadcast_to(
                ops.reshape(sample_weight, (-1,)), (ops.shape(views)[0],)
            )
        valid = valid_items(y_pred, sample_weight)
        total, weight = self.sums(views, labels, valid, sample_weight)
        self._total.assign_add(ops.cast(total, self._total.dtype))
        self._weight.assign_add(ops.cast(weight, self._weight.dtype))

    def result(self):
        return self.finish(ops.divide_no_nan(self._total, self._weight))

    def validate_views(self, shape) -> None:
        """Raises `ValueError` if `shape` is not that of stacked views."""
        if len(shape) != 3 or (self.views is not None and shape[1] not in (self.views, None)):
            raise ValueError(
                f"{type(self).__name__} expects stacked views of shape "
                f"(batch, {self.views or 'views'}, dim). Received: shape={tuple(shape)}"
            )

    def _validate_vector(self, shape, batch_size, what):
        """Raises `ValueError` if `shape` is not that of one number an item."""
        is_vector = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
        if not is_vector or (None not in (shape[0], batch_size) and shape[0] != batch_size):
            raise ValueError(
                f"{type(self).__name__} expects {what} of shape ({batch_size or 'batch'},) or "
                f"({batch_size or 'batch'}, 1). Received: shape={tuple(shape)}"
            )


def all_or(valid, views):
    """Returns `valid`, or for `None` that all items are: `(batch,)`, bool."""
    return ops.ones_like(views[:, 0, 0], dtype="bool") if valid is None else valid


def own_pairs(views):
    """Returns where in a matrix of items an item meets itself: `(batch, batch)`, bool."""
    index = ops.arange(ops.shape(views)[0], dtype="int32")
    return index[:, None] == index[None, :]


def other_pairs(views, valid, labels=None):
    """Returns where a valid item meets another one, of another label: `(batch, batch)`, bool."""
    others = ops.logical_not(own_pairs(views))
    if labels is not None:
        others = ops.logical_and(others, labels[:, None] != labels[None, :])
    return ops.logical_and(others, ops.logical_and(valid[:, None], valid[None, :]))


def validate_metrics(metrics, has_labels):
    """Returns the metrics, or raises `ValueError` if one of them cannot be computed here."""
    for metric in metrics:
        if not isinstance(metric, ViewsMetric):
            raise ValueError(
                "Invalid value for argument `metrics`. Expected metrics of "
                f"`keras_jointloss.metrics`. Received: metrics={metrics!r}"
            )
        if metric.has_labels and not has_labels:
            raise ValueError(
                "Invalid value for argument `metrics`. Expected metrics without labels, since the "
                f"loss has none. Received: {metric.name!r}"
            )
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ValueError(
            "Invalid value for argument `metrics`. Expected metrics of different names. "
            f"Received: {names}"
        )
    return tuple(metrics)
