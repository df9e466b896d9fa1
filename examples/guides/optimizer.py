# %% [markdown]
"""
# Beside the weights: learning rate and clipping

An optimizer sees one gradient: the sum of the gradients of all terms, each times its weight. So
whatever it does with the length of that gradient, it does with the weights. This guide measures
what a weight then means, and asserts what it prints. [Accumulation and mixed precision](precision.py)
have a guide of their own.

The data are 1,797 scanned digits from scikit-learn: one network recognizes the digit and draws it
again.
"""

# %%
import keras
import numpy as np
from keras.optimizers import SGD, Adagrad, Adam, Lion
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
TARGETS = {"digit": digits, "image": images}
LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}


def build(regularizer=None):
    """Returns a network with a trunk and two heads, always with the same parameters."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, activation="relu", kernel_regularizer=regularizer)(inputs)
    digit = keras.layers.Dense(10, activation="softmax")(hidden)
    return keras.Model(inputs, {"digit": digit, "image": keras.layers.Dense(64)(hidden)})


def train(optimizer, weights=None, batches=20, epochs=1, weighting=None, model=None):
    """Trains on some batches; returns the logs, and how far each part of the model has moved."""
    model = model or build()
    model.compile(optimizer, **kj.joint_loss(LOSSES, weights, weighting))
    before, items = model.get_weights(), slice(64 * batches)
    targets = {name: target[items] for name, target in TARGETS.items()}
    given = {"batch_size": 64, "epochs": epochs, "shuffle": False, "verbose": 0}
    callbacks = [kj.callbacks.JointLossCallback()]
    history = model.fit(images[items], targets, callbacks=callbacks, **given).history
    moved = [after - x for after, x in zip(model.get_weights(), before, strict=True)]
    moved = {"trunk": moved[:2], "digit head": moved[2:4], "image head": moved[4:]}
    moved = {name: np.concatenate([x.ravel() for x in xs]) for name, xs in moved.items()}
    return {key: x[-1] for key, x in history.items()}, moved


def difference(first, second):
    """Returns how much two trainings differ, as a part of how far the second moved."""
    a, b = (np.concatenate([*moved.values()]) for moved in (first, second))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# %% [markdown]
"""
## Twice the weights, or twice the learning rate?

Each optimizer trains with the weights 1 and 3, with 2 and 6, and with 1 and 3 at twice the learning
rate. What do twice the weights equal?
"""

# %%
ONCE, TWICE = {"digit": 1.0, "image": 3.0}, {"digit": 2.0, "image": 6.0}
OPTIMIZERS = {
    "SGD": (lambda rate: SGD(rate, momentum=0.9), 0.01),
    "Adam": (Adam, 0.002),
    "Lion": (Lion, 0.001),
    "Adagrad": (Adagrad, 0.02),
}
print(f"{'twice the weights differ from':<32}{'the same rate':>14}{'twice the rate':>16}")
found = {}
for name, (optimizer, rate) in OPTIMIZERS.items():
    doubled = train(optimizer(rate), TWICE)[1]
    same = difference(doubled, train(optimizer(rate), ONCE)[1])
    twice = difference(doubled, train(optimizer(2 * rate), ONCE)[1])
    found[name] = same, twice
    print(f"{name:<32}{same:>14.2%}{twice:>16.2%}")
assert found["SGD"][1] < 1e-5 < 0.3 < found["SGD"][0]
assert max(found["Adam"][0], found["Lion"][0]) < 0.03
assert min(found["Adagrad"]) > 0.05

# %% [markdown]
"""
- **SGD**, with momentum or without: twice the weights are twice the learning rate, exactly. A grid of
  weights also searches the learning rate.
- **Adam, Lion**, and others that divide by the length of past gradients: a common factor does nothing.
  Only the ratios of weights count. What is left is Adam's `epsilon`, which matters where gradients
  are not much larger than it, 1e-7: with weights that make the total tiny, it acts as a smaller
  learning rate.
- **Adagrad** is between the two, since it starts from an accumulator of 0.1 that the first gradients
  are compared with.

This holds for constant weights. If all of them fall during training, Adam still divides by the larger
gradients of the past, and its steps are shorter for a while: see [Which weighting?](weighting.py).

What is no term is not multiplied: twice the weights halve a regularizer against the terms, under
any optimizer. The same holds for the decay of `AdamW` or `weight_decay=`, but that does not depend on
the loss: it is a part of the learning rate.
"""

# %%
decay = keras.regularizers.L2(0.01)
ratios = []
for weights in (ONCE, TWICE):
    logs, _ = train(Adam(0.0), weights, model=build(decay))
    terms = logs["digit_share"] + logs["image_share"]
    ratios.append((1 - terms) / terms)
print("regularizer / terms:", np.round(ratios, 3))
assert abs(ratios[0] / ratios[1] - 2) < 1e-3

# %% [markdown]
"""
## Weights that sum up to a constant

So give SGD weights of a constant sum, such as the number of terms: then the step keeps its size, and
a grid compares ratios alone. Here a weight of 200 destroys the training, and the same ratio with
normalized weights does not. With Adam both are the same training.
"""


# %%
def normalized(weights):
    """Returns weights of the same ratios, whose sum is the number of terms."""
    factor = len(weights) / sum(weights.values())
    return {name: factor * weight for name, weight in weights.items()}


loss = {}
for weight in (1.0, 200.0):
    given = {"digit": 1.0, "image": weight}
    for name, optimizer in {"SGD": lambda: SGD(0.3), "Adam": lambda: Adam(0.002)}.items():
        both = [train(optimizer(), x)[0]["image_loss"] for x in (given, normalized(given))]
        print(f"{name:<5} image x {weight:<5g} as given {both[0]:6.3f}, normalized {both[1]:6.3f}")
        loss[name] = both
assert loss["SGD"][0] > 1 > 0.2 > loss["SGD"][1]
assert abs(loss["Adam"][0] / loss["Adam"][1] - 1) < 0.02

# %% [markdown]
"""
A schedule that fades a term in lengthens the steps of SGD meanwhile; one that fades it out shortens
them. Rules differ: the weights of some sum up to a constant, and others make the steps of SGD many
times as long. With those, take Adam, or begin with a smaller learning rate.
"""

# %%
sums = {}
for rule in ("dynamic_weight_average", "famo", "uncertainty", "geometric_mean"):
    logs, _ = train(Adam(0.002), epochs=20, weighting=rule)
    sums[rule] = logs["digit_weight"] + logs["image_weight"]
    print(f"sum of the weights, {rule:<24}{sums[rule]:7.2f}")
assert abs(sums["dynamic_weight_average"] - 2) < 1e-3
assert abs(sums["famo"] - 1) < 1e-3
assert sums["uncertainty"] > 10

# %% [markdown]
"""
## Clipping

The optimizer clips the *sum*, after the weights. One step of SGD shows what that does to the terms,
when the weight of the image rises from 1 to 100. Without clipping, the head of the digit does not
notice. Lengths of the step:
"""

# %%
CLIPPING = {"none": {}, "clipvalue": 0.01, "clipnorm": 0.1, "global_clipnorm": 0.1}
print(f"{'clipping':<17}{'digit head: x1':>15}{'x100':>8}{'trunk: x1':>12}{'x100':>8}{'cosine':>9}")
steps = {}
for name, limit in CLIPPING.items():
    options = {name: limit} if limit else {}
    moved = [train(SGD(1.0, **options), {"image": w}, batches=1)[1] for w in (1.0, 100.0)]
    steps[name] = moved
    head, trunk = ([np.linalg.norm(x[part]) for x in moved] for part in ("digit head", "trunk"))
    a, b = moved[0]["trunk"], steps["none"][0]["trunk"]
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    cells = f"{head[0]:>15.4f}{head[1]:>8.4f}{trunk[0]:>12.3f}{trunk[1]:>8.3f}{cosine:>9.3f}"
    print(f"{name:<17}{cells}")
    ratio = head[1] / head[0]
    assert (ratio < 0.05) if name == "global_clipnorm" else (abs(ratio - 1) < 1e-5)
    assert (cosine > 0.999) if name in ("none", "global_clipnorm") else (cosine < 0.99)

# %% [markdown]
"""
- **`global_clipnorm`** keeps the direction of the whole gradient. A heavy term then takes the step from all
  others, also in heads that it does not reach: that of the digit moves 1/40 as far.
- **`clipnorm`** clips each array of parameters on its own: the heads do not notice each other, but
  kernel and bias of the trunk, of different lengths before, get the same length.
- **`clipvalue`** turns the gradient: many small entries count more against few large ones.

Where clipping acts in every step, SGD too ignores a common factor of the weights: the step has the
length of the limit. Twice the weights with twice the limit are twice the learning rate again.
"""

# %%
clipped = train(SGD(1.0, global_clipnorm=0.1), ONCE)[1]
factor = difference(train(SGD(1.0, global_clipnorm=0.1), TWICE)[1], clipped)
both = train(SGD(1.0, global_clipnorm=0.2), TWICE)[1]
rate = difference(both, train(SGD(2.0, global_clipnorm=0.1), ONCE)[1])
print(f"twice the weights: {factor:.2%}; and twice the limit, as twice the rate: {rate:.2%}")
assert max(factor, rate) < 1e-3

# %% [markdown]
"""
So choose the limit for the weights that you train with. `kj.probe` measures the length of each term's
gradient. The sum of weight times length is the most that a typical step can have: a limit a few
times that cuts outliers only. After a change of the weights, choose it again.
"""

# %%
model = build()
model.compile(SGD(0.1), **kj.joint_loss(LOSSES, ONCE))
probe = kj.probe(model, images, TARGETS, batch_size=64, verbose=0)
longest = sum(ONCE[name] * probe.norm[name] for name in ONCE)
print("length of the gradient:", {name: round(x, 3) for name, x in probe.norm.items()})
print(f"of the weighted sum at most {longest:.2f}: clip at some {3 * longest:.0f}")

# %% [markdown]
"""
A limit for *one* term is none of these. An [aggregator](conflicts.py) such as `imtl_g` sees the
gradients of the terms before they are added, and the rule `InverseGradientNorm` keeps them equally
long.

## In short

| you change | what it does to the terms |
|---|---|
| all weights by a factor | SGD: the learning rate. Adam, and any optimizer whose every step is clipped: nothing. Regularizers count less |
| one weight, with SGD | also the size of the step: normalize, or search the learning rate for each |
| one weight, with `global_clipnorm` | takes the step from heads that the term does not reach |
"""
