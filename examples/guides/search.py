# %% [markdown]
"""
# Search for weights, and trackers

Weights can be searched as any hyperparameter, if trainings are compared by a number that does not
contain them. This guide searches by hand and with KerasTuner, and logs to TensorBoard, Weights &
Biases and MLflow. What of these is not installed is left out, with a line that says so.

The data are 1,797 scanned digits from scikit-learn. From the left half of an image, one network
recognizes the digit and draws the right half.
"""

# %%
import importlib.util
import time
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

LOGS = Path(time.strftime("logs/search/%Y%m%d-%H%M%S"))
images, digits = load_digits(return_X_y=True)
halves = np.split((images / 16).reshape(-1, 8, 8).astype("float32"), 2, axis=2)
left, right = (half.reshape(-1, 32) for half in halves)
x, y = left[:1400], {"digit": digits[:1400], "right": right[:1400]}
unseen = left[1400:], {"digit": digits[1400:], "right": right[1400:]}
FIT = {"batch_size": 64, "verbose": 0, "validation_data": unseen}


def build(weight, weighting=None):
    """Returns the compiled network, with a weight of the right half."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32,))
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    digit = keras.layers.Dense(10, activation="softmax")(hidden)
    model = keras.Model(inputs, {"digit": digit, "right": keras.layers.Dense(32)(hidden)})
    losses = {"digit": "sparse_categorical_crossentropy", "right": "mean_squared_error"}
    metrics = {"digit": "accuracy", "right": "mae"}
    joint = kj.joint_loss(losses, {"right": weight}, weighting, metrics=metrics)
    model.compile(keras.optimizers.Adam(0.005), **joint)
    return model


def is_installed(name):
    """Returns whether a library can be imported, and says so if it cannot."""
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: this part is left out.")
    return found


# %% [markdown]
"""
## What to compare trainings by

Not by `val_loss`: it is the sum *with the weights that you search*, so the smallest weights win. Two
numbers can be compared:

- `val_joint_loss`, the sum with `validation_weights` that are the same in all trainings. It is right if
  the losses at these weights are what you care for.
- `joint_score`, the mean gain of several metrics over a baseline each. It takes what a
  network for each task alone reaches, or any number that is good enough to be 0.

Search the *ratio* of weights on a logarithmic grid, with the first weight at 1. With SGD, normalize
them too: see [learning rate and clipping](optimizer.py).
"""

# %%
SCORE = {"val_digit_accuracy": 0.8, "val_right_mae": 0.18}


def train(weight, name):
    """Trains a network, logs it to a folder of its own, and returns its last logs."""
    logger = kj.callbacks.JointLossCallback(
        LOGS / name, validation_weights="equal", score=SCORE, hparams={"optimizer": "adam"}
    )
    history = build(weight).fit(x, y, epochs=12, callbacks=[logger], **FIT).history
    return {key: values[-1] for key, values in history.items()}


columns = ("val_loss", "val_joint_loss", "joint_score", "val_digit_accuracy", "val_right_mae")
print(f"{'right x':<8}", *(f"{key:>19}" for key in columns))
trials = {}
for weight in (0.01, 1.0, 10.0, 100.0, 10000.0):
    trials[weight] = train(weight, f"right x {weight:g}")
    print(f"{weight:<8g}", *(f"{trials[weight][key]:>19.3f}" for key in columns))


def best(key, sign=1):
    """Returns the weight of the best trial by a number in the logs."""
    return max(trials, key=lambda weight: sign * trials[weight][key])


print("by val_loss:", best("val_loss", -1), " by joint_score:", best("joint_score"))
assert best("val_loss", -1) == 0.01
assert 0.01 < best("joint_score") < 10000

# %% [markdown]
"""
`kj.plot(folder, "pareto", a=..., b=...)` draws any two logged values, with the trainings that no other
beats in both.

## TensorBoard's HParams

With `hparams=`, each `fit` wrote a row for the tab *HParams*: your values, and by themselves the
weights (of a schedule its numbers), the rule and the aggregator, beside the last losses and metrics.
`tensorboard --logdir logs/search` shows the table, parallel coordinates and a scatter plot. Each
training needs a `log_dir` of its own; two in one folder become one zigzag line.

## KerasTuner

`build` takes weights and rules from `hp`. Create the callback in `fit`, so that each trial has its own
folder: KerasTuner hands callbacks of `search(callbacks=...)` to all trials, with one folder.
`JointLossCallback` moves to the front of the list by itself, so that KerasTuner finds its numbers.
"""

# %%
if is_installed("keras_tuner"):
    import keras_tuner

    class Weights(keras_tuner.HyperModel):
        """Searches the weight of the right half and the rule that adapts both."""

        def build(self, hp):
            weight = hp.Float("right", 0.1, 1000.0, sampling="log")
            rule = hp.Choice("weighting", ["none", "uncertainty"])
            return build(weight, None if rule == "none" else rule)

        def fit(self, hp, model, *args, callbacks=(), **options):
            trial = f"right x {hp['right']:.3g} {hp['weighting']}"
            logger = kj.callbacks.JointLossCallback(
                LOGS / "tuner" / trial, score=SCORE, hparams=hp.values
            )
            return model.fit(*args, callbacks=[logger, *callbacks], **options)

    objective = keras_tuner.Objective("joint_score", "max")
    tuner = keras_tuner.RandomSearch(
        Weights(), objective, max_trials=4, seed=0, directory=LOGS, project_name="trials"
    )
    tuner.search(x, y, epochs=6, **FIT)
    for trial in sorted(tuner.oracle.trials.values(), key=lambda trial: -trial.score):
        hp = trial.hyperparameters
        print(f"{hp['weighting']:<12} right x {hp['right']:<8.3g} joint_score {trial.score:.3f}")
    (best_hp,) = tuner.get_best_hyperparameters()
    assert (LOGS / "tuner" / f"right x {best_hp['right']:.3g} {best_hp['weighting']}").is_dir()

# %% [markdown]
"""
`tuner.get_best_models()` returns models with the weights of their terms, and what rules have learned.
To stop bad trials early, pass `callbacks=[keras.callbacks.EarlyStopping("joint_score", mode="max")]` to
`search`.

## Weights & Biases

`on_log` receives all numbers that TensorBoard would get, by run (`"train"` or `"validation"`), with or
without a `log_dir`. `wandb.integration.keras.WandbMetricsLogger()` beside the callback works too,
with the logs of epochs: `<term>_loss`, `<term>_weight` and so on.
"""

# %%
if is_installed("wandb"):
    import wandb

    # Offline, for `wandb sync` later: leave `mode` out to send.
    options = {"mode": "offline", "settings": wandb.Settings(silent=True)}
    with wandb.init(project="digits", dir=LOGS, config={"right": 10.0}, **options) as run:

        def log(name, values, step):
            """Sends the numbers of a point."""
            run.log({f"{name}/{tag}": value for tag, value in values.items()}, step=step)

        logger = kj.callbacks.JointLossCallback(on_log=log, update_freq=10)
        build(10.0).fit(x, y, epochs=2, callbacks=[logger], **FIT)
        print("wandb has", len(run.summary.keys()), "numbers")

# %% [markdown]
"""
A sweep is the same function, `train(wandb.config.right)`, with a metric of yours to compare by:
`joint_score` is `validation/joint_loss/score` here.

## MLflow

MLflow refuses `~` in names, which those of cosines have: replace it. Its own
`mlflow.keras.MlflowCallback()` fails at them, and then loses all numbers of training with a line on
the console: with a layer that reports gradients in the model, take `on_log`.
"""

# %%
if is_installed("mlflow"):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{LOGS}/mlflow.db")
    mlflow.set_experiment("digits")
    with mlflow.start_run():
        mlflow.log_params({"right": 10.0, "optimizer": "adam"})

        def log(name, values, step):
            """Sends the numbers of a point."""
            named = {f"{name}/{tag}".replace("~", "-"): value for tag, value in values.items()}
            mlflow.log_metrics(named, step=step)

        logger = kj.callbacks.JointLossCallback(on_log=log)
        build(10.0).fit(x, y, epochs=2, callbacks=[logger], **FIT)
    print("MLflow has", len(mlflow.last_active_run().data.metrics), "numbers")

# %% [markdown]
"""
An error of the first call of `on_log` for a run ends the training, so that a wrong name shows in the
first epoch. Later ones, as of a server that does not answer, are one warning. Here it fills a list:
"""

# %%
points = []
logger = kj.callbacks.JointLossCallback(score=SCORE, on_log=lambda *point: points.append(point))
build(10.0).fit(x, y, epochs=2, callbacks=[logger], **FIT)
for run, values, step in points:
    if "joint_loss/total" in values:
        print(f"{run}, step {step}:", {tag: round(x, 3) for tag, x in list(values.items())[:4]})
assert {run for run, _, _ in points} == {"train", "validation"}

# %% [markdown]
"""
## In a notebook

```
%load_ext tensorboard
%tensorboard --logdir logs/search
```

shows TensorBoard below the cell, with the tab *Joint loss*. The magic starts the first `tensorboard` on
the `PATH`. If that is of another environment, the tab is missing: before, set
`os.environ["TENSORBOARD_BINARY"]` to the one beside `sys.executable`.

Without a server, `kj.plot(history)` and `kj.plot("logs/search")` draw the same figures,
`callback.summary()` is a table, and `kj.diagnose(history)` says what stands out.
"""
