"""Metrics of the similarity of pairs."""

import keras
from keras import ops

from keras_jointloss._core.batch import Items, check_labels, rows_of, validate_unlabelled
from keras_jointloss._core.math import SIMILARITIES, paired_similarity, similarity_matrix
from keras_jointloss._core.types import DType, Labels, Mask, Sharing, Similarity, Tensor
from keras_jointloss._core.validation import validate_choice, validate_number
from keras_jointloss.metrics.base import ViewsMetric, all_or, other_pairs


@keras.saving.register_keras_serializable(package="keras_jointloss")
class PairAccuracy(ViewsMetric):
    """The share of labelled pairs whose similarity is on the right side of a threshold.

    With the similarity `s`, the label `y` and the threshold `m`:

        mean_i [ (s_i >= m) == (y_i = 1) ]

    Args:
        threshold: The similarity from which a pair is predicted to match. With
            `similarity="euclidean"`, it is minus the largest distance.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        name, dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`: 1 if the two
        match, 0 if not; soft labels are rounded.

    Raises:
        ValueError: If an argument is invalid, an input has the wrong shape or a label that the
            host can read is not in [0, 1].

    Example:

    >>> import numpy as np
    >>> same, other = [[1.0, 0.0], [2.0, 0.1]], [[1.0, 0.0], [0.0, 1.0]]
    >>> float(PairAccuracy()(np.array([1, 1]), np.array([same, other])))
    0.5
    """

    has_labels = True
    takes_items = True
    higher_is_better = True

    def __init__(
        self,
        threshold: float = 0.5,
        similarity: Similarity = "cosine",
        name: str = "pair_accuracy",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            dtype,
            threshold=validate_number(threshold, "threshold"),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
        )

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        views, labels, valid = (rows_of(x, items) for x in (views, labels, valid))
        similarity = paired_similarity(views[:, 0], views[:, 1], self.similarity)
        check_labels(labels, valid, type(self).__name__, "pair")
        is_right = (similarity >= self.threshold) == (ops.cast(labels, views.dtype) > 0.5)
        return ops.cast(is_right, views.dtype), ops.cast(all_or(valid, views), views.dtype)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class PositiveSimilarity(ViewsMetric):
    """The mean similarity of the two views of an item.

        mean_i s(a_i, b_i)

    Args:
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        name, dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true` is not used.

    Raises:
        ValueError: If `similarity` is invalid or `y_pred` has the wrong shape.

    Example:

    >>> import numpy as np
    >>> views = np.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    >>> round(float(PositiveSimilarity()(None, views)), 4)
    0.5
    """

    takes_items = True
    higher_is_better = True

    def __init__(
        self,
        similarity: Similarity = "cosine",
        name: str = "positive_similarity",
        dtype: DType = None,
    ):
        similarity = validate_choice(similarity, "similarity", SIMILARITIES)
        super().__init__(name, dtype, similarity=similarity)

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        views, valid = rows_of(views, items), rows_of(valid, items)
        values = paired_similarity(views[:, 0], views[:, 1], self.similarity)
        return values, ops.cast(all_or(valid, views), values.dtype)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class NegativeSimilarity(ViewsMetric):
    """The mean similarity of views of different items in a batch.

        mean_i mean_{j != i} [ s(a_i, b_j) + s(a_j, b_i) ] / 2

    An item without another item to compare it with does not count.

    Args:
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: `"ignore"` to exclude pairs of items with the same label; `None` if
            there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        name, dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true`: `(batch,)` or `(batch, 1)`, labels of any dtype, with
        `same_label="ignore"`; otherwise it is not used.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    Example:

    >>> import numpy as np
    >>> views = np.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    >>> round(float(NegativeSimilarity()(None, views)), 4)
    0.5
    """

    takes_items = True
    higher_is_better = False

    def __init__(
        self,
        similarity: Similarity = "cosine",
        same_label: Sharing = None,
        unlabelled: int | None = None,
        name: str = "negative_similarity",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            dtype,
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            same_label=validate_choice(same_label, "same_label", (None, "ignore")),
            unlabelled=validate_unlabelled(unlabelled, same_label),
        )
        self.has_labels = same_label is not None

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        a, b = views[:, 0], views[:, 1]
        matrix = similarity_matrix(rows_of(a, items), b, self.similarity)  # (items, batch)
        if items is None:
            reverse = ops.transpose(matrix)
        else:
            reverse = similarity_matrix(rows_of(b, items), a, self.similarity)
        labels = labels if self.has_labels else None
        others = other_pairs(views, all_or(valid, views), labels, items)
        count = ops.sum(ops.cast(others, views.dtype), axis=1)  # (items,)
        total = ops.sum(ops.where(others, 0.5 * (matrix + reverse), 0.0), axis=1)
        return total / ops.maximum(count, 1.0), ops.cast(count > 0, views.dtype)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SimilarityGap(NegativeSimilarity):
    """How much more similar the views of an item are than those of different items.

        mean_i ( s(a_i, b_i) - mean_{j != i} [ s(a_i, b_j) + s(a_j, b_i) ] / 2 )

    An item without another item to compare it with does not count. `PositiveSimilarity` counts such
    items, so `PositiveSimilarity` minus `NegativeSimilarity` can differ from this metric.

    Args:
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        same_label: `"ignore"` to exclude pairs of different items with the same label; `None`
            if there are no labels.
        unlabelled: The label that marks items without one, which are excluded, or `None`. Requires
            `same_label`.
        name, dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true`: `(batch,)` or `(batch, 1)`, labels of any dtype, with
        `same_label="ignore"`; otherwise it is not used.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    Example:

    >>> import numpy as np
    >>> views = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> round(float(SimilarityGap()(None, views)), 4)
    1.0
    """

    higher_is_better = True

    def __init__(
        self,
        similarity: Similarity = "cosine",
        same_label: Sharing = None,
        unlabelled: int | None = None,
        name: str = "similarity_gap",
        dtype: DType = None,
    ):
        super().__init__(similarity, same_label, unlabelled, name, dtype)

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        negative, counts = super().values(views, labels, valid, items)
        own = rows_of(views, items)
        return paired_similarity(own[:, 0], own[:, 1], self.similarity) - negative, counts
