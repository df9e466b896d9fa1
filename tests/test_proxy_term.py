"""The layer term with proxies: its loss, logits, logs, files and errors."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import reference_proxies
from tests.backends import BACKEND, once_compiled, values_only
from tests.comparisons import assert_all_close

GENERATOR = np.random.default_rng(3)
ITEMS, CLASSES, DIM = 8, 3, 4
X = GENERATOR.normal(size=(ITEMS, DIM)).astype("float32")
LABELS = np.array([0, 1, 2, 2, -1, 0, 1, 0], "int32")
PROXIES = GENERATOR.normal(size=(CLASSES, DIM)).astype("float32")
EACH = ("ArcFace", "CosFace", "NormSoftmax", "ProxyNCA", "ProxyAnchor")


def term_of(loss="ArcFace", **options):
    """Returns a term with given proxies."""
    given = {"unlabelled": -1, "name": "face", **options}
    layer = kj.layers.ProxyTerm(loss, CLASSES, **given)
    layer.build([(None, DIM), (None,)])
    layer.proxies.assign(PROXIES)
    return layer


def called(layer, x=X, labels=LABELS, **options):
    """Calls the layer and returns the added loss."""
    layer((ops.convert_to_tensor(x), ops.convert_to_tensor(labels)), training=True, **options)
    (loss,) = layer.losses
    return float(ops.convert_to_numpy(loss))


def expected(loss, valid, weight=None, count=None):
    naive = getattr(reference_proxies, getattr(kj.losses, loss).function.__name__)
    data = X.astype("float64"), PROXIES.astype("float64")
    values = naive(*data, LABELS, valid)
    weight = 1 if weight is None else weight
    return np.sum(values * weight) / (np.sum(valid) if count is None else count)


def model_of(loss="ArcFace", **options):
    """Returns a compiled model of a term with its logits, and the labels as input."""
    keras.utils.set_random_seed(0)
    x, label = keras.Input((DIM,)), keras.Input((), dtype="int32")
    term = kj.layers.ProxyTerm(loss, CLASSES, unlabelled=-1, name="face", **options)
    embedding = term((keras.layers.Dense(DIM, name="dense")(x), label))
    model = keras.Model([x, label], {"embedding": embedding, "logits": term.logits(embedding)})
    model.compile(keras.optimizers.SGD(0.01))
    return model


@values_only
@pytest.mark.parametrize("loss", EACH)
def test_adds_mean_over_labelled_items_and_returns_embedding(loss):
    layer, labelled = term_of(loss, weight=0.5), LABELS >= 0
    y = layer((ops.convert_to_tensor(X), ops.convert_to_tensor(LABELS)), training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(y), X)
    value = expected(loss, labelled)
    read = {"loss": value, "weighted": 0.5 * value, "weight": 0.5}
    assert float(ops.convert_to_numpy(layer.losses[0])) == pytest.approx(0.5 * value, rel=1e-4)
    assert layer.weight.read() == pytest.approx(read, rel=1e-4)
    # An item of weight 0 is excluded, but it counts.
    weight = np.array([1, 0, 2, 1, 1, 0.5, 1, 1], "float32")
    valid = labelled & (weight > 0)
    for given in (weight, weight[:, None]):
        found = called(layer, sample_weight=ops.convert_to_tensor(given))
        assert found == pytest.approx(0.5 * expected(loss, valid, weight, 7), rel=1e-4)
    mask = ops.convert_to_tensor(weight > 0)
    x = np.where(weight[:, None] == 0, np.nan, X)  # Excluded.
    found = called(layer, x, mask=[mask, None])
    assert found == pytest.approx(0.5 * expected(loss, valid), rel=1e-4)
    assert layer.compute_mask((x, LABELS), [mask, None]) is mask
    rows = np.where(labelled[:, None], np.eye(CLASSES)[LABELS], -1)
    assert called(layer, labels=rows) == pytest.approx(0.5 * value, rel=1e-4)
    assert called(layer, labels=LABELS[:, None]) == pytest.approx(0.5 * value, rel=1e-4)


@values_only
@pytest.mark.parametrize("loss", EACH)
def test_batch_without_labels_adds_0(loss):
    layer = term_of(loss)
    assert called(layer, labels=np.full(ITEMS, -1)) == 0
    (loss,) = layer.losses
    loss.backward()
    assert not layer.proxies.value.grad.numpy().any()
    assert "loss" not in layer.weight.read()


@values_only
def test_masking_layer_and_metrics():
    layer = term_of("NormSoftmax", metrics=["accuracy"])
    called(layer)
    cosines = np.array(reference_proxies._cosines(X, PROXIES))
    labelled = LABELS >= 0
    accuracy = np.mean(cosines.argmax(1)[labelled] == LABELS[labelled])
    assert layer.weight.read()["accuracy"] == pytest.approx(accuracy)
    x, label = keras.Input((DIM,)), keras.Input((), dtype="int32")
    model = keras.Model([x, label], term_of("NormSoftmax")((keras.layers.Masking()(x), label)))
    model.compile()
    masked = np.where(np.arange(ITEMS)[:, None] < 2, 0, X)
    valid = labelled & (np.arange(ITEMS) >= 2)
    found = model.evaluate([masked, LABELS], verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(expected("NormSoftmax", valid), rel=1e-4)


@pytest.mark.parametrize("loss", ["ArcFace", "ProxyAnchor"])
def test_model_trains_and_lives_on_with_its_logits(loss, tmp_path):
    model = model_of(loss, weight=kj.schedules.Linear(0.0, 1.0, 10), metrics=["accuracy"])
    options = {"batch_size": 4, "verbose": 0, "callbacks": [kj.callbacks.JointLossCallback()]}
    before = ops.convert_to_numpy(model.get_layer("face").proxies)
    first = model.evaluate([X, LABELS], verbose=0, return_dict=True)
    history = model.fit([X, LABELS], epochs=4, validation_data=([X, LABELS],), **options).history
    assert {"face_loss", "face_weight", "face_accuracy", "val_face_loss"} <= {*history}
    assert history["face_weight"][-1] == pytest.approx(0.8)
    assert history["val_face_loss"][-1] < first["face_loss"]
    term = model.get_layer("face")
    assert term.proxies.path == "face/proxies"
    assert not np.allclose(ops.convert_to_numpy(term.proxies), before)

    # The logits need no labels.
    classifier = keras.Model(model.inputs[0], term.logits(model.get_layer("dense").output))
    predicted = model.predict([X, LABELS], verbose=0)
    logits = term.loss.logits(predicted["embedding"], term.proxies)
    assert_all_close([predicted["logits"]], [logits], 1e-5, 1e-5)
    assert_all_close([classifier.predict(X, verbose=0)], [logits], 1e-5, 1e-5)
    model.save(tmp_path / "model.keras")
    classifier.save(tmp_path / "classifier.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    alone = keras.models.load_model(tmp_path / "classifier.keras")
    assert_all_close([alone.predict(X, verbose=0)], [logits], 1e-5, 1e-5)
    assert_all_close([loaded.predict([X, LABELS], verbose=0)], [predicted], 1e-5, 1e-5)
    assert loaded.get_layer("face").get_config() == term.get_config()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_all_close([clone.predict([X, LABELS], verbose=0)], [predicted], 1e-5, 1e-5)
    assert [x.path for x in clone.trainable_variables] == [
        x.path for x in model.trainable_variables
    ]
    value = model.evaluate([X, LABELS], verbose=0, return_dict=True)
    assert loaded.evaluate([X, LABELS], verbose=0, return_dict=True) == pytest.approx(value, 1e-4)
    on = {**options, "initial_epoch": 4, "epochs": 5, "shuffle": False}
    found, then = (x.fit([X, LABELS], **on).history for x in (loaded, model))
    assert found["face_loss"] == pytest.approx(then["face_loss"], rel=1e-4)


@values_only
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    half = [ops.cast(ops.convert_to_tensor(X), policy.removeprefix("mixed_"))]
    layer = term_of()
    y = layer((*half, ops.convert_to_tensor(LABELS)))
    assert y.dtype == half[0].dtype
    assert keras.backend.standardize_dtype(layer.proxies.dtype) == "float32"
    assert float(ops.convert_to_numpy(layer.losses[0])) == pytest.approx(
        expected("ArcFace", LABELS >= 0), rel=0.05
    )
    logits = layer.logits(half[0])
    spec = layer.compute_output_spec(half[0], as_logits=True)
    assert keras.backend.standardize_dtype(logits.dtype) == spec.dtype == "float32"


@values_only
def test_gradient_reaches_the_embedding_and_not_frozen_proxies():
    term = term_of("NormSoftmax", trainable=False)
    dense = keras.layers.Dense(DIM)
    x, label = keras.Input((DIM,)), keras.Input((), dtype="int32")
    model = keras.Model([x, label], term((dense(x), label)))
    model.compile(keras.optimizers.SGD(0.1))
    before = ops.convert_to_numpy(dense.kernel)
    model.fit([X, LABELS], verbose=0)
    np.testing.assert_array_equal(ops.convert_to_numpy(term.proxies), PROXIES)
    assert not np.allclose(ops.convert_to_numpy(dense.kernel), before)


@once_compiled
def test_label_out_of_range_is_an_error_or_nan():
    model = model_of()
    labels = np.where(np.arange(ITEMS) == 2, CLASSES, LABELS)
    if BACKEND == "torch":
        with pytest.raises(ValueError, match=r"ArcFace expects labels from 0 to 2.* label 3"):
            model.evaluate([X, labels], verbose=0)
    else:
        assert np.isnan(model.evaluate([X, labels], verbose=0, return_dict=True)["loss"])
    with pytest.raises(ValueError, match=r"ArcFace expects labels from 0 to 2.* label 3"):
        called(term_of(), labels=labels)


@values_only
def test_subclass_of_the_loss_with_other_logits():
    class Distances(kj.losses.ProxyLoss):
        @staticmethod
        def function(embeddings, proxies, labels, valid=None):
            own = ops.one_hot(labels, CLASSES)
            return ops.sum((embeddings - own @ proxies) ** 2, axis=1)

        def logits(self, embeddings, proxies):
            return -ops.sum((embeddings[:, None] - proxies[None]) ** 2, axis=2)

    layer, labelled = term_of(Distances()), LABELS >= 0
    own = np.sum((X - PROXIES[LABELS]) ** 2, axis=1)[labelled]
    assert called(layer) == pytest.approx(own.mean(), rel=1e-5)
    distances = np.sum((X[:, None] - PROXIES[None]) ** 2, axis=2)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.logits(X)), -distances, rtol=1e-5)


@values_only
def test_proxies_begin_at_random_directions_of_length_1_or_as_told():
    layer = kj.layers.ProxyTerm("CosFace", 2000)
    layer.build((None, 64))
    lengths = np.linalg.norm(ops.convert_to_numpy(layer.proxies), axis=1)
    assert lengths.mean() == pytest.approx(1, abs=0.01)
    assert lengths.std() == pytest.approx(np.sqrt(1 / 128), rel=0.1)
    layer = kj.layers.ProxyTerm("CosFace", 5, proxies_initializer="ones")
    layer.build((None, 2))
    assert ops.convert_to_numpy(layer.proxies).tolist() == [[1, 1]] * 5
    again = kj.layers.ProxyTerm.from_config(layer.get_config())
    assert type(again.proxies_initializer) is keras.initializers.Ones


@values_only
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(8, 4)], r"'face' expects \(embedding, labels\)"),
        ([(8, 4, 2), (8,)], r"'face' expects embeddings of shape \(batch, dim\)"),
        ([(8, None), (8,)], r"'face' expects embeddings of shape \(batch, dim\)"),
        ([(8, 4), (7,)], r"ArcFace expects labels of shape \(8,\)"),
        ([(8, 4), (8, 2)], r"labels of shape \(batch,\) or \(batch, 3\)"),
        ([(8, 4), (8,), (8, 2)], r"'face' expects sample weights of shape \(8,\)"),
    ],
)
def test_wrong_inputs_are_refused_at_model_construction(shapes, message):
    layer = kj.layers.ProxyTerm("ArcFace", CLASSES, name="face")
    inputs = [keras.Input(batch_shape=shape) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        layer(inputs[0] if len(inputs) == 1 else tuple(inputs[:2]), *inputs[2:])
    with pytest.raises(ValueError, match=r"'face' expects embeddings of shape \(batch, dim\)"):
        layer.logits(keras.Input((2, 3)))


@values_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "InfoNCE"}, "`loss`.*'ArcFace', 'CosFace', 'NormSoftmax'"),
        ({"classes": 1}, "`classes`.*whole number >= 2"),
        ({"weight": -1.0}, "`weight`.*finite number >= 0"),
        ({"unlabelled": 0.5}, "`unlabelled`.*whole number"),
        ({"metrics": ["recall_at_k"]}, "recall_at_k"),
        ({"metrics": ["accuracy"] * 2}, "different names"),
        ({"proxies_initializer": "no_such"}, "no_such"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kj.layers.ProxyTerm(**{"loss": "ArcFace", "classes": 3, **arguments})


@once_compiled
@pytest.mark.parametrize(
    ("loss", "argument"), [("ArcFace", "margin"), ("NormSoftmax", "temperature")]
)
def test_argument_follows_a_schedule(loss, argument):
    schedule = kj.schedules.Linear(0.5, 0.1, 4)
    model = model_of(getattr(kj.losses, loss)(**{argument: schedule}))
    term = model.get_layer("face")
    x = ops.convert_to_tensor(X)
    callbacks = [kj.callbacks.JointLossCallback()]
    history = model.fit([X, LABELS], epochs=2, verbose=0, callbacks=callbacks).history
    assert history[f"face_{argument}"] == pytest.approx([0.4, 0.3])
    again = kj.layers.ProxyTerm.from_config(term.get_config())
    assert list(again.loss.schedules) == [argument]
    term.proxies.assign(PROXIES)
    fixed = term_of(getattr(kj.losses, loss)(**{argument: 0.3}))
    assert called(term) == pytest.approx(called(fixed), rel=1e-5)
    assert_all_close([term.logits(x)], [fixed.logits(x)], 1e-5)
