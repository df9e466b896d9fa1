"""The shared trunk: combined parameter gradients compared with manual gradients per term."""

import functools

import keras
import pytest

import keras_jointloss as kj
from tests import balanced_models as models
from tests.balanced_models import X, fit
from tests.comparisons import assert_all_close

build = functools.partial(models.build, layer="shared")


def stateful_trunk():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.layers.Dense(4, activation="tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
        ],
        name="trunk",
    )


def test_sum_trains_like_plain_trunk():
    def trained(is_shared):
        model = build("sum", trunk=stateful_trunk())
        if not is_shared:
            inputs = keras.Input((5,))
            z = model.get_layer("shared").trunk(inputs)
            model = keras.Model(inputs, {term: model.get_layer(f"head_{term}")(z) for term in "ab"})
            models.compile_again(model)
        fit(model)
        return (model.get_layer("shared").trunk if is_shared else model.get_layer("trunk")).weights

    assert_all_close(trained(True), trained(False), 1e-3, 1e-5)


def test_evaluation_equals_evaluation_of_the_trunk():
    model = build("mgda", trunk=stateful_trunk())
    fit(model, 1)
    z = model.get_layer("shared").trunk(X, training=False)
    assert_all_close(model.get_layer("shared")(X, training=False), {"a": z, "b": z}, 0)


def test_object_that_is_no_layer_is_refused():
    with pytest.raises(ValueError, match=r"`trunk`.*Received: trunk='dense'"):
        kj.layers.SharedTrunk("dense", ["a", "b"])
