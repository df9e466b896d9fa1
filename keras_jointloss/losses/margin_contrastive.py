"""Margin losses on the similarity of labelled pairs."""

import keras
from keras import ops

from keras_jointloss._math import dot, l2_normalize
from keras_jointloss._validation import validate_number
from keras_jointloss.losses.base import ViewsLoss


def margin_contrastive(a, b, labels, margin=1.0, normalize=False):
    """Returns the margin contrastive loss of each pair. See `MarginContrastive`.

    Args:
        a: `(batch, dim)`.
        b: `(batch, dim)`.
        labels: `(batch,)`: 1 if the two belong together, 0 if not.
        margin: A float, 0 or more.
        normalize: Whether to scale the embeddings to length 1.

    Returns:
        `(batch,)`.
    """
    if normalize:
        a, b = l2_normalize(a), l2_normalize(b)
    similarity = dot(a, b)  # (batch,)
    labels = ops.cast(labels, similarity.dtype)
    return labels * ops.relu(margin - similarity) + (1 - labels) * ops.relu(similarity)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MarginContrastive(ViewsLoss):
    """Contrastive loss on the dot product of labelled pairs.

    With the dot product `s` of the two embeddings, the label `y` and the margin `m`:

        loss = y [m - s]+ + (1 - y) [s]+        where [x]+ = max(x, 0)

    Pairs that belong together are drawn to a dot product of at least `m`, others to one of at
    most 0.

    Args:
        margin: The dot product `m`, 0 or more, from which a pair that belongs together is at rest.
        normalize: Whether to scale the embeddings to length 1 first: then the dot product is
            the cosine. A zero vector stays zero and gets no gradient.
        name: Name of the loss.
        reduction: As in `keras.losses.Loss`.
        dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`: 1 if the two
        belong together, 0 if not; numbers between are a soft label.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If the margin is not a number >= 0 or a shape is another.

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

    has_labels = True

    def __init__(
        self,
        margin: float = 1.0,
        normalize: bool = False,
        name: str = "margin_contrastive",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.margin = validate_number(margin, "margin", 0)
        self.normalize = normalize

    def values(self, views, labels=None, **parameters):
        return margin_contrastive(views[:, 0], views[:, 1], labels, self.margin, self.normalize)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": self.margin, "normalize": self.normalize}
