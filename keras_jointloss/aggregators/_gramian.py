"""Stateless maths on Gramians, shared by the aggregators.

The code prefers operators (`@`, `&`, `abs` and the like) to functions of `keras.ops`. On PyTorch,
which runs these small operations one by one, operators take a fraction of the time. They also keep
float64, where `ops.matmul` returns float32.
"""

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import host_values
from keras_jointloss._core.validation import invalid

_MOST_GUESSES = 8  # Two or three usually suffice.
_MOST_ITERATIONS = 60  # 5 to 15 suffice, except for gradients that nearly cancel.


def validate_symmetric(gramian):
    """Raises `ValueError` if the host can read a square matrix, and it is not symmetric."""
    values = host_values(gramian)
    if values is None or values.shape[0] != values.shape[1] or not np.isfinite(values).all():
        return
    asymmetry = np.abs(values - values.T).max()
    if asymmetry > 1e-3 * np.abs(values).max():
        received = f"a matrix that differs from its transpose by {asymmetry:g}"
        raise invalid("gramian", "a symmetric matrix", received=received)


def epsilon(x) -> float:
    """Returns the machine epsilon of the dtype of `x`: the distance from 1 to the next number."""
    return float(np.finfo(keras.backend.standardize_dtype(x.dtype)).eps)


def nonzero(divisor):
    """Returns `divisor` with zeros replaced by ones."""
    return divisor + ops.cast(divisor == 0, divisor.dtype)


def product(matrix, vector):
    """Returns the product of a matrix and a vector."""
    return (matrix @ vector[:, None])[:, 0]


def at_least(x, bound):
    """Returns the elementwise maximum of a tensor and a number or tensor."""
    # Not `ops.maximum`, which turns float64 into float32 on PyTorch. For 0, use `ops.relu`.
    return ops.where(x < bound, ops.cast(bound, x.dtype), x)


def quadratic_form(vector, matrix):
    """Returns `v^T M v`."""
    return ops.sum(vector * product(matrix, vector))


def length(vector, matrix):
    """Returns the square root of `v^T M v`, or 0 if rounding makes that negative."""
    return ops.sqrt(ops.relu(quadratic_form(vector, matrix)))


def active_terms(gramian):
    """Returns a mask of the terms that have a gradient: `(k,)`, bool.

    One whose square is below the normal numbers of the dtype has none: no number is its inverse.
    """
    smallest = float(np.finfo(keras.backend.standardize_dtype(gramian.dtype)).tiny)
    return ~(ops.diagonal(gramian) < smallest)  # NaN is a gradient.


def correlation(gramian):
    """Splits a Gramian `(k, k)` into the lengths of the gradients and their cosines.

    A term without gradient has length 1, and is orthogonal to all others.
    """
    square = ops.diagonal(gramian)
    is_absent = ops.cast(~active_terms(gramian), gramian.dtype)
    lengths = ops.sqrt(square + is_absent)
    return lengths, gramian / (lengths[:, None] * lengths) + ops.diag(is_absent)


def regularize(cosines):
    """Adds a ridge to the diagonal, which makes a singular matrix of cosines regular.

    Without it, the multipliers of gradients that cancel are unbounded.
    """
    return cosines + ridge(cosines) * ops.eye(cosines.shape[0], dtype=cosines.dtype)


def ridge(x) -> float:
    """Returns the number that `regularize` adds to the diagonal of a matrix of the dtype of `x`."""
    # Above the rounding error of the cosines, yet far below a visible effect on the result.
    return 1e-6 if epsilon(x) > 1e-10 else 1e-11


def equal_projections(cosines, targets):
    """Returns the combination of unit vectors whose projections on them are the targets: `(k,)`.

    It is `C^+ t` with the pseudo-inverse of the cosines, the least-squares solution if there is no
    other. The largest target is 1; a term whose target is 0 takes no part unless it is needed.
    """
    targets = ops.cast(targets, cosines.dtype)
    precision = cosines.shape[0] * epsilon(cosines)
    values, vectors = ops.eigh(cosines)
    projections = product(ops.transpose(vectors), targets)
    is_kept = values > 8 * precision * ops.max(values)
    # For gradients that cancel, only rounding error remains.
    is_kept = is_kept & (abs(projections) > 8 * precision)
    inverse = ops.where(is_kept, 1 / ops.where(is_kept, values, 1), ops.zeros_like(values))
    return product(vectors, inverse * projections)


def _longest_step(x, direction):
    """Returns the step, at most 1, at which each row of `x` > 0 reaches 0: `(batch, 1)`."""
    # Where x + direction < 0, the fraction is below 1.
    is_met = x + direction < 0
    steps = ops.where(is_met, x / ops.where(is_met, -direction, 1), 1)
    return ops.min(steps, axis=1, keepdims=True)


def _mean_of_rows(x):
    # Not `ops.mean`, which rounds float64 to float32 on JAX.
    return ops.sum(x, axis=1, keepdims=True) / x.shape[1]


def restricted_solutions(matrix, right, is_free):
    """Solves `A x = b` for the free `x_i`, with the others fixed at 0, for several `b`.

    The matrix `A`, `(k, k)`, is positive definite and has a diagonal of about 1. The rows `b` and
    `x`, and which `x_i` are free, are `(batch, k)`.
    """
    identity = ops.eye(matrix.shape[0], dtype=matrix.dtype)
    both_free = is_free[:, :, None] & is_free[:, None, :]
    right = ops.where(is_free, right, ops.zeros_like(right))
    return ops.solve(ops.where(both_free, matrix, identity), right[:, :, None])[:, :, 0]


def optimality_error(x, z):
    """Returns each row's violation of `x >= 0`, `z >= 0`, with one of each pair 0: `(batch, 1)`."""
    return ops.max(abs(ops.where(x < z, x, z)), axis=1, keepdims=True)


def nonnegative_minimizer(matrix, linear):
    """Solves `min 1/2 x^T A x + b^T x` over `x >= 0`, for several `b` at once.

    With the slack `z = A x + b`, all `x_i` and `z_i` are >= 0 and one of each pair is 0. An
    active-set method guesses which `x_i` are free to exceed 0, solves a linear system for them and
    next treats those with `x_i > z_i` as free. If it does not converge, an interior-point method
    provides the guess. Matrix and rows are as in `restricted_solutions`.
    """
    tolerance = 16 * epsilon(matrix) * ops.max(abs(linear), axis=1, keepdims=True)

    def solved(is_free):
        """Returns the solution that is 0 where `x` is not free, its slack and its error."""
        x = restricted_solutions(matrix, -linear, is_free)
        z = x @ matrix + linear
        return x, z, optimality_error(x, z)

    def guess(is_free, x):
        x, z, error = solved(is_free)
        return x > z, x, ~ops.all(error <= tolerance)

    def followed():
        x, z = _interior_point(matrix, linear)
        last, _, error = solved(x > z)
        x = ops.relu(x - z)
        return ops.where(error < optimality_error(x, x @ matrix + linear), last, x)

    is_free = linear < 0  # If none is free, the solution is 0.
    x = first_right(guess, (is_free, ops.zeros_like(linear), ops.any(is_free)), followed)
    return ops.relu(x)


def first_right(guess, start, fallback):
    """Returns the first correct guess, or what `fallback` returns if the guesses do not converge.

    A guess maps the mask of free `x_i` and the last `x` to a new mask, a new `x` and whether that
    `x` is wrong. These three are given at the start, too.
    """
    _, x, is_wrong = ops.while_loop(
        lambda is_free, x, is_wrong: is_wrong,
        lambda is_free, x, is_wrong: guess(is_free, x),
        start,
        maximum_iterations=_MOST_GUESSES,
    )
    return ops.cond(is_wrong, fallback, lambda: x)


def _interior_point(matrix, linear):
    """Returns `x` > 0 and the slack `z` > 0 of `nonnegative_minimizer`, one of each pair nearly 0.

    A primal-dual method with Mehrotra's predictor-corrector steps. It follows the central path
    `x_i z_i = mu` towards `mu = 0`.
    """
    precision = epsilon(matrix)
    identity = ops.eye(matrix.shape[0], dtype=matrix.dtype)

    def goes_on(x, z, gap, last_gap):
        # The gap falls until rounding errors dominate.
        is_falling = (gap > 64 * precision) | (gap < 0.5 * last_gap)
        return (gap > 0.1 * precision) & is_falling

    def step(x, z, gap, last_gap):
        center = _mean_of_rows(x * z)
        residual = x @ matrix + linear - z
        scale = ops.sqrt(x / z)  # Makes every eigenvalue of the system >= 1.
        system = scale[:, :, None] * matrix * scale[:, None, :] + identity

        def newton(target):
            """Returns the first-order step to `A x + b = z` and `x z = target`."""
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
    return ops.while_loop(
        goes_on, step, (ones, ones, gap, 4 * gap), maximum_iterations=_MOST_ITERATIONS
    )[:2]
