"""Bad batches for every loss, metric, aggregator and layer, by hypothesis."""

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from hypothesis import strategies as st
from keras import ops

import keras_jointloss as kj
from keras_jointloss.terms.loss import TermLoss
from tests.loss_cases import DEFAULTS, labels_of, views_of

ITEMS = 5
_RNG = np.random.default_rng(0)


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
_NEVER = {"text", "dict", "strings", "objects", "complex", "ragged"}
_FINITE = {"as it is", "list", "tensor", "double", "bool"}


class Target(NamedTuple):
    """Something to call.

    Attributes:
        name: Its name in the tests.
        names: What an error may call it.
        call: Calls it with arrays by name.
        arrays: Valid arrays by the name of the argument.
        wrong: By the name of the argument, the changes that are plainly wrong.
        aligned: The arguments with a row for each item.
        skipped: The changes that are not tried.
    """

    name: str
    names: tuple[str, ...]
    call: Callable[..., Any]
    arrays: dict[str, Any]
    wrong: dict[str, set[str]]
    aligned: tuple[str, ...] = ()
    skipped: frozenset[str] | set[str] = frozenset()


_WEIGHT = np.linspace(0.5, 1.5, ITEMS).astype("float32")
_WRONG_VIEWS = _NEVER | {"none", "scalar", "empty", "two columns", "column", "row", "flat"}
_WRONG_LABELS = _NEVER | {"none", "scalar", "shorter", "longer", "row", "nan", "one nan"}
_WRONG_WEIGHT = _NEVER | {"shorter", "longer", "two columns", "row"}


def _of_loss(case) -> Target:
    loss, labels = case.make(), labels_of(case)
    needs_labels = case.labels is not None
    arrays = {
        "y_true": labels.astype("float32") if case.labels != "class" else labels,
        "y_pred": views_of(case).astype("float32"),
        "sample_weight": _WEIGHT,
    }
    wrong = {
        "y_true": _WRONG_LABELS if needs_labels else set(),
        "y_pred": _WRONG_VIEWS - ({"flat"} if loss.min_views == 1 else set()),
        "sample_weight": _WRONG_WEIGHT,
    }
    return Target(type(loss).__name__, (type(loss).__name__,), loss, arrays, wrong, tuple(arrays))


def _of_metric(name: str) -> Target:
    cls = getattr(kj.metrics, name)
    metric = cls(k=1) if name in ("RecallAtK", "NormalizedDiscountedCumulativeGain") else cls()
    case = DEFAULTS[0]
    labels = np.array([1, 0, 1, 0, 1])
    arrays = {
        "y_true": labels,
        "y_pred": views_of(case).astype("float32"),
        "sample_weight": _WEIGHT,
    }
    wrong = {
        "y_true": _WRONG_LABELS | {"two columns"} if metric.has_labels else set(),
        "y_pred": _WRONG_VIEWS - {"flat", "empty"},
        "sample_weight": _WRONG_WEIGHT,
    }

    def call(**given):
        metric.reset_state()
        return metric(**given)

    return Target(name, (name,), call, arrays, wrong, tuple(arrays))


def _of_aggregator(name: str) -> list[Target]:
    cls = getattr(kj.aggregators, name)
    aggregator = cls([1.0, 2.0, 3.0]) if name == "Shares" else cls()
    matrix = _RNG.normal(size=(3, 4)).astype("float32")
    wrong = _NEVER | {"none", "scalar", "empty", "no features", "column", "two columns", "flat"}
    gramian = matrix @ matrix.T
    asymmetric = {"shorter", "longer", "one item"}
    return [
        Target(
            f"{name}(matrix)",
            (name, "matrix"),
            lambda matrix: aggregator(matrix),
            {"matrix": matrix},
            {"matrix": wrong | {"row"}},
        ),
        Target(
            f"{name}.solve",
            (name, "gramian"),
            lambda gramian: aggregator.solve(gramian),
            {"gramian": gramian},
            {"gramian": wrong | asymmetric | {"row"}},
        ),
    ]


def _layer(name: str, make: Callable, arrays: Mapping, wrong: Mapping, call: Callable) -> Target:
    names = (name, "term")

    def compute(**given):
        layer = make()
        result = call(layer, **given)
        return [*layer.losses, *keras.tree.flatten(result)]

    return Target(name, names, compute, dict(arrays), dict(wrong), tuple(arrays))


def _of_layers() -> list[Target]:
    a, b = _RNG.normal(size=(2, ITEMS, 4)).astype("float32")
    classes = np.array([0, 1, 2, 0, 1])
    embedding = _NEVER | {"none", "scalar", "empty", "column", "two columns", "flat", "row"}
    embedding |= {"no features", "shorter", "longer"}
    labels = _WRONG_LABELS - {"row"}
    found = []
    for loss in ("InfoNCE", "SupCon", "VICReg", "MarginContrastive", "MarginMSE"):
        case = next(x for x in DEFAULTS if type(x.make()).__name__ == loss)
        arrays = {"a": a, "b": b}
        if case.views == 3:
            arrays["c"] = a - b
        if case.labels:
            arrays["labels"] = labels_of(case)
        arrays["sample_weight"] = _WEIGHT

        def call(layer, sample_weight, **given):
            return layer(tuple(given.values()), sample_weight=sample_weight, training=True)

        wrong = {"a": embedding, "b": embedding, "c": embedding, "labels": labels}
        wrong["sample_weight"] = _WRONG_WEIGHT
        make = functools.partial(kj.layers.ContrastiveTerm, loss, name="term")
        target = _layer(f"ContrastiveTerm({loss})", make, arrays, wrong, call)
        found.append(target._replace(names=("term", loss)))
    tensor = _NEVER | {"none"}
    pair = {"x": a, "target": b, "sample_weight": _WEIGHT}
    found.append(
        _layer(
            "LossTerm",
            lambda: kj.layers.LossTerm("mse", name="term"),
            pair,
            {
                "x": tensor | {"scalar", "empty"},
                "target": tensor | {"shorter", "longer", "scalar"},
                "sample_weight": _WRONG_WEIGHT,
            },
            lambda layer, x, target, sample_weight: layer(x, target, sample_weight=sample_weight),
        )
    )
    found.append(
        _layer(
            "ProxyTerm",
            lambda: kj.layers.ProxyTerm("ArcFace", 3, name="term"),
            {"x": a, "labels": classes, "sample_weight": _WEIGHT},
            {
                "x": embedding,
                "labels": labels | {"negative", "large"},
                "sample_weight": _WRONG_WEIGHT,
            },
            lambda layer, x, labels, sample_weight: layer((x, labels), sample_weight=sample_weight),
        )
    )
    # The tower itself refuses inputs that it cannot take.
    tensor = {"none", "scalar"}
    dense = functools.partial(keras.layers.Dense, 2)
    for name, make in {
        "GradientBalancer": lambda: kj.layers.GradientBalancer(["a", "b"], name="term"),
        "SharedTrunk": lambda: kj.layers.SharedTrunk(dense(), ["a", "b"], name="term"),
        "ChunkedTower": lambda: kj.layers.ChunkedTower(dense(), 2, name="term"),
        "MomentumTower": lambda: kj.layers.MomentumTower(dense(), name="term"),
    }.items():
        skipped = set() if name == "GradientBalancer" else _NEVER | {"list", "ragged"}
        target = _layer(name, make, {"x": a}, {"x": tensor}, lambda layer, x: layer(x))
        found.append(target._replace(skipped=skipped))
    return found


def _of_terms() -> list[Target]:
    found = []
    y_pred = _RNG.uniform(size=(ITEMS, 3)).astype("float32")
    for loss, y_true in (
        ("mse", _RNG.uniform(size=(ITEMS, 3)).astype("float32")),
        ("sparse_categorical_crossentropy", np.array([0, 1, 2, 0, 1])),
    ):
        for missing in (None, -1.0):
            term = TermLoss(loss, kj.LossWeight(), name="rating", missing=missing)
            arrays = {"y_true": y_true, "y_pred": y_pred, "sample_weight": _WEIGHT}
            wrong = {
                "y_true": _NEVER | {"none", "shorter", "longer"},  # Keras repeats a scalar.
                "y_pred": _NEVER | {"none", "scalar"},
                "sample_weight": _WRONG_WEIGHT,
            }
            name = f"TermLoss({loss}, missing={missing})"
            found.append(Target(name, ("rating",), term, arrays, wrong, tuple(arrays)))
    return found


@functools.cache
def targets() -> dict[str, Target]:
    found = [_of_loss(case) for case in DEFAULTS]
    found += [_of_metric(name) for name in kj.metrics.__all__ if name != "ViewsMetric"]
    names = [x for x in kj.aggregators.__all__ if isinstance(getattr(kj.aggregators, x), type)]
    found += [x for name in names if not name.endswith("Aggregator") for x in _of_aggregator(name)]
    found += [*_of_layers(), *_of_terms()]
    return {target.name: target for target in found}


#: Which changes to try: none that is wrong by itself, or one for one or two arguments.
ANY_CHANGE = st.sampled_from(sorted(CHANGES))


def _is_of_keras(error: Exception) -> bool:
    """Returns whether Keras refuses an input of a layer before the layer sees it."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return not any("keras_jointloss/" in name and "/tests/" not in name for name in files)


def _is_wrong(name: str, change: str, changes: Mapping[str, str], size: int) -> bool:
    """Returns whether a change that is wrong by itself is so beside the others, too."""
    others = [x for other, x in changes.items() if other != name]
    if change in ("shorter", "longer"):
        return change not in others  # Else the numbers of items may agree.
    if change in ("row", "ragged"):
        return size > 1  # Else it is a column.
    # An item whose weight becomes 0 may have any label.
    return "nan" not in change or "sample_weight" not in changes


def problem(target: Target, changes: Mapping[str, str], size: int = ITEMS) -> str | None:
    """Calls something with changed arrays; returns what is wrong with the outcome.

    Args:
        target: What to call.
        changes: The changes by the name of the argument.
        size: The number of items of the batch.
    """
    arrays = {name: x[:size] if name in target.aligned else x for name, x in target.arrays.items()}
    given = {name: CHANGES[changes.get(name, "as it is")](x) for name, x in arrays.items()}
    if changes.get("sample_weight") == "none":
        changes = {name: x for name, x in changes.items() if name != "sample_weight"}
    if target.skipped & set(changes.values()):
        return None
    wrong = [
        f"{name} ({x})"
        for name, x in changes.items()
        if x in target.wrong.get(name, ()) and _is_wrong(name, x, changes, size)
    ]
    try:
        result = target.call(**given)
    except ValueError as error:
        text = str(error)
        if _is_of_keras(error):
            return None
        if not any(name in text for name in (*target.names, *(f"`{x}`" for x in given))):
            return f"ValueError without a name: {text[:200]}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if wrong:
        return f"accepted {', '.join(wrong)}"
    if set(changes.values()) <= _FINITE:
        values = [ops.convert_to_numpy(x) for x in keras.tree.flatten(result)]
        if not all(np.isfinite(x).all() for x in values):
            return "not finite"
    return None
