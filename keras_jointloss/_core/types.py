"""Types of arguments in several places, for editors and type checkers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

import keras
import numpy as np

#: A tensor of the backend, or what `keras.ops` turns into one: an array, a number, a variable.
Tensor: TypeAlias = Any
#: Tensors, masks or shapes in any structure of lists, tuples and dicts.
Nested: TypeAlias = Any
#: Labels of items, `(batch,)` or `(batch, classes)`, if there are any.
Labels: TypeAlias = Tensor | None
#: Which items to include, `(batch,)`, bool; `None` for all.
Mask: TypeAlias = Tensor | None
#: The weights of items, `(batch,)`; `None` for 1.
Weights: TypeAlias = Tensor | None
#: The number of a training step.
Step: TypeAlias = int | Tensor
#: The values that Keras passes to callbacks, by name.
Logs: TypeAlias = Any

#: The arguments of an object by name, as Keras saves them.
Config: TypeAlias = dict[str, Any]
#: A loss, or a metric, as `compile` accepts it: by name, as a function or as an object.
LossLike: TypeAlias = str | keras.losses.Loss | Callable[..., Tensor]
MetricLike: TypeAlias = str | keras.metrics.Metric | Callable[..., Tensor]
Shape: TypeAlias = Sequence[int | None]
Numbers: TypeAlias = Sequence[float] | np.ndarray
DType: TypeAlias = str | keras.DTypePolicy | None

Direction: TypeAlias = Literal["both", "a_to_b", "b_to_a"]


class Schedule(Protocol):
    """A `keras.optimizers.schedules.LearningRateSchedule`, of which type checkers know nothing."""

    def __call__(self, step: Any) -> Any: ...


#: A number, or a schedule that moves it in training.
Annealable: TypeAlias = float | Schedule
Margin: TypeAlias = Annealable | Literal["soft"]
Reduction: TypeAlias = (
    Literal["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none"] | None
)
#: How to treat items that share a label.
Sharing: TypeAlias = Literal["positive", "ignore"] | None
Similarity: TypeAlias = Literal["cosine", "dot", "euclidean"]


class LayerOptions(TypedDict, total=False):
    """The arguments of a layer that it passes on to `keras.layers.Layer`."""

    trainable: bool
    dtype: DType
