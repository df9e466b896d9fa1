"""Random numbers without a state: functions of a seed and a number, the same on every backend."""

import math

import numpy as np

from keras_jointloss._core.math import scramble
from keras_jointloss._core.quick_ops import ops

#: The largest number of constants to put into a compiled step.
_FEW = 2**13


def random_uniform(count: int, seed: int, step):
    """Returns numbers between 0 and 1 that depend only on `seed` and `step`: `(count,)`.

    Args:
        count: How many numbers to return.
        seed: An integer, >= 0 and < 2**31.
        step: An integer or an integer scalar tensor.
    """
    stream = scramble(scramble(ops.cast(step, "int32")) + seed)
    is_few = count <= _FEW
    places = np.arange(count, dtype="int32") if is_few else ops.arange(count, dtype="int32")
    places = ops.convert_to_tensor(scramble(places))
    bits = ops.bitwise_and(scramble(places + stream), 2**23 - 1)
    return (ops.cast(bits, "float32") + 0.5) / 2**23


def random_normal(count: int, seed: int, step):
    """Returns normally distributed numbers that depend only on `seed` and `step`: `(count,)`.

    The arguments are as in `random_uniform`.
    """
    uniform = ops.reshape(random_uniform(2 * count, seed, step), (2, count))
    # Box and Muller, 1958.
    return ops.sqrt(-2 * ops.log(uniform[0])) * ops.cos(2 * math.pi * uniform[1])
