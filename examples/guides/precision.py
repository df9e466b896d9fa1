# %% [markdown]
"""
# Beside the weights: gradient accumulation and mixed precision

Both save memory and leave a joint loss as it is, with a few exceptions. This guide measures them,
and asserts what it prints. [Learning rate and clipping](optimizer.py) have a guide of their own.

The data are 1,797 scanned digits from scikit-learn: one network recognizes the digit and draws it
again.
"""

# %%
import keras
import numpy as np
from keras.optimizers import SGD
from keras.optimizers.schedules import PolynomialDecay
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
TARGETS = {"digit": digits.astype("float32"), "image": images}
LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}


def build(policy="float32"):
    """Returns a network with a trunk and two heads, always with the same parameters."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    digit = keras.layers.Dense(10, activation="softmax", dtype="float32")(hidden)
    image = keras.layers.Dense(64, dtype="float32")(hidden)
    model = keras.Model(inputs, {"digit": digit, "image": image})
    keras.config.set_dtype_policy("float32")
    return model


def train(optimizer, weights=None, batches=20, size=64, policy="float32", y=TARGETS, **compiled):
    """Trains on some batches; returns the model, the logs, and how far each layer has moved."""
    model, items = build(policy), slice(batches * size)
    joint = kj.joint_loss(LOSSES, weights, missing=float("nan"))
    model.compile(optimizer, **joint, **compiled)
    before = model.get_weights()
    targets = {name: target[items] for name, target in y.items()}
    given = {"batch_size": size, "shuffle": False, "verbose": 0}
    callbacks = [kj.callbacks.JointLossCallback()]
    history = model.fit(images[items], targets, callbacks=callbacks, **given).history
    moved = [(after - x).ravel() for after, x in zip(model.get_weights(), before, strict=True)]
    return model, {key: x[-1] for key, x in history.items()}, moved


def difference(first, second):
    """Returns how much two trainings differ, as a part of how far the second moved."""
    a, b = np.concatenate(first), np.concatenate(second)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# %% [markdown]
"""
## Gradient accumulation

`gradient_accumulation_steps=4` updates the parameters after every fourth batch, with the mean of four
gradients. Four batches of 16 equal one of 64 where the loss is a mean over all items of a batch.
"""

# %%
large = train(SGD(0.1), batches=10, size=64)[2]
small = train(SGD(0.1, gradient_accumulation_steps=4), batches=40, size=16)[2]
print(f"4 x 16 differ from 64: {difference(small, large):.4%}")
assert difference(small, large) < 1e-5

# %% [markdown]
"""
They do not equal it where the loss of a batch depends on which items are in it:

- **Missing targets and masks**: the mean is over the labelled items of each batch, and a batch
  without any counts as 0. If the 16 labelled items of 64 are in one of four batches, the term has
  a quarter of the gradient.
- **Contrastive losses**: the negatives are those of the small batch. For a large one,
  [`ChunkedTower`](several_devices.py) saves the same memory.
"""

# %%
labelled = digits.astype("float32")
labelled[np.arange(len(digits)) % 64 >= 16] = np.nan
partly = {**TARGETS, "digit": labelled}
large = train(SGD(0.1), batches=1, size=64, y=partly)[2]
accumulating = SGD(0.1, gradient_accumulation_steps=4)
small = train(accumulating, batches=4, size=16, y=partly)[2]
part = np.linalg.norm(small[2]) / np.linalg.norm(large[2])  # Of the digit's head.
views = images.reshape(-1, 2, 32)  # The upper and the lower half of each image.
loss = kj.losses.InfoNCE(temperature=0.1)
whole = float(loss(np.zeros(64), views[:64]))
parts = np.mean([float(loss(np.zeros(16), views[i : i + 16])) for i in range(0, 64, 16)])
print(f"labelled in one of four batches: {part:.3f} of the gradient")
print(f"InfoNCE of 64 items: {whole:.2f}; mean of 4 x 16: {parts:.2f}")
assert abs(part - 0.25) < 1e-3
assert parts < whole - 1

# %% [markdown]
"""
**Schedules count batches, not updates**: of weights, of the learning rate, and what rules do. Only
`optimizer.iterations` counts updates. With four batches to an update, give all schedules four times
as many steps. What is left of an epoch of 22 batches goes into the next: two epochs are 11 updates.
Clipping acts on the mean of the four; an aggregator, and `on_nonfinite="skip"`, on each batch.
"""

# %%
decay = PolynomialDecay(0.1, 28, end_learning_rate=0.0)
fade_in = {"image": kj.schedules.Linear(0.0, 1.0, steps=28)}
optimizer = SGD(decay, gradient_accumulation_steps=4)
model, logs, _ = train(optimizer, fade_in, batches=22)
rate, weight = float(optimizer.learning_rate), logs["image_weight"]
print(f"22 batches: {int(optimizer.iterations)} updates, rate {rate:.3f}, weight {weight:.3f}")
assert int(optimizer.iterations) == 5
assert abs(rate - 0.1 * 6 / 28) < 1e-6
assert abs(weight - 22 / 28) < 1e-6
given = {"callbacks": [kj.callbacks.JointLossCallback()], "batch_size": 64, "verbose": 0}
model.fit(images[:1408], {name: y[:1408] for name, y in TARGETS.items()}, **given)
assert int(optimizer.iterations) == 11

# %% [markdown]
"""
## Mixed precision

`keras.config.set_dtype_policy("mixed_float16")` before the model is built computes layers in float16;
here, as Keras advises, not the outputs. Losses, weights and the logs are in float32 at least.
For float16, `compile` wraps the optimizer so that it scales the loss: the total, after the weights.
"""

# %%
_, exact, moved = train(SGD(0.1))
for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
    model, logs, rounded = train(SGD(0.1), policy=policy)
    losses = [round(logs[f"{name}_loss"], 4) for name in LOSSES]
    apart, kind = difference(rounded, moved), type(model.optimizer).__name__
    print(f"{policy:<15} losses {losses}, parameters differ by {apart:.2%}, {kind}")
    assert np.allclose(losses, [exact["digit_loss"], exact["image_loss"]], rtol=0.01)
    assert apart < 0.02
    assert (kind == "LossScaleOptimizer") == (policy == "mixed_float16")

# %% [markdown]
"""
Clipping, accumulation and the learning rate belong to the optimizer inside, and act on gradients
without the scale: choose them as for float32.

The scale begins at 32,768. A step with a gradient above 65,504 is left out, *for all terms*, and halves
the scale; 2,000 good steps in a row double it. So one heavy weight costs all terms their first steps.
Schedules of weights, and rules, still count each batch; that of the learning rate does not.
"""

# %%
clipped = train(SGD(1.0, global_clipnorm=0.1))[2]
same = train(SGD(1.0, global_clipnorm=0.1), policy="mixed_float16")[2]
print(f"clipped: parameters differ by {difference(same, clipped):.2%}")
assert difference(same, clipped) < 0.05
for weight in (1.0, 1e5):
    weights = {"image": kj.schedules.Linear(weight, 0.0, steps=40)}
    optimizer = SGD(PolynomialDecay(0.1 / weight, 40, 0.0))
    model, logs, _ = train(optimizer, weights, policy="mixed_float16")
    scale = float(model.optimizer.dynamic_scale)
    rate, weight_now = float(optimizer.learning_rate) / 0.1 * weight, logs["image_weight"] / weight
    counted = [40 * (1 - x) for x in (rate, weight_now)]
    print(f"image x {weight:g}: scale {scale:g}; steps of rate and weight: {np.round(counted)}")
    assert np.allclose(counted, [20 - np.log2(32768 / scale), 20], atol=0.01)
assert scale < 32768

# %% [markdown]
"""
At the other end, float16 knows nothing between 0 and 6e-8. Tiny weights bring the gradients there
unless the loss is scaled. The scale is one for the total: it helps all terms, and cannot widen what lies
between the largest and the smallest of them. Weights of a constant sum keep clear of both ends.
"""

# %%
tiny = {"digit": 1e-6, "image": 1e-6}
moved, part = train(SGD(1e5), tiny)[2], {}
for scales in (True, False):
    rounded = train(SGD(1e5), tiny, policy="mixed_float16", auto_scale_loss=scales)[2]
    part[scales] = np.linalg.norm(rounded[0]) / np.linalg.norm(moved[0])
    print(f"weights of 1e-6, auto_scale_loss={scales}: the trunk moves {part[scales]:.1%} as far")
assert abs(part[True] - 1) < 0.02
assert part[False] < 0.1

# %% [markdown]
"""
bfloat16 has the range of float32, so nothing is scaled or left out, and 8 bits of precision instead of
11. It rounds a little more, as above.

`JointLossCallback(on_nonfinite="skip")` leaves a single term out of a step, where its loss or
gradient is not finite in float32. What overflows only in float16 still reaches the scale.

## In short

| you change | what it does to the terms |
|---|---|
| `gradient_accumulation_steps=n` | equals a batch n times as large for means over all items; not for missing targets and contrastive losses. Schedules need n times as many steps |
| `mixed_float16` | values within rounding; a heavy weight costs all terms the first steps |
| `mixed_bfloat16` | values within rounding |
"""
