"""The logarithm of a loss, learned along with the model by gradient descent."""

from keras_jointloss._core.quick_ops import ops

#: Smaller losses count as this.
SMALLEST_LOSS = 1e-12
#: Larger ratios of a loss to what its weight expects count as this: infinity is no step.
_LARGEST_RATIO = 1e30


def descend(log_variance, losses, rate: float):
    """Returns `v` after a step of gradient descent on `exp(-v) loss + v`.

    A step that would go past the minimizer, `log(loss)`, ends there.

    Args:
        log_variance: `v`, `(terms,)`.
        losses: `(terms,)`, at least `SMALLEST_LOSS`.
        rate: The step size.
    """
    ratio = ops.minimum(ops.exp(-log_variance) * losses, _LARGEST_RATIO)
    decrement = rate * (1 - ratio)
    # Both from the same ratio, so that rounding near the minimizer is no step past it.
    is_past = ops.abs(decrement) > ops.abs(ops.log(ratio))
    return ops.where(is_past, ops.log(losses), log_variance - decrement)
