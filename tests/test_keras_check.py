"""The private names of Keras: a missing name raises a clear error."""

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
