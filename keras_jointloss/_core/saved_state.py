"""Loads the state of objects from a weights file or a config: what does not fit is refused."""

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_jointloss._core.keras_calls import skips_mismatch
from keras_jointloss._core.keras_state import saved_shape
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.validation import MAX_COUNT, shown


class _Snapshot(dict):
    """The present state of an object, which needs no check."""


class SavedState:
    """The state of an object, by name, as a weights file or a config holds it.

    The values are the store of such a file, or a mapping. Each method returns a value that can be
    assigned, or raises `ValueError` with the owner in words.
    """

    def __init__(self, values: Any, owner: str):
        if not hasattr(values, "keys"):
            raise ValueError(
                f"Invalid saved state of {owner}. Expected values by name. Received: {values!r}"
            )
        self._values = values
        self._owner = owner

    def __contains__(self, name: str) -> bool:
        return name in self._values.keys()  # noqa: SIM118 (a store is not a dict)

    def get(self, name: str) -> Any:
        """Returns a value as it is, or `None` if there is none."""
        return self._values[name] if name in self else None

    def array(
        self,
        key: str,
        shape: tuple[int, ...],
        minimum: Any = -math.inf,
        maximum: float = math.inf,
        name: str | None = None,
        is_checked: Any = True,
        may_be_infinite: Any = False,
    ) -> np.ndarray:
        """Returns an array of finite numbers from `minimum`, one for all or an array, to `maximum`.

        The error names it by `name`, by default the key. Only the numbers where `is_checked` is
        true have to be valid, and those where `may_be_infinite` is true may be infinity.
        """
        name, shape = name or key, tuple(shape)
        expected = f"finite numbers of the shape {shape}" if shape else "a finite number"
        if key not in self:
            raise self.error(name, expected, "none")
        if isinstance(self._values, _Snapshot):
            return np.array(self._values[key])
        # A small file can declare an array that no memory holds: read none of another shape.
        given = saved_shape(self._values, key)
        if given not in (None, shape):
            raise self.error(name, expected, f"an array of the shape {given}")
        value = self._values[key]
        try:
            # In a list of numbers, NumPy turns true into 1.
            has_bool = any(isinstance(x, bool) for x in keras.tree.flatten(value))
            value = np.array(value)
            is_number = value.dtype.kind in "biuf" or value.dtype.name == "bfloat16"
            if has_bool or not is_number:
                raise TypeError
            numbers = value.astype("float64")
        except (OverflowError, TypeError, ValueError):
            raise self.error(name, expected, f"{name}={shown(self._values[key])}") from None
        if value.shape != shape:
            raise self.error(name, expected, f"an array of the shape {value.shape}")
        is_valid = np.isfinite(numbers) & (numbers >= minimum) & (numbers <= maximum)
        is_bad = ~(is_valid | (may_be_infinite & (numbers == math.inf))) & is_checked
        if is_bad.any():
            least = float(np.broadcast_to(minimum, shape)[is_bad][0])
            bounds = [f">= {least:g}"] * math.isfinite(least)
            bounds += [f"<= {maximum:g}"] * math.isfinite(maximum)
            expected = f"{expected} {' and '.join(bounds)}".strip()
            raise self.error(name, expected, f"{name}={numbers[is_bad][0]:g}")
        return value

    def number(self, name: str) -> float:
        """Returns a finite number, 0 or more."""
        return float(self.array(name, (), 0))

    def count(self, key: str, maximum: int = MAX_COUNT, name: str | None = None) -> int:
        """Returns a whole number, 0 or more. The error names it by `name`, by default the key."""
        name = name or key
        value = self.array(key, (), 0, maximum, name)
        if value != int(value):
            raise self.error(name, "a whole number", f"{name}={value}")
        return int(value)

    def error(self, name: str, expected: str, received: str) -> ValueError:
        """Returns the error for a value that cannot be used."""
        return ValueError(
            f"Invalid value for `{name}` in the saved state of {self._owner}. "
            f"Expected {expected}. Received: {received}"
        )


class _File:
    """What was loaded from one file, and what did not fit."""

    def __init__(self):
        self.undo: list[Callable[[], None]] = []
        self.errors: dict[int, str] = {}


# By the store that Keras passes to every object while it loads a file.
_files: "weakref.WeakKeyDictionary[Any, _File]" = weakref.WeakKeyDictionary()


def load_or_undo(
    owner: Any,
    store: Any,
    load: Callable[[Any], None],
    restore: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Loads the state of an object; if it does not fit, no object of this package changes.

    Keras goes on with the other objects after an error, and raises it at the end. It calls an
    object that it reaches by two paths again, with an empty store. If that call succeeded, it would
    forget the error. So an error is raised again, and for the objects that follow. With
    `skip_mismatch=True` only the object itself stays as it is.

    After an error of `load`, the state may be incomplete. Then `restore`, by default `load`, loads
    what `save_own_variables` of the object has returned before.
    """
    file = _File() if isinstance(store, dict) else _files.setdefault(store, _File())
    skips = bool(file.errors) and skips_mismatch()
    for failed, message in file.errors.items():
        if failed == id(owner) or not skips:
            raise ValueError(message)
    before = _Snapshot()
    owner.save_own_variables(before)
    before.update({name: _copied(value) for name, value in before.items()})

    def undo():
        (restore or load)(before)

    try:
        load(store)
    except Exception as error:
        file.errors[id(owner)] = str(error)  # The error itself refers to the store.
        undo()
        if not skips_mismatch():
            for undo_other in reversed(file.undo):
                undo_other()
        raise
    file.undo.append(undo)


def _copied(value: Any) -> np.ndarray:
    """Returns the value of an array or a variable, which may change."""
    return np.array(to_numpy(value) if isinstance(value, keras.Variable) else value)
