"""Layers detect whether the enclosing model trains, whatever `training` they are called with."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import BACKEND, jax
from tests.balanced_models import X, Y
from tests.comparisons import assert_all_close

BATCHES = 5
TERMS = ("a", "b")


def dense(units, seed):
    initializer = keras.initializers.GlorotUniform(seed)
    return keras.layers.Dense(units, kernel_initializer=initializer)


def trunk():
    normalization = keras.layers.BatchNormalization(center=False, scale=False)
    return keras.Sequential([dense(6, 1), normalization, dense(4, 2)])


class Parts(keras.Model):
    """A trunk, a layer that combines gradients, and heads; a subclass has the `call`."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "balancer":
            self.trunk = trunk()
            self.combination = kj.layers.GradientBalancer(TERMS, "mgda")
        else:
            self.combination = kj.layers.SharedTrunk(trunk(), TERMS, "mgda")
        self.heads = {"a": dense(2, 3), "b": dense(1, 4)}

    def outputs_of(self, inputs, **options):
        if self.kind == "balancer":
            inputs, options = self.trunk(inputs, **options), {}
        z = self.combination(inputs, **options)
        return {term: head(z[term]) for term, head in self.heads.items()}


class Frozen(Parts):
    """Has frozen batch normalization, and passes `training=False` to all layers."""

    def call(self, inputs, training=None):
        z = self.trunk(inputs, training=False) if self.kind == "balancer" else inputs
        z = self.combination(z, training=False)
        return {term: head(z[term]) for term, head in self.heads.items()}


class Optional(Parts):
    def call(self, inputs, training=None):
        return self.outputs_of(inputs, training=False)


class InferenceByDefault(Parts):
    def call(self, inputs, training=False):
        return self.outputs_of(inputs, training=False)


class TrainingByDefault(Parts):
    def call(self, inputs, training=True):
        return self.outputs_of(inputs, training=False)


class Without(Parts):
    def call(self, inputs):
        return self.outputs_of(inputs, training=False)


MODELS = [Frozen, Optional, InferenceByDefault, TrainingByDefault, Without]


def functional(kind):
    """Returns the same model, whose batch normalization is frozen by `trainable`."""
    parts = Parts(kind)
    within = parts.trunk if kind == "balancer" else parts.combination.trunk
    within.layers[1].trainable = False
    inputs = keras.Input((5,))
    model = keras.Model(inputs, parts.outputs_of(inputs))
    model.combination = parts.combination
    return model


def trained(model, **options):
    """Returns the weights and statistics after an epoch with validation."""
    model.compile(keras.optimizers.SGD(0.1), **kj.joint_loss(dict.fromkeys(TERMS, "mse")))
    data = {"validation_data": (X, Y), "batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(X, Y, callbacks=[kj.callbacks.JointLossCallback()], **data, **options)
    model.predict(X, verbose=0)
    kernels = [ops.convert_to_numpy(x) for x in model.trainable_variables if x.name == "kernel"]
    return kernels, model.combination.statistics()


def steps_of(layer):
    return int(ops.convert_to_numpy(layer.record.step))


@pytest.mark.parametrize("kind", ["balancer", "trunk"])
def test_subclassed_models_train_like_the_functional_model(kind):
    expected, statistics = trained(functional(kind))
    # The two rules differ, so that it shows if the layer is off.
    assert not np.allclose(statistics.coefficients, 1)
    for model_class in MODELS:
        model = model_class(kind)
        assert_all_close(trained(model), (expected, statistics), 1e-4, 1e-6, model_class.__name__)
        # Neither building the model nor validation nor prediction counts as a step.
        assert steps_of(model.combination) == BATCHES


class Labelling(Optional):
    """Calls itself in each step of training, such as for pseudo labels."""

    if BACKEND == "jax":

        def compute_loss_and_updates(self, trained, others, metrics, x, *args, **options):
            *_, losses = self.stateless_call(trained, others, x, training=False, return_losses=True)
            assert not losses
            return super().compute_loss_and_updates(trained, others, metrics, x, *args, **options)

    else:

        def train_step(self, data):
            self(data[0], training=False)
            assert not self.losses
            return super().train_step(data)


@pytest.mark.parametrize("kind", ["balancer", "trunk"])
def test_call_that_a_step_makes_for_inference_does_not_train(kind):
    model = Labelling(kind)
    assert_all_close(trained(model), trained(Optional(kind)), 1e-5, 1e-6)
    assert steps_of(model.combination) == BATCHES


@pytest.mark.parametrize("training", [True, False])
def test_outermost_call_decides_outside_of_a_loop(training):
    class Opposite(keras.Model):
        def __init__(self):
            super().__init__()
            self.combination = kj.layers.GradientBalancer(TERMS)

        def call(self, inputs, training=None):
            return self.combination(inputs, training=not training)

    model = Opposite()
    x = ops.convert_to_tensor(X.astype("float32"))

    def is_on():
        losses = len(model.losses)
        model.combination._clear_losses()
        return bool(losses)

    model(x, training=training)
    assert is_on() == training
    variables = model.trainable_variables, model.non_trainable_variables
    _, _, losses = model.stateless_call(*variables, x, training=training, return_losses=True)
    assert bool(losses) == training
    for options in ({}, {"training": None}):  # As in Keras, this is inference.
        model(x, **options)
        assert not is_on()
    model.combination(x, training=training)
    assert is_on() == training


def test_call_of_a_model_without_training_argument_can_train():
    model = Without("balancer")
    x = ops.convert_to_tensor(X.astype("float32"))
    model(x)
    assert bool(model.losses) == (BACKEND != "jax")
    model(x, training=False)
    assert not model.losses
    model(x, training=True)
    assert model.losses


@pytest.mark.backend("jax")
def test_jax_warns_of_a_gradient_if_training_is_unknown():
    model = Without("balancer")
    model(X[:1])
    others = model.non_trainable_variables

    def loss(weights):
        outputs, _ = model.stateless_call(weights, others, X)
        return sum(ops.sum(x) for x in outputs.values())

    with pytest.warns(UserWarning, match="cannot know .* an argument `training`"):
        jax.grad(loss)([variable.value for variable in model.trainable_variables])


class Pair(keras.Model):
    """Compares two embeddings; passes `training=False` to the term, or takes no `training`."""

    def __init__(self, **options):
        super().__init__()
        schedule = kj.schedules.Linear(0.0, 1.0, 100)
        self.dense = dense(4, 1)
        self.term = kj.layers.ContrastiveTerm("InfoNCE", schedule, memory_size=32)
        self.penalty = kj.layers.LossTerm(weight=schedule)
        self.options = options

    def call(self, inputs):
        z = self.dense(inputs)
        a, _ = self.term((z, z + 1), **self.options)
        return self.penalty(a, ops.sum(a**2, axis=-1), **self.options)


@pytest.mark.parametrize("options", [{}, {"training": False}])
def test_layer_terms_count_steps_and_fill_their_memory(options):
    model = Pair(**options)
    model.compile(keras.optimizers.SGD(0.0))
    callback = kj.callbacks.JointLossCallback()
    data = {"batch_size": 4, "shuffle": False, "verbose": 0, "callbacks": [callback]}
    model.fit(X[:24], validation_data=(X[24:],), **data)
    assert [float(term.weight) for term in (model.term, model.penalty)] == pytest.approx([0.06] * 2)
    ends = ("memory_views", "memory_valid")
    memory = [x for x in model.term.variables if x.name.endswith(ends)]
    views, valid = map(ops.convert_to_numpy, memory)
    kernel = ops.convert_to_numpy(model.dense.kernel)
    np.testing.assert_allclose(views[:24, 0], X[:24] @ kernel, rtol=1e-4, atol=1e-5)
    assert valid.tolist() == [True] * 24 + [False] * 8


def test_chunked_tower_in_inference_mode_runs_in_chunks_if_the_model_trains(monkeypatch):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.tower = kj.layers.ChunkedTower(trunk(), chunk_size=4)

        def call(self, inputs):
            return self.tower(inputs, training=False)

    module, calls = kj.layers.chunked_tower, []
    for_chunks = module.for_chunks
    monkeypatch.setattr(module, "for_chunks", lambda *x: calls.append(x) or for_chunks(*x))
    model, y = Model(), np.ones((8, 4))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.evaluate(X[:8], y, verbose=0)
    assert not calls
    before = [ops.convert_to_numpy(x) for x in model.variables]
    model.fit(X[:8], y, verbose=0)
    assert calls
    for variable, value in zip(model.variables, before, strict=True):
        is_same = np.array_equal(ops.convert_to_numpy(variable), value)
        assert is_same == (variable.name.startswith("moving") or "seed" in variable.name)
