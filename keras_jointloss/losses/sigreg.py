"""SIGReg: embeddings that are distributed as a standard normal, seen from random directions."""

import math

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.math import l2_normalize, scramble
from keras_jointloss._core.random import random_normal
from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_count, validate_number, validate_seed
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def sigreg(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    num_slices: int = 256,
    knots: int = 17,
    t_max: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Returns the loss of the batch for each item, `(batch,)`.

    See `SIGReg` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    views = as_views(views, valid)
    size = ops.shape(views)[0]
    number = size if valid is None else ops.sum(ops.cast(valid, "int32"))
    number = ops.cast(ops.maximum(number, 1), views.dtype)
    projections = ops.einsum("nvd,ds->nvs", views, directions(views, num_slices, seed))
    t = np.linspace(0, t_max, knots)[1:]  # At 0 both characteristic functions are 1.
    normal = np.exp(-(t**2) / 2)
    # The trapezoidal rule for the integral from -t_max to t_max of an even function.
    weights = normal * t_max / (knots - 1) * np.where(t < t_max, 2, 1)
    t, normal, weights = (ops.convert_to_tensor(x, views.dtype) for x in (t, normal, weights))
    phases = projections[..., None] * t  # (batch, views, slices, knots - 1)
    included = 1.0 if valid is None else ops.cast(valid, views.dtype)[:, None, None, None]
    real = ops.sum(included * ops.cos(phases), axis=0) / number
    imaginary = ops.sum(ops.sin(phases), axis=0) / number
    statistics = ops.sum(weights * (ops.square(real - normal) + ops.square(imaginary)))
    loss = number * statistics / (views.shape[1] * num_slices)
    return item_losses(ops.broadcast_to(loss, (size,)), views, valid)


def directions(views, num_slices: int, seed: int):
    """Returns random directions for a batch, `(dim, num_slices)`, of length 1.

    They depend on the seed and, without a gradient, on sums of the features over the batch. These
    are rounded: several devices, whose embeddings differ in the last digits, draw the same. Random
    signs of the items keep the sums of standardized features from being 0.
    """
    views, dim = ops.stop_gradient(views), views.shape[2]
    signs = 2 * ops.bitwise_and(scramble(ops.arange(ops.shape(views)[0], dtype="int32")), 1) - 1
    sums = ops.einsum("nvd,n->d", views, ops.cast(signs, views.dtype))
    square = ops.sum(ops.square(views)) / dim
    sums = 16 * sums / ops.sqrt(ops.where(square > 0, square, 1))  # Most are below 50.
    marks = ops.cast(ops.round(ops.where(ops.isfinite(sums), sums, 0)), "int32")  # (dim,)
    marks = scramble(marks + scramble(ops.arange(dim, dtype="int32")))
    step = ops.sum(ops.bitwise_and(marks, 2**16 - 1))  # It stays in the range of int32.
    normal = ops.reshape(random_normal(num_slices * dim, seed, step), (num_slices, dim))
    return ops.transpose(l2_normalize(ops.cast(normal, views.dtype)))


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SIGReg(ViewsLoss):
    """SIGReg: sketched isotropic Gaussian regularization, of LeJEPA.

    It moves the distribution of the embeddings towards the standard normal one, and so keeps them
    from collapsing, without negatives and without a teacher. The embeddings `x_i` of a view, `n` of
    them, are projected on random directions `r` of length 1. The statistic of Epps and Pulley
    compares the characteristic function of the projections with that of a normal distribution:

        loss = mean over views and directions of
               n integral from -t_max to t_max of
                   | 1/n sum_i exp(i t <r, x_i>) - exp(-t^2 / 2) |^2 exp(-t^2 / 2) dt

    It is one value for the batch, and every item gets it: their mean is the formula. Excluded items
    are in no sum and have loss 0. The loss of normal embeddings is about 1, that of others grows
    with the batch. As a regularizer it goes beside a loss that makes the views of an item agree,
    such as `LossTerm("mse")`: in LeJEPA, the weights are 0.05 and 0.95. The batch needs memory for
    `batch * views * num_slices * knots` numbers.

    Each batch has new directions. They depend on the seed and on the embeddings of the batch, and
    on no state: the same batch has the same directions, on each replica and after loading.

    Args:
        num_slices: The number of directions.
        knots: The number of points of the trapezoidal rule between 0 and `t_max`, 2 or more.
        t_max: The largest frequency, > 0.
        seed: The seed of the directions.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, any number of views, or `(batch, dim)` for one view per
        item. `y_true` is not used: pass anything with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Balestriero, LeCun, 2025, LeJEPA: Provable and Scalable Self-Supervised Learning Without
          the Heuristics
        - Epps, Pulley, 1983, A test for normality based on the empirical characteristic function

    Example:

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(256, 8))
    >>> [round(float(SIGReg()(np.zeros(256), scale * x))) for scale in (0.0, 0.5, 1.0)]
    [103, 39, 1]
    """

    function = staticmethod(sigreg)
    min_views = 1
    max_views = math.inf

    def __init__(
        self,
        num_slices: int = 256,
        knots: int = 17,
        t_max: float = 3.0,
        seed: int = 0,
        name: str = "sigreg",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            num_slices=validate_count(num_slices, "num_slices"),
            knots=validate_count(knots, "knots", minimum=2),
            t_max=validate_number(t_max, "t_max", 0, exclusive=True),
            seed=validate_seed(seed),
        )
