"""How the backward pass learns by how much the loss was scaled.

Mixed precision multiplies the loss so that gradients stay in the range of float16, and Keras
divides what layers add to the loss by the number of replicas. Neither is known in the backward
pass of a layer. So the layer adds a further loss that is 0, a small number times a tensor of zeros:
the gradient that comes back for this tensor is that number times the scale.
"""

from keras import ops

from keras_jointloss._math import float_dtype
from keras_jointloss.aggregators._gramian import nonzero

# Small, to keep a scale of 2**15 and more in the range of float16.
_FACTOR = 2.0**-12


def probe_loss(zeros):
    """Returns the loss to add, which is 0.

    Args:
        zeros: `(batch, ...)`, zeros to which the backward pass leads.
    """
    return _FACTOR * ops.sum(ops.cast(zeros[:1], float_dtype(zeros.dtype)))


def loss_scale(gradient, replicas: int):
    """Returns the scale of the loss; 1 in a loop that leaves out what layers add to it.

    Args:
        gradient: The gradient with respect to `zeros`, `(values,)`.
        replicas: The number of replicas.
    """
    return nonzero(ops.sum(gradient[:1]) * (replicas / _FACTOR))
