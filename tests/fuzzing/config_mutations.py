"""Mutates configs: values, structure, names, classes, functions."""

import copy
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.fuzzing.mutation import Mutation

#: Values that replace one of a config. `json` reads all of them, infinity and NaN included.
VALUES = (
    *("False", "x", "", "🙂" * 3, None, True, False, [], {}, [1, "a"], {"a": 1}, [[[]]]),
    *(0, 1, -1, 2, 0.5, -0.001, 1e39, -1e39, 10**400, 40_000_000, 2**31, 2**63, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "nan", [float("nan")], [0.5] * 3),
)
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


def replace_value(generator, config):
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


#: The mutations of a config: each changes it, and returns what it has done.
OF_CONFIG = (
    *(replace_value,) * 6,
    *(_replace_structure, _swap, _swap, _delete, _delete, _rename, _repeat, _class),
    *(_other_class, _function, _lambda, _deep),
)
