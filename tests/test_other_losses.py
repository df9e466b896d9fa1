"""What layers and regularizers add to the loss without being a term, by layer."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core.keras import flatten_layers
from keras_jointloss.callbacks import JointLossCallback
from keras_jointloss.joint.other_losses import OtherLosses
from keras_jointloss.layers._layer_term import LayerTerm
from tests.backends import once_compiled
from tests.callbacks import Evaluates, Records, train_in_a_loop
from tests.small_models import Penalty, X, Y, compiled, copies_of, fit, ramp
from tests.test_training import replicas

TARGETS = {"a": Y["a"]}
L2 = keras.regularizers.L2


class Experts(keras.layers.Layer):
    """A mixture of experts with the loss of Switch Transformers, which balances its router."""

    def __init__(self, count, **options):
        super().__init__(**options)
        self.router = keras.layers.Dense(count, activation="softmax")
        self.experts = [keras.layers.Dense(5, kernel_regularizer=L2(0.01)) for _ in range(count)]

    def call(self, x):
        gates = self.router(x)
        chosen = ops.one_hot(ops.argmax(gates, axis=-1), len(self.experts))
        balance = ops.sum(ops.mean(chosen, axis=0) * ops.mean(gates, axis=0))
        self.add_loss(0.1 * len(self.experts) * balance)
        return sum(gates[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


def nested(policy=None, run_eagerly=None):
    """Returns a model with layers of the same name, a nested model and a layer term."""
    keras.utils.set_random_seed(1)
    inner_inputs = keras.Input((5,))
    active = keras.layers.Dense(5, activity_regularizer=L2(0.1), name="dense")
    inner = keras.Model(inner_inputs, active(Experts(2, name="moe")(inner_inputs)), name="inner")
    inputs = keras.Input((5,))
    options = {"kernel_regularizer": "l2", "bias_regularizer": "l1", "dtype": policy}
    hidden = keras.layers.Dense(5, name="dense", **options)
    a, b = Penalty(name="penalty")(hidden(inputs)), keras.layers.Dense(5, name="plain")(inputs)
    _, b = kj.layers.ContrastiveTerm("MeanSquaredError", weight=ramp(), name="pair")((a, b))
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(inner(a) + b)})
    arguments = kj.joint_loss({"a": "mse"}, {"a": 0.5})
    model.compile(keras.optimizers.SGD(0.05), **arguments, run_eagerly=run_eagerly)
    return model


PARTS = {"other/dense", "other/penalty", "other/moe", "other/inner/dense"}


def assert_parts_add_up(history, terms, rel=1e-4):
    """Asserts that the terms and the losses by layer add up to the loss of each epoch."""
    for prefix in ("", "val_") if "val_loss" in history else ("",):
        total = np.array(history[f"{prefix}loss"])
        shares = sum(np.array(history[f"{prefix}{term}_share"]) for term in terms)
        others = {
            key: np.array(x) for key, x in history.items() if key.startswith(f"{prefix}other/")
        }
        assert others
        assert sum(others.values()) == pytest.approx(total * (1 - shares), rel=rel)


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["compiled", "eager"])
def test_parts_of_other_add_up_in_training_and_validation(tmp_path, run_eagerly):
    model, records = nested(run_eagerly=run_eagerly), Records()
    callback = JointLossCallback(tmp_path, update_freq=2, on_log=records)
    options = {"validation_data": (X[:25], {"a": Y["a"][:25]}), "batch_size": 16, "epochs": 2}
    history = fit(model, [callback], TARGETS, **options)
    assert {x.removesuffix("_loss") for x in history if x.startswith("other/")} == PARTS
    assert_parts_add_up(history, ("a", "pair"))
    for run in records.tags.values():
        for step, other in run["joint_loss/other"].items():
            found = [run[f"joint_loss/{x}/weighted"][step] for x in PARTS]
            assert sum(found) == pytest.approx(other, rel=1e-4)
            shares = [run[f"joint_loss/{x}/share"][step] for x in (*PARTS, "a", "pair")]
            assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    # After the last update, nothing moves any more.
    kernel, bias = model.get_layer("dense").get_weights()
    expected = 0.01 * np.sum(kernel**2) + 0.01 * np.sum(abs(bias))
    assert history["val_other/dense_loss"][-1] == pytest.approx(expected, rel=1e-5)
    x = ops.convert_to_numpy(model.get_layer("dense")(X[:25]))
    first, second = np.mean(x[:16] ** 2), np.mean(x[16:] ** 2)
    penalty = 0.1 * (16 * first + 9 * second) / 25
    assert history["val_other/penalty_loss"][-1] == pytest.approx(penalty, rel=1e-5)

    lines = [line.split() for line in str(kj.report(history)).splitlines()]
    assert [x[0] for x in lines[2:]] == ["a", "pair", "other", *_in_order(history), "total"]
    assert str(callback.summary()) == str(kj.report(history))
    for source in (history, tmp_path):
        figure = kj.plot(source, splits=("validation",))
        assert {x.name for x in figure.data} == {*PARTS, "a", "pair", "total"}
        areas = sum(x.y[-1] for x in figure.data if x.name != "total")
        assert areas == pytest.approx(history["val_loss"][-1], rel=1e-5)


def _in_order(history):
    return [x.removesuffix("_loss") for x in history if x.startswith("other/")]


@pytest.mark.backend("jax")
def test_losses_of_past_steps_are_forgotten():
    # Python gives the identity of a loss that is gone to a new one, which Keras would then drop.
    model = nested()
    fit(model, y=TARGETS, validation_data=(X, TARGETS))
    assert not any(x._loss_ids for x in flatten_layers(model) if not isinstance(x, LayerTerm))


@pytest.mark.backend("jax")
def test_term_does_not_take_a_new_loss_for_its_last_one():
    class Takes(keras.layers.Layer):
        """Keeps its loss where the last one of the term was, as Python may."""

        def call(self, x):
            self.add_loss(0.1 * ops.mean(x**2))
            term._loss_ids.update(self._loss_ids)
            return x

    term = kj.layers.ContrastiveTerm("MeanSquaredError", name="pair")
    x = keras.Input((5,))
    model = keras.Model(x, term((Takes()(x), keras.layers.Dense(5, kernel_initializer="zeros")(x))))
    model.compile("sgd")
    expected = 0.1 * np.mean(X**2) + np.mean(X**2)
    assert model.evaluate(X, verbose=0)[0] == pytest.approx(expected, rel=1e-5)


@once_compiled
def test_layer_that_is_called_twice_counts_twice():
    inputs = keras.Input((5,))
    penalty = Penalty(name="penalty")
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(penalty(inputs) + penalty(-inputs))})
    model.compile("sgd", **kj.joint_loss({"a": "mse"}))
    history = fit(model, y=TARGETS)
    assert history["other/penalty_loss"] == [pytest.approx(0.2 * np.mean(X**2), rel=1e-5)]
    assert_parts_add_up(history, ["a"])


def test_term_whose_name_is_like_that_of_a_part_is_a_term():
    logs = {"loss": [2.0], "other/x_loss": [1.0], "other/x_weight": [1.0], "other/x_share": [0.5]}
    report = kj.report({**logs, "other/y_loss": [1.0]})
    assert list(report.runs["train"].terms) == ["other/x"]
    assert report.runs["train"].others == {"other/y": 1.0}
    figure = kj.plot({**logs, "other/y_loss": [1.0]})
    assert {x.name: x.y[-1] for x in figure.data} == {"other/x": 1.0, "other/y": 1.0, "total": 2.0}


class Subclassed(keras.Model):
    """A model that adds a loss itself, and has layers of the same name."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.layers_in_list = [Penalty(name="same"), Penalty(name="same")]
        self.head = keras.layers.Dense(2)

    def call(self, x):
        self.add_loss(0.01 * ops.mean(x**2))
        for layer in self.layers_in_list:
            x = layer(x) * 2.0
        return {"a": self.head(x)}


def test_subclassed_model_with_equal_names():
    model = Subclassed()
    model.compile("sgd", **kj.joint_loss({"a": "mse"}))
    history = fit(model, y=TARGETS)
    square = np.mean(X**2)
    for name, part in {"subclassed": 0.01, "same": 0.1, "same_1": 0.4}.items():
        assert history[f"other/{name}_loss"] == [pytest.approx(part * square, rel=1e-5)]
    assert_parts_add_up(history, ["a"])


@once_compiled
def test_what_no_layer_adds_is_unknown():
    class Custom(keras.Model):
        def compute_loss(self, *args, **options):
            return super().compute_loss(*args, **options) + 3.0

    inputs = keras.Input((5,))
    model = Custom(inputs, {"a": keras.layers.Dense(2, kernel_regularizer=L2(0.1))(inputs)})
    model.compile("sgd", **kj.joint_loss({"a": "mse"}))
    history = fit(model, y=TARGETS)
    unknown = next(x for x in str(kj.report(history)).splitlines() if "other/unknown" in x)
    assert unknown.split()[1] == "3.000"
    drawn = {x.name: x.y[-1] for x in kj.plot(history).data}
    assert drawn["other"] == pytest.approx(3.0, rel=1e-5)


@once_compiled
def test_evaluation_in_the_middle_of_an_epoch_begins_anew():
    evaluates = Evaluates(X[:8], {"a": Y["a"][:8]}, batch=1)
    records = Records()
    joint = JointLossCallback(on_log=records)
    fit(nested(), [joint, evaluates], TARGETS, epochs=2)
    train = records.tags["train"]
    for step, other in train["joint_loss/other"].items():
        found = [train[f"joint_loss/{x}/weighted"][step] for x in PARTS]
        assert sum(found) == pytest.approx(other, rel=1e-4)


@pytest.mark.backend("torch")
def test_evaluation_after_the_last_batch_leaves_parts_unknown():
    model, joint = nested(), JointLossCallback()
    fit(model, [joint], TARGETS)
    evaluates = Evaluates(X[:8], {"a": Y["a"][:8]}, batch=3)
    history = fit(model, [joint, evaluates], TARGETS)
    assert all(np.isnan(history[key][0]) for key in history if key.startswith("other/"))
    assert not joint.summary().runs["train"].others
    assert "other/unknown" not in str(kj.report(history))


@once_compiled
def test_second_training_and_new_compilation_go_on():
    model = nested()
    fit(model, y=TARGETS)
    record = OtherLosses.of(model)
    assert_parts_add_up(fit(model, y=TARGETS), ("a", "pair"))
    assert OtherLosses.of(model) is record  # Nothing is compiled again.
    model.get_layer("dense").trainable = False
    model.compile("sgd", **kj.joint_loss({"a": "mse"}))
    history = fit(model, y=TARGETS)
    assert "other/dense_loss" not in history
    assert_parts_add_up(history, ("a", "pair"))


@once_compiled
def test_loop_of_a_user_reports_parts():
    callback = JointLossCallback()
    list(train_in_a_loop(nested(), callback, X, TARGETS, 10))
    assert set(callback.summary().runs["train"].others) == PARTS


@once_compiled
def test_loaded_model_and_clone_record_anew(tmp_path):
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(5, kernel_regularizer="l2", name="hidden")(inputs)
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(Penalty(name="penalty")(hidden))})
    model.compile("sgd", **kj.joint_loss({"a": "mse"}))
    history = fit(model, y=TARGETS)
    with keras.saving.custom_object_scope({"Penalty": Penalty}):
        copies = copies_of(model, tmp_path)
    copies[0].compile("sgd", **kj.joint_loss({"a": "mse"}))
    for copy in copies:
        assert "compute_loss" not in vars(copy)
        found = fit(copy, y=TARGETS)
        assert found.keys() == history.keys()
        assert_parts_add_up(found, ["a"])


def test_model_that_adds_nothing_is_left_alone():
    model = compiled()
    fit(model)
    assert "compute_loss" not in vars(model)
    assert not OtherLosses.of(model).names


@once_compiled
def test_nonfinite_loss_of_a_layer_is_named():
    class Infinite(keras.layers.Layer):
        def call(self, x):
            self.add_loss(ops.log(0.0 * ops.mean(x)))
            return x

    inputs = keras.Input((5,))
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(Infinite(name="broken")(inputs))})
    model.compile("sgd", **kj.joint_loss({"a": "mse"}))
    with pytest.warns(UserWarning, match="The loss of layer 'other/broken' is"):
        fit(model, y=TARGETS)


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_parts_add_up_on_replicas():
    with replicas(2).scope():
        model = nested()
    history = fit(model, y=TARGETS, batch_size=16, validation_data=(X, TARGETS))
    assert_parts_add_up(history, ("a", "pair"))


@once_compiled
def test_parts_add_up_in_mixed_precision():
    assert_parts_add_up(fit(nested("mixed_float16"), y=TARGETS), ("a", "pair"), rel=5e-3)
