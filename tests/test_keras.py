"""What the package assumes of Keras, by the name of the function that relies on it.

A check that fails with a new version of Keras names the function to mend, in `_core/keras.py`,
`_core/keras_calls.py`, `_core/keras_losses.py`, `_core/keras_models.py`, `_core/keras_state.py` or
`_core/backend/`.
"""

import contextlib
import gc
import inspect
import random
import tempfile
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_jointloss._core import backend as _backend
from keras_jointloss._core import keras as _keras
from keras_jointloss._core import keras_calls as _calls
from keras_jointloss._core import keras_losses as _losses
from keras_jointloss._core import keras_models as _models
from keras_jointloss._core import keras_state as _state
from tests.backends import BACKEND, jax, tf

X, Y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
#: The checks by the name of what they are about, and the backends that they run on.
CHECKS: dict = {}
BACKENDS: dict = {}


def check_of(*names, backends=("tensorflow", "jax", "torch")):
    """Registers a check of functions by their names."""

    def register(check):
        for name in names:
            CHECKS[name], BACKENDS[name] = check, backends
        return check

    return register


class Layer(keras.layers.Layer):
    """Calls a function in its `call`."""

    def __init__(self, run, **options):
        super().__init__(**options)
        self.run, self.built = run, True

    def call(self, inputs, training=None):
        self.run()
        return inputs


def noting(run):
    """Returns a layer that calls a function in its `call`, and a list of what that returned."""
    found = []
    return Layer(lambda: found.append(run())), found


class Loss(keras.losses.Loss):
    """Calls a function in its `call`."""

    def __init__(self, run, **options):
        super().__init__(**options)
        self.run = run

    def call(self, y_true, y_pred):
        self.run()
        return ops.mean((y_true - y_pred) ** 2, axis=-1)


def callback_of(run):
    """Returns a callback that calls a function with the name of each hook."""
    hooks = ("on_train_begin", "on_test_end")
    return keras.callbacks.LambdaCallback(**{x: lambda logs, x=x: run(x) for x in hooks})


def compiled(layers=(), loss="mse", optimizer="sgd", **options):
    """Returns a compiled model of one output."""
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, loss=loss, **options)
    return model


@check_of(
    "owners_of_losses", "sources_of_losses", "own_variables", "direct_layers", "may_add_losses"
)
def sources_of_what_the_loss_has():
    class Adds(keras.layers.Layer):
        def call(self, x):
            self.add_loss(ops.sum(x))
            self.add_loss(0.5 * ops.sum(x))
            return x

    def observe(x, losses, sources):
        seen.append((x.shape[0], sources))

    adds, plain, seen = Adds(), keras.layers.Dense(2), []
    active = keras.layers.Dense(2, activity_regularizer="l2")
    weighted = keras.layers.Dense(2, kernel_regularizer="l2", bias_regularizer="l1")
    inner = keras.Sequential([active, adds])
    model = compiled([weighted, inner, plain])
    assert [_losses.may_add_losses(x) for x in (adds, active, weighted, plain)] == [True] * 3 + [
        False
    ]
    assert not _losses.may_add_losses(inner)
    assert _losses.direct_layers(inner)[-2:] == [active, adds]
    assert list(map(id, _losses.own_variables(weighted))) == list(map(id, weighted.weights))
    assert _losses.own_variables(model) == []
    _losses.observe_losses(model, observe)
    model.train_on_batch(X, Y)
    model.test_on_batch(X, Y)
    for size, found in seen[-2:]:
        assert size == len(X)
        assert set(map(id, found[:3])) == {id(active), id(adds)}
        assert list(map(id, found[3:])) == list(map(id, weighted.weights))
    assert _losses.sources_of_losses(inner, [ops.zeros(())], {}) == [None]
    adds(ops.ones((1, 2)))
    assert set(_losses.owners_of_losses(inner).values()) >= {adds}


@check_of("ObservedLoss", "observe_losses", "observer_of")
def losses_that_the_model_adds_up():
    def total(observer=None):
        """Returns the loss of a batch, and how often a function has observed its losses."""
        keras.utils.set_random_seed(0)
        model = compiled([keras.layers.Dense(2, activity_regularizer="l2")])
        assert _losses.observer_of(model) is None
        if observer is not None:
            _losses.observe_losses(model, lambda *step: None)
            _losses.observe_losses(model, observer)
            assert _losses.observer_of(model) is observer
        return float(model.train_on_batch(X, Y))

    seen = []
    assert total() == total(lambda x, losses, sources: seen.append(len(losses)))
    assert set(seen) == {1}


@check_of("forget_own_losses")
def identities_of_losses():
    class Takes(keras.layers.Layer):
        def call(self, x):
            if BACKEND == "jax":  # As if the last loss of the next layer had been there.
                later._loss_ids.update(active._loss_ids)
            return x

    def losses(forgets):
        Forgets.forgets = forgets
        state = model.trainable_variables, model.non_trainable_variables
        return len(model.stateless_call(*state, ops.ones((1, 2)), return_losses=True)[-1])

    class Forgets(keras.layers.Layer):
        forgets = False

        def call(self, x):
            if self.forgets:
                _losses.forget_own_losses(later)
            return x

    active, later = (keras.layers.Dense(2, activity_regularizer="l2") for _ in range(2))
    model = keras.Sequential([keras.Input((2,)), active, Takes(), Forgets(), later])
    assert losses(forgets=True) == 2
    if BACKEND == "jax":
        assert losses(forgets=False) == 1


@check_of("flatten_layers")
def layers_at_any_depth():
    inner = keras.layers.Dense(1)
    model = keras.Sequential([keras.Sequential([inner])])
    assert any(x is inner for x in _keras.flatten_layers(model, include_self=False))
    assert next(_keras.flatten_layers(model)) is model


@check_of("outermost_layer")
def context_of_a_call():
    layer, found = noting(_keras.outermost_layer)
    model = keras.Sequential([layer])
    model(X)
    assert found[-1] is model
    assert _keras.outermost_layer() is None


@check_of("own_losses", "layer_that_adds_losses", "kept_losses", "OVERRIDDEN")
def lists_of_losses():
    inner = keras.layers.ActivityRegularization(1.0)
    model = keras.Sequential([inner])
    model(X)
    assert len(_keras.own_losses(inner)) == 1
    assert _keras.own_losses(model) == []
    assert _keras.layer_that_adds_losses(model) is inner
    before = float(sum(model.losses))
    for fails in (False, True):
        with contextlib.suppress(KeyError), _keras.kept_losses(model):
            model(0 * X)  # Clears the losses of the last call.
            assert float(sum(model.losses)) == 0.0
            if fails:
                raise KeyError
        assert float(sum(model.losses)) == before > 0.0


@check_of("keep_from_recomputation")
def layers_in_a_remat_scope():
    class Counted(Layer):
        def call(self, inputs):
            return inputs * self.run()

    with keras.RematScope(mode="full"):
        layer = Counted(lambda: 1.0)
        assert layer._remat_mode is not None
        _keras.keep_from_recomputation(layer)
        assert layer.compute_output_spec(keras.KerasTensor((1, 2))).shape == (1, 2)
        layer(X)


@check_of("takes_training", "required_arguments")
def arguments_that_keras_adds():
    assert _keras.takes_training(keras.layers.Dropout(0.1))
    assert not _keras.takes_training(keras.layers.Flatten())
    assert _keras.required_arguments(keras.layers.LSTM(1)) == ["sequences"]


@check_of("is_known")
def module_of_keras():
    assert _keras.is_known(keras.layers.Dense)
    assert _keras.is_known(type(keras.Sequential()).call)
    assert not _keras.is_known(Layer)


@check_of("source", "Source", "stacked_tensors", "output_names")
def graph_of_a_functional_model():
    inputs, dense = keras.Input((2,)), keras.layers.Dense(3, name="dense")
    first, second = dense(inputs), dense(inputs + 1)
    stacked = ops.stack([first, second], axis=1)
    found = _keras.source(second)
    assert (found.operation, found.call, found.position, found.size) == (dense, 1, 0, 1)
    a, b = _keras.stacked_tensors(stacked)
    assert a is first
    assert b is second
    assert _keras.stacked_tensors(first) is None
    assert _models.output_names(keras.Model(inputs, first)) == ["dense"]
    assert _models.output_names(keras.Sequential([dense])) is None


@check_of("LateNumber")
def numbers_that_keras_converts():
    class Number(_keras.LateNumber):
        def __init__(self, name):
            self.name_of = name

        @property
        def value(self):
            order.append(self.name_of)
            return ops.convert_to_tensor(2.0)

    order = []
    inputs = keras.Input((2,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
    model, plain = keras.Model(inputs, outputs), keras.Model(inputs, outputs)
    losses = {name: Loss(lambda name=name: order.append(f"loss {name}")) for name in outputs}
    model.compile("sgd", loss=losses, loss_weights={name: Number(name) for name in outputs})
    plain.compile("sgd", loss=dict.fromkeys(outputs, "mse"), loss_weights={"a": 2.0, "b": 2.0})
    target = {name: Y for name in outputs}
    found = model.evaluate(X, target, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(plain.evaluate(X, target, verbose=0)[0])
    # Each weight is read once a step, right after its loss.
    assert order[-4:] == ["loss a", "a", "loss b", "b"]


@check_of("reduced_as_loss", "masked")
def no_mask_returns_the_same_tensor():
    values = ops.ones((4,))
    assert _keras.masked(values, ops.zeros((4, 2))) is None
    assert _keras.masked(values, ops.zeros((4, 2)), np.ones(4)) is not None
    plain = _keras.reduced_as_loss(values, ops.zeros((4, 2)), reduction="sum")
    assert float(plain) == 4.0
    prediction = keras.layers.Masking()(np.array([[[1.0]], [[0.0]]], "float32"))
    found = _keras.masked(ops.ones((2, 1)), prediction)
    assert ops.convert_to_numpy(found).ravel().tolist() == [1.0, 0.0]


@check_of("copy_mask")
def losses_find_a_copied_mask():
    prediction = keras.layers.Masking()(np.array([[[1.0]], [[0.0]]], "float32"))
    copy = ops.copy(prediction)
    _losses.copy_mask(ops.zeros((2, 1, 1)), copy)  # Without a mask, nothing changes.
    assert _keras.masked(ops.ones((2, 1)), copy) is None
    _losses.copy_mask(prediction, copy)
    found = _keras.masked(ops.ones((2, 1)), copy)
    assert ops.convert_to_numpy(found).ravel().tolist() == [1.0, 0.0]


@check_of("as_layer_state")
def state_of_a_seed_generator():
    class Counter(keras.layers.Layer):
        def build(self, input_shape):
            self.count = keras.Variable(0.0, trainable=False)
            self.state = _keras.as_layer_state(self.count)

        def call(self, inputs):
            self.state.state.assign(self.state.state + 1)
            return inputs

    layer = Counter()
    model = compiled([layer])
    model.fit(X, Y, batch_size=2, verbose=0)
    counts = [x for x in layer.variables if x is layer.state.state]
    assert float(ops.convert_to_numpy(counts[0])) >= 2.0


@check_of("is_seed")
def name_of_a_seed():
    layer = keras.layers.Dropout(0.5, seed=1)
    assert [_keras.is_seed(x) for x in layer.variables] == [True]
    assert not any(map(_keras.is_seed, compiled().variables))


@check_of("leave_untrained")
def variables_without_training():
    variable = keras.Variable(np.ones(2, "float32"))
    _keras.leave_untrained(variable)
    assert not variable.trainable
    if BACKEND == "tensorflow":
        with tf.GradientTape() as tape:
            total = ops.sum(variable * 3)
        assert tape.gradient(total, variable.value) is not None


@check_of("uncast")
def variables_in_mixed_precision():
    class Reads(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, inputs):
            found = (self.scale.value, _keras.uncast(self.scale), self.scale.value)
            dtypes.extend(keras.backend.standardize_dtype(x.dtype) for x in found)
            return inputs

    dtypes: list = []
    Reads(dtype="mixed_float16")(X)
    assert dtypes == ["float16", "float32", "float16"]


@check_of("overwrite_with_gradient", "is_overwritten_with_gradient")
def variables_of_the_gradient():
    def updated(**options):
        variables = [keras.Variable(np.ones(2, "float32")) for _ in range(2)]
        _keras.overwrite_with_gradient(variables[1])
        assert list(map(_keras.is_overwritten_with_gradient, variables)) == [False, True]
        optimizer = keras.optimizers.SGD(0.5, **options)
        for gradient in (4.0, 2.0):
            optimizer.apply([ops.ones((2,)) * gradient] * 2, variables)
        return [ops.convert_to_numpy(variable).tolist() for variable in variables]

    assert updated() == [[-2.0, -2.0], [2.0, 2.0]]
    # The maximum of the gradients accumulated.
    assert updated(gradient_accumulation_steps=2) == [[-0.5, -0.5], [4.0, 4.0]]


@check_of("untrack")
def metric_gives_up_variables():
    metric = keras.metrics.Mean()
    _keras.untrack(metric, [metric.total])
    assert [x is metric.count for x in metric.variables] == [True]


@check_of("saved_variables")
def keys_of_saved_variables():
    layer, store = keras.layers.Dense(1), {}
    layer.build((None, 2))
    layer.save_own_variables(store)
    assert _state.saved_variables({**store, "own": 1}).keys() == {"0", "1"}


@check_of("saved_shape")
def shapes_in_weights_files():
    class Looks(keras.layers.Dense):
        def load_own_variables(self, store):
            seen.append([_state.saved_shape(store, key) for key in ("0", "1", "2")])
            super().load_own_variables(store)

    seen = []
    model = keras.Sequential([keras.Input((2,)), Looks(3)])
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.weights.h5"
        model.save_weights(path)
        model.load_weights(path)
    assert seen == [[(2, 3), (3,), None]]
    assert _state.saved_shape({"0": np.ones(2)}, "0") is None


@check_of("is_stateless")
def enclosing_stateless_scope():
    assert not _calls.is_stateless()
    with keras.StatelessScope():
        assert _calls.is_stateless()
    assert not _calls.is_stateless()


@check_of("is_unmasked")
def masks_as_attributes_of_predictions():
    prediction = ops.ones((2, 3, 1))
    assert _keras.is_unmasked(prediction) == (BACKEND == "torch")
    assert not _keras.is_unmasked(keras.layers.Masking(mask_value=0.0)(prediction))


@check_of("Scope")
def values_and_assignments_in_a_scope():
    variables = [keras.Variable(0.0) for _ in range(3)]
    with (
        keras.StatelessScope([(variables[0], ops.ones(()))]),
        _keras.Scope([(variables[1], ops.ones(()) * 2)]) as scope,
    ):
        assert [float(ops.convert_to_numpy(ops.copy(x))) for x in variables] == [1.0, 2.0, 0.0]
        variables[2].assign(3.0)
    assert list(scope.assigned.values()) == [variables[2]]
    assert float(scope.get_current_value(variables[2])) == 3.0
    assert float(ops.convert_to_numpy(variables[2])) == 0.0


@check_of("mode_of", "set_mode")
def directions_of_metrics():
    metric = keras.metrics.MeanMetricWrapper(lambda y_true, y_pred: y_pred, name="own")
    _models.set_mode(metric, False)
    given = keras.metrics.MeanAbsoluteError(), keras.metrics.AUC(), keras.metrics.Mean(), metric
    assert [_models.mode_of(x) for x in given] == ["min", "max", None, "min"]
    # Keras reads what the package has set.
    model = compiled(metrics=[metric])
    stop = keras.callbacks.EarlyStopping("own")
    model.fit(X, Y, verbose=0, callbacks=[stop])
    assert stop.monitor_op is ops.less


@check_of("Fit", "running_fit")
def epochs_of_fit():
    found = []

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return X, Y

        def on_epoch_begin(self):
            found.append(_calls.running_fit())

        def on_epoch_end(self):
            found.append(_calls.running_fit())

    compiled().fit(Data(), initial_epoch=2, epochs=4, verbose=0)
    # Before the epochs, the model is built (not by each backend) and the iterator reset.
    assert found[-4:] == [(2, 2, False)] * 2 + [(3, 2, False)] * 2
    assert set(found[:-4]) == {(None, 2, False)}
    assert _calls.running_fit() is None
    for options in ({"validation_data": (X, Y)}, {"validation_split": 0.5}):
        callback = callback_of(lambda name: found.append(_calls.running_fit()))
        compiled().fit(X, Y, verbose=0, callbacks=[callback], **options)
        assert found[-1].validates


@check_of("running_loop", "running_model", "training_optimizer", "is_training")
def names_of_loops():
    def state():
        optimizer = _calls.training_optimizer()
        return _calls.running_loop(), _calls.running_model(), optimizer, _calls.is_training(None)

    layer, found = noting(state)
    loops = []
    model = compiled([layer], loss=Loss(lambda: loops.append(_calls.running_loop())))
    model.train_on_batch(X, Y)
    assert ("train_step", model, model.optimizer, True) in found
    assert "train_step" in loops
    found.clear()
    model.test_on_batch(X, Y)
    assert found[-1] == ("test_step", model, None, False)
    model.predict(X, verbose=0)
    assert (found[-1][0], found[-1][3]) == ("predict_step", False)
    found.clear()
    layer.compute_output_spec(keras.KerasTensor((1, 2)))
    assert found[-1][0] == "compute_output_spec"
    hooks = []
    callback = callback_of(lambda name: hooks.append(_calls.running_loop()))
    model.fit(X, Y, verbose=0, callbacks=[callback])
    model.evaluate(X, Y, verbose=0, callbacks=[callback])
    assert hooks == ["fit", "evaluate"]
    assert _calls.running_loop() is _calls.running_model() is None


@check_of("predicted")
def loop_of_a_prediction_within_a_step():
    layer, found = noting(lambda: (_calls.running_loop(), _calls.is_training(None)))
    inner = keras.Sequential([layer, keras.layers.ActivityRegularization(1.0)])
    outer = Layer(lambda: [_calls.predicted(inner, ops.ones((1, 2)), training=False)] * 2)
    model = compiled([outer])
    model.train_on_batch(X, Y)
    assert found[-1] == ("predict_step", False)
    assert len(inner.losses) <= 1
    assert model.losses == []


@check_of("NoMethod")
def objects_without_groups_in_a_file(folder):
    class Unsaved(keras.layers.Dropout):
        save_own_variables = load_own_variables = _models.NoMethod()

    sizes = []
    for layers in ([], [Unsaved(0.1)], [keras.layers.Dropout(0.1)]):
        model = compiled(layers)
        model.save_weights(folder / "file.weights.h5")
        model.load_weights(folder / "file.weights.h5")
        sizes.append((folder / "file.weights.h5").stat().st_size)
    assert sizes[0] == sizes[1] < sizes[2]


@check_of("training_of_outermost_call", "outermost_call")
def variables_of_a_call():
    layer, found = noting(lambda: (_calls.training_of_outermost_call(), _calls.outermost_call()))
    model = keras.Sequential([layer, Layer(layer.run)])
    model(X, training=True)
    (training, call), second = found[-2:]
    assert training is True
    assert call is not None
    assert second[1] is call
    reference = weakref.ref(call)
    found.clear()
    del call, second
    gc.collect()
    assert reference() is None
    assert _calls.outermost_call() is None


@check_of("enclosing_scope")
def scope_of_a_stateless_call():
    layer, found = noting(_calls.enclosing_scope)
    model = compiled([layer])
    state = model.trainable_variables, model.non_trainable_variables
    model.stateless_call(*([x.value for x in variables] for variables in state), X)
    assert isinstance(found[-1], keras.StatelessScope)
    model(X)
    assert found[-1] is None


@check_of("running_callbacks", "move_to_front", "when_callbacks_are_deleted", "append_callback")
def list_of_callbacks_in_its_loop():
    class First(keras.callbacks.Callback):
        def set_model(self, model):
            models.append(model)

    class Front(keras.callbacks.Callback):
        def set_model(self, model):
            _calls.move_to_front(self, behind=(First,))

        def on_train_begin(self, logs=None):
            order.append("front")
            found.extend(_calls.running_callbacks())
            _calls.when_callbacks_are_deleted(lambda: order.append("deleted"))

    order, found, models, front = [], [], [], Front()
    other = callback_of(order.append)
    compiled().fit(X, Y, verbose=0, callbacks=[other, front])
    gc.collect()
    assert order == ["front", "on_train_begin", "deleted"]
    assert found[:2] == [front, other]
    found.clear()
    compiled().fit(X, Y, verbose=0, callbacks=[other, first := First(), front])
    assert found[:3] == [first, front, other]
    assert len(models) == 1  # Each callback gets its model once.
    callbacks = keras.callbacks.CallbackList([other])
    _models.append_callback(callbacks, front)
    assert callbacks.callbacks == [other, front]


@check_of("evaluation_logs")
def logs_that_evaluate_returns():
    callback = callback_of(lambda name: _calls.evaluation_logs().update(own=1.0))
    logs = compiled().evaluate(X, Y, verbose=0, callbacks=[callback], return_dict=True)
    assert logs["own"] == 1.0


class Stored(keras.layers.Layer):
    """Notes what Keras hands over when it loads a file."""

    def __init__(self, note, name):
        super().__init__(name=name)
        self.note, self.built = note, True

    def call(self, inputs):
        return inputs

    def save_own_variables(self, store):
        store["value"] = np.zeros(1)

    def load_own_variables(self, store):
        self.note((store, list(store.keys()), _calls.skips_mismatch()))


@check_of("skips_mismatch", "load_or_undo")
def one_store_for_a_file(folder):
    found = []
    model = keras.Sequential([keras.Input((2,)), *(Stored(found.append, x) for x in "ab")])
    path = str(folder / "model.weights.h5")
    model.save_weights(path)
    model.load_weights(path, skip_mismatch=True)
    (first, keys, skips), (second, *_) = found
    assert first is second
    assert (keys, skips) == (["value"], True)
    model.load_weights(path)
    assert found[-1][2] is False


@check_of("compile_again", "is_to_compile")
def functions_that_are_compiled():
    class Scale(keras.layers.Layer):
        def call(self, inputs):
            return inputs * scale

    scale = 1.0
    model = compiled([Scale()])
    assert _models.is_to_compile(model)
    model.fit(X, 2 * Y, verbose=0)
    assert not _models.is_to_compile(model)
    scale = 3.0
    _models.compile_again(model, evaluation=True)
    assert _models.is_to_compile(model)
    model.layers[-1].set_weights([np.ones((2, 1)), np.zeros(1)])
    assert model.evaluate(X, 2 * Y, verbose=0) == pytest.approx(16.0)


@check_of("before_build", "unsupported")
def losses_and_metrics_are_built(monkeypatch):
    trainer = next(x for x in keras.Model.__mro__ if "compute_metrics" in vars(x))
    module = inspect.getmodule(trainer)
    for name in ("CompileLoss", "CompileMetrics"):
        monkeypatch.setattr(getattr(module, name), "build", getattr(module, name).build)
    found = []
    _models.before_build(lambda *given: found.append(given[0]))
    loss, metrics = keras.losses.MeanSquaredError(), [keras.metrics.MeanSquaredError()]
    compiled(loss=loss, metrics=metrics).evaluate(X, Y, verbose=0)
    assert any(x is loss for x in found)
    assert any(x is metrics for x in found)


@check_of("pass_all_outputs", "unsupported")
def losses_of_all_outputs(monkeypatch):
    class Difference(keras.losses.Loss):
        term = "difference"

        def of_outputs(self, names):
            assert names == ["a", "b"]
            return lambda y_true, y_pred, sample_weight=None: ops.mean(
                y_pred["a"] - y_pred["b"] + y_true["a"]
            )

    trainer = next(x for x in keras.Model.__mro__ if "compute_metrics" in vars(x))
    owner = inspect.getmodule(trainer).CompileLoss
    monkeypatch.setattr(owner, "build", owner.build)
    _models.pass_all_outputs(Difference)
    inputs = keras.Input((1,))
    outputs = {name: i * inputs for i, name in enumerate("ab")}
    model = keras.Model(
        inputs, {name: keras.layers.Identity(name=name)(x) for name, x in outputs.items()}
    )
    loss = {"a": keras.losses.MeanSquaredError(), "difference": Difference()}
    model.compile(loss=loss, loss_weights={"difference": 2.0, "a": 3.0})
    y = {"a": np.full((2, 1), 3.0), "b": np.zeros((2, 1))}
    found = model.evaluate(np.ones((2, 1)), y, verbose=0, return_dict=True)
    assert found == {"loss": 31.0, "a_loss": 9.0, "difference_loss": 2.0}
    monkeypatch.delattr(owner, "Loss")
    with pytest.raises(ImportError, match="CompileLoss"):
        _models.pass_all_outputs(Difference)


@check_of("replace_in_trainer", "strategy_of", backends=("tensorflow",))
def functions_of_the_trainer():
    trainer = next(x for x in keras.Model.__mro__ if "_maybe_symbolic_build" in vars(x))
    assert callable(inspect.getmodule(trainer).reduce_per_replica)
    parameters = inspect.signature(trainer._maybe_symbolic_build).parameters
    assert [*parameters][1:] == ["iterator", "data_batch"]
    from keras_jointloss._core.backend.tensorflow import workers

    strategy = tf.distribute.MirroredStrategy(["cpu:0"])
    with strategy.scope():
        assert workers.strategy_of(compiled()) is strategy


@check_of("inner_optimizer", "accumulated_steps")
def attributes_of_optimizers():
    inner = keras.optimizers.SGD(gradient_accumulation_steps=3)
    outer = keras.optimizers.LossScaleOptimizer(inner)
    assert _models.inner_optimizer(outer) is inner
    assert _models.accumulated_steps(outer) == 3
    assert _models.accumulated_steps(keras.optimizers.SGD()) == 1


@check_of("training_outputs", "stateless_training_outputs")
def steps_that_only_compute_the_loss():
    layer, loops = noting(_calls.running_loop)
    models = []
    model = compiled([layer], Loss(lambda: models.append(_calls.running_model())))
    _state.build_for_training(model, (X, Y))
    loops.clear()
    models.clear()
    if BACKEND == "jax":
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.metrics_variables,
            model.optimizer.variables,
        )
        values = tuple([x.value for x in group] for group in groups)
        found, others, metrics = _calls.stateless_training_outputs(model, values, X, Y, None)
        assert len(others) == len(groups[1])
        assert len(metrics) == len(groups[2])
    else:
        batch = [ops.convert_to_tensor(x) for x in (X, Y)]
        found = _calls.training_outputs(model, *batch, None)
    assert tuple(found.shape) == (4, 1)
    assert loops == ["train_step"]
    assert models == [model]


@check_of("build_for_training", "kept_compilation")
def what_fit_compiles():
    model = compiled(metrics=["mae"])
    before = model.metrics
    with _state.kept_compilation(model):
        _state.build_for_training(model, (X, Y))
        assert model.optimizer.built
        assert len(model.metrics_variables) > 2
        model.fit(X, Y, verbose=0)
        assert model.train_function is not None
    assert model.train_function is None
    assert [*map(id, model.metrics)] == [*map(id, before)]
    assert len(model.metrics_variables) == 2
    assert not hasattr(model, "history")
    model.fit(X, Y, verbose=0)
    function, history = model.train_function, model.history
    with _state.kept_compilation(model):
        assert model.train_function is None
    assert model.train_function is function
    assert model.history is history


@check_of("kept_global_seed")
def numbers_without_a_seed():
    def draw():
        random.seed(3)  # From which Keras takes the first state.
        return float(keras.random.uniform(()))

    keras.utils.set_random_seed(3)
    with _state.kept_global_seed():
        first = draw()
        assert draw() != first
    assert draw() == first
    with _state.kept_global_seed():
        second = draw()
    assert draw() == second != first


@check_of("sync_state")
def reading_the_model_of_a_callback():
    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            _models.sync_state(self)
            counts.append(int(ops.convert_to_numpy(optimizer.iterations)))

    counts, optimizer = [], keras.optimizers.SGD()
    compiled(optimizer=optimizer).fit(X, Y, batch_size=2, verbose=0, callbacks=[Count()])
    assert counts == [1, 2]


@check_of("allow_background", backends=("jax", "torch"))
def hooks_in_the_background():
    class Hook(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    def is_asynchronous(is_safe):
        _models.allow_background(hook, is_safe)
        return keras.callbacks.CallbackList([hook])._async_train

    hook = Hook()
    assert is_asynchronous(True) > is_asynchronous(False)


@check_of("forget_best")
def callbacks_that_begin_with_nan():
    stopping = keras.callbacks.EarlyStopping("loss", mode="min", patience=1)
    stopping.set_model(compiled())
    stopping.on_train_begin()
    stopping.on_epoch_end(0, {"loss": float("nan")})
    _models.forget_best(stopping)
    stopping.on_epoch_end(1, {"loss": 2.0})
    assert stopping.best == 2.0


@check_of("is_traced", backends=("jax",))
def tracers_of_jax():
    found = []
    jax.jit(lambda x: found.append(_backend.is_traced([x, None])) or x)(1.0)
    assert (found, _backend.is_traced([ops.ones(())])) == ([True], False)


@check_of("recomputed", backends=("jax",))
def primitives_of_jax():
    from keras_jointloss._core.backend.jax import convolutions

    def run(x, kernel):
        return jax.lax.conv(x, kernel, (1, 1), "SAME") + jax.nn.relu(x)

    x, kernel = ops.ones((1, 1, 3, 3)), ops.ones((1, 1, 3, 3))
    pair = [
        jax.grad(lambda *given, f=f: f(*given).sum(), (0, 1))(x, kernel)
        for f in (run, convolutions.recomputed(run))
    ]
    for plain, recomputed in zip(*pair, strict=True):
        np.testing.assert_allclose(plain, recomputed, rtol=1e-6)


@check_of("current_trace", backends=("tensorflow", "jax"))
def traces():
    layer, found = noting(_backend.current_trace)
    compiled([layer]).train_on_batch(X, Y)
    assert found[-1] != _backend.current_trace()


@check_of("has_own_gradient", backends=("tensorflow",))
def functions_with_a_gradient_of_their_own():
    def inner(x):
        found.append(_backend.has_own_gradient(functions_with_a_gradient_of_their_own.__code__))
        return x

    found = []
    keras.remat(inner)(ops.ones(()))
    inner(ops.ones(()))
    assert found[0] is True
    assert found[-1] is False


@pytest.mark.parametrize("name", CHECKS)
def test_keras_is_as_assumed(name, monkeypatch, tmp_path):
    if BACKEND not in BACKENDS[name]:
        pytest.skip(f"runs on {' and '.join(BACKENDS[name])} only")
    given = {"monkeypatch": monkeypatch, "folder": tmp_path}
    needed = inspect.signature(CHECKS[name]).parameters
    CHECKS[name](**{key: given[key] for key in needed})


@pytest.mark.parametrize(
    "module", [_keras, _calls, _losses, _models, _state], ids=lambda x: x.__name__
)
def test_each_assumption_has_a_check(module):
    own = {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    assert own <= CHECKS.keys()
