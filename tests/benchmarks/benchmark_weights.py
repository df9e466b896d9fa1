"""Measures the time cost of annealed, adapted and logged terms in stock `fit`.

- `small_step`: four annealed terms in a model with a fast step, which exposes every operation,
- `medium_step`: the same with a wider hidden layer and a step of about 2.5 ms,
- `loss_term`: a `LossTerm` in place of the fourth output term of `medium_step`,
- `emoji`: the model of examples/emoji.py,
- `weighting_<rule>`: each rule on the four terms of `medium_step`, against constant weights,
- `deep_step_<kind>`: four terms with constant weights, schedules, `Uncertainty` or missing targets
  on six hidden layers, a step of about 8 ms in plain Keras on PyTorch, logged by a callback,
- `guarded_<choice>`: the same with a callback that watches for what is not finite, against one that
  does not,
- `first_epoch_<kind>`: the first epoch of the same, with all that Keras traces and compiles,
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

import keras_jointloss as kj
from tests.benchmarks.four_terms import annealed_weights, four_terms, with_gaps
from tests.benchmarks.timing import Ratio, compare

RULES = (
    "dynamic_weight_average",
    "famo",
    "geometric_mean",
    "imtll",
    "random_weighting",
    "relobralo",
    "smooth_tchebycheff",
    "soft_adapt",
    "uncertainty",
)
GUARDS = ("warn", "skip")
KINDS = ("constants", "schedules", "uncertainty", "missing")
EXAMPLES = Path(__file__).parents[2] / "examples"


def import_example(name):
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


def fit(model, x, y, *callbacks, batch_size=32, **options):
    """Trains an epoch."""
    options = {"shuffle": False, "verbose": 0, "callbacks": list(callbacks), **options}
    model.fit(x, y, batch_size=batch_size, **options)


def compare_annealing(annealed, plain, x, y, batch_size, log_dir, pairs):
    """Compares an epoch of an annealed model with logged terms to an epoch of a plain model."""

    def fit_annealed():
        callback = kj.callbacks.JointLossCallback(log_dir, update_freq="epoch")
        fit(annealed, x, y, callback, batch_size=batch_size)

    return compare(fit_annealed, lambda: fit(plain, x, y, batch_size=batch_size), pairs)


def small_step(log_dir, pairs, width=256):
    x, y, losses, compiled = four_terms(width)
    annealed = compiled(**kj.joint_loss(losses, weights=annealed_weights(losses)))
    plain = compiled(loss=losses, loss_weights=dict.fromkeys(losses, 0.5))
    return compare_annealing(annealed, plain, x, y, 32, log_dir, pairs)


def deep_step(log_dir, pairs, kind, is_first=False):
    """Compares an epoch with terms of a kind to one of plain Keras, or the first epochs of both."""
    x, y, losses, compiled = four_terms(256, batch_size=64, layers=6)
    targets = with_gaps(y)[1] if kind == "missing" else y
    count = pairs + 1 if is_first else 1

    def joint():
        options = {
            "constants": {},
            "schedules": {"weights": annealed_weights(losses)},
            "uncertainty": {"weighting": "uncertainty"},
            "missing": {"missing": float("nan")},
        }
        return compiled(**kj.joint_loss(losses, **options[kind]))

    def plain():
        return compiled(loss=losses, loss_weights=dict.fromkeys(losses, 0.5))

    def run(models, *arguments):
        fit(models.pop() if is_first else models[0], x, *arguments, batch_size=64)

    of_terms, of_keras = ([make() for _ in range(count)] for make in (joint, plain))
    callback = kj.callbacks.JointLossCallback()
    return compare(lambda: run(of_terms, targets, callback), lambda: run(of_keras, y), pairs)


def guarded(log_dir, pairs, on_nonfinite):
    """Compares an epoch that watches for what is not finite to one that does not."""
    x, y, losses, compiled = four_terms(256, batch_size=64, layers=6)
    models = [compiled(**kj.joint_loss(losses)) for _ in range(2)]
    callbacks = [kj.callbacks.JointLossCallback(on_nonfinite=z) for z in (on_nonfinite, None)]
    runs = [
        partial(fit, model, x, y, callback, batch_size=64)
        for model, callback in zip(models, callbacks, strict=True)
    ]
    return compare(*runs, pairs)


def weighting(log_dir, pairs, rule, width=2048):
    """Compares an epoch with a rule to an epoch with constant `LossWeight`s."""
    x, y, losses, compiled = four_terms(width)
    adapted = compiled(**kj.joint_loss(losses, weighting=rule))
    constant = compiled(**kj.joint_loss(losses))
    callback = kj.callbacks.JointLossCallback()
    return compare(
        lambda: fit(adapted, x, y, callback), lambda: fit(constant, x, y, callback), pairs
    )


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

    callback = kj.callbacks.JointLossCallback(log_dir)
    targets = {name: y[name] for name in names}
    return compare(
        lambda: fit(with_layer, [x, y["d"]], targets, callback),
        lambda: fit(with_output, x, y, callback),
        pairs,
    )


def missing_targets(log_dir, pairs, width=2048):
    """Compares an epoch with missing targets to one with sample weights of 0."""
    x, y, losses, compiled = four_terms(width)
    is_labelled, gaps = with_gaps(y)
    weights = dict.fromkeys(y, is_labelled.astype("float32"))
    partial_model = compiled(**kj.joint_loss(losses, missing=float("nan")))
    weighted_model = compiled(**kj.joint_loss(losses))
    callback = kj.callbacks.JointLossCallback()
    return compare(
        lambda: fit(partial_model, x, gaps, callback),
        lambda: fit(weighted_model, x, y, callback, sample_weight=weights),
        pairs,
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
    **{f"deep_step_{kind}": Benchmark(partial(deep_step, kind=kind), 1.05) for kind in KINDS},
    **{
        f"first_epoch_{kind}": Benchmark(partial(deep_step, kind=kind, is_first=True), 1.15)
        for kind in KINDS
    },
    **{f"guarded_{x}": Benchmark(partial(guarded, on_nonfinite=x), 1.01) for x in GUARDS},
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
