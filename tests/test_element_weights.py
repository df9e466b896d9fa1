"""Sample weights of the elements of targets."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.terms import TermLoss
from tests.backends import once_compiled, values_only
from tests.comparisons import assert_all_close
from tests.gradients import value_and_gradient
from tests.small_models import X, fit, linear
from tests.test_replicas import assert_like_one_device

GENERATOR = np.random.default_rng(4)
SHAPE = (6, 3)
Y_TRUE = GENERATOR.uniform(0.1, 0.9, SHAPE)
Y_PRED = GENERATOR.uniform(0.1, 0.9, SHAPE)
WEIGHT = GENERATOR.uniform(0.0, 2.0, SHAPE) * (GENERATOR.random(SHAPE) < 0.7)
WEIGHT[2] = 0.0
LABELLED = GENERATOR.random(SHAPE) < 0.6
# Loss of an element and its derivative by the prediction.
ELEMENTS = {
    "mse": (lambda t, p: (p - t) ** 2, lambda t, p: 2 * (p - t)),
    "binary_crossentropy": (
        lambda t, p: -t * np.log(p) - (1 - t) * np.log(1 - p),
        lambda t, p: (p - t) / (p * (1 - p)),
    ),
    "own": (lambda t, p: np.abs(p - t), lambda t, p: np.sign(p - t)),
}


def own(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


def term(loss, reduction, missing=None):
    kinds = {"mse": keras.losses.MeanSquaredError}
    kinds["binary_crossentropy"] = keras.losses.BinaryCrossentropy
    loss = own if loss == "own" else kinds[loss](reduction=reduction)
    return TermLoss(loss, kj.LossWeight(), "term", missing=missing)


@pytest.mark.parametrize("missing", [None, float("nan")], ids=["complete", "missing"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
@pytest.mark.parametrize("loss", ELEMENTS)
def test_loss_and_gradient_equal_weights_by_hand(loss, reduction, missing):
    if loss == "own" and reduction != "sum_over_batch_size":
        pytest.skip("a function has no reduction of its own")
    counted = np.ones(SHAPE) if missing is None else LABELLED.astype(float)
    value, derivative = ELEMENTS[loss]
    divisor = {"sum": SHAPE[1], "mean_with_sample_weight": np.sum(WEIGHT * counted)}.get(
        reduction, np.sum(counted)
    )
    scale = WEIGHT * counted / divisor
    y_true = np.where(counted > 0, Y_TRUE, np.nan).astype("float32")
    weight, y_pred = WEIGHT.astype("float32"), Y_PRED.astype("float32")
    tested = term(loss, reduction, missing)
    found, gradient = value_and_gradient(lambda p: tested(y_true, p, weight), y_pred)
    assert found == pytest.approx(np.sum(scale * value(Y_TRUE, Y_PRED)), 1e-5)
    np.testing.assert_allclose(gradient, scale * derivative(Y_TRUE, Y_PRED), rtol=1e-4, atol=1e-6)


@once_compiled
@pytest.mark.parametrize("missing", [None, -1.0])
def test_training_of_sequences_equals_weights_by_hand(missing):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    outputs = keras.layers.Reshape((4, 3))(keras.layers.Dense(12, use_bias=False)(inputs))
    model = keras.Model(inputs, {"a": outputs})
    kernel = model.get_weights()[0].astype("float64")
    y = GENERATOR.normal(size=(len(X), 4, 3)).astype("float32")
    weight = GENERATOR.uniform(0, 2, (len(X), 4, 3)).astype("float32")
    counted = np.ones(weight.shape)
    if missing is not None:
        y[::3, 1] = missing
        counted[::3, 1] = 0
    joint = kj.joint_loss({"a": ["mse", "mae"]}, missing=missing)
    model.compile(keras.optimizers.SGD(0.5), **joint)
    history = fit(model, y={"a": y}, sample_weight={"a": weight}, batch_size=len(X))
    error = (X.astype("float64") @ kernel).reshape(weight.shape) - y
    scale = weight * counted / counted.sum()
    assert history["a_mse_loss"] == pytest.approx([np.sum(scale * error**2)], 1e-5)
    assert history["a_mae_loss"] == pytest.approx([np.sum(scale * np.abs(error))], 1e-5)
    gradient = X.T @ (scale * (2 * error + np.sign(error))).reshape(len(X), 12)
    assert_all_close(model.get_weights(), [kernel - 0.5 * gradient], 1e-4, 1e-5)


@values_only
def test_weighted_metrics_of_missing_targets_take_weights_of_elements():
    metric = kj.terms.LabelledMetric("mse", float("nan"))
    metric.update_state(np.where(LABELLED, Y_TRUE, np.nan), Y_PRED, WEIGHT)
    scale = WEIGHT * LABELLED
    expected = np.sum(scale * (Y_TRUE - Y_PRED) ** 2) / np.sum(scale)
    assert float(metric.result()) == pytest.approx(expected, 1e-5)


@values_only
def test_batch_whose_labelled_elements_weigh_nothing_moves_no_rule():
    tested = term("mse", "sum_over_batch_size", float("nan"))
    labelled = np.zeros(SHAPE, bool)
    labelled[:, 0] = True
    y_true = np.where(labelled, Y_TRUE, np.nan).astype("float32")
    has_weight = tested._labelled.has_weight
    assert not bool(has_weight(y_true, Y_PRED, 1.0 - labelled))
    assert bool(has_weight(y_true, Y_PRED, 1.0 * labelled))


@values_only
@pytest.mark.parametrize("missing", [None, -1.0])
@pytest.mark.parametrize("loss", ["categorical_crossentropy", keras.losses.CosineSimilarity()])
def test_losses_of_rows_refuse_weights_of_elements(loss, missing):
    tested = TermLoss(loss, kj.LossWeight(), "label", missing=missing)
    with pytest.raises(ValueError, match=r"one weight for each value.*mean over the last axis"):
        tested(Y_TRUE, Y_PRED, np.ones(SHAPE))


@values_only
def test_targets_that_do_not_correspond_to_weighted_elements_are_refused():
    tested = TermLoss("mse", kj.LossWeight())
    with pytest.raises(ValueError, match=r"a target for each prediction.*\(6,\).*\(6, 2, 3\)"):
        tested(np.zeros(6), np.zeros((6, 2, 3)), np.ones((6, 2, 3)))


@values_only
def test_loss_of_each_element_is_left_to_keras():
    tested = TermLoss(lambda y_true, y_pred: ops.abs(y_true - y_pred), kj.LossWeight())
    expected = np.mean(WEIGHT * np.abs(Y_TRUE - Y_PRED))
    assert float(tested(Y_TRUE, Y_PRED, WEIGHT)) == pytest.approx(expected, 1e-5)


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
def test_replicas_train_like_one_device(reduction):
    def make():
        loss = keras.losses.MeanSquaredError(reduction=reduction)
        return linear(units=3), kj.joint_loss({"a": loss}, weighting="uncertainty")

    y = GENERATOR.normal(size=(37, 3))
    part = X[:37], {"a": y}, {"a": GENERATOR.uniform(0, 2, (37, 3))}
    # Keras' own logs count unequal replicas alike.
    assert_like_one_device(make, [part], r" (a_)?loss$|_share")
