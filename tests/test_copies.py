"""Copies and pickles of every public object behave as the object does."""

import copy
import inspect
import pickle

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from tests.backends import values_only
from tests.small_models import X, Y, compiled, fit, ramp, with_layer_term

FAMILIES = [getattr(kj, name) for name in kj.__all__ if inspect.ismodule(getattr(kj, name))]


def _tower():
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])


#: Keras copies an object by its registered class, which a base of others does not have.
ABSTRACT = {"losses.ViewsLoss", "metrics.ViewsMetric", "weighting.Weighting"}
#: What classes need that have no defaults.
ARGUMENTS = {
    "KNNEvaluation": lambda: {"bank": X, "bank_labels": Y["b"], "data": X, "labels": Y["b"]},
    "RetrievalEvaluation": lambda: {"data": X},
    "TermStopping": lambda: {"monitor": {"a": "val_a_loss"}},
    "ClassBatches": lambda: {"x": X, "y": Y["b"], "classes_per_batch": 2, "per_class": 2},
    "TaskBatches": lambda: {"sources": {"a": (X, Y["a"]), "b": (X, Y["b"])}},
    "UniqueBatches": lambda: {"x": X, "y": Y["b"], "ids": Y["b"], "batch_size": 2},
    "ChunkedTower": lambda: {"tower": _tower(), "chunk_size": 2},
    "ContrastiveTerm": lambda: {"loss": "InfoNCE"},
    "GradientBalancer": lambda: {"terms": ["a", "b"]},
    "GradientScale": lambda: {"scale": -0.5},
    "MomentumTower": lambda: {"tower": _tower()},
    "PointWeights": lambda: {"points": 8},
    "ProxyTerm": lambda: {"loss": "ArcFace", "classes": 3},
    "SharedTrunk": lambda: {"trunk": _tower(), "terms": ["a", "b"]},
    "Teacher": lambda: {"model": _tower(), "save_teacher": True},
    "LearnedParameter": lambda: {"initial": 1.0, "minimum": 0.0, "maximum": 2.0},
    "Matryoshka": lambda: {"loss": "InfoNCE", "dims": (2,)},
    "Memory": lambda: {"views": np.ones((2, 2)), "labels": None, "valid": np.ones(2, bool)},
    "Cyclical": lambda: {"start": 0.0, "end": 1.0, "cycle_steps": 4},
    "Linear": lambda: {"start": 0.0, "end": 1.0, "steps": 4},
    "Sequential": lambda: {"schedules": [ramp(), ramp()], "boundaries": [4]},
    "Sigmoid": lambda: {"start": 0.0, "end": 1.0, "midpoint": 4, "width": 1.0},
    "Constraint": lambda: {"bounds": {"a": 1.0}},
    "weighting.Shares": lambda: {"shares": {"a": 0.5, "b": 0.5}},
    "LossWeight": lambda: {"weight": ramp()},
}
COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
CLASSES = {
    f"{family.__name__.partition('.')[2]}.{name}": getattr(family, name)
    for family in FAMILIES
    for name in family.__all__
    if inspect.isclass(getattr(family, name))
    # Errors, and what writes a file or answers requests.
    and not name.endswith("Error")
    and not family.__name__.endswith("tensorboard")
}
CLASSES["LossWeight"] = kj.LossWeight


def make(name):
    """Returns an object of a class."""
    arguments = ARGUMENTS.get(name) or ARGUMENTS.get(name.rpartition(".")[2], dict)
    return CLASSES[name](**arguments())


def config_of(value):
    """Returns the config of an object, without what differs from object to object."""
    if hasattr(value, "get_config"):
        config = keras.saving.serialize_keras_object(value.get_config())
        # The files of models hold more of a nested model.
        return {key: x for key, x in config.items() if not isinstance(x, dict)}
    return value._fields if isinstance(value, tuple) else sorted(vars(value))


@values_only
@pytest.mark.parametrize("name", CLASSES)
def test_copies_have_the_same_config(name):
    if name in ABSTRACT:
        with pytest.raises(TypeError, match="Could not locate class"):
            copy.copy(make(name))
        return
    value = make(name)
    for copied in (function(value) for function in COPIES.values()):
        assert copied is not value
        assert type(copied) is type(value)
        assert config_of(copied) == config_of(value)


MODELS = {
    "rule": lambda: compiled(weights={"a": ramp()}, weighting="famo"),
    "layer term": with_layer_term,
}


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("name", MODELS)
def test_copies_of_a_trained_model_and_its_callback_go_on_as_these(name, way):
    model, callback = MODELS[name](), kj.callbacks.JointLossCallback(update_freq="batch")
    fit(model, [callback])
    # A callback of Keras has its model, and so would a copy.
    copied, callbacks = COPIES[way](model), [COPIES[way](callback)]
    assert callbacks[0].update_freq == "batch"
    expected = fit(model, [callback], epochs=2, initial_epoch=1)
    found = fit(copied, callbacks, epochs=2, initial_epoch=1)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-6)
