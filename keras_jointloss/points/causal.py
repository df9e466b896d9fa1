"""Causal weights: a time counts once the equation holds at earlier times."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.math import divide_or_0, to_numpy
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.types import Annealable, Config, Schedule, Tensor
from keras_jointloss._core.validation import (
    invalid,
    validate_count,
    validate_list,
    validate_number,
    validate_share,
)
from keras_jointloss.points.base import PointRule

#: The loss of a point that no batch has had yet.
_NONE = -1.0


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Causal(PointRule):
    """Weighs the points by how well the equation holds at earlier times (causal training).

    The points are sorted in time, and divided into chunks of as many successive points each. With
    the mean loss `L_k` of chunk `k`, the mean of `r_j^2` over its points,

        w_j = exp(-epsilon sum_{k < c} L_k)

    for a point `j` of chunk `c`. The first chunk has the weight 1. As long as its loss is large,
    the later ones hardly count; so the solution grows from the initial condition on, as in time.
    The loss of a point is that of the last batch with the point, so that batches may be small
    and in any order.

    The larger `epsilon`, the stricter is the order. A list is annealed as in the paper: the next
    number follows when the smallest weight is above `delta`, which says that the equation holds at
    all times. The log has the smallest weight as `<name>_min_weight`.

    If the points are drawn anew for each batch, let the index of a point be that of its chunk, and
    `points` equal to `chunks`.

    Args:
        epsilon: A number > 0; a `keras.optimizers.schedules.LearningRateSchedule`, which moves it
            while a `keras_jointloss.callbacks.JointLossCallback` takes part in `fit`; or a list of
            numbers, such as that of the paper, `[0.01, 0.1, 1, 10, 100]`.
        chunks: The number of chunks; no more than points. The times of as many points, if
            each time has the same number of points.
        delta: When the next number of a list follows, >= 0 and < 1.

    Raises:
        ValueError: If an argument is out of range; in the layer, if there are fewer points than
            chunks.

    References:
        - Wang, Sankaran and Perdikaris, 2022, Respecting Causality Is All You Need for Training
          Physics-informed Neural Networks

    Example:

    >>> rule = Causal(epsilon=1.0, chunks=2)
    >>> state = rule.update(rule.initial_state(4), [1.0, 1.0, 2.0, 2.0], [True] * 4)
    >>> [round(float(x), 3) for x in rule.weights(state)]
    [1.0, 1.0, 0.368, 0.368]
    """

    minimum: ClassVar = {"loss": _NONE, "stage": 0.0}

    def __init__(
        self,
        epsilon: Annealable | Sequence[float] = 1.0,
        chunks: int = 32,
        delta: float = 0.99,
    ):
        self.epsilon = _validate_epsilon(epsilon)
        self.chunks = validate_count(chunks, "chunks")
        self.delta = validate_share(delta, "delta")

    @property
    def schedules(self) -> dict[str, Schedule]:
        is_schedule = isinstance(self.epsilon, LearningRateSchedule)
        return {"epsilon": self.epsilon} if is_schedule else {}

    def initial_state(self, points: int) -> dict[str, np.ndarray]:
        if points < self.chunks:
            raise invalid("points", f"at least as many points as chunks, {self.chunks}", points)
        state = {"loss": np.full(points, _NONE, "float32")}
        if isinstance(self.epsilon, list):
            state["stage"] = np.zeros((), "float32")  # The index of the number in use.
        return state

    def update(
        self, state: dict[str, Tensor], residual: Tensor, is_seen: Tensor
    ) -> dict[str, Tensor]:
        residual = ops.convert_to_tensor(residual)
        loss = ops.where(is_seen, ops.square(residual), ops.cast(state["loss"], residual.dtype))
        if not isinstance(self.epsilon, list):
            return {"loss": loss}
        stage = ops.cast(state["stage"], residual.dtype)
        # The weight of the last chunk is the smallest one.
        smallest = self._weights_of_chunks(loss, self._epsilon_at(stage))[-1]
        is_solved = ops.logical_and(ops.all(loss >= 0), smallest > self.delta)
        stage = ops.minimum(stage + ops.cast(is_solved, stage.dtype), len(self.epsilon) - 1)
        return {"loss": loss, "stage": stage}

    def weights(self, state: dict[str, Tensor], **scheduled: Tensor) -> Tensor:
        loss = ops.convert_to_tensor(state["loss"])
        epsilon = scheduled.get("epsilon", self.epsilon)
        if isinstance(epsilon, LearningRateSchedule):
            raise ValueError(
                "Causal follows a schedule, which only a layer moves. Expected a rule given to "
                "`keras_jointloss.layers.PointWeights`. Received: no value of `epsilon`"
            )
        if isinstance(epsilon, list):
            epsilon = self._epsilon_at(state["stage"])
        chunks = self._weights_of_chunks(loss, epsilon)
        return ops.take(chunks, self._chunk_of_points(loss.shape[0]))

    def _weights_of_chunks(self, loss, epsilon):
        """Returns the weight of each chunk from the losses of the points, `(chunks,)`."""
        is_seen = loss >= 0
        parts = ops.stack([ops.where(is_seen, loss, 0), ops.cast(is_seen, loss.dtype)], axis=1)
        sums = ops.segment_sum(parts, self._chunk_of_points(loss.shape[0]), self.chunks)
        means = divide_or_0(sums[:, 0], sums[:, 1])
        earlier = ops.cumsum(ops.concatenate([ops.zeros_like(means[:1]), means[:-1]]))
        return ops.exp(-ops.convert_to_tensor(epsilon, dtype=earlier.dtype) * earlier)

    def _chunk_of_points(self, points: int):
        return np.arange(points, dtype="int64") * self.chunks // points

    def _epsilon_at(self, stage):
        stage = ops.convert_to_tensor(stage)
        numbers = ops.convert_to_tensor(self.epsilon, dtype=stage.dtype)
        return ops.take(numbers, ops.cast(stage, "int32"))

    def get_config(self) -> Config:
        epsilon = self.epsilon
        if isinstance(epsilon, LearningRateSchedule):
            epsilon = keras.saving.serialize_keras_object(epsilon)
        return {"epsilon": epsilon, "chunks": self.chunks, "delta": self.delta}

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(**{**config, "epsilon": deserialized(config.get("epsilon"), "epsilon")})


def _validate_epsilon(value: Any) -> Any:
    """Returns a number, a schedule or a list of numbers."""
    if isinstance(value, LearningRateSchedule):
        start = float(to_numpy(value(0)))
        if not 0 <= start < math.inf:
            raise invalid("epsilon", "a schedule of finite numbers >= 0", value)
        return value
    if isinstance(value, Sequence | np.ndarray) and np.ndim(value):
        expected = "numbers > 0, one or more"
        numbers = [
            validate_number(x, f"epsilon[{i}]", 0, exclusive=True)
            for i, x in enumerate(validate_list(value, "epsilon", expected))
        ]
        if not numbers:
            raise invalid("epsilon", f"a list of {expected}", value)
        return numbers
    expected = "a number > 0, a list of such numbers, or a LearningRateSchedule"
    return validate_number(value, "epsilon", 0, exclusive=True, expected=expected)
