"""Who computes a training step: one device, or several replicas that each see a part of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._core.math import divide_or_0


class RowCounts(NamedTuple):
    """How many rows of a batch each replica has."""

    counts: list  # The number of rows of each replica, a list
    index: Any  # The index of this replica
    start: Any  # The index of the first row of this replica


class OneDevice:
    """One device, or all devices of JAX, whose program computes the global batch.

    The subclasses describe several replicas. All replicas call the methods in the same order.
    """

    #: The number of replicas that compute a step together, each with its own loss.
    count = 1
    #: Whether the replicas share the layers of a model, and TensorFlow runs another replica during
    #: an exchange. The forward pass of a model must not exchange values then.
    takes_turns = False

    def __init__(self, loss_divisor: int = 1):
        #: The number by which Keras divides the mean loss of a replica.
        self.loss_divisor = loss_divisor

    def sum(self, x):
        """Adds up a tensor over the replicas; each receives the sum, without a gradient."""
        return x

    def loss_sum(self, x):
        """Adds up a tensor over the replicas, of which each computes its loss from the sum.

        Multiplies the gradient by the number of replicas: Keras divides the losses by this number
        and adds up the gradients, and PyTorch averages the gradients.
        """
        return x

    def own_mean(self, mean, divisor):
        """Weights the gradient of a replica's mean by the replica's share of the divisor.

        Keras and PyTorch weight all replicas alike, also those with fewer items. The value remains
        the mean of the replica, since the forward pass must not exchange values.

        Args:
            mean: A tensor.
            divisor: The scalar by which this replica has divided, such as its number of items.
        """
        return mean

    def state_sum(self, x):
        """Returns what a replica adds to its state, for the part of a sum that it has computed.

        Keras adds up the states of the replicas, but each process of PyTorch keeps the whole sum.
        """
        return x

    def once(self, x):
        """Divides a global value by the number of replicas whose states Keras adds up.

        Their sum then counts the value once.
        """
        return x

    def gather(self, tensors: list, own) -> tuple[list, RowCounts]:
        """Returns the rows of all replicas for each tensor, without a gradient.

        Args:
            tensors: Tensors with the same number of rows, which may differ between replicas.
            own: A tensor with as many rows.
        """
        return tensors, RowCounts([ops.shape(own)[0]], 0, 0)

    def tensor_of(self, replica: int, x, after):
        """Sends the tensor of one replica to all, without a gradient.

        Args:
            replica: The index of the replica.
            x: A tensor, of the same shape on all replicas.
            after: A tensor to compute first. TensorFlow would otherwise exchange several tensors
                at the same time and hold them all.
        """
        return x

    def share_loop(self, x) -> bool:
        """Returns whether each replica computes a loss of `x` outside of a step of Keras."""
        return False


#: The only one, where Keras divides no loss.
ONE_DEVICE = OneDevice()


class Replicas(OneDevice):
    """Base of several replicas, whose gradients are averaged."""

    custom_gradient: Callable[..., Any]

    def __init__(self, count: int, loss_divisor: int):
        super().__init__(loss_divisor)
        self.count = count

    def loss_sum(self, x):
        def compute(x):
            return self.sum(x), lambda upstream: upstream * self.count

        return self.custom_gradient(compute, x)

    def own_mean(self, mean, divisor):
        def compute(mean):
            def gradient(upstream):
                share = divide_or_0(divisor, self.sum(divisor))
                return upstream * self.count * share

            return ops.copy(mean), gradient

        return self.custom_gradient(compute, mean)
