"""Retrieval metrics that look at all right candidates of a query, not at the best one alone."""

import math

import keras
from keras import ops

from keras_jointloss._core.batch import Items, rows_of, validate_unlabelled
from keras_jointloss._core.math import SIMILARITIES
from keras_jointloss._core.types import Direction, DType, Labels, Mask, Sharing, Similarity, Tensor
from keras_jointloss._core.validation import validate_choice, validate_count, validate_name
from keras_jointloss.metrics.base import ViewsMetric, all_or, other_pairs
from keras_jointloss.metrics.retrieval import (
    RetrievalMetric,
    closeness_matrix,
    first_features,
    name_with,
    validate_dim,
)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MeanAveragePrecision(RetrievalMetric):
    """The mean average precision of a search of the batch for the items with the query's label.

    `R` candidates have the query's label and are right, its own other view among them; `p_1` to
    `p_R` are their positions in the list of all candidates, the most similar first:

        mean over queries of  1/R sum_{j=1..R} j / p_j

    A wrong candidate that is at least as similar as a right one, up to rounding, comes before it.
    The candidates are the items of the batch, so compare values at the same batch size. Without
    labels, or with `same_label="ignore"`, one candidate is right, and the metric is
    `MeanReciprocalRank`. `MeanAveragePrecisionAtR` considers the `R` most similar candidates only,
    among all views.

    Args:
        direction: `"a_to_b"` to search the second views with the first views as queries, `"b_to_a"`
            for the reverse, or `"both"` for the mean of the two.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: How to treat other items with the query's label: `"positive"` as right
            candidates, `"ignore"` as neither right nor wrong. `None` if there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        dim: The number of features to compare, the first ones, as after a cut of embeddings that
            `keras_jointloss.losses.Matryoshka` has trained. `None`: all.
        name: Name of the metric, by default `"mean_average_precision"`, with `"_dim_<dim>"` if
            there is one.
        dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true`: `(batch,)` or `(batch, 1)`, labels of any dtype, with
        `same_label`; otherwise it is not used.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Manning, Raghavan & Schütze, 2008, Introduction to Information Retrieval, section 8.4

    Example:

    >>> import numpy as np
    >>> a = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> views = np.stack([a, a], axis=1)
    >>> metric = MeanAveragePrecision()  # positions: 1 and 3; 1; 1 and 3
    >>> round(float(metric(np.array([0, 1, 0]), views)), 4)
    0.8889
    """

    def __init__(
        self,
        direction: Direction = "both",
        similarity: Similarity = "cosine",
        same_label: Sharing = "positive",
        unlabelled: int | None = None,
        dim: int | None = None,
        name: str | None = None,
        dtype: DType = None,
    ):
        name = validate_name(name) or name_with("mean_average_precision", dim)
        super().__init__(direction, similarity, same_label, unlabelled, dim, name, dtype)

    def score(self, closeness: Tensor, rounding: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
        right, position = _in_order(closeness, rounding, right, wrong)
        precision = ops.cumsum(right, axis=1) / position
        return ops.sum(right * precision, axis=1) / ops.sum(right, axis=1)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class NormalizedDiscountedCumulativeGain(RetrievalMetric):
    """nDCG@k: how high a search of the batch ranks the items with the query's label.

    `R` candidates have the query's label and are right, its own other view among them; `p_1` to
    `p_R` are their positions in the list of all candidates, the most similar first:

        gain_k(p) = sum_{p_j <= k} 1 / log2(1 + p_j)
        mean over queries of  gain_k(p) / gain_k(1, 2, ..., R)

    It is 1 if the right candidates come first. A wrong candidate that is at least as similar as a
    right one, up to rounding, comes before it. The candidates are the items of the batch, so
    compare values at the same batch size. Without labels, or with `same_label="ignore"`, one
    candidate is right.

    Args:
        k: The number of candidates to consider, 1 or more.
        direction: `"a_to_b"` to search the second views with the first views as queries, `"b_to_a"`
            for the reverse, or `"both"` for the mean of the two.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: How to treat other items with the query's label: `"positive"` as right
            candidates, `"ignore"` as neither right nor wrong. `None` if there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        dim: The number of features to compare, the first ones, as after a cut of embeddings that
            `keras_jointloss.losses.Matryoshka` has trained. `None`: all.
        name: Name of the metric, by default `"ndcg_at_<k>"`, or `"ndcg_at_<k>_dim_<dim>"`.
        dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true`: `(batch,)` or `(batch, 1)`, labels of any dtype, with
        `same_label`; otherwise it is not used.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Järvelin & Kekäläinen, 2002, Cumulated Gain-Based Evaluation of IR Techniques

    Example:

    >>> import numpy as np
    >>> a = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> views = np.stack([a, a], axis=1)
    >>> metric = NormalizedDiscountedCumulativeGain(3)  # positions: 1 and 3; 1; 1 and 3
    >>> round(float(metric(np.array([0, 1, 0]), views)), 4)
    0.9465
    """

    def __init__(
        self,
        k: int = 10,
        direction: Direction = "both",
        similarity: Similarity = "cosine",
        same_label: Sharing = "positive",
        unlabelled: int | None = None,
        dim: int | None = None,
        name: str | None = None,
        dtype: DType = None,
    ):
        k, name = validate_count(k, "k"), validate_name(name) or name_with(f"ndcg_at_{k}", dim)
        super().__init__(direction, similarity, same_label, unlabelled, dim, name, dtype, k=k)

    def score(self, closeness: Tensor, rounding: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
        right, position = _in_order(closeness, rounding, right, wrong)
        discount = ops.where(position <= self.k, math.log(2.0) / ops.log(1.0 + position), 0.0)
        number = ops.sum(right, axis=1, keepdims=True)
        ideal = ops.sum(ops.where(position <= number, discount, 0.0), axis=1)
        return ops.sum(right * discount, axis=1) / ideal


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
        dim: The number of features to compare, the first ones, as after a cut of embeddings that
            `keras_jointloss.losses.Matryoshka` has trained. `None`: all.
        name: Name of the metric, by default `"mean_average_precision_at_r"`, with `"_dim_<dim>"`
            if there is one.
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
    takes_items = True
    higher_is_better = True

    def __init__(
        self,
        similarity: Similarity = "cosine",
        unlabelled: int | None = None,
        dim: int | None = None,
        name: str | None = None,
        dtype: DType = None,
    ):
        super().__init__(
            validate_name(name) or name_with("mean_average_precision_at_r", dim),
            dtype,
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            unlabelled=validate_unlabelled(unlabelled),
            dim=validate_dim(dim),
        )

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        views, number = first_features(views, self.dim), views.shape[1]
        samples = ops.reshape(views, (-1, 1, views.shape[2]))  # (batch * views, 1, dim)
        labels = ops.repeat(labels, number, axis=0)
        queries = None if items is None else Items(number * items.start, number * items.size)
        valid = ops.repeat(all_or(valid, views), number, axis=0)
        candidates = other_pairs(samples, valid, items=queries)  # (queries, batch * views)
        right = ops.logical_and(candidates, rows_of(labels, queries)[:, None] == labels[None, :])

        wrong = ops.logical_and(candidates, ops.logical_not(right))
        samples = samples[:, 0]
        closeness, rounding = closeness_matrix(rows_of(samples, queries), samples, self.similarity)
        right, position = _in_order(closeness, rounding, right, wrong)
        precision = ops.cumsum(right, axis=1) / position
        number_right = ops.sum(right, axis=1, keepdims=True)
        precision = ops.where(position <= number_right, right * precision, 0.0)
        values = ops.sum(precision, axis=1) / ops.maximum(number_right[:, 0], 1.0)

        # All views of an item have the same number of candidates with their label.
        values = ops.sum(ops.reshape(values, (-1, number)), axis=1) / number
        counts = ops.reshape(number_right, (-1, number))[:, 0] > 0
        return values, ops.cast(counts, views.dtype)


def _in_order(closeness, rounding, right, wrong):
    """Returns which candidates are right, the closest first, and their positions from 1.

    Returns:
        Two float tensors `(queries, candidates)` and `(candidates,)`. Candidates that are neither
        right nor wrong come last.
    """
    ahead = ops.where(right, closeness, closeness + rounding)  # A tie counts against the model.
    order = ops.argsort(ops.where(ops.logical_or(right, wrong), -ahead, math.inf), axis=1)
    right = ops.take_along_axis(ops.cast(right, closeness.dtype), order, axis=1)
    position = 1 + ops.arange(ops.shape(right)[1], dtype="int32")
    return right, ops.cast(position, closeness.dtype)
