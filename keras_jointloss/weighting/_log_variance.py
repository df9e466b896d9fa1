"""The logarithm of a loss, learned along with the model by gradient descent."""

from keras_jointloss._core.quick_ops import ops

#: Smaller losses count as this.
SMALLEST_LOSS = 1e-12


def descend(log_variance, losses, rate: float):
    """Returns `v` after a step of gradient descent on `exp(-v) loss + v`.

    A step that would go past the minimizer, `log(loss)`, ends there.

    Args:
        log_variance: `v`, `(terms,)`.
        losses: `(terms,)`, at least `SMALLEST_LOSS`.
        rate: The step size.
    """
    minimizer = ops.log(losses)
    distance = minimizer - log_variance
    # Of the distance, so that rounding near the minimizer is no step past it.
    step = rate * ops.expm1(distance)
    return ops.where(ops.abs(step) > ops.abs(distance), minimizer, log_variance + step)
