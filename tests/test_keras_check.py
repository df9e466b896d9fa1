"""The private names of Keras: a missing name raises a clear error."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core import keras as _keras
from keras_jointloss._core import keras_check


def test_keras_defines_and_calls_all_private_names():
    keras_check.check()


@pytest.mark.parametrize("name", ["_flatten_layers", "_get_own_losses"])
def test_missing_name_raises(monkeypatch, name):
    monkeypatch.delattr(keras.layers.Layer, name)
    message = rf"needs `Layer.{name}`, which Keras {keras.__version__} does not have: install"
    with pytest.raises(ImportError, match=message):
        keras_check.check()


def test_override_not_called_by_keras_raises(monkeypatch):
    monkeypatch.setattr(keras.layers.Layer, "losses", property(lambda self: []))
    with pytest.raises(ImportError, match=r"overrides `Layer._get_own_losses`.*does not call"):
        keras_check.check()


def test_losses_of_layers_kept_elsewhere_raise(monkeypatch):
    collect = keras.layers.Layer._get_own_losses
    monkeypatch.setattr(keras.layers.Layer, "_get_own_losses", lambda self: collect(self)[:0])
    with pytest.raises(ImportError, match=r"keeps the list `Layer._losses`.*does not read"):
        keras_check.check()


def test_losses_of_layers_are_put_back():
    inner = keras.layers.ActivityRegularization(1.0)
    model = keras.Sequential([inner])
    model(ops.ones((1, 2)))
    with _keras.kept_losses(model):
        model(ops.zeros((1, 2)))
        assert float(sum(model.losses)) == 0.0
    assert float(sum(model.losses)) == 2.0
    with contextlib.suppress(KeyError), _keras.kept_losses(model):
        model(ops.zeros((1, 2)))
        raise KeyError
    assert float(sum(model.losses)) == 2.0


def test_check_within_a_call_keeps_the_losses():
    class Layer(keras.layers.Layer):
        def call(self, x):
            self.add_loss(ops.sum(x))
            keras_check.check()
            assert _keras.outermost_layer() is self
            return x

    layer = Layer()
    layer(ops.ones((2, 3)))
    assert len(layer.losses) == 1
    assert _keras.outermost_layer() is None


def test_takes_training():
    assert _keras.takes_training(keras.layers.Dropout(0.1))
    assert not _keras.takes_training(keras.layers.Flatten())


def test_optimizers_overwrite_a_variable_with_its_gradient():
    variables = [keras.Variable(np.ones(2, "float32"), name=name) for name in ("plain", "record")]
    variables[1].overwrite_with_gradient = True
    keras.optimizers.SGD(0.5).apply([ops.ones((2,)) * 4] * 2, variables)
    values = [ops.convert_to_numpy(variable).tolist() for variable in variables]
    assert values == [[-1.0, -1.0], [4.0, 4.0]]


def test_metric_gives_up_variables():
    metric = keras.metrics.Mean()
    _keras.untrack(metric, [metric.total])
    assert [x is metric.count for x in metric.variables] == [True]


@pytest.mark.parametrize("argument", ["loss", "metrics"])
def test_check_runs_before_keras_uses_losses_and_metrics(argument):
    """Fails where Keras no longer has the names that `before_build` replaces."""

    class Model(keras.Model):
        def call(self, x):
            return [x, x]

    model, x = Model(), np.ones((2, 1))
    given = kj.joint_loss({"a": "mse", "b": "mse"})[argument]
    model.compile("sgd", **{"loss": "mse", argument: given})
    with pytest.raises(ValueError, match=r"Expected `joint_loss\(\.\.\., outputs='list'\)`"):
        model.evaluate(x, [x, x], verbose=0)


@pytest.mark.parametrize("floatx", ["float64", "float16"])
@pytest.mark.parametrize("policy", [None, "mixed_float16", "mixed_bfloat16", "float64"])
def test_package_can_be_imported_under_any_dtype_policy(policy, floatx):
    keras.config.set_floatx(floatx)
    if policy is not None:
        keras.config.set_dtype_policy(policy)
    keras_check.check()


@pytest.mark.parametrize(
    "scope", [keras.StatelessScope, keras.RematScope, lambda: keras.device("cpu:0")]
)
def test_package_can_be_imported_in_a_scope(scope):
    with scope():
        keras_check.check()
