# %% [markdown]
"""
# What trips people

Each section shows a fault that costs hours when it is not known, and its mend. What the package
cannot do stands in [limits](../../docs/limits.md). The data are 1,797 scanned digits from
scikit-learn: one network recognizes the digit and draws it again.
"""

# %%
import warnings

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
TARGETS = {"digit": digits, "image": images}
LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}


def build(joint):
    """Returns a network compiled with the joint loss."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, activation="relu", name="hidden")(inputs)
    digit = keras.layers.Dense(10, activation="softmax")(hidden)
    model = keras.Model(inputs, {"digit": digit, "image": keras.layers.Dense(64)(hidden)})
    model.compile("adam", **joint)
    return model


def fit(model, *callbacks, y=TARGETS, epochs=2):
    """Trains the model, prints the warnings and returns the logs of the last epoch."""
    options = {"validation_split": 0.2, "batch_size": 64, "epochs": epochs, "verbose": 0}
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
        history = model.fit(images, y, callbacks=list(callbacks), **options)
    for warning in caught:
        print("warning:", str(warning.message).split(". ")[0])
    return {key: round(values[-1], 3) for key, values in history.history.items()}


def fade_in():
    """Returns a joint loss whose second weight rises from 0 to 1 in 100 steps."""
    return kj.joint_loss(LOSSES, {"image": kj.schedules.Linear(0.0, 1.0, steps=100)})


# %% [markdown]
"""
## The callback is missing

Weights move only in a `fit` with `JointLossCallback`. Without it, a term that fades in from 0 never
begins, and a warning says so.
"""

# %%
print("without:", fit(build(fade_in()))["image_weight"])
print("with:   ", fit(build(fade_in()), kj.callbacks.JointLossCallback())["image_weight"])

# %% [markdown]
"""
## `EarlyStopping` on `val_loss` while weights move

`val_loss` is the sum with the weights of the moment. While a schedule or a rule moves them,
`EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` compare different sums. Let them monitor
`val_joint_loss`, the sum with constant `validation_weights`. `TermStopping` stops single terms.
"""

# %%
fit(build(fade_in()), kj.callbacks.JointLossCallback(), keras.callbacks.EarlyStopping("val_loss"))
early = keras.callbacks.EarlyStopping("val_joint_loss", mode="min")
joint = kj.callbacks.JointLossCallback(validation_weights="equal")
logs = fit(build(fade_in()), early, joint)
print({key: logs[key] for key in ("val_loss", "val_joint_loss")})

# %% [markdown]
"""
## The order of callbacks

Above, `EarlyStopping` stands first and still finds `val_joint_loss`: `JointLossCallback` moves to
the front by itself, and so does what `EarlyStopping("joint_score", mode="max")` monitors: one
[score](weighting.py) over several metrics. `RetrievalEvaluation` does not: put it before those that
monitor its values.

## Compiling again starts schedules again

A schedule counts the steps of the optimizer. If you freeze a layer and compile again, the new
optimizer is at step 0. Give it the old step; its learning rate schedule goes on there, too.
"""

# %%
model = build(fade_in())
fit(model, kj.callbacks.JointLossCallback())
model.get_layer("hidden").trainable = False
for name, step in {"from step 0": 0, "from old step": int(model.optimizer.iterations)}.items():
    optimizer = keras.optimizers.Adam()
    optimizer.iterations.assign(step)
    model.compile(optimizer, **fade_in())
    print(f"compiled again, {name}:", fit(model, kj.callbacks.JointLossCallback())["image_weight"])

# %% [markdown]
"""
## One `joint_loss` for several models

What `joint_loss` returns holds the weights of one model. Call it for each model, as in each fold of
a cross-validation. `clone_model` gives the clone its own weights, whose schedules start again.
"""

# %%
shared = fade_in()
first, second = build(shared), build(shared)
fit(first, kj.callbacks.JointLossCallback())
try:
    fit(second, kj.callbacks.JointLossCallback())
except ValueError as error:
    print("error:", error)
for name, model in {"first": first, "clone": keras.models.clone_model(first)}.items():
    print(f"weight of the {name}:", round(float(model.loss["image"].weight), 3))

# %% [markdown]
"""
## A loss that reaches 0

`GeometricMean` and `FAMO` weigh a loss by its inverse, so a loss that can reach 0 takes all the
weight. Here the second target is always 0. Warnings tell that its weight runs away, and that the loss
is below the least that counts. Give that term a `floor`, below which it counts as solved, or all terms a `min_weight`.
"""

# %%
solved = {**TARGETS, "image": 0 * images}
for floor in (None, {"image": 0.1}):
    model = build(kj.joint_loss(LOSSES, weighting=kj.weighting.GeometricMean(floor)))
    logs = fit(model, kj.callbacks.JointLossCallback(), y=solved, epochs=12)
    print({key: logs[key] for key in ("digit_weight", "image_weight", "val_digit_loss")})

# %% [markdown]
"""
## A term that does not train

A term can have a loss and a weight, and train nothing. `JointLossCallback` refuses a model in which
the head of a term reads the copy of another one, as below. Where it cannot follow the graph, as in
a subclassed model, it warns after the first epoch of a term whose gradient at the layer was 0 in
every step. It also warns of a term whose loss did not change from step to step: its embeddings have
collapsed to one point, units are dead, or the loss is detached, has reached its floor, or has
converged on a batch that is the same in each step.
"""

# %%
inputs = keras.Input((64,))
hidden = keras.layers.Dense(32, activation="relu")(inputs)
z = kj.layers.GradientBalancer(["digit", "image"], name="balancer")(hidden)
digit = keras.layers.Dense(10, activation="softmax")(z["digit"])
model = keras.Model(inputs, {"digit": digit, "image": keras.layers.Dense(64)(z["digit"])})
model.compile("adam", **kj.joint_loss(LOSSES))
try:
    fit(model, kj.callbacks.JointLossCallback())
except ValueError as error:
    print("error:", error)

# %% [markdown]
"""
## A loss that is NaN in one step

One bad target, a logarithm of 0, a root at 0: the gradient of one term is NaN, and after this step
all weights of the model are. `on_nonfinite` names the term, what was not finite (its weight, loss
or gradient) and the step: `"warn"` and `"raise"` the first one, when the logs are read, so after
every `update_freq` batches and at the end of an epoch. `"skip"` trains such a step without the
term, and counts it. Nothing watches by default, as it costs a pass over the gradients of the
predictions.
"""

# %%
broken = {**TARGETS, "image": images.copy()}
broken["image"][100, 5] = np.nan  # One pixel of one image.
for choice in ("warn", "skip"):
    callback = kj.callbacks.JointLossCallback(on_nonfinite=choice)
    model = build(kj.joint_loss(LOSSES))
    print(choice, {key: x for key, x in fit(model, callback, y=broken).items() if "digit_l" in key})

# %% [markdown]
"""
A term is dropped at its predictions. If what is before them is not finite, as with NaN among the
inputs of the model, a gradient of 0 becomes NaN there. Then drop whole steps: a
`keras.optimizers.LossScaleOptimizer` around the optimizer leaves out each step with a gradient that
is not finite.

## The mean with sample weights of 0

A sample weight of 0 leaves an item out of the sum, but Keras still divides by the number of all
items. Use `missing` instead: see [missing targets](missing_targets.py).
"""

# %%
loss = keras.losses.MeanSquaredError()(np.ones((4, 1)), np.zeros((4, 1)), np.array([1, 0, 0, 0]))
print("mean of one item of loss 1, beside three of weight 0:", float(loss))

# %% [markdown]
"""
## Contrastive losses depend on the batch

The other items of the batch are the negatives, so the loss grows with the batch size. Compare
validation losses at one batch size, or compare what a search finds: see [pairs](pairs.py).

`SupCon` or `Triplet` with one view needs other items of the class in the batch. With many classes,
a random batch has few: draw some classes for each batch, and several items of each.
"""

# %%
views = images.reshape(-1, 2, 32)  # The upper and the lower half of each image.
for batch in (32, 256):
    loss = float(kj.losses.InfoNCE(temperature=0.1)(np.zeros(batch), views[:batch]))
    print(f"InfoNCE of the same embeddings in a batch of {batch}: {loss:.3f}")
for classes in (10, 100, 1000):
    print(f"{classes} classes: {(1 - 1 / classes) ** 63:.0%} of a batch of 64 are alone in theirs")
