"""The loss of an output term in a step, and how its weight records it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Nested
from keras_jointloss.terms.guard import guarded, kept_if
from keras_jointloss.terms.output_weight import LossWeight


class OutputLoss(NamedTuple):
    """The loss of an output term in a step.

    Attributes:
        value: What Keras multiplies by the weight and minimizes.
        loss: The mean loss; this and the others are as in `LossWeight.record`.
        items: The number of items.
        counts: Whether any item counts.
        batch_size: The size of the batch.
        targets: The number of targets.
        divisor: What this replica counts by.
    """

    value: Any
    loss: Any
    items: Any
    counts: Any = None
    batch_size: Any = None
    targets: Any = None
    divisor: Any = None

    def kept_if(self, is_good: Any) -> "OutputLoss":
        """Returns what remains of the loss if a step is good, or else nothing but the batch."""
        if is_good is True:
            return self
        return OutputLoss(
            kept_if(is_good, self.value),
            kept_if(is_good, self.loss),
            ops.where(is_good, self.items, 0),
            is_good if self.counts is None else ops.logical_and(is_good, self.counts),
            self.items if self.batch_size is None else self.batch_size,
            None if self.targets is None else ops.where(is_good, self.targets, 0),
            kept_if(is_good, self.divisor),
        )


def record_loss(weight: LossWeight, y_pred: Nested, compute: Callable[[Nested], OutputLoss]) -> Any:
    """Computes the loss of a prediction, records it in its weight, and returns its value."""
    if weight.is_guarded:

        def parts(y_pred):
            found = compute(y_pred)
            return found.value, found.loss, found

        value, found, is_good = guarded(weight, parts, y_pred)
        weight.watch(found.loss, is_good)
        found = found._replace(value=value)
        if weight.drops:
            found = found.kept_if(is_good)
    else:
        found = compute(y_pred)
    weight.record(*found[1:])
    return found.value


def unscaled(loss: Any) -> Any:
    """Returns the loss times the number of replicas, by which Keras has divided it.

    Keras divides no sum: `replicas * sum` counts by `divisor_of_sum`.
    """
    divisor = current_replicas().loss_divisor
    return loss * divisor if divisor > 1 else loss


def divisor_of_sum() -> Any:
    """Returns by what `replicas * sum` counts, so that the mean is the sum over all replicas.

    `None` where each process trains on its own sum, as on PyTorch.
    """
    replicas = current_replicas()
    return replicas.once(1.0) if replicas.takes_turns else None
