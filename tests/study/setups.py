"""The set-ups of the study: data, networks and held-out scores.

Models and data come from the examples where these have them. A new set-up is a subclass of `Setup`,
and a member of `SETUPS`.
"""

import functools
from typing import ClassVar

import keras
import numpy as np

import keras_jointloss as kj
from tests.benchmarks.benchmark_weights import import_example
from tests.study.base import CROSS_ENTROPY, Setup, explained, packaged, parts_of
from tests.study.reviews import Reviews


class Digits(Setup):
    """The guide to weighting: the left half of a digit tells the digit and the right half."""

    weights: ClassVar = {"digit": 1.0, "right": 1.0}
    rates: ClassVar = {"adam": 0.006, "momentum": 0.1}
    epochs = 48

    def load(self, seed):
        from sklearn.datasets import load_digits

        images, digits = load_digits(return_X_y=True)
        left, right = np.split((images / 16).reshape(-1, 8, 8).astype("float32"), 2, axis=2)
        left, right = left.reshape(-1, 32), right.reshape(-1, 32)
        # The unseen digits of the guide are those of other writers.
        training, validation = parts_of(1400, seed, 280)
        parts = training, validation, np.arange(1400, len(left))
        return [(left[part], {"digit": digits[part], "right": right[part]}) for part in parts]

    def compiled(self, x, y, weights, weighting, aggregator, optimizer):
        inputs = keras.Input((32,))
        hidden = keras.layers.Dense(32, activation="relu")(inputs)
        z = kj.layers.GradientBalancer(list(self.weights), aggregator)(hidden)
        outputs = {
            "digit": keras.layers.Dense(10, name="digit")(z["digit"]),
            "right": keras.layers.Dense(32, name="right")(z["right"]),
        }
        model = keras.Model(inputs, outputs)
        losses = {"digit": CROSS_ENTROPY, "right": "mean_squared_error"}
        model.compile(optimizer, **kj.joint_loss(losses, weights, weighting))
        return model, model

    def scores(self, model, x, y):
        predicted = model.predict(x, batch_size=1024, verbose=0)
        accuracy = np.mean(predicted["digit"].argmax(axis=1) == y["digit"])
        return {"digit": accuracy, "right half": explained(predicted["right"], y["right"])}


class Emoji(Setup):
    """The example of weighting: the drawing of an emoji tells its category and its meaning."""

    weights: ClassVar = {"category": 1.0, "meaning": 1.0}
    rates: ClassVar = {"adam": 0.003}
    epochs = 24

    def load(self, seed):
        training, test = import_example("explicit_weights").load_emoji_with_targets()
        order, held_out = parts_of(len(training["image"]), seed, 300)
        parts = (training, order), (training, held_out), (test, np.arange(len(test["image"])))
        return [
            (
                emoji["image"][part],
                {"category": emoji["category"][part], "meaning": emoji["target"][part]},
            )
            for emoji, part in parts
        ]

    def compiled(self, x, y, weights, weighting, aggregator, optimizer):
        example = import_example("weighting")
        categories, dim = 1 + int(y["category"].max()), y["meaning"].shape[1]
        model = example.build(x.shape[1:], categories, dim, aggregator)
        losses = {"category": CROSS_ENTROPY, "meaning": "mean_squared_error"}
        model.compile(optimizer, **kj.joint_loss(losses, weights, weighting))
        return model, model

    def scores(self, model, x, y):
        held_out = {"image": x, "category": y["category"], "target": y["meaning"]}
        accuracy, meaning = import_example("weighting").scores(model, held_out)
        return {"category": accuracy, "meaning": meaning}


class MovieLens(Setup):
    """The example of a recommender, with its correction for popular movies."""

    batch_size = 256
    #: A sum over the batch, as in the tutorial that the example follows.
    weights: ClassVar = {"retrieval": float(batch_size), "rating": 1.0}
    rates: ClassVar = {"adam": 0.0015, "adagrad": 0.05}
    epochs = 6

    def load(self, seed):
        example = import_example("movielens")
        ratings = example.load(packaged("MovieLens100k_data.parquet.brotli"))
        self.sizes = {name: ratings[name][[ratings[name].argmax()]] for name in ("user", "movie")}
        training, held_out = example.split(ratings, seed)
        halves = [{name: x[half::2] for name, x in held_out.items()} for half in range(2)]
        return [
            # Keras takes a target for the output without a loss, too.
            (part, {"rating": part.pop("rating"), "compared": np.zeros(len(part["user"]))})
            for part in (training, *halves)
        ]

    def compiled(self, x, y, weights, weighting, aggregator, optimizer):
        model = import_example("movielens").build(
            self.sizes,
            self.batch_size,
            **weights,
            weighting=weighting,
            is_sum=False,
            is_corrected=True,
            optimizer=optimizer,
            is_balanced=True,
            aggregator=aggregator,
        )
        return model, model

    def scores(self, model, x, y):
        predicted = model.predict(x, batch_size=self.batch_size, verbose=0)["rating"][:, 0]
        found = import_example("movielens").top_accuracy(model, x, 100)
        found = found if np.isfinite(predicted).all() else np.nan
        return {"top 100": found, "rating": explained(predicted, y["rating"])}


class Poisson(Setup):
    """The example of a Poisson equation: the residual inside, and the values on the edge.

    The scores are -log10 of the error of the solution, relative inside, and absolute on the edge.
    Trials are compared by the first. A user who does not know the solution could not do that.
    """

    weights: ClassVar = {"edge": 1.0, "equation": 1.0}
    rates: ClassVar = {"adam": 0.01, "decay": 0.02}
    scored = ("inside",)
    epochs = 160
    batch_size = 128

    def load(self, seed):
        load = import_example("physics").load
        parts = [load(8 * self.batch_size, key) for key in (seed, 1000 + seed, 2000)]
        return [
            ({"inside": inside, "edge": edge, "source": f}, {"edge": np.zeros_like(f)})
            for inside, edge, f in parts
        ]

    def compiled(self, x, y, weights, weighting, aggregator, optimizer):
        model, u = import_example("physics").build_model(
            weight=weights["equation"], aggregator=aggregator
        )
        edge = {"edge": weights["edge"]}
        joint = kj.joint_loss({"edge": "mean_squared_error"}, edge, weighting)
        model.compile(optimizer, **joint)
        return model, u

    def scores(self, model, x, y):
        exact = import_example("physics").solution(x["inside"])
        inside, edge = (
            model.predict(x[name], batch_size=2048, verbose=0)[:, 0] for name in ("inside", "edge")
        )
        errors = {
            "inside": np.linalg.norm(inside - exact) / np.linalg.norm(exact),
            "edge": np.sqrt(np.mean(np.square(edge))),
        }
        return {name: -np.log10(max(error, 1e-12)) for name, error in errors.items()}


SETUPS = {setup.__name__.lower(): setup() for setup in (Digits, Poisson, Reviews, Emoji, MovieLens)}


@functools.lru_cache(maxsize=4)
def load(name, seed):
    """Returns the data of a set-up, once for several trainings."""
    return SETUPS[name].load(seed)
