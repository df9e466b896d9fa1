"""Which items of a batch take part."""

import keras
from keras import ops


class _Mask(keras.losses.Loss):
    """Tells which items Keras has not masked: it multiplies a loss by the mask.

    Where it keeps the mask of a tensor differs with the backend, and it hands it to losses only.
    """

    def __init__(self):
        super().__init__(name="mask", reduction="none")
        self.ones = None

    def call(self, y_true, y_pred):
        self.ones = ops.ones_like(y_pred[:, 0, :1])  # (batch, 1)
        return self.ones


def valid_items(views, sample_weight=None):
    """Returns which items take part, `(batch,)`, bool, or `None` where it is known that all do.

    Args:
        views: `(batch, views, dim)`. An item with a view that Keras has masked is excluded.
        sample_weight: A number, or one for each item. An item of weight 0 is excluded.
    """
    loss = _Mask()
    mask = loss(views, views)  # (batch, 1) or (batch, views)
    valid = None if mask is loss.ones else ops.all(mask > 0, axis=1)
    if sample_weight is None:
        return valid
    weight = ops.reshape(ops.convert_to_tensor(sample_weight), (-1,))
    weighs = ops.broadcast_to(ops.not_equal(weight, 0), ops.shape(views)[:1])
    return weighs if valid is None else ops.logical_and(valid, weighs)
