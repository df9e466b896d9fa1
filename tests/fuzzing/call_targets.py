"""The losses, metrics, aggregators, layers and terms that get bad batches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_jointloss as kj
from keras_jointloss.terms.loss import TermLoss
from tests.fuzzing.changes import NEVER
from tests.loss_cases import DEFAULTS, labels_of, views_of

ITEMS = 5
_RNG = np.random.default_rng(0)


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
_WRONG_VIEWS = NEVER | {"none", "scalar", "empty", "two columns", "column", "row", "flat"}
_WRONG_LABELS = NEVER | {"none", "scalar", "shorter", "longer", "row", "nan", "one nan"}
_WRONG_WEIGHT = NEVER | {"shorter", "longer", "two columns", "row"}


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
    wrong = NEVER | {"none", "scalar", "empty", "no features", "column", "two columns", "flat"}
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
    embedding = NEVER | {"none", "scalar", "empty", "column", "two columns", "flat", "row"}
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
    tensor = NEVER | {"none"}
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
        skipped = set() if name == "GradientBalancer" else NEVER | {"list", "ragged"}
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
                "y_true": NEVER | {"none", "shorter", "longer"},  # Keras repeats a scalar.
                "y_pred": NEVER | {"none", "scalar"},
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
