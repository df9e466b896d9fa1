"""The divergence of Gaussians equals its closed form and an integral, with its gradient."""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.gradients import dtypes, value_and_gradient

MEANS = np.array([[0.0, 0.5, -2.0], [0.3, 0.0, 4.0]])
LOG_VARIANCES = np.array([[0.0, -1.5, 1.0], [1e-3, -3.0, 2.0]])


def integrated(mean, log_variance):
    """Returns the integral of `p log(p / q)` by the trapezoid rule."""
    deviation = math.exp(0.5 * log_variance)
    x = mean + deviation * np.linspace(-12, 12, 20001)
    log_p = -0.5 * ((x - mean) / deviation) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(deviation)
    log_q = -0.5 * x**2 - 0.5 * math.log(2 * math.pi)
    return np.trapezoid(np.exp(log_p) * (log_p - log_q), x)


@pytest.mark.parametrize("dtype", dtypes())
def test_equals_the_integral(dtype):
    actual = kj.losses.gaussian_kl(MEANS.astype(dtype), LOG_VARIANCES.astype(dtype))
    assert keras.backend.standardize_dtype(actual.dtype) == dtype
    expected = np.vectorize(integrated)(MEANS, LOG_VARIANCES)
    tolerance = 1e-6 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, tolerance, tolerance)


def test_gradient_equals_the_closed_form():
    both = np.stack([MEANS, LOG_VARIANCES]).astype("float32")
    weight = np.arange(1.0, 7.0).reshape(2, 3).astype("float32")

    def total(x):
        return ops.sum(kj.losses.gaussian_kl(x[0], x[1]) * ops.convert_to_tensor(weight))

    _, gradient = value_and_gradient(total, both)
    expected = np.stack([weight * MEANS, weight * (np.exp(LOG_VARIANCES) - 1) / 2])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_standard_gaussian_has_divergence_and_gradient_0():
    value, gradient = value_and_gradient(
        lambda x: ops.sum(kj.losses.gaussian_kl(x, x)), np.zeros((4, 2), "float32")
    )
    assert value == 0
    assert (gradient == 0).all()


def test_nearly_standard_gaussian_does_not_cancel():
    # The series of e^x - x - 1 at 0: in float32, `exp(1e-3)` alone is off by more than 1 %.
    x = np.full((1, 1), 1e-3, "float32")
    actual = float(kj.losses.gaussian_kl(np.zeros((1, 1), "float32"), x)[0, 0])
    assert actual == pytest.approx(0.5 * (1e-6 / 2 + 1e-9 / 6), rel=1e-3)


def test_tiny_variance_is_finite():
    x = np.array([[-50.0, -1000.0, -1e30]], "float32")
    actual, gradient = value_and_gradient(
        lambda x: ops.sum(kj.losses.gaussian_kl(ops.zeros_like(x), x) / 1e30), x
    )
    assert actual == pytest.approx(0.5)
    np.testing.assert_allclose(gradient, np.full((1, 3), -0.5e-30), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    mean, log_variance = (ops.cast(x, dtype) for x in ([[300.0]], [[12.0]]))
    actual = kj.losses.gaussian_kl(mean, log_variance)  # Beyond the range of float16.
    assert keras.backend.standardize_dtype(actual.dtype) == "float32"
    assert float(actual[0, 0]) == pytest.approx(0.5 * (300**2 + math.exp(12) - 13), rel=1e-5)


@pytest.mark.parametrize(("mean", "log_variance"), [((2, 3), (3,)), ((2, 3), (2, 1))])
def test_different_shapes_are_refused(mean, log_variance):
    with pytest.raises(ValueError, match=r"of the same shape\. Received: shapes \(2, 3\) and"):
        kj.losses.gaussian_kl(np.zeros(mean), np.zeros(log_variance))


def test_takes_part_in_a_saved_functional_model(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    x = keras.Input((3,))
    mean, log_variance = keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)
    model = keras.Model(x, [mean, log_variance, kj.losses.gaussian_kl(mean, log_variance)])
    model.save(tmp_path / "model.keras")
    for same in (model, keras.models.load_model(tmp_path / "model.keras")):
        mean, log_variance, kl = same(np.ones((4, 3), "float32"))
        expected = kj.losses.gaussian_kl(mean, log_variance)
        assert keras.backend.standardize_dtype(kl.dtype) == "float32"
        np.testing.assert_allclose(ops.convert_to_numpy(kl), ops.convert_to_numpy(expected), 1e-5)
