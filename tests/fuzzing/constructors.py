"""Bad arguments of every public constructor and function with arguments, by hypothesis."""

import decimal
import fractions
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from hypothesis import strategies as st

import keras_jointloss as kj
from keras_jointloss.terms.loss import TermLoss

FAMILIES = (
    "aggregators",
    "callbacks",
    "data",
    "layers",
    "points",
    "losses",
    "metrics",
    "schedules",
    "weighting",
)
_RNG = np.random.default_rng(0)
_X = _RNG.normal(size=(12, 3)).astype("float32")
_LABELS = np.resize([0, 1, 2], 12)


def _dense():
    return keras.layers.Dense(2)


#: Valid values of arguments without default, by the name of the class and of the argument.
REQUIRED: dict[str, dict[str, Callable[[], Any]]] = {
    "ChunkedTower": {"tower": _dense, "chunk_size": lambda: 2},
    "ClassBatches": {
        **{"x": lambda: _X, "y": lambda: _LABELS},
        **{"classes_per_batch": lambda: 2, "per_class": lambda: 2},
    },
    "Constraint": {"bounds": lambda: {"a": 1.0}},
    "ContrastiveTerm": {"loss": lambda: "InfoNCE"},
    "Cyclical": {"start": lambda: 0.0, "end": lambda: 1.0, "cycle_steps": lambda: 4},
    "GradientScale": {"scale": lambda: 0.5},
    "GradientBalancer": {"terms": lambda: ["a", "b"]},
    "KNNEvaluation": {
        **{"bank": lambda: _X, "bank_labels": lambda: _LABELS},
        **{"data": lambda: _X, "labels": lambda: _LABELS},
    },
    "Linear": {"start": lambda: 0.0, "end": lambda: 1.0, "steps": lambda: 4},
    "Matryoshka": {"loss": lambda: "InfoNCE", "dims": lambda: [4, 2]},
    "MomentumTower": {"tower": _dense},
    "PointWeights": {"points": lambda: 12},
    "ProxyTerm": {"loss": lambda: "ArcFace", "classes": lambda: 3},
    "Sequential": {"schedules": lambda: [0.0, 1.0], "boundaries": lambda: [3]},
    "RetrievalEvaluation": {"data": lambda: _X},
    "SharedTrunk": {"trunk": _dense, "terms": lambda: ["a", "b"]},
    "Shares": {"shares": lambda: {"a": 1.0, "b": 2.0}},
    "Sigmoid": {
        "start": lambda: 0.0,
        "end": lambda: 1.0,
        "midpoint": lambda: 3,
        "width": lambda: 1,
    },
    "TaskBatches": {"sources": lambda: {"a": (_X, {"a": _LABELS}), "b": (_X, {"b": _LABELS})}},
    "Teacher": {"model": _dense},
    "TermLoss": {"loss": lambda: "mse", "weight": lambda: kj.LossWeight()},
    "TermStopping": {"monitor": lambda: {"a": "val_a_loss"}},
    "UniqueBatches": {
        "x": lambda: _X,
        "y": lambda: _LABELS,
        "ids": lambda: np.arange(12),
        "batch_size": lambda: 4,
    },
    "joint_loss": {"losses": lambda: {"a": "mse", "b": "mae"}},
}


class _NoBool:
    def __bool__(self):
        raise RuntimeError("no truth value")

    def __repr__(self):
        return "NoBool()"


#: Values of all types. Numbers, booleans and names are valid for some arguments.
VALUES: tuple[Any, ...] = (
    *(None, True, False, np.True_, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1.5, 1e-30, 1e30),
    *(1e39, -1e39, 1e300, 10**400, -(10**400), 2**31, 2**63, math.nan, math.inf, -math.inf),
    *("False", "True", "x", "", "1", "mse", "InfoNCE", "a/b", b"x", "🙂", "x" * 1000),
    *([], (), {}, set(), [1.0], [1, 2], ["a", "a"], ["a", "b"], [math.nan], [None], [[1.0]]),
    *({"a": 1.0}, {"a": "x"}, {"a": math.nan}, {1: 2}, {"class_name": "x", "config": {}}),
    *(np.array(1.0), np.array([1.0, 2.0]), np.zeros((0,)), np.float64(0.5), np.int64(2)),
    *(np.array(["a"]), np.datetime64("2020-01-01"), 1j, decimal.Decimal("0.5")),
    *(fractions.Fraction(1, 2), object(), _NoBool(), len, int, float, keras, range(3), slice(1)),
    *(keras.losses.Huber(), keras.layers.Dense(1), keras.optimizers.schedules.CosineDecay(0.1, 9)),
    *(kj.losses.SupCon(), kj.losses.SupCon, kj.aggregators.PCGrad(), kj.weighting.FAMO()),
    *(kj.schedules.Linear(0.0, 1.0, 5), kj.metrics.Uniformity(), kj.LossWeight(0.5)),
)
ANY_VALUE = st.one_of(
    st.sampled_from(VALUES),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.integers(-2, 4), st.floats(), st.text(max_size=2)), max_size=3),
    st.dictionaries(
        st.sampled_from(["a", "b", "x"]), st.one_of(st.floats(), st.text(max_size=2)), max_size=2
    ),
)


class Target(NamedTuple):
    """A constructor or function whose arguments are checked."""

    name: str
    make: Any
    parameters: dict[str, Any]  # The hint of each argument
    required: dict[str, Callable[[], Any]]


def _parameters(make: Any) -> dict[str, Any]:
    """Returns the hints of the arguments, those of a `TypedDict` of options among them."""
    function = make.__init__ if isinstance(make, type) else make
    module = inspect.getmodule(make)
    hints = typing.get_type_hints(function, vars(module) | {"Any": Any})
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            options = typing.get_args(hints.get(name)) or ()
            for option in options:
                if typing.is_typeddict(option):
                    found |= typing.get_type_hints(option)
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = hints.get(name, Any)
    return found


@functools.cache
def targets() -> dict[str, Target]:
    """Returns every public class that a user creates, and `joint_loss`."""
    found = {"LossWeight": kj.LossWeight, "TermLoss": TermLoss, "joint_loss": kj.joint_loss}
    for family in FAMILIES:
        module = getattr(kj, family)
        for name in module.__all__ if hasattr(module, "__all__") else dir(module):
            member = getattr(module, name)
            is_own = getattr(member, "__module__", "").startswith("keras_jointloss")
            if isinstance(member, type) and is_own and not name.startswith("_"):
                key = f"{family}.{name}" if name == "Shares" else name
                found[key] = member
    result = {}
    for key, make in found.items():
        if issubclass(make, tuple) if isinstance(make, type) else False:
            continue  # Named tuples hold tensors.
        if inspect.isabstract(make) or key in BASES:
            continue
        required = REQUIRED.get(key.rpartition(".")[2], {})
        if key == "aggregators.Shares":
            required = {"shares": lambda: {"a": 1.0, "b": 2.0}}
        result[key] = Target(key, make, _parameters(make), required)
    return result


#: Classes that only others extend.
BASES = (
    "Aggregator",
    "PreferenceAggregator",
    "ViewsLoss",
    "ViewsMetric",
    "ProxyLoss",
    "Weighting",
    "PointRule",
)
BASES += ("TermsWeighting",)


# What an argument accepts, by its hint


def _is_right(hint: Any, name: str, value: Any) -> bool:
    """Returns whether a value has one of the types of a hint, or a meaning all the same."""
    is_nan = isinstance(value, float) and math.isnan(value)
    if (name == "name" and value is None) or (name == "missing" and is_nan):
        return True
    if name == "proxies_initializer":
        return True  # Keras takes arrays, too.
    return _may_be(hint, value)


def _may_be(hint: Any, value: Any) -> bool:
    if hint in (Any, inspect.Parameter.empty) or isinstance(hint, typing.TypeVar):
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_may_be(part, value) for part in typing.get_args(hint))
    if origin is Literal:
        return any(
            value is x or (isinstance(value, str) and value == x) for x in typing.get_args(hint)
        )
    if hint is type(None) or hint is None:
        return value is None
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    is_bool = isinstance(value, bool | np.bool_)
    if isinstance(value, np.ndarray) and value.shape == () and hint in (int, float):
        value = value.item()
    if hint is int:
        return isinstance(value, numbers.Integral) and not is_bool
    if hint is float:
        return isinstance(value, numbers.Real) and not is_bool and abs(value) <= 3.4028235e38
    if hint is str:
        return isinstance(value, str)
    if origin is not None and isinstance(origin, type):
        if origin is type:
            return isinstance(value, type)
        if isinstance(value, str) and issubclass(origin, list | tuple):
            return False
        if origin is Callable or "Callable" in str(origin):
            return callable(value)
        if issubclass(origin, Mapping):
            return isinstance(value, Mapping)
        return True  # Any sequence may be an array.
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        try:
            return isinstance(value, hint)
        except TypeError:
            return True
    return True


#: The arguments that Keras itself defines and checks.
OF_KERAS = {"dtype", "reduction", "trainable"}


def problem(target: Target, changed: Mapping[str, Any]) -> str | None:
    """Creates an object with changed arguments; returns what is wrong with the outcome."""
    arguments = {name: make() for name, make in target.required.items()} | dict(changed)
    wrong = [
        name
        for name, value in changed.items()
        if name not in OF_KERAS and not _is_right(target.parameters[name], name, value)
    ]
    try:
        target.make(**arguments)
    except ValueError as error:
        if OF_KERAS & set(changed):
            return None
        text = str(error)
        is_named = any(name in text for name in arguments)
        if not is_named:
            return f"ValueError without the name of the argument: {text[:200]}"
        short = target.name.rpartition(".")[2]
        is_of_keras = text.startswith("Argument `name`")
        if short not in text and not OF_KERAS & set(changed) and not is_of_keras:
            return f"ValueError without the name of the class: {text[:200]}"
        return None
    except Exception as error:
        if OF_KERAS & set(changed):
            return None
        return f"{type(error).__name__}: {str(error)[:200]}"
    return f"accepted, although {wrong} have another type" if wrong else None
