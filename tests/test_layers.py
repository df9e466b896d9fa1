"""The layer term: its loss, its logs and its errors."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

import keras_jointloss as kj
from tests import reference
from tests.backends import BACKEND, tf, torch
from tests.refusals import refuses

GENERATOR = np.random.default_rng(1)
A = GENERATOR.normal(size=(6, 4)).astype("float32")
B = GENERATOR.normal(size=(6, 4)).astype("float32")
PAIR = np.stack([A, B], axis=1)
LABELS = np.array([0, 1, 1, 0, 1, 0])


def _loss(layer) -> float:
    (loss,) = layer.losses
    return float(ops.convert_to_numpy(loss))


@pytest.mark.parametrize(
    ("loss", "inputs", "expected"),
    [
        ("InfoNCE", (A, B), reference.info_nce(PAIR).mean()),
        (
            kj.losses.InfoNCE(0.5, symmetric=False),
            (A, B),
            reference.info_nce(PAIR, temperature=0.5, symmetric=False).mean(),
        ),
        *(
            ("MarginContrastive", (A, B, y), reference.margin_contrastive(PAIR, LABELS).mean())
            for y in (LABELS, LABELS[:, None])
        ),
        (
            kj.losses.TripletMargin(swap=True),
            (A, B, A[::-1].copy()),
            reference.triplet_margin(np.stack([A, B, A[::-1]], 1), swap=True).mean(),
        ),
        (keras.losses.MeanSquaredError(), (A, B), np.mean((A - B) ** 2)),
        (keras.losses.MeanAbsoluteError(reduction="mean"), (A, B), np.mean(np.abs(A - B))),
    ],
)
def test_adds_weighted_mean_and_returns_embeddings(loss, inputs, expected):
    layer = kj.layers.ContrastiveTerm(loss, weight=0.5)
    a, b, *_ = layer(tuple(ops.convert_to_tensor(x) for x in inputs), training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(a), A)
    np.testing.assert_array_equal(ops.convert_to_numpy(b), B)
    assert _loss(layer) == pytest.approx(0.5 * expected, rel=1e-5)
    read = {"loss": expected, "weighted": 0.5 * expected, "weight": 0.5}
    assert layer.weight.read() == pytest.approx(read, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("policy", ["mixed_float16", "float32"])
def test_computes_in_float32_and_returns_half_precision_embeddings_unchanged(dtype, policy):
    keras.config.set_dtype_policy(policy)
    layer = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(0.01))
    a, b = (ops.cast(ops.convert_to_tensor(x), dtype) for x in (A, B))
    outputs = layer((a, b), training=True)
    assert [keras.backend.standardize_dtype(x.dtype) for x in outputs] == [dtype, dtype]
    (loss,) = layer.losses
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    rounded = np.stack([ops.convert_to_numpy(ops.cast(x, "float32")) for x in (a, b)], 1)
    expected = reference.info_nce(rounded.astype("float64"), temperature=0.01).mean()
    assert _loss(layer) == pytest.approx(expected, rel=1e-4)


def test_integer_labels_stay_integers():
    seen = []

    class Looks(kj.losses.MarginContrastive):
        def values(self, views, labels=None, *rest, **parameters):
            seen.append(keras.backend.standardize_dtype(labels.dtype))
            return super().values(views, labels, *rest, **parameters)

    layer = kj.layers.ContrastiveTerm(Looks())
    layer((A, B, ops.convert_to_tensor(LABELS.astype("int32"))))
    assert len(layer.losses) == 1
    assert set(seen) == {"int32"}


def test_counts_steps_only_in_training_while_annealing():
    layer = kj.layers.ContrastiveTerm("InfoNCE", weight=PolynomialDecay(0.0, 10, 1.0))

    def step(training):
        layer((A, B), training=training)
        assert len(layer.losses) == 1

    step(training=True)
    assert layer.weight.step == 0
    layer.weight.start_annealing(4)
    step(training=False)
    assert (layer.weight.step, float(layer.weight)) == (4, pytest.approx(0.4))
    step(training=True)
    assert (layer.weight.step, float(layer.weight)) == (5, pytest.approx(0.5))


def test_direct_call_computes_at_once_and_logs_on_request():
    layer = kj.layers.ContrastiveTerm("InfoNCE", metrics=[kj.metrics.RecallAtK(1)], memory_size=4)
    layer((A, B), training=True)
    (loss,) = layer.losses
    before = layer.weight.read()
    layer((B, B), training=False)
    assert layer.weight.read() == before
    assert float(layer.losses[0]) != float(loss)
    assert layer.weight.read() != before


@pytest.mark.parametrize("name", ["train_step", "predict_step"])
def test_functions_of_a_loop_may_have_the_names_of_keras(name):
    layer = kj.layers.ContrastiveTerm("MeanSquaredError")
    namespace = {}
    exec(f"def {name}(layer, *pair):\n    layer(pair)", namespace)
    namespace[name](layer, A, B)
    (call,) = layer._step._calls
    found, weighted = call()
    assert float(found.loss) == float(weighted) == _loss(layer)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_direct_call_computes_a_learned_temperature_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    layer = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(0.0713), learn_temperature=True)
    layer((A, B))
    expected = reference.info_nce(PAIR, temperature=0.0713).mean()
    assert _loss(layer) == pytest.approx(expected, rel=1e-5)


@pytest.mark.backend("tensorflow", "torch")
def test_loss_of_a_direct_call_may_be_requested_later():
    """As a loss that `add_loss` adds: outside of the tape, or where there are no gradients."""
    scale = keras.Variable(1.5)
    layer = kj.layers.ContrastiveTerm("MeanSquaredError", weight=0.5)
    if BACKEND == "tensorflow":
        with tf.GradientTape() as tape:
            layer((scale * A, B))
        gradient = tape.gradient(layer.losses[0], scale.value)
    else:
        layer((scale * torch.from_numpy(A), torch.from_numpy(B)))
        with torch.no_grad():
            (loss,) = layer.losses
        (gradient,) = torch.autograd.grad(loss, scale.value)
    assert float(gradient) == pytest.approx(np.mean(A * (1.5 * A - B)), rel=1e-5)


def test_variables_of_a_layer_term_are_not_created_from_a_config():
    state, *_ = kj.layers.ContrastiveTerm("InfoNCE")._weight_state
    with pytest.raises(NotImplementedError, match="layer that owns the variable recreates it"):
        state.get_config()


def test_trained_temperature_stays_within_clip_bounds():
    a, b = keras.Input((4,)), keras.Input((4,))
    layer = kj.layers.ContrastiveTerm("InfoNCE", learn_temperature=True, name="pair")
    x, y = keras.layers.Dense(4)(a), keras.layers.Dense(4)(b)
    model = keras.Model([a, b], layer((x, y)))
    (log_scale,) = layer.trainable_variables
    assert float(ops.convert_to_numpy(log_scale.value)) == pytest.approx(np.log(1 / 0.07))
    model.compile(keras.optimizers.SGD(10.0))
    callbacks = [kj.callbacks.JointLossCallback()]
    history = model.fit([A, B], epochs=3, verbose=0, callbacks=callbacks).history
    value = float(ops.convert_to_numpy(log_scale.value))
    assert value != pytest.approx(np.log(1 / 0.07))
    assert 0.0 <= value <= np.log(100)
    assert history["pair_temperature"][-1] == pytest.approx(np.exp(-value), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "shapes", "message"),
    [
        ("InfoNCE", [(4, 3), (4, 5)], r"same shape \(batch, dim\)"),
        ("InfoNCE", [(4, 3), (5, 3)], r"same shape \(batch, dim\)"),
        ("InfoNCE", [(4, 3, 1), (4, 3, 1)], r"same shape \(batch, dim\)"),
        ("InfoNCE", [(4, 3), (4, 3), (4,)], r"\(batch, dim\) and no labels"),
        ("MarginContrastive", [(4, 3), (4, 3)], "has labels"),
        ("MarginContrastive", [(4, 3), (4, 3), (5,)], r"expects labels of shape \(4,\)"),
        ("MarginContrastive", [(4, 3), (4, 3), (4, 2)], r"expects labels of shape \(4,\)"),
        ("InfoNCE", [(4, 3)], r"expects \(a, b, \.\.\.\), since InfoNCE has no labels"),
        ("SigLIP", [(4, 3)] * 3, r"expects \(a, b\), since SigLIP has no labels"),
        ("TripletMargin", [(4, 3)] * 2, r"expects \(a, b, c\), since TripletMargin has no labels"),
        ("SupCon", [(4,)], r"expects \(a, \.\.\., labels\), since SupCon has labels"),
        ("SupCon", [(4, 3)] * 2, "expects labels after the embeddings, since SupCon has labels"),
        ("SupCon", [(4, 3), (5,)], r"expects labels of shape \(4,\)"),
        ("SupCon", [(4, 2, 3), (4,)], r"same shape \(batch, dim\)"),
        ("NPairs", [(4, 3), (4,)], r"expects \(a, b, labels\), since NPairs has labels"),
    ],
)
def test_incompatible_inputs_are_refused_at_model_construction(loss, shapes, message):
    layer = kj.layers.ContrastiveTerm(loss, name="pair")
    with pytest.raises(ValueError, match=message):
        layer(tuple(keras.Input(batch_shape=shape) for shape in shapes))


@pytest.mark.parametrize("shape", [(5,), (6, 2)])
def test_sample_weights_of_other_shapes_are_refused(shape):
    layer = kj.layers.ContrastiveTerm("InfoNCE", name="pair")
    message = r"'pair' expects sample weights of shape \(6,\)"
    with pytest.raises(ValueError, match=message):
        layer((A, B), sample_weight=np.ones(shape))
    a, b, weight = (keras.Input(batch_shape=x) for x in (A.shape, B.shape, shape))
    with pytest.raises(ValueError, match=message):
        layer((a, b), sample_weight=weight)


@pytest.mark.parametrize("weight", [2.0, [2.0] * 6, np.full((6, 1), 2.0)])
def test_sample_weights_are_given_in_any_form(weight):
    layer = kj.layers.ContrastiveTerm("InfoNCE")
    layer((A, B))
    expected = 2 * _loss(layer)
    layer((A, B), sample_weight=weight)
    assert _loss(layer) == pytest.approx(expected, rel=1e-5)


test_invalid_arguments_are_refused = refuses(
    kj.layers.ContrastiveTerm,
    ({"loss": "InfoNCE", "weight": -1.0}, "`weight`.*finite number >= 0"),
    ({"loss": "InfoNCE", "weight": "1"}, "`weight`.*finite number >= 0"),
    ({"loss": "NoSuchLoss"}, "Received: loss='NoSuchLoss'"),
    ({"loss": kj.losses.InfoNCE(reduction="sum")}, "whose reduction is a mean"),
    ({"loss": kj.losses.InfoNCE(reduction="none")}, "whose reduction is a mean"),
    ({"loss": "MarginContrastive", "learn_temperature": True}, "no temperature to train"),
    ({"loss": kj.losses.InfoNCE(5e-3), "learn_temperature": True}, r"log_scale is in \[0, 4.6"),
    ({"loss": "MeanSquaredError", "learn_temperature": True}, "no temperature to train"),
    ({"loss": "VICReg", "memory_size": 8}, "`memory_size`.*Expected 0.*VICReg"),
    ({"loss": "MeanSquaredError", "memory_size": 8}, "`memory_size`.*Expected 0"),
    ({"loss": "InfoNCE", "gather": "all"}, "`gather`.*None, True, False"),
    ({"loss": "InfoNCE", "memory_size": -1}, "`memory_size`.*whole number >= 0"),
    ({"loss": "InfoNCE", "metrics": ["recall"]}, "`metrics`.*keras_jointloss.metrics"),
    ({"loss": "InfoNCE", "metrics": ["MeanAveragePrecisionAtR"]}, "`metrics`.*without labels"),
    ({"loss": "InfoNCE", "metrics": [kj.metrics.RecallAtK(1)] * 2}, "different names"),
)
