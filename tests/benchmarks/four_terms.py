"""A model with four terms, for the benchmarks of weights."""

import keras
import numpy as np
from keras.optimizers.schedules import PolynomialDecay

import keras_jointloss as kj


def four_terms(width, steps=100, batch_size=32, layers=1):
    """Returns data, losses, and a function that compiles a model with four heads."""
    names = ["a", "b", "c", "d"]
    generator = np.random.default_rng(0)
    x = generator.normal(size=(steps * batch_size, 64)).astype("float32")
    y = {name: x[:, 4 * i : 4 * i + 4] for i, name in enumerate(names)}
    losses = dict.fromkeys(names, "mean_squared_error")

    def compiled(**arguments):
        inputs = hidden = keras.Input((64,))
        for _ in range(layers):
            hidden = keras.layers.Dense(width, activation="relu")(hidden)
        model = keras.Model(inputs, {name: keras.layers.Dense(4)(hidden) for name in names})
        model.compile("adam", **arguments)
        return model

    return x, y, losses, compiled


def annealed_weights(names):
    """Returns a schedule for each of four names."""
    schedules = [
        PolynomialDecay(1.0, 5000, 0.1),
        kj.schedules.Linear(0.0, 1.0, steps=5000),
        kj.schedules.Sigmoid(0.0, 1.0, midpoint=2000, width=500),
        kj.schedules.Cyclical(0.0, 1.0, cycle_steps=500),
    ]
    return dict(zip(names, schedules, strict=True))


def with_gaps(targets):
    """Returns which items are labelled, and the targets with NaN for the others."""
    is_labelled = np.random.default_rng(1).random(len(targets["a"])) < 0.5
    gap = np.float32(np.nan)
    return is_labelled, {
        name: np.where(is_labelled[:, None], targets[name], gap) for name in targets
    }
