"""What `kj.probe` names: planted faults, each by its kind, and none in a healthy model."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import values_only

ITEMS = 512


def data(seed=0):
    """Returns inputs, and the targets of two related tasks."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(ITEMS, 6)).astype("float32")
    first = np.tanh(x @ generator.normal(size=(6, 2)) / 2)
    second = np.tanh(np.concatenate([first, x[:, :2]], 1) @ generator.normal(size=(4, 1)))
    return x, {"a": first.astype("float32"), "b": second.astype("float32")}


def model_of(outputs, inputs, losses=None, weights=None):
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(losses or dict.fromkeys(outputs, "mean_squared_error"), weights)
    model.compile(keras.optimizers.Adam(0.01), **joint)
    return model


def trunk(seed=0, units=16):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="x")
    return inputs, keras.layers.Dense(units, activation="relu", name="trunk")(inputs)


def heads(hidden, of_b=None):
    return {
        "a": keras.layers.Dense(2, name="a")(hidden),
        "b": keras.layers.Dense(1, name="b")(hidden if of_b is None else of_b),
    }


def probe(model, x, y, **options):
    return kj.probe(model, x, y, **{"batch_size": 32, "verbose": 0, **options})


def kinds(found):
    return [(x.term, x.kind) for x in found.faults]


@values_only
def test_healthy_model_has_no_fault_over_20_seeds():
    alarms = []
    for seed in range(20):
        x, y = data(seed)
        inputs, hidden = trunk(seed)
        alarms += [(seed, *x) for x in kinds(probe(model_of(heads(hidden), inputs), x, y))]
    assert alarms == []


def test_term_on_detached_features_is_named():
    x, y = data()
    inputs, hidden = trunk()
    stopped = keras.layers.Lambda(ops.stop_gradient, output_shape=(16,))(hidden)
    found = probe(model_of(heads(hidden, stopped), inputs), x, y, warmup_epochs=0)
    assert kinds(found) == [("b", "detached")]
    assert "trunk" in found.faults[0].text
    assert found.advice[0].text.startswith("Mend this first")
    assert found.layers["b"] == ["b"]


def test_term_that_reaches_nothing_is_named():
    x, y = data()
    inputs, hidden = trunk()
    stopped = keras.layers.Lambda(ops.stop_gradient, output_shape=(16,))(hidden)
    hidden = kj.layers.LossTerm(name="size")(hidden, ops.square(stopped))
    found = probe(model_of(heads(hidden), inputs), x, y, warmup_epochs=0)
    assert kinds(found) == [("size", "unreached")]
    with pytest.raises(ValueError, match=r"argument `shares`.*'size'"):
        found.weights()
    assert set(found.weights(shares={"a": 1, "b": 1})) == {"a", "b"}


@values_only
def test_constant_and_infinite_losses_are_named():
    x, y = data()
    inputs, hidden = trunk()
    losses = {
        "a": lambda y_true, y_pred: ops.zeros_like(y_pred[:, 0]) + 3.0,
        "b": lambda y_true, y_pred: ops.log(ops.zeros_like(y_pred[:, 0])) * y_pred[:, 0],
    }
    found = probe(model_of(heads(hidden), inputs, losses), x, y, warmup_epochs=0)
    assert kinds(found)[:2] == [("a", "constant"), ("b", "not_finite")]


@values_only
def test_term_whose_gradient_is_0_is_named():
    x, y = data()
    inputs, hidden = trunk()
    losses = {"a": "mse", "b": lambda y_true, y_pred: ops.mean(y_true**2 + 0 * y_pred, axis=-1)}
    found = probe(model_of(heads(hidden), inputs, losses), x, y, warmup_epochs=0)
    assert kinds(found) == [("b", "zero_gradient")]


@values_only
def test_opposed_tasks_conflict():
    x, y = data()
    inputs, hidden = trunk(units=2)
    y = {"a": y["a"], "b": -y["a"]}
    shared = keras.layers.Dense(2, name="head")(hidden)
    outputs = {name: keras.layers.Identity(name=name)(shared) for name in "ab"}
    found = probe(model_of(outputs, inputs), x, y, warmup_epochs=5)
    assert kinds(found) == []
    assert found.conflicts == [("a", "b")]
    assert found.conflict["a", "b"] > 0.9
    (advice,) = [x for x in found.advice if x.guide == "conflicts"]
    assert advice.text.startswith("'a' and 'b' conflict")
    assert "SharedTrunk" in advice.text
    assert "(guide: examples/guides/conflicts.py)" in str(found)


@values_only
def test_related_tasks_do_not_conflict():
    x, y = data()
    y["b"] = y["a"][:, :1]
    inputs, hidden = trunk()
    found = probe(model_of(heads(hidden), inputs), x, y)
    assert found.conflicts == []


@values_only
def test_noise_is_named():
    x, y = data()
    inputs, hidden = trunk()
    y["b"] = np.random.default_rng(9).choice([-1.0, 1.0], size=(ITEMS, 1)).astype("float32")
    found = probe(model_of(heads(hidden), inputs), x, y, warmup_epochs=2)
    assert kinds(found) == [("b", "noise")]
    assert found.noise["b"] > 3 > found.noise["a"]
    # Its mean has been learned, as that of a term may that has more to learn.
    assert found.advice[0].text.startswith("After the warm-up the gradient of 'b' deviates")
    y["b"] = 1e3 * np.random.default_rng(9).normal(size=(ITEMS, 1)).astype("float32")
    untrained = probe(model_of(heads(hidden), inputs), x, y, warmup_epochs=0)
    assert ("b", "noise") in kinds(untrained)
    assert "No weight helps 'b'" in untrained.advice[0].text


@values_only
def test_sizes_of_1_to_10000_are_named():
    x, y = data()
    inputs, hidden = trunk()
    y["b"] = 100 * y["b"]
    found = probe(model_of(heads(hidden), inputs), x, y)
    assert kinds(found) == [("a", "below_one_percent")]
    weights = found.weights("loss")
    assert weights["a"] > 100 * weights["b"]
    assert "constants" in found.advice[-1].text
    assert "'a': " in found.advice[-1].text


@values_only
def test_head_that_reads_another_output_is_named():
    x, y = data()
    inputs, hidden = trunk()
    a = keras.layers.Dense(2, name="a")(hidden)
    outputs = {"a": a, "b": keras.layers.Dense(1, name="b")(a)}
    found = probe(model_of(outputs, inputs), x, y, warmup_epochs=0)
    assert kinds(found) == [("b", "reads_other_output")]


@values_only
def test_head_that_reads_the_wrong_tower_is_named():
    x, y = data()
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((3,), name=name) for name in ("image", "text")]
    hidden = keras.layers.Dense(8, activation="relu")(inputs[0])
    keras.layers.Dense(8, activation="relu")(inputs[1])
    found = probe(model_of(heads(hidden), inputs), [x[:, :3], x[:, 3:]], y)
    assert (None, "unread_input") in kinds(found)
    assert "'text'" in found.faults[0].text


@values_only
def test_outputs_of_one_tensor_are_named():
    x, y = data()
    inputs, hidden = trunk()
    shared = keras.layers.Dense(1)(hidden)
    model = model_of({"a": shared, "b": shared}, inputs)
    found = probe(model, x, {"a": y["b"], "b": y["b"]}, warmup_epochs=0)
    assert kinds(found) == [("b", "same_output")]


@values_only
def test_layers_that_no_term_reaches_are_named_in_a_subclass():
    class Towers(keras.Model):
        def __init__(self):
            super().__init__()
            self.image = keras.layers.Dense(4, name="image")
            self.text = keras.layers.Dense(4, name="text")
            self.own = {name: keras.layers.Dense(1, name=name) for name in "ab"}
            self.a, self.b = self.own.values()

        def call(self, x):
            image, _ = self.image(x), self.text(x)
            return {"a": self.a(image), "b": self.b(image)}

    keras.utils.set_random_seed(0)
    x, y = data()
    model = Towers()
    model.compile("adam", **kj.joint_loss(dict.fromkeys("ab", "mse")))
    with pytest.raises(ValueError, match="is built"):
        probe(model, x, {"a": y["b"], "b": y["b"]})
    model(x[:1])
    found = probe(model, x, {"a": y["b"], "b": y["b"]}, warmup_epochs=0)
    assert found.layers == {"a": ["image", "a"], "b": ["image", "b"]}
    assert [x.kind for x in found.faults] == []  # A class of a user may add losses.


@pytest.mark.backend("jax")  # Where a balancer has a variable of its own, which no term trains.
def test_balancer_without_conflict_is_named():
    x, y = data()
    y["b"] = y["a"][:, :1]
    inputs, hidden = trunk()
    z = kj.layers.GradientBalancer(["a", "b"], "pcgrad", name="balancer")(hidden)
    outputs = {
        "a": keras.layers.Dense(2, name="a")(z["a"]),
        "b": keras.layers.Dense(1, name="b")(z["b"]),
    }
    found = probe(model_of(outputs, inputs), x, y)
    assert kinds(found) == [(None, "balancer_without_conflict")]
    assert "'balancer'" in found.faults[0].text
    assert "PCGrad" in found.faults[0].text


@values_only
def test_term_that_shares_nothing_is_named():
    x, y = data()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    outputs = {
        name: keras.layers.Dense(size, name=name)(keras.layers.Dense(4)(inputs))
        for name, size in (("a", 2), ("b", 1))
    }
    found = probe(model_of(outputs, inputs), x, y, warmup_epochs=0)
    assert kinds(found) == [("a", "shares_nothing"), ("b", "shares_nothing")]
    assert dict(found.cosine) == {}
    assert "pairs" not in str(found).splitlines()


@values_only
def test_term_without_a_weight_is_measured_and_has_no_proposal():
    x, y = data()
    inputs, hidden = trunk()
    found = probe(model_of(heads(hidden), inputs, weights={"b": 0.0}), x, y)
    assert found.norm["b"] > 0
    assert set(found.weights()) == {"a"}
    assert kinds(found) == []
