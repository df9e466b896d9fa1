"""Mutates saved models: config, metadata, members of the archive and arrays of the weights file."""

import copy
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np

#: Values that replace one of a config. `json` reads all of them, infinity and NaN included.
VALUES = (
    *("False", "x", "", "🙂" * 3, None, True, False, [], {}, [1, "a"], {"a": 1}, [[[]]]),
    *(0, 1, -1, 2, 0.5, -0.001, 1e39, -1e39, 10**400, 40_000_000, 2**31, 2**63, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "nan", [float("nan")], [0.5] * 3),
)
#: Numbers that replace a number of a weights file.
NUMBERS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.5, 2.0, 1e30, 2.0**31)
#: The import of a module whose code leaves a trace, and other calls of functions.
LAMBDA = {"class_name": "__lambda__", "config": {"value": ["4wAAAAA=\n", None, None]}}
FUNCTIONS = (
    *(("os", "system"), ("builtins", "eval"), ("builtins", "exec"), ("subprocess", "Popen")),
    *(("keras.utils", "get_file"), ("keras_jointloss", "report"), ("keras", "ops")),
    *(("keras_jointloss.tensorboard", "read"), ("keras_jointloss.losses", "info_nce")),
)
#: Other classes in the place of one.
CLASSES = (
    *(("keras.layers", "Lambda"), ("keras.layers", "Dense"), ("keras.losses", "Huber")),
    *(("keras.metrics", "Mean"), ("keras.optimizers.schedules", "CosineDecay")),
    *(("subprocess", "Popen"), ("keras_jointloss", "LossWeight"), ("pathlib", "Path")),
)
#: What Keras reads before any class.
OF_KERAS = {"class_name", "module", "registered_name", "shared_object_id", "build_config"}
OF_KERAS |= {"inbound_nodes", "dtype"}


class Mutation(NamedTuple):
    """One change of a saved model.

    Attributes:
        kind: What was done.
        path: The keys that lead to the place.
        owner: The class that the place belongs to, or `""`.
        is_own: Whether this class is one of this package.
        is_wrong_type: Whether a value replaced one of another type.
        note: The value before and after.
    """

    kind: str
    path: tuple
    owner: str = ""
    is_own: bool = False
    is_wrong_type: bool = False
    note: str = ""


class _Place(NamedTuple):
    parent: Any
    key: Any
    path: tuple
    owner: str
    is_own: bool

    @property
    def value(self):
        return self.parent[self.key]


def _is_own(config: dict) -> bool:
    names = (str(config.get("registered_name")), str(config.get("module")))
    return any(re.match(r"keras_jointloss[.>]", name) for name in names)


def _places(config: Any, path=(), owner="", is_own=False, seen=None) -> Iterator[_Place]:
    """Yields every place of a config, with the class that it belongs to.

    Keras does not read the further copies of an object that is in several places.
    """
    seen = set() if seen is None else seen
    if isinstance(config, dict) and "shared_object_id" in config:
        if config["shared_object_id"] in seen:
            return
        seen.add(config["shared_object_id"])
    is_object = isinstance(config, dict) and {"class_name", "config"} <= config.keys()
    if is_object and not str(config["class_name"]).startswith("__"):
        owner, is_own = str(config["class_name"]), _is_own(config)
    items = config.items() if isinstance(config, dict) else ()
    items = enumerate(config) if isinstance(config, list) else items
    for key, value in items:
        yield _Place(config, key, (*path, key), owner, is_own and key not in OF_KERAS)
        yield from _places(value, (*path, key), owner, is_own and key not in OF_KERAS, seen)


def _of_type(value: Any) -> str:
    """Returns the kind of a JSON value: wrong types are those of another kind."""
    if isinstance(value, bool) or value is None:
        return repr(type(value))
    if isinstance(value, int | float):
        return "number"
    return repr(type(value))


def _brief(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**70 else "10**400"
    return text if len(text) < 80 else f"{text[:77]}..."


def _choose(generator: random.Random, config: dict, accepts: Callable[[_Place], bool]) -> _Place:
    """Chooses a place, three times of four one that belongs to a class of this package."""
    places = [x for x in _places(config) if accepts(x)]
    own = [x for x in places if x.is_own]
    return generator.choice(own if own and generator.random() < 0.75 else places)


def _replace_value(generator, config):
    place = _choose(generator, config, lambda x: not isinstance(x.value, dict | list))
    return _replaced(place, "value", generator.choice(VALUES))


def _replace_structure(generator, config):
    place = _choose(generator, config, lambda x: isinstance(x.value, dict | list))
    return _replaced(place, "structure", generator.choice(VALUES))


def _swap(generator, config):
    places = [place for place in _places(config) if place.value]
    place = _choose(generator, config, lambda x: bool(x.value))
    other = generator.choice([x for x in places if type(x.value) is type(place.value)])
    return _replaced(place, "swapped", copy.deepcopy(other.value))


def _replaced(place, kind, value):
    before = place.value
    place.parent[place.key] = value
    # `None` often stands for the default, and a number for what may also follow a schedule.
    is_right = None in (before, value) or (isinstance(before, dict) and _of_type(value) == "number")
    is_wrong = not is_right and _of_type(before) != _of_type(value)
    note = f"{_brief(before)} -> {_brief(value)}"
    return Mutation(kind, place.path, place.owner, place.is_own, is_wrong, note)


def _delete(generator, config):
    place = _choose(generator, config, lambda x: True)
    note = _brief(place.value)
    del place.parent[place.key]
    return Mutation("deleted", place.path, place.owner, place.is_own, False, note)


def _rename(generator, config):
    place = _choose(generator, config, lambda x: isinstance(x.parent, dict))
    name = generator.choice(["x", "weight", "loss", f"{place.key}_", "__class__", "name"])
    place.parent[name] = place.parent.pop(place.key)
    return Mutation("renamed", place.path, place.owner, place.is_own, False, f"-> {name}")


def _repeat(generator, config):
    place = _choose(generator, config, lambda x: isinstance(x.value, list) and bool(x.value))
    place.value.insert(0, copy.deepcopy(place.value[-1]))
    return Mutation("repeated", place.path, place.owner, place.is_own, False, _brief(place.value))


def _class(generator, config):
    place = _choose(generator, config, lambda x: x.key == "class_name")
    parent, before = place.parent, place.value
    module, name = generator.choice(CLASSES)
    registered = f"keras_jointloss>{name}" if "jointloss" in module else None
    parent |= {"class_name": name, "module": module, "registered_name": registered}
    if name == "Lambda":
        parent["config"] = {"name": "lambda", "function": copy.deepcopy(LAMBDA)}
    if name == "Popen":
        parent["config"] = {"args": ["true"]}
    return Mutation("class", place.path, place.owner, place.is_own, False, f"{before} -> {name}")


def _other_class(generator, config):
    """Swaps a class of this package for another one of it, with the arguments of the first."""
    place = _choose(generator, config, lambda x: x.key == "class_name" and _is_own(x.parent))
    names = sorted(
        {x.value for x in _places(config) if x.key == "class_name" and _is_own(x.parent)}
    )
    before, name = place.value, generator.choice([*names, "InfoNCE", "FAMO", "PCGrad", "RecallAtK"])
    place.parent.update(class_name=name, registered_name=f"keras_jointloss>{name}")
    return Mutation("class", place.path, before, True, False, f"{before} -> {name}")


def _function(generator, config):
    place = _choose(generator, config, lambda x: "build_config" not in x.path)
    module, name = generator.choice(FUNCTIONS)
    value = {"module": module, "class_name": "function", "config": name, "registered_name": name}
    return _replaced(place, "function", value)


def _lambda(generator, config):
    place = _choose(generator, config, lambda x: "build_config" not in x.path)
    return _replaced(place, "lambda", copy.deepcopy(LAMBDA))


def _deep(generator, config):
    place = _choose(generator, config, lambda x: True)
    value: Any = generator.choice([1, "x"])
    for _ in range(100):
        value = {"class_name": "Sum", "config": value} if generator.random() < 0.1 else [value]
    return _replaced(place, "deep", value)


_OF_CONFIG = (
    *(_replace_value,) * 6,
    *(_replace_structure, _swap, _swap, _delete, _delete, _rename, _repeat, _class),
    *(_other_class, _function, _lambda, _deep),
)


# The weights file


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


def _weights(generator: random.Random, data: bytes, own: Callable[[str], str]):
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


# The archive


def _damaged(generator: random.Random, data: bytes):
    """Returns a damaged archive: cut off, or with wrong bytes."""
    data = bytearray(data)
    if generator.random() < 0.5:
        del data[generator.randrange(len(data)) :]
        return bytes(data), Mutation("archive", (), note="cut off")
    for _ in range(generator.choice([1, 10, 100])):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data), Mutation("archive", (), note="wrong bytes")


def _archive(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return content.getvalue()


def _member(generator: random.Random, members: dict[str, bytes]) -> Mutation:
    name = generator.choice(sorted(members))
    what = generator.choice(["missing", "empty", "half", "moved out", "text"])
    value = members.pop(name)
    if what == "moved out":
        members[f"../{name}"] = value
    elif what != "missing":
        members[name] = {"empty": b"", "half": value[: len(value) // 2], "text": b"[" * 10**5}[what]
    return Mutation("member", (name,), note=what)


def mutated(data: bytes, seed: int, own: Callable[[str], str]) -> tuple[bytes, Mutation]:
    """Returns a saved model with one change.

    Args:
        data: The `.keras` file.
        seed: The seed of all random choices.
        own: Returns the class of this package that an array of the weights file belongs to, or
            `""`.
    """
    generator = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    what = generator.random()
    if what < 0.03:
        return _damaged(generator, data)
    if what < 0.06:
        mutation = _member(generator, members)
        return _archive(members), mutation
    if what < 0.35:
        name = "model.weights.h5"
        members[name], mutation = _weights(generator, members[name], own)
    else:
        config = json.loads(members["config.json"])
        if what < 0.37:
            metadata = json.loads(members["metadata.json"])
            mutation = _replace_value(generator, metadata)._replace(kind="metadata")
            members["metadata.json"] = json.dumps(metadata).encode()
        else:
            mutation = generator.choice(_OF_CONFIG)(generator, config)
            members["config.json"] = json.dumps(config).encode()
    return _archive(members), mutation
