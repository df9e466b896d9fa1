# %% [markdown]
"""
# Save, interrupt, resume

What a joint loss learns and counts belongs to the model: the weights of the terms, the steps of their
schedules, the state of rules and memories. Keras' own tools save it along with the layers. This guide
saves a training, interrupts it and resumes it to the same bits, keeps the best epoch, trains in two
phases, and fine-tunes with LoRA.

The data are 1,797 scanned digits of 8 x 8 pixels from scikit-learn. The files go to a
temporary folder.
"""

# %%
import pathlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
x, x_test = images[:1400], images[1400:]
y = {"digit": digits[:1400], "image": x}
y_test = {"digit": digits[1400:], "image": x_test}
FOLDER = pathlib.Path(tempfile.mkdtemp())
LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}
STEPS = 22  # Batches of 64 in an epoch.


def build():
    """Returns a network that recognizes the digit and draws it again."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(64, activation="relu", name="first")(inputs)
    hidden = keras.layers.Dense(32, activation="relu", name="second")(hidden)
    digit = keras.layers.Dense(10, activation="softmax", name="digit_head")(hidden)
    image = keras.layers.Dense(64, name="image_head")(hidden)
    return keras.Model(inputs, {"digit": digit, "image": image})


def make_joint():
    """Returns a joint loss: the image fades in over four epochs, a rule weighs both terms."""
    weights = {"image": kj.schedules.Linear(0.1, 1.0, steps=4 * STEPS)}
    return kj.joint_loss(LOSSES, weights, weighting="uncertainty", metrics={"digit": "accuracy"})


def compiled(model):
    """Returns the model, compiled with a joint loss of its own."""
    model.compile("adam", **make_joint())
    return model


def fit(model, *callbacks, **options):
    """Trains the model, in the same order of the data in each epoch, and returns the logs."""
    options = {"epochs": 6, "batch_size": 64, "shuffle": False, "verbose": 0, **options}
    callbacks = [kj.callbacks.JointLossCallback(validation_weights="equal"), *callbacks]
    return model.fit(x, y, callbacks=callbacks, **options).history


def weights_of(model):
    """Returns the weight of each term."""
    return {name: float(loss.weight) for name, loss in model.loss.items()}


def check_same_bits(model, other):
    """Raises an error unless layers, optimizer and terms of both models are equal to the bit."""
    for of_model in (lambda model: model.weights, lambda model: model.optimizer.variables):
        for a, b in zip(of_model(model), of_model(other), strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    assert weights_of(model) == weights_of(other)


# %% [markdown]
"""
This is the training that nothing interrupts. The weight of the image is the product of what the
schedule says, which is 1 from the fifth epoch on, and of the rule's.
"""

# %%
model = compiled(build())
history = fit(model)
print("weight of the image:", np.round(history["image_weight"], 4))
print("at the end:", {name: round(weight, 4) for name, weight in weights_of(model).items()})

# %% [markdown]
"""
## A whole model in one file

`model.save` writes layers, optimizer, losses and the state of all terms. Import `keras_jointloss`
before you load the file; the losses, rules and schedules of the package need no `custom_objects`.
After three of six epochs here, the rest of the training ends where the uninterrupted one has ended,
to the last bit:
"""

# %%
half = compiled(build())
fit(half, epochs=3)
half.save(FOLDER / "half.keras")
loaded = keras.saving.load_model(FOLDER / "half.keras")
resumed = fit(loaded, initial_epoch=3)
print("after loading:", np.round(resumed["image_weight"], 4))
check_same_bits(loaded, model)

# %% [markdown]
"""
`initial_epoch` numbers the epochs and ends them at `epochs`. Schedules do not need it: they count the
steps of training, and the file has them.

## Weights files

A `.weights.h5` file holds the same state without the code. Build and compile the same model, then load
it. `load_weights` into a model with an optimizer that has not been built leaves its moments out, with
a warning of Keras: build it first.
"""

# %%
half.save_weights(FOLDER / "half.weights.h5")
again = compiled(build())
again.optimizer.build(again.trainable_variables)
again.load_weights(FOLDER / "half.weights.h5")
fit(again, initial_epoch=3)
check_same_bits(again, model)

# %% [markdown]
"""
## Interrupted: `BackupAndRestore`

`BackupAndRestore` writes such a file after each epoch, and loads it at the start of the next `fit`, in
a new process as well. Here the third epoch is cut off in the middle, as by Ctrl-C:
"""


# %%
class Interrupt(keras.callbacks.Callback):
    """Ends the process of training in the middle of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 2 * STEPS + 10:
            raise KeyboardInterrupt


def backup():
    """Returns the callback."""
    return keras.callbacks.BackupAndRestore(FOLDER / "backup")


try:
    fit(compiled(build()), backup(), Interrupt())
except KeyboardInterrupt:
    print("interrupted; files:", sorted(path.name for path in (FOLDER / "backup").iterdir()))
restarted = compiled(build())
history = fit(restarted, backup())
print("epochs of the second run:", len(history["loss"]))
check_same_bits(restarted, model)

# %% [markdown]
"""
The second run begins with the third epoch: what an epoch has done before it was cut off is lost.

- The model is built and compiled before `fit`, in the same way as in the first run.
- Dropout and other random layers draw other numbers after a restart: Keras saves no state of theirs.
- Data that are shuffled by `fit` come in another order, unless `keras.utils.set_random_seed` and the
  number of epochs before are the same. `kj.data` has the batches of each epoch by its number.
- A process that is killed while a backup is written leaves half a file. [Limits](../../docs/limits.md)
  has a callback of 20 lines that survives this at any point.

## The best epoch: `ModelCheckpoint`

`val_loss` is the sum with the weights of the moment, so its values do not compare while weights move.
`validation_weights="equal"` adds `val_joint_loss`, the sum with constant weights, which does:
"""

# %%
best = keras.callbacks.ModelCheckpoint(
    FOLDER / "best.keras", monitor="val_joint_loss", mode="min", save_best_only=True
)
model = compiled(build())
history = fit(model, best, validation_data=(x_test, y_test), epochs=8, batch_size=16)
for name in ("val_loss", "val_joint_loss"):
    print(f"{name:14}", np.round(history[name], 3))
kept = keras.saving.load_model(FOLDER / "best.keras")
callbacks = [kj.callbacks.JointLossCallback()]
scores = kept.evaluate(x_test, y_test, verbose=0, return_dict=True, callbacks=callbacks)
print("in the file:", round(scores["digit_loss"] + scores["image_loss"], 3))

# %% [markdown]
"""
`val_loss` rises from the third epoch on, because the weights rise: by it, the second epoch would be the
best, with more than twice the losses of the last one. The file has the terms as they were after its
epoch, and a `fit` of the loaded model goes on from there.

## Two phases: freeze, compile again, train on

After `trainable = False` Keras wants the model compiled again, with a new optimizer, as the old one has
moments for all variables. What becomes of the terms is your choice:

- `make_joint()` again: schedules and the rule begin anew.
- What `joint_loss` has returned before: the rule goes on with what it has learned. Schedules follow
  the step of the optimizer, and begin anew with a new one.
- ... and `iterations` of the new optimizer set to those of the old one: schedules go on, too, and so
  does the schedule of a learning rate.
"""

# %%
print(f"{'weight of the image':<32}", "phase 1", " " * 6, "phase 2")
for title in ("a new joint loss", "the same", "the same, with the old step"):
    model, joint = build(), make_joint()
    first = keras.optimizers.Adam()
    model.compile(first, **joint)
    before = fit(model, epochs=2)["image_weight"]
    model.get_layer("first").trainable = False
    second = keras.optimizers.Adam(1e-4)
    if title.endswith("step"):
        second.iterations.assign(int(first.iterations))
    model.compile(second, **(make_joint() if title.startswith("a new") else joint))
    print(f"{title:<32}", np.round(before, 3), np.round(fit(model, epochs=2)["image_weight"], 3))

# %% [markdown]
"""
Give each phase a folder of its own for `BackupAndRestore`: a backup of the first phase does not fit the
optimizer of the second.

## LoRA

`enable_lora` of a Keras layer freezes its kernel and trains a product of two narrow matrices beside it
(Hu et al., 2022). This is a second phase as above: compile again. Weights of terms, schedules and rules
know nothing of it.
"""

# %%
model = keras.saving.load_model(FOLDER / "half.keras")
for name in ("first", "second"):
    model.get_layer(name).enable_lora(rank=4)
compiled(model)
history = fit(model, epochs=4)
print("loss:", np.round(history["loss"], 3))
print("trained:", [variable.path for variable in model.trainable_variables][:3], "...")

# %% [markdown]
"""
Keras saves such a layer merged: the file has the kernel with the product added, and zeros for both
matrices. The loaded model predicts the same. But two matrices of zeros have no gradient: if you train
on, also after `BackupAndRestore`, only the moments of the optimizer move them. The layer hardly learns
for a while, and not at all with a new optimizer. Give the first matrix a new start; the product is
still 0 then.
"""

# %%
model.save(FOLDER / "lora.keras")
loaded = keras.saving.load_model(FOLDER / "lora.keras")
saved, found = (m.predict(x_test, verbose=0)["image"] for m in (model, loaded))
print("predicts the same:", np.allclose(saved, found, atol=1e-5))
layer = loaded.get_layer("first")
for title in ("as loaded", "new start"):
    if title == "new start":
        layer.lora_kernel_a.assign(keras.initializers.HeUniform(1)(layer.lora_kernel_a.shape))
    fit(loaded, epochs=1)
    a, b = map(keras.ops.convert_to_numpy, (layer.lora_kernel_a, layer.lora_kernel_b))
    print(f"{title}: the product is at most {np.max(np.abs(a @ b)):.4f}")
print("weights of the terms:", {name: round(x, 3) for name, x in weights_of(loaded).items()})
