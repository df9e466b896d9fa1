"""Errors of Keras' losses, which name no term, as errors that do."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

from keras_jointloss._core.batch import check_numbers
from keras_jointloss._core.keras import is_known
from keras_jointloss._core.validation import shown


@contextmanager
def errors_named(term: Any, loss: Any, **arrays: Any) -> Iterator[None]:
    """Turns errors of a loss into `ValueError` with the name of the term and what it received.

    It leaves those that have the name already, and those of memory. A loss that a user has written
    may take anything, and its errors stay as they are.
    """
    defined = loss if inspect.isroutine(loss) else type(loss)
    is_of_user = not is_known(defined)
    for name, values in arrays.items():
        if values is not None and (name == "sample_weight" or not is_of_user):
            for x in keras.tree.flatten(values):
                check_numbers(x, name, f"The loss of {term!r}")
    if not is_of_user:
        sizes = {x.shape[0] for x in arrays.values() if hasattr(x, "shape") and len(x.shape)}
        if 0 in sizes and sizes - {0, None}:  # Keras would repeat an only item no times.
            raise ValueError(
                f"The loss of {term!r} expects arrays of the same items. Received: "
                f"{', '.join(_received(arrays))}"
            )
    try:
        yield
    except Exception as error:  # Each backend raises its own.
        message = str(error)
        if is_of_user or repr(term) in message or "memory" in message.lower():
            raise
        received = ", ".join([*_received(arrays), f"and {type(error).__name__}: {message}"])
        raise ValueError(
            f"The loss of {term!r} cannot be computed from these targets and predictions. "
            f"Received: {received}"
        ) from error


def _received(arrays: Mapping[str, Any]) -> list[str]:
    return [f"{name} {_shapes(x)}" for name, x in arrays.items() if x is not None]


def _shapes(values: Any) -> str:
    """Returns the shapes of arrays, in words."""
    if any(not hasattr(x, "shape") for x in keras.tree.flatten(values)):
        return f"= {shown(values)}"
    return f"of shape {keras.tree.map_structure(lambda x: tuple(x.shape), values)}"
