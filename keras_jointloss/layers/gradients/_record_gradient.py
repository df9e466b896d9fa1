"""How the record of a step leaves the backward pass, whatever is trained and by which optimizer."""

from typing import Any

from keras import ops

from keras_jointloss._core.backend import differentiated
from keras_jointloss._core.keras_calls import training_optimizer
from keras_jointloss._core.keras_models import inner_optimizer
from keras_jointloss.layers.gradients._record import GradientRecord


def tensor_of(record: GradientRecord) -> Any:
    """Returns the latest record as a tensor that each backward pass reaches.

    The gradients of the terms are then known also if nothing before the layer is trained.
    """
    return differentiated(ops.copy(record.latest))


def validate_optimizer(record: GradientRecord, name: str) -> None:
    """Raises `ValueError` if the optimizer would fail on the variable of the record.

    Keras builds a model in `fit` before it begins with the steps, where it would hide an error.

    Args:
        record: The record.
        name: The name of the layer.
    """
    if not record.is_trained:
        return
    optimizer = inner_optimizer(training_optimizer())
    # On JAX, Keras multiplies the moving average of each variable by 0 or 1, but keeps none of a
    # variable that is overwritten with its gradient.
    frequency = getattr(optimizer, "ema_overwrite_frequency", None)
    if frequency is not None and optimizer.use_ema:
        raise ValueError(
            "Invalid value for argument `ema_overwrite_frequency` of the optimizer. Expected None "
            f"on JAX, where {name!r} keeps its record in a variable of which Keras has no moving "
            "average. Use `use_ema=True` alone, which overwrites the weights once, at the end of "
            "`fit`; or create the layer with `telemetry=False`, and without `ema` in its "
            f"aggregator. Received: ema_overwrite_frequency={frequency}"
        )
