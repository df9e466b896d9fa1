"""A deleted model is freed completely, whichever objects of the package it uses.

The shared suite checks its own models after training.
"""

import weakref

import keras
import pytest
from keras import ops

import keras_jointloss as kj
from tests.subjects import BATCH, DATA, DIM
from tests.test_training import assert_freed, references

# One rule with its own state and one that reads gradients; the others differ only in the formula.
WEIGHTINGS = ("famo", "grad_norm")


def trained(model, callbacks=(), **data):
    """Trains a model for a step and returns weak references to it and its objects."""
    callbacks = [kj.callbacks.JointLossCallback(), *callbacks]
    model.fit(**data, steps_per_epoch=1, verbose=0, callbacks=callbacks)
    return [*references(model), *(weakref.ref(callback) for callback in callbacks)]


def of_balanced(weighting):
    inputs = keras.Input((6,))
    z = kj.layers.GradientBalancer(["a", "b"])(keras.layers.Dense(DIM)(inputs))
    model = keras.Model(inputs, {term: keras.layers.Dense(1)(z[term]) for term in "ab"})
    losses = dict.fromkeys("ab", "mean_squared_error")
    y = dict.fromkeys("ab", DATA["rating"][:BATCH])
    model.compile("sgd", **kj.joint_loss(losses, weighting=weighting))
    return trained(model, x=DATA["features"][:BATCH], y=y)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_model_with_a_rule_is_freed(weighting):
    assert_freed(of_balanced(weighting))


def of_tiles():
    inputs = keras.Input((6,))
    views = ops.stack([keras.layers.Dense(DIM)(inputs), keras.layers.Dense(DIM)(inputs)], axis=1)
    model = keras.Model(inputs, {"pair": views, "other": views})
    losses = {
        "pair": kj.losses.InfoNCE(tile_size=4),
        "other": kj.losses.SigLIP(tile_size=4),
    }
    x, y = DATA["features"][:BATCH], dict.fromkeys(losses, DATA["nothing"][:BATCH])
    retrieval = kj.callbacks.RetrievalEvaluation(x, k=1, embeddings="pair")
    model.compile("sgd", **kj.joint_loss(losses))
    return trained(model, [retrieval], x=x, y=y)


def test_model_with_tiled_losses_is_freed():
    assert_freed(of_tiles())
