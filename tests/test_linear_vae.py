"""A linear variational autoencoder, trained in `fit`, reaches probabilistic PCA."""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj

DIM, CODE, ITEMS, STEPS = 6, 2, 200, 800


class GaussianMisfit(keras.layers.Layer):
    """Returns E -log N(x | W z + b, v) over z ~ N(m, s), in closed form, for each item.

    The expected squared error of an element is that of the mean plus the variance of W z.
    """

    def build(self, data_shape, mean_shape, log_variance_shape):
        self.kernel = self.add_weight((mean_shape[-1], data_shape[-1]), name="kernel")
        self.bias = self.add_weight((data_shape[-1],), "zeros", name="bias")
        self.log_noise = self.add_weight((), "zeros", name="log_noise")

    def call(self, data, mean, log_variance):
        error = ops.square(data - (ops.matmul(mean, self.kernel) + self.bias))
        error = error + ops.matmul(ops.exp(log_variance), ops.square(self.kernel))
        normalized = math.log(2 * math.pi) + self.log_noise + error * ops.exp(-self.log_noise)
        return 0.5 * ops.sum(normalized, axis=-1)

    def compute_output_shape(self, data_shape, mean_shape, log_variance_shape):
        return (data_shape[0],)


class ConstantVariance(keras.layers.Layer):
    """Returns a learned log variance for each dimension, the same for all items."""

    def build(self, shape):
        self.log_variance = self.add_weight((shape[-1],), "zeros", name="log_variance")

    def call(self, mean):
        return ops.zeros_like(mean) + self.log_variance


def linear_vae():
    data = keras.Input((DIM,))
    mean = keras.layers.Dense(CODE)(data)
    log_variance = ConstantVariance()(mean)
    misfit = GaussianMisfit(name="decoder")(data, mean, log_variance)
    divergence = ops.sum(kj.losses.gaussian_kl(mean, log_variance), axis=-1)
    mean = kj.layers.LossTerm(name="misfit")(mean, misfit)
    mean = kj.layers.LossTerm(name="kl")(mean, divergence)
    return keras.Model(data, mean)


def pca_likelihood(data):
    """Returns the largest log likelihood of an item, and the variance of the noise there.

    Tipping and Bishop, 1999, Probabilistic Principal Component Analysis.
    """
    spectrum = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1]
    noise = np.mean(spectrum[CODE:])
    logarithms = np.sum(np.log(spectrum[:CODE])) + (DIM - CODE) * np.log(noise)
    return -0.5 * (DIM * np.log(2 * np.pi) + logarithms + DIM), noise


# Eight hundred small steps, which take long where nothing is compiled.
@pytest.mark.backend("tensorflow", "jax")
def test_linear_vae_reaches_the_optimum_of_probabilistic_pca():
    # Lucas et al., 2019, Don't Blame the ELBO: its ELBO is then the log likelihood itself.
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    data = generator.normal(size=(ITEMS, CODE)) @ generator.normal(size=(CODE, DIM))
    data = (data + 0.5 * generator.normal(size=data.shape) + 1).astype("float32")
    model = linear_vae()
    decay = keras.optimizers.schedules.CosineDecay(0.1, STEPS)
    model.compile(keras.optimizers.Adam(decay))
    # The data many times over: each step is on all of it.
    model.fit(np.tile(data, (STEPS, 1)), batch_size=ITEMS, shuffle=False, verbose=0)

    likelihood, noise = pca_likelihood(data.astype("float64"))
    elbo = -model.evaluate(data, batch_size=ITEMS, verbose=0, return_dict=True)["loss"]
    assert elbo == pytest.approx(likelihood, abs=1e-3)
    log_noise = ops.convert_to_numpy(model.get_layer("decoder").log_noise)
    assert np.exp(log_noise) == pytest.approx(noise, rel=1e-3)
