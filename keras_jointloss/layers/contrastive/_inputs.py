"""The inputs of a contrastive term: one or more embeddings, and the labels if the loss has any."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_jointloss import losses


def has_labels(loss: Any) -> bool:
    """Returns whether the last input holds labels."""
    return isinstance(loss, losses.ViewsLoss) and loss.has_labels


def split(inputs: Sequence[Any], loss: Any) -> tuple[tuple, Any]:
    """Returns the embeddings, or their shapes or masks, and that of the labels, or `None`."""
    inputs = tuple(inputs)
    return (inputs[:-1], inputs[-1]) if has_labels(loss) else (inputs, None)


def one_or_all(embeddings: tuple) -> Any:
    """Returns the embeddings, without a tuple if there is only one."""
    return embeddings[0] if len(embeddings) == 1 else embeddings


def validate_shapes(shapes: Any, loss: Any, metrics: Sequence[Any], name: str) -> None:
    """Raises `ValueError` if the loss or a metric cannot be computed from inputs of these shapes.

    Args:
        shapes: The shapes of the inputs.
        loss: A `keras.losses.Loss`.
        metrics: Metrics of `keras_jointloss.metrics`.
        name: The name of the layer, for the message.
    """
    is_views_loss = isinstance(loss, losses.ViewsLoss)
    least, most = (loss.min_views, loss.max_views) if is_views_loss else (2, 2)
    are_several = isinstance(shapes, list | tuple) and all(
        isinstance(shape, list | tuple) for shape in shapes
    )
    if not are_several or not least <= len(shapes) - has_labels(loss) <= most:
        views = [*"abc"[:least], *(["..."] if most > least else [])]
        expected = ", ".join([*views, "labels"] if has_labels(loss) else views)
        raise ValueError(
            f"{name!r} expects ({expected}), since {type(loss).__name__} has "
            f"{'labels' if has_labels(loss) else 'no labels'}. Received: input_shape={shapes}"
        )
    embeddings, labels = split(shapes, loss)
    sizes = {shape[0] for shape in embeddings} - {None}
    if (
        any(len(shape) != 2 for shape in embeddings)
        or len(sizes) > 1
        or len({shape[1] for shape in embeddings}) > 1
    ):
        raise ValueError(
            f"{name!r} expects embeddings of the same shape (batch, dim)"
            f"{'' if has_labels(loss) else ' and no labels'}. "
            f"Received: shapes {', '.join(str(tuple(shape)) for shape in embeddings)}"
        )
    if labels is not None:
        loss.validate_labels(tuple(labels), next(iter(sizes), None))
    for metric in metrics:
        if metric.views is not None and len(embeddings) < metric.views:
            metric.validate_views((None, len(embeddings), embeddings[0][1]))


def validated(inputs: Sequence[Any], sample_weight: Any, loss: Any, name: str) -> tuple[tuple, Any]:
    """Returns the embeddings, and the labels or `None`.

    Args:
        inputs: The inputs of a call, whose shapes `validate_shapes` has seen.
        sample_weight: The sample weights, or `None`.
        loss: A `keras.losses.Loss`.
        name: The name of the layer, for the message.

    Raises:
        ValueError: If the labels are missing, with the second embedding in their place, or if there
            is not one sample weight for each item, or one for all.
    """
    embeddings, labels = split(inputs, loss)
    if (
        labels is not None
        and len(embeddings) == 1
        and len(labels.shape) == 2
        and labels.shape[1] == embeddings[0].shape[1] != 1
        and "float" in keras.backend.standardize_dtype(labels.dtype)
    ):
        raise ValueError(
            f"{name!r} expects labels after the embeddings, since {type(loss).__name__} has "
            "labels. If the last input holds rows of classes, cast it to integers. Received: a "
            f"last input of shape {tuple(labels.shape)} and a float dtype, like an embedding"
        )
    if sample_weight is not None:
        is_array = hasattr(sample_weight, "shape")
        shape = tuple(sample_weight.shape if is_array else np.shape(sample_weight))
        batch_size = embeddings[0].shape[0]
        is_vector = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
        if shape and not (is_vector and (shape[0] in (1, None, batch_size) or batch_size is None)):
            raise ValueError(
                f"{name!r} expects sample weights of shape ({batch_size or 'batch'},). "
                f"Received: sample_weight of shape {shape}"
            )
    return embeddings, labels
