"""The sum of sigmoid losses over all pairs of anchors and candidates, dense or in tiles.

With logits `l_ij = scale * x_i . y_j + bias` and `z_ij` = 1 for positives and -1 for negatives

    loss_i = sum_j softplus(-z_ij l_ij)

The tiled form computes the gradient together with the value, as a sum over the anchors. It needs 3
matrix products, as the dense form does, and 2 more only if the upstream gradients of the anchors
differ.

With an exchange, the candidates are those of one replica after the other: the sum over `j` is one
over replicas. The backward pass exchanges them again, and sends each replica its gradient. On JAX,
where one program computes the global batch, the candidates pass from device to device in a ring.
"""

import math

from keras import ops

from keras_jointloss._core.backend import batch_shards, custom_gradient
from keras_jointloss._core.math import dot_matrix, matrix_of_prepared, matrix_product
from keras_jointloss.losses._pairs import Roles, Samples, for_allowed
from keras_jointloss.losses._tiles import choose, defaults_for, for_rows, put_rows


def pairwise_sigmoid(roles, scale, bias, similarity="cosine", tile_size=None):
    """Returns the loss of each anchor, `(anchors,)`.

    Dot products of the embeddings in `roles` are the cosines. The similarities are multiplied by a
    scale, to which a bias is added, both scalars; for the tile size see `choose`.
    """
    x, y = roles.anchors.embeddings, roles.candidates.embeddings
    scale = ops.convert_to_tensor(scale, dtype=x.dtype)
    bias = ops.convert_to_tensor(bias, dtype=x.dtype)
    shards = batch_shards()
    if shards > 1 and similarity != "euclidean" and len(x) == len(y) and len(x) % shards == 0:
        return _ring(x, y, scale, bias, roles, shards, tile_size or _tile_of(x, shards))

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


def _tile_of(x, shards):
    """Returns the default number of anchors in a tile of one of several devices."""
    count = len(x) // shards
    limit, tile_size = defaults_for(x, count)
    return count if count**2 <= limit else tile_size


def exchanged_sigmoid(x, y, roles, exchange, scale, bias, tile_size=None):
    """Returns the loss of each anchor of a replica among the candidates of all: `(anchors,)`.

    The anchors `x` and the candidates `y` are those of this replica, `(anchors, dim)`, whose dot
    products are the similarities. For each replica there are the `Roles` of its candidates, whose
    embeddings are not used. The other arguments are those of `pairwise_sigmoid`.
    """
    scale = ops.convert_to_tensor(scale, dtype=x.dtype)
    bias = ops.convert_to_tensor(bias, dtype=x.dtype)
    tile_size = tile_size or defaults_for(x, x.shape[0])[1]

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


def _ring(x, y, scale, bias, roles, shards, tile_size):
    """Returns the loss of each anchor, `(anchors,)`, of a batch that is split over devices.

    In as many steps as there are devices, each device compares its anchors with the candidates of
    one device, and passes these on to the next. In the end they are back.
    """

    def split(x):
        """Returns the rows of each device, `(devices, rows, ...)`."""
        return None if x is None else ops.reshape(x, (shards, -1, *x.shape[1:]))

    def pass_on(x):
        return None if x is None else ops.roll(x, 1, axis=0)

    anchors, candidates = (
        [*map(split, samples[1:])] for samples in (roles.anchors, roles.candidates)
    )

    def on_each_device(compute, *parts):
        """Returns what `compute` returns for the anchors and candidates that a device holds."""

        def of_device(parts):
            x, y, anchors, candidates, *others = parts
            held = Roles(Samples(None, *anchors), Samples(None, *candidates), roles.same_label)
            return compute(x, y, held, *others)

        return ops.vectorized_map(of_device, parts)

    def compute(x, y, scale, bias):
        x, y = split(x), split(y)
        zeros = ops.zeros_like(x[:, :, 0])

        def losses(x, y, roles):
            return _tiled_losses(x, y, scale, bias, roles, tile_size)

        def forward(_, carry):
            total, y, candidates = carry
            total = total + on_each_device(losses, x, y, anchors, candidates)
            return total, pass_on(y), [*map(pass_on, candidates)]

        total, *_ = ops.fori_loop(0, shards, forward, (zeros, y, candidates))

        def gradient(weights):
            weights = split(weights)

            def gradients(x, y, roles, weights):
                return _tiled_gradients(weights, x, y, scale, bias, roles, tile_size)

            def backward(_, carry):
                sums, towards, against, y, candidates = carry
                found = on_each_device(gradients, x, y, anchors, candidates, weights)
                sums, towards, against = (
                    a + b for a, b in zip((sums, towards, against), found, strict=True)
                )
                return sums, towards, pass_on(against), pass_on(y), [*map(pass_on, candidates)]

            start = (zeros, ops.zeros_like(x), ops.zeros_like(y), y, candidates)
            sums, towards, against, *_ = ops.fori_loop(0, shards, backward, start)
            x_gradient, y_gradient = (
                scale * ops.reshape(found, (-1, found.shape[2])) for found in (towards, against)
            )
            return x_gradient, y_gradient, ops.sum(x * towards), ops.sum(sums)

        return ops.reshape(total, (-1,)), gradient

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

    The weights are `(anchors,)`. Returns the slopes with respect to the logits, summed over the
    candidates, `(anchors,)`, and the gradients with respect to `x` and `y`, divided by `scale`.
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
