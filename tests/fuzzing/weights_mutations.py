"""Mutates weights files: values, shapes, dtypes and names of arrays."""

import io
import random
from collections.abc import Callable

import h5py
import numpy as np

from tests.fuzzing.mutation import Mutation

#: Numbers that replace a number of a weights file.
NUMBERS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.5, 2.0, 1e30, 2.0**31)


def _arrays(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, x: names.append(name) if isinstance(x, h5py.Dataset) else None)
    return names


def _number(generator, value):
    index = tuple(generator.randrange(size) for size in value.shape)
    value = value.astype("float64")
    value[index] = generator.choice(NUMBERS)
    return value, f"{value.shape}[{index}] = {value[index]:g}"


def _filled(generator, value):
    number = generator.choice(NUMBERS)
    return np.full(value.shape, number), f"all {number:g}"


def _shape(generator, value):
    shape = generator.choice(
        [(), (0,), (1, *value.shape), (*value.shape, 2), (3,), value.shape[1:]]
    )
    return np.ones(shape, value.dtype), f"{value.shape} -> {shape}"


def _short(generator, value):
    value = value.reshape(-1)[: max(value.size - 1, 0)]
    return value, f"{value.size} numbers"


def _text(generator, value):
    return np.array([b"x"] * 3), "text"


def _complex(generator, value):
    return value.astype("complex64"), "complex"


def _bytes(generator, value):
    data = bytearray(value.astype("uint8").reshape(-1).tobytes() or b"x")
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(7)
    return np.frombuffer(bytes(data), "uint8").copy(), "a bit of text"


_OF_ARRAYS = (_number, _number, _number, _filled, _shape, _shape, _short, _text, _complex, _bytes)


def mutated_weights(generator: random.Random, data: bytes, own: Callable[[str], str]):
    """Returns a mutated weights file. `own` returns the class of this package of an array."""
    content = io.BytesIO(data)
    with h5py.File(content, "r+") as file:
        names = _arrays(file)
        chosen = [name for name in names if own(name)]
        name = generator.choice(chosen if chosen and generator.random() < 0.8 else names)
        place = {"path": tuple(name.split("/")), "owner": own(name), "is_own": bool(own(name))}
        value = np.array(file[name])
        what = generator.random()
        del file[name]
        if what < 0.1:
            note = "deleted"
        elif what < 0.15:
            file.create_group(name)["x"] = value
            note = "a group"
        elif what < 0.22:
            shape = (10**10,) if generator.random() < 0.5 else (10**10, *value.shape[1:])
            file.create_dataset(
                name, shape, "float32", chunks=(1024, *value.shape[1:])[: len(shape)]
            )
            note = f"an empty array of {shape}"
        else:
            if name.endswith(("terms", "rule")) and generator.random() < 0.5:
                change = _bytes
            else:
                change = generator.choice(_OF_ARRAYS)
            file[name], note = change(generator, value)
    return content.getvalue(), Mutation("weights", **place, note=note)
