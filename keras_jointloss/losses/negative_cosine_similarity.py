"""Negative cosine similarity of a prediction and a target without a gradient, as in SimSiam."""

import keras
from keras import ops

from keras_jointloss._core.math import paired_similarity
from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Shape, Tensor
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def negative_cosine_similarity(views: Tensor, labels: Labels = None, valid: Mask = None) -> Tensor:
    """Returns the loss of each item, `(batch,)`.

    See `NegativeCosineSimilarity` for the other arguments.

    Args:
        views: `(batch, 2, dim)`: predictions and targets. Or `(batch, 4, dim)`: the predictions of
            two views, and then their targets.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    views = as_views(views, valid)
    count = views.shape[1] // 2
    # Each prediction is compared with the target of the other view.
    predictions, targets = views[:, :count], ops.flip(views[:, count:], axis=1)
    similarity = paired_similarity(predictions, ops.stop_gradient(targets), "cosine")
    return item_losses(-ops.sum(similarity, axis=1) / count, views, valid)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class NegativeCosineSimilarity(ViewsLoss):
    """Negative cosine similarity of predictions and targets, as in SimSiam and BYOL.

    No gradient flows through the targets. That keeps a predictor on top of an encoder from
    collapsing to a constant, without negatives. With the cosine `s` and the stopped gradient `sg`,
    a prediction `p` and its target `z`:

        loss = -s(p, sg(z))

    or, symmetric, with the predictions and targets of two views `a` and `b`:

        loss = 1/2 ( -s(p_a, sg(z_b)) - s(p_b, sg(z_a)) )

    In SimSiam, the targets are the embeddings of the encoder, and the predictions those of a small
    network on top of it. In BYOL, the targets come from a moving average of the encoder; its loss
    is `2 + 2 loss`.

    Args:
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`: prediction and target. Or `(batch, 4, dim)`, the symmetric
        form: `p_a`, `p_b`, `z_a` and `z_b`. `y_true` is not used: pass anything with the right
        batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an input has the wrong shape.

    References:
        - Chen, He, 2021, Exploring Simple Siamese Representation Learning

    Example:

    >>> import numpy as np
    >>> prediction, target = [1.0, 0.0], [3.0, 4.0]  # cosine 0.6
    >>> loss = NegativeCosineSimilarity()
    >>> round(float(loss(np.zeros(1), np.array([[prediction, target]]))), 4)
    -0.6
    """

    function = staticmethod(negative_cosine_similarity)
    max_views = 4
    compares_items = False

    def __init__(
        self,
        name: str = "negative_cosine_similarity",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(name, reduction, dtype)

    def validate_views(self, shape: Shape) -> None:
        super().validate_views(shape)
        if shape[1] == 3:
            raise ValueError(
                "NegativeCosineSimilarity expects stacked views of shape (batch, 2, dim) or "
                f"(batch, 4, dim). Received: shape={tuple(shape)}"
            )
