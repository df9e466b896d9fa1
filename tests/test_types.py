"""What editors and type checkers know of the public names."""

import inspect
import operator
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import keras_jointloss as kj

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[1]
MODULES = sorted(name for name in kj.__all__ if inspect.ismodule(getattr(kj, name)))


def messages(script: str, folder: Path) -> list[str]:
    """Returns what mypy says of a user's script in its strict mode, with line numbers."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", "--hide-error-context"]
    # Keras and TensorFlow come without types.
    options += ["--ignore-missing-imports", f"--cache-dir={ROOT / '.mypy_cache' / 'user'}"]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, path.name],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.stderr, result.stderr
    return [line.removeprefix("script.py:") for line in result.stdout.splitlines()]


def public_names() -> list[str]:
    names = []
    for module in MODULES:
        names.append(f"kj.{module}")
        values = getattr(kj, module)
        names += [
            f"kj.{module}.{name}"
            for name in getattr(values, "__all__", vars(values))
            if name[0] != "_" and getattr(values, name).__class__.__name__ in ("type", "function")
        ]
    return [*names, *(f"kj.{name}" for name in kj.__all__ if name not in MODULES)]


def test_public_names_have_types(tmp_path):
    names = public_names()
    assert len(names) > 100
    script = ["import keras_jointloss as kj", *(f"reveal_type({name})" for name in names)]
    lines = messages("\n".join(script), tmp_path)
    assert len(lines) == len(names)
    unknown = [(name, line) for name, line in zip(names, lines, strict=True) if '"Any"' in line]
    assert not unknown


def test_users_script_passes_strict_checks(tmp_path):
    script = """
    from typing import Any

    import keras
    import numpy as np

    import keras_jointloss as kj

    loss = kj.losses.InfoNCE(temperature=0.1, similarity="cosine", same_label="positive")
    rule = kj.weighting.Uncertainty(learning_rate=0.01)
    arguments = kj.joint_loss(
        {"digit": "mse", "pair": loss},
        weights={"digit": 1.0, "pair": kj.schedules.Linear(0.0, 1.0, steps=100)},
        weighting=rule,
        metrics={"pair": kj.metrics.RecallAtK(k=1)},
    )
    model = keras.Sequential()
    model.compile("adam", **arguments)
    callback = kj.callbacks.JointLossCallback("logs", update_freq=10)
    history = model.fit(np.zeros(3), callbacks=[callback])
    print(kj.report(history).runs["train"].total)
    print([finding.since for finding in kj.diagnose(history).faults])
    weight = kj.LossWeight(0.5)
    weight.assign(2 * float(weight))
    balancer = kj.layers.GradientBalancer(["a", "b"], aggregator=kj.aggregators.MGDA())
    print(kj.losses.gaussian_kl(np.zeros((2, 3)), np.zeros((2, 3))), balancer.name)
    print(sorted(kj.custom_objects()))

    class MeanNorm(kj.metrics.ViewsMetric):
        def values(self, views: Any, labels: Any = None, valid: Any = None) -> tuple[Any, Any]:
            return keras.ops.norm(views), 1.0

    class Decay(kj.weighting.Weighting):
        def __init__(self, decay: float, **kwargs: Any):
            super().__init__(**kwargs)
            self.decay = decay

        def update(self, losses: Any, step: Any) -> Any:
            return losses / self.decay

    class First(kj.aggregators.Aggregator):
        def coefficients(self, gramian: Any) -> Any:
            return keras.ops.one_hot(0, gramian.shape[0])
    """
    assert messages(script, tmp_path) == []


def test_wrong_types_and_names_are_errors(tmp_path):
    calls = {
        'kj.losses.InfoNCE(temperature="x")': "arg-type",
        "kj.losses.InfoNCE(temprature=0.1)": "call-arg",
        "kj.losses.InfoNec()": "attr-defined",
        "kj.loses": "attr-defined",
        'kj.losses.InfoNCE(similarity="cosin")': "arg-type",
        'kj.weighting.Uncertainty(learning_rate="x")': "arg-type",
        "kj.weighting.Uncertainty(warmup=1)": "call-arg",
        'kj.layers.LossTerm("mse", wieght=1.0)': "call-arg",
        'kj.schedules.Linear(0.0, "x", steps=10)': "arg-type",
        'kj.callbacks.TermStopping({"a": "b"}, patience="x")': "arg-type",
        "kj.LossWeight(name=1)": "arg-type",
        'kj.LossWeight("x")': "arg-type",
    }
    lines = messages("\n".join(["import keras_jointloss as kj", *calls]), tmp_path)
    errors = [line.partition(": error: ") for line in lines if ": error: " in line]
    found = [(int(number), text.rpartition("[")[2].strip("]")) for number, _, text in errors]
    assert found == list(enumerate(calls.values(), start=2))


def public_functions() -> Iterator[tuple[str, Any]]:
    """Yields the public functions, and the methods and properties of public classes."""
    for name in public_names():
        value = operator.attrgetter(name.removeprefix("kj."))(kj)
        bases = [x for x in getattr(value, "__mro__", ()) if x.__module__.startswith(kj.__name__)]
        members = {f"{x.__name__}.{key}": y for x in bases for key, y in vars(x).items()}
        for key, x in {**members, name: value}.items():
            function = inspect.unwrap(getattr(x, "fget", None) or getattr(x, "__func__", x))
            if inspect.isfunction(function) and re.search(r"\.([^_]\w*|__(init|call)__)$", key):
                yield key, function


def test_signatures_are_typed_in_full():
    untyped = {}
    for name, function in public_functions():
        names = {*inspect.signature(function).parameters, "return"} - {"self", "cls"}
        returned = {"return"} if name.endswith("__init__") else set()
        missing = names - {*function.__annotations__} - returned
        if missing:
            untyped[name] = missing
    assert untyped == {}
