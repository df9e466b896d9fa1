"""The shared suite: every object of the package through every way of training."""

import contextlib
import functools
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint import find_terms
from tests.subjects import BATCH, DATA, ITEMS, SUBJECTS, Subject

STEPS = ITEMS // BATCH
BACKEND = keras.backend.backend()


# What the slowest modes are tried on: the others differ from these in the model around them only.
ESSENTIAL = ("outputs", "pairs", "layers", "adapted", "balanced", "shared")
# All the contrastive losses: they take long to compile, and differ in what they compute only.
FAMILY = ("family_outputs", "family_layers")
OTHERS = tuple(name for name in SUBJECTS if name not in FAMILY)


class Mode(NamedTuple):
    """A way of training."""

    compile: dict | None = None
    data: str = "arrays"
    policy: str = "float32"
    mirrored: bool = False
    same_as_plain: bool = True
    lacking: tuple[str, ...] = ()
    subjects: tuple[str, ...] = tuple(SUBJECTS)


MODES = {
    "plain": Mode(),
    "tf_data": Mode(data="tf_data", subjects=OTHERS),
    "sample_weight": Mode(data="sample_weight", same_as_plain=False),
    # On JAX every mode but `run_eagerly` is compiled.
    "jit_compile": Mode(
        {"jit_compile": True},
        lacking=("jax", "torch"),
        subjects=ESSENTIAL + FAMILY,
    ),
    "steps_per_execution": Mode({"steps_per_execution": 4}, lacking=("torch",), subjects=OTHERS),
    "run_eagerly": Mode({"run_eagerly": True}, lacking=("torch",), subjects=OTHERS),
    "gradient_accumulation": Mode(same_as_plain=False, subjects=OTHERS),
    "mixed_float16": Mode(policy="mixed_float16", same_as_plain=False),
    "mirrored": Mode(
        mirrored=True,
        lacking=("jax", "torch"),
        subjects=(*ESSENTIAL, "family_layers"),
    ),
}


@functools.cache
def two_replicas():
    """Returns the strategy: one for all tests, as the collective operations of two would clash."""
    import tensorflow as tf

    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    return tf.distribute.MirroredStrategy(names[:2])


def compiled(subject: Subject, mode: Mode, name: str):
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(mode.policy)
    with two_replicas().scope() if mode.mirrored else contextlib.nullcontext():
        model, joint, targets = subject.make()
        model(_inputs(subject, 2))
        accumulation = 2 if name == "gradient_accumulation" else None
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=accumulation)
        model.compile(optimizer, **joint, **(mode.compile or {}))
    return model, targets


def _inputs(subject: Subject, items: int = ITEMS):
    inputs = [DATA[name][:items] for name in subject.inputs]
    return inputs if len(inputs) > 1 else inputs[0]


def fit_arguments(subject: Subject, mode: Mode, model, targets) -> dict:
    """Returns `x`, `y` and so on for `fit` and `evaluate`."""
    x = _inputs(subject)
    losses = list(model.loss)
    y = {name: DATA[target] for name, target in zip(losses, targets, strict=True)}
    output = getattr(model, "output", None)
    if isinstance(output, list):
        y = [y[name] for name in model.output_names]
    elif not isinstance(output, dict) and output is not None:
        (y,) = y.values()
    weight = np.linspace(0.0, 2.0, ITEMS).astype("float32")
    if mode.data == "tf_data":
        import tensorflow as tf

        as_tuple = tuple(x) if isinstance(x, list) else x
        as_targets = tuple(y) if isinstance(y, list) else y
        return {"x": tf.data.Dataset.from_tensor_slices((as_tuple, as_targets)).batch(BATCH)}
    arguments = {"x": x, "y": y, "batch_size": BATCH}
    if mode.data == "sample_weight":
        arguments["sample_weight"] = keras.tree.map_structure(lambda _: weight, y)
    return arguments


def optimizer_step(model) -> int:
    """Returns how many batches the optimizer has used: under loss scaling not quite all."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return int(optimizer.iterations) * (optimizer.gradient_accumulation_steps or 1)


def values(model) -> list[np.ndarray]:
    return [ops.convert_to_numpy(v) for v in model.trainable_variables]


@functools.cache
def plainly_trained(name: str):
    """Returns history and weights of the plain mode, against which others are held."""
    subject = SUBJECTS[name]
    model, targets = compiled(subject, MODES["plain"], "plain")
    arguments = fit_arguments(subject, MODES["plain"], model, targets)
    history = model.fit(
        **arguments,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    )
    return history.history, values(model)


def cases():
    for mode_name, mode in MODES.items():
        marks = () if mode_name == "plain" else pytest.mark.slow
        if BACKEND not in mode.lacking:
            for name in mode.subjects:
                yield pytest.param(name, mode_name, id=f"{name}-{mode_name}", marks=marks)


@pytest.mark.parametrize(("name", "mode_name"), list(cases()))
def test_training(name, mode_name, tmp_path):
    subject, mode = SUBJECTS[name], MODES[mode_name]
    model, targets = compiled(subject, mode, mode_name)
    arguments = fit_arguments(subject, mode, model, targets)
    callback = kj.callbacks.JointLossCallback(str(tmp_path / "logs"))
    validation = {"validation_data": arguments["x"]}
    if mode.data != "tf_data":
        keys = ("x", "y", "sample_weight")
        validation = {"validation_data": tuple(arguments[key] for key in keys if key in arguments)}
    history = model.fit(
        **arguments, **validation, epochs=2, shuffle=False, verbose=0, callbacks=[callback]
    ).history

    # Every term is in the logs, and its weight is where its schedule is after that many steps.
    terms = find_terms(model)
    assert set(terms) == set(subject.terms)
    for term, weight in terms.items():
        for epoch in range(2):
            expected = _scheduled(weight, STEPS * (epoch + 1))
            for prefix in ("", "val_"):
                assert np.isfinite(history[f"{prefix}{term}_loss"][epoch])
                if subject.is_adapted:
                    expected = history[f"{term}_weight"][epoch]
                    assert 0 < expected < 1.5
                assert history[f"{prefix}{term}_weight"][epoch] == pytest.approx(
                    expected, 1e-5, 1e-6
                )
        assert not weight.annealing
    if mode.same_as_plain and not (mode.mirrored and subject.couples_batch):
        plain_history, plain_values = plainly_trained(name)
        for key, logged in plain_history.items():
            np.testing.assert_allclose(history[key], logged, rtol=2e-5, atol=1e-6, err_msg=key)
        for value, plain in zip(values(model), plain_values, strict=True):
            np.testing.assert_allclose(value, plain, rtol=1e-4, atol=1e-6)

    # Evaluation and prediction move nothing.
    before = {term: float(weight) for term, weight in terms.items()}
    evaluate = {**arguments, "return_dict": True, "verbose": 0}
    evaluated = model.evaluate(**evaluate)
    assert model.evaluate(**evaluate, callbacks=[callback]) == pytest.approx(evaluated, 1e-6)
    predicted = model.predict(arguments["x"], verbose=0)
    assert {term: float(weight) for term, weight in terms.items()} == before

    # All of it lives on in a file.
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert {term: float(weight) for term, weight in find_terms(loaded).items()} == before
    tolerance = 1e-2 if mode.policy == "mixed_float16" else 1e-4
    again = loaded.evaluate(**evaluate)
    if not (mode.mirrored and subject.couples_batch):  # The loaded model has a single replica.
        assert {key: again[key] for key in evaluated} == pytest.approx(evaluated, tolerance)
    if not (mode.mirrored and subject.has_statistics):
        for old, new in zip(
            keras.tree.flatten(predicted),
            keras.tree.flatten(loaded.predict(arguments["x"], verbose=0)),
            strict=True,
        ):
            np.testing.assert_allclose(old, new, rtol=tolerance, atol=tolerance)

    # And goes on from where it was.
    steps = optimizer_step(loaded)
    resumed = loaded.fit(
        **arguments,
        epochs=3,
        initial_epoch=2,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    ).history
    for term, weight in find_terms(loaded).items():
        if subject.is_adapted:
            assert resumed[f"{term}_weight"][-1] not in (before[term], 1.0)
            continue
        expected = _scheduled(weight, steps + STEPS)
        assert resumed[f"{term}_weight"][-1] == pytest.approx(expected, 1e-5, 1e-6)


def _scheduled(weight, step: int) -> float:
    if weight.schedule is None:
        return float(weight)
    return float(ops.convert_to_numpy(weight.schedule(step)))
