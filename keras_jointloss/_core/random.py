"""Random numbers without a state: functions of a seed and a number, the same on every backend."""

import math

import numpy as np

from keras_jointloss._core.math import scramble
from keras_jointloss._core.quick_ops import ops

#: The largest number of constants to put into a compiled step.
_FEW = 2**12


def random_normal(count: int, seed: int, step):
    """Returns normally distributed numbers that depend only on `seed` and `step`: `(count,)`.

    Args:
        count: How many numbers to return.
        seed: An integer, >= 0 and < 2**31.
        step: An integer or an integer scalar tensor.
    """
    stream = scramble(scramble(ops.cast(step, "int32")) + seed)
    if count <= _FEW:
        places = np.arange(2 * count, dtype="int32").reshape(2, count)
    else:
        places = ops.reshape(ops.arange(2 * count, dtype="int32"), (2, count))
    places = scramble(places)
    bits = ops.bitwise_and(scramble(ops.convert_to_tensor(places) + stream), 2**23 - 1)
    uniform = (ops.cast(bits, "float32") + 0.5) / 2**23
    # Box and Muller, 1958.
    return ops.sqrt(-2 * ops.log(uniform[0])) * ops.cos(2 * math.pi * uniform[1])
