"""A deleted model is freed completely, whichever objects of the package it uses.

The shared suite checks its own models after training.
"""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.balanced_models import LOSSES
from tests.subjects import BATCH, DATA, DIM
from tests.test_training import assert_freed, references

A = np.ones((4, 3), "float32")
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
    y = dict.fromkeys("ab", DATA["rating"][:BATCH])
    model.compile("sgd", **kj.joint_loss(LOSSES, weighting=weighting))
    return trained(model, x=DATA["features"][:BATCH], y=y)


def of_tiles():
    inputs = keras.Input((6,))
    hidden = kj.layers.ChunkedTower(keras.Sequential([keras.layers.Dense(DIM)]), 4)(inputs)
    views = ops.stack([hidden, keras.layers.Dense(DIM)(hidden)], axis=1)
    model = keras.Model(inputs, {"pair": views, "other": views})
    losses = {"pair": kj.losses.InfoNCE(tile_size=4), "other": kj.losses.SigLIP(tile_size=4)}
    x, y = DATA["features"][:BATCH], dict.fromkeys(losses, DATA["nothing"][:BATCH])
    retrieval = kj.callbacks.RetrievalEvaluation(x, k=1, embeddings="pair")
    model.compile("sgd", **kj.joint_loss(losses))
    return trained(model, [retrieval], x=x, y=y)


@pytest.mark.parametrize("kind", [*WEIGHTINGS, "tiles"])
def test_model_with_a_rule_or_tiled_losses_is_freed(kind, graphs):
    before = graphs()
    assert_freed(of_tiles() if kind == "tiles" else of_balanced(kind))
    assert graphs() == before


@pytest.mark.parametrize("is_contrastive", [True, False])
def test_inputs_of_a_direct_call_are_freed(is_contrastive):
    a, b = ops.convert_to_tensor(A) + 2, ops.convert_to_tensor(A)
    if is_contrastive:
        layer = kj.layers.ContrastiveTerm("MeanSquaredError", metrics=[kj.metrics.Alignment()])
        layer((a, b))
    else:
        layer = kj.layers.LossTerm("mean_squared_error", metrics=["mae"])
        layer(a, b)
    references = [weakref.ref(x) for x in (a, b)]
    del a, b
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert float(sum(layer.losses)) == 4
