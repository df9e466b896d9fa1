"""The losses against naive references, in value, gradient, shapes and errors."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import reference
from tests.gradients import dtypes, value_and_gradient

CASES = {
    "info_nce": (kj.losses.InfoNCE, reference.info_nce, {}),
    "info_nce_one_way": (kj.losses.InfoNCE, reference.info_nce, {"symmetric": False}),
    "info_nce_dot": (
        kj.losses.InfoNCE,
        reference.info_nce,
        {"normalize": False, "temperature": 2.0},
    ),
    "info_nce_cold": (kj.losses.InfoNCE, reference.info_nce, {"temperature": 0.01}),
    "margin_contrastive": (kj.losses.MarginContrastive, reference.margin_contrastive, {}),
    "margin_contrastive_cosine": (
        kj.losses.MarginContrastive,
        reference.margin_contrastive,
        {"normalize": True, "margin": 0.5},
    ),
}
LOSSES = [kj.losses.InfoNCE, kj.losses.MarginContrastive]


def _views(batch, dim, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=(batch, 2, dim))


def _labels(batch):
    return np.arange(batch) % 2


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize(("batch", "dim"), [(1, 3), (2, 1), (5, 4), (9, 16)])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_reference(case, batch, dim, dtype):
    make, naive, arguments = CASES[case]
    loss = make(**arguments, dtype=dtype)
    views, labels = _views(batch, dim), _labels(batch)
    weight = np.linspace(0.5, 1.5, batch)

    def weighted(x):
        return ops.sum(loss.call(labels, x) * ops.cast(weight, dtype))

    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == "float64" else {"rtol": 2e-4, "atol": 2e-4}
    expected = naive(views, labels, **arguments)
    actual = loss.call(labels, ops.convert_to_tensor(views.astype(dtype)))
    assert tuple(actual.shape) == (batch,)
    np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, **tolerance)
    value, gradient = value_and_gradient(weighted, views.astype(dtype))
    numeric = reference.central_differences(
        lambda x: np.sum(naive(x, labels, **arguments) * weight), views
    )
    np.testing.assert_allclose(value, np.sum(expected * weight), **tolerance)
    scale = max(np.abs(numeric).max(), 1.0)
    np.testing.assert_allclose(gradient / scale, numeric / scale, rtol=1e-3, atol=tolerance["atol"])


@pytest.mark.parametrize("views", [np.zeros((4, 2, 3)), np.ones((4, 2, 3)), _views(4, 3, 1e4)])
@pytest.mark.parametrize("make", LOSSES)
def test_degenerate_embeddings_give_finite_values_and_gradients(make, views):
    loss = make(normalize=True)
    value, gradient = value_and_gradient(
        lambda x: ops.sum(loss.call(_labels(4), x)), views.astype("float32")
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    expected = {"InfoNCE": reference.info_nce, "MarginContrastive": reference.margin_contrastive}
    naive = expected[make.__name__](views, _labels(4), normalize=True)
    assert value == pytest.approx(naive.sum(), rel=1e-4)


def test_identical_embeddings_cost_the_log_of_the_batch_size():
    loss = kj.losses.InfoNCE()(np.zeros(7), np.ones((7, 2, 3), "float32"))
    assert float(loss) == pytest.approx(np.log(7), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_half_precision_inputs_are_computed_in_float32(case):
    make, naive, arguments = CASES[case]
    views = _views(6, 8).astype("float16")
    value = make(**arguments)(_labels(6), views)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    expected = naive(views.astype("float64"), _labels(6), **arguments).mean()
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_sample_weight_weighs_anchors(case):
    make, naive, arguments = CASES[case]
    views, labels, weight = _views(6, 4), _labels(6), np.array([0, 1, 2, 0, 1, 3.0])
    value = make(**arguments)(labels, views.astype("float32"), sample_weight=weight)
    expected = np.mean(naive(views, labels, **arguments) * weight)
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("labels", [np.arange(4) % 2, (np.arange(4) % 2)[:, None]])
def test_labels_may_be_a_column(labels):
    loss = kj.losses.MarginContrastive()
    views = _views(4, 3).astype("float32")
    assert float(loss(labels, views)) == pytest.approx(float(loss(_labels(4), views)))


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    make, _, arguments = CASES[case]
    loss = make(**arguments, name="mine", reduction="sum")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is make
    assert again.get_config() == loss.get_config()
    views = _views(5, 4).astype("float32")
    assert float(again(_labels(5), views)) == pytest.approx(float(loss(_labels(5), views)))


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3), (4, 1, 3), (4, 2, 3, 1)])
def test_views_of_another_shape_are_refused(make, shape):
    with pytest.raises(ValueError, match=r"expects stacked views of shape \(batch, 2, dim\)"):
        make()(np.zeros(4), np.zeros(shape, "float32"))


@pytest.mark.parametrize("shape", [(), (3,), (4, 2), (4, 1, 1)])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expects labels of shape \(4,\) or \(4, 1\)"):
        kj.losses.MarginContrastive()(np.zeros(shape), np.zeros((4, 2, 3), "float32"))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "0.1", None, True])
def test_temperature_that_is_no_positive_number_is_refused(temperature):
    with pytest.raises(ValueError, match=r"`temperature`.*Received: temperature="):
        kj.losses.InfoNCE(temperature=temperature)


def test_negative_margin_is_refused():
    with pytest.raises(ValueError, match=r"`margin`.*finite number >= 0.*Received: margin=-0.5"):
        kj.losses.MarginContrastive(margin=-0.5)


def test_get_finds_losses_by_name_instance_and_config():
    assert isinstance(kj.losses.get("InfoNCE"), kj.losses.InfoNCE)
    assert isinstance(kj.losses.get("MeanSquaredError"), keras.losses.MeanSquaredError)
    loss = kj.losses.InfoNCE(0.3)
    assert kj.losses.get(loss) is loss
    config = keras.saving.serialize_keras_object(loss)
    assert kj.losses.get(config).get_config() == loss.get_config()


@pytest.mark.parametrize("identifier", ["NoSuchLoss", "Reduction", "ContrastiveTerm", 3, None])
def test_get_refuses_what_is_no_loss(identifier):
    with pytest.raises(ValueError, match=r"Expected a `keras.losses.Loss`.*Received: loss="):
        kj.losses.get(identifier)
