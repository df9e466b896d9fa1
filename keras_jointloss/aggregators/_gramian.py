"""Stateless maths on Gramians, shared by the aggregators."""

import keras
import numpy as np
from keras import ops

_MOST_ITERATIONS = 60  # Between 5 and 15 do, but for gradients that nearly cancel.


def epsilon(x) -> float:
    """Returns the distance from 1 to the next number of the dtype of `x`."""
    return float(np.finfo(keras.backend.standardize_dtype(x.dtype)).eps)


def product(matrix, vector):
    """Returns the product of a matrix and a vector."""
    # Not `ops.matmul`, which computes float64 in float32 on PyTorch.
    return ops.einsum("ij,j->i", matrix, vector)


def at_least(x, bound):
    """Returns the larger of a tensor and a number or tensor."""
    # Not `ops.maximum`, which makes float32 of float64 on PyTorch.
    return ops.where(x < bound, ops.cast(bound, x.dtype), x)


def quadratic_form(vector, matrix):
    """Returns `v^T M v`."""
    return ops.sum(vector * product(matrix, vector))


def active_terms(gramian):
    """Returns which terms have a gradient: `(k,)`, bool."""
    return ops.not_equal(ops.diagonal(gramian), 0)


def correlation(gramian):
    """Takes the lengths of the gradients out of their Gramian.

    Args:
        gramian: `(k, k)`.

    Returns:
        The lengths, `(k,)`, 1 for a term without gradient; and the cosines, `(k, k)`, those of a
        term without gradient as if it were orthogonal to all others.
    """
    is_active = active_terms(gramian)
    square = ops.diagonal(gramian)
    lengths = ops.sqrt(ops.where(is_active, square, ops.ones_like(square)))
    cosines = gramian / (lengths[:, None] * lengths[None, :])
    return lengths, cosines + ops.diag(1 - ops.cast(is_active, gramian.dtype))


def regularize(cosines):
    """Adds to the diagonal what makes a singular matrix of cosines regular.

    Multipliers of gradients that cancel are unbounded without it.
    """
    # Above the rounding of the cosines, yet far below what can be seen in a result.
    ridge = 1e-6 if epsilon(cosines) > 1e-10 else 1e-11
    return cosines + ridge * ops.eye(cosines.shape[0], dtype=cosines.dtype)


def _longest_step(x, direction):
    """Returns how far each row of `x` > 0 can go before it meets 0, at most 1: `(batch, 1)`."""
    # Where x + direction < 0, the fraction is below 1.
    is_met = x + direction < 0
    steps = ops.where(is_met, x / ops.where(is_met, -direction, 1), 1)
    return ops.min(steps, axis=1, keepdims=True)


def _mean_of_rows(x):
    # Not `ops.mean`, which rounds float64 to float32 on JAX.
    return ops.sum(x, axis=1, keepdims=True) / x.shape[1]


def nonnegative_minimizer(matrix, linear):
    """Solves `min 1/2 x^T A x + b^T x` over `x >= 0`, for several `b` at once.

    A primal-dual interior-point method with Mehrotra's predictor and corrector: with the slack
    `z = A x + b` it follows `x_i z_i = mu` down towards `mu = 0`. That tells which `x_i` are 0; the
    others solve a system of equations.

    Args:
        matrix: `(k, k)`, `A`, positive definite, of diagonal about 1.
        linear: `(batch, k)`, the rows `b`.

    Returns:
        `(batch, k)`, the rows `x`.
    """
    precision = epsilon(matrix)
    identity = ops.eye(matrix.shape[0], dtype=matrix.dtype)

    def goes_on(x, z, gap, last_gap):
        # The gap falls until rounding hinders it.
        is_falling = ops.logical_or(gap > 64 * precision, gap < 0.5 * last_gap)
        return ops.logical_and(gap > 0.1 * precision, is_falling)

    def step(x, z, gap, last_gap):
        center = _mean_of_rows(x * z)
        residual = ops.einsum("bj,jk->bk", x, matrix) + linear - z
        scale = ops.sqrt(x / z)  # Makes every eigenvalue of the system >= 1.
        system = scale[:, :, None] * matrix * scale[:, None, :] + identity

        def newton(target):
            """Returns the step to `A x + b = z` and `x z = target`, to first order."""
            right = scale * (target / x - residual - z)
            dx = scale * ops.solve(system, right[:, :, None])[:, :, 0]
            return dx, (target - z * dx) / x - z

        def longest_step(dx, dz):
            both = ops.concatenate([x, z], axis=1)
            return _longest_step(both, ops.concatenate([dx, dz], axis=1))

        dx, dz = newton(ops.zeros_like(x))
        length = longest_step(dx, dz)
        predicted = _mean_of_rows((x + length * dx) * (z + length * dz))
        dx, dz = newton(center * (predicted / center) ** 3 - dx * dz)
        length = longest_step(dx / 0.99, dz / 0.99)
        x, z = x + length * dx, z + length * dz
        return x, z, ops.max(_mean_of_rows(x * z)), gap

    ones = ops.ones_like(linear)
    gap = ops.ones((), dtype=matrix.dtype)
    x, z, _, _ = ops.while_loop(
        goes_on, step, (ones, ones, gap, 4 * gap), maximum_iterations=_MOST_ITERATIONS
    )
    # One of the two is 0 in the end, and where both are, both are the root of `mu` before.
    followed = at_least(x - z, 0)
    is_free = x > z
    both_free = ops.logical_and(is_free[:, :, None], is_free[:, None, :])
    right = ops.where(is_free, -linear, 0)[:, :, None]
    solved = at_least(ops.solve(ops.where(both_free, matrix, identity), right)[:, :, 0], 0)

    def error(x):
        """Returns how far each row is from `x >= 0`, `A x + b >= 0` and one of the two being 0."""
        slack = ops.einsum("bj,jk->bk", x, matrix) + linear
        return ops.max(ops.absolute(ops.where(x < slack, x, slack)), axis=1, keepdims=True)

    return ops.where(error(solved) < error(followed), solved, followed)
