# %% [markdown]
"""
# Missing targets

Often not every item has every target: a rating that nobody gave, a measurement that failed, a
price before a company was listed. This guide trains on such targets without dropping the items.

The data are 1,797 scanned digits from scikit-learn. One network recognizes the digit and predicts
how much ink each of the eight rows of the image has, from the left half of the image. Nine tenths
of the labels are hidden, and some of the rows.
"""

# %%
import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).reshape(-1, 8, 8).astype("float32")
x = images[:, :, :4].reshape(-1, 32)
ink = images.sum(axis=2)  # (items, rows)

rng = np.random.default_rng(0)
labels = np.where(rng.random(len(digits)) < 0.1, digits, -1)  # -1: no label.
rows = np.where(rng.random(ink.shape) < 0.7, ink, np.nan)  # NaN: not measured.
train, test = slice(0, 1400), slice(1400, None)
print("items with a label and all rows:", np.sum((labels >= 0) & ~np.isnan(rows).any(axis=1)))

LOSSES = {"digit": "sparse_categorical_crossentropy", "ink": "mean_squared_error"}


def build():
    """Returns the network with its two outputs."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32,))
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    outputs = {
        "digit": keras.layers.Dense(10, activation="softmax")(hidden),
        "ink": keras.layers.Dense(8)(hidden),
    }
    return keras.Model(inputs, outputs)


def fit(model, targets, **options):
    """Trains the model and prints how well it does on the unseen items, all of them labelled."""
    y = {name: target[train] for name, target in targets.items()}
    callbacks = [kj.callbacks.JointLossCallback()]
    options = {"batch_size": 64, "epochs": 20, "verbose": 0, "callbacks": callbacks, **options}
    history = model.fit(x[train], y, **options).history
    predicted = model.predict(x[test], verbose=0)
    accuracy = np.mean(np.argmax(predicted["digit"], axis=1) == digits[test])
    error = np.mean(np.square(predicted["ink"] - ink[test]))
    print(f"accuracy of the digit {accuracy:.1%}, squared error of the ink {error:.3f}")
    return history


# %% [markdown]
"""
Only 7 items are complete. Dropping the others would drop nearly everything that is
known.

## Say what is missing

`missing` is the value that stands for a target that is not there, for all outputs or by name: -1
for the class, NaN for the numbers.
"""

# %%
model = build()
missing = {"digit": -1, "ink": float("nan")}
model.compile("adam", **kj.joint_loss(LOSSES, missing=missing, metrics={"digit": "accuracy"}))
history = fit(model, {"digit": labels, "ink": rows})

# %% [markdown]
"""
A missing target contributes nothing to loss, gradient and metrics. For a loss that is a mean over
the last axis, such as the squared error, each element of a target can be missing: the network
learns from the rows that were measured. For other losses, a target with a missing element is left
out as a whole.

The mean of a term runs over the labelled targets, so that a term with few labels weighs as much as
one with all. The logs show how many there are, and the mean over them:
"""

# %%
for key in ("digit_labelled", "digit_labelled_loss", "ink_labelled", "ink_labelled_loss"):
    print(f"{key:20} {history[key][-1]:.3f}")

# %% [markdown]
"""
`<term>_labelled` is the share of labelled targets, and `<term>_labelled_loss` their mean loss. With
several outputs, Keras' own `<term>_loss` weights each batch by its size, and counts a batch without
any label as 0. With a `JointLossCallback`, the logs of an epoch and of `evaluate` have the mean
over the labelled targets there, too. The progress bar does not during an epoch: read
`<term>_labelled_loss`.

## The trap: sample weights of 0

Without `missing`, a sample weight of 0 leaves an item out of the sum. But Keras then divides by the
number of all items, not of those that count. The same digits, with labels filled by 0:
"""

# %%
weights = {"digit": (labels >= 0).astype("float32"), "ink": np.ones(len(x), "float32")}
filled = {"digit": np.maximum(labels, 0), "ink": ink}
for reduction in ("sum_over_batch_size", "mean_with_sample_weight"):
    loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    model = build()
    model.compile("adam", **kj.joint_loss({**LOSSES, "digit": loss}))
    print(reduction)
    history = fit(
        model, filled, sample_weight={name: weight[train] for name, weight in weights.items()}
    )
    print(f"loss of the digit at the end of training: {history['digit_loss'][-1]:.3f}")

# %% [markdown]
"""
With Keras' default, `"sum_over_batch_size"`, the term of the digit is about a tenth of what it
should be, and so is its gradient: fewer digits are recognized. The reduction
`"mean_with_sample_weight"` divides by the sum of the weights and does not have this fault.

## Weights of classes and of elements

`class_weight` weighs the items of an output by the class of their target, as `fit(class_weight=)`
does in a model with one output; Keras refuses that for several. It acts in training, not in
validation. Here a nine that is not found costs twice as much as any other digit. With several axes each
position has its class: integers `(batch, height, width)` weigh each pixel.

Where each element of a target can be missing, a `sample_weight` of its shape weighs each element:
here the rows in the middle of the image count three times as much as the others.
"""

# %%
ones = np.ones(len(x), "float32")
middle = np.tile(np.where(np.abs(np.arange(8) - 3.5) < 2, 3.0, 1.0), (len(x), 1))
weights = {"digit": ones[train], "ink": middle[train]}
for class_weight in (None, {"digit": {9: 2.0}}):
    model = build()
    model.compile("adam", **kj.joint_loss(LOSSES, missing=missing, class_weight=class_weight))
    fit(model, {"digit": labels, "ink": rows}, sample_weight=weights)
    found = np.argmax(model.predict(x[test], verbose=0)["digit"], axis=1) == 9
    nines = digits[test] == 9
    print(f"nines found: {found[nines].mean():.1%}, found wrongly: {found[~nines].mean():.1%}")

# %% [markdown]
"""
## Tasks with data of their own

Often all targets of a task are in another data set, of another size. `kj.data.TaskBatches` takes
each batch from one of them, with missing targets for the outputs of the others. Here 80 items have
a digit and 1,000 have ink, in batches of 16 and 64, one of each in turn:
"""

# %%
data = kj.data.TaskBatches(
    {"digit": (x[train][:80], digits[train][:80]), "ink": (x[train][-1000:], ink[train][-1000:])},
    batch_size={"digit": 16, "ink": 64},
    strategy="round_robin",
    missing=missing,
)
model = build()
model.compile("adam", **kj.joint_loss(LOSSES, missing=missing))
callback = kj.callbacks.JointLossCallback()
history = model.fit(data, epochs=30, shuffle=False, verbose=0, callbacks=[callback]).history
print(
    f"{len(data)} batches in an epoch, {history['digit_labelled'][-1]:.3f} of the items have a digit"
)
for key in ("digit_labelled_loss", "ink_labelled_loss"):
    print(f"{key:20} {history[key][0]:.3f} {history[key][-1]:.3f}")

# %% [markdown]
"""
In each epoch the tasks see as many batches of the larger set as the smaller one has, and others in
the next epoch. `strategy="proportional"`, the default, takes all batches of all sets, mixed, and
`"temperature"` lies between. In `fit`, `shuffle=False` keeps the order.

## Contrastive losses

A contrastive loss compares items, so a label that is missing has another meaning there: it is given
in the loss itself, as in `kj.losses.SupCon(unlabelled=-1)`. See [pairs](pairs.py).

[missing_targets.py](../missing_targets.py) compares the three ways on the prices of two companies,
with each month held out once: dropping, sample weights, and `missing`.
"""
