"""Logs of a real training with all that the dashboard shows, and logs that are written by hand."""

import contextlib

import keras
import numpy as np

import keras_jointloss as kj
from keras_jointloss.tensorboard import SummaryWriter

TERMS = ["label", "mood", "pair"]
STEPS = 4  # Per epoch.
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(32, 6)).astype("float32")
Y = {"label": GENERATOR.integers(0, 3, 32), "mood": X[:, 1:2]}


def train(log_dir, epochs=3, seed=0, **options):
    """Returns what `fit` returns: two output terms, a layer term, a balancer, validation."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    a, b = keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)
    a, b = kj.layers.ContrastiveTerm(
        kj.losses.InfoNCE(temperature=0.2),
        learn_temperature=True,
        weight=kj.schedules.Linear(0.0, 0.5, 20),
        name="pair",
    )((a, b))
    hidden = keras.layers.Concatenate()([keras.layers.Dense(8, activation="tanh")(inputs), a, b])
    z = kj.layers.GradientBalancer(["label", "mood"], "pcgrad")(hidden)
    outputs = {
        "label": keras.layers.Dense(3, activation="softmax")(z["label"]),
        "mood": keras.layers.Dense(1)(z["mood"]),
    }
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(
        {"label": "sparse_categorical_crossentropy", "mood": "mse"},
        weights={"mood": 0.5},
        metrics={"label": "accuracy"},
    )
    model.compile(keras.optimizers.Adam(0.01), **joint)
    return model.fit(
        X,
        Y,
        batch_size=len(X) // STEPS,
        epochs=epochs,
        verbose=0,
        validation_data=(X[:16], {name: y[:16] for name, y in Y.items()}),
        callbacks=[
            kj.callbacks.JointLossCallback(log_dir, **options),
            kj.callbacks.RetrievalEvaluation(X[:16], k=(1, 5), embeddings="pair", log_dir=log_dir),
        ],
    )


#: Names of terms that no markup, path or pattern may take for its own.
HOSTILE = [
    *("<script>document.title='x'</script>", "a/b/c", "'\"&amp;`", "ü 漢字 \u202e", "x" * 300),
    *("%{y} $x$", "~"),
]


def history_of(losses, weight=1.0):
    """Returns the history of an epoch in which the terms have these losses."""
    total = sum(weight * loss for loss in losses.values())
    history = {"loss": [total]}
    for name, loss in losses.items():
        history |= {f"{name}_loss": [loss], f"{name}_weight": [weight]}
        history[f"{name}_share"] = [weight * loss / total]
    return history


def write_scalars(log_dir, *points, split="train"):
    """Writes scalars, each point with its step."""
    with contextlib.closing(SummaryWriter(log_dir / split)) as writer:
        for values, step in points:
            writer.scalars(values, step)


def write(log_dir, terms, steps=3, offset=0.0, end=None):
    """Writes logs with the values `1 + step + offset` and so on for each term."""
    for split in ("train", "validation"):
        writer = SummaryWriter(log_dir / split)
        writer.training({}, 0, end or steps)
        for step in range(1, steps + 1):
            values = {"joint_loss/total": 0.0}
            for index, term in enumerate(terms):
                raw = step + index + offset
                values[f"joint_loss/{term}/raw"] = raw
                values[f"joint_loss/{term}/weight"] = 0.5
                values[f"joint_loss/{term}/weighted"] = raw / 2
                values["joint_loss/total"] += raw / 2
            writer.scalars(values, step)
            writer.epochs(step, step)
        writer.close()
