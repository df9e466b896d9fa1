"""Measures what it costs that a contrastive loss sees all replicas, on two logical CPU devices.

- `gather`: a step under `MirroredStrategy` with `gather=True`, against one with `gather=False`,
- `strategy`: a step under `MirroredStrategy` with `gather=False`, against one on one device,
- `quotient`: the first ratio over the second.

The batch has 512 pairs of 128 dimensions. Each replica then compares 256 items with 512 in place of
256, twice the products. The target: `gather` is at most 1.2 times `strategy`.

Run: python -m tests.benchmarks.benchmark_replicas (TensorFlow only)
"""

import argparse
import contextlib

import keras
import numpy as np
import tensorflow as tf

import keras_jointloss as kj
from tests.benchmarks.timing import compare

STEPS, BATCH, DIM = 20, 512, 128


def compiled(loss, strategy=None, gather=None):
    """Returns a function that trains for an epoch."""
    keras.utils.set_random_seed(0)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        inputs = [keras.Input((DIM,)) for _ in range(2)]
        hidden = [keras.layers.Dense(512, activation="relu")(x) for x in inputs]
        embeddings = [keras.layers.Dense(DIM)(x) for x in hidden]
        term = kj.layers.ContrastiveTerm(loss, gather=gather, name="pair")
        model = keras.Model(inputs, list(term(embeddings)))
        model.compile("sgd")
    x = np.random.default_rng(0).normal(size=(STEPS * BATCH, DIM)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices(((x, x[::-1].copy()),))
    data = data.batch(BATCH, drop_remainder=True)
    return lambda: model.fit(data, shuffle=False, verbose=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loss", default="InfoNCE")
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy([x.name for x in tf.config.list_logical_devices()])
    local = compiled(arguments.loss, strategy, gather=False)
    gather = compare(compiled(arguments.loss, strategy, gather=True), local, arguments.pairs)
    overhead = compare(local, compiled(arguments.loss), arguments.pairs)
    print(f"gather    {gather}")
    print(f"strategy  {overhead}")
    print(f"quotient  {gather.median / overhead.median:.3f}")


if __name__ == "__main__":
    main()
