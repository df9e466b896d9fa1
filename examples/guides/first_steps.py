"""
# First steps

A model with two outputs has two losses, and Keras minimizes their weighted sum. This guide trains
such a model with `compile` and `fit`, shows what each loss contributes, moves a weight during
training, adds a loss from inside the model, and saves everything.

The data are 1,797 scanned digits of 8 x 8 pixels from scikit-learn (`pip install scikit-learn`).
One network recognizes the digit, and draws the image again from 16 numbers.
"""

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


"""
## Two losses

`joint_loss` takes a dict of losses, as `compile` does, and returns the arguments for `compile`:
`loss`, `loss_weights` and `metrics`. Each entry is a *term* of the joint loss. A weight that is not
given is 1. Metrics go to `joint_loss` as well.

The callback logs each term. It also moves the weights, once there is something that moves them.
"""

LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}


def train(model, losses=LOSSES, **options):
    """Compiles the model with a joint loss and trains it."""
    model.compile("adam", **kj.joint_loss(losses, metrics={"digit": "accuracy"}, **options))
    return model.fit(
        x,
        y,
        validation_data=(x_test, y_test),
        batch_size=64,
        epochs=5,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback(log_dir="logs/first_steps")],
    )


history = train(build())
print(kj.report(history))

"""
The table shows the last epoch: the mean loss of a term (raw), its weight, their product, and its
share of the total. Here the drawing has a small share: nearly the whole total is the loss of the
digit. `callback.summary()` returns the same table, after `evaluate` as well.

`History` and the progress bar have the raw losses and weights, under Keras' names and
`<term>_weight`; `History` also has `<term>_share`. With a `log_dir`, the callback writes the same
numbers for TensorBoard: `pip install plotly`, then `tensorboard --logdir logs`, tab *Joint loss*.
The guide to the [dashboard](dashboard.py) shows its figures.
"""

print({key: round(values[-1], 4) for key, values in history.history.items() if "image" in key})

"""
## Choose the weights

A weight multiplies a loss, and what trains the model is the product. To give the drawing a weight
of 20:
"""

history = train(build(), weights={"image": 20.0})
print(kj.report(history))

"""
The raw loss of the drawing is smaller now, and that of the digit larger: with one network for two
terms, weights decide between them. Which weights, and whether a rule should set them, is the
subject of [weighting](weighting.py).

## Move a weight

A weight can be a schedule instead of a number: any `LearningRateSchedule` of Keras, or one of
`kj.schedules`: `Linear`, `Sigmoid`, `Cyclical`, and `Sequential`, which puts others one after the
other. It is a function of the training step, and one step is one batch. Here the drawing fades in
over the first three epochs, 22 batches each:
"""

fade_in = kj.schedules.Linear(0.0, 20.0, steps=66)
history = train(build(), weights={"image": fade_in})
print("weight of the drawing:", np.round(history.history["image_weight"], 2))

"""
Only the callback moves weights. Without it in `fit`, every weight stays where it is, and a warning
says so. Evaluation moves nothing.

## Several losses for one output

A dict in place of the loss of an output gives it several terms. They share the target, and each has
its own weight and logs: here `image_squared` and `image_absolute`.
"""

parts = {"squared": "mean_squared_error", "absolute": "mean_absolute_error"}
losses = {"digit": LOSSES["digit"], "image": parts}
history = train(build(), losses, weights={"image_squared": 20.0})
print(kj.report(history))

"""
## A term inside the model

A loss need not belong to an output. `LossTerm` is a layer that adds the mean of any tensor to the
loss of the model, and returns its first argument unchanged: use the result, or the layer is not
part of the model. This one keeps the numbers of the code small:
"""

penalty = kj.layers.LossTerm(weight=0.02, name="penalty")
model = build(penalty)
history = train(model, weights={"image": fade_in})
print(kj.report(history))

"""
The term needs no target, and it appears in all logs under the layer's name. `ContrastiveTerm` does
the same for a contrastive loss between two embeddings: see [pairs](pairs.py).

## Save, load, continue

A `.keras` file holds the weights of the terms, their schedules and their steps. Import
`keras_jointloss` before you load it. The loaded model is compiled, and training continues where it
stopped.
"""

model.save("first_steps.keras")
loaded = keras.saving.load_model("first_steps.keras")
before, after = (m.evaluate(x_test, y_test, verbose=0, return_dict=True) for m in (model, loaded))
print("loss of the saved model: ", round(before["loss"], 4))
print("loss of the loaded model:", round(after["loss"], 4))
callbacks = [kj.callbacks.JointLossCallback()]
history = loaded.fit(x, y, epochs=6, initial_epoch=5, verbose=0, callbacks=callbacks)
print("weight of the drawing:", history.history["image_weight"])

"""
Between two calls of `fit` you can read and set a weight that is a number. An output term has it at
`model.loss["digit"].weight`, a layer term at `model.get_layer("penalty").weight`.
"""

weight = loaded.loss["digit"].weight
weight.assign(0.5)
print("weight of the digit:", float(weight))
