"""Triplet loss of three views: anchor, positive and negative."""

import keras
from keras import ops

from keras_jointloss._core.math import SIMILARITIES, paired_similarity
from keras_jointloss._core.types import DType, Labels, Margin, Mask, Reduction, Similarity, Tensor
from keras_jointloss._core.validation import validate_bool, validate_choice
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss
from keras_jointloss.losses.triplet import hinge, validate_margin


def triplet_margin(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    margin: Margin | Tensor = 1.0,
    similarity: Similarity = "euclidean",
    swap: bool = False,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `TripletMargin` for the other arguments.

    Args:
        views: `(batch, 3, dim)`: anchor, positive and negative.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    views = as_views(views, valid)
    anchor, positive, negative = (views[:, i] for i in range(3))
    # The distance is minus the similarity, up to a constant that the difference does not contain.
    nearest = paired_similarity(anchor, negative, similarity)
    if swap:
        nearest = ops.maximum(nearest, paired_similarity(positive, negative, similarity))
    difference = nearest - paired_similarity(anchor, positive, similarity)
    return item_losses(hinge(difference, margin), views, valid)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class TripletMargin(ViewsLoss):
    """Triplet loss on given triplets of an anchor, a positive and a negative.

    Each item is a triplet. With the distances `d_ap` of anchor and positive, `d_an` of anchor and
    negative and `d_pn` of positive and negative, and the margin `m`:

        loss = [d_ap - d_n + m]+        [x]+ = max(x, 0)

    where `d_n = d_an`, or `d_n = min(d_an, d_pn)` with `swap`. The loss needs no labels. To find
    the triplets in a batch of labelled items, use `Triplet`.

    Args:
        margin: The margin `m`, 0 or more, or `"soft"` for `log(1 + exp(d_ap - d_n))` in place of
            the hinge, or a schedule of numbers.
        similarity: `"euclidean"`, `"cosine"` (the distance is 1 minus the cosine) or `"dot"` (the
            distance is minus the dot product).
        swap: Whether the distance of the negative is that to the nearer of anchor and positive.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 3, dim)`: anchor, positive and negative. `y_true`: anything with the
        right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Balntas, Riba, Ponsa, Mikolajczyk, 2016, Learning Local Feature Descriptors with Triplets
          and Shallow Convolutional Neural Networks

    Example:

    >>> import numpy as np
    >>> triplet = [[0.0, 0.0], [0.0, 1.0], [0.0, 1.5]]  # distances 1, 1.5 and 0.5
    >>> float(TripletMargin().call(None, np.array([triplet]))[0])
    0.5
    >>> float(TripletMargin(swap=True).call(None, np.array([triplet]))[0])
    1.5
    """

    function = staticmethod(triplet_margin)
    min_views = 3
    max_views = 3
    compares_items = False

    def __init__(
        self,
        margin: Margin = 1.0,
        similarity: Similarity = "euclidean",
        swap: bool = False,
        name: str = "triplet_margin",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            margin=validate_margin(margin),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            swap=validate_bool(swap, "swap"),
        )
