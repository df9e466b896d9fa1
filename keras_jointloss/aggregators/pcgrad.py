"""PCGrad: removes from each gradient its conflicts with the others."""

import keras
from keras import ops

from keras_jointloss._core.math import scramble
from keras_jointloss._core.types import Config, Step, Tensor
from keras_jointloss._core.validation import validate_seed
from keras_jointloss.aggregators._gramian import active_terms
from keras_jointloss.aggregators.base import Aggregator


def random_orders(count: int, seed: int, step):
    """Returns `count` random orders of the numbers below `count`: `(count, count)`.

    They depend only on `seed`, an integer >= 0 and < 2**31, and `step`, an integer or an integer
    scalar tensor, and are the same on every backend.
    """
    stream = scramble(scramble(ops.cast(step, "int32")) + seed)
    places = ops.reshape(ops.arange(count * count, dtype="int32"), (count, count))
    return ops.argsort(scramble(scramble(places) + stream), axis=1)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class PCGrad(Aggregator):
    """Projects conflicting gradients onto each other's normal planes, then sums them.

    Each gradient `g_i` meets the others in random order and is projected at each conflict:

        g_i <- g_i - (g_i . g_j) / |g_j|^2 g_j    if g_i . g_j < 0

    where `g_j` is the original gradient of the other term. With two terms there is only one order,
    and the result conflicts with neither gradient. With more, the order is random, and the result
    can conflict with a gradient.

    Args:
        seed: An integer, >= 0 and < 2**31. The orders are drawn from it and the `step` of each
            call. Without a `step`, every call has the same orders. Permuting three or more terms
            permutes the coefficients, except for the effect of the orders.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `seed` is not such an integer or `ema` is not a number >= 0 and < 1.

    References:
        - Yu et al., 2020, Gradient Surgery for Multi-Task Learning

    Example:

    >>> [round(float(x), 4) for x in PCGrad()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.5848, 3.8012, 3.8012]
    """

    inputs = ("step",)

    def __init__(self, seed: int = 0, rescale: bool = False, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)
        self.seed = validate_seed(seed)

    def coefficients(self, gramian: Tensor, step: Step = 0) -> Tensor:
        count = gramian.shape[0]
        is_active = ops.cast(active_terms(gramian), gramian.dtype)
        # Row i holds the coefficients of what remains of gradient i.
        rows = identity = ops.eye(count, dtype=gramian.dtype)
        square = ops.diagonal(gramian) + (1 - is_active)
        # The term that each one meets at each turn, one-hot; zeros when it would meet itself.
        orders = random_orders(count, self.seed, step)
        others = ops.take(identity, orders, axis=0) * (1 - identity)[:, None, :]
        for turn in range(count):
            other = others[:, turn]
            products = ops.sum((rows @ gramian) * other, axis=1, keepdims=True)
            rows = rows + ops.relu(-products) * (other / square)
        return (is_active[None, :] @ rows)[0]

    def get_config(self) -> Config:
        return {"seed": self.seed, **super().get_config()}
