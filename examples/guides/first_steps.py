# %% [markdown]
"""
# First steps

A model with two outputs has two losses, and Keras minimizes their weighted sum. This guide shows
what each contributes, moves a weight during training, adds a loss inside the model, and saves all.

The data are 1,797 scanned digits of 8 x 8 pixels from scikit-learn. One network recognizes the
digit, and draws the image again from a code of 16 numbers.
"""

# %%
import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
x, x_test = images[:1400], images[1400:]
y = {"digit": digits[:1400], "image": x}
y_test = {"digit": digits[1400:], "image": x_test}


def build(term=None):
    """Returns the network; a layer `term` adds a loss to the code."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    code = keras.layers.Dense(16)(hidden)
    if term is not None:
        code = term(code, keras.ops.abs(code))
    outputs = {
        "digit": keras.layers.Dense(10, activation="softmax")(code),
        "image": keras.layers.Dense(64, activation="sigmoid")(code),
    }
    return keras.Model(inputs, outputs)


# %% [markdown]
"""
## Two losses

`joint_loss` takes losses, weights and metrics as `compile` does, and returns the arguments for
`compile`. Each loss is a *term* of the joint loss; its weight is 1 unless given. A model with one
output takes a loss without the dict: `kj.joint_loss("mse")`; a subclassed one that returns a list,
the dict in the order of its outputs, with `outputs="list"`. The callback logs each term.
"""

# %%
LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}


def train(model, losses=LOSSES, **options):
    """Compiles the model with a joint loss and trains it."""
    model.compile("adam", **kj.joint_loss(losses, metrics={"digit": "accuracy"}, **options))
    callbacks = [kj.callbacks.JointLossCallback(log_dir="logs/first_steps")]
    validation = {"validation_data": (x_test, y_test), "callbacks": callbacks}
    return model.fit(x, y, batch_size=64, epochs=5, verbose=0, **validation)


history = train(build())
print(kj.report(history))

# %% [markdown]
"""
The table shows the last epoch: the mean loss of a term (raw), its weight, their product, and its
share of the total. Nearly the whole total here is the loss of the digit. `callback.summary()`
returns the same table, after `evaluate` as well.

`History` has the same numbers. With a `log_dir`, the callback writes them for TensorBoard, too: see
[the dashboard](dashboard.py).
"""

# %%
print({key: round(values[-1], 4) for key, values in history.history.items() if "image" in key})

# %% [markdown]
"""
## Choose the weights

Give the drawing a weight of 20:
"""

# %%
history = train(build(), weights={"image": 20.0})
print(kj.report(history))

# %% [markdown]
"""
The raw loss of the drawing is smaller now, and that of the digit larger: weights decide between
terms. [Which weighting?](weighting.py) helps to find weights, by hand or by a rule.

## Move a weight

A weight can be a schedule instead of a number: any `LearningRateSchedule` of Keras, or one of
`kj.schedules`: `Linear`, `Sigmoid`, `Cyclical`, and `Sequential`, which puts others one after the
other. It counts batches. Here the drawing fades in over the first three epochs of 22 batches:
"""

# %%
fade_in = kj.schedules.Linear(0.0, 20.0, steps=66)
history = train(build(), weights={"image": fade_in})
print("weight of the drawing:", np.round(history.history["image_weight"], 2))

# %% [markdown]
"""
The callback moves the weights, in `fit` alone: evaluation moves nothing. Before you stop such a
training with `EarlyStopping`, read [what trips people](pitfalls.py).

## Several losses for one output

A dict in place of a loss makes several terms, which share the target. Each has its own weight and
logs: here `image_squared` and `image_absolute`.
"""

# %%
parts = {"squared": "mean_squared_error", "absolute": "mean_absolute_error"}
losses = {"digit": LOSSES["digit"], "image": parts}
history = train(build(), losses, weights={"image_squared": 20.0})
print(kj.report(history))

# %% [markdown]
"""
## A term inside the model

`LossTerm` is a layer that adds the mean of a tensor, its second argument, to the loss of the
model. It returns the first argument unchanged: use that, or the layer is not part of the model.
This one keeps the numbers of the code small:
"""

# %%
penalty = kj.layers.LossTerm(weight=0.02, name="penalty")
model = build(penalty)
history = train(model, weights={"image": fade_in})
print(kj.report(history))

# %% [markdown]
"""
The term needs no target, and the logs show it under the layer's name. `ContrastiveTerm` does the
same for [pairs](pairs.py).

## Save, load, continue

A `.keras` file holds the weights of the terms, their schedules and their steps. Import
`keras_jointloss` before you load it, and continue where training stopped.
"""

# %%
model.save("first_steps.keras")
loaded = keras.saving.load_model("first_steps.keras")
before, after = (m.evaluate(x_test, y_test, verbose=0, return_dict=True) for m in (model, loaded))
print("loss of the saved model: ", round(before["loss"], 4))
print("loss of the loaded model:", round(after["loss"], 4))
callbacks = [kj.callbacks.JointLossCallback()]
history = loaded.fit(x, y, epochs=6, initial_epoch=5, verbose=0, callbacks=callbacks)
print("weight of the drawing:", history.history["image_weight"])

# %% [markdown]
"""
Between two calls of `fit` you can read and set a weight that is a number: of an output at
`model.loss["digit"].weight`, of a layer at `model.get_layer("penalty").weight`.
"""

# %%
weight = loaded.loss["digit"].weight
weight.assign(0.5)
print("weight of the digit:", float(weight))
