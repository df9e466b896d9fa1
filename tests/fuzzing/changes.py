"""What replaces an array of a batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops


def _ragged(x):
    return [list(range(i + 1)) for i in range(len(x))]


#: What replaces an array, by name.
CHANGES: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda x: x,
    "list": lambda x: x.tolist(),
    "tensor": ops.convert_to_tensor,
    "none": lambda x: None,
    "scalar": lambda x: x.reshape(-1)[0],
    "text": lambda x: "abc",
    "dict": lambda x: {"a": x},
    "empty": lambda x: x[:0],
    "no features": lambda x: x[..., :0] if x.ndim > 1 else x,
    "one item": lambda x: x[:1],
    "shorter": lambda x: x[:-1],
    "longer": lambda x: np.concatenate([x, x[:1]]),
    "column": lambda x: x[..., None],
    "two columns": lambda x: np.stack([x, x], axis=-1),
    "flat": lambda x: x.reshape(-1),
    "row": lambda x: x[None],
    "strings": lambda x: x.astype(str),
    "objects": lambda x: np.array([object()] * len(x)) if x.ndim else x,
    "complex": lambda x: x.astype("complex64"),
    "ragged": _ragged,
    "bool": lambda x: x > 0,
    "int": lambda x: x.astype("int32"),
    "half": lambda x: x.astype("float16"),
    "double": lambda x: x.astype("float64"),
    "nan": lambda x: np.full(x.shape, np.nan, "float32"),
    "one nan": lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size - 1, np.nan, x),
    "infinite": lambda x: np.full(x.shape, np.inf, "float32"),
    "large": lambda x: np.full(x.shape, 1e30, "float32"),
    "negative": lambda x: -np.abs(x) - 1.0,
}
#: What no argument can be.
NEVER = {"text", "dict", "strings", "objects", "complex", "ragged"}
#: What leaves values finite.
FINITE = {"as it is", "list", "tensor", "double", "bool"}
