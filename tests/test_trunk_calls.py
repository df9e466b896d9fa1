"""A shared trunk called several times in a step: compared with a manual loop, and with one call."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import BACKEND
from tests.balanced_models import LOSSES, of_parameters, weights_of
from tests.comparisons import assert_all_close
from tests.gradients import dtypes
from tests.jacobians import combine

GENERATOR = np.random.default_rng(8)
INPUTS = {"a": GENERATOR.normal(size=(24, 5)), "b": GENERATOR.normal(size=(24, 5))}
TARGETS = {"a": GENERATOR.normal(size=(24, 2)), "b": 10 * GENERATOR.normal(size=(24, 1))}


class Subclassed(keras.Model):
    """Calls a trunk once for each input."""

    def __init__(self, shared, heads):
        super().__init__()
        self.shared, self.heads = shared, heads

    def call(self, inputs, training=None):
        calls = {term: self.shared(x, training=training) for term, x in inputs.items()}
        return {term: head(calls[term][term]) for term, head in self.heads.items()}


def share(trunk, rule):
    return kj.layers.SharedTrunk(trunk, ["a", "b"], rule, name="shared")


def build(form="functional", rule="mgda", share=share, **arguments):
    """Returns a compiled model with a head for each input, and its shared trunk."""
    keras.utils.set_random_seed(2)
    shared = share(keras.layers.Dense(4, name="trunk"), rule)
    dtype, units = keras.config.floatx(), {"a": 2, "b": 1}
    heads = {x: keras.layers.Dense(n, name=f"head_{x}", dtype=dtype) for x, n in units.items()}
    # In the same order in all forms, as they draw from the same random numbers.
    shared.build((None, 5))
    for head in heads.values():
        head.build((None, 4))
    inputs = {term: keras.Input((5,), name=term) for term in "ab"}
    if form == "one call":
        z = shared(ops.concatenate([inputs["a"], inputs["b"]]))
        parts = {"a": ops.split(z["a"], 2)[0], "b": ops.split(z["b"], 2)[1]}
        outputs = {term: head(parts[term]) for term, head in heads.items()}
    elif form == "nested":
        one = keras.Input((5,))
        encoder = keras.Model(one, shared(one))
        outputs = {term: head(encoder(inputs[term])[term]) for term, head in heads.items()}
    elif form == "functional":
        outputs = {term: head(shared(inputs[term])[term]) for term, head in heads.items()}
    model = Subclassed(shared, heads) if form == "subclassed" else keras.Model(inputs, outputs)
    optimizer = keras.optimizers.SGD(0.02, gradient_accumulation_steps=arguments.pop("steps", None))
    joint = kj.joint_loss(LOSSES, weighting=arguments.pop("weighting", None))
    model.compile(optimizer, **joint, **arguments)
    return model, shared


def fit(model, shared):
    """Returns the trunk's weights after training, and the statistics of the gradients."""
    callback = kj.callbacks.JointLossCallback()
    options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    model.fit(INPUTS, TARGETS, callbacks=[callback], **options)
    return shared.trunk.get_weights(), shared.statistics()


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize("rule", ["mgda", "nash_mtl"])
def test_calls_with_different_batch_sizes_equal_manual_loop(rule, run_eagerly):
    model, shared = build(rule=rule, run_eagerly=run_eagerly)
    values = {name: value.astype("float64") for name, value in weights_of(model).items()}
    sizes = {"a": 8, "b": 5}
    aggregator = kj.aggregators.get(rule)
    for step in range(3):
        rows = {term: slice(size * step, size * (step + 1)) for term, size in sizes.items()}
        x = {term: INPUTS[term][rows[term]] for term in "ab"}
        y = {term: TARGETS[term][rows[term]] for term in "ab"}
        of_terms, updates = [], {}
        for term in "ab":
            kernel, bias = values[f"head_{term}_0"], values[f"head_{term}_1"]
            z = x[term] @ values["shared_0"] + values["shared_1"]
            slope = 2 * (z @ kernel + bias - y[term]) / y[term].size
            of_terms.append(of_parameters(x[term], slope @ kernel.T))
            updates[f"head_{term}_0"], updates[f"head_{term}_1"] = z.T @ slope, slope.sum(axis=0)
        combined = combine(aggregator, np.stack(of_terms), dtypes()[-1], step)
        updates["shared_0"], updates["shared_1"] = combined[:20].reshape(5, 4), combined[20:]
        values = {name: value - 0.02 * updates[name] for name, value in values.items()}
        shared.reset_statistics()
        model.train_on_batch(x, y)
    assert_all_close(weights_of(model), values, 2e-3, 2e-4)
    statistics = shared.statistics()
    norms = np.linalg.norm(of_terms, axis=1)
    np.testing.assert_allclose(statistics.norms, norms, rtol=2e-3)
    cosine = of_terms[0] @ of_terms[1] / np.prod(norms)
    np.testing.assert_allclose(statistics.cosines[0, 1], cosine, atol=2e-3)
    assert len(shared._memory) == 0


@functools.cache
def one_call():
    return fit(*build("one call"))


def assert_equal(actual, expected, tolerance=1e-4):
    assert_all_close(actual[0], expected[0], tolerance, tolerance)
    assert_all_close(actual[1], expected[1], 10 * tolerance, 10 * tolerance)


@pytest.mark.parametrize("form", ["subclassed", "nested"])
def test_calls_in_any_model_equal_one_call(form):
    assert_equal(fit(*build(form)), one_call())


OPTIONS = {
    "accumulated": {"steps": 2},
    "grad_norm": {"weighting": "grad_norm", "rule": None},
    "compiled": {"jit_compile": True, "steps_per_execution": 2},
    "mixed_float16": {},
}
if BACKEND == "torch":
    del OPTIONS["compiled"]  # Compiles for minutes.


@pytest.mark.parametrize("name", OPTIONS)
def test_calls_equal_one_call_with_options(name):
    keras.config.set_dtype_policy("mixed_float16" if name == "mixed_float16" else "float32")
    expected = fit(*build("one call", **OPTIONS[name]))
    assert_equal(fit(*build(**OPTIONS[name])), expected, 5e-3 if name == "mixed_float16" else 1e-4)


def test_chunked_trunk_equals_plain_trunk():
    chunked = build(share=lambda trunk, rule: share(kj.layers.ChunkedTower(trunk, 3), rule))
    assert_equal(fit(*chunked), one_call())


@pytest.mark.backend("jax", "torch")  # Keras cannot compile it on TensorFlow.
def test_recomputed_trunk_equals_plain_trunk():
    def recomputed(trunk, rule):
        with keras.RematScope("full"):  # The trunk is recomputed, but not the layer around it.
            return share(keras.Sequential([trunk]), rule)

    assert_equal(fit(*build(share=recomputed)), one_call())


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
def test_replicas_balance_several_calls_like_one_device():
    from tests.test_training import replicas

    expected = fit(*build())
    with replicas(2).scope():
        model, shared = build()
    assert_equal(fit(model, shared), expected)


def test_calls_of_several_models_in_a_step_warn():
    class Twice(Subclassed):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            again = super().compute_loss(x, y, self(x, training=training), sample_weight, training)
            return loss + again

    model, shared = build("subclassed")
    model = Twice(shared, model.heads)
    model({term: x[:8] for term, x in INPUTS.items()})
    model.compile("sgd", loss=LOSSES)
    with pytest.warns(UserWarning, match="'shared' is called in several outermost calls"):
        model.fit(INPUTS, TARGETS, batch_size=8, verbose=0)


def test_forward_passes_without_backward_passes_do_not_warn():
    model, shared = build("subclassed", run_eagerly=True)
    x = {term: x[:8].astype("float32") for term, x in INPUTS.items()}
    samples = [model(x, training=True) for _ in range(2)]
    model.fit(INPUTS, TARGETS, batch_size=8, verbose=0)
    assert np.all(shared.statistics().norms > 0)
    assert len(samples) == 2
