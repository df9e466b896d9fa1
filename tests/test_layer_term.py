"""When a layer term computes its loss, and what `evaluate` shows of it."""

import re
import types

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.layers import _layer_term
from tests import reference
from tests.backends import BACKEND, jax, tf
from tests.test_training import replicas

GENERATOR = np.random.default_rng(7)
X = GENERATOR.normal(size=(10, 4)).astype("float32")
BATCH = 4


def table() -> dict[str, dict[str, str]]:
    """Returns the table in the docstring of `Step`: the moment by context and backend."""
    header, *rows = [
        line.split(" | ")
        for line in re.findall(r"^ *\| (.*) \|$", _layer_term.Step.__doc__, re.MULTILINE)
    ]
    backends = [name.lower().removeprefix("py") for name in header[1:]]
    return {context: dict(zip(backends, cells, strict=True)) for context, *cells in rows}


class Recorded(kj.layers.ContrastiveTerm):
    """Records at which moments the loss is computed."""

    def __init__(self, **options):
        super().__init__(kj.losses.InfoNCE(), name="pair", **options)
        self.moments, self.now = set(), ""
        compute = self._comparison.loss_of
        self._comparison.loss_of = lambda *x: self.moments.add(self.now) or compute(*x)

    def call(self, inputs, sampling_probability=None, guide=None, training=None):
        self.now = "`defer`"
        outputs = super().call(inputs, training=training)
        self.now = "after `defer`"
        return outputs

    def _get_own_losses(self):
        self.now = "`collect`"
        losses = super()._get_own_losses()
        self.now = "when used"
        return losses


class Model(keras.Model):
    """A model with the term. Keras builds it symbolically."""

    def __init__(self, **options):
        super().__init__()
        self.dense, self.term = keras.layers.Dense(4), Recorded(**options)

    def call(self, x):
        a, _ = self.term((x, self.dense(x)))
        return a

    def export(self, x):
        return self(x)

    def stateless(self, x):
        variables = self.trainable_variables, self.non_trainable_variables
        values = [[variable.value for variable in group] for group in variables]
        *_, losses = self.stateless_call(*values, x, return_losses=True)
        return sum(losses)


class WithLosses(keras.Model):
    """Requests the losses of a model within its own call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x) + sum(self.model.losses)


def trained(model, x):
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    model.evaluate(x, x, verbose=0)


def called(model, x):
    model(x)
    return sum(model.losses)


def traced(function, model, x):
    if BACKEND == "jax":
        return jax.jit(lambda x: function(model, x))(x)
    return tf.function(lambda x: function(model, x))(x)


def on_replicas(model, x, monkeypatch, **options):
    if BACKEND == "torch":
        # Processes: `tests/test_distribution.py`.
        two = types.SimpleNamespace(count=2, takes_turns=False)
        monkeypatch.setattr(_layer_term, "current_replicas", lambda: two)
        return called(model, x)
    strategy = replicas(2)
    with strategy.scope():
        model = Model(**options)
        model(x)
        model.term.moments.clear()
        # As Keras does, so that the losses are used after all were requested.
        strategy.run(tf.function(lambda x: tf.add_n([*(model(x), model.losses)[1], 0.0])), (x,))
    return model


def without_losses(method, model, x):
    getattr(model, method)(x)
    assert sum(model.losses) == 0


RUNS = {
    "`train_step`, `test_step`": lambda model, x, _: trained(model, x),
    "`predict_step`, `export`": lambda model, x, _: [
        without_losses(method, model, x) for method in ("predict", "export")
    ],
    "symbolic build": lambda model, x, _: WithLosses(model).compute_output_spec(
        keras.KerasTensor(X.shape)
    ),
    "loop with `model(...)` and `model.losses`": lambda model, x, _: called(model, x),
    "the same, in a traced function": lambda model, x, _: traced(called, model, x),
    "`stateless_call`": lambda model, x, _: model.stateless(x),
    "`stateless_call` in a traced function": lambda model, x, _: traced(Model.stateless, model, x),
    "one of several replicas": lambda model, x, patch: on_replicas(model, x, patch, gather=False),
    "the same, if the loss exchanges values": on_replicas,
}


@pytest.mark.parametrize(
    "context", [name for name, cells in table().items() if cells[BACKEND] != "-"]
)
def test_loss_is_computed_when_the_table_says(context, monkeypatch):
    model, x = Model(), ops.convert_to_tensor(X)
    if context != "symbolic build":
        model(x)
        _ = model.losses
        model.term.moments.clear()
    result = RUNS[context](model, x, monkeypatch)
    moments = (result if isinstance(result, Model) else model).term.moments
    expected = table()[context][BACKEND]
    assert moments == (set() if expected == "never" else {expected})


def test_table_has_a_test_for_each_context():
    assert list(table()) == list(RUNS)


@pytest.mark.backend("tensorflow", "jax")
def test_losses_of_a_traced_call_do_not_outlive_it():
    model, x = Model(), ops.convert_to_tensor(X)
    loss = float(called(model, x))
    assert float(traced(Model.stateless, model, x)) == pytest.approx(loss, rel=1e-5)
    assert float(called(model, x)) == pytest.approx(loss, rel=1e-5)


def with_terms(**options):
    inputs = keras.Input((4,))
    metrics = [kj.metrics.RecallAtK(1)]
    same = keras.layers.Dense(4, kernel_initializer="identity", name="same")
    pair = kj.layers.ContrastiveTerm(
        kj.losses.InfoNCE(0.2), 0.5, learn_temperature=True, metrics=metrics, name="pair"
    )
    a, _ = pair((same(inputs), ops.flip(inputs, axis=1)))
    a = kj.layers.LossTerm(weight=2.0, target=3.0, name="size")(a, ops.square(a))
    model = keras.Model(inputs, {"out": keras.layers.Dense(2, name="dense")(a)})
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss({"out": "mse"}), **options)
    return model


def expected_logs():
    """Returns what an evaluation shows of the layer terms of `with_terms`."""
    batches = [X[i : i + BATCH] for i in range(0, len(X), BATCH)]
    pairs = [np.stack([x, x[:, ::-1]], axis=1) for x in batches]
    losses = np.concatenate([reference.info_nce(pair, temperature=0.2) for pair in pairs])
    sizes = [len(x) for x in batches]
    squares = [np.mean(np.square(x, dtype="float64")) for x in batches]
    recall = kj.metrics.RecallAtK(1)
    for pair in pairs:
        recall.update_state(np.zeros(len(pair)), pair)
    return {
        "pair_loss": losses.mean(),
        "pair_weight": 0.5,
        "pair_temperature": 0.2,
        "pair_recall_at_1": float(recall.result()),
        "size_loss": np.average(np.abs(np.subtract(squares, 3.0)), weights=sizes),
        "size_weight": 2.0,
        "size_value": np.average(squares, weights=sizes),
    }


OPTIONS = [{}, {"run_eagerly": True}, {"steps_per_execution": 2}]


# Keras refuses several steps in an execution on PyTorch.
@pytest.mark.parametrize("options", OPTIONS[: 2 if BACKEND == "torch" else 3])
def test_evaluate_shows_layer_terms_on_every_backend(options):
    model, y = with_terms(**options), {"out": np.zeros((10, 2), "float32")}
    expected = expected_logs()
    data = {"batch_size": BATCH, "verbose": 0}
    for _ in range(2):
        logs = model.evaluate(X, y, return_dict=True, **data)
        assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert set(logs) == {"loss", "out_weight", *expected}
        numbers = model.evaluate(X, y, **data)
        assert numbers[2:] == pytest.approx(list(expected.values()), rel=1e-5)
    batch = X[:BATCH], {"out": y["out"][:BATCH]}
    first = model.evaluate(*batch, return_dict=True, **data)
    assert model.test_on_batch(*batch, return_dict=True) == pytest.approx(first, rel=1e-5)
    # Each value of the validation stands in the logs once, with and without a callback.
    expected = {f"val_{name}": [value] for name, value in expected.items()}
    for callbacks in ([], [kj.callbacks.JointLossCallback()]):
        history = model.fit(X, y, validation_data=(X, y), callbacks=callbacks, **data).history
        assert set(expected) <= set(history)
        for name, value in expected.items():
            assert history[name] == pytest.approx(value, rel=1e-5), name
        assert callbacks == [] or history["pair_loss"][0] > 0


@pytest.mark.backend("jax")
def test_evaluation_that_takes_a_gradient_shows_no_layer_terms():
    class Adversarial(keras.Model):
        def test_step(self, state, data):
            trained, others, metrics = state
            x, y = data

            def loss_of(x):
                return self.compute_loss_and_updates(trained, others, metrics, x, y, None)

            (loss, (_, y_pred, others, metrics)), _ = jax.value_and_grad(loss_of, has_aux=True)(x)
            scope = keras.StatelessScope(zip(self.metrics_variables, metrics, strict=True))
            with scope:
                logs = self.compute_metrics(x, y, y_pred)
            metrics = [scope.get_current_value(x) for x in self.metrics_variables]
            return {**logs, "loss": loss}, (trained, others, metrics)

    model = with_terms()
    adversarial = Adversarial(model.input, model.output)
    adversarial.compile("sgd", **kj.joint_loss({"out": "mse"}))
    logs = adversarial.evaluate(X, {"out": np.zeros((10, 2))}, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "out_weight"}
