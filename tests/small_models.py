"""A small joint model with annealed weights, for tests of the behaviour around `fit`."""

import keras
import numpy as np
from keras import ops

import keras_jointloss as kj

BATCHES = 4  # Per epoch.
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(40, 5)).astype("float32")
Y = {
    "a": GENERATOR.normal(size=(40, 2)).astype("float32"),
    "b": GENERATOR.integers(0, 3, size=(40,)),
}
LOSSES = {"a": "mse", "b": "sparse_categorical_crossentropy"}


class Penalty(keras.layers.Layer):
    """Adds 0.1 times the mean square of its input to the loss, as users do."""

    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


def linear(outputs=("a",), units=1, dim=5):
    """Returns a model with a dense layer for each output."""
    inputs = keras.Input((dim,))
    return keras.Model(inputs, {name: keras.layers.Dense(units)(inputs) for name in outputs})


def copies_of(model, folder):
    """Returns a clone of a model with its weights, and the model from a file."""
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    model.save(folder / "model.keras")
    return clone, keras.models.load_model(folder / "model.keras")


def ramp(steps=10):
    """Returns a schedule that increases by `1 / steps` in each step."""
    return kj.schedules.Linear(0.0, 1.0, steps)


def build(model_class=keras.Model, seed=1):
    """Returns a model with the outputs `"a"` and `"b"`."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    outputs = {
        "a": keras.layers.Dense(2, name="a")(hidden),
        "b": keras.layers.Dense(3, activation="softmax", name="b")(hidden),
    }
    return model_class(inputs, outputs)


def compiled(model=None, optimizer=None, **options):
    """Returns `build()` compiled with a joint loss and a learning rate of 0."""
    model = model or build()
    model.compile(optimizer or keras.optimizers.SGD(0.0), **kj.joint_loss(LOSSES, **options))
    return model


def with_layer_term(weight=None, **options):
    """Returns a model with the output term `"a"` and the layer term `"pair"`, both annealed."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    pair = (keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs))
    a, b = kj.layers.ContrastiveTerm("MeanSquaredError", weight=weight or ramp(), name="pair")(pair)
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(a + b)})
    model.compile(
        keras.optimizers.SGD(0.0), **kj.joint_loss({"a": "mse"}, {"a": ramp()}, **options)
    )
    return model


def fit(model, callbacks=None, y=None, x=X, **options):
    """Returns the history of `fit`, by default with only a `JointLossCallback`."""
    if callbacks is None:
        callbacks = [kj.callbacks.JointLossCallback()]
    if y is None:
        y = {name: Y[name] for name in model.loss}
    options = {"batch_size": 10, "shuffle": False, "verbose": 0, "callbacks": callbacks, **options}
    return model.fit(x, y, **options).history
