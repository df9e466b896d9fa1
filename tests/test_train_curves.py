"""The curves of training in the middle of an epoch: means since the last point."""

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from tests import small_models
from tests.backends import BACKEND, once_compiled
from tests.callbacks import Evaluates, Records, train_in_a_loop
from tests.test_training import replicas

ITEMS, BATCH = 36, 8
STEPS = 5  # Per epoch. The last batch has 4 items.
GENERATOR = np.random.default_rng(7)
X = GENERATOR.normal(size=(ITEMS, 3)).astype("float32")
Y = {name: GENERATOR.normal(size=(ITEMS, 1)).astype("float32") for name in "ab"}
RAMP = kj.schedules.Linear(0.1, 1.0, 18)
WEIGHTS = {"b": 0.5, "hint": 2.0}


def make_model(**compile_arguments):
    """Returns a model with all that curves show, which does not learn."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
    target = keras.layers.Dense(4)(inputs)
    metrics = ["mean_absolute_error"]
    hint = kj.layers.LossTerm("mse", WEIGHTS["hint"], metrics=metrics, name="hint")(hidden, target)
    copies = kj.layers.GradientBalancer(["a", "b"], name="balancer")(hint)
    outputs = {name: keras.layers.Dense(1)(copies[name]) for name in "ab"}
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss({"a": "mse", "b": "mse"}, {"a": RAMP, "b": WEIGHTS["b"]})
    model.compile(keras.optimizers.SGD(0.0), **joint, **compile_arguments)
    return model


def fit(model, *callbacks, **options):
    options = {"batch_size": BATCH, "epochs": 2, **options}
    return small_models.fit(model, list(callbacks), Y, X, **options)


def steps_by_hand(model) -> dict[str, np.ndarray]:
    """Returns by tag what each step of two epochs adds, computed by NumPy."""
    kernel, bias = model.layers[1].get_weights()
    hidden = X @ kernel + bias
    error = hidden - np.add(X @ model.layers[2].get_weights()[0], model.layers[2].get_weights()[1])
    predicted = model.predict(X, verbose=0)
    items = {name: np.square(predicted[name] - Y[name])[:, 0] for name in "ab"}
    items |= {"hint": np.square(error).mean(axis=1), "mae": np.abs(error).mean(axis=1)}
    batches = {
        name: np.tile([x[i : i + BATCH].mean() for i in range(0, ITEMS, BATCH)], 2)
        for name, x in items.items()
    }
    weights = {"a": 0.1 + np.arange(2 * STEPS) / 20, **WEIGHTS}
    values = {f"joint_loss/{name}/raw": batches[name] for name in weights}
    for name, weight in weights.items():
        values[f"joint_loss/{name}/weighted"] = weight * batches[name]
    values["joint_loss/hint/mean_absolute_error"] = batches["mae"]
    values["joint_loss/other"] = np.full(2 * STEPS, 0.1 * np.sum(kernel.astype("float64") ** 2))
    parts = [f"joint_loss/{name}/weighted" for name in weights]
    values["joint_loss/total"] = sum(values[tag] for tag in (*parts, "joint_loss/other"))
    return values


def assert_means(points, steps, is_weighted=True):
    """Asserts that each point is the mean over the items since the last one or the last epoch."""
    sizes = np.tile([min(BATCH, ITEMS - i) for i in range(0, ITEMS, BATCH)], 2)
    sizes = sizes if is_weighted else np.ones_like(sizes)
    edges, expected = {0, *points, *range(0, max(points), STEPS)}, {}
    for end in points:
        start = max(x for x in edges if x < end)
        expected[end] = np.average(steps[start:end], weights=sizes[start:end])
    assert points == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_points_are_means_since_the_last_point():
    is_torch = BACKEND == "torch"  # Keras executes one step at a time there.
    model, each, some = make_model(), Records(), Records()
    expected = steps_by_hand(model)
    fit(model, JointLossCallback(update_freq="batch", on_log=each))
    model = make_model(steps_per_execution=1 if is_torch else 2)
    history = fit(model, JointLossCallback(update_freq=3, on_log=some))
    each, some = each.tags["train"], some.tags["train"]
    assert sorted(each["joint_loss/total"]) == list(range(1, 11))
    assert sorted(some["joint_loss/total"]) == ([3, 5, 6, 9, 10] if is_torch else [4, 5, 7, 9, 10])
    for tag, steps in expected.items():
        assert_means(each[tag], steps)
        assert_means(some[tag], steps)
    # Of gradients, each step counts alike.
    gradients = [tag for tag in each if tag.startswith("gradients/")]
    assert {"gradients/a/norm", "gradients/a~b/cosine", "gradients/conflict"} <= set(gradients)
    for tag in gradients:
        steps = [each[tag][step] for step in range(1, 11)]
        assert_means(some[tag], steps, is_weighted=False)
        mean = np.reshape(steps, (2, STEPS)).mean(axis=1)
        assert history[tag.replace("/", "_")] == pytest.approx(mean, rel=1e-4, abs=1e-6)
    # `History` has the means of the epochs.
    for name in ("a", "b", "hint"):
        sizes = [8, 8, 8, 8, 4]
        mean = np.average(expected[f"joint_loss/{name}/raw"][:STEPS], weights=sizes)
        assert history[f"{name}_loss"] == pytest.approx([mean] * 2, rel=1e-5)


@once_compiled
def test_points_leave_an_evaluation_in_the_middle_of_the_epoch_out():
    model, records = make_model(), Records()
    expected = steps_by_hand(model)
    evaluates = Evaluates(X[:5], {name: y[:5] for name, y in Y.items()}, batch=1)
    fit(model, JointLossCallback(update_freq=1, on_log=records), evaluates)
    for tag in ("joint_loss/b/raw", "joint_loss/hint/raw", "joint_loss/total"):
        assert_means(records.tags["train"][tag], expected[tag])


@once_compiled
def test_points_of_a_loop_that_resets_the_means_have_the_last_batch():
    model, records = make_model(), Records()
    expected = steps_by_hand(model)
    ours = JointLossCallback(update_freq=2, on_log=records)
    assert len(list(train_in_a_loop(model, ours, X, Y, BATCH))) == STEPS
    for tag in ("joint_loss/b/raw", "joint_loss/hint/raw", "joint_loss/total"):
        points = {step: expected[tag][step - 1] for step in (2, 4, 5)}
        assert records.tags["train"][tag] == pytest.approx(points, rel=1e-5)


@once_compiled
def test_rounding_in_a_long_epoch_is_no_other_loss():
    keras.utils.set_random_seed(0)
    model, records = small_models.linear(dim=3), Records()
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss({"a": "mse"}))
    x, y = np.tile(X[:1], (400, 1)), {"a": np.full((400, 1), 1e3, "float32")}
    callback = JointLossCallback(update_freq=1, on_log=records)
    small_models.fit(model, [callback], y, x, batch_size=1)
    tags = records.tags["train"]
    assert "joint_loss/other" not in tags
    first = tags["joint_loss/a/raw"][1]
    assert list(tags["joint_loss/a/raw"].values()) == pytest.approx([first] * 400, rel=1e-3)
    assert list(tags["joint_loss/total"].values()) == pytest.approx([first] * 400, rel=1e-3)


@pytest.mark.backend("tensorflow")
def test_points_of_replicas_are_those_of_one_device():
    records = Records()
    with replicas(2).scope():
        model = make_model()
    expected = steps_by_hand(model)
    fit(model, JointLossCallback(update_freq=2, on_log=records))
    for tag, steps in expected.items():
        assert_means(records.tags["train"][tag], steps)
