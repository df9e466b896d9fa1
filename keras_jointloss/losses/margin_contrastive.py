"""Margin contrastive loss of labelled pairs."""

import keras
from keras import ops

from keras_jointloss._core.math import paired_similarity
from keras_jointloss._core.types import Annealable, DType, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_bool, validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import PairLoss, mixed


def margin_contrastive(
    views: Tensor,
    labels: Tensor,
    valid: Mask = None,
    margin: float | Tensor = 1.0,
    normalize: bool = False,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `MarginContrastive` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: 1 if the two views match, 0 if not.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """

    def losses(a, b):
        similarity = paired_similarity(a, b, "cosine" if normalize else "dot")
        return ops.relu(margin - similarity), ops.relu(similarity)

    return mixed(views, labels, valid, losses)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MarginContrastive(PairLoss):
    """Contrastive loss on the dot product of labelled pairs.

    With the dot product `s` of the two embeddings, the label `y` and the margin `m`:

        loss = y [m - s]+ + (1 - y) [s]+        where [x]+ = max(x, 0)

    The loss pulls matching pairs to a dot product of at least `m` and pushes the others to one of
    at most 0.

    Args:
        margin: The dot product `m`, 0 or more, from which a matching pair has loss 0, or a
            schedule of it.
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
        margin: Annealable = 1.0,
        normalize: bool = False,
        name: str = "margin_contrastive",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            margin=annealed(margin, validate_number, "margin", 0),
            normalize=validate_bool(normalize, "normalize"),
        )
