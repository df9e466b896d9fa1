"""Determines in the backward pass by how much the loss was scaled.

Mixed precision multiplies the loss to keep gradients within the range of float16, and Keras
divides the losses that layers add by the number of replicas. The backward pass of a layer knows
neither factor. The layer therefore adds a loss that is 0: a small number times a tensor of zeros.
The gradient of this tensor is that number times the scale.
"""

from keras import ops

from keras_jointloss._core.math import float_dtype
from keras_jointloss.aggregators._gramian import nonzero

# Small, to keep a scale of 2**15 and more within the range of float16.
_FACTOR = 2.0**-12


def probe_loss(zeros):
    """Returns the loss to add, which is 0.

    Args:
        zeros: `(batch, ...)`, zeros that the backward pass reaches.
    """
    return _FACTOR * ops.sum(ops.cast(zeros[:1], float_dtype(zeros.dtype)))


def loss_scale(gradient, replicas: int):
    """Returns the scale of the loss; 1 in a loop that ignores losses added by layers.

    Args:
        gradient: The gradient with respect to `zeros`, `(values,)`.
        replicas: The number of replicas.
    """
    return nonzero(ops.sum(gradient[:1]) * (replicas / _FACTOR))
