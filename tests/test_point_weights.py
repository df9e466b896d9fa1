"""The layer that weighs points, and its rules: values, gradients, training, files and errors."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import reference_points
from tests.backends import BACKEND, once_compiled, values_only
from tests.comparisons import assert_all_close
from tests.gradients import dtypes, value_and_gradient

POINTS, STEPS = 12, 6
ANNEALED = {"epsilon": [0.05, 0.2, 1.0], "chunks": 5, "delta": 0.7}
#: The rules, by name and with arguments.
RULES = {
    "residual": ("Residual", {}),
    "residual_that_forgets": ("Residual", {"gamma": 0.5, "eta": 0.7, "initial": 0.3}),
    "causal": ("Causal", {"epsilon": 0.3, "chunks": 4}),
    "causal_of_each_point": ("Causal", {"epsilon": 0.2, "chunks": POINTS}),
    "causal_annealed": ("Causal", ANNEALED),
    "self_adaptive": ("SelfAdaptive", {"learning_rate": 0.1, "initial": 0.5}),
}


def rule_of(name):
    """Returns a rule and its reference."""
    rule, arguments = RULES[name]
    naive = getattr(reference_points, rule)(POINTS, **arguments)
    return getattr(kj.points, rule)(**arguments), naive


def layer_of(name="residual", **options):
    return kj.layers.PointWeights(POINTS, rule_of(name)[0], name="equation", **options)


def batches():
    """Returns batches with repeated points, points without weight and a residual of NaN."""
    generator = np.random.default_rng(5)
    found = []
    for step in range(STEPS):
        size = 3 if step == 2 else 8
        residual = generator.normal(size=(size, 2)) * 0.5**step
        index = generator.integers(-1, POINTS, size)
        weight = generator.uniform(0.5, 2, size) * (np.arange(size) % 4 != 1)
        residual[1] = np.nan  # Its weight is 0.
        found.append((residual, index, weight))
    everything = generator.normal(size=(POINTS, 2)) * 0.1, np.arange(POINTS), np.ones(POINTS)
    return [*found, everything, everything]


def added(layer, residual, index, weight=None, training=True):
    """Calls the layer and returns the loss that it adds."""
    layer(residual, residual, index, weight, training=training)
    (loss,) = layer.losses
    return loss


def added_and_gradient(layer, residual, index, weight):
    """Returns the loss that a call adds, and its gradient with respect to the residuals."""
    if BACKEND != "jax":
        return value_and_gradient(lambda x: added(layer, x, index, weight), residual)
    layer.build(residual.shape)
    before = [x.value for x in layer.non_trainable_variables]

    def loss(x):
        given = x, x, index, weight
        options = {"training": True, "return_losses": True}
        return layer.stateless_call([], before, *given, **options)[2][0]

    found = value_and_gradient(loss, residual)
    added(layer, ops.convert_to_tensor(residual), index, weight)
    return found


def weights_of(layer):
    return ops.convert_to_numpy(layer.point_weights())


def state_of(layer):
    return {name: ops.convert_to_numpy(x) for name, x in layer._state.items()}


@pytest.mark.parametrize("name", RULES)
def test_loss_gradient_and_weights_equal_the_reference_in_each_step(name):
    for dtype in dtypes():
        keras.config.set_floatx(dtype)
        layer, naive = layer_of(name, weight=0.5), rule_of(name)[1]
        tolerance = 1e-4
        if dtype == "float64":  # On PyTorch, Keras adds up segments in float32.
            tolerance = 1e-9 if BACKEND == "tensorflow" else 1e-6
        for residual, index, weight in batches():
            with np.errstate(invalid="ignore"):
                expected, factors = naive(residual, index, weight)
            given = ops.convert_to_tensor(index, "int32"), ops.convert_to_tensor(weight, dtype)
            found, gradient = added_and_gradient(layer, residual.astype(dtype), *given)
            assert float(found) == pytest.approx(0.5 * expected, rel=tolerance)
            # None flows through the weights, and none to what is excluded.
            plain = np.where(weight[:, None] != 0, np.array(factors)[:, None] * residual, 0)
            np.testing.assert_allclose(gradient, 0.5 * plain, tolerance, tolerance)
            np.testing.assert_allclose(weights_of(layer), naive.weights, tolerance, 1e-12)
    assert len(set(np.round(naive.weights, 6))) > 2


@values_only
@pytest.mark.parametrize("name", RULES)
def test_call_that_does_not_train_leaves_the_weights(name):
    layer, naive = layer_of(name), rule_of(name)[1]
    first, second, *_ = batches()
    for residual, index, weight in (first, second):
        naive(residual, index, weight)
        added(layer, *(ops.convert_to_tensor(x) for x in (residual, index, weight)))
    before = state_of(layer)
    residual, index, weight = second
    expected, _ = naive(residual[:, 0], index, weight, is_training=False)
    given = (ops.convert_to_tensor(x) for x in (residual[:, :1], index[:, None], weight))
    assert float(added(layer, *given, training=False)) == pytest.approx(expected, rel=1e-4)
    assert_all_close(state_of(layer), before)


@values_only
def test_weights_of_a_whole_batch_are_those_of_the_papers():
    generator = np.random.default_rng(1)
    residual, index = generator.normal(size=(6, POINTS)).astype("float32"), np.arange(POINTS)
    attention = kj.layers.PointWeights(POINTS, "residual")
    causal = kj.layers.PointWeights(POINTS, kj.points.Causal(0.5, chunks=4))
    multiplier = np.zeros(POINTS)
    for r in residual:
        given = ops.convert_to_tensor(r), ops.convert_to_tensor(index)
        multiplier = 0.999 * multiplier + 0.01 * np.abs(r) / np.abs(r).max()
        expected = np.mean((multiplier * r) ** 2)
        assert float(added(attention, *given)) == pytest.approx(expected, rel=1e-4)
        chunks = np.mean(r.reshape(4, 3) ** 2, axis=1)
        weights = np.exp(-0.5 * (np.cumsum(chunks) - chunks))
        assert float(added(causal, *given)) == pytest.approx(np.mean(weights * chunks), rel=1e-4)


def model_of(rule="residual", **options):
    """Returns a model whose residuals are an input, and which learns nothing."""
    residual, index = keras.Input((1,), name="residual"), keras.Input((), dtype="int32")
    scale = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
    r = scale(residual)
    term = kj.layers.PointWeights(POINTS, rule, name="equation", **options)
    model = keras.Model([residual, index], term(r, r, index))
    model.compile(keras.optimizers.SGD(0.0))
    return model


RESIDUAL = np.random.default_rng(2).normal(size=(POINTS, 1)).astype("float32")
DATA = [RESIDUAL, np.arange(POINTS, dtype="int32")]
#: The last batch has two points.
OPTIONS = {"batch_size": 5, "shuffle": False, "verbose": 0}


def fit(model, epochs=2, **options):
    options = {**OPTIONS, "epochs": epochs, **options}
    return model.fit(DATA, callbacks=[kj.callbacks.JointLossCallback()], **options).history


def epoch_of(naive):
    """Returns the loss of an epoch of the reference."""
    batches = [[x[start : start + 5] for x in DATA] for start in range(0, POINTS, 5)]
    return sum(naive(*data, np.ones(len(data[1])))[0] * len(data[1]) for data in batches) / POINTS


@pytest.mark.parametrize("name", ["residual_that_forgets", "causal_annealed", "self_adaptive"])
def test_model_trains_and_lives_on(name, tmp_path):
    rule, naive = rule_of(name)
    model = model_of(rule, weight=0.5)
    term = model.get_layer("equation")
    logs = fit(model)
    losses = [epoch_of(naive) for _ in range(2)]
    assert logs["equation_loss"] == pytest.approx(losses, rel=1e-4)
    assert logs["equation_value"] == pytest.approx([np.mean(RESIDUAL**2)] * 2, rel=1e-4)
    assert logs["equation_min_weight"][-1] == pytest.approx(min(naive.weights), rel=1e-4)
    assert logs["loss"][-1] == pytest.approx(0.5 * logs["equation_loss"][-1], rel=1e-4)
    np.testing.assert_allclose(weights_of(term), naive.weights, rtol=1e-4)

    before = state_of(term)
    value = model.evaluate(DATA, batch_size=POINTS, return_dict=True, verbose=0)
    model.predict(DATA, verbose=0)
    assert_all_close(state_of(term), before)
    expected, _ = naive(*DATA, np.ones(POINTS), is_training=False)
    assert value["equation_loss"] == pytest.approx(expected, rel=1e-4)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.get_layer("equation")
    assert_all_close(state_of(again), before)
    assert again.get_config() == term.get_config()
    clone = keras.models.clone_model(model).get_layer("equation")
    assert_all_close(state_of(clone), state_of(layer_of(name)))
    losses = [epoch_of(naive) for _ in range(2)]
    for resumed in (model, loaded):
        assert fit(resumed)["equation_loss"] == pytest.approx(losses, rel=1e-4)
        found = weights_of(resumed.get_layer("equation"))
        np.testing.assert_allclose(found, naive.weights, rtol=1e-4)


@once_compiled
def test_strictness_follows_a_schedule():
    schedule = kj.schedules.Linear(0.0, 1.0, 6)
    model = model_of(kj.points.Causal(schedule, chunks=4))
    logs = fit(model)
    assert logs["equation_epsilon"] == pytest.approx([0.5, 1.0])
    chunks = np.mean(RESIDUAL.reshape(4, 3) ** 2, axis=1)
    expected = np.repeat(np.exp(-(np.cumsum(chunks) - chunks)), 3)
    term = model.get_layer("equation")
    np.testing.assert_allclose(weights_of(term), expected, rtol=1e-4)
    again = kj.layers.PointWeights.from_config(term.get_config())
    assert type(again.rule.epsilon) is kj.schedules.Linear
    alone = kj.points.Causal(schedule, chunks=4)
    with pytest.raises(ValueError, match="Causal follows a schedule"):
        alone.weights(alone.initial_state(POINTS))


@values_only
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    residual = ops.cast(ops.convert_to_tensor(300 * RESIDUAL), policy.removeprefix("mixed_"))
    layer, naive = layer_of("residual_that_forgets"), rule_of("residual_that_forgets")[1]
    y = layer(residual, residual, DATA[1], training=True)
    assert y.dtype == residual.dtype
    expected, _ = naive(300.0 * RESIDUAL, DATA[1], np.ones(POINTS))
    assert expected > 1e4
    assert float(layer.losses[0]) == pytest.approx(expected, rel=0.02)
    assert {str(x.dtype) for x in state_of(layer).values()} == {"float32"}


@values_only
@pytest.mark.parametrize("name", RULES)
def test_residual_that_is_not_finite_spoils_no_weight(name):
    layer, other = layer_of(name), layer_of(name)
    residual, index = np.array([0.5, np.nan, 0.2, np.inf]), np.array([0, 1, 2, 0])
    loss = added(layer, ops.convert_to_tensor(residual), ops.convert_to_tensor(index))
    assert np.isnan(float(loss))
    rest = [ops.convert_to_tensor(x[[0, 2]]) for x in (residual, index)]
    added(other, *rest)
    assert_all_close(state_of(layer), state_of(other))
    assert np.isfinite(weights_of(layer)).all()
    # A batch without a point, and one without a residual.
    before = state_of(layer)
    added(layer, ops.convert_to_tensor([1.0]), ops.convert_to_tensor([-1]))
    assert_all_close(state_of(layer), before)
    assert float(added(layer, ops.zeros((2,)), ops.convert_to_tensor([0, 1]))) == 0
    assert np.isfinite(weights_of(layer)).all()


@once_compiled
@pytest.mark.parametrize("wrong", [POINTS, -2])
def test_index_out_of_range_is_an_error_or_nan(wrong):
    data = [RESIDUAL, np.where(np.arange(POINTS) == 3, wrong, DATA[1])]
    model = model_of()
    message = rf"'equation' expects indices of points, from 0 to 11, or -1.* {wrong}"
    if BACKEND == "torch":
        with pytest.raises(ValueError, match=message):
            model.fit(data, **OPTIONS)
    else:
        assert np.isnan(model.fit(data, **OPTIONS).history["loss"]).all()
        assert np.isfinite(weights_of(model.get_layer("equation"))).all()
    with pytest.raises(ValueError, match=message):
        added(layer_of(), *(ops.convert_to_tensor(x) for x in data))


@once_compiled
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_file_of_other_points_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = model_of(kj.points.Causal(chunks=4))
    fit(model)
    model.save_weights(path)
    with pytest.raises(ValueError, match=r"`point_multiplier`.*Received: none"):
        model_of("residual").load_weights(path)
    term = model.get_layer("equation")
    term._state["loss"].assign(np.full(POINTS, -2.0))
    model.save_weights(path)
    other = model_of(kj.points.Causal(chunks=4))
    before = state_of(other.get_layer("equation"))
    with pytest.raises(ValueError, match=r"`point_loss`.*>= -1"):
        other.load_weights(path)
    assert_all_close(state_of(other.get_layer("equation")), before)


@values_only
def test_custom_rule_has_its_state():
    @keras.saving.register_keras_serializable("points_tests")
    class LargestSoFar(kj.points.PointRule):
        def initial_state(self, points):
            return {"largest": np.zeros(points)}

        def update(self, state, residual, is_seen):
            return {"largest": ops.maximum(state["largest"], residual)}

        def weights(self, state):
            return state["largest"]

    model = model_of("largest_so_far")
    fit(model)
    layer = model.get_layer("equation")
    np.testing.assert_allclose(weights_of(layer), np.abs(RESIDUAL[:, 0]), rtol=1e-6)
    again = kj.layers.PointWeights.from_config(layer.get_config())
    assert type(again.rule) is LargestSoFar


@values_only
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((8, 1), (7,)), r"'equation' expects residuals .* shape=\(8, 1\) and shape=\(7,\)"),
        (((8, 1), (8, 2)), r"indices of shape \(batch,\)"),
        (((8, None), (8,)), r"residuals of shape \(batch, \.\.\.\)"),
        (((8,), (8,), (8, 2)), r"'equation' expects sample weights of shape \(8,\)"),
    ],
)
def test_wrong_inputs_are_refused_at_model_construction(shapes, message):
    dtypes = ("float32", "int32", "float32")
    inputs = [
        keras.Input(batch_shape=shape, dtype=dtype)
        for shape, dtype in zip(shapes, dtypes, strict=False)
    ]
    with pytest.raises(ValueError, match=message):
        layer_of()(inputs[0], *inputs)
    with pytest.raises(ValueError, match=r"'equation' expects integers as indices.*float32"):
        layer_of()(*[keras.Input((1,))] * 2, keras.Input(()))


@values_only
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kj.layers.PointWeights(0), "`points`.*whole number >= 1"),
        (lambda: kj.layers.PointWeights(5, "adam"), "`rule`.*'Residual', 'SelfAdaptive'"),
        (lambda: kj.layers.PointWeights(5, "causal"), "`points`.*as chunks, 32.*points=5"),
        (lambda: kj.layers.PointWeights(5, weight=-1.0), "`weight`.*finite number >= 0"),
        (lambda: kj.points.Residual(gamma=1.0), "`gamma`.*>= 0 and < 1"),
        (lambda: kj.points.Residual(eta=0.0), "`eta`.*> 0"),
        (lambda: kj.points.Residual(initial=-1.0), "`initial`.*>= 0"),
        (lambda: kj.points.Causal(epsilon=-1.0), "`epsilon`.*> 0"),
        (lambda: kj.points.Causal(epsilon="strict"), "`epsilon`.*a list of such numbers"),
        (lambda: kj.points.Causal(epsilon=[]), r"`epsilon`.*epsilon=\[\]"),
        (lambda: kj.points.Causal(epsilon=[1.0, 0.0]), r"`epsilon\[1\]`"),
        (lambda: kj.points.Causal(kj.schedules.Linear(-1.0, 1.0, 5)), "`epsilon`.*schedule"),
        (lambda: kj.points.Causal(chunks=0), "`chunks`.*whole number >= 1"),
        (lambda: kj.points.Causal(delta=1.0), "`delta`"),
        (lambda: kj.points.SelfAdaptive(learning_rate=0.0), "`learning_rate`"),
        (lambda: kj.points.SelfAdaptive(initial=0.0), "`initial`"),
    ],
    ids=range(16),
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
