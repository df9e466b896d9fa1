"""Missing targets: loss, gradient and metrics are those of the labelled targets alone."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.terms.missing.labelled_metric import LabelledMetric
from tests.backends import once_compiled
from tests.gradients import COMPILES, compiled_value_and_gradient, value_and_gradient
from tests.refusals import refuses

NAN = float("nan")
IS_JAX = keras.backend.backend() == "jax"
ITEMS = 8
GENERATOR = np.random.default_rng(3)
LABELLED = np.array([1, 0, 0, 1, 1, 0, 1, 0], bool)
ELEMENTS = GENERATOR.random((ITEMS, 3)) < 0.5
PIXELS = GENERATOR.random((ITEMS, 4, 5)) < 0.6
WEIGHT = np.linspace(0.5, 2, ITEMS).astype("float32")


def probabilities(*shape):
    return GENERATOR.uniform(0.1, 0.9, (ITEMS, *shape)).astype("float32")


def integers(*shape):
    return GENERATOR.integers(0, 3, (ITEMS, *shape)).astype("int32")


def binary(*shape):
    return GENERATOR.integers(0, 2, (ITEMS, *shape)).astype("float32")


ONE_HOT = np.eye(3, dtype="float32")[integers()]


class Case(NamedTuple):
    """A loss with targets, of which some are missing.

    Attributes:
        loss: The loss.
        y_true: The targets, complete.
        y_pred: The predictions.
        missing: The value of missing targets.
        labelled: Which targets are not missing: items, elements or pixels.
    """

    loss: Any
    y_true: np.ndarray
    y_pred: np.ndarray
    missing: float = NAN
    labelled: np.ndarray = LABELLED


sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
binary_logits = keras.losses.BinaryCrossentropy(from_logits=True)
unreduced = keras.losses.MeanSquaredError(reduction=None)
weighted_mean = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
CASES = {
    "regression": Case("mse", probabilities(1), probabilities(1)),
    "rank_1_targets": Case(keras.losses.Huber(), probabilities(), probabilities(1)),
    "elements": Case("mse", probabilities(3), probabilities(3), -1, ELEMENTS),
    "binary_elements": Case(binary_logits, binary(3), probabilities(3), NAN, ELEMENTS),
    "function_of_elements": Case(
        keras.losses.mean_absolute_error, probabilities(3), probabilities(3), NAN, ELEMENTS
    ),
    "poisson": Case("poisson", probabilities(1), probabilities(1)),
    "kl_divergence": Case("kl_divergence", probabilities(3), probabilities(3)),
    "hinge": Case("hinge", 2 * binary(1) - 1, probabilities(1), 0),
    "sparse": Case(sparse, integers(), probabilities(3), -1),
    "sparse_with_axis": Case(sparse, integers(1), probabilities(3), -1),
    "sparse_name": Case("sparse_categorical_crossentropy", integers(), probabilities(3), -1),
    "sparse_floats": Case(sparse, integers().astype("float32"), probabilities(3)),
    "sparse_pixels": Case(sparse, integers(4, 5), probabilities(4, 5, 3), 255, PIXELS),
    "one_hot": Case(keras.losses.CategoricalCrossentropy(), ONE_HOT, probabilities(3)),
    "crossentropy": Case("crossentropy", integers(), probabilities(3), -1),
    "binary_crossentropy_by_shape": Case("crossentropy", binary(1), probabilities(1), -1),
    "cosine": Case(keras.losses.CosineSimilarity(), probabilities(3), probabilities(3)),
    "dice": Case(keras.losses.Dice(), binary(4, 5, 1), probabilities(4, 5, 1)),
    "dice_of_items": Case(
        keras.losses.Dice(axis=(1, 2, 3)), binary(4, 5, 1), probabilities(4, 5, 1)
    ),
    "weighted_mean": Case(weighted_mean, probabilities(3), probabilities(3), NAN, ELEMENTS),
    "sum": Case(keras.losses.MeanSquaredError(reduction="sum"), probabilities(2), probabilities(2)),
}


#: JAX compiles each operation for each shape, so it tests one case of each kind of target.
FEW_CASES = ("elements", "sparse_pixels", "dice")
COMPARED = [name for name in CASES if not IS_JAX or name in FEW_CASES]


def with_gaps(case):
    """Returns the targets with the missing ones replaced."""
    axes = (1,) * (case.y_true.ndim - case.labelled.ndim)
    labelled = case.labelled.reshape(*case.labelled.shape, *axes)
    return np.where(labelled, case.y_true, np.asarray(case.missing, case.y_true.dtype))


def labelled_only(case, values):
    """Returns the labelled targets, or their predictions, as the items of a batch."""
    chosen = values[case.labelled]
    # Each labelled element becomes an item.
    return chosen[:, None] if case.labelled.ndim == case.y_pred.ndim else chosen


def weights_of(case):
    """Returns sample weights of all items, and those of the labelled targets."""
    weight = WEIGHT.reshape(-1, *(1,) * (case.labelled.ndim - 1))
    labelled = np.broadcast_to(weight, case.labelled.shape)[case.labelled]
    return (weight if case.labelled.ndim > 2 else WEIGHT), labelled


def term_loss(loss, missing=None):
    return kj.terms.TermLoss(loss, kj.LossWeight(), "term", missing)


def of_predictions(loss, y_true, y_pred, weight=None):
    """Returns the value of a loss, and its gradient with respect to the predictions."""
    return value_and_gradient(lambda y_pred: loss(y_true, y_pred, weight), y_pred)


@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", COMPARED)
def test_value_and_gradient_are_those_of_the_labelled_targets(name, is_weighted):
    case = CASES[name]
    weight, labelled_weight = weights_of(case) if is_weighted else (None, None)
    loss = term_loss(case.loss, case.missing)
    # As under a weighting, which is told whether any item counts.
    loss.weight.observer = lambda *_: None
    value, gradient = of_predictions(loss, with_gaps(case), case.y_pred, weight)
    labelled = (labelled_only(case, x) for x in (case.y_true, case.y_pred))
    expected, labelled_gradient = of_predictions(term_loss(case.loss), *labelled, labelled_weight)
    assert value == pytest.approx(expected, rel=1e-5)
    expected_gradient = np.zeros_like(case.y_pred)
    is_element = case.labelled.ndim == case.y_pred.ndim
    expected_gradient[case.labelled] = labelled_gradient[:, 0] if is_element else labelled_gradient
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert np.all(gradient[~case.labelled] == 0)


@pytest.mark.parametrize("name", COMPARED)
def test_batch_without_labels_has_loss_and_gradient_0(name):
    case = CASES[name]
    loss = term_loss(case.loss, case.missing)
    y_true = np.full_like(case.y_true, case.missing)
    value, gradient = of_predictions(loss, y_true, case.y_pred)
    assert value == np.abs(gradient).max() == 0


def mean_distance(y_true, y_pred):
    """The distance of the mean of a sequence from a code that it has for all of its steps."""
    return ops.norm(ops.mean(y_pred, axis=1) - y_true, axis=-1)


def product_of_sums(y_true, y_pred):
    """One number for a batch, of targets with or without an axis of their own."""
    total = y_true if len(y_true.shape) == 1 else ops.sum(y_true, axis=-1)
    return ops.sum(total * ops.sum(y_pred, axis=-1))


BROADCAST = {
    "number_and_row": (product_of_sums, (), (3,), NAN),
    "rank_1": ("mse", (), (), NAN),
    "one_target_for_all_elements": ("mse", (1,), (3,), NAN),
    "code_of_a_sequence": (mean_distance, (3,), (4, 3), NAN),
    "mask_of_an_image_and_its_channel": (keras.losses.Dice(axis=(1, 2)), (4, 5), (4, 5, 1), NAN),
    "any_shape_of_the_marker": ("mse", (1,), (1,), np.array(NAN)),
    "sum_of_dice": (keras.losses.Dice(reduction="sum"), (4, 5), (4, 5), -1),
}


@once_compiled
@pytest.mark.parametrize("name", BROADCAST)
def test_shapes_that_a_loss_broadcasts(name):
    loss, true_shape, pred_shape, missing = BROADCAST[name]
    y_true, y_pred = probabilities(*true_shape), probabilities(*pred_shape)
    labelled = y_true[LABELLED], y_pred[LABELLED]
    expected, labelled_gradient = of_predictions(term_loss(loss), *labelled)
    y_true[~LABELLED] = missing
    value, gradient = of_predictions(term_loss(loss, missing), y_true, y_pred)
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient[LABELLED], labelled_gradient, rtol=1e-4, atol=1e-6)
    assert np.all(gradient[~LABELLED] == 0)


def test_nested_targets_are_refused():
    y = np.zeros((4, 1))
    with pytest.raises(ValueError, match="one tensor as target and prediction"):
        term_loss("mse", NAN)([y, y], [y, y])


@pytest.mark.backend("torch")
def test_loss_is_tried_out_on_the_cpu():
    """On a GPU, a class that does not exist would end all use of the GPU."""
    seen = []

    def squares(y_true, y_pred):
        seen.append((y_true.device.type, y_pred.device.type))
        return ops.mean(ops.square(y_true - y_pred), axis=-1)

    with keras.device("meta"):
        term_loss(squares, NAN)
        LabelledMetric(squares, NAN)
    assert {*seen} == {("cpu", "cpu")}


@pytest.mark.skipif(not COMPILES, reason="the backend does not compile")
@pytest.mark.parametrize("name", ["elements", "sparse", "dice"])
def test_compiled_loss_equals_the_eager_one(name):
    case = CASES[name]
    loss = term_loss(case.loss, case.missing)
    compute = compiled_value_and_gradient(lambda y_pred, y_true: loss(y_true, y_pred))
    value, gradient = compute(case.y_pred, with_gaps(case))
    eager = term_loss(case.loss, case.missing)  # The compiled one holds a tracer on JAX.
    expected = of_predictions(eager, with_gaps(case), case.y_pred)
    assert value == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-6)
    value, gradient = compute(case.y_pred, np.full_like(case.y_true, case.missing))
    assert value == np.abs(gradient).max() == 0


@once_compiled
def test_row_with_a_missing_element_is_left_out_if_the_loss_needs_whole_rows():
    case = CASES["cosine"]
    y_true = np.where(ELEMENTS | LABELLED[:, None], case.y_true, NAN)
    whole = ~np.isnan(y_true).any(axis=1)
    assert 0 < whole.sum() < ITEMS
    value = term_loss(case.loss, NAN)(y_true, case.y_pred)
    assert float(value) == pytest.approx(float(case.loss(case.y_true[whole], case.y_pred[whole])))


@pytest.mark.parametrize("missing", [300, 0.5, NAN])
def test_value_that_a_target_cannot_have_marks_none(missing):
    y_true = np.array([[0], [255], [1]], "uint8")
    value = term_loss("mse", missing)(y_true, np.zeros((3, 1), "float32"))
    assert float(value) == pytest.approx((255**2 + 1) / 3)


METRICS = {
    "name": ("mae", "regression"),
    "function_of_elements": (keras.losses.huber, "elements"),
    "mean_of_elements": (keras.metrics.MeanAbsoluteError(), "elements"),
    "root_of_elements": (keras.metrics.RootMeanSquaredError(), "elements"),
    "area": (keras.metrics.AUC(), "binary_elements"),
    "precision": (keras.metrics.Precision(), "binary_elements"),
    "sparse": (keras.metrics.SparseCategoricalAccuracy(), "sparse"),
    "pixels": ("sparse_categorical_accuracy", "sparse_pixels"),
    "top": (keras.metrics.TopKCategoricalAccuracy(2), "one_hot"),
    "needs_rows": ("cosine_similarity", "cosine"),
    "accuracy_sparse": ("accuracy", "sparse_with_axis"),
    "accuracy_of_one_hot": ("acc", "one_hot"),
    "accuracy_binary": ("accuracy", "binary_crossentropy_by_shape"),
    "needs_columns": (keras.metrics.R2Score(), "regression"),
}


def plain_metric(metric, case):
    """Returns the metric that Keras itself uses."""
    if metric in ("accuracy", "acc"):
        kinds = {
            "one_hot": keras.metrics.CategoricalAccuracy,
            "sparse_with_axis": keras.metrics.SparseCategoricalAccuracy,
        }
        return kinds.get(case, keras.metrics.BinaryAccuracy)()
    found = keras.metrics.get(metric)
    if isinstance(found, keras.metrics.Metric):
        return type(found).from_config(found.get_config())
    return keras.metrics.MeanMetricWrapper(found)


@once_compiled
@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", METRICS)
def test_metric_sees_the_labelled_targets_only(name, is_weighted):
    metric, case_name = METRICS[name]
    case = CASES[case_name]
    weight, labelled_weight = weights_of(case) if is_weighted else (None, None)
    if is_weighted and case.labelled.ndim > 2:
        weight = np.broadcast_to(weight, case.labelled.shape)
    labelled = LabelledMetric(metric, case.missing)
    plain = plain_metric(metric, case_name)
    for _ in range(2):  # The second time after a reset.
        for half in (slice(0, 5), slice(5, ITEMS)):
            own_weight = None if weight is None else weight[half]
            labelled.update_state(with_gaps(case)[half], case.y_pred[half], own_weight)
        pair = (labelled_only(case, x) for x in (case.y_true, case.y_pred))
        plain.update_state(*pair, labelled_weight)
        assert float(labelled.result()) == pytest.approx(float(plain.result()), rel=1e-4)
        labelled.reset_state()
        plain.reset_state()
    config = keras.saving.serialize_keras_object(labelled)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config().keys() == labelled.get_config().keys()
    assert again.name == labelled.name


class Unweighted(keras.metrics.Mean):
    def update_state(self, y_true, y_pred):
        super().update_state(y_pred)


def of_batch(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred))


test_invalid_arguments_are_refused = refuses(
    lambda **arguments: kj.joint_loss(**{"losses": {"a": "mse"}, **arguments}),
    ({"missing": "nan"}, "`missing`.*NaN or a finite number.*'nan'"),
    ({"missing": float("inf")}, "`missing`.*NaN or a finite number"),
    ({"missing": {"b": 0}}, r"`missing`.*outputs with a loss, among \['a'\]"),
    ({"losses": {"a": kj.losses.SupCon()}, "missing": -1}, "`missing`.*SupCon.*`unlabelled=`"),
    ({"losses": {"a": unreduced}, "missing": 0}, "`missing`.*without a reduction"),
    ({"metrics": {"a": Unweighted()}, "missing": 0}, "takes a `sample_weight`"),
    ({"metrics": {"a": of_batch}, "missing": 0}, "one value for each item"),
)


@once_compiled
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_missing_pixels_leave_the_others_of_an_item_in_its_dice(shape):
    y_true, y_pred = binary(*shape), probabilities(*shape)
    labelled = (PIXELS & LABELLED[:, None, None]).reshape(ITEMS, *shape)
    loss = keras.losses.Dice(axis=tuple(range(1, len(shape) + 1)))
    with_gaps = np.where(labelled, y_true, NAN)
    value, gradient = of_predictions(term_loss(loss, NAN), with_gaps, y_pred)
    expected = loss((y_true * labelled)[LABELLED], (y_pred * labelled)[LABELLED])
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert np.all((gradient != 0) == labelled)


@once_compiled
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (of_batch, (1,)),
        (keras.losses.Dice(axis=(1, 2)), (4, 5, 2)),  # Of classes in place of items.
        (keras.losses.Dice(axis=(0, 1, 2)), (4, 5, 2)),
    ],
)
def test_loss_without_a_value_for_each_item_is_refused(loss, shape):
    y = probabilities(*shape)
    with pytest.raises(ValueError, match="one value for each item"):
        term_loss(loss, NAN)(y, y)
