"""The losses between embeddings and proxies."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.losses import proxy_loss
from tests import reference, reference_proxies
from tests.backends import values_only
from tests.gradients import compiled_value_and_gradient, dtypes, value_and_gradient
from tests.loss_cases import assert_close

GENERATOR = np.random.default_rng(2)
ITEMS, CLASSES, DIM = 6, 5, 4
PROXIES = GENERATOR.normal(size=(CLASSES, DIM))
LABELS = np.array([0, 3, 3, 1, 4, 0])
EMBEDDINGS = 0.7 * PROXIES[LABELS] + GENERATOR.normal(size=(ITEMS, DIM))
EMBEDDINGS[4] = 0.1 * EMBEDDINGS[4] - PROXIES[4]  # Farther than pi minus the margin.
ROWS = np.array([np.eye(CLASSES)[label] for label in LABELS])
ROWS[1, 0] = 1.0  # Two classes.
ROWS[2] = [0.1, 0, 0, 0.9, 0]
ROWS[5] = 0.0  # None.
VALID = np.array([True, False, True, True, True, True])
LOSSES = {
    "ArcFace": kj.losses.ArcFace(),
    "ArcFace_wide": kj.losses.ArcFace(margin=1.2, scale=4.0),
    "CosFace": kj.losses.CosFace(),
    "CosFace_mild": kj.losses.CosFace(margin=0.1, scale=8.0),
    "NormSoftmax": kj.losses.NormSoftmax(),
    "ProxyNCA": kj.losses.ProxyNCA(),
    "ProxyNCA_9": kj.losses.ProxyNCA(scale=9.0),
    "ProxyAnchor": kj.losses.ProxyAnchor(),
    "ProxyAnchor_mild": kj.losses.ProxyAnchor(margin=0.3, alpha=4.0),
}
DEFAULTS = {name: loss for name, loss in LOSSES.items() if "_" not in name}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_default = pytest.mark.parametrize("loss", DEFAULTS.values(), ids=DEFAULTS)


def naive(loss, *data):
    return getattr(reference_proxies, loss.function.__name__)(*data, **loss.get_config())


def joined(embeddings, proxies):
    """Returns embeddings and proxies in one array, so that one gradient is that of both."""
    return np.concatenate([embeddings, proxies])


def total(loss, x, labels, valid, weight):
    weight = ops.convert_to_tensor(weight, dtype=x.dtype)
    return ops.sum(loss.values(x[:-CLASSES], x[-CLASSES:], labels, valid) * weight)


@each_loss
@pytest.mark.parametrize("labels", [LABELS, ROWS], ids=["classes", "rows"])
@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "some"])
def test_value_and_gradient_equal_the_reference(loss, labels, valid):
    x = joined(EMBEDDINGS, PROXIES)
    weight = np.linspace(0.5, 1.5, ITEMS)
    dtype = dtypes()[-1]
    compute = compiled_value_and_gradient(functools.partial(total, loss))
    value, gradient = compute(x.astype(dtype), labels, valid, weight.astype(dtype))

    def expected(x):
        return np.sum(naive(loss, x[:-CLASSES], x[-CLASSES:], labels, valid) * weight)

    tolerance = 1e-4 if dtype == "float32" else 1e-7
    assert_close(value, np.asarray(expected(x)), tolerance)
    assert_close(gradient, reference.central_differences(expected, x), tolerance)


@values_only
@each_default
def test_half_precision_is_computed_in_float32(loss):
    half = [ops.cast(ops.convert_to_tensor(x), "float16") for x in (EMBEDDINGS, PROXIES)]
    found = loss.values(*half, LABELS)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    exact = (ops.convert_to_numpy(x).astype("float64") for x in half)
    assert_close(found, naive(loss, *exact, LABELS), 1e-4)


@values_only
@each_default
def test_loss_of_a_sure_item_is_not_below_0_and_has_a_finite_gradient(loss):
    for scale in (1.0, -1.0):  # Angles of 0 and pi.
        x = joined(scale * PROXIES[LABELS], PROXIES).astype("float32")
        value, gradient = value_and_gradient(
            lambda x: total(loss, x, LABELS, None, np.ones(ITEMS, "float32")), x
        )
        assert value >= 0
        assert np.isfinite(gradient).all()


@values_only
def test_larger_angle_never_has_a_smaller_loss():
    angles = np.linspace(0, np.pi, 200)
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    proxies = np.array([[1.0, 0.0], [0.0, 0.0]])
    loss = kj.losses.ArcFace(scale=4.0)
    found = ops.convert_to_numpy(loss.values(embeddings, proxies, 0 * angles))
    assert (np.diff(found) > 0).all()


@values_only
@each_default
def test_zero_embedding_has_no_gradient_and_unknown_values_are_seen(loss):
    x = joined(np.where(np.arange(ITEMS)[:, None] == 2, 0, EMBEDDINGS), PROXIES)
    weight = np.ones(ITEMS)
    value, gradient = value_and_gradient(lambda x: total(loss, x, LABELS, None, weight), x)
    assert np.isfinite(value)
    assert not gradient[2].any()
    x[2, 0] = np.nan
    values = ops.convert_to_numpy(loss.values(x[:ITEMS], x[ITEMS:], LABELS))
    assert np.isnan(values[2])
    assert loss.compares_items or np.isfinite(np.delete(values, 2)).all()
    valid = np.arange(ITEMS) != 2
    value, gradient = value_and_gradient(lambda x: total(loss, x, LABELS, valid, weight), x)
    assert value == pytest.approx(
        naive(loss, np.nan_to_num(x[:ITEMS]), PROXIES, LABELS, valid).sum()
    )
    assert np.isfinite(gradient).all()
    x = joined(EMBEDDINGS, np.where(np.arange(CLASSES)[:, None] == 1, np.inf, PROXIES))
    assert np.isnan(ops.convert_to_numpy(loss.values(x[:ITEMS], x[ITEMS:], LABELS))).all()


@values_only
@each_default
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "bool"])
def test_labels_of_each_dtype(loss, dtype):
    labels = LABELS % 2 if dtype == "bool" else LABELS
    found = loss.values(EMBEDDINGS, PROXIES, labels.astype(dtype)[:, None])
    assert_close(found, naive(loss, EMBEDDINGS, PROXIES, labels), 1e-6)
    proxies = np.resize(PROXIES, (300, DIM))  # More classes than numbers of 8 bits.
    found = loss.values(EMBEDDINGS, proxies, labels.astype(dtype))
    assert_close(found, naive(loss, EMBEDDINGS, proxies, labels), 1e-6)


@pytest.mark.parametrize("name", ["ArcFace", "ProxyAnchor"])
@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_rows_of_each_dtype(name, dtype):
    data = EMBEDDINGS.astype("float32"), PROXIES.astype("float32")
    found = DEFAULTS[name].values(*data, (ROWS == 1).astype(dtype), VALID)
    assert_close(found, naive(DEFAULTS[name], EMBEDDINGS, PROXIES, ROWS == 1, VALID), 1e-4)


@pytest.mark.parametrize("label", [-1, CLASSES, 0.5, np.nan])
def test_label_out_of_range_raises_an_error_or_gives_nan(label):
    loss, labels = kj.losses.ArcFace(), np.where(np.arange(ITEMS) == 3, label, LABELS)
    embeddings, proxies = EMBEDDINGS.astype("float32"), PROXIES.astype("float32")
    with pytest.raises(ValueError, match=r"labels from 0 to 4.*Received: the label"):
        loss.values(embeddings, proxies, labels)
    assert np.isfinite(
        ops.convert_to_numpy(loss.values(embeddings, proxies, labels, np.arange(ITEMS) != 3))
    ).all()
    index, is_known = proxy_loss._as_classes(ops.convert_to_tensor(labels), CLASSES, "float32")
    assert ops.convert_to_numpy(is_known).tolist() == [True] * 3 + [False] + [True] * 2
    assert 0 <= int(index[3]) < CLASSES


@values_only
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((ITEMS, 3)), r"expects labels of shape \(batch,\) or \(batch, 5\)"),
        (np.zeros(4), r"expects labels of shape \(6,\)"),
        (np.full((ITEMS, CLASSES), 2), "class rows with 1 for each class"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=f"CosFace {message}|CosFace expects {message}"):
        kj.losses.CosFace().values(EMBEDDINGS, PROXIES, labels)


@values_only
def test_logits_are_those_without_margin():
    cosines = np.array(reference_proxies._cosines(EMBEDDINGS, PROXIES))
    expected = {
        "ArcFace": 64 * cosines,
        "CosFace": 64 * cosines,
        "NormSoftmax": cosines / 0.05,
        "ProxyNCA": 2 * cosines - 2,
        "ProxyAnchor": 32 * cosines,
    }
    for name, loss in DEFAULTS.items():
        assert_close(loss.logits(EMBEDDINGS, PROXIES), expected[name], 1e-6)
    np.testing.assert_allclose(kj.losses.ProxyLoss().logits(EMBEDDINGS, PROXIES), cosines)


@values_only
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("ArcFace", {"margin": x}) for x in (-0.1, np.pi, 28.6, "0.5")),
        *((name, {"scale": 0}) for name in ("ArcFace", "CosFace", "ProxyNCA")),
        *((name, {"margin": -1.0}) for name in ("CosFace", "ProxyAnchor")),
        ("NormSoftmax", {"temperature": 0.0}),
        ("ProxyAnchor", {"alpha": 0.0}),
    ],
)
def test_invalid_arguments_are_refused(name, arguments):
    (argument,) = arguments
    with pytest.raises(ValueError, match=f"Invalid value for argument `{argument}`. Expected a "):
        getattr(kj.losses, name)(**arguments)


@values_only
@each_loss
def test_config_round_trip(loss):
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


@values_only
@pytest.mark.parametrize("loss", ["arc_face", kj.losses.ProxyAnchor()])
def test_loss_without_proxies_does_not_take_them(loss):
    with pytest.raises(ValueError, match=r"a loss without proxies.*ProxyTerm.*Received: \w+"):
        kj.losses.get(loss)
    with pytest.raises(ValueError, match="a loss without proxies"):
        kj.layers.ContrastiveTerm(loss)
