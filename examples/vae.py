"""A variational autoencoder of digits in plain `fit`: its divergence is a term of the loss.

The encoder gives a Gaussian for each digit, the decoder the probability of each pixel to be set.
With the code z that is drawn from the Gaussian q(z|x), training maximizes the evidence lower bound

    ELBO = E log p(x|z) - KL( q(z|x) || N(0, 1) )

in nats per digit: both terms are sums over the pixels and the dimensions of the code, since a mean
would weigh them anew. The loss of the output is the first, a `LossTerm` in the model the second.
Nothing but the arguments of that layer, or a rule, changes from one training to the next:

    plain       the ELBO itself
    annealed    the weight of the divergence rises from 0 to 1 in the first half of the training
    free bits   a dimension whose mean divergence is below a floor is not pressed further
    capacity    the divergence follows a target that rises to a number of nats in the first half
    constraint  the divergence is held at a number of nats by a multiplier, which the rule finds

The table shows the ELBO at weight 1, whatever was trained, its divergence, and how many of the
dimensions carry information: those whose posterior mean varies over the digits by more than 0.01
(active units; Burda et al., 2016, Importance Weighted Autoencoders).

Run: python examples/vae.py    (with the extra `examples` of README)

Data: the 1,797 digits of 8 x 8 pixels that come with scikit-learn, from the Optical Recognition of
Handwritten Digits data set (Alpaydin and Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0).
"""

import argparse

import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits

import keras_jointloss as kj

PIXELS = 64
BATCH_SIZE = 100
ACTIVE = 0.01


@keras.saving.register_keras_serializable(package="vae")
class Sampling(keras.layers.Layer):
    """Draws a code from a Gaussian with given mean and logarithm of the variance."""

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="vae")
def pixel_nats(image, logits):
    """Returns -log p(x|z) of each digit: the sum over its pixels."""
    return ops.sum(ops.binary_crossentropy(image, logits, from_logits=True), axis=-1)


def load():
    """Returns digits of black and white pixels for training and for validation."""
    images = (load_digits().data >= 8).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[:1500]], images[order[1500:]]


def build_model(dim=16, seed=0, floor=None, **term):
    """Returns the autoencoder. Its layer `encoder` gives mean and log variance of each code."""
    image = keras.Input((PIXELS,), name="image")
    x = keras.layers.Dense(128, activation="relu")(image)
    moments = [keras.layers.Dense(dim, name=name)(x) for name in ("mean", "log_variance")]
    encoder = keras.Model(image, moments, name="encoder")
    decoder = keras.Sequential(
        [keras.layers.Dense(128, activation="relu"), keras.layers.Dense(PIXELS)], name="decoder"
    )
    mean, log_variance = encoder(image)
    code = Sampling(seed=seed)([mean, log_variance])
    divergence = kj.losses.gaussian_kl(mean, log_variance)
    if floor is None:
        # A floor is for each dimension, and the term then sums over them.
        divergence = ops.sum(divergence, axis=-1)
    code = kj.layers.LossTerm(floor=floor, name="kl", **term)(code, divergence)
    return keras.Model(image, {"pixels": decoder(code)})


def total_steps(images, epochs):
    """Returns the number of training steps."""
    return epochs * -(-len(images) // BATCH_SIZE)


def variants(nats, floor, steps):
    """Returns for each training the arguments of the term, and the rule."""
    ramp = steps // 2
    return {
        "plain": ({}, None),
        "annealed": ({"weight": kj.schedules.Linear(0.0, 1.0, ramp)}, None),
        "free bits": ({"floor": floor}, None),
        # The weight is how strongly the divergence is pulled to the target.
        "capacity": ({"target": kj.schedules.Linear(0.0, nats, ramp), "weight": 2.0}, None),
        # A multiplier faster than by default, as the training is short.
        "constraint": ({}, kj.weighting.Constraint({"kl": nats}, learning_rate=0.05)),
    }


def measure(model, images, samples=10):
    """Returns the ELBO and the divergence in nats per digit, and the number of active units."""
    mean, log_variance = model.get_layer("encoder").predict(images, batch_size=500, verbose=0)
    divergence = float(ops.mean(ops.sum(kj.losses.gaussian_kl(mean, log_variance), axis=-1)))
    # Each prediction draws another code.
    predictions = [model.predict(images, batch_size=500, verbose=0) for _ in range(samples)]
    misfits = [float(ops.mean(pixel_nats(images, x["pixels"]))) for x in predictions]
    active = np.sum(np.var(mean, axis=0) > ACTIVE)
    return -np.mean(misfits) - divergence, divergence, int(active)


def train(images, epochs, term, rule, seed=0):
    """Returns a trained autoencoder."""
    keras.utils.set_random_seed(seed)
    model = build_model(seed=seed, **term)
    learning_rate = keras.optimizers.schedules.CosineDecay(0.01, total_steps(images, epochs))
    model.compile(
        keras.optimizers.Adam(learning_rate),
        **kj.joint_loss({"pixels": pixel_nats}, weighting=rule),
    )
    callbacks = [kj.callbacks.JointLossCallback()]
    fit = {"batch_size": BATCH_SIZE, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
    model.fit(images, {"pixels": images}, **fit)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--nats", type=float, default=10.0, help="of capacity and constraint")
    parser.add_argument("--floor", type=float, default=0.3, help="nats of a dimension, free bits")
    parser.add_argument("--variants", nargs="+", help="which trainings, all by default")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    training, validation = load()
    steps = total_steps(training, arguments.epochs)
    trainings = variants(arguments.nats, arguments.floor, steps)
    head = ("ELBO, train", "ELBO, valid.", "KL, train", "active units")
    print(f"{'nats per digit':<16}" + "".join(f"{cell:>14}" for cell in head))
    results = {}
    for name in arguments.variants or trainings:
        term, rule = trainings[name]
        model = train(training, arguments.epochs, term, rule, arguments.seed)
        elbo, divergence, active = measure(model, training)
        results[name] = elbo, measure(model, validation)[0], divergence, active
        cells = "".join(f"{value:>14.2f}" for value in results[name][:-1])
        print(f"{name:<16}{cells}{active:>14}", flush=True)
    return results


if __name__ == "__main__":
    main()
