"""Features of a layer term: views, labels, masks, weights, memory and metrics."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from tests import reference
from tests.backends import BACKEND, once_compiled
from tests.comparisons import assert_all_close

GENERATOR = np.random.default_rng(4)
VIEWS = GENERATOR.normal(size=(6, 3, 4)).astype("float32")
LABELS = np.array([0, 1, 1, 2, 0, 1])


def called(layer, *inputs, training=True, **arguments):
    """Calls the layer and returns the added loss."""
    layer(tuple(ops.convert_to_tensor(x) for x in inputs), training=training, **arguments)
    (loss,) = layer.losses
    return float(ops.convert_to_numpy(loss))


def embeddings(views=VIEWS, count=2):
    return [views[:, i] for i in range(count)]


def model_of(layer, identity=False, optimizer="sgd"):
    """Returns a compiled model of a term between the outputs of one dense layer."""
    inputs = keras.Input((4,)), keras.Input((4,))
    dense = keras.layers.Dense(4, kernel_initializer="identity" if identity else "glorot_uniform")
    model = keras.Model(inputs, layer(tuple(map(dense, inputs))))
    model.compile(optimizer)
    return model


def numbers(variables):
    return [float(ops.convert_to_numpy(variable)) for variable in variables]


@once_compiled
def test_extra_views_are_hard_negatives_or_additional_positives():
    for name, naive in (("InfoNCE", reference.info_nce), ("NTXent", reference.nt_xent)):
        layer = kj.layers.ContrastiveTerm(name)
        assert called(layer, *embeddings(count=3)) == pytest.approx(naive(VIEWS).mean(), rel=1e-5)


@once_compiled
def test_teacher_may_have_another_dimension():
    teacher = GENERATOR.normal(size=(6, 2, 7)).astype("float32")
    student = np.pad(VIEWS[:, :2], ((0, 0), (0, 0), (0, 3)))
    views = np.concatenate([student, teacher], axis=1).astype("float64")
    given = [*embeddings(), *embeddings(teacher)]
    for similarity in ("cosine", "dot", "euclidean"):
        loss = kj.losses.SimilarityDistillation(0.5, 0.3, similarity)
        layer = kj.layers.ContrastiveTerm(loss, metrics=[kj.metrics.RecallAtK(1)])
        naive = reference.similarity_distillation(views, None, None, 0.5, 0.3, similarity)
        assert called(layer, *given) == pytest.approx(naive.mean(), rel=1e-4)
        assert [x.shape[1] for x in layer(tuple(map(ops.convert_to_tensor, given)))] == [4, 4, 7, 7]
    with pytest.raises(ValueError, match="expects embeddings of the same shape"):
        called(kj.layers.ContrastiveTerm("InfoNCE"), given[0], given[2])


@once_compiled
@pytest.mark.parametrize("name", ["KoLeo", "SpreadOut", "SIGReg"])
def test_one_embedding_without_labels(name):
    loss = kj.losses.get(name)
    naive = getattr(reference, loss.name)(VIEWS[:, :1].astype("float64"))
    layer = kj.layers.ContrastiveTerm(loss)
    assert called(layer, VIEWS[:, 0]) == pytest.approx(naive.mean(), rel=1e-4)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kj.layers.ContrastiveTerm(loss)((keras.layers.Dense(4)(inputs),)))
    model.compile("sgd")
    assert np.isfinite(model.fit(VIEWS[:, 0], epochs=1, verbose=0).history["loss"]).all()


def test_labels_come_last():
    layer = kj.layers.ContrastiveTerm("SupCon")
    expected = reference.sup_con(VIEWS, LABELS).mean()
    assert called(layer, *embeddings(count=3), LABELS) == pytest.approx(expected, rel=1e-5)


@once_compiled
@pytest.mark.parametrize("name", ["SupCon", "Triplet", "MultiSimilarity", "Circle"])
def test_one_embedding_with_labels(name):
    mask, weight = np.arange(6) != 3, np.array([1, 0, 2, 1, 0.5, 1], "float32")
    valid = mask & (weight > 0)
    loss = kj.losses.get(name)
    layer = kj.layers.ContrastiveTerm(loss, metrics=[kj.metrics.MeanAveragePrecisionAtR()])
    options = {"mask": [ops.convert_to_tensor(mask), None], "sample_weight": weight}
    actual = called(layer, VIEWS[:, 0], LABELS, **options)
    naive = getattr(reference, loss.name)(VIEWS[:, :1].astype("float64"), LABELS, valid)
    assert actual == pytest.approx(np.sum(naive * weight) / 5, rel=1e-4)


def test_one_embedding_is_returned_as_it_is():
    layer = kj.layers.ContrastiveTerm("SupCon")
    x, labels = ops.convert_to_tensor(VIEWS[:, 0]), ops.convert_to_tensor(LABELS)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer((x, labels))), VIEWS[:, 0])
    mask = ops.ones((6,), dtype="bool")
    assert layer.compute_mask((x, labels), [mask, None]) is mask
    rows = ops.one_hot(labels, 4, dtype="int32")  # As many classes as features.
    expected = called(kj.layers.ContrastiveTerm("SupCon"), VIEWS[:, 0], LABELS)
    assert called(layer, VIEWS[:, 0], rows) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="expects labels after the embeddings"):
        layer((x, x))


def test_metric_of_two_views_is_refused_with_one_embedding():
    layer = kj.layers.ContrastiveTerm("SupCon", metrics=[kj.metrics.RecallAtK()])
    with pytest.raises(ValueError, match=r"RecallAtK expects stacked views .*\(batch, 2, dim\)"):
        layer((keras.Input((4,)), keras.Input((), dtype="int32")))


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no int64 unless it is told to")
def test_large_labels_are_distinguished():
    layer = kj.layers.ContrastiveTerm("SupCon")
    large = LABELS.astype("int64") + 2**62
    expected = reference.sup_con(VIEWS[:, :2], LABELS).mean()
    assert called(layer, *embeddings(), large) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("is_masked", [False, True])
def test_item_that_is_masked_or_of_weight_0_is_excluded(is_masked):
    weight = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0], "float32")
    kept, values = weight > 0, reference.info_nce(VIEWS[weight > 0, :2])
    if is_masked:
        options, expected = {"mask": [ops.convert_to_tensor(kept), None]}, values.mean()
    else:
        options = {"sample_weight": ops.convert_to_tensor(weight)}
        expected = np.sum(values * weight[kept]) / len(weight)
    layer = kj.layers.ContrastiveTerm("info_nce", metrics=["recall_at_k"])
    assert called(layer, *embeddings(), **options) == pytest.approx(expected, rel=1e-5)
    assert layer.weight.read()["loss"] == pytest.approx(expected, rel=1e-5)


def test_mask_of_masking_layer_reaches_the_term():
    a, b = keras.Input((4,)), keras.Input((4,))
    layer, mask = kj.layers.ContrastiveTerm("InfoNCE", name="t"), ops.ones((6,), dtype="bool")
    assert layer.compute_mask((a, b), [mask, None]) == (mask, None)
    model = keras.Model([a, b], layer((keras.layers.Masking()(a), b)))
    model.compile("sgd")
    first, second = embeddings()
    first = first.copy()
    first[[1, 4]] = 0.0  # `Masking` masks these items.
    logs = model.evaluate([first, second], verbose=0, return_dict=True)
    kept = [0, 2, 3, 5]
    assert logs["loss"] == pytest.approx(reference.info_nce(VIEWS[kept, :2]).mean(), rel=1e-5)


def test_siglip_bias_and_temperature_are_trained_and_logged():
    layer = kj.layers.ContrastiveTerm("SigLIP", learn_temperature=True, name="pair")
    model = model_of(layer, optimizer=keras.optimizers.SGD(0.1))
    assert numbers(layer.trainable_variables) == pytest.approx([np.log(10.0), -10.0])
    logs = model.fit(embeddings(), epochs=2, verbose=0, callbacks=[JointLossCallback()]).history
    scale, bias = numbers(layer.trainable_variables)
    assert bias != -10.0
    assert logs["pair_bias"][-1] == pytest.approx(bias, rel=1e-5)
    assert logs["pair_temperature"][-1] == pytest.approx(np.exp(-scale), rel=1e-5)


def info_nce_with_memory(views, memory):
    """Returns the mean loss of a batch whose candidates are the batch and a memory."""
    return reference.info_nce(np.concatenate([views, memory]))[: len(views)].mean()


def test_memory_holds_the_latest_training_items():
    layer = kj.layers.ContrastiveTerm("InfoNCE", memory_size=5)
    seen = []
    for step in range(4):
        views = GENERATOR.normal(size=(3, 2, 4)).astype("float32")
        memory = np.concatenate([np.zeros((0, 2, 4)), *seen])[-5:]
        expected = info_nce_with_memory(views, memory)
        # Evaluation and prediction add no items.
        assert called(layer, *embeddings(views), training=False) == pytest.approx(expected, 1e-5)
        layer(tuple(embeddings(views)), training=False)
        assert called(layer, *embeddings(views)) == pytest.approx(expected, rel=1e-5), step
        seen.append(views)


def test_memory_may_be_smaller_than_the_batch():
    layer = kj.layers.ContrastiveTerm("InfoNCE", memory_size=2)
    called(layer, *embeddings())
    expected = info_nce_with_memory(VIEWS[:, :2], VIEWS[-2:, :2])
    assert called(layer, *embeddings()) == pytest.approx(expected, rel=1e-5)


@once_compiled
@pytest.mark.parametrize("count", [1, 2])
def test_memory_keeps_labels_and_skips_excluded_items(count):
    layer = kj.layers.ContrastiveTerm("SupCon", memory_size=6)
    weight = np.array([1, 1, 0, 1, 1, 1], "float32")
    called(layer, *embeddings(count=count), LABELS, sample_weight=ops.convert_to_tensor(weight))
    views, labels = GENERATOR.normal(size=(4, count, 4)).astype("float32"), np.array([1, 0, 3, 2])
    # Memory items are only candidates: each anchor of the batch sees the batch and the memory.
    kept = weight > 0
    everything = np.concatenate([views, VIEWS[kept, :count]])
    expected = reference.sup_con(everything, np.concatenate([labels, LABELS[kept]]))[:4].mean()
    assert called(layer, *embeddings(views, count), labels) == pytest.approx(expected, rel=1e-5)


def test_file_without_a_memory_leaves_it_as_it_is():
    layer = kj.layers.ContrastiveTerm("InfoNCE", memory_size=4)
    layer(tuple(embeddings()), training=True)
    store = {}
    layer.save_own_variables(store)
    before = {name: np.array(value) for name, value in store.items()}
    layer.load_own_variables({k: v for k, v in store.items() if not k.startswith("memory")})
    layer.save_own_variables(store)
    assert any(name.startswith("memory") for name in before)
    assert_all_close(store, before, 0)


def test_embedding_metrics_are_logged(tmp_path):
    metrics = [kj.metrics.RecallAtK(1), kj.metrics.Uniformity()]
    layer = kj.layers.ContrastiveTerm("InfoNCE", weight=0.5, metrics=metrics, name="pair")
    model = model_of(layer, identity=True, optimizer=keras.optimizers.SGD(0.0))
    options = {"batch_size": 6, "verbose": 0, "callbacks": [JointLossCallback()]}
    logs = model.fit(embeddings(), validation_data=(embeddings(),), **options)
    for metric in metrics:
        alone = type(metric).from_config(metric.get_config())
        alone.update_state(np.zeros(6), VIEWS[:, :2])
        expected = float(ops.convert_to_numpy(alone.result()))
        for prefix in ("", "val_"):
            logged = logs.history[f"{prefix}pair_{metric.name}"]
            assert logged == [pytest.approx(expected, rel=1e-5)]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("pair")
    assert loaded.get_config() == layer.get_config()


def test_vicreg_components_are_logged_for_layers_and_outputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    loss = kj.losses.VICReg()
    same = keras.layers.Dense(4, kernel_initializer="identity")
    x, y = kj.layers.ContrastiveTerm(loss, name="layer")((same(a), same(b)))
    model = keras.Model([a, b], {"output": ops.stack([x, y], axis=1)})
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss({"output": kj.losses.VICReg()}))
    targets = {"output": np.zeros(6)}
    logs = model.fit(embeddings(), targets, verbose=0, callbacks=[JointLossCallback()]).history
    for name, values in loss.part_values(VIEWS[:, :2]).items():
        expected = float(np.mean(ops.convert_to_numpy(values)))
        assert logs[f"layer_{name}"] == [pytest.approx(expected, rel=1e-5)]
        key = name if name in logs else f"output_{name}"
        assert logs[key] == [pytest.approx(expected, rel=1e-5)]


def test_too_large_memory_is_refused_by_name():
    layer = kj.layers.ContrastiveTerm("InfoNCE", memory_size=10**9)
    with pytest.raises(ValueError, match=r"`memory_size`.*Received: memory_size=1000000000"):
        layer.build([(None, 4), (None, 4)])


@once_compiled
def test_excluded_parameters_have_no_weight_decay():
    # This is the example in the docstring.
    optimizer = keras.optimizers.AdamW(1e-12, weight_decay=1e9)
    optimizer.exclude_from_weight_decay(var_names=["log_scale", "bias"])
    a, b = keras.Input((4,)), keras.Input((4,))
    layer = kj.layers.ContrastiveTerm("SigLIP", learn_temperature=True)
    model = keras.Model([a, b], layer((keras.layers.Dense(3, name="d")(a), b[:, :3])))
    model.compile(optimizer)
    before = numbers(layer.trainable_variables)
    kernel = ops.convert_to_numpy(model.get_layer("d").kernel)
    x = np.random.default_rng(0).normal(size=(8, 4))
    model.fit([x, x], batch_size=8, verbose=0)
    assert numbers(layer.trainable_variables) == pytest.approx(before)
    assert not np.allclose(ops.convert_to_numpy(model.get_layer("d").kernel), kernel)
