"""Stacked views as an output on several replicas of `tf.distribute`: all equals one device."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.loss_cases import DEFAULTS, EACH_KIND, TILED, Case, labels_of
from tests.small_models import Penalty
from tests.test_replicas import LABEL, WEIGHT, X, assert_like_one_device
from tests.test_training import replicas

pytestmark = [pytest.mark.slow, pytest.mark.backend("tensorflow")]

OPTIONS = {"is_compiled": False, "evaluates": False, "has_terms": False}
#: The last batch has 3 items: one of four replicas has none.
ITEMS = 11


def each_loss(cases, reduction):
    """Returns a model with an output for each loss, in plain `compile`."""
    x = keras.layers.Masking()(inputs := keras.Input((6,)))
    embeddings = [keras.layers.Dense(4)(x) for _ in range(4)]
    outputs, losses = {}, {}
    for case in cases:
        options = {"tile_size": 64} if case.name in TILED else {}
        losses[case.name] = case.make(**options, reduction=reduction)
        outputs[case.name] = ops.stack(embeddings[: case.views], axis=1)
    weights = dict.fromkeys(losses, 0.02)
    return keras.Model(inputs, outputs), {"loss": losses, "loss_weights": weights}


@pytest.mark.parametrize(
    ("cases", "reduction", "weight", "replicas"),
    [
        (DEFAULTS, "sum_over_batch_size", None, 2),
        (EACH_KIND, "mean_with_sample_weight", WEIGHT, 2),
        (EACH_KIND, "sum", WEIGHT, 4),
        ([Case("nt_xent")], "none", None, 2),
    ],
)
def test_each_loss_equals_one_device(cases, reduction, weight, replicas):
    y = {case.name: labels_of(case, ITEMS) for case in cases}
    part = X[:ITEMS], y, None if weight is None else dict.fromkeys(y, weight[:ITEMS])
    make = functools.partial(each_loss, cases, reduction)
    # Of an unreduced loss, Keras scales neither the loss nor what it logs of it.
    unequal = "loss" if reduction == "none" else "nothing"
    assert_like_one_device(make, [part], unequal, counts=(replicas,), **OPTIONS)


class Masked(keras.layers.Layer):
    """Masks items by their first feature."""

    def call(self, x):
        return x

    def compute_mask(self, x, previous_mask):
        return x[:, 0] > -1.0


class Stacked(keras.layers.Layer):
    """Stacks views that have the same mask."""

    def call(self, views):
        return ops.stack(views, axis=1)

    def compute_mask(self, views, previous_mask):
        return previous_mask[0]


def joint():
    """Returns a model with terms on masked views of all kinds, metrics of them and a rule."""
    x = Masked()(inputs := keras.Input((6,)))
    a, b = keras.layers.Dense(4)(x), keras.layers.Dense(4)(x)
    outputs = {
        "pair": Stacked()([a, b]),
        "siglip": Stacked()([b, a]),
        "classes": keras.layers.Dense(4)(x),
        "statistics": Stacked()([b, a]),
        "several": Stacked()([a, b]),
        "widths": Stacked()([a, b]),
    }
    losses = {
        "pair": kj.losses.InfoNCE(same_label="ignore", unlabelled=2, tile_size=64),
        "siglip": kj.losses.SigLIP(tile_size=64, reduction="mean_with_sample_weight"),
        "classes": kj.losses.SupCon(unlabelled=1, tile_size=64, reduction="sum"),
        "statistics": kj.losses.VICReg(),
        "several": {"margin": kj.losses.MarginContrastive(), "mining": kj.losses.Triplet()},
        "widths": kj.losses.Matryoshka(kj.losses.SupCon(tile_size=64), [4, 2]),
    }
    metrics = {
        "pair": [kj.metrics.RecallAtK(1), kj.metrics.Uniformity()],
        "siglip": kj.metrics.PairAccuracy(),
        "classes": kj.metrics.MeanAveragePrecisionAtR(),
    }
    rule = kj.weighting.Uncertainty()
    return keras.Model(inputs, outputs), kj.joint_loss(losses, weighting=rule, metrics=metrics)


# In the two batches of equal size, all items of "pair" that count share a label.
@pytest.mark.filterwarnings("ignore:The loss of the term 'pair' did not change")
@pytest.mark.parametrize("is_compiled", [True, False])
def test_terms_equal_one_device(is_compiled):
    y = dict.fromkeys(("pair", "classes", "statistics", "widths"), LABEL)
    y |= dict.fromkeys(("siglip", "several"), LABEL % 2)
    # Of the first batch, the second replica has no item of a weight above 0.
    weight = dict.fromkeys(y, WEIGHT * (np.arange(len(X)) // 4 != 1))
    part = (X, y, weight) if is_compiled else (X, y)
    # In a compiled step, Keras itself logs the mean of the replicas, whatever their items.
    unequal = (
        r" (pair|siglip|classes|statistics|several|widths)_loss$" if is_compiled else "nothing"
    )
    assert_like_one_device(joint, [part], unequal, is_compiled=is_compiled)


def beside_other_losses(trainer=keras.Model):
    """Returns a model in which other layers add losses, before and after the views."""
    x = keras.Input((6,))
    regularizer = {"activity_regularizer": keras.regularizers.L2(0.03)}
    tower = keras.Sequential([keras.layers.Dense(4, **regularizer), keras.layers.Dense(4)])
    hidden = Penalty()(keras.layers.Dense(8, activation="tanh", **regularizer)(x))
    a, b = tower(hidden), keras.layers.Dense(4, **regularizer)(hidden)
    a, b = kj.layers.ContrastiveTerm("VICReg", 0.1, name="term")((a, b))
    outputs = {
        "first": ops.stack([a, b], axis=1),
        "classes": keras.layers.Dense(3, **regularizer)(hidden),
        "second": ops.stack([a, Penalty()(b)], axis=1),
    }
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"first": kj.losses.InfoNCE(), "second": kj.losses.SigLIP(), "classes": crossentropy}
    return trainer(x, outputs), {"loss": losses}


class Custom(keras.Model):
    """A model with its own training step."""

    def train_step(self, data):
        return {"halved": super().train_step(data)["loss"] / 2}


@pytest.mark.parametrize("trainer", [keras.Model, Custom])
def test_losses_of_other_layers_stay(trainer):
    # Keras itself counts replicas with unequal shares alike.
    y = dict.fromkeys(("first", "second", "classes"), LABEL[:16])
    make = functools.partial(beside_other_losses, trainer)
    assert_like_one_device(make, [(X[:16], y)])


class Own(keras.layers.Layer):
    """Calls a loss in the forward pass, where an exchange would not be safe."""

    def __init__(self):
        super().__init__()
        self.loss = kj.losses.InfoNCE()

    def call(self, x):
        self.add_loss(self.loss(ops.zeros_like(x[:, 0]), ops.reshape(x, (-1, 2, 3))))
        return x


def test_loss_that_a_layer_calls_warns():
    with replicas(2).scope():
        model = keras.Sequential([keras.layers.Dense(6), Own()])
        model.compile("sgd", "mse", run_eagerly=True)
    with pytest.warns(UserWarning, match="InfoNCE compares.*Called by a layer or in a custom loop"):
        model.fit(X[:8], X[:8], batch_size=8, verbose=0)
