"""Loops over tiles of rows of a large matrix, which is never held as a whole."""

import math
from typing import Any

from keras import ops

from keras_jointloss._core.backend import is_on_accelerator, runs_in_python
from keras_jointloss._core.math import by_size
from keras_jointloss._core.validation import invalid, validate_count

#: The largest number of elements of a matrix that is held as a whole by default.
DENSE_LIMIT = 2**22
#: The default number of rows of a larger matrix that are held at a time. They fit into caches.
TILE_SIZE = 256
#: The same number of elements on an accelerator, and that of a tile, since fewer do not fill it.
ACCELERATOR_LIMIT = 2**25


def validate_tile_size(tile_size: Any, similarity: str) -> int | None:
    """Returns a number of rows, or `None`, which it must be for `"euclidean"` distances."""
    if tile_size is None:
        return None
    if similarity == "euclidean":
        raise invalid(
            "tile_size", "None, since Euclidean distances are not computed in tiles", tile_size
        )
    return validate_count(tile_size, "tile_size")


def choose(dense, tiled, rows, columns, tile_size):
    """Returns `dense()` or `tiled(tile_size)`, which compute the same tensor.

    The latter holds `tile_size` rows of a matrix with as many rows, and as many columns, as two
    tensors have rows. It is `math.inf` for `dense`, or `None` to choose by the size.
    """
    if tile_size == math.inf:
        return dense()
    if tile_size is not None:
        return tiled(tile_size)
    limit, tile_size = defaults_for(rows, columns.shape[0])
    return by_size(limit, (rows, columns), lambda: tiled(tile_size), dense)


def defaults_for(x, columns: int | None) -> tuple[int, int]:
    """Returns the largest number of elements to hold as a whole, and the tile size beyond that.

    The tensor may be on an accelerator. TensorFlow may know the number of columns only during a
    step, as `None`.
    """
    if not is_on_accelerator(x):
        return DENSE_LIMIT, TILE_SIZE
    rows = ACCELERATOR_LIMIT // columns if columns else TILE_SIZE
    return ACCELERATOR_LIMIT, max(TILE_SIZE, rows)


def for_rows(count, tile_size, body, carry):
    """Calls `body` for one tile of rows after another and returns the final carry.

    The number of rows is an int, or a scalar tensor on TensorFlow. The last tile overlaps the one
    before it, so that all have the same size. The body receives the indices of the rows, `(tile,)`,
    which of them are new, `(tile,)`, 1 or 0, and the tensors of the carry, of one float dtype. It
    returns the next carry.
    """
    if isinstance(count, int) and runs_in_python():
        tile_size = min(tile_size, count)
        for start in range(0, count, max(tile_size, 1)):
            rows = min(start, count - tile_size) + ops.arange(tile_size, dtype="int32")
            carry = body(rows, ops.cast(rows >= start, carry[0].dtype), *carry)
        return carry
    tile_size = min(tile_size, count) if isinstance(count, int) else ops.minimum(tile_size, count)

    def step(start, *carry):
        # In half precision, JAX returns the minimum as a float.
        first = ops.cast(ops.minimum(start, count - tile_size), "int32")
        rows = first + ops.arange(tile_size, dtype="int32")
        carry = body(rows, ops.cast(rows >= start, carry[0].dtype), *carry)
        # Equals `start + tile_size`, but only once this tile is done: otherwise TensorFlow computes
        # several tiles at the same time and holds them all.
        is_done = ops.isfinite(ops.max(carry[0]))
        return ops.maximum(start + tile_size, ops.cast(is_done, "int32")), *carry

    start = ops.zeros((), dtype="int32")
    return tuple(ops.while_loop(lambda start, *_: start < count, step, (start, *carry))[1:])


def put_rows(x, rows, values):
    """Returns `x` with the given rows replaced by `values`."""
    return ops.scatter_update(x, rows[:, None], values)
