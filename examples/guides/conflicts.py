# %% [markdown]
"""
# Conflicting gradients

The gradients of terms that share a trunk can point in opposite directions, or one can be so long
that it decides alone. This guide measures which of the two it is, and then does something about it.

The data are 1,797 scanned digits from scikit-learn. A trunk serves two terms: the digit, and the
image itself, drawn again in grey levels.
"""

# %%
import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = images.astype("float32")  # Grey levels from 0 to 16.
x, x_test = images[:1400], images[1400:]
y = {"digit": digits[:1400], "image": x}


def squared_error(y_true, y_pred):
    """Returns the squared error of each image, summed over its pixels."""
    return keras.ops.sum(keras.ops.square(y_true - y_pred), axis=-1)


TERMS = ["digit", "image"]
LOSSES = {"digit": "sparse_categorical_crossentropy", "image": squared_error}


def run(title, combine, weights=None):
    """Trains the network, prints how well it does on unseen images, and returns the history."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(1 / 16), keras.layers.Dense(32, activation="relu")]
    trunk = keras.Sequential([*layers, keras.layers.Dense(32)])
    inputs = keras.Input((64,))
    z = combine(inputs, trunk)
    outputs = {
        "digit": keras.layers.Dense(10, activation="softmax")(z["digit"]),
        "image": keras.layers.Dense(64)(z["image"]),
    }
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.003), **kj.joint_loss(LOSSES, weights))
    callbacks = [kj.callbacks.JointLossCallback()]
    history = model.fit(x, y, batch_size=64, epochs=8, verbose=0, callbacks=callbacks).history
    predicted = model.predict(x_test, verbose=0)
    accuracy = np.mean(np.argmax(predicted["digit"], axis=1) == digits[1400:])
    explained = 1 - np.mean((predicted["image"] - x_test) ** 2) / np.var(x_test)
    print(f"{title:22} accuracy of the digit {accuracy:.1%}, image explained {explained:.1%}")
    return history


# %% [markdown]
"""
## Look first

`GradientBalancer` stands between the trunk and the heads: it returns its input once for each term,
and the head of a term reads its own copy. On the way back it sees the gradient of each term. With
`aggregator=None` it only measures them, and training is as without it.
"""


# %%
def balancer(aggregator):
    return lambda inputs, trunk: kj.layers.GradientBalancer(TERMS, aggregator)(trunk(inputs))


history = run("plain sum", balancer(None))
for key in ("digit_norm", "image_norm", "digit~image_cosine", "digit~image_conflict"):
    print(f"{key:22} {history[f'gradients_{key}'][0]:.3f} in the first epoch")

# %% [markdown]
"""
`History` and TensorBoard have the mean length of each gradient (`norm`), the mean cosine of the
angle between two, and the share of the steps in which it was negative (`conflict`).

Read the cosine and not only the share of conflicts. Here the gradients conflict in most steps,
but the cosine is near 0: they are almost at right angles, and a step for one hardly changes the
other. It is the lengths that differ: the gradient of the image is about a hundred times as long.

## A weight first

Where lengths differ, a constant weight is the cheapest remedy.
"""

# %%
history = run("sum, image x 0.01", balancer(None), {"image": 0.01})

# %% [markdown]
"""
## Rules

An aggregator maps the inner products of the gradients to coefficients, and the trunk gets the sum
of the gradients times these coefficients. The heads keep their own gradients.
"""

# %%
for aggregator in ("pcgrad", "imtl_g", "mgda"):
    run(aggregator, balancer(aggregator))

# %% [markdown]
"""
`pcgrad` removes conflicts, and there is little to remove: it stays near the sum. `imtl_g` moves
along each gradient by the same length, and `mgda` is led by the shorter one. With both, far more
digits are recognized, as with the weight.

| aggregator | paper | what the trunk gets |
|---|---|---|
| `sum`, `mean` | | the plain sum; the mean |
| `pcgrad` | Yu 2020 | the sum, after each gradient loses its part against the others |
| `upgrad` | Quinton 2024 | the mean, after each gradient is projected to conflict with none |
| `cagrad` | Liu 2021 | near the mean, with the smallest gain of a term as large as possible |
| `mgda` | Sener 2018 | the shortest convex combination: it conflicts with no gradient |
| `nash_mtl` | Navon 2022 | the largest product of the gains: it conflicts with no gradient |
| `fair_grad` | Ban 2024 | the fairest gains: `alpha` 1 is `nash_mtl`, near 0 the mean, large `mgda` |
| `imtl_g` | Liu 2021 | equal projections on all gradients |
| `con_fig` | Liu 2024 | the direction of `imtl_g`, as long as the sum of the projections |
| `dual_proj` | Lopez-Paz 2017 | the mean, projected to conflict with no gradient |
| `grad_vac` | Wang 2021 | the sum, after each gradient turns to its usual cosines with the others |
| `aligned_mtl` | Senushkin 2023 | the mean of the nearest orthogonal gradients of equal length |
| `shares` | Defossez 2022 | each gradient at an asked share of the length |
| `db_mtl` | Lin 2023 | each gradient at the length of the longest |
| `pcd` | Varam 2026 | the main gradient, as far as the others keep a share of their own progress |

All but `sum`, `pcgrad`, `grad_vac`, `con_fig` and `db_mtl` give a gradient of the size of the mean, `pcd`
that of the main gradient: the learning rate may have to grow. `pcd` has a main term, the first one
unless `kj.aggregators.PCD(main="digit")` names it. `grad_vac` and `pcd` learn from the steps before:
the layer keeps that and saves it with the model.
 All cost one backward pass through the trunk and some small operations
([benchmarks](../../docs/benchmarks.md#time-of-combining-gradients)).

## At the level of parameters

The layer compares gradients with respect to the output of the trunk, and what a rule guarantees
holds for a step of that output. `SharedTrunk` wraps the trunk and compares the gradients of its
parameters, at the cost of one forward and one backward pass of the trunk for each term. Terms with
inputs of their own call it once for each input, and all calls of a step are combined: see
[a differential equation](physics.py).
"""

# %%
history = run(
    "imtl_g, of parameters",
    lambda inputs, trunk: kj.layers.SharedTrunk(trunk, TERMS, "imtl_g")(inputs),
)

# %% [markdown]
"""
## How much a term moves the trunk

A weight scales what a term does to its head and to the trunk alike. `GradientScale` between the two
returns its input and scales the gradient: the trunk gets a part, and the head trains as before.
Below 0 it reverses the gradient: see [domains](domains.py).
"""


# %%
def image_scaled(inputs, trunk):
    z = trunk(inputs)
    return {"digit": z, "image": kj.layers.GradientScale(0.01)(z)}


history = run("gradient of image x 0.01", image_scaled)

# %% [markdown]
"""
The result is that of the weight, since for the head alone Adam takes the same steps with any weight.
With `SGD`, or with several terms in one head, the two differ.
"""

# %% [markdown]
"""
## Does it help?

One seed on small data decides nothing. [multi_digit.py](../multi_digit.py) trains over three seeds:
two overlapping digits, and their drawing in grey levels, whose gradient is 770 times as long as
that of the left digit. The table is in the [benchmarks](../../docs/benchmarks.md#aggregators).

![Left: accuracy of the digits and explained variance of the drawing for each way to combine the
terms. Middle: the drawing's share in what the trunk gets. Right: the share of steps in conflict,
over the epochs](../images/multi_digit.png)

The cosines lie within ±0.03 there, so lengths matter. `nash_mtl`, `imtl_g`, `aligned_mtl` and, in
part, `cagrad` make up for them and do as well as the best of five constant weights, without a
search. `pcgrad` and `upgrad` remove conflicts and do as the sum does. At the level of parameters
cosines reach 0.25 (`--level parameters`): there `pcgrad` and `upgrad` recognize a few more digits
than the sum, and `cagrad` many more.
"""
