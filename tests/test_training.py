"""The shared suite: every object of the package in every mode of training."""

import contextlib
import functools
import gc
import os
import pickle
import weakref
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from keras_jointloss.terms import LossAcross
from tests import subjects
from tests.backends import BACKEND, values_only
from tests.comparisons import approx_logs, assert_all_close
from tests.subjects import BATCH, DATA, ITEMS, SUBJECTS, Subject

STEPS = ITEMS // BATCH
EPOCHS = 2

# The others differ only in the model around the terms or in the values of the losses.
ESSENTIAL = ("outputs", "pairs", "layers", "adapted", "balanced", "shared")
# One of each kind of state: schedules, a memory, a rule and gradient records.
STATEFUL = ("outputs", "pairs", "adapted", "balanced", "targets")
# All contrastive losses, which take long to compile.
FAMILY = ("family_outputs", "family_layers")
MOST = tuple(name for name in SUBJECTS if name not in FAMILY)


class Mode(NamedTuple):
    """A mode of training.

    Attributes:
        compile: Additional arguments of `compile`.
        data: The input of `fit`: `"arrays"`, `"tf_data"` or `"sample_weight"`.
        policy: The dtype policy.
        mirrored: Whether two replicas train.
        accumulated: The number of batches over which gradients are accumulated, or `None`. Each
            epoch is then a separate call of `fit`, so that one starts between two optimizer steps.
        cloned: Whether a clone of the compiled model is trained.
        guarded: Whether training would drop a term that is not finite, which none is.
        same_as_plain: Whether logs and weights equal those of the plain mode.
        lacking: The backends without this mode.
        subjects: The models trained in this mode.
        lives_on: The models that are also evaluated, saved, loaded and trained further.
    """

    compile: dict | None = None
    data: str = "arrays"
    policy: str = "float32"
    mirrored: bool = False
    accumulated: int | None = None
    cloned: bool = False
    guarded: bool = False
    same_as_plain: bool = True
    lacking: tuple[str, ...] = ()
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    lives_on: tuple[str, ...] = ()


def on_torch(*names, else_only) -> tuple[str, ...]:
    """Returns subjects to train on PyTorch, or fewer on backends that compile.

    There, those remain whose state or step depends on what the backend does in this mode.
    """
    return names if BACKEND == "torch" else else_only


# Modes that cannot disturb each other are combined: compiling is what takes time.
HAS_LONG_STEPS = BACKEND != "torch"
MODES = {
    "plain": Mode(
        lives_on=on_torch(
            *MOST, "family_layers", else_only=(*STATEFUL, "layers", "subclassed", "across")
        )
    ),
    # Inputs and targets of each structure, and several steps in one compiled function.
    "tf_data": Mode(
        {"steps_per_execution": 4} if HAS_LONG_STEPS else None,
        data="tf_data",
        subjects=on_torch(
            *(*STATEFUL, "layers", "list_outputs", "subclassed", "across"),
            else_only=("pairs", "adapted", "layers", "list_outputs", "across"),
        ),
    ),
    # On JAX, every mode except `run_eagerly` is compiled.
    "clone": Mode(
        {"jit_compile": True} if BACKEND == "tensorflow" else None,
        cloned=True,
        guarded=True,
        subjects=on_torch(
            *STATEFUL,
            "list_outputs",
            "targets",
            "across",
            else_only=("pairs", "adapted", "balanced"),
        ),
    ),
    "run_eagerly": Mode(
        {"run_eagerly": True},
        lacking=("torch",),
        subjects=("outputs", "adapted") if BACKEND == "jax" else (*ESSENTIAL, "targets"),
    ),
    "gradient_accumulation": Mode(accumulated=4, same_as_plain=False, subjects=STATEFUL),
    "mixed_float16": Mode(
        data="sample_weight",
        policy="mixed_float16",
        guarded=True,
        same_as_plain=False,
        subjects=on_torch(*MOST, else_only=(*ESSENTIAL, "targets")),
        lives_on=("pairs",),
    ),
    "mirrored": Mode(
        mirrored=True,
        guarded=True,
        lacking=("jax", "torch"),
        subjects=ESSENTIAL,
        lives_on=("layers",),
    ),
}


@functools.cache
def replicas(count, /):
    """Returns one strategy of each size: the collective operations of two would clash."""
    import tensorflow as tf

    class Strategy(tf.distribute.MirroredStrategy):
        _collective_key_base = 1000 * count  # For tests: the strategies of two sizes do not clash.

    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    return Strategy(names[:count])


def compiled(subject: Subject, mode: Mode):
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(mode.policy)
    with replicas(2).scope() if mode.mirrored else contextlib.nullcontext():
        model, joint, targets = subject.make()
        model(_inputs(subject, 2))
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=mode.accumulated)
        model.compile(optimizer, **joint, **(mode.compile or {}))
        if mode.cloned:
            weights = model.get_weights()
            model = keras.models.clone_model(model)
            model.set_weights(weights)
    return model, targets


def _inputs(subject: Subject, items: int = ITEMS):
    inputs = [DATA[name][:items] for name in subject.inputs]
    return inputs if len(inputs) > 1 else inputs[0]


def fit_arguments(subject: Subject, mode: Mode, model, targets) -> dict:
    """Returns `x`, `y` and further arguments for `fit` and `evaluate`."""
    x = _inputs(subject)
    losses = [name for name, loss in model.loss.items() if not isinstance(loss, LossAcross)]
    y = {name: DATA[target] for name, target in zip(losses, targets, strict=True)}
    output = getattr(model, "output", None)
    if isinstance(output, list):
        y = [y[name] for name in model.output_names]
    elif not isinstance(output, dict) and output is not None:
        (y,) = y.values()
    if mode.data == "tf_data":
        import tensorflow as tf

        pair = keras.tree.lists_to_tuples((x, y))
        return {"x": tf.data.Dataset.from_tensor_slices(pair).batch(BATCH)}
    arguments = {"x": x, "y": y, "batch_size": BATCH}
    if mode.data == "sample_weight":
        weight = np.linspace(0.0, 2.0, ITEMS).astype("float32")
        arguments["sample_weight"] = keras.tree.map_structure(lambda _: weight, y)
    return arguments


def values(model) -> list[np.ndarray]:
    return [ops.convert_to_numpy(v) for v in model.trainable_variables]


def fit(model, arguments, log_dir=None, epochs=EPOCHS, guarded=False, **options):
    on_nonfinite = "skip" if guarded else None
    callback = kj.callbacks.JointLossCallback(log_dir, on_nonfinite=on_nonfinite)
    options = {"shuffle": False, "verbose": 0, "epochs": epochs, **options}
    return model.fit(**arguments, **options, callbacks=[callback]).history


def assert_weights(subject: Subject, actual: dict[str, float], step: int):
    """Asserts that weights are the given weights at a step times the factors of the rule."""
    weights = subject.weights.items()
    given = {name: float(x(step)) if callable(x) else x for name, x in weights}
    if subject.factor_sum is None:
        assert actual == pytest.approx(given, 1e-5, 1e-6)
    else:
        factors = [actual[name] / weight for name, weight in given.items()]
        assert sum(factors) == pytest.approx(subject.factor_sum, 1e-4)
        assert len({round(factor, 4) for factor in factors}) > 1


def current_weights(model) -> dict[str, float]:
    return {name: float(weight) for name, weight in find_terms(model).items()}


def logged_weights(subject: Subject, history, epoch, prefix="") -> dict[str, float]:
    return {name: history[f"{prefix}{name}_weight"][epoch] for name in subject.weights}


def plainly_trained(name: str, history=None, model=None):
    """Returns the logs and weights of the plain mode, which all processes share.

    Without them, the model is trained as reference for other modes.
    """
    path = Path(os.environ["KERAS_JOINTLOSS_TEST_RESULTS"]) / f"{name}.pickle"
    if model is None and not path.exists():
        subject = SUBJECTS[name]
        model, targets = compiled(subject, MODES["plain"])
        history = fit(model, fit_arguments(subject, MODES["plain"], model, targets))
    if model is not None:
        own = path.with_suffix(f".{os.getpid()}")
        own.write_bytes(pickle.dumps((history, values(model))))
        own.rename(path)  # Atomic: another process never reads a partial file.
    return pickle.loads(path.read_bytes())


def cases():
    # Grouped by subject, so that few processes train the same plain model.
    for name in SUBJECTS:
        for mode_name, mode in MODES.items():
            if name in mode.subjects and BACKEND not in mode.lacking:
                is_quick = mode_name == "plain" and name not in FAMILY
                marks = [] if is_quick else [pytest.mark.slow]
                if is_quick and name in STATEFUL:
                    marks.append(pytest.mark.traces_twice)
                if mode.mirrored:  # Losses of outputs warn that each replica sees its own items.
                    marks.append(pytest.mark.filterwarnings("ignore:.* compares the items"))
                yield pytest.param(name, mode_name, id=f"{name}-{mode_name}", marks=marks)


def references(model) -> list[weakref.ref]:
    """Returns weak references to a model and its objects."""
    held = [model, *model.layers, *model.metrics, *model.variables, *model.metrics_variables]
    inner = [layer for outer in model.layers for layer in getattr(outer, "layers", [])]
    return [weakref.ref(value) for value in (*held, *inner)]


def assert_freed(references: list[weakref.ref]):
    """Asserts that a deleted model and its objects are freed."""
    keras.utils.clear_session()
    gc.collect()
    alive = [value for value in (reference() for reference in references) if value is not None]
    assert [type(value).__name__ for value in alive] == []


@values_only
def test_models_use_every_loss_layer_and_schedule():
    text = Path(subjects.__file__).read_text()
    # Bases, and a layer whose tests train it beside the plain tower.
    others = {"ViewsLoss", "ProxyLoss", "ChunkedTower"}
    kinds = keras.Loss, keras.Layer, keras.optimizers.schedules.LearningRateSchedule
    for family in (kj.losses, kj.layers, kj.schedules):
        members = {x for x in vars(family).values() if isinstance(x, type) and issubclass(x, kinds)}
        public = {x.__name__ for x in members if x.__module__.startswith("keras_jointloss")}
        public = {name for name in public if not name.startswith("_")}
        assert len(public) > 3
        assert not {name for name in public - others if name not in text}


@pytest.mark.parametrize(("name", "mode_name"), list(cases()))
def test_training(name, mode_name, tmp_path):
    trained = assert_trains(name, mode_name, tmp_path)
    if mode_name == "plain":
        assert_freed(trained)


def assert_trains(name, mode_name, tmp_path) -> list[weakref.ref]:
    """Trains a subject in a mode, checks it, and returns references to its model."""
    subject, mode = SUBJECTS[name], MODES[mode_name]
    model, targets = compiled(subject, mode)
    arguments = fit_arguments(subject, mode, model, targets)
    validation = {}
    if name in mode.lives_on:
        validation = {"validation_data": (arguments["x"], arguments["y"])}
    if mode.accumulated:
        parts = [fit(model, arguments, str(tmp_path), epochs=1) for _ in range(EPOCHS)]
        history = {key: [part[key][0] for part in parts] for key in parts[0]}
    else:
        history = fit(model, arguments, str(tmp_path), guarded=mode.guarded, **validation)
    skipped = [history.pop(key) for key in list(history) if key.endswith("_skipped")]
    assert (bool(skipped), np.any(skipped)) == (mode.guarded, False)

    assert set(find_terms(model)) == set(subject.weights)
    for prefix in ("", "val_") if validation else ("",):
        for epoch in range(EPOCHS):
            logged = logged_weights(subject, history, epoch, prefix)
            assert_weights(subject, logged, STEPS * (epoch + 1))
            losses = [history[f"{prefix}{term}_loss"][epoch] for term in subject.weights]
            assert np.all(np.isfinite(losses))
    assert logged == pytest.approx(current_weights(model), 1e-6)
    assert not any(weight.annealing for weight in find_terms(model).values())

    is_comparable = mode.same_as_plain and not (mode.mirrored and subject.couples_own_items)
    if is_comparable and mode_name != "plain":
        plain_history, plain_values = plainly_trained(name)
        assert_all_close(history, plain_history, 2e-5, 1e-6)
        assert_all_close(values(model), plain_values, 1e-4, 1e-6)
    if mode_name == "plain":
        own = {key: logged for key, logged in history.items() if not key.startswith("val_")}
        plainly_trained(name, own, model)
    if name in mode.lives_on:
        assert_lives_on(subject, mode, model, arguments, tmp_path)
    return references(model)


def saved_state(model, folder) -> dict[str, np.ndarray]:
    """Returns all that a weights file holds of a model."""
    path, found = folder / "state.weights.h5", {}

    def collect(name, value):
        if isinstance(value, h5py.Dataset):
            found[name] = value[()]

    model.save_weights(path)
    with h5py.File(path) as file:
        file.visititems(collect)
    return found


def assert_lives_on(subject, mode, model, arguments, tmp_path):
    """Asserts that evaluation changes nothing, and that a saved model resumes correctly."""
    tolerance = 1e-2 if mode.policy == "mixed_float16" else 1e-4
    before, state = current_weights(model), saved_state(model, tmp_path)
    evaluate = {**arguments, "return_dict": True, "verbose": 0}
    evaluated = model.evaluate(**evaluate)
    # With the callback, the loss of an output is the mean over its labelled targets.
    labelled = {x: y for x, y in evaluated.items() if x.endswith("_labelled_loss")}
    mended = {key.replace("_labelled_loss", "_loss"): x for key, x in labelled.items()}
    expected = pytest.approx({**evaluated, **mended}, 1e-6)
    callbacks = [kj.callbacks.JointLossCallback(str(tmp_path))]
    assert model.evaluate(**evaluate, callbacks=callbacks) == expected
    predicted = model.predict(arguments["x"], verbose=0)
    assert current_weights(model) == before
    after = saved_state(model, tmp_path)
    assert after.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = BACKEND == "tensorflow"  # A few steps, which compiling would delay.
    assert current_weights(loaded) == before
    again = loaded.evaluate(**evaluate)
    assert {key: again[key] for key in evaluated} == pytest.approx(evaluated, tolerance)
    again = loaded.predict(arguments["x"], verbose=0)
    assert_all_close([again], [predicted], tolerance, tolerance)

    expected = fit(model, arguments, epochs=EPOCHS + 1, initial_epoch=EPOCHS)
    actual = fit(loaded, arguments, epochs=EPOCHS + 1, initial_epoch=EPOCHS)
    assert_weights(subject, logged_weights(subject, actual, -1), STEPS * (EPOCHS + 1))
    if mode.policy == "float32":
        found = {key: actual[key] for key in expected}
        assert found == approx_logs(expected, tolerance, 1e-6)
