"""A training reads nothing from the device in a step, whatever the model has."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import BACKEND
from tests.device_reads import count_reads
from tests.small_models import fit
from tests.terms import GRADIENT_RULES, RULES

ALL = (None, *RULES, *GRADIENT_RULES)
#: None, with all else, a rule that counts epochs, and one that follows gradients.
COMPILED = (None, "ReLoBRaLo", "GradNorm")
BATCH = 4
X = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
Y = {"rating": np.where(X[:, :2] > 1, np.nan, X[:, :2]), "label": np.arange(20) % 3}
OUTPUTS = tuple(Y)


def make(rule):
    """Returns a model with a rule or, without one, with layer terms of several kinds."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    label = ops.cast(inputs[:, 0] > 0, "int32")
    hidden = keras.layers.Dense(4, activation="tanh", kernel_regularizer="l2")(inputs)
    z = kj.layers.GradientBalancer(list(OUTPUTS), kj.aggregators.GradVac())(hidden)
    a, b = z["rating"], z["label"]
    weights = {"rating": kj.schedules.Linear(0.5, 1.0, 100)}
    if rule is None:
        options = {"learn_temperature": True, "memory_size": 8, "name": "pair"}
        weight = kj.schedules.Linear(0.1, 0.2, 100)
        a, b = kj.layers.ContrastiveTerm("SupCon", weight, **options)((a, b * 2, label))
        loss = kj.losses.ArcFace(margin=kj.schedules.Linear(0.0, 0.5, 100))
        a = kj.layers.ProxyTerm(loss, 2, name="classes")((a, label))
        b = kj.layers.LossTerm(weight=0.1, floor=0.1, name="energy")(b, ops.square(b))
        b = kj.layers.GradientScale(kj.schedules.Linear(1.0, 0.5, 100))(b)
    model = keras.Model(
        inputs, {"rating": keras.layers.Dense(2)(a), "label": keras.layers.Dense(3)(b)}
    )
    losses = {
        "rating": "mse",
        "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    required = {"Constraint": "bounds", "Shares": "shares"}
    arguments = {required[rule]: dict.fromkeys(OUTPUTS, 1.0)} if rule in required else {}
    weighting = None if rule is None else getattr(kj.weighting, rule)(**arguments)
    model.compile("adam", **kj.joint_loss(losses, weights, weighting, missing={"rating": np.nan}))
    return model


@pytest.mark.parametrize("rule", ALL if BACKEND == "torch" else COMPILED)
def test_number_of_device_reads_is_independent_of_steps(rule, monkeypatch):
    model = make(rule)

    def train(steps):
        items = steps * BATCH
        fit(model, x=X[:items], y={name: y[:items] for name, y in Y.items()}, batch_size=BATCH)

    train(1)
    reads = count_reads(monkeypatch)
    train(1)
    few = sorted(reads)
    reads.clear()
    train(5)
    assert sorted(reads) == few
    assert few  # Those at the end of an epoch.
