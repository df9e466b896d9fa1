"""A scalar variable, as a number of Python where the host knows it."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_jointloss._core.math import to_numpy


class Number:
    """Reads and assigns a scalar variable, within a training step or from the host.

    Args:
        variable: The variable.
    """

    def __init__(self, variable: Any):
        self.variable = variable

    def read(self) -> Any:
        """Returns the value as a tensor; as a number where operations run one by one.

        A copy: PyTorch overwrites the variable's own tensor in place, although the backward pass
        may still need it, and JAX donates its buffer to the next step. TensorFlow would read the
        variable at each use.
        """
        return ops.copy(self.variable)

    def assign(self, value: Any) -> None:
        """Assigns a tensor or a number."""
        self.variable.assign(value)

    def on_host(self) -> Any:
        """Returns the value as a number, which may wait for the device."""
        return to_numpy(self.variable).item()


class FirstRow:
    """Reads the elements of the first row of a variable, `(rows, columns)`.

    Args:
        variable: The variable.
    """

    def __init__(self, variable: Any):
        self.variable = variable

    def read(self, index: int) -> Any:
        """Returns an element as a tensor, which may change with the variable."""
        return ops.convert_to_tensor(self.variable)[0, index]

    def on_host(self, index: int) -> Any:
        """Returns an element as an array, which may wait for the device."""
        return to_numpy(self.variable)[0, index]


def vector(numbers: Sequence[Any]) -> Any:
    """Returns a vector of scalar tensors of one dtype."""
    return ops.stack(numbers)


def is_immediate() -> bool:
    """Returns False: operations may be traced."""
    return False


def all_finite(x: Any) -> Any:
    """Returns whether all numbers of a tensor are finite, as a bool tensor."""
    return ops.all(ops.isfinite(x))
