"""Joint losses for Keras: several loss terms in plain `compile` and `fit`.

Each part of the package imports only from the parts in the lines above it:

    _core
    aggregators, schedules, tensorboard
    terms
    losses, metrics, weighting
    layers
    joint
    callbacks, distribution
"""

import importlib
import sys

__version__ = "0.1.0"

_SUBMODULES = (
    "aggregators",
    "callbacks",
    "distribution",
    "layers",
    "losses",
    "metrics",
    "schedules",
    "tensorboard",
    "weighting",
)
_ATTRIBUTES = {
    "joint_loss": "joint.joint_loss",
    "LossWeight": "terms.output_weight",
    "plot": "tensorboard.plot",
    "report": "joint.report",
}

__all__ = [
    "LossWeight",
    "__version__",
    "custom_objects",
    "joint_loss",
    "plot",
    "report",
    *_SUBMODULES,
]


def __getattr__(name):
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(f"{__name__}.{_ATTRIBUTES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])


def custom_objects() -> dict:
    """Returns every serializable class of the package by its registered name.

    Importing the package registers them with Keras, so this is needed only where Keras asks for
    an explicit `custom_objects` argument.

    Example:

    >>> import keras_jointloss as kj
    >>> kj.custom_objects()["keras_jointloss>LossWeight"] is kj.LossWeight
    True
    """
    import keras

    _register()
    return {
        name: value
        for name, value in keras.saving.get_custom_objects().items()
        if name.startswith(f"{__name__}>")
    }


def _register():
    """Imports everything that Keras needs to load a model."""
    for name in (*_SUBMODULES, "terms"):
        importlib.import_module(f"{__name__}.{name}")


# The TensorBoard server imports the package only for its dashboard and does not need Keras.
if "keras" in sys.modules or "tensorboard.program" not in sys.modules:
    _register()
