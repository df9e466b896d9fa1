"""Losses of labelled pairs: each item is a pair whose label says whether its two views match."""

import keras
from keras import ops

from keras_jointloss._core.math import distance, paired_similarity
from keras_jointloss._core.validation import validate_bool, validate_number
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


class _PairLoss(ViewsLoss):
    label_kind = "pair"
    compares_items = False


def _mixed(views, labels, valid, losses):
    """Returns the loss of each pair, between those of a pair that matches and of one that does not.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`, from 1 for pairs that match to 0.
        valid: `(batch,)`, bool, or `None`.
        losses: Returns the losses of all pairs if they match, and if they do not, from their views.
    """
    views = as_views(views, valid)
    together, apart = losses(views[:, 0], views[:, 1])
    labels = ops.cast(labels, views.dtype)
    return item_losses(labels * together + (1 - labels) * apart, views, valid)


def contrastive(views, labels, valid=None, margin=1.0):
    """Returns the contrastive loss of each item. See `Contrastive` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: 1 if the two views match, 0 if not.
        valid: `(batch,)`, bool: which items to include. `None` for all.

    Returns:
        `(batch,)`.
    """

    def losses(a, b):
        length = distance(a, b)
        return 0.5 * ops.square(length), 0.5 * ops.square(ops.relu(margin - length))

    return _mixed(views, labels, valid, losses)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Contrastive(_PairLoss):
    """Contrastive loss on the Euclidean distance of labelled pairs.

    With the distance `d` between the two embeddings, the label `y` and the margin `m`:

        loss = 1/2 [ y d^2 + (1 - y) [m - d]+^2 ]        where [x]+ = max(x, 0)

    Args:
        margin: The distance `m`, 0 or more, from which a pair that does not match has loss 0.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`: 1 if the two
        match, 0 if not; numbers in between are soft labels.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Hadsell, Chopra, LeCun, 2006, Dimensionality Reduction by Learning an Invariant Mapping

    Example:

    >>> import numpy as np
    >>> pair = [[1.0, 0.0], [1.0, 0.5]]  # distance 0.5
    >>> loss = Contrastive()
    >>> [float(x) for x in loss.call(np.array([1.0, 0.0]), np.array([pair, pair]))]
    [0.125, 0.125]
    """

    function = staticmethod(contrastive)

    def __init__(
        self,
        margin: float = 1.0,
        name: str = "contrastive",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name, reduction, dtype, margin=validate_number(margin, "margin", 0))


def cosine_embedding(views, labels, valid=None, margin=0.0):
    """Returns the loss of each item. See `CosineEmbedding` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: 1 if the two views match, 0 if not.
        valid: `(batch,)`, bool: which items to include. `None` for all.

    Returns:
        `(batch,)`.
    """

    def losses(a, b):
        cosine = paired_similarity(a, b, "cosine")
        return 1 - cosine, ops.relu(cosine - margin)

    return _mixed(views, labels, valid, losses)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class CosineEmbedding(_PairLoss):
    """Margin loss on the cosine of labelled pairs.

    With the cosine `s` of the two embeddings, the label `y` and the margin `m`:

        loss = y (1 - s) + (1 - y) [s - m]+        where [x]+ = max(x, 0)

    as in PyTorch's `CosineEmbeddingLoss`, where the label is -1 in place of 0. The cosine of a zero
    vector with any vector is 0.

    Args:
        margin: The cosine `m`, 0 or more, up to which a pair that does not match has loss 0.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`: 1 if the two
        match, 0 if not; numbers in between are soft labels.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    Example:

    >>> import numpy as np
    >>> pair = [[1.0, 0.0], [1.0, 0.0]]  # cosine 1
    >>> loss = CosineEmbedding(margin=0.5)
    >>> [float(x) for x in loss.call(np.array([1.0, 0.0]), np.array([pair, pair]))]
    [0.0, 0.5]
    """

    function = staticmethod(cosine_embedding)

    def __init__(
        self,
        margin: float = 0.0,
        name: str = "cosine_embedding",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name, reduction, dtype, margin=validate_number(margin, "margin", 0))


def margin_contrastive(views, labels, valid=None, margin=1.0, normalize=False):
    """Returns the loss of each item. See `MarginContrastive` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: 1 if the two views match, 0 if not.
        valid: `(batch,)`, bool: which items to include. `None` for all.

    Returns:
        `(batch,)`.
    """

    def losses(a, b):
        similarity = paired_similarity(a, b, "cosine" if normalize else "dot")
        return ops.relu(margin - similarity), ops.relu(similarity)

    return _mixed(views, labels, valid, losses)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MarginContrastive(_PairLoss):
    """Contrastive loss on the dot product of labelled pairs.

    With the dot product `s` of the two embeddings, the label `y` and the margin `m`:

        loss = y [m - s]+ + (1 - y) [s]+        where [x]+ = max(x, 0)

    The loss pulls matching pairs to a dot product of at least `m` and pushes the others to one of
    at most 0.

    Args:
        margin: The dot product `m`, 0 or more, from which a matching pair has loss 0.
        normalize: Whether to scale the embeddings to length 1 first, so that the dot product is
            the cosine. A zero vector stays zero and gets no gradient.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`: 1 if the two
        match, 0 if not; numbers in between are soft labels.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Hadsell, Chopra, LeCun, 2006, Dimensionality Reduction by Learning an Invariant Mapping
          (the idea, with distances in place of dot products)

    Example:

    >>> import numpy as np
    >>> pair = [[1.0, 0.0], [0.25, 1.0]]  # dot product 0.25
    >>> loss = MarginContrastive()
    >>> [float(x) for x in loss.call(np.array([1.0, 0.0]), np.array([pair, pair]))]
    [0.75, 0.25]
    """

    function = staticmethod(margin_contrastive)

    def __init__(
        self,
        margin: float = 1.0,
        normalize: bool = False,
        name: str = "margin_contrastive",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            margin=validate_number(margin, "margin", 0),
            normalize=validate_bool(normalize, "normalize"),
        )
