"""How close two embeddings are, and the rounding error of that measure."""

import keras
import numpy as np

from keras_jointloss._core.math import dot, dot_matrix, l2_normalize


def closeness_matrix(a, b, similarity):
    """Returns a measure that orders pairs as their similarity does, and its rounding error.

    The measure is the cosine, the dot product, or minus the squared distance. The rounding error
    of the squared distance is known near 0, unlike that of the distance.

    Args:
        a: `(m, dim)`.
        b: `(n, dim)`.
        similarity: `"cosine"`, `"dot"` or `"euclidean"`.

    Returns:
        Two tensors `(m, n)`: the closeness and its error, which is > 0. Two pairs are tied if their
        closeness differs by at most the error.
    """
    if similarity == "cosine":
        a, b = l2_normalize(a), l2_normalize(b)
    squares = dot(a, a)[:, None] + dot(b, b)[None, :]  # (m, n)
    closeness = dot_matrix(a, b)
    if similarity == "euclidean":
        closeness = 2.0 * closeness - squares
    # At dim 4,096, the measured products of equal unit vectors differ by up to 2.5 roundings.
    number = np.finfo(keras.backend.standardize_dtype(squares.dtype))
    return closeness, 4.0 * float(number.eps) * squares + float(number.tiny)
