"""The gradient balancer: compared with an aggregator on the Jacobian, alone and in `fit`."""

import gc

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import balanced_models as models
from tests.backends import BACKEND
from tests.balanced_models import FIRST, GRADIENTS, TERMS, Z, build, fit, weights_of
from tests.comparisons import assert_all_close
from tests.gradients import dtypes, value_and_gradient
from tests.test_replicas import assert_like_one_device

RULES = ("aligned_mtl", "cagrad", "imtl_g", "mean", "mgda", "nash_mtl", "pcgrad", "sum", "upgrad")
RULES += ("shares", "fair_grad", "con_fig", "dual_proj", "db_mtl", "grad_vac", "pcd")
#: Rules that keep a state, with arguments for which it matters in a few steps.
STATEFUL = {
    "grad_vac": kj.aggregators.GradVac(seed=1),
    "pcd": kj.aggregators.PCD(main="b", tau={"a": 0.5}, beta=0.5),
}


def balanced_gradient(layer, z=Z, gradients=GRADIENTS, dtype="float32"):
    """Returns the gradient that the layer passes to `z`."""

    def total(z):
        copies = layer(z, training=True)
        return sum(
            ops.sum(copies[term] * ops.convert_to_tensor(gradient.astype(dtype)))
            for term, gradient in zip(layer.terms, gradients, strict=True)
        )

    if not layer.built:
        layer.build(z.shape)
    value, gradient = value_and_gradient(total, z.astype(dtype))
    # The layer does not change the forward pass, so the value is the sum.
    tolerance = 1e-2 if dtype == "float16" else 1e-4
    np.testing.assert_allclose(value, np.sum(z * gradients.sum(axis=0)), rtol=tolerance)
    return gradient


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize("rule", [None, *RULES])
def test_gradient_equals_aggregator_result(rule, dtype):
    layer = kj.layers.GradientBalancer(TERMS, aggregator=rule)
    jacobian = GRADIENTS.reshape(len(TERMS), -1).astype(dtype)
    expected = ops.convert_to_numpy(kj.aggregators.get(rule or "sum")(jacobian))
    actual = balanced_gradient(layer, dtype=dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(actual.ravel(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e18])
@pytest.mark.parametrize("rule", ["mgda", "pcgrad", "nash_mtl"])
def test_gradient_scale_is_preserved(rule, scale):
    plain = balanced_gradient(kj.layers.GradientBalancer(TERMS, rule))
    scaled = balanced_gradient(kj.layers.GradientBalancer(TERMS, rule), gradients=GRADIENTS * scale)
    np.testing.assert_allclose(scaled / scale, plain, rtol=1e-4, atol=1e-5)


def test_single_term_keeps_its_gradient():
    actual = balanced_gradient(kj.layers.GradientBalancer(["a"]), Z, GRADIENTS[:1])
    np.testing.assert_allclose(actual, GRADIENTS[0], rtol=1e-6)


def test_half_precision_keeps_its_dtype():
    layer = kj.layers.GradientBalancer(TERMS, "mgda")
    z, gradients = (x.astype("float16").astype("float64") for x in (Z, GRADIENTS))
    actual = balanced_gradient(layer, z, gradients, "float16")
    assert actual.dtype == np.float16
    expected = balanced_gradient(kj.layers.GradientBalancer(TERMS, "mgda"), z, gradients)
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3)


def test_sequence_length_may_be_unknown():
    inputs = keras.Input((None, 5))
    x = keras.layers.Dense(4)(inputs)
    layer = kj.layers.GradientBalancer(["a", "b"], "mgda")
    z = layer([x, keras.layers.GlobalAveragePooling1D()(x)])
    assert z["a"][0].shape == (None, None, 4)
    outputs = {}
    for term in "ab":
        pooled = keras.layers.GlobalMaxPooling1D()(z[term][0])
        outputs[term] = keras.layers.Dense(1)(keras.layers.Concatenate()([pooled, z[term][1]]))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss=models.LOSSES)
    for length in (7, 3):
        sequences = models.GENERATOR.normal(size=(8, length, 5))
        model.fit(sequences, dict.fromkeys("ab", sequences[:, 0, :1]), verbose=0)
    assert np.all(layer.statistics().norms > 0)


@pytest.mark.parametrize(
    "inputs",
    [
        ops.zeros((3, 2), "int32"),
        ops.zeros(()),
        [],
        [ops.zeros(3, x) for x in ("float32", "float16")],
    ],
    ids=["integers", "scalar", "nothing", "dtypes"],
)
def test_invalid_input_is_refused(inputs):
    layer = kj.layers.GradientBalancer(TERMS)
    layer.build(None)
    with pytest.raises(ValueError, match=r"`inputs`.*Received: inputs of shapes"):
        layer(inputs, training=True)


def test_pcgrad_order_changes_every_step():
    layer = kj.layers.GradientBalancer(TERMS, "pcgrad")
    # The gradients conflict enough for the order to matter.
    gradients = GRADIENTS - 0.9 * GRADIENTS.mean(axis=0)
    results = [balanced_gradient(layer, Z, gradients) for _ in range(8)]
    assert any(not np.allclose(results[0], other, rtol=1e-3) for other in results[1:])
    again = kj.layers.GradientBalancer(TERMS, "pcgrad")
    np.testing.assert_array_equal(results[0], balanced_gradient(again, Z, gradients))


@pytest.mark.backend("tensorflow", "torch")  # JAX needs an optimizer.
@pytest.mark.parametrize("rule", ["GradVac", "PCD"])
def test_nonfinite_step_leaves_the_state_as_it_is(rule):
    broken = GRADIENTS.copy()
    broken[1, 0] = np.nan
    results = []
    for middle in (broken, None):
        layer = kj.layers.GradientBalancer(TERMS, rule)
        balanced_gradient(layer)
        if middle is not None:
            balanced_gradient(layer, gradients=middle)
        layer.record.step.assign(1)  # The orders depend on the step.
        results.append(balanced_gradient(layer, gradients=GRADIENTS[::-1].copy()))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.backend("tensorflow", "torch")  # JAX needs an optimizer.
def test_nonfinite_step_is_excluded_from_smoothed_coefficients():
    layer = kj.layers.GradientBalancer(TERMS, kj.aggregators.CAGrad(ema=0.75))
    broken = GRADIENTS.copy()
    broken[1, 0] = np.nan  # As in the first steps of mixed precision, with a too large scale.
    assert np.isnan(balanced_gradient(layer, gradients=broken)).all()
    actual = balanced_gradient(layer)
    expected = balanced_gradient(kj.layers.GradientBalancer(TERMS, "cagrad"))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert layer.statistics().nonfinite_step.tolist() == [0, 1, 0]


# In `fit`.


LAYERS = ("balancer", "shared")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", ["mgda", "pcgrad", "nash_mtl", *STATEFUL])  # Two use the step.
def test_fit_equals_manual_loop(rule, layer):
    rule = STATEFUL.get(rule, rule)
    is_exact = BACKEND == "tensorflow"  # On others, Keras computes some operations in float32.
    term_weights = {"a": 1.0, "b": 3.0}
    model = build(rule, term_weights, "float64" if is_exact else "float32", layer)
    aggregator = model.get_layer(layer).aggregator
    expected, _ = models.by_hand(model, aggregator, term_weights)
    fit(model)
    assert_all_close(weights_of(model), expected, *[1e-6 if is_exact else 2e-3] * 2)


def state_of(model, layer="balancer"):
    record = model.get_layer(layer).record
    return ops.convert_to_numpy(record.decode(record.latest).state)


@pytest.mark.parametrize(("rule", "telemetry"), [("grad_vac", True), ("pcd", False)])
def test_state_of_the_rule_is_saved_and_training_resumes(rule, telemetry, tmp_path):
    def make():
        keras.utils.set_random_seed(2)
        inputs = keras.Input((5,))
        balancer = kj.layers.GradientBalancer(
            ["a", "b"], STATEFUL[rule], telemetry=telemetry, name="balancer"
        )
        model = models.with_heads(inputs, balancer(keras.layers.Dense(4)(inputs)))
        assert (balancer.statistics() is None) or telemetry
        return model

    model = make()
    fit(model, 1)
    assert state_of(model).any()
    model.save(tmp_path / "model.keras")
    fit(model, 1)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fit(loaded, 1)
    assert_all_close(weights_of(loaded), weights_of(model), 1e-6, 1e-7)
    np.testing.assert_allclose(state_of(loaded), state_of(model), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"use_ema": True, "weight_decay": 0.01},
        {"gradient_accumulation_steps": 2, "global_clipnorm": 0.1},
    ],
)
def test_sum_trains_like_plain_model_with_every_optimizer(options):
    def trained(has_layer):
        model = build("sum")
        if not has_layer:
            inputs = keras.Input((5,))
            z = model.get_layer("trunk")(inputs)
            heads = {term: model.get_layer(f"head_{term}")(z) for term in "ab"}
            model = keras.Model(inputs, heads)
        fit(models.compile_again(model, **options))
        return weights_of(model)

    assert_all_close(trained(False), trained(True), 1e-4, 1e-6)


@pytest.mark.backend("jax")
@pytest.mark.parametrize("is_scaled", [False, True])
def test_overwriting_with_a_moving_average_is_refused_on_jax(is_scaled):
    def compiled(rule, **options):
        inputs = keras.Input((5,))
        layer = kj.layers.GradientBalancer(["a", "b"], rule, **options)
        model = models.with_heads(inputs, layer(keras.layers.Dense(4)(inputs)))
        optimizer = keras.optimizers.SGD(0.02, use_ema=True, ema_overwrite_frequency=2)
        if is_scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, loss=models.LOSSES)
        return model

    compiled("mgda").evaluate(*FIRST, verbose=0)
    model = compiled("mgda")
    with pytest.raises(ValueError, match=r"`ema_overwrite_frequency` .*Received: .*=2"):
        fit(model)
    fit(compiled("mgda", telemetry=False), 1)


@pytest.mark.parametrize("rule", ["mgda", *STATEFUL])
def test_mixed_float16_trains(rule):
    keras.config.set_dtype_policy("mixed_float16")
    rule = STATEFUL.get(rule, rule)
    # With the first loss scale, 2**15, no gradient leaves the range of float16.
    weights = {"a": 0.25, "b": 0.25}
    model = build(rule, weights)
    before = weights_of(model)
    fit(model)
    keras.config.set_dtype_policy("float32")
    single = build(rule, weights)
    fit(single)
    # The loss scale is no part of the state.
    np.testing.assert_allclose(state_of(model), state_of(single), atol=0.05)
    assert not any(np.array_equal(value, before[name]) for name, value in weights_of(model).items())
    assert_all_close(weights_of(model), weights_of(single), 0.05, 0.05)


@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_trunk_is_unchanged_and_heads_learn(layer):
    trunk = keras.layers.Dense(4, name="trunk")
    model = build("mgda", layer=layer, trunk=trunk)
    trunk.trainable = False
    models.compile_again(model)
    before, heads = trunk.get_weights(), weights_of(model)
    fit(model)
    assert_all_close(trunk.get_weights(), before, 0)
    assert all(not np.array_equal(value, heads[name]) for name, value in weights_of(model).items())


def frozen_after_it_is_built():
    model = build("mgda")
    model.get_layer("trunk").trainable = False
    return model


def frozen_when_it_is_built():
    inputs = keras.Input((5,))
    trunk = keras.layers.Dense(4, trainable=False, name="trunk")(inputs)
    return models.with_heads(inputs, kj.layers.GradientBalancer(["a", "b"], name="balancer")(trunk))


@pytest.mark.parametrize("frozen", [frozen_after_it_is_built, frozen_when_it_is_built])
def test_statistics_of_a_frozen_trunk_are_those_of_its_output(frozen):
    model = models.compile_again(frozen())
    values = weights_of(model)
    for i, value in enumerate(model.get_layer("trunk").get_weights()):
        values[f"trunk_{i}"] = value
    gradients, _ = models.by_hand_step(values, slice(0, 8), {"a": 1.0, "b": 1.0})
    model.fit(*FIRST, batch_size=8, verbose=0)
    statistics = model.get_layer("balancer").statistics()
    lengths = [np.linalg.norm(gradient) for gradient in gradients]
    np.testing.assert_allclose(statistics.norms, lengths, rtol=1e-4)
    cosine = np.sum(gradients[0] * gradients[1]) / np.prod(lengths)
    assert statistics.cosines[0, 1] == pytest.approx(cosine, rel=1e-3)


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "rule"), [("flatten", "mgda"), ("sum", "pcd"), ("shared", "grad_vac")]
)
def test_replicas_balance_like_one_device(layer, rule):
    rule = STATEFUL.get(rule, rule)

    def make():
        inputs = keras.Input((5,))
        if layer == "shared":
            z = kj.layers.SharedTrunk(keras.layers.Dense(4), ["a", "b"], rule)(inputs)
        else:
            balancer = kj.layers.GradientBalancer(["a", "b"], rule, layer)
            z = balancer(keras.layers.Dense(4)(inputs))
        heads = {"a": keras.layers.Dense(2)(z["a"]), "b": keras.layers.Dense(1)(z["b"])}
        return keras.Model(inputs, heads), kj.joint_loss(models.LOSSES)

    assert_like_one_device(make, [(models.X, models.Y)], epochs=4)


def test_direct_call_leaves_no_call_context_behind():
    layer = kj.layers.GradientBalancer(TERMS)
    layer.build(Z.shape)
    x = ops.convert_to_tensor(Z.astype("float32"))
    for copies in (layer(x, training=False), layer.call(x)):
        assert all(copy is x for copy in copies.values())
    dense = keras.layers.Dense(2, activity_regularizer="l2")
    for _ in range(3):
        dense(x)
    assert len(dense.losses) == 1


def test_model_called_twice_in_a_step_is_recorded_once():
    class Twice(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            again = super().compute_loss(x, y, self(x, training=training), sample_weight, training)
            return (loss + again) / 2

    def trained(model_class):
        model = build(kj.aggregators.CAGrad(ema=0.5))
        model = model_class(model.inputs, model.output)
        model.compile(keras.optimizers.SGD(0.02), loss=models.LOSSES)
        fit(model, 1)
        return model.get_layer("balancer").statistics(), weights_of(model)

    once, once_weights = trained(keras.Model)
    with pytest.warns(UserWarning, match="'balancer' is called several times in one step"):
        twice, twice_weights = trained(Twice)
    # Each call contributes half of the loss, which the layer may interpret as a loss scale.
    ratios = [statistics.norms[0] / statistics.norms[1] for statistics in (once, twice)]
    np.testing.assert_allclose(*ratios, rtol=0.05)
    for name in ("coefficients", "cosines", "conflicts"):
        assert_all_close([getattr(twice, name)], [getattr(once, name)], 1e-3, 1e-5, name)
    assert_all_close(twice_weights, once_weights, 1e-3, 1e-5)


def test_named_aggregator_keeps_its_length_without_rescaling():
    layers = [kj.layers.GradientBalancer(TERMS, "imtl_g", rescale=x) for x in (True, False)]
    assert [layer.aggregator.rescale for layer in layers] == [True, False]
    expected = kj.aggregators.IMTLG(rescale=False)(GRADIENTS.reshape(len(TERMS), -1))
    actual = balanced_gradient(layers[1], dtype=dtypes()[-1])
    np.testing.assert_allclose(actual.ravel(), ops.convert_to_numpy(expected), rtol=1e-4)


@pytest.mark.backend("torch")
def test_deleted_layer_raises_in_the_backward_pass():
    layer = kj.layers.GradientBalancer(TERMS)
    x = ops.convert_to_tensor(Z).requires_grad_()
    copies = layer(x, training=True)
    del layer
    gc.collect()
    with pytest.raises(RuntimeError, match="deleted before the backward pass"):
        sum(ops.sum(copy) for copy in copies.values()).backward()


def test_variable_paths_are_unique():
    paths = [variable.path for variable in build("mgda").variables]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": "ab"}, "terms"),
        ({"terms": []}, "terms"),
        ({"terms": ["a", "a"]}, "terms"),
        ({"terms": ["a", 1]}, "terms"),
        ({"terms": ["a", "b"], "aggregator": "gradnorm"}, "aggregator"),
        ({"terms": ["a", "b"], "aggregator": kj.aggregators.MGDA("loss")}, "aggregator"),
        ({"terms": ["a", "b"], "aggregator": kj.aggregators.DBMTL(log=True)}, "aggregator"),
        ({"terms": ["a", "b"], "aggregator": kj.aggregators.PCD("c")}, "main"),
        ({"terms": ["a", "b"], "aggregator": kj.aggregators.PCD("a", {"a": 0.1})}, "tau"),
        ({"terms": ["a", "b"], "reduction": "mean"}, "reduction"),
    ],
)
def test_invalid_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=rf"`{message}`.*Received: {message}="):
        kj.layers.GradientBalancer(**arguments)
