"""Stateless maths on embeddings, shared by losses, layers and metrics."""

import math

import keras
import numpy as np
from keras import ops

#: The accepted similarity measures.
SIMILARITIES = ("cosine", "dot", "euclidean")


def float_dtype(*dtypes) -> str:
    """Returns float64 if any dtype is float64, else float32. Keras loses float64 on PyTorch."""
    names = [keras.backend.standardize_dtype(dtype) for dtype in dtypes]
    return "float64" if "float64" in names else "float32"


def value_range(dtype) -> tuple[float, float]:
    """Returns the smallest and largest value of a dtype; floats have no bounds."""
    dtype = keras.backend.standardize_dtype(dtype)
    if dtype == "bool":
        return 0, 1
    if "int" not in dtype:
        return -math.inf, math.inf
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def l2_normalize(x):
    """Scales the vectors along the last axis to length 1.

    A vector whose square underflows becomes 0 and gets gradient 0.
    """
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    is_zero = square <= 0
    inverse_length = ops.rsqrt(ops.where(is_zero, ops.ones_like(square), square))
    return x * ops.where(is_zero, ops.zeros_like(square), inverse_length)


def dot(a, b):
    """Returns the dot products of corresponding vectors of `a` and `b`."""
    return ops.sum(a * b, axis=-1)


def dot_matrix(a, b):
    """Returns the dot product of each vector of `a` with each of `b`: `(len(a), len(b))`."""
    return matrix_product(a, ops.transpose(b))


def matrix_product(a, b):
    """Returns the product of two matrices."""
    # `ops.matmul` computes float64 in float32 on PyTorch; otherwise it is faster.
    if keras.backend.standardize_dtype(a.dtype) == "float64":
        return ops.einsum("ij,jk->ik", a, b)
    return ops.matmul(a, b)


def safe_sqrt(x):
    """Returns the square root. Value and gradient are 0 where `x` is 0 or, by rounding, below."""
    is_zero = x <= 0  # False for NaN.
    return ops.where(is_zero, 0, ops.sqrt(ops.where(is_zero, 1, x)))


def distance(a, b):
    """Returns the Euclidean distances between corresponding vectors of `a` and `b`."""
    return safe_sqrt(ops.sum(ops.square(a - b), axis=-1))


def distance_matrix(a, b):
    """Returns the Euclidean distance of each vector of `a` from each of `b`: `(len(a), len(b))`.

    With more than about 16 million differences, they are computed from dot products. In float32, a
    distance is then accurate to about 1e-3 of the vectors' spread.
    """

    def from_differences():
        return safe_sqrt(ops.sum(ops.square(a[:, None] - b[None, :]), axis=-1))

    def from_products():
        # A translation preserves distances, and smaller vectors have smaller rounding errors.
        center = ops.stop_gradient(ops.sum(b, axis=0) / ops.cast(ops.shape(b)[0], b.dtype))
        x, y = a - center, b - center
        square = ops.sum(ops.square(x), axis=-1)[:, None] + ops.sum(ops.square(y), axis=-1)
        return safe_sqrt(square - 2 * dot_matrix(x, y))

    return by_size(2**24, (a, b, b[0]), from_products, from_differences)


def by_size(limit, factors, large, small):
    """Returns `large()` if the product of the lengths of `factors` exceeds `limit`, else `small()`.

    Both compute the same tensor.
    """
    lengths = [x.shape[0] for x in factors]
    if None not in lengths:
        return large() if math.prod(lengths) > limit else small()
    # TensorFlow may know the batch size only during a step.
    size = math.prod(ops.cast(ops.shape(x)[0], "float32") for x in factors)
    return ops.cond(size > limit, large, small)


def similarity_matrix(a, b, similarity="cosine"):
    """Returns the similarity of each vector of `a` to each of `b`: `(len(a), len(b))`."""
    return matrix_of_prepared(prepare(a, similarity), prepare(b, similarity), similarity)


def matrix_of_prepared(a, b, similarity):
    """Returns the similarities of vectors that `prepare` returned."""
    return -distance_matrix(a, b) if similarity == "euclidean" else dot_matrix(a, b)


def paired_similarity(a, b, similarity="cosine"):
    """Returns the similarities of corresponding vectors of `a` and `b`."""
    return similarity_of_prepared(prepare(a, similarity), prepare(b, similarity), similarity)


def similarity_of_prepared(a, b, similarity):
    """Returns the similarities of corresponding vectors that `prepare` returned."""
    return -distance(a, b) if similarity == "euclidean" else dot(a, b)


def prepare(x, similarity):
    """Returns the vectors whose dot products are the similarities."""
    return l2_normalize(x) if similarity == "cosine" else x


def mean(x, axis=None):
    """Returns the mean; on JAX, `ops.mean` computes in float32 for any dtype."""
    total = ops.sum(x, axis=axis)
    return total / ops.cast(ops.size(x) / ops.size(total), x.dtype)


def mean_where(x, mask, axis):
    """Returns the mean over the elements for which `mask` is true, or 0 if there are none."""
    count = ops.sum(ops.cast(mask, x.dtype), axis=axis)
    return divide_or_0(ops.sum(ops.where(mask, x, 0), axis=axis), count)


def divide_or_0(x, y):
    """Returns `x / y`, or 0 where `y` is 0."""
    # The function of Keras loses float64 on PyTorch; otherwise it is faster.
    if keras.backend.standardize_dtype(x.dtype) != "float64":
        return ops.divide_no_nan(x, y)
    is_zero = y == 0
    return ops.where(is_zero, 0, x / ops.where(is_zero, 1, y))


def max_along(x, axis, keepdims=False):
    """Returns the maximum along an axis, or minus infinity if a replica has no items."""
    return _extreme(ops.max, -math.inf, x, axis, keepdims)


def min_along(x, axis, keepdims=False):
    """Returns the minimum along an axis, or infinity if a replica has no items."""
    return _extreme(ops.min, math.inf, x, axis, keepdims)


def _extreme(reduce, of_none, x, axis, keepdims):
    if 0 not in x.shape:
        return reduce(x, axis=axis, keepdims=keepdims)
    # With `initial`, Keras returns a tensor of another shape on PyTorch, and not on the GPU.
    return ops.full_like(ops.sum(x, axis=axis, keepdims=keepdims), of_none)


def logsumexp_where(x, mask, axis):
    """Returns the log-sum-exp over the elements for which `mask` is true.

    It is 0, with gradient 0, where there are none.
    """
    any_element = ops.any(mask, axis=axis)
    # Filling in the minimum leaves the maximum unchanged; constants that stand for infinity would
    # fail in half precision.
    filled = ops.where(mask, x, min_along(x, axis, keepdims=True))
    shift = ops.stop_gradient(max_along(filled, axis, keepdims=True))
    total = ops.sum(ops.where(mask, ops.exp(ops.where(mask, x - shift, 0)), 0), axis=axis)
    result = ops.log(ops.where(any_element, total, 1)) + ops.squeeze(shift, axis)
    return ops.where(any_element, result, 0)


def soft_sum_where(x, mask, axis):
    """Returns `log(1 + sum exp(x))` over the elements for which `mask` is true."""
    has_any = ops.any(mask, axis=axis)
    return ops.where(has_any, ops.softplus(logsumexp_where(x, mask, axis)), 0)


def scramble(x):
    """Returns pseudo-random integers for the int32 `x`, an array or tensor, different for each."""
    shifted = np.right_shift if isinstance(x, np.ndarray) else ops.right_shift
    for shift, factor in ((16, 0x7FEB352D), (15, 0x446CA68B), (16, 1)):
        # The shift of an int32 copies the sign bit; the mask removes the copies.
        x = (x ^ (shifted(x, shift) & ((1 << (32 - shift)) - 1))) * factor
    return x


def to_numpy(variable) -> np.ndarray:
    """Returns the value of a variable under any distribution strategy."""
    x = ops.convert_to_tensor(variable)
    # NumPy has no bfloat16, and Keras fails to convert a bfloat16 scalar to an array.
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = ops.cast(x, "float32")
    return ops.convert_to_numpy(x)
