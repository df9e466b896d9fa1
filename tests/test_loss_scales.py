"""The rules on losses from 1e-8 to 1e12, each alone and mixed: float32 against float64."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import reference_weighting as reference
from tests.backends import values_only
from tests.small_models import X, fit
from tests.terms import RULES, Terms, make, recorded_losses
from tests.test_grad_norm import Gradients

STEPS = 16
EPOCHS = np.arange(STEPS) // 4  # The epoch of each step.
SCALES = {
    "ordinary": np.array([1.0, 20.0, 0.05]),
    "small": np.array([1e-8, 1e-8, 1e-8]),
    "large": np.array([1e12, 1e12, 1e12]),
    "mixed": np.array([1e-8, 1.0, 1e12]),
    # From step to step.
    "moving": 10.0 ** np.array([[-8, 12, 0], [12, -8, 0]] * (STEPS // 2)),
}


def losses_of(scale):
    """Returns noisy losses of this scale: `(STEPS, 3)`."""
    noise = recorded_losses(STEPS) / [1.0, 20.0, 0.05]
    return (noise * SCALES[scale]).astype("float32").astype("float64")


def equal_shares(**arguments):
    return {"shares": dict.fromkeys(("term0", "term1", "term2"), 1.0), **arguments}


def share_equally(**arguments):
    return lambda losses: reference.shares(losses, lambda step: [1, 1, 1], 0.99, **arguments)


# The rule with its arguments, and its reference.
CASES = {
    "Uncertainty": ({}, reference.uncertainty),
    "Uncertainty-fast": ({"learning_rate": 3.0}, lambda losses: reference.uncertainty(losses, 3.0)),
    "Uncertainty-analytic": ({"analytic": True}, reference.uncertainty_analytic),
    "Uncertainty-unsmoothed": (
        {"analytic": True, "ema": 0.0},
        lambda losses: reference.uncertainty_analytic(losses, 0.0),
    ),
    "Uncertainty-softmax": ({"softmax": True}, reference.uncertainty_softmax),
    "IMTLL": ({}, reference.imtl_l),
    "IMTLL-fast": ({"learning_rate": 3.0}, lambda losses: reference.imtl_l(losses, 3.0)),
    "ReLoBRaLo": ({"beta": 1.0}, lambda losses: reference.relobralo(losses, [True] * STEPS)),
    "SoftAdapt": ({}, lambda losses: reference.soft_adapt(losses, EPOCHS)),
    "SoftAdapt-normalized": (
        {"variant": "normalized", "points": 2},
        lambda losses: reference.soft_adapt(losses, EPOCHS, "normalized", points=2),
    ),
    "SoftAdapt-loss_weighted": (
        {"variant": "loss_weighted", "interval": "step"},
        lambda losses: reference.soft_adapt(losses, variant="loss_weighted"),
    ),
    "DynamicWeightAverage": ({}, lambda losses: reference.dynamic_weight_average(losses, EPOCHS)),
    "GeometricMean": ({}, lambda losses: reference.geometric_mean(np.maximum(losses, 1e-7))),
    "GeometricMean-floor": ({"floor": 1e-12}, reference.geometric_mean),
    "FAMO": ({}, lambda losses: reference.famo(np.maximum(losses, 1e-7))),
    "FAMO-floor": ({"floor": 1e-12}, reference.famo),
    "SmoothTchebycheff": ({}, lambda losses: reference.smooth_tchebycheff(losses, np.ones(3), 1.0)),
    "Shares": (equal_shares(), share_equally()),
    "Shares-unlimited": (equal_shares(max_weight=None), share_equally(largest=np.inf)),
    "Constraint": (
        {"bounds": {"term0": 2e-8, "term1": 0.5, "term2": 1e12}},
        lambda losses: reference.constraint(
            losses, {i: lambda step, x=x: x for i, x in enumerate((2e-8, 0.5, 1e12))}, 0.01
        ),
    ),
}


def test_every_rule_has_a_case():
    assert {case.partition("-")[0] for case in CASES} == set(RULES) - {"RandomWeighting"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", CASES)
def test_weights_follow_the_formula_at_any_scale(case, scale):
    arguments, simulate = CASES[case]
    losses = losses_of(scale)
    terms = Terms(make(case.partition("-")[0], 3, **arguments), 3)
    trajectory = terms.run(losses, EPOCHS)
    assert not terms.rule.pop_invalid_counts()
    np.testing.assert_allclose(trajectory, simulate(losses), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("scale", ["small", "large", "mixed"])
def test_grad_norm_follows_the_formula_at_any_scale(scale):
    gradients, expected = Gradients(kj.weighting.GradNorm()), reference.GradNorm(3)
    weights = np.ones(3)
    for losses in losses_of(scale):
        expected.move(losses, SCALES[scale])
        weights = gradients.step(losses, weights * SCALES[scale])
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"update_every": 2}, {"warmup_steps": 2}])
def test_large_loss_has_its_share_after_the_first_step_of_uncertainty(options):
    losses = np.tile([1e5, 1e12, 500.0], (4, 1))
    terms = Terms(make("Uncertainty", **options), 3)
    trajectory = terms.run(losses)
    first = 1 + options.get("warmup_steps", 0) + options.get("update_every", 1) - 1
    np.testing.assert_allclose(trajectory[first] * losses[0], 0.5, rtol=1e-5)


def plain_descent(losses, learning_rate=0.025):
    """Returns the weights by gradient descent that may go past the minimizer, in float32."""
    log_variance, weights = ops.zeros(losses.shape[1], "float32"), []
    for row in losses:
        loss = ops.convert_to_tensor(row, "float32")
        slope = 0.5 * (1 - ops.exp(-log_variance) * loss)
        log_variance = log_variance - learning_rate * slope
        weights.append(ops.convert_to_numpy(0.5 * ops.exp(-log_variance)))
    return np.stack(weights)


def test_uncertainty_moves_by_plain_descent_for_losses_of_ordinary_size():
    noise = recorded_losses(200, 2)
    still = np.tile([1.0, 1.0001, 0.9999, 1.0000001, 1e-4, 300.0, 0.0], (200, 1))
    losses = np.concatenate([noise, still], axis=1)
    trajectory = Terms(make("Uncertainty"), losses.shape[1]).run(losses)[1:].astype("float32")
    np.testing.assert_array_equal(trajectory, plain_descent(losses))


@values_only
def test_loss_of_0_keeps_the_weight_of_uncertainty_finite():
    # The plain descent would reach infinity after 7,100 steps.
    rule = make("Uncertainty", learning_rate=1.0)
    weights = Terms(rule, 2).run(np.tile([0.0, 1.0], (200, 1)))
    np.testing.assert_allclose(weights[1:11, 0], 0.5 * np.exp(0.5 * np.arange(1, 11)), rtol=1e-5)
    assert weights[-1] == pytest.approx([5e11, 0.5], rel=1e-4)


@values_only
def test_bias_corrected_mean_keeps_a_small_loss():
    terms = Terms(make("Shares", ema=0.5), 2)
    losses = np.array([[1e-9, 2e-9], [1e-9, 2e-9], [1e9, 1e-9]])
    np.testing.assert_allclose(terms.run(losses[:2])[-1], [1.5, 0.75], rtol=1e-6)
    terms.step(losses[2])
    weighted = np.array([1, 2, 4]) / 7
    means = weighted @ losses
    expected = np.minimum(0.5 * means.sum() / np.maximum(means, 1e-7 * means.sum()), 1e6)
    np.testing.assert_allclose(terms.now(), expected, rtol=1e-6)


@values_only
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rule_in_half_precision_keeps_its_state_in_float32(dtype):
    losses = np.tile([1e-8, 1.0, 1e12], (3, 1))
    rule = make("Uncertainty", analytic=True, dtype=dtype)
    assert rule.dtype == "float32"
    np.testing.assert_allclose(Terms(rule, 3).run(losses)[-1] * losses[0], 0.5, rtol=1e-5)


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
class Scaled(keras.losses.MeanSquaredError):
    """The mean squared error times a number."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, y_true, y_pred):
        return self.scale * super().call(y_true, y_pred)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_uncertainty_trains_losses_of_any_size(policy):
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    scales = {"a": 1e-8, "b": 1.0, "c": 1e5, "d": 1e12}
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    hidden = kj.layers.LossTerm(Scaled(1e9), name="e")(hidden, hidden + 1.0)
    outputs = {name: keras.layers.Dense(2, dtype="float32")(hidden) for name in scales}
    losses = {name: Scaled(scale) for name, scale in scales.items()}
    rule = kj.weighting.Uncertainty(analytic=policy == "float32", ema=0.0)
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.Adam(0.001, global_clipnorm=1.0)
    model.compile(optimizer, **kj.joint_loss(losses, weighting=rule))
    y = dict.fromkeys(scales, X[:, :2] + 3.0)
    history = fit(model, y=y, batch_size=len(X), epochs=12)
    for name in [*scales, "e"]:
        is_slow = not rule.analytic and name in "ab"
        raw, weight = np.array(history[f"{name}_loss"]), np.array(history[f"{name}_weight"])
        assert np.isfinite(weight).all()
        if not is_slow:
            np.testing.assert_allclose(raw * weight, 0.5, rtol=0.02)
        if name in scales:
            assert raw[-1] < raw[0]
    if not rule.analytic:
        rise = np.array(history["a_weight"]) / 0.5
        np.testing.assert_allclose(rise, np.exp(0.0125 * np.arange(1, 13)), rtol=1e-4)


@values_only
def test_update_every_averages_losses_of_unlike_size():
    losses = np.array([[1e12, 1e-8], [1e-8, 1e12], [1e-8, 1e-8], [1e12, 1e12]])
    rule = make("Uncertainty", analytic=True, ema=0.0, update_every=2)
    weights = Terms(rule, 2).run(losses)
    np.testing.assert_allclose(weights[2:5], 1e-12, rtol=1e-5)
