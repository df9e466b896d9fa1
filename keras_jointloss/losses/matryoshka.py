"""Matryoshka: a loss on views at several widths of the embeddings."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import keras

from keras_jointloss._core.batch import Items
from keras_jointloss._core.types import (
    Config,
    DType,
    Labels,
    Mask,
    Reduction,
    Schedule,
    Shape,
    Tensor,
)
from keras_jointloss._core.validation import (
    invalid,
    validate_count,
    validate_list,
    validate_number,
)
from keras_jointloss.losses._lookup import get
from keras_jointloss.losses._pairs import Memory
from keras_jointloss.losses.base import LearnedParameter, ViewsLoss


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Matryoshka(ViewsLoss):
    """A loss on views, summed over the first `d` features of the embeddings for several widths `d`.

        loss_i = sum_d weight_d loss_i(views[..., :d])

    Embeddings trained with it can be cut to one of the widths after training, to search faster and
    in less memory. A loss of cosines normalizes the embeddings at each width; normalize them again
    after a cut, too. The whole width counts only if it is one of `dims`.

    Labels, masks, `memory_size` and learned parameters of `ContrastiveTerm` are those of the inner
    loss: all widths share one temperature and one memory. In `ContrastiveTerm` and `joint_loss`,
    the logs show the unweighted loss at each width as `<name>_dim_<d>`. The metrics of retrieval
    take `dim`, to measure a search at one of the widths.

    Args:
        loss: A loss of `keras_jointloss.losses` or its class name. Its `reduction` and `dtype` are
            not used: give them here.
        dims: The widths, one or more different whole numbers.
        weights: The weight of each width, 0 or more. `None`: 1 for each.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        As of the inner loss, with a `dim` of at least the largest width.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid, an input has the wrong shape, or the embeddings are
            narrower than one of `dims`.

    References:
        - Kusupati et al., 2022, Matryoshka Representation Learning

    Example:

    >>> import numpy as np
    >>> from keras_jointloss.losses import InfoNCE
    >>> a = np.eye(4, dtype="float32")
    >>> views = np.stack([a, a], axis=1)
    >>> loss = Matryoshka(InfoNCE(temperature=1.0), dims=[4, 2], weights=[1.0, 0.5])
    >>> parts = [float(InfoNCE(temperature=1.0)(np.zeros(4), views[..., :d])) for d in (4, 2)]
    >>> abs(float(loss(np.zeros(4), views)) - parts[0] - 0.5 * parts[1]) < 1e-5
    True
    """

    parts_take_parameters = True

    def __init__(
        self,
        loss: str | Config | ViewsLoss,
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        name: str = "matryoshka",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        inner = get(loss)
        if not isinstance(inner, ViewsLoss):
            raise invalid("loss", "a loss on views, of `keras_jointloss.losses`", loss)
        dims = [validate_count(dim, "dims") for dim in validate_list(dims, "dims", "widths")]
        if not dims or len(set(dims)) < len(dims):
            raise invalid("dims", "one or more different widths", dims)
        if weights is not None:
            given = validate_list(weights, "weights", "numbers")
            weights = [validate_number(weight, "weights", 0) for weight in given]
            if len(weights) != len(dims):
                raise invalid("weights", f"one number for each of the {len(dims)} widths", weights)
        super().__init__(name, reduction, dtype, loss=inner, dims=dims, weights=weights)
        self.part_names = tuple(f"dim_{dim}" for dim in dims)
        self.label_kind, self.unlabelled = inner.label_kind, inner.unlabelled
        self.min_views, self.max_views = inner.min_views, inner.max_views
        self.has_memory, self.takes_items = inner.has_memory, inner.takes_items
        self.compares_items, self.call_arguments = inner.compares_items, inner.call_arguments

    @property
    def takes_exchange(self) -> bool:
        """As of the inner loss."""
        return self.loss.takes_exchange

    @property
    def has_labels(self) -> bool:
        """As of the inner loss."""
        return self.loss.has_labels

    @property
    def schedules(self) -> dict[str, Schedule]:
        """As of the inner loss."""
        return self.loss.schedules

    def moved_by(self, values: Callable[[], dict[str, Tensor]]) -> Self:
        moved = super().moved_by(values)
        moved.loss = self.loss.moved_by(values)
        return moved

    def values(
        self,
        views: Tensor,
        labels: Labels = None,
        valid: Mask = None,
        items: Items | None = None,
        **parameters: Any,
    ) -> Tensor:
        """Returns the sum over the widths for each item. The parameters are of the inner loss."""
        parts = self.part_values(views, labels, valid, items, **parameters)
        weights = self.weights or [1.0] * len(self.dims)
        return sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))

    def part_values(
        self,
        views: Tensor,
        labels: Labels = None,
        valid: Mask = None,
        items: Items | None = None,
        **parameters: Any,
    ) -> dict[str, Tensor]:
        """Returns the unweighted loss of each item at each width."""
        if views.shape[2] < max(self.dims):
            raise invalid(
                "dims", f"widths of at most {views.shape[2]}, that of the views", self.dims
            )
        memory = parameters.pop("memory", None)
        parts = {}
        for name, dim in zip(self.part_names, self.dims, strict=True):
            if memory is not None:
                parameters["memory"] = Memory(memory.views[..., :dim], *memory[1:])
            parts[name] = self.loss.values(views[..., :dim], labels, valid, items, **parameters)
        return parts

    def labelled(self, labels: Tensor, valid: Mask = None) -> Mask:
        return self.loss.labelled(labels, valid)

    def learned_parameters(self) -> dict[str, LearnedParameter]:
        """Returns those of the inner loss, which all widths share."""
        return self.loss.learned_parameters()

    def arguments_of(self, learned: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.loss.arguments_of(learned)

    def validate_views(self, shape: Shape) -> None:
        self.loss.validate_views(shape)

    def validate_labels(self, shape: Shape, batch_size: int | None = None) -> None:
        self.loss.validate_labels(shape, batch_size)

    def get_config(self) -> Config:
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}
