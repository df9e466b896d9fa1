"""VICReg: makes views agree and their features vary without correlation."""

import keras
from keras import ops

from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, item_losses, moments
from keras_jointloss.losses.base import ViewsLoss


def vicreg(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    epsilon: float = 1e-4,
) -> Tensor:
    """Returns the VICReg loss of each item, `(batch,)`. See `VICReg` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    parts = vicreg_parts(views, valid, epsilon)
    return (
        invariance_weight * parts["invariance"]
        + variance_weight * parts["variance"]
        + covariance_weight * parts["covariance"]
    )


def vicreg_parts(views, valid=None, epsilon=1e-4):
    """Returns the three unweighted parts of the loss by name, each as `item_losses`."""
    views = as_views(views, valid)
    size, dim = ops.shape(views)[0], views.shape[2]
    variance_loss = covariance_loss = 0.0
    for view in (views[:, 0], views[:, 1]):
        centered, count = moments(view, valid)
        covariance = ops.einsum("nd,ne->de", centered, centered) / ops.maximum(count - 1, 1)
        variance = ops.diagonal(covariance)
        deviation = ops.sqrt(variance + epsilon)
        variance_loss += 0.5 * ops.sum(ops.relu(1 - deviation)) / dim
        others = ops.sum(ops.square(covariance)) - ops.sum(ops.square(variance))
        covariance_loss += others / dim
    parts = {
        "invariance": ops.sum(ops.square(views[:, 0] - views[:, 1]), axis=1) / dim,
        "variance": ops.broadcast_to(variance_loss, (size,)),
        "covariance": ops.broadcast_to(covariance_loss, (size,)),
    }
    return {name: item_losses(values, views, valid) for name, values in parts.items()}


@keras.saving.register_keras_serializable(package="keras_jointloss")
class VICReg(ViewsLoss):
    """VICReg: variance, invariance and covariance of two views.

    With embeddings `a` and `b` of dimension `D`, the covariance `C` of the features of each view
    over the batch (divided by `n - 1`) and its diagonal, the variance `v`:

        loss_i = 25 mean_d (a_id - b_id)^2                      invariance
               + 25 * 1/2 sum_views mean_d [1 - sqrt(v_d + epsilon)]+    variance
               + 1 * sum_views 1/D sum_{d != e} C_de^2          covariance

    Every item gets the variance and covariance of the whole batch. In `ContrastiveTerm` and
    `joint_loss`, the logs show the three unweighted parts as `<name>_invariance`,
    `<name>_variance` and `<name>_covariance`.

    Args:
        invariance_weight: The weight of the invariance, 0 or more.
        variance_weight: The weight of the variance, 0 or more.
        covariance_weight: The weight of the covariance, 0 or more.
        epsilon: The number added to the variance, > 0.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true` is not used: pass anything with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Bardes, Ponce, LeCun, 2022, VICReg: Variance-Invariance-Covariance Regularization for
          Self-Supervised Learning

    Example:

    >>> import numpy as np
    >>> a = np.array([[2.0], [-2.0]])
    >>> float(VICReg()(np.zeros(2), np.stack([a, a + 1.0], axis=1)))
    25.0
    """

    function = staticmethod(vicreg)
    part_names = ("invariance", "variance", "covariance")

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        epsilon: float = 1e-4,
        name: str = "vicreg",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            invariance_weight=validate_number(invariance_weight, "invariance_weight", 0),
            variance_weight=validate_number(variance_weight, "variance_weight", 0),
            covariance_weight=validate_number(covariance_weight, "covariance_weight", 0),
            epsilon=validate_number(epsilon, "epsilon", 0, exclusive=True),
        )

    def part_values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None
    ) -> dict[str, Tensor]:
        """Returns the unweighted invariance, variance and covariance."""
        return vicreg_parts(views, valid, self.epsilon)
