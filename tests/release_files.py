"""Saves a model for `tests/data`, which later versions are held to load and to train on.

Run once for each release, with its code, on TensorFlow: `python -m tests.release_files`. It writes
the folder `tests/data/v<version>`: the model, its weights, its data, and what the version computes
from there. A file of PyTorch has the name of an optimizer that Keras finds on PyTorch alone.
"""

import json
from pathlib import Path

import keras
import numpy as np
from keras import ops

import keras_jointloss as kj
from tests.small_models import fit

DATA = Path(__file__).parent / "data"
ITEMS, BATCH, EPOCHS = 24, 8, 2


def make_data():
    """Returns inputs and targets by name, some of which are missing."""
    features = np.random.default_rng(0).normal(size=(ITEMS, 5)).astype("float32")
    label = np.arange(ITEMS) % 3
    rating = features[:, :2].copy()
    rating[::4, 0] = np.nan
    x = {"features": features, "label": label, "index": np.arange(ITEMS)}
    return x, {"rating": rating, "label": label}


def make_model():
    """Returns a compiled model with each kind of state that a file can hold."""
    keras.utils.set_random_seed(0)
    features = keras.Input((5,), name="features")
    label, index = (keras.Input((), dtype="int32", name=x) for x in ("label", "index"))
    hidden = keras.layers.Dense(4, activation="tanh")(features)
    balancer = kj.layers.GradientBalancer(["rating", "label"], kj.aggregators.GradVac(), name="z")
    z = balancer(hidden)
    schedule = kj.schedules.Sequential([0.1, kj.schedules.Linear(0.1, 0.5, 20)], [4])
    a, b = kj.layers.ContrastiveTerm(
        kj.losses.SupCon(temperature=0.3),
        weight=schedule,
        learn_temperature=True,
        memory_size=12,
        metrics=[kj.metrics.RecallAtK(1)],
        name="pair",
    )((z["rating"], ops.flip(z["label"], axis=1), label))
    loss = kj.losses.ArcFace(scale=4.0, margin=kj.schedules.Linear(0.0, 0.5, 20))
    b = kj.layers.ProxyTerm(loss, 3, weight=0.3, metrics=["accuracy"], name="classes")((b, label))
    a = kj.layers.PointWeights(ITEMS, "residual", weight=0.1, name="points")(
        a, a + ops.square(b), index
    )
    target = kj.schedules.Linear(0.0, 1.0, 20)
    a = kj.layers.LossTerm(weight=0.1, target=target, name="energy")(a, ops.square(a))
    a = kj.layers.GradientScale(kj.schedules.Linear(1.0, 0.5, 20), name="scale")(a)
    head = keras.layers.Dense(2)
    slow = kj.layers.MomentumTower(head, 0.9, name="slow")
    outputs = {"rating": head(a) + slow(b), "label": keras.layers.Dense(3)(b)}
    model = keras.Model([features, label, index], outputs)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    joint = kj.joint_loss(
        {"rating": {"square": "mse", "huber": keras.losses.Huber()}, "label": crossentropy},
        weights={"rating_square": kj.schedules.Linear(1.0, 0.2, 20), "label": 0.5},
        weighting=kj.weighting.Uncertainty(),
        metrics={"label": "accuracy"},
        missing={"rating": float("nan")},
        class_weight={"label": {0: 2.0}},
    )
    model.compile(keras.optimizers.SGD(0.05), **joint)
    return model


def results(model, x, y, epochs=EPOCHS):
    """Returns what a model predicts and evaluates, and the logs of the epochs that it trains on."""
    model.run_eagerly = keras.backend.backend() == "tensorflow"  # For a few steps.
    model.jit_compile = keras.backend.backend() == "jax"
    predicted = model.predict(x, batch_size=BATCH, verbose=0)
    evaluated = model.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)
    run = {"initial_epoch": EPOCHS, "epochs": EPOCHS + epochs}
    history = fit(model, x=x, y=y, batch_size=BATCH, **run)
    return {
        "predict": {name: values.tolist() for name, values in predicted.items()},
        "evaluate": evaluated,
        "fit": {name: [float(x) for x in values] for name, values in history.items()},
    }


def main():
    x, y = make_data()
    model = make_model()
    fit(model, x=x, y=y, batch_size=BATCH, epochs=EPOCHS)
    folder = DATA / f"v{kj.__version__}"
    folder.mkdir(exist_ok=True)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    data = {"x": x, "y": y}
    data = {part: {name: v.tolist() for name, v in data[part].items()} for part in data}
    expected = {**data, **results(model, x, y)}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
