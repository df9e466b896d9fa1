"""The Kullback-Leibler divergence of a Gaussian from the standard one, as in a VAE."""

from keras import ops

from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.types import Tensor


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns the divergence of a diagonal Gaussian from the standard one, for each dimension.

    With the mean `m` and the variance `v` of a dimension:

        KL( N(m, v) || N(0, 1) ) = 1/2 (m^2 + v - log v - 1)

    The divergence of an item is the sum over its dimensions, and the loss the mean over the items:
    `ops.mean(ops.sum(gaussian_kl(mean, log_variance), axis=-1))`. The mean over the dimensions, in
    place of their sum, weighs the divergence by 1 / dim.

    Args:
        mean: The mean `m`, `(batch, dim)`. There may be more axes before the last.
        log_variance: The logarithm of the variance, of the shape of `mean`.

    Returns:
        `(batch, dim)`, of the dtype of the arguments, at least float32.

    Raises:
        ValueError: If the shapes differ.

    References:
        - Kingma, Welling, 2014, Auto-Encoding Variational Bayes

    Example:

    >>> import numpy as np
    >>> kl = gaussian_kl(np.array([[0.0, 2.0]]), np.zeros((1, 2)))
    >>> [float(x) for x in kl[0]]
    [0.0, 2.0]
    """
    sizes = zip(mean.shape, log_variance.shape, strict=False)
    if len(mean.shape) != len(log_variance.shape) or any(
        a != b and None not in (a, b) for a, b in sizes
    ):
        raise ValueError(
            "Expected `mean` and `log_variance` of the same shape. Received: shapes "
            f"{tuple(mean.shape)} and {tuple(log_variance.shape)}"
        )
    dtype = float_dtype(mean.dtype, log_variance.dtype)
    mean, log_variance = ops.cast(mean, dtype), ops.cast(log_variance, dtype)
    # Near the standard Gaussian, `exp` and 1 would cancel.
    return 0.5 * (ops.square(mean) + (ops.expm1(log_variance) - log_variance))
