"""Measures the time cost of annealed, adapted and logged terms in stock `fit`.

- `small_step`: four annealed terms in a model with a fast step, which exposes every operation,
- `medium_step`: the same with a wider hidden layer and a step of about 2.5 ms,
- `loss_term`: a `LossTerm` in place of the fourth output term of `medium_step`,
- `emoji`: the model of examples/emoji.py,
- `weighting_<rule>`: each rule on the four terms of `medium_step`, against constant weights,
- `missing_targets`: `medium_step` with constant weights and targets of which half are missing, by
  `missing`, against the same by a `sample_weight` of 0,
- `loop`: examples/explicit_weights.py against a manual loop (TensorFlow only).

Unless stated otherwise, the baseline is the same model with plain losses and numeric weights.

Run: python -m tests.benchmarks.benchmark_weights [names]
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

import keras_jointloss as kj
from tests.benchmarks.timing import Ratio, compare

RULES = (
    "dynamic_weight_average",
    "famo",
    "geometric_mean",
    "random_weighting",
    "smooth_tchebycheff",
    "uncertainty",
)
EXAMPLES = Path(__file__).parents[2] / "examples"


def import_example(name):
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


def compare_annealing(annealed, plain, x, y, batch_size, log_dir, pairs):
    """Compares an epoch of an annealed model with logged terms to an epoch of a plain model."""

    def fit(model, callbacks=()):
        options = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
        model.fit(x, y, callbacks=list(callbacks), **options)

    def fit_annealed():
        fit(annealed, [kj.callbacks.JointLossCallback(log_dir, update_freq="epoch")])

    return compare(fit_annealed, lambda: fit(plain), pairs)


def four_terms(width, steps=100, batch_size=32):
    """Returns data, losses, and a function that compiles a model with four heads."""
    names = ["a", "b", "c", "d"]
    generator = np.random.default_rng(0)
    x = generator.normal(size=(steps * batch_size, 64)).astype("float32")
    y = {name: x[:, 4 * i : 4 * i + 4] for i, name in enumerate(names)}
    losses = dict.fromkeys(names, "mean_squared_error")

    def compiled(**arguments):
        inputs = keras.Input((64,))
        hidden = keras.layers.Dense(width, activation="relu")(inputs)
        model = keras.Model(inputs, {name: keras.layers.Dense(4)(hidden) for name in names})
        model.compile("adam", **arguments)
        return model

    return x, y, losses, compiled


def small_step(log_dir, pairs, width=256):
    x, y, losses, compiled = four_terms(width)
    schedules = [
        PolynomialDecay(1.0, 5000, 0.1),
        kj.schedules.Linear(0.0, 1.0, steps=5000),
        kj.schedules.Sigmoid(0.0, 1.0, midpoint=2000, width=500),
        kj.schedules.Cyclical(0.0, 1.0, cycle_steps=500),
    ]
    annealed = compiled(**kj.joint_loss(losses, weights=dict(zip(losses, schedules, strict=True))))
    plain = compiled(loss=losses, loss_weights=dict.fromkeys(losses, 0.5))
    return compare_annealing(annealed, plain, x, y, 32, log_dir, pairs)


def weighting(log_dir, pairs, rule, width=2048):
    """Compares an epoch with a rule to an epoch with constant `LossWeight`s."""
    x, y, losses, compiled = four_terms(width)
    adapted = compiled(**kj.joint_loss(losses, weighting=rule))
    constant = compiled(**kj.joint_loss(losses))
    options = {"batch_size": 32, "shuffle": False, "verbose": 0}

    def fit(model):
        model.fit(x, y, callbacks=[kj.callbacks.JointLossCallback()], **options)

    return compare(lambda: fit(adapted), lambda: fit(constant), pairs)


def loss_term(log_dir, pairs, width=2048):
    """Compares an epoch in which a `LossTerm` computes one of four losses to four output terms."""
    x, y, losses, compiled = four_terms(width)
    names = list(losses)[:-1]
    inputs, target = keras.Input((64,)), keras.Input((4,))
    hidden = keras.layers.Dense(width, activation="relu")(inputs)
    heads = {name: keras.layers.Dense(4)(hidden) for name in losses}
    term = kj.layers.LossTerm("mean_squared_error", name="d")
    # In the path to an output, or the model would not contain the layer.
    heads["c"] = keras.layers.Identity()([heads["c"], term(heads.pop("d"), target)])[0]
    with_layer = keras.Model([inputs, target], heads)
    with_layer.compile("adam", **kj.joint_loss({name: losses[name] for name in names}))
    with_output = compiled(**kj.joint_loss(losses))

    def fit(model, x, y):
        options = {"batch_size": 32, "shuffle": False, "verbose": 0}
        model.fit(x, y, callbacks=[kj.callbacks.JointLossCallback(log_dir)], **options)

    return compare(
        lambda: fit(with_layer, [x, y["d"]], {name: y[name] for name in names}),
        lambda: fit(with_output, x, y),
        pairs,
    )


def missing_targets(log_dir, pairs, width=2048):
    """Compares an epoch with missing targets to one with sample weights of 0."""
    x, y, losses, compiled = four_terms(width)
    is_labelled = np.random.default_rng(1).random(len(x)) < 0.5
    gaps = {name: np.where(is_labelled[:, None], y[name], np.float32(np.nan)) for name in y}
    weights = dict.fromkeys(y, is_labelled.astype("float32"))
    partial_model = compiled(**kj.joint_loss(losses, missing=float("nan")))
    weighted_model = compiled(**kj.joint_loss(losses))
    options = {"batch_size": 32, "shuffle": False, "verbose": 0}

    def fit(model, y, sample_weight):
        callbacks = [kj.callbacks.JointLossCallback()]
        model.fit(x, y, sample_weight=sample_weight, callbacks=callbacks, **options)

    return compare(
        lambda: fit(partial_model, gaps, None), lambda: fit(weighted_model, y, weights), pairs
    )


class PlainTerm(keras.layers.Layer):
    """The plain Keras alternative to the layer term of the emoji model."""

    def build(self, input_shape):
        self.log_scale = self.add_weight(shape=(), initializer=keras.initializers.Constant(2.3))

    def call(self, inputs):
        a, b = inputs
        temperature = ops.exp(-ops.convert_to_tensor(self.log_scale))
        views = ops.stack([a, b], axis=1)
        self.add_loss(ops.mean(kj.losses.info_nce(views, temperature=temperature)))
        return a, b


def emoji(log_dir, pairs, repetitions=4):
    example = import_example("emoji")
    data = example.load()
    indices, _ = example.split(data, seed=0)
    vocabulary = sorted({word for text in data["text"][indices] for word in text.split()})
    x, y = example.select(data, np.tile(indices, repetitions), vocabulary)
    annealed = example.build(len(vocabulary), len(data["categories"]), steps=1000)

    def without_terms(layer):
        if isinstance(layer, kj.layers.ContrastiveTerm):
            return PlainTerm(name=layer.name)
        return type(layer).from_config(layer.get_config())

    plain = keras.models.clone_model(annealed, clone_function=without_terms)
    plain.compile(
        "adam",
        loss={name: loss.loss for name, loss in annealed.loss.items()},
        loss_weights=dict.fromkeys(annealed.loss, 0.5),
        metrics={"image_category": "accuracy", "text_category": "accuracy"},
    )
    return compare_annealing(annealed, plain, x, y, example.BATCH_SIZE, log_dir, pairs)


def loop(log_dir, pairs, repetitions=25, batch_size=128):
    import tensorflow as tf

    example = import_example("explicit_weights")
    train, _ = example.load_emoji_with_targets()
    x = {name: train[name] for name in ("image", "words")}
    y = {name: train["target"] for name in example.WEIGHTS}
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size, drop_remainder=True)
    dataset = dataset.cache().repeat(repetitions).prefetch(tf.data.AUTOTUNE)

    def build_model():
        shape, words, dim = x["image"].shape[1:], x["words"].shape[1], train["target"].shape[1]
        return example.build_model(shape, words, dim)

    fitted, looped = build_model(), build_model()
    optimizer = keras.optimizers.Adam()
    # Like a typical user loop, this one only records the mean losses.
    means = {name: keras.metrics.Mean() for name in ("loss", *example.WEIGHTS)}

    @tf.function(jit_compile=fitted.jit_compile)
    def step(x, y):
        with tf.GradientTape() as tape:
            outputs = looped(x, training=True)
            losses = {name: tf.reduce_mean(tf.square(outputs[name] - y[name])) for name in y}
            losses["loss"] = sum(example.WEIGHTS[name] * losses[name] for name in y)
        gradients = tape.gradient(losses["loss"], looped.trainable_variables)
        optimizer.apply_gradients(zip(gradients, looped.trainable_variables, strict=True))
        for name, mean in means.items():
            mean.update_state(losses[name])

    def run_loop():
        for mean in means.values():
            mean.reset_state()
        for x, y in dataset:
            step(x, y)
        return {name: float(mean.result()) for name, mean in means.items()}

    return compare(lambda: fitted.fit(dataset, shuffle=False, verbose=0), run_loop, pairs)


class Benchmark(NamedTuple):
    """A benchmark.

    Attributes:
        run: Function of a log folder and the number of pairs that returns the ratio.
        target: The maximum median.
        backends: The supported backends.
    """

    run: Callable[[str, int], Ratio]
    target: float
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch")


BENCHMARKS = {
    "small_step": Benchmark(small_step, 1.12),
    "medium_step": Benchmark(partial(small_step, width=2048), 1.12),
    "loss_term": Benchmark(loss_term, 1.0),
    "emoji": Benchmark(emoji, 1.03),
    **{f"weighting_{rule}": Benchmark(partial(weighting, rule=rule), 1.05) for rule in RULES},
    "missing_targets": Benchmark(missing_targets, 1.02),
    "loop": Benchmark(loop, 1.05, ("tensorflow",)),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--pairs", type=int, default=25, help="how often to measure, 5 or more")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in arguments.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        if keras.backend.backend() not in benchmark.backends:
            continue
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as log_dir:
            ratio = benchmark.run(log_dir, arguments.pairs)
        print(f"{name}: {ratio}, target {benchmark.target}", flush=True)


if __name__ == "__main__":
    main()
