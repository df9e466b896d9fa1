"""Metrics of the geometry of embeddings on the unit sphere."""

import keras
from keras import ops

from keras_jointloss._core.batch import Items, rows_of
from keras_jointloss._core.math import dot, dot_matrix, l2_normalize
from keras_jointloss._core.types import DType, Labels, Mask, Tensor
from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.metrics.base import ViewsMetric, all_or, other_pairs


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Alignment(ViewsMetric):
    """How far apart the two views of an item lie on the unit sphere; 0 is best.

    With embeddings `a` and `b` of length 1:

        mean_i |a_i - b_i|^alpha

    It lies between 0 and `2^alpha`.

    Args:
        alpha: The exponent, > 0.
        name, dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true` is not used.

    Raises:
        ValueError: If `alpha` is not a number > 0 or `y_pred` has the wrong shape.

    References:
        - Wang & Isola, 2020, Understanding Contrastive Representation Learning through Alignment
          and Uniformity on the Hypersphere

    Example:

    >>> import numpy as np
    >>> views = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # at a right angle
    >>> round(float(Alignment()(None, views)), 4)
    2.0
    """

    takes_items = True
    higher_is_better = False

    def __init__(self, alpha: float = 2.0, name: str = "alignment", dtype: DType = None):
        alpha = validate_number(alpha, "alpha", 0, exclusive=True)
        super().__init__(name, dtype, alpha=alpha)

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        views, valid = rows_of(views, items), rows_of(valid, items)
        unit = l2_normalize(views)
        difference = unit[:, 0] - unit[:, 1]
        values = ops.power(dot(difference, difference), self.alpha / 2)
        return values, ops.cast(all_or(valid, views), values.dtype)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Uniformity(ViewsMetric):
    """How evenly the embeddings of different items spread over the unit sphere; lower is better.

    With embeddings of length 1:

        log mean_{v, i, j != i} exp(-t |x_vi - x_vj|^2)

    over each view `v` and the pairs of different items in a batch. The metric is 0 if all
    embeddings are equal, and never below `-4 t`. The mean over views and batches is taken inside
    the logarithm. An item that is alone in its batch does not count.

    Args:
        t: The sharpness, > 0 and at most 20: larger values underflow in float32.
        name, dtype: As in `keras.metrics.Metric`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, any number of views, or `(batch, dim)` for one view per
        item. `y_true` is not used.

    Raises:
        ValueError: If `t` is out of range or `y_pred` has the wrong shape.

    References:
        - Wang & Isola, 2020, Understanding Contrastive Representation Learning through Alignment
          and Uniformity on the Hypersphere

    Example:

    >>> import numpy as np
    >>> views = np.array([[[1.0, 0.0]], [[-1.0, 0.0]]])  # two items, one view each
    >>> round(float(Uniformity(t=2)(None, views)), 4)
    -8.0
    """

    views = None
    takes_items = True
    higher_is_better = False

    def __init__(self, t: float = 2.0, name: str = "uniformity", dtype: DType = None):
        expected = "a number > 0 and <= 20"
        if validate_number(t, "t", 0, exclusive=True, expected=expected) > 20:
            raise invalid("t", expected, t)
        super().__init__(name, dtype, t=float(t))

    def values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None, items: Items | None = None
    ) -> tuple[Tensor, Tensor]:
        others = other_pairs(views, all_or(valid, views), items=items)
        count = ops.sum(ops.cast(others, views.dtype), axis=1)  # (items,)
        potential = ops.zeros_like(count)
        for view in range(views.shape[1]):
            x = l2_normalize(views[:, view])
            own, square = rows_of(x, items), dot(x, x)
            squares = rows_of(square, items)[:, None] + square[None, :]  # (items, batch)
            distance = ops.relu(squares - 2.0 * dot_matrix(own, x))
            potential += ops.sum(ops.where(others, ops.exp(-self.t * distance), 0.0), axis=1)
        values = potential / (views.shape[1] * ops.maximum(count, 1.0))
        return values, ops.cast(count > 0, values.dtype)

    def finish(self, mean: Tensor) -> Tensor:
        is_empty = mean <= 0
        return ops.where(is_empty, 0.0, ops.log(ops.where(is_empty, 1.0, mean)))
