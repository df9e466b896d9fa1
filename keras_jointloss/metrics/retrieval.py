"""Retrieval metrics: each view of an item is a query for its other view."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.batch import Items, rows_of, validate_unlabelled
from keras_jointloss._core.math import SIMILARITIES, dot, dot_matrix, l2_normalize, max_along
from keras_jointloss._core.types import Direction, DType, Labels, Mask, Sharing, Similarity, Tensor
from keras_jointloss._core.validation import invalid, validate_choice, validate_count, validate_name
from keras_jointloss.metrics.base import ViewsMetric, all_or, other_pairs, own_pairs


def closeness_matrix(a, b, similarity):
    """Returns a measure that orders pairs as their similarity does, and its rounding error.

    Both are `(len(a), len(b))`. The measure is the cosine, the dot product, or minus the squared
    distance, whose rounding error is known near 0, unlike that of the distance. Two pairs are tied
    if their closeness differs by at most the error, which is > 0.
    """
    if similarity == "cosine":
        a, b = l2_normalize(a), l2_normalize(b)
    squares = dot(a, a)[:, None] + dot(b, b)[None, :]  # (m, n)
    closeness = dot_matrix(a, b)
    if similarity == "euclidean":
        closeness = 2.0 * closeness - squares
    # At dim 4,096, the measured products of equal unit vectors differ by up to 2.5 roundings.
    number = np.finfo(keras.backend.standardize_dtype(squares.dtype))
    return closeness, 4.0 * float(number.eps) * squares + float(number.tiny)


def validate_dim(dim: int | None) -> int | None:
    """Returns a number of features, or `None` for all."""
    return None if dim is None else validate_count(dim, "dim")


def first_features(views, dim: int | None):
    """Returns the first `dim` features of views, `(batch, views, dim)`, or all of them."""
    if dim is None:
        return views
    if views.shape[2] < dim:
        raise invalid("dim", f"at most {views.shape[2]}, the number of features", dim)
    return views[:, :, :dim]


def name_with(name: str, dim: int | None) -> str:
    """Returns the default name of a metric of some or all features."""
    return name if dim is None else f"{name}_dim_{dim}"


class RetrievalMetric(ViewsMetric):
    """Base class of the metrics that measure how high a search ranks the right candidate.

    One view of an item is the query, and the other views of all items in the batch are the
    candidates. The rank of the right candidate is

        1 + number of wrong candidates that are at least as similar

    Ties, up to rounding, count against the model: a model that gives every item the same embedding
    finds nothing. The candidates are those of the batch, so compare values at the same batch size.

    A subclass overrides `gain`, or `score` if it depends on more than that rank.

    Args:
        direction: `"a_to_b"` to search the second views with the first views as queries, `"b_to_a"`
            for the reverse, or `"both"` for the mean of the two.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: How to treat other items with the query's label: `"positive"` as right
            candidates, the best of which counts, `"ignore"` as neither right nor wrong. `None` if
            there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        dim: The number of features to compare, the first ones, as after a cut of embeddings that
            `keras_jointloss.losses.Matryoshka` has trained. `None`: all.
        name, dtype: As in `keras.metrics.Metric`.
        **arguments: The validated arguments of the subclass.
    """

    takes_items = True
    higher_is_better = True

    def __init__(
        self,
        direction: Direction = "both",
        similarity: Similarity = "cosine",
        same_label: Sharing = None,
        unlabelled: int | None = None,
        dim: int | None = None,
        name: str | None = None,
        dtype: DType = None,
        **arguments: Any,
    ):
        super().__init__(
            name,
            dtype,
            direction=validate_choice(direction, "direction", ("both", "a_to_b", "b_to_a")),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            same_label=validate_choice(same_label, "same_label", (None, "positive", "ignore")),
            unlabelled=validate_unlabelled(unlabelled, same_label),
            dim=validate_dim(dim),
            **arguments,
        )
        self.has_labels = same_label is not None

    def gain(self, ranks: Tensor) -> Tensor:
        """Returns the gain for each rank of the right candidate: `(queries,)`."""
        raise NotImplementedError

    def score(self, closeness: Tensor, rounding: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
        """Returns the score of each query.

        Args:
            closeness: `(queries, batch)`, float: how close each candidate (axis 1) is to each
                query.
            rounding: `(queries, batch)`, > 0: the rounding error of the closeness.
            right: `(queries, batch)`, bool: the right candidates, one or more for each query.
            wrong: `(queries, batch)`, bool: the wrong candidates. The others do not count.

        Returns:
            `(queries,)`.
        """
        return self.gain(_ranks(closeness, rounding, right, wrong))

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        valid = all_or(valid, views)
        others = other_pairs(views, valid, items=items)
        wrong = other_pairs(views, valid, labels, items) if self.has_labels else others
        right = own_pairs(views, items)
        if self.same_label == "positive":
            right = ops.logical_or(right, ops.logical_and(others, ops.logical_not(wrong)))
        views = first_features(views, self.dim)
        a, b = views[:, 0], views[:, 1]
        queries, candidates = (b, a) if self.direction == "b_to_a" else (a, b)
        closeness, rounding = closeness_matrix(rows_of(queries, items), candidates, self.similarity)
        scores = self.score(closeness, rounding, right, wrong)
        if self.direction == "both":
            if items is None:
                closeness, rounding = ops.transpose(closeness), ops.transpose(rounding)
            else:
                closeness, rounding = closeness_matrix(rows_of(b, items), a, self.similarity)
            scores = (scores + self.score(closeness, rounding, right, wrong)) / 2
        return scores, ops.cast(rows_of(valid, items), views.dtype)


def _ranks(closeness, rounding, right, wrong):
    """Returns the rank of each query's best right candidate (axis 1): `(queries,)`, float."""
    best = max_along(ops.where(right, closeness, -math.inf), axis=1, keepdims=True)
    is_ahead = ops.logical_and(wrong, closeness + rounding >= best)
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
        dim: The number of features to compare, the first ones, as after a cut of embeddings that
            `keras_jointloss.losses.Matryoshka` has trained. `None`: all.
        name: Name of the metric, by default `"recall_at_<k>"`, or `"recall_at_<k>_dim_<dim>"`.
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
        direction: Direction = "both",
        similarity: Similarity = "cosine",
        same_label: Sharing = None,
        unlabelled: int | None = None,
        dim: int | None = None,
        name: str | None = None,
        dtype: DType = None,
    ):
        k, name = validate_count(k, "k"), validate_name(name) or name_with(f"recall_at_{k}", dim)
        super().__init__(direction, similarity, same_label, unlabelled, dim, name, dtype, k=k)

    def gain(self, ranks: Tensor) -> Tensor:
        return ops.cast(ranks <= self.k, ranks.dtype)


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
        dim: The number of features to compare, the first ones, as after a cut of embeddings that
            `keras_jointloss.losses.Matryoshka` has trained. `None`: all.
        name: Name of the metric, by default `"mean_reciprocal_rank"`, with `"_dim_<dim>"` if there
            is one.
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
        direction: Direction = "both",
        similarity: Similarity = "cosine",
        same_label: Sharing = None,
        unlabelled: int | None = None,
        dim: int | None = None,
        name: str | None = None,
        dtype: DType = None,
    ):
        name = validate_name(name) or name_with("mean_reciprocal_rank", dim)
        super().__init__(direction, similarity, same_label, unlabelled, dim, name, dtype)

    def gain(self, ranks: Tensor) -> Tensor:
        return 1.0 / ranks
