"""Stateless maths on embeddings, shared by losses, layers and metrics."""

from keras import ops


def l2_normalize(x):
    """Scales the vectors on the last axis to length 1.

    A vector that is too short for its square to be told from 0 becomes 0 and gets gradient 0.
    """
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    is_zero = square <= 0
    inverse_length = ops.rsqrt(ops.where(is_zero, ops.ones_like(square), square))
    return x * ops.where(is_zero, ops.zeros_like(square), inverse_length)


def dot(a, b):
    """Returns the dot products of the vectors of `a` and `b` in the same places."""
    return ops.sum(a * b, axis=-1)


def dot_matrix(a, b):
    """Returns the dot products of each vector of `a` with each of `b`: `(len(a), len(b))`."""
    # Not `ops.matmul`, which computes float64 in float32 on PyTorch.
    return ops.einsum("id,jd->ij", a, b)
