"""Measures what a teacher and a scaled gradient cost, as ratios to the student without them.

- `predict`: `predict` of a student with a large teacher; target 1.02,
- `fit`: an epoch of it, against one whose targets are computed beforehand,
- `scale`: an epoch of a student with a `GradientScale` that follows a schedule; target 1.02.

It also prints by how many bytes the file of the student grows.

Run: python -m tests.benchmarks.benchmark_teacher [names] [--pairs 21]
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_jointloss as kj
from tests.benchmarks.timing import compare

ITEMS, BATCH, DIM, WIDTH = 2048, 64, 64, 2048
TARGETS = {"predict": 1.02, "scale": 1.02}


def student(teacher=None, scale=None):
    """Returns a compiled student of 10 classes, without a teacher with targets as an input."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((DIM,))
    target = keras.Input((10,)) if teacher is None else None
    hidden = keras.layers.Dense(256, activation="relu")(inputs)
    hidden = hidden if scale is None else kj.layers.GradientScale(scale, name="scale")(hidden)
    logits = keras.layers.Dense(10)(hidden)
    values = target if teacher is None else kj.layers.Teacher(teacher)(inputs)
    logits = kj.layers.LossTerm("mse", name="distill")(logits, values)
    model = keras.Model([inputs, target] if teacher is None else inputs, {"label": logits})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", **kj.joint_loss({"label": loss}))
    return model


def size(model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        return (Path(folder) / "model.keras").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=["predict", "fit", "scale"])
    parser.add_argument("--pairs", type=int, default=21)
    arguments = parser.parse_args()
    wide = keras.layers.Dense(WIDTH, activation="relu")
    teacher = keras.Sequential([keras.Input((DIM,)), wide, keras.layers.Dense(10)])
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ITEMS, DIM)).astype("float32")
    y = {"label": generator.integers(0, 10, ITEMS)}
    targets = teacher.predict(x, verbose=0)
    plain, taught = student(), student(teacher)
    scaled = student(scale=kj.schedules.Sigmoid(1.0, -1.0, midpoint=0, width=100))
    options = {"batch_size": BATCH, "verbose": 0}

    def fit(model, inputs):
        callbacks = [kj.callbacks.JointLossCallback()]
        return lambda: model.fit(inputs, y, callbacks=callbacks, **options)

    runs = {
        "predict": (
            lambda: taught.predict(x, **options),
            lambda: plain.predict([x, targets], **options),
        ),
        "fit": (fit(taught, x), fit(plain, [x, targets])),
        "scale": (fit(scaled, [x, targets]), fit(plain, [x, targets])),
    }
    for name in arguments.names:
        target = f", target {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:8} {compare(*runs[name], arguments.pairs)}{target}")
    print(f"file     {size(student(teacher)) - size(student()):+,} bytes")


if __name__ == "__main__":
    main()
