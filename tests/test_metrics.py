"""The metrics compared with naive references, over batches and in a model, and their errors."""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core.batch import Items, rows_of
from tests import reference_metrics as reference
from tests.backends import once_compiled
from tests.gradients import dtypes
from tests.refusals import refuses_calls

#: The metrics and their references by the first part of the name of a case.
OF_KIND = {
    "recall": (kj.metrics.RecallAtK, reference.recall_at_k),
    "rank": (kj.metrics.MeanReciprocalRank, reference.mean_reciprocal_rank),
    "average": (kj.metrics.MeanAveragePrecision, reference.mean_average_precision),
    "ndcg": (kj.metrics.NormalizedDiscountedCumulativeGain, reference.ndcg_at_k),
    "precision": (kj.metrics.MeanAveragePrecisionAtR, reference.mean_average_precision_at_r),
    "pairs": (kj.metrics.PairAccuracy, reference.pair_accuracy),
    "alignment": (kj.metrics.Alignment, reference.alignment),
    "uniformity": (kj.metrics.Uniformity, reference.uniformity),
    "positive": (kj.metrics.PositiveSimilarity, reference.positive_similarity),
    "negative": (kj.metrics.NegativeSimilarity, reference.negative_similarity),
    "gap": (kj.metrics.SimilarityGap, reference.similarity_gap),
}
ARGUMENTS = {
    **{name: {} for name in OF_KIND},
    "recall_at_3": {"k": 3},
    "recall_a_to_b": {"direction": "a_to_b"},
    "recall_b_to_a": {"direction": "b_to_a"},
    "recall_dot": {"similarity": "dot"},
    "recall_positive": {"same_label": "positive"},
    "recall_ignore": {"same_label": "ignore"},
    "rank_euclidean": {"similarity": "euclidean", "direction": "a_to_b", "same_label": "positive"},
    "average_ignore": {"same_label": "ignore", "direction": "a_to_b"},
    "average_without_labels": {"same_label": None, "similarity": "dot"},
    "ndcg_at_3": {"k": 3, "similarity": "euclidean", "direction": "b_to_a"},
    "recall_of_2_features": {"dim": 2, "direction": "a_to_b"},
    "ndcg_of_2_features": {"dim": 2, "similarity": "dot"},
    "precision_of_2_features": {"dim": 2},
    "precision_euclidean": {"similarity": "euclidean"},
    "pairs_euclidean": {"similarity": "euclidean", "threshold": -2.0},
    "alignment_1": {"alpha": 1.0},
    "uniformity_blunt": {"t": 0.5},
    "positive_dot": {"similarity": "dot"},
    "negative_ignore": {"same_label": "ignore", "similarity": "euclidean"},
    "gap_ignore": {"same_label": "ignore", "similarity": "dot"},
}
#: Metric, reference and arguments by the name of a case.
CASES = {case: (*OF_KIND[case.partition("_")[0]], x) for case, x in ARGUMENTS.items()}
#: One of each class: for JAX, which compiles each operation for each shape.
OF_EACH_CLASS = {make: case for case, (make, _, _) in CASES.items()}.values()
COMPARED = OF_EACH_CLASS if keras.backend.backend() == "jax" else CASES
RANKED = {case for case, (make, _, _) in CASES.items() if hasattr(make, "score")}
METRICS = sorted({make for make, _, _ in CASES.values()}, key=lambda make: make.__name__)


def _views(batch, dim=4, views=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, views, dim))


def _labels(batch):
    return np.random.default_rng(1).integers(0, 2, batch)


def _finish(make, mean):
    return math.log(mean) if make is kj.metrics.Uniformity and mean > 0 else mean


class _Masked(keras.layers.Layer):
    """Returns its input with a mask."""

    def __init__(self, mask):
        super().__init__()
        self._mask = ops.convert_to_tensor(mask)

    def call(self, x):
        return 1.0 * x

    def compute_mask(self, x, mask=None):
        return self._mask


def _assert_equals_reference(
    case, views, labels, valid=None, weight=None, dtype="float32", given=None
):
    """Asserts that a metric of the views, or of what is given in their place, is the reference."""
    make, naive, arguments = CASES[case]
    metric = make(**arguments, dtype=dtype)
    given = ops.convert_to_tensor(views, dtype=dtype) if given is None else given
    metric.update_state(labels, given, weight)
    expected = _finish(make, reference.mean(*naive(views, labels, valid, **arguments), weight))
    tolerance = 1e-6 if dtype == "float64" else 2e-5
    assert float(metric.result()) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize(("batch", "dim"), [(1, 4), (8, 4)])
@pytest.mark.parametrize("case", COMPARED)
def test_equals_the_reference(case, batch, dim, dtype):
    _assert_equals_reference(case, _views(batch, dim), _labels(batch), dtype=dtype)


@once_compiled
@pytest.mark.parametrize("case", CASES)
def test_items_are_weighted_and_weight_zero_excludes(case):
    weight = np.array([0, 1, 2, 0.5, 0, 1, 3, 1])
    _assert_equals_reference(case, _views(8), _labels(8), weight != 0, weight)


@once_compiled
@pytest.mark.parametrize("case", CASES)
def test_values_are_finite_and_change_no_state(case):
    make, naive, arguments = CASES[case]
    metric, views, labels = make(**arguments), _views(8), _labels(8)
    valid = np.array([1, 0, 1, 1, 1, 0, 1, 1], "bool")
    values, counts = metric.values(
        ops.convert_to_tensor(views.astype("float32")),
        ops.convert_to_tensor(labels) if metric.has_labels else None,
        ops.convert_to_tensor(valid),
    )
    expected, expected_counts = naive(views, labels, valid, **arguments)
    assert np.isfinite(ops.convert_to_numpy(values)).all()
    np.testing.assert_allclose(ops.convert_to_numpy(counts), expected_counts)
    counted = np.array(expected_counts) > 0
    np.testing.assert_allclose(
        ops.convert_to_numpy(values)[counted], np.array(expected)[counted], rtol=1e-4, atol=1e-5
    )
    assert [float(v) for v in metric.variables] == [0.0, 0.0]


@pytest.mark.parametrize("case", COMPARED)
def test_values_of_some_items_are_those_among_all(case):
    make, _, arguments = CASES[case]
    metric, dtype = make(**arguments), dtypes()[-1]
    views, valid = _views(8, dim=5).astype(dtype), np.array([1, 0, 1, 1, 1, 0, 1, 1], "bool")
    inputs = [ops.convert_to_tensor(x) for x in (views, _labels(8), valid)]
    expected = [ops.convert_to_numpy(x) for x in metric.values(*inputs)]
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for items in (Items(0, 3), Items(5, 3), Items(3, 0)):
        found = [ops.convert_to_numpy(x) for x in metric.values(*inputs, items)]
        for x, y in zip(found, expected, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, rows_of(y, items), tolerance, tolerance)


@pytest.mark.parametrize("shape", ["items", "views"])
@pytest.mark.parametrize("case", COMPARED)
def test_masked_items_are_excluded(case, shape):
    views, valid = _views(8), np.array([1, 1, 0, 1, 0, 1, 1, 1], "bool")
    mask = valid if shape == "items" else np.stack([valid, np.ones(8, "bool")], axis=1)
    padded = np.where(valid[:, None, None], views, np.nan).astype("float32")
    _assert_equals_reference(case, views, _labels(8), valid, given=_Masked(mask)(padded))


@once_compiled
@pytest.mark.parametrize("case", CASES)
def test_result_accumulates_over_batches(case):
    make, naive, arguments = CASES[case]
    metric, values, counts = make(**arguments), [], []
    for seed, batch in enumerate((8, 1, 8)):
        views = _views(batch, seed=seed)
        metric.update_state(_labels(batch), views.astype("float32"))
        found = naive(views, _labels(batch), **arguments)
        values, counts = values + found[0], counts + found[1]
    expected = _finish(make, reference.mean(values, counts))
    assert float(metric.result()) == pytest.approx(expected, rel=2e-5, abs=2e-5)
    metric.reset_state()
    assert float(metric.result()) == 0.0


@once_compiled
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize(("batch", "dim"), [(4, 3), (100, 130)])
def test_collapsed_model_retrieves_nothing(batch, dim, similarity):
    views = np.tile(_views(1, dim).astype("float32"), (batch, 1, 1))
    views[:, 0] = _views(batch, dim)[:, 0]
    recall = kj.metrics.RecallAtK(batch - 1, direction="a_to_b", similarity=similarity)
    assert float(recall(None, views)) == 0.0
    rank = kj.metrics.MeanReciprocalRank(direction="a_to_b", similarity=similarity)
    assert float(rank(None, views)) == pytest.approx(1 / batch)
    both_views = np.tile(views[:1, 1:], (batch, 2, 1))
    labels = np.arange(batch) % (batch // 2)
    precision = kj.metrics.MeanAveragePrecisionAtR(similarity)
    expected = reference.mean(
        *reference.mean_average_precision_at_r(both_views[:8], labels[:8], similarity=similarity)
    )
    assert float(precision(labels[:8], both_views[:8])) == pytest.approx(expected)


@once_compiled
@pytest.mark.parametrize("case", [*sorted(RANKED), "precision"])
def test_ties_count_against_the_model(case):
    items = 8 if case == "precision" else 20
    views = np.random.default_rng(3).integers(-1, 2, size=(items, 2, 2)).astype("float64")
    _assert_equals_reference(case, views, _labels(items))


@once_compiled
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("case", ["precision", "uniformity"])
def test_any_number_of_views_equals_the_reference(case, views):
    labels = np.array([0, 1, 1, 2, 0, 0, 1, 1])  # One item has a unique label.
    _assert_equals_reference(case, _views(8, views=views), labels)


@pytest.mark.parametrize("case", ["precision", "uniformity"])
def test_one_view_need_not_be_stacked(case):
    views, labels = _views(8, views=1), np.array([0, 1, 1, 2, 0, 0, 1, 1])
    mask = np.array([1, 0, 1, 1, 1, 1, 1, 1], "bool")
    embeddings = _Masked(mask)(ops.convert_to_tensor(views[:, 0].astype("float32")))
    _assert_equals_reference(case, views, labels, mask, given=embeddings)


def test_recall_at_the_batch_size_is_one():
    assert float(kj.metrics.RecallAtK(10)(None, np.ones((10, 2, 3), "float32"))) == 1.0


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64", "float32"])
def test_labels_may_have_any_dtype_and_be_a_column(dtype):
    labels, views = _labels(8).astype(dtype), _views(8).astype("float32")
    expected = float(kj.metrics.MeanAveragePrecisionAtR()(_labels(8), views))
    for y in (labels, labels[:, None]):
        assert float(kj.metrics.MeanAveragePrecisionAtR()(y, views)) == expected


def test_large_integer_labels_do_not_collide():
    labels = 2**24 + np.arange(4, dtype="int32")
    found = kj.metrics.NegativeSimilarity(same_label="ignore")(labels, _views(4).astype("float32"))
    expected = reference.mean(*reference.negative_similarity(_views(4)))
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make", METRICS)
def test_half_precision_is_computed_in_float32(make):
    views, labels = _views(8, 8).astype("float16"), _labels(8)
    assert float(make()(labels, views)) == float(make()(labels, views.astype("float32")))


@pytest.mark.parametrize("case", COMPARED)
def test_config_round_trip(case):
    make, _, arguments = CASES[case]
    metric = make(**arguments, name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is make
    assert again.get_config() == metric.get_config()
    views = _views(8).astype("float32")
    assert float(again(_labels(8), views)) == float(metric(_labels(8), views))


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
class _OneMask(keras.layers.Layer):
    """Masks a pair if one of its views is masked, so that losses can use the mask, too."""

    def call(self, pair, mask=None):
        return 1.0 * pair

    def compute_mask(self, pair, mask=None):
        return ops.all(mask, axis=1)


def _model(jit_compile, weighted=False):
    """Returns a model of tokens (0 is padding) with all metrics on its pairs."""
    tokens = keras.Input((2,), dtype="int32")
    pair = keras.layers.Embedding(20, 4, mask_zero=True, embeddings_initializer="normal")(tokens)
    model = keras.Model(tokens, _OneMask()(pair))
    metrics = [make(**arguments, name=case) for case, (make, _, arguments) in IN_MODEL.items()]
    metrics = {"weighted_metrics" if weighted else "metrics": metrics}
    model.compile("sgd", kj.losses.InfoNCE(), **metrics, jit_compile=jit_compile)
    return model


# One case of each class: XLA takes a minute to compile a step with all cases.
IN_MODEL = {make.__name__: (make, naive, arguments) for make, naive, arguments in CASES.values()}
TOKENS = np.random.default_rng(5).integers(1, 20, size=(14, 2))
TOKENS[[3, 9], 1] = 0
LABELS = _labels(14)


def _assert_evaluates(model, tokens=TOKENS, weight=None, batch_size=7):
    options = {"sample_weight": weight, "batch_size": batch_size, "return_dict": True}
    logs = model.evaluate(tokens, LABELS, verbose=0, **options)
    pairs = model.predict(tokens, verbose=0).astype("float64")
    for case, (make, naive, arguments) in IN_MODEL.items():
        values, counts = [], []
        for start in range(0, 14, batch_size):
            batch = slice(start, start + batch_size)
            valid = (tokens[batch] > 0).all(axis=1)
            if weight is not None:
                valid &= weight[batch] != 0
            found = naive(pairs[batch], LABELS[batch], valid, **arguments)
            values, counts = values + found[0], counts + found[1]
        expected = _finish(make, reference.mean(values, counts, weight))
        assert logs[case] == pytest.approx(expected, rel=1e-4, abs=1e-5), case


def test_all_metrics_equal_the_reference_in_a_model(tmp_path):
    model = _model(jit_compile=keras.backend.backend() != "torch")
    history = model.fit(TOKENS, LABELS, batch_size=7, epochs=2, verbose=0).history
    assert set(IN_MODEL) <= set(history)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    _assert_evaluates(loaded, batch_size=7)


@once_compiled
def test_weighted_metrics_in_a_model_with_two_batch_sizes():
    weight = np.arange(14) % 3 / 2
    # No padding, because on PyTorch Keras applies the mask to the weights in place.
    tokens = np.maximum(TOKENS, 1)
    _assert_evaluates(_model(jit_compile=False, weighted=True), tokens, weight, batch_size=5)


test_invalid_arguments_are_refused = refuses_calls(
    (lambda: kj.metrics.RecallAtK(k=0), "`k`.*whole number >= 1.*Received: k=0"),
    (lambda: kj.metrics.RecallAtK(k=1.5), "`k`.*Received: k=1.5"),
    (lambda: kj.metrics.RecallAtK(k=True), "`k`.*Received: k=True"),
    (lambda: kj.metrics.RecallAtK(direction="a"), "`direction`.*'both'.*Received: direction='a'"),
    (lambda: kj.metrics.RecallAtK(same_label="yes"), "`same_label`.*Received: same_label='yes'"),
    (lambda: kj.metrics.MeanReciprocalRank(dim=0), "`dim`.*whole number >= 1.*Received: dim=0"),
    (lambda: kj.metrics.MeanReciprocalRank(similarity="l2"), "`similarity`.*similarity='l2'"),
    (lambda: kj.metrics.MeanAveragePrecisionAtR(similarity=None), "`similarity`.*Received"),
    (lambda: kj.metrics.MeanAveragePrecision(direction=None), "`direction`.*Received"),
    (lambda: kj.metrics.NormalizedDiscountedCumulativeGain(k=0), "`k`.*Received: k=0"),
    (lambda: kj.metrics.PairAccuracy(threshold=math.nan), "`threshold`.*Received: threshold=nan"),
    (lambda: kj.metrics.Alignment(alpha=0), "`alpha`.*> 0.*Received: alpha=0"),
    (lambda: kj.metrics.Uniformity(t=-1), "`t`.*> 0 and <= 20.*Received: t=-1"),
    (lambda: kj.metrics.Uniformity(t=21.0), "`t`.*> 0 and <= 20.*Received: t=21.0"),
    (lambda: kj.metrics.SimilarityGap(same_label="positive"), "`same_label`.*Received"),
)


def test_metric_of_some_features_is_named_after_them_and_refuses_fewer():
    for make in METRICS:
        if "dim" in make().get_config():
            metric = make(dim=5)
            assert metric.name == f"{make().name}_dim_5"
            with pytest.raises(ValueError, match=r"`dim`.*at most 4.*Received: dim=5"):
                metric.update_state(_labels(4), _views(4))


def test_weight_may_be_a_scalar():
    metric = kj.metrics.Alignment()
    expected = float(kj.metrics.Alignment()(None, _views(4)))
    assert float(metric(None, _views(4), 0.5)) == pytest.approx(expected, rel=1e-6)
    assert float(metric._weight) == 2


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3), (4, 2, 3, 1)])
def test_views_of_wrong_shape_are_refused(make, shape):
    if make.views is None and len(shape) < 4:
        pytest.skip("takes any number of views")
    with pytest.raises(ValueError, match=r"expects stacked views of shape \(batch, [\w ]+, dim\)"):
        make().update_state(np.zeros(4), np.zeros(shape, "float32"))


@pytest.mark.parametrize("shape", [(), (3,), (4, 2), (4, 1, 1)])
def test_labels_and_weights_of_wrong_shape_are_refused(shape):
    views = np.zeros((4, 2, 3), "float32")
    with pytest.raises(ValueError, match=r"expects labels of shape \(4,\) or \(4, 1\)"):
        kj.metrics.PairAccuracy().update_state(np.zeros(shape), views)
    if shape:
        with pytest.raises(ValueError, match=r"expects weights of shape \(4,\) or \(4, 1\)"):
            kj.metrics.Alignment().update_state(None, views, np.zeros(shape))
