"""AnglE: ranks pairs of views by their scores, with their angle in complex space."""

import keras
from keras import ops

from keras_jointloss._core.math import dot, l2_normalize
from keras_jointloss._core.types import DType, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views
from keras_jointloss.losses.base import ViewsLoss
from keras_jointloss.losses.cosent import ranking_losses


def angle(views: Tensor, labels: Tensor, valid: Mask = None, scale: float = 20.0) -> Tensor:
    """Returns the loss of the batch for each item, `(batch,)`.

    See `AnglE` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: the scores.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    views = as_views(views, valid)
    unit = l2_normalize(views)
    unit = ops.pad(unit, ((0, 0), (0, 0), (0, views.shape[2] % 2)))
    half = unit.shape[2] // 2
    real, imaginary = unit[:, 1, :half], unit[:, 1, half:]
    # The real and the imaginary part of the quotient, summed, are one product of real vectors.
    turned = ops.concatenate([real - imaginary, real + imaginary], axis=1)
    return ranking_losses(ops.abs(dot(unit[:, 0], turned)), labels, views, valid, scale)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class AnglE(ViewsLoss):
    """AnglE: as `CoSENT`, with the angle difference in complex space in place of the cosine.

    The cosine saturates where the views of a pair are nearly parallel or opposite, and its gradient
    vanishes there. The two halves of an embedding are the real and the imaginary part of a complex
    vector; an odd dimension is padded with a 0. With those of the two views of an item, `z` and
    `w`:

        s = | sum_k ( Re(z_k conj(w_k)) + Im(z_k conj(w_k)) ) | / ( |z| |w| )

        loss = log( 1 + sum_{i, j: y_i > y_j} exp( scale (s_j - s_i) ) )

    This is the formula of the authors' code and of sentence-transformers. Every item gets the value
    of the batch, as in `CoSENT`, and what its documentation says of excluded items and sample
    weights holds here, too.

    Args:
        scale: The inverse temperature of the differences, > 0.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`, any finite
        numbers: the scores.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument or a score is invalid or an input has the wrong shape.

    References:
        - Li, Li, 2023, AnglE-optimized Text Embeddings

    Example:

    >>> import numpy as np
    >>> right, up = [1.0, 0.0], [0.0, 1.0]
    >>> views = np.array([[right, right], [right, [3.0, -4.0]]])  # 1 and (3 + 4) / 5
    >>> loss = AnglE(scale=1.0)
    >>> round(float(loss(np.array([4.5, 2.0]), views)), 4)  # log(1 + exp(0.4))
    0.913
    """

    function = staticmethod(angle)
    label_kind = "score"

    def __init__(
        self,
        scale: float = 20.0,
        name: str = "angle",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        scale = validate_number(scale, "scale", 0, exclusive=True)
        super().__init__(name, reduction, dtype, scale=scale)
