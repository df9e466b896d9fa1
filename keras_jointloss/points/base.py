"""Base class of the rules that weigh the points of a differential equation."""

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from keras_jointloss._core.registry import find
from keras_jointloss._core.types import Config, Schedule, Tensor


class PointRule:
    """Base class of the rules that weigh the points at which an equation has to hold.

    Pass it to `keras_jointloss.layers.PointWeights`, which adds the loss

        mean_j w_j r_j^2

    over the points `j` of a batch with the residuals `r_j` of the equation. A subclass implements
    `initial_state`, `update` and `weights`, functions of the state of all points. A training step
    updates the state with the residuals of its batch, and then weighs them. The layer owns the
    state, saves it, and makes it the same on all replicas. No gradient flows through the weights.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> @keras.saving.register_keras_serializable()
    ... class Largest(PointRule):
    ...     "Weighs each point by the largest residual that it has had."
    ...
    ...     def initial_state(self, points):
    ...         return {"largest": np.zeros(points)}
    ...
    ...     def update(self, state, residual, is_seen):
    ...         return {"largest": keras.ops.maximum(state["largest"], residual)}
    ...
    ...     def weights(self, state):
    ...         return state["largest"]
    >>> state = Largest().update({"largest": np.zeros(2)}, np.array([0.5, 0.0]), [True, False])
    >>> [float(x) for x in Largest().weights(state)]
    [0.5, 0.0]
    """

    #: The smallest valid number of each part of the state, which a file must not go below.
    minimum: ClassVar[Mapping[str, float]] = {}

    def initial_state(self, points: int) -> dict[str, np.ndarray]:
        """Returns the state before the first step, by name: arrays of any shape."""
        raise NotImplementedError

    def update(
        self, state: dict[str, Tensor], residual: Tensor, is_seen: Tensor
    ) -> dict[str, Tensor]:
        """Returns the state after a training step.

        Args:
            state: The state before the step, by name.
            residual: `(points,)`, the absolute value of the residual of each point of the batch, of
                all replicas, and 0 for the other points. It is the root of the mean square if the
                point has several residuals, or is several times in the batch.
            is_seen: `(points,)`, bool: which points are in the batch and have a finite residual.
        """
        raise NotImplementedError

    def weights(self, state: dict[str, Tensor], **scheduled: Tensor) -> Tensor:
        """Returns the factors of the squared residuals, `(points,)`.

        Args:
            state: The state, by name.
            **scheduled: The values in this step of the arguments in `schedules`.
        """
        raise NotImplementedError

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The arguments that follow a schedule, by name."""
        return {}

    def get_config(self) -> Config:
        return {}

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(**config)


def get(identifier: str | Config | PointRule) -> PointRule:
    """Returns a rule by instance, by name or by config.

    Args:
        identifier: A `PointRule`, the name of a class of `keras_jointloss.points` or of a
            registered custom class (`"Causal"`, `"self_adaptive"`: case and underscores do not
            matter), or the serialized form of a rule.

    Raises:
        ValueError: If there is no such rule.

    Example:

    >>> type(get("residual")).__name__
    'Residual'
    """
    return find(identifier, PointRule, "rule", "points")
