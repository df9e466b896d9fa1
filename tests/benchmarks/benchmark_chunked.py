"""Measures memory and time of a convolutional tower in `fit`: plain, and in chunks.

`ChunkedTower` is compared with the plain tower and with a layer written by hand that applies the
backend's own recomputation to each chunk: `torch.utils.checkpoint`, `tf.recompute_grad` or
`jax.checkpoint`. Each case runs in a separate process: three steps on one batch with an InfoNCE
term. It reports the increase of the process memory over that of the data and a model trained on a
small batch (on JAX: that was built), and the time of the fastest step.

Run: python -m tests.benchmarks.benchmark_chunked --batches 4096 --chunk 256
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import time

WAYS = ("plain", "ChunkedTower", "by hand")


def by_hand(tower, chunk, chunks):
    """Returns a layer that recomputes each chunk in the backward pass."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        from torch.utils.checkpoint import checkpoint

        recomputed = functools.partial(checkpoint, tower, use_reentrant=False)
    elif backend == "jax":
        import jax

        recomputed = jax.checkpoint(tower)
    else:
        import tensorflow as tf

        recomputed = tf.recompute_grad(tower)

    class ByHand(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.tower = tower

        def call(self, x):
            parts = [x[i * chunk : (i + 1) * chunk] for i in range(chunks)]
            return keras.ops.concatenate([recomputed(part) for part in parts])

        def compute_output_shape(self, shape):
            return tower.compute_output_shape(shape)

    return ByHand()


def build(way, batch, chunk):
    """Returns a compiled model."""
    import keras
    from keras import layers

    import keras_jointloss as kj

    keras.utils.set_random_seed(0)
    options = {"activation": "relu", "padding": "same"}
    tower = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, **options),
            layers.Conv2D(16, 3, **options),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, **options),
            layers.GlobalAveragePooling2D(),
            layers.Dense(32),
        ]
    )
    image, text = keras.Input((28, 28, 1)), keras.Input((8,))
    encode = {
        "plain": lambda: tower,
        "ChunkedTower": lambda: kj.layers.ChunkedTower(tower, chunk),
        "by hand": lambda: by_hand(tower, chunk, -(-batch // chunk)),
    }[way]()
    a, b = kj.layers.ContrastiveTerm("InfoNCE")((encode(image), layers.Dense(32)(text)))
    model = keras.Model([image, text], a + b)
    model.compile("sgd")
    return model


def measure(way, batch, chunk, steps=3):
    """Runs a case in this process and prints seconds and MiB as JSON."""
    import keras
    import numpy as np

    model = build(way, batch, chunk)
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(batch, *shape)).astype("float32") for shape in ((28, 28, 1), (8,))]
    if keras.backend.backend() != "jax":  # JAX compiles for fixed shapes.
        model.fit([part[:8] for part in x], batch_size=8, verbose=0)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        model.fit(x, batch_size=batch, shuffle=False, verbose=0)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": min(seconds), "mib": (peak - base) / 1024}))


def run(way, batch, chunk):
    """Runs a case in a separate process."""
    command = [sys.executable, "-m", __spec__.name, "--case", way, str(batch), str(chunk)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(output.stdout.strip().splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4096])
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.case:
        way, batch, chunk = arguments.case
        measure(way, int(batch), int(chunk))
        return
    for batch in arguments.batches:
        print(f"batch {batch}, chunks of {arguments.chunk}", flush=True)
        rows = {way: run(way, batch, arguments.chunk) for way in WAYS}
        for way, row in rows.items():
            memory, duration = (row[key] / rows["plain"][key] for key in ("mib", "seconds"))
            print(
                f"  {way:<14}{row['mib']:8.0f} MiB{row['seconds']:8.2f} s   "
                f"of plain: memory {memory:.2f}, time {duration:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
