"""What several replicas exchange to compute the loss of an output, before Keras has all losses."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import reduce_values
from keras_jointloss._core.keras import kept_losses
from keras_jointloss._core.keras_calls import running_model
from keras_jointloss._core.math import divide_or_0
from keras_jointloss._core.replicas import Batch, is_after_call, shared_batch


def may_exchange(views: Any) -> bool:
    """Returns whether one of several replicas may exchange values for the loss of an output.

    All of them compute the loss in a step of Keras, and in a loop of PyTorch that takes a gradient;
    one process alone may compute a loss for validation. On TensorFlow an exchange needs the model
    whose step is running, to keep the losses of its layers.

    Args:
        views: The views that the loss compares.
    """
    if not is_after_call():
        return False
    return running_model() is not None or current_replicas().share_loop(views)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps the losses of layers, which Keras has not collected yet.

    TensorFlow switches to another replica in an exchange, and the forward pass of that replica
    replaces them.
    """
    model = running_model() if current_replicas().takes_turns else None
    with contextlib.nullcontext() if model is None else kept_losses(model):
        yield


def values_among_all(compute: Callable[..., Any], own: Batch, takes_exchange: bool):
    """Returns the losses of the items of this replica among those of all, `(items,)`.

    Args:
        compute: `ViewsLoss.values`.
        own: The batch of this replica.
        takes_exchange: As in `shared_batch`.
    """
    with _undisturbed():
        batch, items, exchange = shared_batch(own, takes_exchange)
        options = {} if exchange is None else {"exchange": exchange}
        return compute(batch.views, batch.labels, batch.mask, items, **options)


def reduced_over_replicas(values, y_pred, sample_weight, reduction: str, dtype):
    """Returns the loss of the items of all replicas, as Keras expects it from each of them.

    Args:
        values: `(items,)`, the losses of the items of this replica.
        y_pred: The prediction, whose Keras mask applies.
        sample_weight: As Keras passes it to a loss, or `None`.
        reduction: As in `keras.losses.Loss`, but not `None` or `"none"`.
        dtype: As in `keras.losses.Loss`.
    """
    weight = sample_weight if reduction == "mean_with_sample_weight" else None
    divisor = reduce_values(ops.ones_like(values), y_pred, weight, "sum", dtype)
    total = reduce_values(values, y_pred, sample_weight, "sum", dtype)
    replicas = current_replicas()
    with _undisturbed():
        total, divisor = ops.unstack(replicas.loss_sum(ops.stack([total, divisor])))
    return replicas.once(total if reduction == "sum" else divide_or_0(total, divisor))


def warn_of_separate_items(name: str) -> None:
    """Warns that a loss of several replicas compares the items of each replica alone."""
    count = current_replicas().count
    warnings.warn(
        f"{name} compares the items of a batch with each other. Called by a layer or in a custom "
        "loop (on PyTorch: one without gradients) it sees, in each of "
        f"{count} replicas, only the items of that replica, so the result depends on the "
        "number of replicas. As the loss of an output in `fit` and `evaluate`, and in "
        "`keras_jointloss.layers.ContrastiveTerm`, it compares the items of all "
        "replicas.",
        stacklevel=2,
    )
