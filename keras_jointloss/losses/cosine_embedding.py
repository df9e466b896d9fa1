"""Cosine embedding loss of labelled pairs."""

import keras
from keras import ops

from keras_jointloss._core.math import paired_similarity
from keras_jointloss._core.types import Annealable, DType, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import PairLoss, mixed


def cosine_embedding(
    views: Tensor, labels: Tensor, valid: Mask = None, margin: float | Tensor = 0.0
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `CosineEmbedding` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: 1 if the two views match, 0 if not.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """

    def losses(a, b):
        cosine = paired_similarity(a, b, "cosine")
        return 1 - cosine, ops.relu(cosine - margin)

    return mixed(views, labels, valid, losses)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class CosineEmbedding(PairLoss):
    """Margin loss on the cosine of labelled pairs.

    With the cosine `s` of the two embeddings, the label `y` and the margin `m`:

        loss = y (1 - s) + (1 - y) [s - m]+        where [x]+ = max(x, 0)

    as in PyTorch's `CosineEmbeddingLoss`, where the label is -1 in place of 0. The cosine of a zero
    vector with any vector is 0.

    Args:
        margin: The cosine `m`, 0 or more, up to which a pair that does not match has loss 0,
            or a schedule of it.
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
        margin: Annealable = 0.0,
        name: str = "cosine_embedding",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name, reduction, dtype, margin=annealed(margin, validate_number, "margin", 0)
        )
