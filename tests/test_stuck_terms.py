"""Terms that stand still: the judgement of losses and gradients, alone and in `fit`."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.callbacks.joint._stuck_terms import StuckTerm, stuck_terms
from tests.callbacks import Evaluates
from tests.small_models import X, fit, linear

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("steps", "holds"),
    [
        ([(2.5, 8)] * 4, True),
        ([(0.0, 8)] * 4, True),
        ([(2.079, 8), (2.079, 8), (1.386, 4)], True),  # log(batch)
        ([(2.5, 8), (1.5, 4), (2.5, 8), (1.5, 4)], False),  # Not comparable.
        ([(2.5, 8)], False),
        ([(0.0, 8), (0.0, 8), (0.3, 8)], False),
        ([(0.3, 8), (0.0, 8), (0.0, 8)], False),
        ([(4.158883, 8), (4.158884, 8), (4.158883, 8)], True),  # Rounding.
        ([(4.158883, 8), (4.158884, 8), (4.158883, 8), (0.0, 0)], True),
        ([(4.1588, 8), (4.1589, 8), (4.1588, 8)], False),
        ([(0.7, 3), (0.0, 0), (0.0, 0), (0.6, 3)], False),
        ([(0.0, 0), (0.0, 0), (0.6, 3)], False),
        ([(NAN, 8), (NAN, 8)], False),
        ([(INF, 8), (INF, 8)], False),
    ],
)
def test_constancy_holds_if_no_comparable_step_differs(steps, holds):
    weight = kj.LossWeight()
    for loss, items in steps:
        weight.record(ops.convert_to_tensor(loss, dtype="float32"), items)
    assert weight.recorded.stands_still == holds
    weight.reset()
    assert not weight.recorded.stands_still


def test_steps_whose_items_do_not_count_are_not_compared():
    weight, zero = kj.LossWeight(), ops.convert_to_tensor(0.0)
    for _ in range(3):
        weight.record(zero, 8, counts=ops.convert_to_tensor(False))
        weight.record(zero, 0)
    assert not weight.recorded.stands_still
    assert not weight.recorded.has_counted
    weight.record(zero, 8, counts=ops.convert_to_tensor(True))
    assert weight.recorded.has_counted


def test_judgement_names_terms_and_reasons():
    losses = {"fine": 1.0, "still": 2.0, "detached": 3.0, "solved": 0.0, "bad": NAN, "dice": 1.0}
    zero = [("layer", name) for name in ("still", "detached", "solved", "mask", "unknown")]
    found = stuck_terms(
        losses, {"still", "bad"}, zero, {"mask": ["dice"], **{x: [x] for x in losses}}
    )
    assert found == [
        StuckTerm("still", 2.0),
        StuckTerm("detached", 3.0, "layer"),
        StuckTerm("mask", 1.0, "layer"),
    ]


def constant(y_true, y_pred):
    return 0 * y_pred[:, 0] + 2.5


def test_constant_losses_are_reported_once_but_not_those_that_are_meant(recwarn):
    inputs = keras.Input((5,))
    bias = keras.initializers.Constant(-99)
    dead = keras.layers.Dense(4, activation="relu", bias_initializer=bias)
    views = dead(inputs), dead(2 * inputs)
    x = ops.concatenate([*kj.layers.ContrastiveTerm("InfoNCE", name="dead")(views), inputs], axis=1)
    x = kj.layers.LossTerm(floor=99.0, name="floor")(x, ops.square(x))
    names = ("moves", "still", "off", "later", "unlabelled", "weightless")
    model = keras.Model(inputs, {name: keras.layers.Dense(1)(x) for name in names})
    losses = {name: "mse" if name == "moves" else constant for name in names}
    weights = {"off": 0.0, "later": kj.schedules.Linear(0.0, 1.0, 4)}
    model.compile("sgd", **kj.joint_loss(losses, weights, missing={"unlabelled": NAN}))
    y = {name: np.where(name == "unlabelled", NAN, X[:, :1]) for name in names}
    sample_weight = {name: np.full(len(X), float(name != "weightless")) for name in names}
    fit(model, y=y, sample_weight=sample_weight, batch_size=12, epochs=3)
    found = [str(x.message) for x in recwarn if "did not change" in str(x.message)]
    assert sorted(message.split(", although")[0] for message in found) == [
        f"The loss of the term '{term}' did not change from step to step in epoch {epoch}, in "
        f"which its mean was {mean}"
        for term, epoch, mean in (("dead", 0, 2.37505), ("later", 1, 2.5), ("still", 0, 2.5))
    ]


def test_epoch_of_one_batch_reports_nothing():
    model = linear()
    model.compile("sgd", **kj.joint_loss({"a": constant}))
    fit(model, y={"a": X[:, :1]}, batch_size=len(X), epochs=2)


def full_batches(optimizer, loss="mse", epochs=1):
    """Trains on the same batch four times an epoch."""
    keras.utils.set_random_seed(0)
    model = linear()
    model.compile(optimizer, **kj.joint_loss({"a": loss}))
    x = np.tile(X, (4, 1))
    fit(model, y={"a": x[:, :1]}, x=x, batch_size=len(X), epochs=epochs)


def test_epochs_in_which_no_step_sees_an_update_report_nothing():
    full_batches(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), epochs=2)
    with pytest.warns(UserWarning, match="'a' did not change from step to step in epoch 0"):
        full_batches(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), constant)


def test_standing_still_at_the_end_of_a_schedule_reports_nothing():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 2)
    full_batches(keras.optimizers.SGD(schedule), constant, epochs=2)


def test_loss_that_has_converged_on_its_batch_is_not_said_to_be_broken():
    with pytest.warns(UserWarning, match="did not change.* converged on a batch") as caught:
        full_batches(keras.optimizers.SGD(0.0001), constant)
    assert not any("does not train" in str(x.message) for x in caught)


def test_evaluation_in_the_middle_leaves_the_epoch_unjudged():
    def zero_at_first(y_true, y_pred):
        return ops.mean(y_true * ops.square(y_pred), axis=-1)

    model = linear()
    model.compile("sgd", **kj.joint_loss({"a": zero_at_first}))
    y = {"a": np.where(np.arange(len(X)) < 20, 0.0, 1.0)[:, None]}
    evaluates = Evaluates(X[:8], {"a": X[:8, :1]}, batch=1)
    fit(model, [kj.callbacks.JointLossCallback(), evaluates], y)


def balanced(optimizer, loss_weights=None, loss="mse"):
    """Trains with zeros in the heads, in four batches."""
    inputs = keras.Input((5,))
    z = kj.layers.GradientBalancer(["a", "b"], "pcgrad", name="bal")(inputs)
    heads = {name: keras.layers.Dense(1, kernel_initializer="zeros")(z[name]) for name in "ab"}
    model = keras.Model(inputs, heads)
    model.compile(optimizer, **kj.joint_loss({"a": loss, "b": "mse"}, loss_weights))
    fit(model, y={"a": X[:, :1], "b": X[:, 1:2]}, epochs=2)


@pytest.mark.parametrize(("steps", "weights"), [(4, None), (None, {"a": 1e-30})])
def test_gradient_before_an_update_or_too_small_to_measure_reports_nothing(steps, weights):
    balanced(keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps), weights)


def detached(y_true, y_pred):
    return ops.mean(ops.square(y_true - ops.stop_gradient(y_pred)) + 0 * y_pred, axis=-1)


def test_gradient_of_0_after_an_update_is_reported_under_accumulation():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    with pytest.warns(UserWarning, match="'a' at the layer 'bal' was 0 in every step of epoch 1"):
        balanced(optimizer, loss=detached)
