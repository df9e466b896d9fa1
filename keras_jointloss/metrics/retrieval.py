"""Retrieval metrics: each view of an item is a query for its other view."""

import math

import keras
from keras import ops

from keras_jointloss._labels import validate_unlabelled
from keras_jointloss._math import SIMILARITIES
from keras_jointloss._validation import validate_choice, validate_count
from keras_jointloss.metrics.base import ViewsMetric, all_or, other_pairs, own_pairs
from keras_jointloss.metrics.similarity import closeness_matrix


class RetrievalMetric(ViewsMetric):
    """Base class of the metrics that measure how high a search ranks the right candidate.

    One view of an item is the query, and the other views of all items in the batch are the
    candidates. The rank of the right candidate is

        1 + number of wrong candidates that are at least as similar

    Ties, up to rounding, count against the model: a model that gives every item the same embedding
    finds nothing. The candidates are those of the batch, so compare values at the same batch size.

    A subclass overrides `gain`.

    Args:
        direction: `"a_to_b"` to search the second views with the first views as queries, `"b_to_a"`
            for the reverse, or `"both"` for the mean of the two.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: How to treat other items with the query's label: `"positive"` as right
            candidates, the best of which counts, `"ignore"` as neither right nor wrong. `None` if
            there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        name: Name of the metric.
        dtype: As in `keras.metrics.Metric`.
    """

    def __init__(
        self,
        direction: str = "both",
        similarity: str = "cosine",
        same_label: str | None = None,
        unlabelled: int | None = None,
        name: str | None = None,
        dtype=None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.direction = validate_choice(direction, "direction", ("both", "a_to_b", "b_to_a"))
        self.similarity = validate_choice(similarity, "similarity", SIMILARITIES)
        self.same_label = validate_choice(same_label, "same_label", (None, "positive", "ignore"))
        self.has_labels = same_label is not None
        self.unlabelled = validate_unlabelled(unlabelled, same_label)

    def gain(self, ranks):
        """Returns the gain for each rank of the right candidate: `(batch,)`."""
        raise NotImplementedError

    def values(self, views, labels=None, valid=None):
        valid = all_or(valid, views)
        others = other_pairs(views, valid)
        wrong = other_pairs(views, valid, labels) if self.has_labels else others
        right = own_pairs(views)
        if self.same_label == "positive":
            right = ops.logical_or(right, ops.logical_and(others, ops.logical_not(wrong)))
        closeness, rounding = closeness_matrix(views[:, 0], views[:, 1], self.similarity)
        gains = []
        if self.direction != "b_to_a":
            gains.append(self.gain(_ranks(closeness, rounding, right, wrong)))
        if self.direction != "a_to_b":
            closeness, rounding = ops.transpose(closeness), ops.transpose(rounding)
            gains.append(self.gain(_ranks(closeness, rounding, right, wrong)))
        return sum(gains) / len(gains), ops.cast(valid, views.dtype)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "direction": self.direction,
            "similarity": self.similarity,
            "same_label": self.same_label,
            "unlabelled": self.unlabelled,
        }


def _ranks(closeness, rounding, right, wrong):
    """Returns the rank of each query's best right candidate (axis 1): `(batch,)`, float."""
    best = ops.max(ops.where(right, closeness, -math.inf), axis=1, keepdims=True)
    # NaN counts as ahead: a model that has diverged finds nothing.
    is_ahead = ops.logical_and(wrong, ops.logical_not(closeness + rounding < best))
    return 1.0 + ops.sum(ops.cast(is_ahead, closeness.dtype), axis=1)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class RecallAtK(RetrievalMetric):
    """The share of queries whose right candidate is among the first `k` of the batch.

        mean_i [ rank_i <= k ]

    where the rank is 1 + the number of wrong candidates that are at least as similar: ties, up to
    rounding, count against the model. With `k` as large as the batch, the metric is 1. The
    candidates are the items of the batch, so compare values at the same batch size;
    `keras_jointloss.callbacks.RetrievalEvaluation` searches a whole set.

    Args:
        k: The number of candidates to consider, 1 or more.
        direction: `"a_to_b"` to search the second views with the first views as queries, `"b_to_a"`
            for the reverse, or `"both"` for the mean of the two.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: How to treat other items with the query's label: `"positive"` as right
            candidates, the best of which counts, `"ignore"` as neither right nor wrong. `None` if
            there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        name: Name of the metric, `"recall_at_<k>"` by default.
        dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true`: `(batch,)` or `(batch, 1)`, labels of any dtype, with
        `same_label`; otherwise it is not used.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    Example:

    >>> import numpy as np
    >>> a = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> views = np.stack([a, a], axis=1)  # the last two items are identical
    >>> round(float(RecallAtK(1)(None, views)), 4), round(float(RecallAtK(2)(None, views)), 4)
    (0.3333, 1.0)
    """

    def __init__(
        self,
        k: int = 1,
        direction: str = "both",
        similarity: str = "cosine",
        same_label: str | None = None,
        unlabelled: int | None = None,
        name: str | None = None,
        dtype=None,
    ):
        self.k = validate_count(k, "k")
        super().__init__(
            direction, similarity, same_label, unlabelled, name or f"recall_at_{k}", dtype
        )

    def gain(self, ranks):
        return ops.cast(ranks <= self.k, ranks.dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "k": self.k}


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MeanReciprocalRank(RetrievalMetric):
    """The mean reciprocal rank of the right candidate in the batch.

        mean_i 1 / rank_i

    where the rank is 1 + the number of wrong candidates that are at least as similar: ties, up to
    rounding, count against the model. The candidates are the items of the batch, so compare values
    at the same batch size.

    Args:
        direction: `"a_to_b"` to search the second views with the first views as queries, `"b_to_a"`
            for the reverse, or `"both"` for the mean of the two.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: How to treat other items with the query's label: `"positive"` as right
            candidates, the best of which counts, `"ignore"` as neither right nor wrong. `None` if
            there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        name: Name of the metric.
        dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true`: `(batch,)` or `(batch, 1)`, labels of any dtype, with
        `same_label`; otherwise it is not used.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    Example:

    >>> import numpy as np
    >>> a = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> views = np.stack([a, a[::-1]], axis=1)  # each finds the other's first
    >>> float(MeanReciprocalRank()(None, views))
    0.5
    """

    def __init__(
        self,
        direction: str = "both",
        similarity: str = "cosine",
        same_label: str | None = None,
        unlabelled: int | None = None,
        name: str = "mean_reciprocal_rank",
        dtype=None,
    ):
        super().__init__(direction, similarity, same_label, unlabelled, name, dtype)

    def gain(self, ranks):
        return 1.0 / ranks


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MeanAveragePrecisionAtR(ViewsMetric):
    """The share of a query's nearest neighbours that have its label; the nearest count most.

    Every view of every item is a query, and all other views in the batch are candidates, including
    those of the same item. `R` candidates have the query's label and are right; `P(i)` is the share
    of right candidates among the `i` nearest:

        mean over queries of  1/R sum_{i=1..R} P(i) [the i-th nearest is right]

    Among candidates that are equally near, up to rounding, the wrong ones count as nearer. A query
    with `R = 0` does not count. The candidates are those of the batch, so compare values at the
    same batch size.

    Args:
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        unlabelled: The label that marks items without one, which are excluded, or `None`.
        name: Name of the metric.
        dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, any number of views, or `(batch, dim)` for one view per
        item. `y_true`: `(batch,)` or `(batch, 1)`, labels of any dtype.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Musgrave, Belongie, Lim, 2020, A Metric Learning Reality Check

    Example:

    >>> import numpy as np
    >>> views = np.array([[[1.0, 0.0]], [[0.9, 0.1]], [[0.7, 0.2]], [[0.0, 1.0]]])  # one view
    >>> float(MeanAveragePrecisionAtR()(np.array([0, 0, 1, 1]), views))
    0.75
    """

    views = None
    has_labels = True

    def __init__(
        self,
        similarity: str = "cosine",
        unlabelled: int | None = None,
        name: str = "mean_average_precision_at_r",
        dtype=None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.similarity = validate_choice(similarity, "similarity", SIMILARITIES)
        self.unlabelled = validate_unlabelled(unlabelled)

    def values(self, views, labels=None, valid=None):
        number = views.shape[1]
        samples = ops.reshape(views, (-1, 1, views.shape[2]))  # (batch * views, 1, dim)
        labels = ops.repeat(labels, number, axis=0)
        candidates = other_pairs(samples, ops.repeat(all_or(valid, views), number, axis=0))
        right = ops.logical_and(candidates, labels[:, None] == labels[None, :])

        closeness, rounding = closeness_matrix(samples[:, 0], samples[:, 0], self.similarity)
        closeness = ops.where(right, closeness - rounding, closeness)
        # NaN counts against the model, too.
        worst = ops.where(right, -1e30, ops.full_like(closeness, 1e30))
        closeness = ops.where(ops.isnan(closeness), worst, closeness)
        order = ops.argsort(ops.where(candidates, -closeness, math.inf), axis=1)
        right = ops.take_along_axis(ops.cast(right, views.dtype), order, axis=1)
        position = ops.cast(1 + ops.arange(ops.shape(right)[1], dtype="int32"), views.dtype)
        precision = ops.cumsum(right, axis=1) / position
        number_right = ops.sum(right, axis=1, keepdims=True)
        precision = ops.where(position <= number_right, right * precision, 0.0)
        values = ops.sum(precision, axis=1) / ops.maximum(number_right[:, 0], 1.0)

        # All views of an item have the same number of candidates with their label.
        values = ops.sum(ops.reshape(values, (-1, number)), axis=1) / number
        counts = ops.reshape(number_right, (-1, number))[:, 0] > 0
        return values, ops.cast(counts, views.dtype)

    def get_config(self) -> dict:
        config = {"similarity": self.similarity, "unlabelled": self.unlabelled}
        return {**super().get_config(), **config}
