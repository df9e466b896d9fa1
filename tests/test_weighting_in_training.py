"""The rules that adapt the weights, in training: their losses, updates and resumption.

One rule that keeps state for each term and counts epochs tests the base class.
"""

import functools
import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from tests import reference_weighting as reference
from tests import small_models
from tests.backends import jax, once_compiled, values_only
from tests.summaries import read_scalars
from tests.terms import REQUIRED, RULES, Terms, Trajectory
from tests.test_weighting import LastLoss

STATEFUL = "dynamic_weight_average"

FEATURES = np.random.default_rng(3).normal(size=(48, 6)).astype("float32")
TARGETS = {"rating": FEATURES[:, :1] * 2 + 1, "label": (FEATURES[:, 1] > 0).astype("int32")}
LOSSES = {
    "rating": "mean_squared_error",
    "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
}
NAMES = ("rating", "label", "align")


def build(rule, weights=None, **compile_arguments):
    rule = kj.weighting.ReLoBRaLo(beta=0.5) if rule == "relobralo" else rule
    if rule in REQUIRED:
        rule = getattr(kj.weighting, rule)(dict.fromkeys(NAMES, 1.0))
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    a, b = kj.layers.ContrastiveTerm("MeanSquaredError", name="align")(
        (keras.layers.Dense(4)(hidden), keras.layers.Dense(4)(hidden))
    )
    outputs = {
        "rating": keras.layers.Dense(1, dtype="float32")(a),
        "label": keras.layers.Dense(2, dtype="float32")(b),
    }
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(LOSSES, weights=weights, weighting=rule)
    model.compile(keras.optimizers.SGD(0.01), **joint, **compile_arguments)
    return model


def fit(model, epochs=2, callbacks=(), y=TARGETS, x=FEATURES, log_dir=None, **options):
    callbacks = [kj.callbacks.JointLossCallback(log_dir), *callbacks]
    options = {"batch_size": 8, "epochs": epochs, **options}
    return small_models.fit(model, callbacks, y, x, **options)


def weights_of(model):
    return {term: float(weight) for term, weight in find_terms(model).items()}


def trajectories(model, epochs=2, callbacks=(), **arguments):
    trajectory = Trajectory()
    fit(model, epochs, [*callbacks, trajectory], **arguments)
    return np.array(trajectory.weights)


@functools.cache
def uninterrupted(name):
    """Returns the weights in each of the 24 steps in four epochs."""
    return trajectories(build(name), epochs=4)


def test_rule_weights_layer_terms_and_multiplies_user_weights():
    schedule = kj.schedules.Linear(0.0, 1.0, steps=12)
    model = build(LastLoss(), weights={"rating": 0.5, "label": schedule})
    trajectory = Trajectory()
    # With one batch per epoch, the mean loss of the epoch is the loss of the step.
    history = fit(model, epochs=3, batch_size=48, callbacks=[trajectory])
    assert tuple(model.loss["rating"].weight.weighting.terms) == NAMES
    for epoch in range(3):
        expected = [
            0.5 * history["rating_loss"][epoch],
            (epoch + 1) / 12 * history["label_loss"][epoch],
            history["align_loss"][epoch],
        ]
        assert trajectory.weights[epoch] == pytest.approx(expected, 1e-5)
        # The logged weight is the factor of the loss, at the last step of the epoch.
        assert [history[f"{name}_weight"][epoch] for name in NAMES] == pytest.approx(expected, 1e-5)
    assert history["rating_updates"] == [1.0, 2.0, 3.0]


def test_total_is_the_sum_of_the_weighted_terms():
    model = build(LastLoss())
    history = fit(model, epochs=2, batch_size=48)
    before = [history[f"{name}_weight"][0] for name in NAMES]
    losses = [history[f"{name}_loss"][1] for name in NAMES]
    assert history["loss"][1] == pytest.approx(np.dot(before, losses), 1e-5)


def test_evaluation_and_prediction_change_nothing():
    model = build(STATEFUL)
    fit(model)
    rule = model.loss["rating"].weight.weighting
    before, weights = rule.runner.save(), weights_of(model)
    model.evaluate(FEATURES, TARGETS, verbose=0)
    model.evaluate(FEATURES, TARGETS, verbose=0, callbacks=[kj.callbacks.JointLossCallback()])
    model.predict(FEATURES, verbose=0)
    for key, value in rule.runner.save().items():
        np.testing.assert_array_equal(value, before[key])
    assert weights_of(model) == weights


def test_validation_changes_no_weight():
    validated = trajectories(build(STATEFUL), epochs=4, validation_data=(FEATURES, TARGETS))
    np.testing.assert_allclose(validated, uninterrupted(STATEFUL), rtol=1e-6)


# FAMO's state includes the optimizer state, in additional rows and counts; ReLoBRaLo draws numbers.
RESUMED = (STATEFUL, "famo", "relobralo")
OTHERS = sorted({*RULES} - {"DynamicWeightAverage", "FAMO", "ReLoBRaLo"})


@pytest.mark.parametrize("name", [*RESUMED, *(pytest.param(x, marks=values_only) for x in OTHERS)])
def test_loaded_model_resumes_like_uninterrupted_training(name, tmp_path):
    model = build(name)
    first = trajectories(model, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    rest = trajectories(loaded, epochs=4, initial_epoch=2)
    np.testing.assert_allclose(np.concatenate([first, rest]), uninterrupted(name), rtol=1e-6)
    assert loaded.loss["rating"].weight.weighting is not model.loss["rating"].weight.weighting


@once_compiled
def test_epoch_count_continues_across_fits():
    once = uninterrupted(STATEFUL)
    model = build(STATEFUL)
    again = [trajectories(model, epochs=1) for _ in range(4)]
    np.testing.assert_allclose(np.concatenate(again), once, rtol=1e-6)
    assert not np.allclose(once[-1], 1)


@once_compiled
def test_rule_can_be_added_after_training():
    model = build(None)
    fit(model)
    assert weights_of(model) == dict.fromkeys(NAMES, 1.0)
    model.compile("sgd", **kj.joint_loss(LOSSES, weighting="last_loss"))
    assert (trajectories(model, epochs=1)[-1] != 1.0).all()


def test_uncertainty_estimates_the_noise():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 1)).astype("float32")
    y = {
        "y1": 2 * x + 8 + 10 * generator.normal(size=x.shape),
        "y2": 3 * x + 3 + generator.normal(size=x.shape),
    }
    model = small_models.linear(y, dim=1)
    joint = kj.joint_loss(dict.fromkeys(y, "mse"), weighting=kj.weighting.Uncertainty())
    model.compile(keras.optimizers.Adam(0.1), **joint)
    history = fit(model, 40, y=y, x=x, batch_size=100)
    predicted = model.predict(x, verbose=0)
    for name in y:
        rmse = np.sqrt(np.mean((predicted[name] - y[name]) ** 2))
        assert history[f"{name}_noise"][-1] == pytest.approx(rmse, rel=0.1)


@pytest.mark.parametrize("mode", ["mixed_float16", "gradient_accumulation"])
def test_rule_sees_the_losses_of_the_step(mode):
    keras.config.set_dtype_policy("mixed_float16" if mode == "mixed_float16" else "float32")
    model = build("geometric_mean")
    if mode == "gradient_accumulation":
        optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
        model.compile(optimizer, **kj.joint_loss(LOSSES, weighting="geometric_mean"))
    history = fit(model, epochs=4, batch_size=48)
    for epoch in range(4):
        losses = np.array([history[f"{name}_loss"][epoch] for name in NAMES])
        weights = [history[f"{name}_weight"][epoch] for name in NAMES]
        expected = reference.geometric_mean(losses[None])[-1]
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_nonfinite_loss_names_the_term(on_nonfinite):
    targets = {**TARGETS, "rating": TARGETS["rating"].copy()}
    targets["rating"][-1] = np.nan  # In the last batch, because NaN spreads to the model.
    model = build(kj.weighting.GeometricMean(on_nonfinite=on_nonfinite))
    message = r"GeometricMean cannot use .* epoch 0: the loss of 'rating' in 1 steps"
    outcome = (
        pytest.raises(FloatingPointError, match=message)
        if on_nonfinite == "raise"
        else pytest.warns(UserWarning, match=message)
    )
    warning = r"The loss of term 'rating' is nan \(train, step 6\)"
    with pytest.warns(UserWarning, match=warning), outcome:
        fit(model, 1, y=targets)
    weights = list(weights_of(model).values())
    assert np.isfinite(weights).all()
    assert weights != [1 / 3] * 3


def test_term_without_labels_keeps_its_weight():
    sample_weight = {"rating": np.ones(48, "float32"), "label": np.zeros(48, "float32")}
    history = fit(build(LastLoss()), 1, sample_weight=sample_weight)
    assert (history["rating_updates"], history["label_updates"]) == ([6.0], [0.0])
    assert history["label_weight"] == [1.0]


def without_items(kind):
    """Returns a model with the terms `"a"` and `"b"` and data in which half of the steps lack b."""
    inputs, extra = keras.Input((FEATURES.shape[1],)), keras.Input((1,))
    hidden = keras.layers.Dense(4)(inputs)
    outputs, losses = {"a": hidden}, {"a": "mse"}
    absent = np.arange(len(FEATURES)) >= len(FEATURES) // 2
    given = 1.0 - absent[:, None]
    targets = {"a": np.ones((len(FEATURES), 4))}
    if kind == "values":
        term = kj.layers.LossTerm(name="b")
        outputs["a"] = term(hidden, ops.square(hidden), sample_weight=extra)
    elif kind == "contrastive":
        term = kj.layers.ContrastiveTerm("InfoNCE", name="b")
        outputs["a"], _ = term((hidden, hidden + 1.0), sample_weight=extra)
    elif kind == "labels":
        term = kj.layers.ContrastiveTerm(kj.losses.SupCon(unlabelled=0), name="b")
        outputs["a"] = term((hidden, extra))
    else:
        outputs["b"], losses["b"] = keras.layers.Dense(4)(hidden), kj.losses.SupCon(unlabelled=0)
        targets["b"] = given
    model = keras.Model([inputs, extra], outputs)
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss(losses, weighting=LastLoss()))
    return model, [FEATURES, given], targets


@pytest.mark.parametrize("kind", ["values", "contrastive", "labels", "output"])
def test_step_without_items_does_not_count_for_the_term(kind):
    model, x, y = without_items(kind)
    history = fit(model, 1, y=y, x=x)
    assert (history["a_updates"], history["b_updates"]) == ([6.0], [3.0])


@once_compiled
@pytest.mark.filterwarnings("ignore:The loss of term:UserWarning")
def test_rule_reports_only_first_unusable_losses():
    model = build("uncertainty")
    targets = {name: target.copy() for name, target in TARGETS.items()}
    targets["rating"][8:10] = np.nan  # From the second step on, no loss is finite.
    with pytest.raises(FloatingPointError, match=r"the loss of 'rating' in 5 steps$"):
        fit(model, 1, y=targets)


@once_compiled
def test_preference_of_wrong_length_is_refused():
    model = build(kj.weighting.SmoothTchebycheff(preference=[1.0, 2.0]))
    with pytest.raises(ValueError, match=r"`preference`.*Expected 3 numbers"):
        fit(model)


def test_rule_with_other_terms_is_refused():
    terms = Terms(kj.weighting.FAMO(), 2)
    assert terms.rule.bind(terms.weights) is False  # They are the same.
    with pytest.raises(ValueError, match=r"weighting of the terms .*'term1'.* Received: terms"):
        terms.rule.bind({"other": kj.LossWeight()})


@once_compiled
def test_tensorboard_shows_weights_and_noise(tmp_path):
    fit(build("uncertainty"), 1, log_dir=str(tmp_path), batch_size=48)
    scalars = read_scalars(tmp_path / "train")
    (weight,) = scalars["joint_loss/align/weight"].values()
    (noise,) = scalars["joint_loss/align/noise"].values()
    assert weight == pytest.approx(0.5 / noise**2, rel=1e-5)


@pytest.mark.backend("jax")
@pytest.mark.parametrize("rule", [None, "uncertainty", kj.weighting.Shares({"a": 1.0, "b": 2.0})])
def test_jax_compiles_no_more_functions_than_for_plain_keras(rule, caplog):
    def compiled(arguments, callbacks):
        inputs = keras.Input((6,))
        model = keras.Model(inputs, {name: keras.layers.Dense(1)(inputs) for name in "ab"})
        model.compile("sgd", **arguments)
        jax.clear_caches()  # What earlier tests have compiled.
        caplog.clear()
        with jax.log_compiles():
            small_models.fit(model, callbacks, dict.fromkeys("ab", TARGETS["rating"]), FEATURES)
        return re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)

    losses = dict.fromkeys("ab", "mse")
    plain = compiled({"loss": losses}, [])
    joint = compiled(kj.joint_loss(losses, weighting=rule), [kj.callbacks.JointLossCallback()])
    assert joint.count("train_step") == plain.count("train_step")
    assert {*joint} == {*plain}


class Broken(LastLoss):
    def update(self, losses, step):
        return self.state["forgotten"]


def test_error_of_a_rule_stays_as_it_is():
    """On JAX, the rule runs while the last term records its loss."""
    with pytest.raises(KeyError, match="forgotten"):
        fit(build(Broken()), epochs=1)
