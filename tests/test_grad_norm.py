"""GradNorm: compared with its formula, alone and in `fit` with gradients reported by layers."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import balanced_models as models
from tests import reference_weighting as reference
from tests.backends import BACKEND
from tests.balanced_models import X, Y, build, weights_of
from tests.comparisons import assert_all_close
from tests.terms import Terms, Trajectory, recorded_losses

LENGTHS = np.array([2.0, 300.0, 0.01])


class Gradients:
    """Terms without a model; tests pass losses and gradient lengths to the rule directly."""

    def __init__(self, rule, count=3, given=None):
        self.terms = Terms(rule, count, given)
        self.layer = kj.layers.GradientBalancer(list(self.terms.weights)[::-1])
        self.layer.build()
        self.steps = 0
        rule.bind_gradients([self.layer])
        rule.start()

    def step(self, losses, lengths):
        """Takes a step with these lengths of the weighted gradients."""
        self.steps += 1
        latest = np.zeros(self.layer.record.latest.shape)
        latest[0, 0] = self.steps
        latest[0, 1] = lengths[::-1]  # In the order of the layer's terms.
        self.layer.record.latest.assign(latest)
        self.terms.step(losses)
        return np.array(self.terms.now())


@pytest.mark.parametrize(("alpha", "scale"), [(0.0, 1.0), (1.5, 1e-6), (1.5, 1e6)])
def test_weights_follow_the_formula(alpha, scale):
    gradients = Gradients(kj.weighting.GradNorm(alpha=alpha))
    expected, weights = reference.GradNorm(3, alpha), np.ones(3)
    for losses in recorded_losses(50):
        expected.move(losses, LENGTHS)
        weights = gradients.step(losses, scale * weights * LENGTHS)
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-4)
    assert np.sum(weights) == pytest.approx(3)


def test_gradient_lengths_converge_to_equality():
    gradients = Gradients(kj.weighting.GradNorm(alpha=0.0, learning_rate=0.2))
    weights = np.ones(3)
    for _ in range(150):
        weights = gradients.step(np.ones(3), weights * LENGTHS)
    np.testing.assert_allclose(weights * LENGTHS / np.mean(weights * LENGTHS), 1, rtol=0.25)


def test_slower_term_gets_the_longer_gradient():
    gradients = Gradients(kj.weighting.GradNorm(), 2)
    gradients.step([4.0, 4.0], [1.0, 1.0])
    weights = gradients.step([4.0, 1.0], [1.0, 1.0])
    assert weights[0] > 1 > weights[1]
    rates = [reading["training_rate"] for reading in gradients.terms.rule.read().values()]
    assert rates == pytest.approx([1.6, 0.4])


def test_term_without_gradient_is_ignored():
    two, three = Gradients(kj.weighting.GradNorm(), 2), Gradients(kj.weighting.GradNorm())
    for losses in recorded_losses(20):
        losses[2] = losses[:2].mean()
        pair = two.step(losses[:2], LENGTHS[:2])
        weights = three.step(losses, [*LENGTHS[:2], 0.0])
    assert pair[0] / pair[1] == pytest.approx(weights[0] / weights[1], rel=0.1)
    assert np.all(np.isfinite(weights))
    assert three.terms.rule.runner.save()["state"][-6, 2] == 0  # Adam took no step for it.


def test_record_is_used_once():
    gradients = Gradients(kj.weighting.GradNorm())
    weights = gradients.step(np.ones(3), LENGTHS)
    gradients.terms.step(np.ones(3))
    np.testing.assert_array_equal(gradients.terms.now(), weights)


def loss_of(values, rows, term):
    trunk = X[rows] @ values["trunk_0"] + values["trunk_1"]
    output = trunk @ values[f"head_{term}_0"] + values[f"head_{term}_1"]
    return np.mean(np.square(output - Y[term][rows]))


@pytest.mark.parametrize("aggregator", [None, "mgda"])
def test_fit_equals_manual_loop(aggregator):
    model = build(aggregator, {"b": 5.0}, weighting=kj.weighting.GradNorm())
    values = {name: value.astype("float64") for name, value in weights_of(model).items()}
    rule, expected, before = reference.GradNorm(2), [], None
    combine = kj.aggregators.get(aggregator or "sum")
    for step in range(10):
        rows = slice(8 * (step % 5), 8 * (step % 5 + 1))
        weights = rule.weights * [1.0, 5.0]
        at_z, updates = models.by_hand_step(values, rows, dict(zip("ab", weights, strict=True)))
        lengths = np.linalg.norm(np.reshape(at_z, (2, -1)), axis=1)
        losses = np.array([loss_of(values, rows, term) for term in "ab"])
        combined = ops.convert_to_numpy(combine(np.reshape(at_z, (2, -1)))).reshape(at_z[0].shape)
        updates["trunk_0"], updates["trunk_1"] = models.of_trunk(X[rows], combined)
        values = {name: values[name] - 0.02 * updates[name] for name in values}
        # On JAX, the rule sees the lengths of the previous step.
        lengths, before = (before, lengths) if BACKEND == "jax" else (lengths, None)
        if lengths is None:
            rule.initial = losses
        else:
            rule.move(losses, lengths / rule.weights)
        expected.append(rule.weights * [1.0, 5.0])
    trajectory = Trajectory()
    history = models.fit(model, 2, [kj.callbacks.JointLossCallback(), trajectory]).history
    np.testing.assert_allclose(trajectory.weights, expected, rtol=1e-4)
    assert_all_close(weights_of(model), values, 2e-3, 2e-4)
    assert history["a_weight"][-1] == pytest.approx(expected[-1][0], rel=1e-4)
    assert history["a_training_rate"][-1] > 0


def test_rule_without_a_layer_is_refused():
    terms = Terms(kj.weighting.GradNorm(), 2)
    terms.rule.start()
    with pytest.raises(RuntimeError, match="GradNorm works only in a model with a layer"):
        terms.step([1.0, 2.0])


def test_model_without_gradient_telemetry_is_refused():
    def compiled(terms, telemetry=True):
        inputs = keras.Input((5,))
        z = {"a": inputs, "b": inputs}
        if terms:
            z |= kj.layers.GradientBalancer(terms, telemetry=telemetry)(inputs)
        model = keras.Model(inputs, {name: keras.layers.Dense(1)(z[name]) for name in "ab"})
        model.compile("sgd", **kj.joint_loss(models.LOSSES, weighting="gradnorm"))
        return model

    for terms, telemetry in (([], True), (["a"], True), (["a", "b"], False)):
        with pytest.raises(ValueError, match=r"GradNorm expects a layer.*\['a', 'b'\].*Received"):
            kj.callbacks.JointLossCallback().set_model(compiled(terms, telemetry))


@pytest.mark.filterwarnings("ignore:The layer 'shared' has recorded no gradients")
def test_layer_without_gradients_is_refused():
    inputs = keras.Input((5,))
    trunk = keras.layers.Dense(4, trainable=False)
    layer = kj.layers.SharedTrunk(trunk, ["a", "b"], name="shared")
    model = models.with_heads(inputs, layer(inputs), weighting="grad_norm")
    with pytest.raises(RuntimeError, match="no gradient has reached the layer 'shared'"):
        models.train(model)
