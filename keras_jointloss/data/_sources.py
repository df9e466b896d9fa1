"""The data sets of several tasks: their inputs and targets by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_jointloss._core.validation import invalid
from keras_jointloss.data._items import count_items, to_array, to_arrays

#: The largest whole number up to which float32 has all.
_EXACT = 2**24


class Source(NamedTuple):
    """One of the data sets."""

    x: Any
    y: dict[str, np.ndarray]
    sample_weight: np.ndarray | None
    items: int


def parse_source(source: str, value: Any) -> Source:
    """Returns a data set from what is given for it under this name."""
    name = f"sources[{source!r}]"
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 3:
        received = f"{name} of type {type(value).__name__}"
        raise invalid(name, "(x,), (x, y) or (x, y, sample_weight)", received=received)
    x, y, sample_weight = (*value, None, None)[:3]
    x = to_arrays(x, name)
    if y is None:
        y = np.zeros(count_items(**{name: x}), "float32")
    y = to_arrays(dict(y) if isinstance(y, Mapping) else {source: y}, name)
    if not all(isinstance(target, np.ndarray) for target in y.values()):
        raise invalid(name, "a target, or a dict of targets by output", received=f"y={y!r}")
    parts = {"x": x, "y": y}
    if sample_weight is not None:
        parts["sample_weight"] = sample_weight = to_array(sample_weight, name)
    return Source(x, y, sample_weight, count_items(**parts))


def inputs_by_name(x: Any) -> dict[Any, np.ndarray]:
    """Returns the inputs by name, or by position if they have none."""
    return dict(x) if isinstance(x, Mapping) else dict(enumerate(keras.tree.flatten(x)))


def merges_inputs(inputs: list) -> bool:
    """Returns whether the model gets the inputs of all sources, by name."""
    first, *others = inputs
    if all(isinstance(x, Mapping) for x in inputs):
        return True
    for x in others:
        try:
            keras.tree.assert_same_structure(first, x)
        except (TypeError, ValueError):
            raise invalid(
                "sources", "inputs of one structure, or dicts of them", received="different ones"
            ) from None
    return False


def shapes_by_name(arrays: dict[str, dict]) -> dict[Any, tuple[tuple, Any]]:
    """Returns the shape of an item and the dtype of each array by name, over all sources."""
    found: dict[Any, tuple[tuple, Any]] = {}
    for source, named in arrays.items():
        for name, array in named.items():
            shape, dtype = found.get(name, (array.shape[1:], array.dtype))
            if shape != array.shape[1:]:
                expected = f"arrays {name!r} of the same shape in all sources, but for the rows"
                raise invalid(
                    f"sources[{source!r}]", expected, received=f"{array.shape[1:]} and {shape}"
                )
            found[name] = shape, np.result_type(dtype, array.dtype)
    return found


def dtype_with_missing(name: str, dtype: Any, missing: float, sources: dict[str, Source]) -> Any:
    """Returns a dtype that has the targets of an output and the missing one."""
    if len(sources) == sum(name in source.y for source in sources.values()):
        return dtype
    if dtype.kind == "f":
        return dtype
    if missing.is_integer():
        return np.result_type(dtype, np.min_scalar_type(int(missing)), "int32")
    arrays = [source.y[name] for source in sources.values() if name in source.y]
    largest = max(int(np.abs(x.astype("float64")).max()) for x in arrays)
    if largest > _EXACT:
        expected = f"a whole number for the integers of {name!r}, up to {largest}"
        raise invalid("missing", expected, missing)
    return np.dtype("float32")
