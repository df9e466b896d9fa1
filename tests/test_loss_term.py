"""A layer that makes any tensor, or any loss between two tensors, a term of the loss."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.comparisons import assert_all_close
from tests.refusals import refuses

GENERATOR = np.random.default_rng(3)
VALUES = GENERATOR.normal(size=(4, 3, 2)).astype("float32")
TARGET = GENERATOR.normal(size=(4, 3, 2)).astype("float32")
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], "bool")
ITEM_MASK = np.array([1, 0, 1, 1], "bool")
ITEM_WEIGHT = np.array([0.5, 0.0, 2.0, 1.0], "float32")
TIME_WEIGHT = GENERATOR.uniform(size=(4, 3)).astype("float32")


def added(layer, *arguments, **options) -> float:
    """Returns the loss that a call adds."""
    options = {name: ops.convert_to_tensor(x) for name, x in options.items()}
    layer(*(ops.convert_to_tensor(x) for x in arguments), training=True, **options)
    return sum(float(ops.convert_to_numpy(loss)) for loss in layer.losses)


def naive_mean(values, mask=None, weight=None) -> float:
    """Returns the sum of the weighted elements divided by the number of those not masked."""
    total = count = 0.0
    for index in np.ndindex(values.shape[:2]):
        if mask is None or mask[index[: mask.ndim]]:
            count += 1
            factor = 1.0 if weight is None else weight[index[: weight.ndim]]
            total += factor * values[index].astype("float64").mean()
    return total / count


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (4, 3), (4, 3, 2)])
def test_adds_weighted_mean_and_returns_inputs(shape):
    values = GENERATOR.normal(size=shape).astype("float32")
    layer = kj.layers.LossTerm(weight=0.5)
    inputs = {"a": ops.ones((4, 2)), "b": [ops.zeros((4, 5), "int32")]}
    outputs = layer(inputs, ops.convert_to_tensor(values), training=True)
    keras.tree.assert_same_structure(inputs, outputs)
    assert_all_close(outputs, inputs, 0)
    (loss,) = layer.losses
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(0.5 * values.mean(), rel=1e-5)
    read = {"loss": values.mean(), "weighted": 0.5 * values.mean(), "weight": 0.5}
    assert layer.weight.read() == pytest.approx(read, rel=1e-5)


@pytest.mark.parametrize("mask", [None, MASK, ITEM_MASK])
@pytest.mark.parametrize("weight", [None, ITEM_WEIGHT, ITEM_WEIGHT[:, None], TIME_WEIGHT])
def test_masks_and_sample_weights_select_elements(mask, weight):
    options = {} if weight is None else {"sample_weight": weight}
    if mask is not None:
        options["values_mask"] = mask
    plain = weight[:, 0] if weight is not None and weight.shape == (4, 1) else weight
    expected = naive_mean(VALUES, mask, plain)
    assert added(kj.layers.LossTerm(), VALUES, VALUES, **options) == pytest.approx(expected, 1e-5)
    # An excluded element may have any value.
    if mask is MASK:
        broken = np.where(MASK[..., None], VALUES, np.nan)
        found = added(kj.layers.LossTerm(), VALUES, broken, **options)
        assert found == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("options", [{}, {"target": 2.0}])
def test_fully_masked_values_add_0(options):
    nothing = np.zeros((4, 3), "bool")
    layer = kj.layers.LossTerm(**options)
    assert added(layer, VALUES, VALUES, values_mask=nothing) == 0.0


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
def absolute_difference(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


LABELS = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]])
LOSSES = [
    ("huber", TARGET),
    ("MeanSquaredError", TARGET),
    (keras.losses.CosineSimilarity(), TARGET),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), LABELS),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), LABELS[..., None]),
    (keras.losses.MeanAbsoluteError(reduction="mean_with_sample_weight"), TARGET),
    (absolute_difference, TARGET),
]


@pytest.mark.parametrize(("loss", "target"), LOSSES)
@pytest.mark.parametrize("weight", [None, ITEM_WEIGHT, TIME_WEIGHT])
def test_loss_between_two_tensors_equals_that_of_keras(loss, target, weight):
    expected = keras.losses.get(loss)
    if not isinstance(expected, keras.losses.Loss):
        expected = keras.losses.get("MeanSquaredError").__class__.__bases__[0](expected)
    weights = {} if weight is None else {"sample_weight": weight}
    full = {}
    if weight is not None:
        # Not as `(batch, 1)`, which Keras would count as one element an item.
        full["sample_weight"] = np.broadcast_to(weight.reshape(4, -1), (4, 3))
    value = float(ops.convert_to_numpy(expected(target, VALUES, **full)))
    assert added(kj.layers.LossTerm(loss), VALUES, target, **weights) == pytest.approx(value, 1e-5)


def test_floor_holds_the_mean_of_each_dimension():
    values = np.abs(VALUES.reshape(4, 6))
    means = values.astype("float64").mean(0)
    floor = float(np.median(means))
    layer = kj.layers.LossTerm(floor=floor, name="kl")
    assert added(layer, values, values) == pytest.approx(np.maximum(means, floor).sum(), rel=1e-5)
    assert layer.weight.read()["value"] == pytest.approx(means.sum(), rel=1e-5)
    weighted = np.maximum((values * ITEM_WEIGHT[:, None]).sum(0) / 4, floor).sum()
    layer = kj.layers.LossTerm(floor=floor)
    for weight in (ITEM_WEIGHT, ITEM_WEIGHT[:, None]):
        found = added(layer, values, values, sample_weight=weight)
        assert found == pytest.approx(weighted, rel=1e-5)


def test_target_is_the_distance_from_a_number_or_schedule():
    values = VALUES.reshape(4, 6)[:, 0]
    mean = values.astype("float64").mean()
    distance = added(kj.layers.LossTerm(target=2.0), values, values)
    assert distance == pytest.approx(abs(mean - 2.0), rel=1e-5)
    layer = kj.layers.LossTerm(target=kj.schedules.Linear(1.0, 3.0, 4), weight=0.5)
    expected = [abs(mean - target) / 2 for target in (1.0, 1.0, 1.5, 2.0, 2.0)]
    losses = [added(layer, values, values)]
    layer.weight.start_annealing(0)
    losses += [added(layer, values, values) for _ in range(3)]
    layer.weight.stop_annealing()
    layer.weight._step.assign(2)
    losses.append(added(layer, values, values))
    assert losses == pytest.approx(expected, rel=1e-5)


KERNEL = np.array([[0.5, -0.2], [0.3, 0.1], [-0.4, 0.6]])


def trained_kernel(term, x, values_of, weights=None):
    """Returns what a step of gradient descent with rate 1 makes of the kernel `KERNEL`."""
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(2, use_bias=False)
    hidden = dense(inputs)
    sample_weight = keras.Input(()) if weights is not None else None
    hidden = term(hidden, values_of(hidden), sample_weight=sample_weight)
    model = keras.Model(inputs if weights is None else [inputs, sample_weight], hidden)
    return after_a_step(model, dense, x if weights is None else [x, weights])


def after_a_step(model, dense, data):
    """Returns the kernel after a step of gradient descent with rate 1 from `KERNEL`."""
    model.compile(keras.optimizers.SGD(1.0))
    dense.set_weights([KERNEL])
    model.fit(data, batch_size=4, verbose=0)
    return ops.convert_to_numpy(dense.kernel)


@pytest.mark.parametrize("has_floor", [False, True])
def test_gradient_is_that_of_the_formula(has_floor):
    x = VALUES[:, :, 0]
    means = ((x @ KERNEL) ** 2 * ITEM_WEIGHT[:, None]).sum(0) / 4
    floor = float(means.mean()) if has_floor else None
    term = kj.layers.LossTerm(weight=0.5, floor=floor)
    after = trained_kernel(term, x, ops.square, ITEM_WEIGHT)
    hidden = x @ KERNEL
    upstream = 2 * hidden * ITEM_WEIGHT[:, None] / 4
    if floor is None:
        upstream = upstream / 2
    else:
        assert (means > floor).sum() == 1
        upstream = upstream * (means > floor)
    np.testing.assert_allclose(after, KERNEL - 0.5 * x.T @ upstream, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_prediction_and_target():
    x = VALUES[:, :, 0]
    term = kj.layers.LossTerm("mean_squared_error")
    after = trained_kernel(term, x, lambda hidden: ops.flip(hidden, axis=-1))
    hidden = x @ KERNEL
    difference = hidden - hidden[:, ::-1]
    np.testing.assert_allclose(after, KERNEL - x.T @ (difference * 2) / 4, rtol=1e-4, atol=1e-6)


def test_sequence_model_with_masks_and_sample_weights():
    sequence, weight = keras.Input((3, 2)), keras.Input((3,))
    masked = keras.layers.Masking()(sequence)
    energy = kj.layers.LossTerm(name="energy")
    hint = kj.layers.LossTerm("mean_squared_error", metrics=["mae"], name="hint")
    outputs = energy(masked, ops.abs(masked), sample_weight=weight)
    outputs = hint(outputs, ops.zeros_like(outputs))
    model = keras.Model([sequence, weight], outputs)
    model.compile("sgd")
    x = np.where(MASK[..., None], VALUES, 0.0)
    options = {"verbose": 0, "return_dict": True, "callbacks": [kj.callbacks.JointLossCallback()]}
    logs = model.evaluate([x, TIME_WEIGHT], **options)
    expected = naive_mean(np.abs(x), MASK, TIME_WEIGHT)
    squares = naive_mean(x**2, MASK)
    assert logs["loss"] == pytest.approx(expected + squares, rel=1e-5)
    terms = {name: model.get_layer(name).weight.read() for name in ("energy", "hint")}
    assert terms["energy"]["loss"] == pytest.approx(expected, rel=1e-5)
    assert terms["hint"]["loss"] == pytest.approx(squares, rel=1e-5)
    error = naive_mean(np.abs(x), MASK)
    assert terms["hint"]["mean_absolute_error"] == pytest.approx(error, rel=1e-5)


def test_schedule_of_the_target_counts_the_steps_of_fit():
    inputs = keras.Input((2,))
    target = kj.schedules.Linear(0.0, 1.0, 8)
    code = keras.layers.Dense(2, kernel_initializer="identity")(inputs)
    code = kj.layers.LossTerm(target=target, name="kl")(code, ops.square(code))
    model = keras.Model(inputs, code)
    model.compile(keras.optimizers.SGD(0.0))
    x = VALUES.reshape(12, 2)
    mean = np.square(x.astype("float64")).mean()
    callbacks = [kj.callbacks.JointLossCallback()]
    options = {"batch_size": 3, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    means = np.square(x.astype("float64")).reshape(4, 6).mean(1)
    for first in (0, 4):
        logs = model.fit(x, **options).history
        expected = np.abs(means - np.arange(first, first + 4) / 8).mean()
        assert logs["kl_loss"] == pytest.approx([expected], rel=1e-5)
        assert logs["kl_value"] == pytest.approx([mean], rel=1e-5)
        assert logs["kl_weight"] == [1.0]


@pytest.mark.parametrize(
    "options",
    [
        {"weight": kj.schedules.Linear(0.0, 1.0, 3), "floor": 0.1, "target": 4.0},
        {"loss": "huber", "metrics": ["mae", absolute_difference]},
        {"loss": absolute_difference, "target": kj.schedules.Linear(0.0, 1.0, 3)},
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
    ],
)
def test_config_round_trip(options):
    layer = kj.layers.LossTerm(**options, name="term")
    config = layer.get_config()
    again = kj.layers.LossTerm.from_config(config)
    assert again.get_config() == config
    values = VALUES.reshape(4, 6)
    other = [3, 0, 5, 1] if "from_logits" in str(config) else values[:, ::-1].copy()
    assert added(again, values, other) == pytest.approx(added(layer, values, other))


@pytest.mark.filterwarnings("ignore:Layer 'lstm':UserWarning")  # Of Keras 3.16, of any mask.
@pytest.mark.parametrize("length", [5, None])
def test_mask_of_inputs_does_not_apply_to_values_without_its_axes(length):
    tokens = keras.Input((length,))
    sequence = keras.layers.Embedding(4, 3, mask_zero=True)(tokens)
    values = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(sequence))
    code = kj.layers.LossTerm(name="kl")(sequence, values)
    model = keras.Model(tokens, keras.layers.LSTM(1)(code))
    model.compile("sgd")
    x = np.array([[1, 2, 0, 0, 0], [3, 1, 1, 2, 0]])
    expected = keras.Model(tokens, values).predict(x, verbose=0).mean()
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_excluded_targets_may_be_nan(is_weighted):
    x = VALUES[:, :, 0]
    weight = ITEM_MASK.astype("float32")[:, None]
    target = np.where(ITEM_MASK[:, None], TARGET[:, 0], np.nan)
    inputs, given = keras.Input((3,)), keras.Input((2,))
    dense = keras.layers.Dense(2, use_bias=False)
    term = kj.layers.LossTerm("mse", metrics=["mae"], name="hint")
    x = x * weight
    if is_weighted:
        sample_weight = keras.Input((1,))
        outputs = term(dense(inputs), given, sample_weight=sample_weight)
        model, data = keras.Model([inputs, given, sample_weight], outputs), [x, target, weight]
    else:
        outputs = term(dense(keras.layers.Masking()(inputs)), given)
        model, data = keras.Model([inputs, given], outputs), [x, target]
    kernel = after_a_step(model, dense, data)
    error = (x @ KERNEL - TARGET[:, 0])[ITEM_MASK]
    items = 4 if is_weighted else 3
    np.testing.assert_allclose(kernel, KERNEL - x[ITEM_MASK].T @ error / items, rtol=1e-4)
    assert term.weight.read()["mean_absolute_error"] == pytest.approx(np.abs(error).mean(), 1e-4)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("sparse_categorical_crossentropy", np.array([0, 1, 1, 2])),
        ("crossentropy", np.eye(3, dtype="float32")[[0, 1, 1, 2]]),
    ],
)
def test_accuracy_is_chosen_by_the_shapes(loss, target):
    probabilities = np.eye(3, dtype="float32")[[0, 1, 2, 2]] * 0.7 + 0.1
    layer = kj.layers.LossTerm(loss, metrics=["accuracy"])
    layer = kj.layers.LossTerm.from_config(layer.get_config())
    assert added(layer, probabilities, target) == pytest.approx(-np.log(0.8**3 * 0.1) / 4)
    assert layer.weight.read()["accuracy"] == 0.75


def test_refuses_several_calls_in_a_step():
    inputs = keras.Input((2,))
    term = kj.layers.LossTerm(weight=0.5, name="energy")
    first = term(inputs, ops.square(inputs))
    model = keras.Model(inputs, term(first, ops.abs(first)))
    model.compile("sgd")
    x = VALUES.reshape(12, 2)
    assert model.predict(x, verbose=0) == pytest.approx(x)
    with pytest.raises(ValueError, match="'energy' expects one call in a step"):
        model.evaluate(x, verbose=0)
    if keras.backend.backend() == "jax":
        return  # Keras itself loses the variables of a model whose step fails.
    # What the refused call left behind disturbs no later step.
    for _ in range(2):
        assert added(term, x, np.square(x)) == pytest.approx(0.5 * np.square(x).mean())


test_invalid_arguments_are_refused = refuses(
    kj.layers.LossTerm,
    ({"loss": keras.losses.MeanSquaredError(reduction="sum")}, "reduction is a mean"),
    ({"loss": kj.losses.InfoNCE()}, "use `ContrastiveTerm`"),
    ({"loss": "info_nce"}, "use `ContrastiveTerm` for a loss on views"),
    ({"loss": keras.metrics.Mean()}, "argument `loss`"),
    ({"loss": "no_such_loss"}, "no_such_loss"),
    ({"loss": "huber", "floor": 0.1}, "argument `floor`"),
    ({"floor": float("nan")}, "argument `floor`"),
    ({"target": "high"}, "argument `target`"),
    ({"weight": -1.0}, "argument `weight`"),
    ({"metrics": ["mae"]}, "none without a loss"),
    ({"loss": "mse", "metrics": ["AUC"]}, "means over items"),
    ({"loss": "mse", "metrics": ["mae", "mae"]}, "different names"),
)


def test_values_that_do_not_fit_are_refused():
    scalar, batch = ops.ones(()), ops.ones((4,))
    with pytest.raises(ValueError, match="no `sample_weight`"):
        kj.layers.LossTerm()(batch, scalar, sample_weight=batch)
    with pytest.raises(ValueError, match="for its floor"):
        kj.layers.LossTerm(floor=1.0)(batch, scalar)
    with pytest.raises(ValueError, match="one tensor as prediction"):
        kj.layers.LossTerm("mse")([batch, batch], batch)
    with pytest.raises(ValueError, match="one tensor as values"):
        kj.layers.LossTerm()(batch, [batch, batch])
    with pytest.raises(ValueError, match="for its floor"):
        kj.layers.LossTerm(floor=1.0)(batch, ops.ones((4, 3, 2)))
    for options in ({"floor": 1.0}, {"loss": "mse"}):
        for shape in ((4, 2), (3,)):
            layer = kj.layers.LossTerm(**options)
            with pytest.raises(ValueError, match="leading axes"):
                layer(ops.ones((4, 2)), ops.ones((4, 2)), sample_weight=ops.ones(shape))


def test_contrastive_term_honours_a_mask_beside_sample_weights():
    a, weight = keras.Input((2,)), keras.Input(())
    pair = kj.layers.ContrastiveTerm("MeanSquaredError", name="pair")
    x, _ = pair((keras.layers.Masking()(a), ops.zeros_like(a)), sample_weight=weight)
    model = keras.Model([a, weight], x)
    model.compile("sgd")
    data = VALUES[:, 0] * ITEM_MASK[:, None]
    squares = np.square(data).mean(-1)
    expected = (squares * ITEM_WEIGHT)[ITEM_MASK].sum() / 3
    logs = model.evaluate([data, ITEM_WEIGHT], verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
