"""The rules that adapt the weights: against simulations of their formulas, alone and in `fit`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint import find_terms
from keras_jointloss.weighting.random_weighting import random_normal
from tests import reference_weighting as reference
from tests.summaries import read_scalars

BACKEND = keras.backend.backend()
RULES = (
    "DynamicWeightAverage",
    "FAMO",
    "GeometricMean",
    "RandomWeighting",
    "SmoothTchebycheff",
    "Uncertainty",
)
STEPS_PER_EPOCH = 40


def make(name, **arguments) -> kj.weighting.Weighting:
    return getattr(kj.weighting, name)(**arguments)


class Terms:
    """Terms without a model, to whose rule losses are told by hand."""

    def __init__(self, rule, count):
        self.rule = rule
        self.weights = {f"term{i}": kj.LossWeight() for i in range(count)}
        next(iter(self.weights.values())).weighting = rule
        rule.bind(self.weights)

    def now(self):
        return [float(weight) for weight in self.weights.values()]

    def step(self, losses, counts=None):
        """Tells the losses of a step, which the terms in `counts` have none of."""
        counts = [None] * len(losses) if counts is None else counts
        for weight, loss, count in zip(self.weights.values(), losses, counts, strict=True):
            weight.record(ops.convert_to_tensor(loss, dtype="float32"), 4, count)
        for weight in self.weights.values():
            ops.multiply(ops.convert_to_tensor(0.0), weight)  # As Keras multiplies a loss.
            weight.update_state()

    def run(self, losses, epochs=None):
        """Returns the weights at the beginning of each step, and after the last."""
        epochs = np.zeros(len(losses), int) if epochs is None else epochs
        trajectory = [self.now()]
        for step, row in enumerate(losses):
            if not step or epochs[step] != epochs[step - 1]:
                self.rule.start(is_new_epoch=True)
            self.step(row)
            trajectory.append(self.now())
        return np.array(trajectory)


def recorded_losses(steps=200, count=3, seed=0):
    """Returns losses as training has them: falling, noisy, of different size."""
    generator = np.random.default_rng(seed)
    time = np.arange(steps)[:, None]
    scale, rate = np.array([1.0, 20.0, 0.05])[:count], np.array([0.02, 0.005, 0.01])[:count]
    noise = np.exp(0.2 * generator.normal(size=(steps, count)))
    return ((0.3 + np.exp(-rate * time)) * scale * noise).astype("float32").astype("float64")


EPOCHS = np.arange(200) // STEPS_PER_EPOCH
PREFERENCE = [1.0, 0.5, 2.0]
SIMULATIONS = {
    "Uncertainty": ({}, reference.uncertainty),
    "Uncertainty-analytic": ({"analytic": True}, reference.uncertainty_analytic),
    "DynamicWeightAverage": ({}, lambda losses: reference.dynamic_weight_average(losses, EPOCHS)),
    "GeometricMean": ({}, reference.geometric_mean),
    "SmoothTchebycheff": (
        {"preference": PREFERENCE, "smoothness": 0.7},
        lambda losses: reference.smooth_tchebycheff(losses, np.array(PREFERENCE), 0.7),
    ),
    "FAMO": ({}, reference.famo),
    "FAMO-minimum": (
        {"minimum_loss": -1.0, "decay": 0.1, "learning_rate": 0.1},
        lambda losses: reference.famo(losses, 0.1, 0.1, -1.0),
    ),
    "RandomWeighting": (
        {"seed": 5},
        lambda losses: np.array(
            [[1.0] * 3]
            + [
                3 * np.array(reference.softmax(ops.convert_to_numpy(random_normal(3, 5, step))))
                for step in range(len(losses))
            ]
        ),
    ),
}


@pytest.mark.parametrize("case", SIMULATIONS)
def test_weights_follow_the_formula(case):
    arguments, simulate = SIMULATIONS[case]
    losses = recorded_losses()
    trajectory = Terms(make(case.partition("-")[0], **arguments), 3).run(losses, EPOCHS)
    np.testing.assert_allclose(trajectory, simulate(losses), rtol=1e-5, atol=1e-7)


def test_known_values():
    # The objective of Uncertainty at s = 0, whose gradient the first step follows.
    losses = np.array([1.0, 2.0, 4.0])
    assert sum(0.5 * losses + 0.5 * 0) == 3.5
    terms = Terms(make("Uncertainty", learning_rate=0.1), 3)
    terms.rule.start()
    terms.step(losses)
    expected = 0.5 * np.exp(-0.1 * 0.5 * (losses - 1))
    np.testing.assert_allclose(terms.now(), expected, rtol=1e-6)

    terms = Terms(make("GeometricMean"), 3)
    terms.rule.start()
    terms.step(losses)
    np.testing.assert_allclose(np.array(terms.now()) * losses, [2 / 3] * 3, rtol=1e-6)

    terms = Terms(make("DynamicWeightAverage"), 2)
    terms.run(np.array([[1.0, 1.0], [1.0, 4.0], [1.0, 1.0]]), np.arange(3))
    expected = 2 * np.array(reference.softmax([0.5, 2.0]))
    np.testing.assert_allclose(terms.now(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["DynamicWeightAverage", "FAMO", "GeometricMean"])
def test_scale_of_a_loss_does_not_matter(name):
    losses = recorded_losses()
    scale = np.array([1.0, 1000.0, 1.0])
    plain = Terms(make(name), 3).run(losses, EPOCHS)[1:] * losses
    scaled = Terms(make(name), 3).run(losses * scale, EPOCHS)[1:] * losses
    if name != "DynamicWeightAverage":  # There the weight, else the share of the total is the same.
        scaled = scaled * scale
    plain, scaled = (x / x.sum(axis=1, keepdims=True) for x in (plain, scaled))
    np.testing.assert_allclose(scaled, plain, rtol=2e-4)


@pytest.mark.parametrize("name", [name for name in RULES if name != "RandomWeighting"])
def test_equal_terms_stay_equal(name):
    losses = np.repeat(recorded_losses(count=1), 3, axis=1)
    trajectory = Terms(make(name), 3).run(losses, EPOCHS)
    np.testing.assert_allclose(trajectory, trajectory[:, :1].repeat(3, axis=1), rtol=1e-6)


def test_random_numbers_are_normal_and_differ_from_step_to_step():
    numbers = np.array([ops.convert_to_numpy(random_normal(4, 1, step)) for step in range(2000)])
    assert abs(numbers.mean()) < 0.05
    assert numbers.std() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(numbers, rowvar=False) - np.eye(4)).max() < 0.1
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.05
    other = ops.convert_to_numpy(random_normal(4, 2, 0))
    assert not np.allclose(numbers[0], other)


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
class LastLoss(kj.weighting.Weighting):
    """Weighs a term by its latest loss, and counts."""

    initial_state: ClassVar = {"updates": 0.0}

    def update(self, losses, step):
        self.state["updates"] = self.state["updates"] + 1
        return losses

    def readout(self, state):
        return {"updates": state["updates"]}


def test_options_of_the_base():
    losses = np.array([[2.0, 8.0], [4.0, 2.0], [6.0, 5.0], [8.0, 1.0]])
    plain = Terms(LastLoss(), 2).run(losses)
    np.testing.assert_allclose(plain, [[1, 1], *losses])
    warm = Terms(LastLoss(warmup_steps=2), 2).run(losses)
    np.testing.assert_allclose(warm, [[1, 1], [1, 1], [1, 1], *losses[2:]])
    smooth = Terms(LastLoss(ema=0.5), 2).run(losses)
    np.testing.assert_allclose(smooth, [[1, 1], [2, 8], [3, 5], [4.5, 5], [6.25, 3]])
    bounded = Terms(LastLoss(min_weight=3.0, max_weight=6.0), 2).run(losses)
    np.testing.assert_allclose(bounded, [[1, 1], *np.clip(losses, 3, 6)])
    rare = Terms(LastLoss(update_every=2), 2).run(losses)
    np.testing.assert_allclose(rare, [[1, 1], [1, 1], [3, 5], [3, 5], [7, 3]])


def test_user_weights_multiply():
    terms = Terms(LastLoss(), 2)
    terms.weights["term1"].assign(0.5)
    terms.rule.start()
    terms.step([3.0, 4.0])
    assert terms.now() == [3.0, 2.0]


def test_nothing_moves_unless_started():
    terms = Terms(LastLoss(), 2)
    terms.step([3.0, 4.0])
    assert terms.now() == [1.0, 1.0]
    terms.rule.start()
    terms.step([3.0, 4.0])
    terms.rule.reset_state()
    terms.step([5.0, 6.0])
    assert terms.now() == [3.0, 4.0]


@pytest.mark.parametrize("name", RULES)
def test_term_without_items_keeps_weight_and_state(name):
    terms = Terms(make(name), 2)
    terms.rule.start()
    terms.step([1.0, 2.0])
    terms.step([1.5, 2.0])
    before, state = terms.now(), terms.rule.save_progress()["state"]
    terms.step([1.2, np.nan], [None, ops.convert_to_tensor(False)])
    state_after = terms.rule.save_progress()["state"]
    assert terms.now()[1] == before[1]
    np.testing.assert_array_equal(state_after[:, 1], state[:, 1])
    assert not np.array_equal(state_after[:, 0], state[:, 0])
    assert np.isfinite(terms.now()).all()
    assert not terms.rule.take_unusable()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", RULES)
def test_a_loss_that_is_not_finite_poisons_nothing(name, bad):
    terms, clean = Terms(make(name), 2), Terms(make(name), 2)
    losses = recorded_losses(20, 2)
    for one in (terms, clean):
        one.run(losses[:10])
    before = terms.now()
    terms.step([1.0, bad])
    assert terms.now() == before
    assert terms.rule.take_unusable() == {"term1": 1}
    assert not terms.rule.take_unusable()
    if name != "RandomWeighting":  # It draws by the number of the step.
        for one in (terms, clean):
            for row in losses[10:]:
                one.step(row)
        assert terms.now() == pytest.approx(clean.now(), rel=1e-6)


def test_a_weight_that_is_not_finite_is_told_of_and_not_used():
    class Inverse(kj.weighting.Weighting):
        def update(self, losses, step):
            return 1 / losses

    terms = Terms(Inverse(), 2)
    terms.rule.start()
    terms.step([2.0, 4.0])
    terms.step([1.0, 0.0])
    assert terms.now() == [0.5, 0.25]
    assert terms.rule.take_unusable() == {"term1": 1}


@pytest.mark.parametrize("name", ["DynamicWeightAverage", "FAMO", "GeometricMean", "Uncertainty"])
def test_a_negative_loss_is_not_usable(name):
    terms = Terms(make(name), 2)
    terms.rule.start()
    terms.step([-1.0, 1.0])
    assert terms.rule.take_unusable() == {"term0": 1}


@pytest.mark.parametrize("name", RULES)
def test_a_loss_of_zero_leaves_the_weights_finite(name):
    trajectory = Terms(make(name), 2).run(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
    assert np.isfinite(trajectory).all()


# In a model.

FEATURES = np.random.default_rng(3).normal(size=(48, 6)).astype("float32")
TARGETS = {
    "rating": FEATURES[:, :1] * 2 + 1,
    "label": (FEATURES[:, 1] > 0).astype("int32"),
}


def build(rule, weights=None, **compile_arguments):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    a, b = kj.layers.ContrastiveTerm("InfoNCE", name="align")(
        (keras.layers.Dense(4)(hidden), keras.layers.Dense(4)(hidden))
    )
    outputs = {
        "rating": keras.layers.Dense(1, dtype="float32")(a),
        "label": keras.layers.Dense(2, dtype="float32")(b),
    }
    losses = {
        "rating": "mean_squared_error",
        "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(losses, weights=weights, weighting=rule)
    model.compile(keras.optimizers.SGD(0.01), **joint, **compile_arguments)
    return model


class Trajectory(keras.callbacks.Callback):
    """Keeps the weights and raw losses of each step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        _ = self.model  # On JAX this brings the state of the step into the variables.
        self.weights.append([float(weight) for weight in find_terms(self.model).values()])


def fit(model, epochs=2, callbacks=(), **arguments):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": epochs, **arguments}
    return model.fit(
        FEATURES, TARGETS, callbacks=[kj.callbacks.JointLossCallback(), *callbacks], **options
    ).history


def test_layer_terms_take_part_and_user_weights_multiply():
    schedule = kj.schedules.Linear(0.0, 1.0, steps=12)
    model = build(LastLoss(), weights={"rating": 0.5, "label": schedule})
    trajectory = Trajectory()
    # One batch an epoch: the mean loss of the epoch is that of the step.
    history = fit(model, epochs=3, batch_size=48, callbacks=[trajectory])
    assert tuple(model.loss["rating"].weight.weighting.terms) == ("rating", "label", "align")
    for epoch in range(3):
        expected = [
            0.5 * history["rating_loss"][epoch],
            (epoch + 1) / 12 * history["label_loss"][epoch],
            history["align_loss"][epoch],
        ]
        assert trajectory.weights[epoch] == pytest.approx(expected, 1e-5)
        # What the logs call the weight is what multiplies the loss; in an epoch's log: the last.
        names = ("rating", "label", "align")
        assert [history[f"{name}_weight"][epoch] for name in names] == pytest.approx(expected, 1e-5)
    assert history["rating_updates"] == [1.0, 2.0, 3.0]


def test_total_is_the_sum_of_the_weighted_terms():
    model = build(LastLoss())
    history = fit(model, epochs=2, batch_size=48)
    before = [history[f"{name}_weight"][0] for name in ("rating", "label", "align")]
    losses = [history[f"{name}_loss"][1] for name in ("rating", "label", "align")]
    assert history["loss"][1] == pytest.approx(np.dot(before, losses), 1e-5)


@pytest.mark.parametrize("name", RULES)
def test_evaluation_and_prediction_move_nothing(name):
    model = build(make(name))
    fit(model)
    rule = model.loss["rating"].weight.weighting
    before = rule.save_progress()
    weights = {term: float(weight) for term, weight in find_terms(model).items()}
    model.evaluate(FEATURES, TARGETS, verbose=0)
    model.evaluate(FEATURES, TARGETS, verbose=0, callbacks=[kj.callbacks.JointLossCallback()])
    model.predict(FEATURES, verbose=0)
    for key, value in rule.save_progress().items():
        np.testing.assert_array_equal(value, before[key])
    assert {term: float(weight) for term, weight in find_terms(model).items()} == weights


def trajectories(model, epochs=2, callbacks=(), **arguments):
    trajectory = Trajectory()
    fit(model, epochs, [*callbacks, trajectory], **arguments)
    return np.array(trajectory.weights)


@pytest.mark.parametrize("name", RULES)
def test_validation_in_the_midst_changes_no_weight(name):
    plain = trajectories(build(make(name)), epochs=3)
    validated = trajectories(build(make(name)), epochs=3, validation_data=(FEATURES, TARGETS))
    np.testing.assert_allclose(validated, plain, rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_loaded_model_goes_on_as_an_uninterrupted_one(name, tmp_path):
    whole = trajectories(build(make(name)), epochs=4)
    model = build(make(name))
    first = trajectories(model, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    rest = trajectories(loaded, epochs=4, initial_epoch=2)
    np.testing.assert_allclose(np.concatenate([first, rest]), whole, rtol=1e-6)
    assert loaded.loss["rating"].weight.weighting is not model.loss["rating"].weight.weighting


KILLED = """
import json, os, signal, sys
import keras
from tests.test_weighting import build, fit, make, trajectories

rule, folder, deadly = sys.argv[1], sys.argv[2], sys.argv[3] == "deadly"


class Kill(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if deadly and batch == 3 and self.model.optimizer.iterations > 12:
            os.kill(os.getpid(), signal.SIGKILL)


backup = keras.callbacks.BackupAndRestore(folder)
weights = trajectories(build(make(rule)), epochs=4, callbacks=[backup, Kill()])
print(json.dumps(weights.tolist()))
"""


@pytest.mark.parametrize("name", ["DynamicWeightAverage", "FAMO"])
def test_killed_training_resumes_with_the_same_trajectory(name, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", KILLED, name, str(tmp_path / "backup"), *arguments],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
        )

    whole = trajectories(build(make(name)), epochs=4)
    assert run("deadly").returncode == -9
    resumed = run("gentle")
    assert resumed.returncode == 0, resumed.stderr
    weights = json.loads(resumed.stdout.splitlines()[-1])
    # Two of four epochs were saved, the third was broken off.
    np.testing.assert_allclose(weights, whole[12:], rtol=1e-6)


def test_epochs_count_on_from_one_fit_to_the_next():
    once = trajectories(build("dynamic_weight_average"), epochs=4)
    model = build("dynamic_weight_average")
    again = [trajectories(model, epochs=1) for _ in range(4)]
    np.testing.assert_allclose(np.concatenate(again), once, rtol=1e-6)
    assert not np.allclose(once[-1], 1)


def test_a_rule_can_be_added_after_training():
    model = build(None)
    fit(model)
    weights_before = [float(weight) for weight in find_terms(model).values()]
    assert weights_before == [1.0, 1.0, 1.0]
    losses = {name: loss.loss for name, loss in model.loss.items()}
    model.compile("sgd", **kj.joint_loss(losses, weighting="last_loss"))
    assert (trajectories(model, epochs=1)[-1] != 1.0).all()


def test_a_rule_can_be_given_up():
    model = build("geometric_mean")
    fit(model)
    assert float(model.get_layer("align").weight) != 1.0
    losses = {name: loss.loss for name, loss in model.loss.items()}
    model.compile("sgd", **kj.joint_loss(losses))
    assert (trajectories(model, epochs=1) == 1.0).all()


def test_uncertainty_finds_the_noise():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 1)).astype("float32")
    y = {
        "y1": 2 * x + 8 + 10 * generator.normal(size=x.shape),
        "y2": 3 * x + 3 + generator.normal(size=x.shape),
    }
    inputs = keras.Input((1,))
    model = keras.Model(inputs, {name: keras.layers.Dense(1)(inputs) for name in y})
    losses = dict.fromkeys(y, "mean_squared_error")
    joint = kj.joint_loss(losses, weighting=kj.weighting.Uncertainty())
    model.compile(keras.optimizers.Adam(0.1), **joint)
    history = model.fit(
        x,
        y,
        batch_size=100,
        epochs=40,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    ).history
    predicted = model.predict(x, verbose=0)
    for name in y:
        rmse = np.sqrt(np.mean((predicted[name] - y[name]) ** 2))
        assert history[f"{name}_noise"][-1] == pytest.approx(rmse, rel=0.1)


MODES = {
    "jit_compile": ({"jit_compile": True}, ("jax", "torch")),
    "steps_per_execution": ({"steps_per_execution": 8}, ("torch",)),
    "run_eagerly": ({"run_eagerly": True}, ("torch",)),
}


@pytest.mark.parametrize("mode", MODES)
def test_trajectory_does_not_depend_on_the_way_of_training(mode):
    arguments, lacking = MODES[mode]
    if BACKEND in lacking:
        pytest.skip("lacks it")
    plain, other = build("famo"), build("famo", **arguments)
    expected, history = fit(plain, epochs=3), fit(other, epochs=3)
    assert set(history) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=2e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("mode", ["mixed_float16", "gradient_accumulation"])
def test_rule_sees_the_losses_of_the_step(mode):
    keras.config.set_dtype_policy("mixed_float16" if mode == "mixed_float16" else "float32")
    model = build("geometric_mean")
    if mode == "gradient_accumulation":
        joint = {"loss": model.loss, "loss_weights": {n: x.weight for n, x in model.loss.items()}}
        metrics = {name: [loss.weight] for name, loss in model.loss.items()}
        optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
        model.compile(optimizer, **joint, metrics=metrics)
    history = fit(model, epochs=4, batch_size=48)
    names = ("rating", "label", "align")
    for epoch in range(4):
        losses = np.array([history[f"{name}_loss"][epoch] for name in names])
        weights = [history[f"{name}_weight"][epoch] for name in names]
        expected = reference.geometric_mean(losses[None])[-1]
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
def test_replicas_hold_the_weights_of_one_device():
    from tests.test_training import two_replicas

    def build_two():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        outputs = {"rating": keras.layers.Dense(1)(inputs), "label": keras.layers.Dense(2)(inputs)}
        losses = {
            "rating": "mean_squared_error",
            "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        }
        model = keras.Model(inputs, outputs)
        joint = kj.joint_loss(losses, weighting=kj.weighting.FAMO())
        model.compile(keras.optimizers.SGD(0.01), **joint)
        return model

    one = trajectories(build_two(), epochs=2)
    with two_replicas().scope():
        model = build_two()
    two = trajectories(model, epochs=2)
    np.testing.assert_allclose(two, one, rtol=2e-5)
    state = model.loss["rating"].weight.weighting._state
    copies = [np.array(x) for x in state.value.values]
    np.testing.assert_array_equal(copies[0], copies[1])


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_nonfinite_loss_names_the_term(on_nonfinite):
    targets = {**TARGETS, "rating": TARGETS["rating"].copy()}
    targets["rating"][-1] = np.nan  # In the last batch, as the model itself survives none.
    model = build(kj.weighting.GeometricMean(on_nonfinite=on_nonfinite))
    options = {"batch_size": 8, "verbose": 0, "shuffle": False}
    callback = kj.callbacks.JointLossCallback()
    message = r"GeometricMean cannot use .* epoch 0: the loss of 'rating' in 1 steps"
    outcome = (
        pytest.raises(FloatingPointError, match=message)
        if on_nonfinite == "raise"
        else pytest.warns(UserWarning, match=message)
    )
    with pytest.warns(UserWarning, match="loss of term 'rating' is nan"), outcome:
        model.fit(FEATURES, targets, callbacks=[callback], **options)
    weights = [float(weight) for weight in find_terms(model).values()]
    assert np.isfinite(weights).all()
    assert weights != [1 / 3] * 3


def test_missing_labels_leave_a_term_alone():
    sample_weight = {"rating": np.ones(48, "float32"), "label": np.zeros(48, "float32")}
    model = build(LastLoss())
    history = model.fit(
        FEATURES,
        TARGETS,
        sample_weight=sample_weight,
        batch_size=8,
        epochs=1,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    ).history
    assert (history["rating_updates"], history["label_updates"]) == ([6.0], [0.0])
    assert history["label_weight"] == [1.0]


def test_no_read_from_the_device_per_step(monkeypatch):
    reads = []
    original = ops.convert_to_numpy

    def count(x):
        reads.append(1)
        return original(x)

    def reads_of(items):
        model = build("famo")
        callback = kj.callbacks.JointLossCallback()
        options = {"batch_size": 4, "verbose": 0, "callbacks": [callback]}
        y = {name: target[:items] for name, target in TARGETS.items()}
        model.fit(FEATURES[:items], y, **options)
        reads.clear()
        model.fit(FEATURES[:items], y, **options)
        return len(reads)

    monkeypatch.setattr(ops, "convert_to_numpy", count)
    # On PyTorch Keras takes the weight of each of the two outputs for an array, with or without a
    # rule.
    outputs = 2 if BACKEND == "torch" else 0
    assert reads_of(48) - 12 * outputs == reads_of(8) - 2 * outputs > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"ema": 1.0}, "ema"),
        ({"min_weight": -0.1}, "min_weight"),
        ({"min_weight": 2.0, "max_weight": 1.0}, "max_weight"),
        ({"update_every": 0}, "update_every"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite"),
    ],
)
def test_invalid_option(arguments, message):
    with pytest.raises(ValueError, match=rf"`{message}`.*Received: {message}="):
        kj.weighting.Uncertainty(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Uncertainty", {"learning_rate": 0.0}, "learning_rate"),
        ("FAMO", {"learning_rate": -1.0}, "learning_rate"),
        ("FAMO", {"decay": -1.0}, "decay"),
        ("FAMO", {"minimum_loss": "0"}, "minimum_loss"),
        ("DynamicWeightAverage", {"temperature": 0.0}, "temperature"),
        ("SmoothTchebycheff", {"smoothness": 0.0}, "smoothness"),
        ("SmoothTchebycheff", {"preference": [1.0, 0.0]}, r"preference\[1\]"),
        ("RandomWeighting", {"seed": 2**31}, "seed"),
        ("RandomWeighting", {"seed": -1}, "seed"),
    ],
)
def test_invalid_argument(name, arguments, message):
    with pytest.raises(ValueError, match=rf"`{message}`.*Received"):
        make(name, **arguments)


def test_preference_of_the_wrong_length():
    model = build(kj.weighting.SmoothTchebycheff(preference=[1.0, 2.0]))
    with pytest.raises(ValueError, match=r"`preference`.*Expected 3 numbers"):
        fit(model)


def test_rule_cannot_serve_two_models_with_other_terms():
    rule = kj.weighting.FAMO()
    fit(build(rule))
    inputs = keras.Input((6,))
    other = keras.Model(inputs, {"rating": keras.layers.Dense(1)(inputs)})
    other.compile("sgd", **kj.joint_loss({"rating": "mse"}, weighting=rule))
    with pytest.raises(ValueError, match=r"weighting of the terms .*'align'.* Received: terms"):
        other.fit(
            FEATURES,
            {"rating": TARGETS["rating"]},
            verbose=0,
            callbacks=[kj.callbacks.JointLossCallback()],
        )


@pytest.mark.parametrize("name", RULES)
def test_config_and_names(name):
    rule = make(name, warmup_steps=3, ema=0.5, min_weight=0.1, max_weight=9.0, update_every=2)
    config = rule.get_config()
    assert type(rule).from_config(config).get_config() == config
    assert type(kj.weighting.get(name)) is type(rule)
    assert type(kj.weighting.get(keras.saving.serialize_keras_object(rule))) is type(rule)


@pytest.mark.parametrize("identifier", ["adam", 3, kj.LossWeight])
def test_unknown_weighting(identifier):
    with pytest.raises(ValueError, match=r"`weighting`.*Received: weighting="):
        kj.joint_loss({"a": "mse"}, weighting=identifier)


def test_tensorboard_has_the_weights_and_the_noise(tmp_path):
    model = build("uncertainty")
    model.fit(
        FEATURES,
        TARGETS,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback(str(tmp_path))],
    )
    scalars = read_scalars(tmp_path / "train")
    (weight,) = scalars["joint_loss/align/weight"].values()
    (noise,) = scalars["joint_loss/align/noise"].values()
    assert weight == pytest.approx(0.5 / noise**2, rel=1e-5)
