"""The sum of sigmoid losses over all pairs of anchors and candidates, dense or in tiles.

With logits `l_ij = scale * x_i . y_j + bias` and `z_ij` = 1 for positives and -1 for negatives

    loss_i = sum_j softplus(-z_ij l_ij)

The tiled form computes the gradient together with the value, as a sum over the anchors. It needs 3
matrix products, as the dense form does, and 2 more only if the upstream gradients of the anchors
differ.
"""

import math

from keras import ops

from keras_jointloss._backend import custom_gradient
from keras_jointloss._math import dot_matrix, matrix_of_prepared, matrix_product
from keras_jointloss.losses._tiles import choose, for_rows, put_rows


def pairwise_sigmoid(roles, scale, bias, similarity="cosine", tile_size=None):
    """Returns the loss of each anchor, `(anchors,)`.

    Args:
        roles: `Roles`. Dot products of its embeddings are the cosines.
        scale: The factor that multiplies the similarities, a scalar.
        bias: The bias added to the scaled similarities, a scalar.
        similarity: `"cosine"`, `"dot"` or `"euclidean"`.
        tile_size: As in `choose`.
    """
    x, y = roles.anchors.embeddings, roles.candidates.embeddings
    scale = ops.convert_to_tensor(scale, dtype=x.dtype)
    bias = ops.convert_to_tensor(bias, dtype=x.dtype)

    def dense():
        rows = ops.arange(ops.shape(x)[0], dtype="int32")
        positive, allowed = roles.masks(rows)
        logits = scale * matrix_of_prepared(x, y, similarity) + bias
        losses = ops.softplus(ops.where(positive, -logits, logits))
        return ops.sum(for_allowed(allowed, losses), axis=1)

    def tiled(tile_size):
        def compute(x, y, scale, bias):
            return _tiled(x, y, scale, bias, roles, tile_size)

        return custom_gradient(compute, x, y, scale, bias)

    return choose(dense, tiled, x, y, math.inf if similarity == "euclidean" else tile_size)


def for_allowed(allowed, values):
    """Returns the values, 0 where the mask, if there is one, is false."""
    return values if allowed is None else ops.where(allowed, values, 0)


def _tiled(x, y, scale, bias, roles, tile_size):
    count = ops.shape(x)[0]

    def slopes(rows):
        x_tile = ops.take(x, rows, axis=0)
        positive, allowed = roles.masks(rows)
        logits = dot_matrix(scale * x_tile, y) + bias
        logits = ops.where(positive, -logits, logits)
        slope = ops.sigmoid(logits)
        slope = ops.where(positive, -slope, slope)
        return x_tile, for_allowed(allowed, ops.softplus(logits)), for_allowed(allowed, slope)

    def forward(rows, fresh, losses, towards, against, slope_sums):
        x_tile, loss, slope = slopes(rows)
        return (
            put_rows(losses, rows, ops.sum(loss, axis=1)),
            put_rows(towards, rows, matrix_product(slope, y)),
            against + matrix_product(ops.transpose(slope), fresh[:, None] * x_tile),
            put_rows(slope_sums, rows, ops.sum(slope, axis=1)),
        )

    zeros = ops.zeros_like(x[:, 0])
    carry = (zeros, ops.zeros_like(x), ops.zeros_like(y), zeros)
    losses, towards, against, slope_sums = for_rows(count, tile_size, forward, carry)

    def gradient(weights):
        def weighted(rows, fresh, against):
            x_tile, _, slope = slopes(rows)
            weight = fresh * ops.take(weights, rows, axis=0)
            return (against + matrix_product(ops.transpose(slope), weight[:, None] * x_tile),)

        def unequal():
            return for_rows(count, tile_size, weighted, (ops.zeros_like(y),))[0]

        first = weights[:1]  # None if there are no anchors.
        are_equal = ops.all(ops.equal(weights, first))
        y_gradient = ops.cond(are_equal, lambda: ops.sum(first) * against, unequal)
        x_gradient = weights[:, None] * towards
        return (
            scale * x_gradient,
            scale * y_gradient,
            ops.sum(x * x_gradient),
            ops.sum(weights * slope_sums),
        )

    return losses, gradient
