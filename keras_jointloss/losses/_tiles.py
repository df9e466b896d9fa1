"""Loops over some rows of a large matrix at a time, so that it is never held as a whole."""

import math
from typing import Any

from keras import ops

from keras_jointloss._backend import runs_in_python
from keras_jointloss._math import by_size
from keras_jointloss._validation import validate_count

#: How many rows are held at a time unless the user says otherwise.
TILE_SIZE = 256
#: Up to how many elements a matrix is held as a whole unless the user says otherwise.
DENSE_LIMIT = 2**22


def validate_tile_size(tile_size: Any, similarity: str) -> int | None:
    """Returns `tile_size` if the similarities can be computed in tiles of that size.

    Raises:
        ValueError: If it is neither `None` nor a count, or if `similarity` is `"euclidean"`.
    """
    if tile_size is None:
        return None
    if similarity == "euclidean":
        raise ValueError(
            "Invalid value for argument `tile_size`. Expected None, since Euclidean distances "
            f"are not computed in tiles. Received: tile_size={tile_size!r}"
        )
    return validate_count(tile_size, "tile_size")


def choose(dense, tiled, rows, columns, tile_size):
    """Returns `dense()` or `tiled(tile_size)`, two ways to the same tensor.

    Args:
        dense: Holds the whole matrix.
        tiled: Holds `tile_size` rows of it.
        rows: Tensor with as many rows as the matrix has.
        columns: Tensor with as many rows as the matrix has columns.
        tile_size: A number of rows, `math.inf` for `dense`, or `None`: it depends on the size.
    """
    if tile_size == math.inf:
        return dense()
    if tile_size is not None:
        return tiled(tile_size)
    return by_size(DENSE_LIMIT, (rows, columns), lambda: tiled(TILE_SIZE), dense)


def for_rows(count, tile_size, body, carry):
    """Calls `body` for one tile of rows after the other and returns what it hands on at the end.

    Args:
        count: The number of rows: an int, or a scalar tensor on TensorFlow.
        tile_size: The number of rows of a tile. The last tile overlaps the one before, so that all
            are of a size.
        body: Called with the indices of the rows, `(tile,)`, which of them are new, `(tile,)`, 1
            or 0, and the tensors handed on; returns these.
        carry: A tuple of tensors of one float dtype.
    """
    if isinstance(count, int) and runs_in_python():
        tile_size = min(tile_size, count)
        for start in range(0, count, max(tile_size, 1)):
            rows = min(start, count - tile_size) + ops.arange(tile_size, dtype="int32")
            carry = body(rows, ops.cast(rows >= start, carry[0].dtype), *carry)
        return carry
    tile_size = min(tile_size, count) if isinstance(count, int) else ops.minimum(tile_size, count)

    def step(start, *carry):
        # In half precision JAX made a float of the minimum.
        first = ops.cast(ops.minimum(start, count - tile_size), "int32")
        rows = first + ops.arange(tile_size, dtype="int32")
        carry = body(rows, ops.cast(rows >= start, carry[0].dtype), *carry)
        # Comes to `start + tile_size`, but only when this tile is done: TensorFlow would compute
        # several at the same time, and hold them all.
        is_done = ops.isfinite(ops.max(carry[0]))
        return ops.maximum(start + tile_size, ops.cast(is_done, "int32")), *carry

    start = ops.zeros((), dtype="int32")
    return tuple(ops.while_loop(lambda start, *_: start < count, step, (start, *carry))[1:])


def put_rows(x, rows, values):
    """Returns `x` with other values in some rows."""
    return ops.scatter_update(x, rows[:, None], values)
