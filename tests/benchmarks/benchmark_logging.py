"""Measures what `log_dir` costs in time, as ratios, and on the disk.

- `epoch`, `batch`: an epoch of the model of examples/emoji.py with `update_freq` of that name,
  against the same without `log_dir`; targets 1.01 and 1.05,
- `disk`: the bytes of the logs of 100,000 steps with 20 terms and `update_freq="batch"`, as
  2,000 of them have, and the time of writing a step, beside those of the same scalars written by
  `tf.summary`, as `keras.callbacks.TensorBoard` does (if TensorFlow is installed).

Run: python -m tests.benchmarks.benchmark_logging [names]
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_jointloss as kj
from tests.benchmarks.benchmark_weights import import_example
from tests.benchmarks.timing import compare, seconds

BATCHES, TERMS, STEPS = 12, 20, 100_000
WRITTEN = 2_000
TARGETS = {"epoch": 1.01, "batch": 1.05}


def emoji():
    """Returns the compiled model of the example and a function that trains it for an epoch."""
    example = import_example("emoji")
    keras.utils.set_random_seed(0)
    data = example.load()
    indices = np.arange(BATCHES * example.BATCH_SIZE)
    vocabulary = sorted({word for text in data["text"] for word in text.split()})
    x, y = example.select(data, indices, vocabulary)
    model = example.build(len(vocabulary), len(data["categories"]), steps=1000)

    def fit(log_dir, update_freq="epoch"):
        callback = kj.callbacks.JointLossCallback(log_dir, update_freq)
        options = {"batch_size": example.BATCH_SIZE, "shuffle": False, "verbose": 0}
        model.fit(x, y, callbacks=[callback], **options)

    return fit


def measure_time(update_freq, pairs):
    fit = emoji()
    with tempfile.TemporaryDirectory() as log_dir:
        return compare(lambda: fit(log_dir, update_freq), lambda: fit(None), pairs)


def values(step):
    """Returns the scalars of 20 terms at a step."""
    scalars = {"joint_loss/total": 1.0}
    for term in range(TERMS):
        for key in ("raw", "weight", "weighted", "share"):
            scalars[f"joint_loss/term_{term:02}/{key}"] = 2 + np.sin(step + term)
    return scalars


def write(log_dir):
    writer = kj.tensorboard.SummaryWriter(log_dir)
    for step in range(WRITTEN):
        writer.scalars(values(step), step)
    writer.close()


def write_with_tensorflow(log_dir):
    import tensorflow as tf

    writer = tf.summary.create_file_writer(log_dir)
    with writer.as_default():
        for step in range(WRITTEN):
            for name, value in values(step).items():
                tf.summary.scalar(name, value, step)
    writer.close()


def measure_disk(write):
    """Returns the bytes of the logs of a whole training, and the seconds of writing a step."""
    with tempfile.TemporaryDirectory() as log_dir:
        duration = seconds(lambda: write(log_dir))
        size = sum(path.stat().st_size for path in Path(log_dir).iterdir())
    return size * STEPS // WRITTEN, duration / WRITTEN


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["epoch", "batch", "disk"])
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    for name in arguments.names:
        if name != "disk":
            ratio = measure_time(name, arguments.pairs)
            print(f"{name}: {ratio}, target {TARGETS[name]}", flush=True)
            continue
        ways = {"SummaryWriter": write}
        if importlib.util.find_spec("tensorflow"):
            ways["tf.summary"] = write_with_tensorflow
        for way, function in ways.items():
            size, duration = measure_disk(function)
            cost = f"{1000 * duration:.2f} ms a step, {way}"
            print(f"disk: {size / 1e6:.0f} MB, {STEPS} steps, {TERMS} terms, {cost}", flush=True)


if __name__ == "__main__":
    main()
