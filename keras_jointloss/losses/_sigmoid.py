"""The sum of sigmoid losses over all pairs of anchors and candidates, dense or in tiles.

With logits `l_ij = scale * x_i . y_j + bias` and `z_ij` = 1 for positives and -1 for negatives

    loss_i = sum_j softplus(-z_ij l_ij)

The tiled form computes the gradient together with the value, as a sum over the anchors. It needs 3
matrix products, as the dense form does, and 2 more only if the upstream gradients of the anchors
differ.

With an exchange, the candidates are those of one replica after the other: the sum over `j` is one
over replicas. The backward pass exchanges them again, and sends each replica its gradient.
"""

import math

from keras import ops

from keras_jointloss._backend import custom_gradient
from keras_jointloss._math import dot_matrix, matrix_of_prepared, matrix_product
from keras_jointloss.losses._tiles import TILE_SIZE, choose, for_rows, put_rows


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


def exchanged_sigmoid(x, y, roles, exchange, scale, bias, tile_size=None):
    """Returns the loss of each anchor of a replica among the candidates of all: `(anchors,)`.

    Args:
        x: `(anchors, dim)`, the anchors of this replica. Dot products are the similarities.
        y: `(anchors, dim)`, the candidates of this replica.
        roles: For each replica, the `Roles` of its candidates, whose embeddings are not used.
        exchange: The `Exchange` of the candidates.
        scale: As in `pairwise_sigmoid`.
        bias: As in `pairwise_sigmoid`.
        tile_size: The number of anchors to compute at a time, or `None` for the default.
    """
    scale = ops.convert_to_tensor(scale, dtype=x.dtype)
    bias = ops.convert_to_tensor(bias, dtype=x.dtype)
    tile_size = tile_size or TILE_SIZE

    def compute(x, y, scale, bias):
        losses = ops.zeros_like(x[:, 0])
        for replica, role in enumerate(roles):
            candidates = exchange.rows_of(replica, y, after=losses)
            losses = losses + _tiled_losses(x, candidates, scale, bias, role, tile_size)

        def gradient(weights):
            sums, towards = ops.zeros_like(weights), ops.zeros_like(x)
            y_gradient, done = ops.zeros_like(y), weights
            for replica, role in enumerate(roles):
                candidates = exchange.rows_of(replica, y, after=done)
                found = _tiled_gradients(weights, x, candidates, scale, bias, role, tile_size)
                sums, towards = sums + found[0], towards + found[1]
                y_gradient = done = y_gradient + exchange.sum_for(replica, scale * found[2])
            return scale * towards, y_gradient, ops.sum(x * towards), ops.sum(sums)

        return losses, gradient

    return custom_gradient(compute, x, y, scale, bias)


def _tiled_losses(x, y, scale, bias, roles, tile_size):
    """Returns the loss of each anchor, `(anchors,)`, computed in tiles."""

    def forward(rows, _, losses):
        _, _, allowed, logits = _tile(rows, x, y, scale, bias, roles)
        found = for_allowed(allowed, ops.softplus(logits))
        return (put_rows(losses, rows, ops.sum(found, axis=1)),)

    return for_rows(ops.shape(x)[0], tile_size, forward, (ops.zeros_like(x[:, 0]),))[0]


def _tiled_gradients(weights, x, y, scale, bias, roles, tile_size):
    """Returns the gradients of the weighted sum of the losses, computed in tiles.

    Args:
        weights: `(anchors,)`.
        x: `(anchors, dim)`.
        y: `(candidates, dim)`.
        scale: A scalar.
        bias: A scalar.
        roles: `Roles`.
        tile_size: The number of anchors in a tile.

    Returns:
        The slopes with respect to the logits, summed over the candidates, `(anchors,)`, and the
        gradients with respect to `x` and `y`, divided by `scale`.
    """

    def backward(rows, fresh, sums, towards, against):
        x_tile, positive, allowed, logits = _tile(rows, x, y, scale, bias, roles)
        slope = ops.take(weights, rows, axis=0)[:, None] * _slope(positive, allowed, logits)
        return (
            put_rows(sums, rows, ops.sum(slope, axis=1)),
            put_rows(towards, rows, matrix_product(slope, y)),
            against + matrix_product(ops.transpose(slope), fresh[:, None] * x_tile),
        )

    carry = (ops.zeros_like(x[:, 0]), ops.zeros_like(x), ops.zeros_like(y))
    return for_rows(ops.shape(x)[0], tile_size, backward, carry)


def _tile(rows, x, y, scale, bias, roles):
    """Returns the anchors of a tile, its masks, and `-z_ij l_ij`, the logits of its losses."""
    x_tile = ops.take(x, rows, axis=0)
    positive, allowed = roles.masks(rows)
    logits = dot_matrix(scale * x_tile, y) + bias
    return x_tile, positive, allowed, ops.where(positive, -logits, logits)


def _slope(positive, allowed, logits):
    """Returns the derivative of each loss with respect to `l_ij`."""
    slope = ops.sigmoid(logits)
    return for_allowed(allowed, ops.where(positive, -slope, slope))


def _tiled(x, y, scale, bias, roles, tile_size):
    count = ops.shape(x)[0]

    def slopes(rows):
        x_tile, positive, allowed, logits = _tile(rows, x, y, scale, bias, roles)
        loss = for_allowed(allowed, ops.softplus(logits))
        return x_tile, loss, _slope(positive, allowed, logits)

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
