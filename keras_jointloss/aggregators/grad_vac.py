"""GradVac: turns each gradient towards the cosines that it usually has with the others."""

import keras
from keras import ops

from keras_jointloss._core.types import Config, Step, Tensor
from keras_jointloss._core.validation import validate_fraction, validate_seed
from keras_jointloss.aggregators._gramian import (
    active_terms,
    at_least,
    correlation,
    epsilon,
    nonzero,
    product,
)
from keras_jointloss.aggregators.base import Aggregator
from keras_jointloss.aggregators.pcgrad import random_orders


@keras.saving.register_keras_serializable(package="keras_jointloss")
class GradVac(Aggregator):
    """Gradient vaccine: raises cosines below their moving means to these, then sums the gradients.

    Each gradient `g_i` meets the others in random order. With the cosine `c` between what `g_i` has
    become and the original `g_j`, and the target `t_ij`,

        g_i <- g_i + |g_i| (t_ij sqrt(1 - c^2) - c sqrt(1 - t_ij^2)) / (|g_j| sqrt(1 - t_ij^2)) g_j

    if `c < t_ij`, after which the cosine is `t_ij`; and then

        t_ij <- (1 - beta) t_ij + beta c

    All targets are 0 at first, and the first step is that of `PCGrad`. Later ones also turn
    gradients that do not conflict. The result can conflict with a gradient, as with `PCGrad`. A
    gradient that is gone, as one that met its opposite, has the cosine 0.

    The rule has a state, the targets: the layers keep it and save it with the model, and so it
    is the same after training resumes. In a custom loop, see `solve_next`; a direct call, `solve`
    included, is a first step. A term without gradient leaves the targets as they are, and so does a
    step with a gradient that is not finite.

    Args:
        beta: The weight of the new cosine in the moving mean, >= 0 and <= 1. 0 is `PCGrad`.
        seed: As in `PCGrad`.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `beta` is not a number >= 0 and <= 1, `seed` is not an integer, >= 0 and
            < 2**31, or `ema` is not a number >= 0 and < 1.

    References:
        - Wang et al., 2021, Gradient Vaccine: Investigating and Improving Multi-task Optimization
          in Massively Multilingual Models

    Example:

    >>> import numpy as np
    >>> rule, gramian = GradVac(), np.array([[1.0, 0.5], [0.5, 1.0]], "float32")
    >>> first, targets = rule.solve_next(gramian, None)
    >>> second, _ = rule.solve_next(np.eye(2, dtype="float32"), targets)
    >>> [round(float(x), 3) for x in (*first, *second)]  # The target is 0.25 in the second step.
    [1.0, 1.0, 1.258, 1.258]
    """

    inputs = ("step",)

    def __init__(self, beta: float = 0.5, seed: int = 0, rescale: bool = False, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)
        self.beta = validate_fraction(beta, "beta")
        self.seed = validate_seed(seed)

    def state_rows(self, count: int) -> int:
        return count

    def next_coefficients(
        self, gramian: Tensor, state: Tensor, size: Tensor, step: Step = 0
    ) -> tuple[Tensor, Tensor]:
        count, precision = gramian.shape[0], epsilon(gramian)
        is_active = ops.cast(active_terms(gramian), gramian.dtype)
        lengths, _ = correlation(gramian)
        # Row i holds the coefficients of what gradient i has become.
        rows = identity = ops.eye(count, dtype=gramian.dtype)
        # The term that each one meets at each turn, one-hot; zeros when it would meet itself.
        orders = random_orders(count, self.seed, step)
        others = ops.take(identity, orders, axis=0) * (1 - identity)[:, None, :]
        for turn in range(count):
            other = others[:, turn]
            products = rows @ gramian
            squares = ops.sum(products * rows, axis=1)
            # What is left of a gradient that is gone is only rounding error.
            least = 4 * count * precision * ops.square(product(abs(rows), lengths))
            is_left = squares > least
            length = ops.sqrt(ops.where(is_left, squares, ops.zeros_like(squares)))
            their_length = nonzero(product(other, lengths))
            cosine = ops.sum(products * other, axis=1) / (nonzero(length) * their_length)
            cosine = ops.where(is_left, ops.clip(cosine, -1, 1), ops.zeros_like(cosine))
            target = ops.sum(state * other, axis=1)
            sine, target_sine = (ops.sqrt(ops.relu(1 - x * x)) for x in (cosine, target))
            turned = (target * sine - cosine * target_sine) / at_least(target_sine, precision**0.5)
            turned = ops.where(cosine < target, length * turned / their_length, 0)
            rows = rows + turned[:, None] * other
            is_met = other * is_active[:, None] * is_active
            state = state + self.beta * is_met * (cosine - target)[:, None]
        return (is_active[None, :] @ rows)[0], state

    def get_config(self) -> Config:
        return {"beta": self.beta, "seed": self.seed, **super().get_config()}
