"""A scalar variable whose number the host keeps."""

import operator
from collections.abc import Sequence
from typing import Any

import torch

from keras_jointloss._core.backend import numbers
from keras_jointloss._core.keras_calls import is_stateless

#: PyTorch counts how often a tensor has been changed in place.
_changes_of = operator.attrgetter("_version")


def is_immediate() -> bool:
    """Returns whether PyTorch runs operations as they come, and changes variables in place.

    Not where it traces, nor in a `keras.StatelessScope`.
    """
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or is_stateless())


def vector(numbers: Sequence[Any]) -> Any:
    """Returns a vector of scalar tensors of one dtype."""
    return torch.stack(numbers)


class Number(numbers.Number):
    """Keeps the number of a variable until something else assigns the variable.

    So a step neither waits for the device nor starts a dozen small operations on it.
    """

    def __init__(self, variable: Any):
        super().__init__(variable)
        # The number is that of this tensor after so many changes.
        self._source: Any = None
        self._changes, self._number = 0, 0

    def read(self) -> Any:
        return self._known() if is_immediate() else super().read()

    def assign(self, value: Any) -> None:
        if torch.is_tensor(value) or not is_immediate():
            super().assign(value)
            return
        tensor = self.variable.value
        with torch.no_grad():
            tensor.fill_(value)
        self._keep(tensor, torch.tensor(value, dtype=tensor.dtype, device="cpu").item())

    def on_host(self) -> Any:
        return self._known() if is_immediate() else super().on_host()

    def _known(self) -> Any:
        tensor = self.variable.value
        if self._source is not tensor or self._changes != _changes_of(tensor):
            self._keep(tensor, tensor.item())
        return self._number

    def _keep(self, tensor: torch.Tensor, number: Any) -> None:
        self._source, self._changes, self._number = tensor, _changes_of(tensor), number


class FirstRow(numbers.FirstRow):
    """Keeps a copy of the elements until something assigns the variable."""

    def __init__(self, variable: Any):
        super().__init__(variable)
        self._source: Any = None
        self._changes, self._elements = 0, ()

    def read(self, index: int) -> Any:
        if not is_immediate():
            return super().read(index)
        tensor = self.variable.value
        if self._source is not tensor or self._changes != _changes_of(tensor):
            self._source, self._changes = tensor, _changes_of(tensor)
            self._elements = tensor[0].clone().unbind()
        return self._elements[index]
