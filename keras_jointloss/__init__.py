"""Joint losses for Keras: several loss terms in plain `compile` and `fit`.

Each part of the package imports only from the parts in the lines above it:

    _core
    aggregators, points, schedules, tensorboard
    terms
    data, losses, metrics, weighting
    layers
    joint
    callbacks, distribution, probing
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: The files of names that are no files.
_ATTRIBUTES = {
    "joint_loss": "joint.joint_loss",
    "LossWeight": "terms.output_weight",
    "diagnose": "joint.diagnose",
    "plot": "tensorboard.plot",
    "probe": "probing.probe",
    "report": "joint.report",
}

__all__ = [
    "LossWeight",
    "__version__",
    "aggregators",
    "callbacks",
    "custom_objects",
    "data",
    "diagnose",
    "distribution",
    "joint_loss",
    "layers",
    "losses",
    "metrics",
    "plot",
    "points",
    "probe",
    "report",
    "schedules",
    "tensorboard",
    "weighting",
]


# At run time names are loaded when they are first used, since the TensorBoard server needs few.
# Editors and type checkers read the imports.
if TYPE_CHECKING:
    from keras_jointloss import (
        aggregators,
        callbacks,
        data,
        distribution,
        layers,
        losses,
        metrics,
        points,
        schedules,
        tensorboard,
        weighting,
    )
    from keras_jointloss.joint.diagnose import diagnose
    from keras_jointloss.joint.joint_loss import joint_loss
    from keras_jointloss.joint.report import report
    from keras_jointloss.probing.probe import probe
    from keras_jointloss.tensorboard.plot import plot
    from keras_jointloss.terms.output_weight import LossWeight
else:

    def __getattr__(name):
        if name in _ATTRIBUTES:
            return getattr(importlib.import_module(f"{__name__}.{_ATTRIBUTES[name]}"), name)
        if name in __all__:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def custom_objects() -> dict[str, Any]:
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


def _register() -> None:
    """Imports everything that Keras needs to load a model."""
    for name in ("_core.keras_check", "callbacks", "layers", "schedules", "terms", "weighting"):
        importlib.import_module(f"{__name__}.{name}")


# The TensorBoard server imports the package only for its dashboard and does not need Keras.
if "keras" in sys.modules or "tensorboard.program" not in sys.modules:
    _register()
