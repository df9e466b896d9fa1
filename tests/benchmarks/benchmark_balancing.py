"""Measures what combining the gradients of several terms costs in time.

A convolutional trunk of some 20 ms a step or more with a head for each of 2, 3 or 8 terms, trained
by `fit` with a `GradientBalancer` and without.

Run: python -m tests.benchmarks.benchmark_balancing [aggregators] --terms 2 3 8
"""

import argparse

import keras
import numpy as np

import keras_jointloss as kj
from tests.benchmarks.timing import compare

RULES = ("aligned_mtl", "cagrad", "imtl_g", "mean", "mgda", "nash_mtl", "pcgrad", "sum", "upgrad")
# By the number of terms: what the median should not exceed.
TARGETS = {2: 1.05, 3: 1.05, 8: 1.15}


def build(terms, rule=None):
    inputs = keras.Input((32, 32, 3))
    x = inputs
    for filters in (32, 64, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(128, activation="relu")(keras.layers.Flatten()(x))
    names = [f"term{index}" for index in range(terms)]
    z = dict.fromkeys(names, x)
    if rule is not None:
        z = kj.layers.GradientBalancer(names, rule)(x)
    model = keras.Model(inputs, {name: keras.layers.Dense(4)(z[name]) for name in names})
    model.compile("adam", loss=dict.fromkeys(names, "mean_squared_error"))
    return model


def ratio(rule, terms, pairs, steps=20, batch_size=64):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(steps * batch_size, 32, 32, 3)).astype("float32")
    y = {f"term{i}": x[:, i, :4, i % 3] for i in range(terms)}
    balanced, plain = build(terms, rule), build(terms)

    def fit(model):
        model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)

    return compare(lambda: fit(balanced), lambda: fit(plain), pairs)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RULES)}; default: all")
    parser.add_argument("--terms", type=int, nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--pairs", type=int, default=9, help="how often to measure, 5 or more")
    arguments = parser.parse_args(argv)
    for terms in arguments.terms:
        for rule in arguments.names or RULES:
            measured = ratio(rule, terms, arguments.pairs)
            print(f"{rule}, {terms} terms: {measured}, target {TARGETS[terms]}", flush=True)


if __name__ == "__main__":
    main()
