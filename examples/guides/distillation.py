# %% [markdown]
"""
# Distillation: a small model learns from a large one

A large model has learned from data that you do not have, or that you have without labels. A small
model, the *student*, learns from what the large one, the *teacher*, says of each item: which
classes are similar, and which features matter. This guide adds that as terms of a joint loss.

The data are 1,797 scanned digits from scikit-learn. The teacher is trained with 1,400 labels, the
student has 70 of them.
"""

# %%
import os
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

keras.utils.set_random_seed(0)
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
x, x_test = images[:1400], images[1400:]
layers = [keras.Input((64,)), keras.layers.Dense(256, activation="relu", name="features")]
layers += [keras.layers.Dropout(0.5), keras.layers.Dense(10, name="logits")]
teacher = keras.Sequential(layers, name="large")
crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
teacher.compile(keras.optimizers.Adam(0.003), crossentropy)
teacher.fit(x, digits[:1400], epochs=15, verbose=0)


def report(title, model):
    """Prints how many unseen digits a model recognizes, and its parameters."""
    logits = model.predict(x_test, verbose=0)
    logits = logits["digit"] if isinstance(logits, dict) else logits
    accuracy = np.mean(np.argmax(logits, axis=1) == digits[1400:])
    print(f"{title:26} accuracy {accuracy:.1%}, {model.count_params():,} parameters")


report("teacher, 1,400 labels", teacher)

# %% [markdown]
"""
## Logits

`kj.layers.Teacher(model)` returns what the frozen model returns, in inference mode and without a
gradient. A `LossTerm` compares it with the student's own logits. The loss is any function of target
and prediction. This one is that of Hinton (2015): the divergence of the classes, softened by a
temperature, so that the smaller probabilities count. The factor keeps the size of its gradient.

Labels that the student lacks are -1, as in [missing targets](missing_targets.py). The teacher says
something of every item.
"""

# %%
labels = np.where(np.arange(1400) < 70, digits[:1400], -1)


@keras.saving.register_keras_serializable("guide")
def soft_targets(target, logits, temperature=3.0):
    """Returns the divergence between softened classes of each item."""
    target, logits = (keras.ops.softmax(z / temperature) for z in (target, logits))
    return temperature**2 * keras.losses.kl_divergence(target, logits)


def train(title, add_terms):
    """Trains a student with further terms, and prints how well it does."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    logits = add_terms(inputs, hidden, keras.layers.Dense(10))
    student = keras.Model(inputs, {"digit": keras.layers.Identity(name="digit")(logits)})
    joint = kj.joint_loss({"digit": crossentropy}, missing={"digit": -1})
    student.compile(keras.optimizers.Adam(0.003), **joint)
    callbacks = [kj.callbacks.JointLossCallback()]
    history = student.fit(x, {"digit": labels}, epochs=15, verbose=0, callbacks=callbacks).history
    report(title, student)
    return student, history


def from_logits(inputs, hidden, head):
    target = kj.layers.Teacher(teacher, name="teacher")(inputs)
    return kj.layers.LossTerm(soft_targets, name="distill")(head(hidden), target)


train("student, 70 labels", lambda inputs, hidden, head: head(hidden))
student, history = train("... and the teacher", from_logits)
for key in ("digit_loss", "distill_loss", "distill_weight"):
    print(f"{key:15}", *np.round(history[key][::5], 3))

# %% [markdown]
"""
Each term has a weight, a schedule or a rule, and its own line in the logs, as any other.

## Features

`outputs` names layers of the teacher, whose outputs are returned in one pass. A `Dense` layer guesses
the teacher's 256 features from the student's 16 (a *hint*, Romero 2015), and a term that fades out
in the first 300 steps makes the guess better: it shows the student where to begin.
"""


# %%
def from_features(inputs, hidden, head):
    layer = kj.layers.Teacher(teacher, outputs=["features", "logits"], name="teacher")
    features, target = layer(inputs)
    guess = keras.layers.Dense(256, name="guess")(hidden)
    error = keras.ops.mean(keras.ops.square(guess - features), axis=-1)
    fade = kj.schedules.Linear(1.0, 0.0, steps=300)
    hidden = kj.layers.LossTerm(weight=fade, name="hint")(hidden, error)
    return kj.layers.LossTerm(soft_targets, name="distill")(head(hidden), target)


train("... and its features", from_features)

# %% [markdown]
"""
On these digits, the features add nothing to the logits that one seed could show. (4,352 of the
parameters are those of the guess, which `predict` does not need.) For embeddings to search by, `kj.losses.SimilarityDistillation` compares how similar the items of a batch are to each
other, and `kj.losses.MarginMSE` how much better a match is than another candidate: see
[pairs](pairs.py). A teacher that is a moving average of the student is a `MomentumTower`.

## What the teacher costs

`fit` and `evaluate` compute the teacher. `predict` and an exported model do not, and neither the
weights nor the optimizer nor the files of the student hold anything of it. A student from a file
predicts. To train or evaluate it with its terms, give it the teacher again, or build it with
`Teacher(..., save_teacher=True)`:
"""

# %%
folder = tempfile.mkdtemp()
for name, model in (("student", student), ("teacher", teacher)):
    model.save(os.path.join(folder, f"{name}.keras"))
    print(f"{name}.keras: {os.path.getsize(os.path.join(folder, f'{name}.keras')):,} bytes")
loaded = keras.models.load_model(os.path.join(folder, "student.keras"))
report("loaded", loaded)
loaded.get_layer("teacher").set_model(teacher)
for name, model in (("before", student), ("loaded", loaded)):
    logs = model.evaluate(x, {"digit": labels}, verbose=0, return_dict=True)
    print(f"{name}: distill_loss {logs['distill_loss']:.4f}")

# %% [markdown]
"""
The outputs of the teacher are only for losses. In `predict` they are NaN, so that it shows if they
are used for anything else.

## Beside `keras.distillation`

Keras has a model for distillation, `keras.distillation.Distiller`. This was tried with Keras 3.15:

| | `Distiller(teacher, student, losses)` | `Teacher` and `LossTerm` |
|---|---|---|
| what trains | a model around both; the student is its attribute | the student itself |
| losses of the teacher | a list, with constant weights; two parts that add up to 1 | terms: schedules, rules, gradient combination |
| logs | `student_loss`, `distillation_loss` (the sum) | each term by its name, its weight and share |
| `metrics`, targets | a list; a loss for each output | as in `joint_loss`: by output, missing targets |
| `sample_weight`, `class_weight` | ignored | as in Keras; of the term in its call |
| teacher and student | same shapes and dtypes of inputs and outputs; a student of `mixed_float16` needs such a teacher | whatever the loss can compare |
| features | the student runs a second time in each step, in `evaluate` in training mode | one pass |
| file | holds the teacher; compile it again after loading | without the teacher, or with it; resumes |
| `LogitsDistillation(t, keras.losses.KLDivergence())` | | `soft_targets` above: equal (`tests/test_teacher.py`) |

By default, `LogitsDistillation(t)` takes `"kl_divergence"`, which Keras finds as a function. It is
then applied to the logits divided by `t`, which it clips to values from 1e-7 to 1, without softmax
and without `t^2`: pass the class.
"""
