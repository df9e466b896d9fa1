# %% [markdown]
r"""
# A variational autoencoder

A variational autoencoder maximizes the evidence lower bound (ELBO) of each image $x$:

$$\text{ELBO} = \mathbb{E}_{z \sim q(z|x)} \log p(x|z) - \text{KL}(q(z|x) \,\|\, p(z))$$

The first part is the loss of an output. The second, the divergence, is no loss of an output: it
belongs to a tensor inside the model. `LossTerm` makes it a term, with a weight that can move, a
floor, or a target. This guide trains one model in five ways and prints the ELBO of each, and how
many dimensions of the code carry information.

The data: 1,797 digits of 8 x 8 pixels that come with scikit-learn.
"""

# %%
import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits

import keras_jointloss as kj

images = (load_digits().data >= 8).astype("float32")
images = images[np.random.default_rng(0).permutation(len(images))]
train, test = images[:1500], images[1500:]

# %% [markdown]
r"""
## The model

The encoder returns mean and log variance of a Gaussian for each code, `Sampling` draws from it, and
the decoder returns the logits of the pixels. `kj.losses.gaussian_kl` is the divergence of each
dimension in nats:

$$\text{KL}(N(m, v) \,\|\, N(0, 1)) = \tfrac{1}{2} (m^2 + v - \log v - 1)$$

The ELBO of an image is a *sum* over pixels and a *sum* over dimensions; a mean in place of either would
change the balance of the two parts. So the loss below sums over the pixels, and the divergence is
summed over dimensions before it reaches the term. `LossTerm` returns its first argument
unchanged. Use what it returns, or the layer is no part of the model.
"""


# %%
class Sampling(keras.layers.Layer):
    """Draws a code from a Gaussian with given mean and logarithm of the variance."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, mean, log_variance):
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


def build(floor=None, **term):
    """Returns the autoencoder and its encoder."""
    image = keras.Input((64,), name="image")
    x = keras.layers.Dense(128, activation="relu")(image)
    mean, log_variance = (keras.layers.Dense(16, name=n)(x) for n in ("mean", "log_variance"))
    divergence = kj.losses.gaussian_kl(mean, log_variance)  # (batch, 16)
    if floor is None:
        divergence = ops.sum(divergence, axis=-1)
    code = Sampling()(mean, log_variance)
    code = kj.layers.LossTerm(floor=floor, name="kl", **term)(code, divergence)
    x = keras.layers.Dense(128, activation="relu")(code)
    model = keras.Model(image, {"pixels": keras.layers.Dense(64, name="pixels")(x)})
    return model, keras.Model(image, [mean, log_variance])


def pixel_nats(image, logits):
    """Returns -log p(x|z) of each image: the sum over its pixels."""
    return ops.sum(ops.binary_crossentropy(image, logits, from_logits=True), axis=-1)


# %% [markdown]
"""
## Five ways to weigh the divergence

Early in training the divergence can push dimensions of the code to carry nothing, before the decoder
has learned to use them. Beside the plain sum:

- *Annealing*: the weight is a schedule, which rises from 0 to 1 in the first half.
- *Free bits*: `floor=0.3`. A dimension whose mean divergence is below 0.3 nats is not pressed
  further. The term receives the values `(batch, dim)` and sums over the dimensions itself.
- *Capacity*: `target=` is a schedule from 0 to 10 nats; the term is `|KL - target|`, and its weight
  is how strongly the divergence is pulled to the target.
- *Constraint*: the rule `kj.weighting.Constraint` moves the weight of the term until the divergence
  is at most 10 nats: a Lagrange multiplier, found while `fit` runs. Its learning rate is above the
  default here because the training is short.
"""

# %%
EPOCHS, BATCH_SIZE = 30, 100
STEPS = EPOCHS * len(train) // BATCH_SIZE
ways = {
    "plain": {},
    "annealed": {"weight": kj.schedules.Linear(0.0, 1.0, STEPS // 2)},
    "free bits": {"floor": 0.3},
    "capacity": {"target": kj.schedules.Linear(0.0, 10.0, STEPS // 2), "weight": 2.0},
    "constraint": {},
}


def fit(name):
    """Returns a trained encoder, its autoencoder, and the logs."""
    keras.utils.set_random_seed(0)
    model, encoder = build(**ways[name])
    is_constraint = name == "constraint"
    rule = kj.weighting.Constraint({"kl": 10.0}, learning_rate=0.05) if is_constraint else None
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, STEPS))
    model.compile(optimizer, **kj.joint_loss({"pixels": pixel_nats}, weighting=rule))
    callback = kj.callbacks.JointLossCallback()
    options = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "verbose": 0, "callbacks": [callback]}
    return encoder, model, model.fit(train, {"pixels": train}, **options).history


def measure(encoder, model):
    """Returns ELBO and divergence of the test digits, and the number of active units."""
    mean, log_variance = encoder.predict(test, batch_size=500, verbose=0)
    divergence = float(ops.mean(ops.sum(kj.losses.gaussian_kl(mean, log_variance), axis=-1)))
    logits = [model.predict(test, batch_size=500, verbose=0)["pixels"] for _ in range(5)]
    misfit = np.mean([float(ops.mean(pixel_nats(test, x))) for x in logits])
    return -misfit - divergence, divergence, int(np.sum(np.var(mean, axis=0) > 0.01))


# %% [markdown]
"""
The ELBO is at weight 1, whatever was trained. A unit is active if its mean varies over the digits by
more than 0.01 (Burda et al., 2016).
"""

# %%
print(f"{'nats per digit':<16}{'ELBO':>8}{'KL':>8}{'active units':>14}{'weight of kl':>14}")
for name in ways:
    encoder, model, history = fit(name)
    elbo, divergence, active = measure(encoder, model)
    print(f"{name:<16}{elbo:>8.2f}{divergence:>8.2f}{active:>14}{history['kl_weight'][-1]:>14.2f}")

# %% [markdown]
"""
The logs have the terms apart: `kl_loss`, `kl_weight`, `kl_share`, and with a floor or a target
`kl_value`, the divergence itself. A `Constraint` logs `kl_multiplier`.

Which one? Start plain. If few units are active, try annealing or free bits. To compare models at the
same rate, or to leave a fixed budget of nats to the code, take the constraint: it sets the divergence
rather than a coefficient. [vae.py](../vae.py) is the longer script, with more epochs, options for
each way, and the training ELBO.
"""
