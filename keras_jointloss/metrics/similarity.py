"""How near two embeddings are, and how far rounding may have moved that."""

import keras
import numpy as np

from keras_jointloss._math import dot, dot_matrix, l2_normalize


def closeness_matrix(a, b, similarity):
    """Returns a measure that orders pairs as their similarity does, and its rounding error.

    It is the cosine, the dot product, or minus the squared distance, whose rounding error, other
    than that of the distance, is known near 0.

    Args:
        a: `(m, dim)`.
        b: `(n, dim)`.
        similarity: `"cosine"`, `"dot"` or `"euclidean"`.

    Returns:
        Two tensors `(m, n)`. Two pairs whose closeness differs by the error, which is > 0, or by
        less, are alike.
    """
    if similarity == "cosine":
        a, b = l2_normalize(a), l2_normalize(b)
    squares = dot(a, a)[:, None] + dot(b, b)[None, :]  # (m, n)
    closeness = dot_matrix(a, b)
    if similarity == "euclidean":
        closeness = 2.0 * closeness - squares
    # The products of equal unit vectors differed by up to 2.5 roundings, at dim 4,096.
    number = np.finfo(keras.backend.standardize_dtype(squares.dtype))
    return closeness, 4.0 * float(number.eps) * squares + float(number.tiny)
