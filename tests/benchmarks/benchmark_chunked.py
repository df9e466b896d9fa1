"""Measures memory and time of a convolutional tower in chunks, and of the plain tower, in `fit`.

Each case runs in a separate process: three steps on one batch with an InfoNCE term. It reports the
increase of the process memory over that of the data and a model trained on a small batch (on JAX:
that was built), and the time of the fastest step.

Run: python -m tests.benchmarks.benchmark_chunked --batches 4096 --chunk 256
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time


def build(chunk):
    """Returns a compiled model; a `chunk` of 0 stands for the plain tower."""
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
    encode = kj.layers.ChunkedTower(tower, chunk) if chunk else tower
    a, b = kj.layers.ContrastiveTerm("InfoNCE")((encode(image), layers.Dense(32)(text)))
    model = keras.Model([image, text], a + b)
    model.compile("sgd")
    return model


def measure(batch, chunk, steps=3):
    """Runs a case in this process and prints seconds and MiB as JSON."""
    import keras
    import numpy as np

    model = build(chunk)
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


def run(batch, chunk):
    """Runs a case in a separate process."""
    command = [sys.executable, "-m", __spec__.name, "--case", str(batch), str(chunk)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(output.stdout.strip().splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4096])
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.case:
        measure(*arguments.case)
        return
    for batch in arguments.batches:
        plain, chunked = run(batch, 0), run(batch, arguments.chunk)
        print(
            f"batch {batch}: plain {plain['mib']:.0f} MiB, {plain['seconds']:.2f} s; chunks of "
            f"{arguments.chunk} {chunked['mib']:.0f} MiB, {chunked['seconds']:.2f} s; ratios "
            f"{chunked['mib'] / plain['mib']:.2f} and {chunked['seconds'] / plain['seconds']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
