"""The rules that follow the lengths of gradients, without the part of GradNorm alone: weights that
are inverse to a measure of them, alone and in `fit`.
"""

import numpy as np
import pytest

import keras_jointloss as kj
from tests import balanced_models as models
from tests import reference_weighting as reference
from tests.backends import BACKEND
from tests.balanced_models import X, build, weights_of
from tests.terms import Trajectory, recorded_losses
from tests.test_grad_norm import LENGTHS, Gradients, loss_of

# On JAX, a rule sees the gradients of the previous step.
LAG = int(BACKEND == "jax")
# The rule and the arguments of its reference.
CASES = {
    "InverseGradientNorm": ({}, {}),
    "InverseGradientNorm-mean": ({"alpha": 0.5}, {"alpha": 0.5}),
    "NeuralTangentKernel": ({}, {"alpha": 0.0, "power": 1.0}),
    "NeuralTangentKernel-root": ({"alpha": 0.8, "power": 0.5}, {"alpha": 0.8, "power": 0.5}),
}


def make(case):
    name, (arguments, expected) = case.partition("-")[0], CASES[case]
    return getattr(kj.weighting, name)(**arguments), expected


def run(rule, losses, lengths, given=None):
    """Returns the weights of the rule in each step and after the last one.

    Args:
        rule: The rule.
        losses: `(steps, terms)`.
        lengths: `(steps, terms)`, the lengths of the gradients of the losses without weights.
        given: The user's weights, 1 by default.
    """
    gradients = Gradients(rule, losses.shape[1], given)
    weights = [gradients.terms.now()]
    for step in range(len(losses)):
        seen = step - LAG
        of_step = np.multiply(weights[seen], lengths[seen]) if seen >= 0 else 0 * lengths[0]
        weights.append(gradients.step(losses[step], of_step))
    return np.array(weights), gradients


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
@pytest.mark.parametrize("case", CASES)
def test_weights_follow_the_formula(case, scale):
    rule, arguments = make(case)
    losses = recorded_losses(30)
    lengths = np.sqrt(losses) * LENGTHS
    weights, _ = run(rule, losses, scale * lengths)
    expected = reference.InverseGradient(3, **arguments)
    trajectory = [expected.weights] * (1 + LAG)
    for step in range(len(losses) - LAG):
        expected.move(losses[step], lengths[step])
        trajectory.append(expected.weights)
    np.testing.assert_allclose(weights, trajectory, rtol=1e-4)


def test_known_values():
    losses, lengths = np.array([[1.0, 4.0]] * 3), np.array([[1.0, 3.0]] * 3)
    weights, _ = run(kj.weighting.InverseGradientNorm(alpha=0.0), losses, lengths)
    np.testing.assert_allclose(weights[-1], [4, 4 / 3], rtol=1e-6)
    # The traces are 1/4 and 9/16.
    weights, _ = run(kj.weighting.NeuralTangentKernel(), losses, lengths)
    np.testing.assert_allclose(weights[-1], [13 / 4, 13 / 9], rtol=1e-6)
    # As PhysicsNeMo, with the roots 1/2 and 3/4.
    weights, _ = run(kj.weighting.NeuralTangentKernel(power=0.5), losses, lengths)
    np.testing.assert_allclose(weights[-1], [5 / 2, 5 / 3], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_weights_of_the_user_multiply_those_of_the_rule(case):
    losses = recorded_losses(12)
    lengths = np.sqrt(losses) * LENGTHS
    given = [3.0, kj.schedules.Linear(0.5, 5.0, 8), 0.1]
    weights, _ = run(make(case)[0], losses, lengths)
    weighted, _ = run(make(case)[0], losses, lengths, given)
    moving = np.minimum(0.5 + 4.5 * np.arange(13) / 8, 5.0)
    expected = weights * np.stack([np.full(13, 3.0), moving, np.full(13, 0.1)], axis=1)
    np.testing.assert_allclose(weighted, expected, rtol=1e-4)


def test_update_every_takes_the_latest_gradients():
    losses, lengths = recorded_losses(9), np.tile(LENGTHS, (9, 1))
    rule = kj.weighting.InverseGradientNorm(alpha=0.5, update_every=3)
    # On JAX, the user's weights are those of the step, and the gradients of the one before.
    given = [1.0, 3.0 if LAG else kj.schedules.Linear(1.0, 3.0, 20), 2.0]
    weights, _ = run(rule, losses, lengths, given)
    weights[:, 1] /= 3 if LAG else 1 + np.arange(10) / 10
    weights[:, 2] /= 2
    target = sum(LENGTHS) / LENGTHS
    for step, share in ((0, 1), (2, 1), (3, 0.5), (5, 0.5), (6, 0.25), (9, 0.125)):
        expected = share + (1 - share) * target
        np.testing.assert_allclose(weights[step], expected, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_term_without_gradient_keeps_its_weight_and_counts_with_its_last(case):
    losses = np.tile([1.0, 2.0, 3.0], (8, 1))
    lengths = np.tile([2.0, 6.0, 1.0], (8, 1))
    absent = lengths.copy()
    absent[3:, 1] = 0
    weights, _ = run(make(case)[0], losses, absent)
    everything, _ = run(make(case)[0], losses, lengths)
    np.testing.assert_allclose(weights[:, [0, 2]], everything[:, [0, 2]], rtol=1e-5)
    np.testing.assert_array_equal(weights[3 + LAG :, 1], weights[3 + LAG, 1])


@pytest.mark.parametrize("case", CASES)
def test_term_does_not_count_before_its_first_gradient(case):
    losses, lengths = np.tile([1.0, 2.0, 3.0], (4, 1)), np.tile([2.0, 0.0, 1.0], (4, 1))
    weights, _ = run(make(case)[0], losses, lengths)
    others, _ = run(make(case)[0], losses[:, [0, 2]], lengths[:, [0, 2]])
    np.testing.assert_allclose(weights[:, [0, 2]], others, rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1], 1)


@pytest.mark.parametrize("case", CASES)
def test_vanishing_and_nonfinite_gradients_keep_the_weights_finite(case):
    losses = np.tile([1.0, 1e-12, 1e12], (4, 1))
    lengths = np.array([[1.0, 1e-30, 1e18]] * 3 + [[1.0, 1.0, -1.0]])
    weights, gradients = run(make(case)[0], losses, lengths)
    assert np.isfinite(weights).all()
    assert not gradients.terms.rule.pop_invalid_counts()


def test_record_is_used_once():
    weights, gradients = run(kj.weighting.InverseGradientNorm(), *[np.ones((3, 3))] * 2)
    gradients.terms.step(np.ones(3))
    np.testing.assert_array_equal(gradients.terms.now(), weights[-1])


@pytest.mark.parametrize("case", ["InverseGradientNorm", "NeuralTangentKernel-root"])
def test_fit_equals_manual_loop(case):
    rule, arguments = make(case)
    schedule = kj.schedules.Linear(1.0, 5.0, 7)
    model = build(None, {"b": schedule}, weighting=rule)
    values = {name: value.astype("float64") for name, value in weights_of(model).items()}
    by_hand, expected, before = reference.InverseGradient(2, **arguments), [], None
    for step in range(10):
        rows = slice(8 * (step % 5), 8 * (step % 5 + 1))
        given = np.array([1.0, min(1 + 4 * step / 7, 5.0)])
        weights = by_hand.weights * given
        at_z, updates = models.by_hand_step(values, rows, dict(zip("ab", weights, strict=True)))
        lengths = np.linalg.norm(np.reshape(at_z, (2, -1)), axis=1) / weights
        now = np.array([loss_of(values, rows, term) for term in "ab"]), lengths
        updates["trunk_0"], updates["trunk_1"] = models.of_trunk(X[rows], sum(at_z))
        values = {name: values[name] - 0.02 * updates[name] for name in values}
        seen, before = (before, now) if LAG else (now, None)
        if seen is not None:
            by_hand.move(*seen)
        expected.append(by_hand.weights * [1.0, min(1 + 4 * (step + 1) / 7, 5.0)])
    trajectory = Trajectory()
    models.fit(model, 2, [kj.callbacks.JointLossCallback(), trajectory])
    np.testing.assert_allclose(trajectory.weights, expected, rtol=1e-4)
