"""What a contrastive term is called with: embeddings, labels and further arguments of its loss."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_jointloss import losses
from keras_jointloss._core.batch import check_numbers, validate_vector
from keras_jointloss._core.validation import invalid
from keras_jointloss.layers._means import validate_item_weights


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
    """Raises `ValueError` if the loss or a metric cannot be computed for such inputs."""
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
    are_matrices = all(len(shape) == 2 for shape in embeddings)
    sizes = {shape[0] for shape in embeddings if shape} - {None}
    dims = {shape[-1] for shape in embeddings if shape}
    if (
        not are_matrices
        or len(sizes) > 1
        or (len(dims) > 1 and not getattr(loss, "dims_may_differ", False))
    ):
        raise ValueError(
            f"{name!r} expects embeddings of the same shape (batch, dim)"
            f"{'' if has_labels(loss) else ' and no labels'}. "
            f"Received: shapes {', '.join(str(tuple(shape)) for shape in embeddings)}"
        )
    stacked = (None, len(embeddings), dims.pop() if len(dims) == 1 else max(dims))
    if is_views_loss:
        loss.validate_views(stacked)
    if labels is not None:
        loss.validate_labels(tuple(labels), next(iter(sizes), None))
    for metric in metrics:
        if metric.views is not None and len(embeddings) < metric.views:
            metric.validate_views(stacked)


def validated(inputs: Sequence[Any], sample_weight: Any, loss: Any, name: str) -> tuple[tuple, Any]:
    """Returns the embeddings, and the labels or `None`.

    Raises `ValueError` if the labels are missing, with the second embedding in their place, or if
    there is not one sample weight for each item, or one for all. `validate_shapes` has seen the
    shapes.
    """
    embeddings, labels = split(inputs, loss)
    for x in inputs:
        check_numbers(x, "inputs", repr(name))
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
    validate_item_weights(sample_weight, embeddings[0].shape[0], name)
    return embeddings, labels


def validate_call_arguments(
    loss: Any, name: str, embeddings: tuple, sampling_probability: Any, guide: Any
) -> None:
    """Raises `ValueError` if a further argument of the loss is unexpected or has a wrong shape."""
    expected = getattr(loss, "call_arguments", ())
    for argument, value in {"sampling_probability": sampling_probability, "guide": guide}.items():
        if value is not None and argument not in expected:
            raise invalid(argument, f"None, since {type(loss).__name__} does not use it", value)
    size = embeddings[0].shape[0]
    if sampling_probability is not None:
        validate_vector(np.shape(sampling_probability), size, name, "sampling probabilities")
    if guide is None:
        return
    shapes = [tuple(x.shape) for x in guide] if isinstance(guide, list | tuple) else None
    if (
        shapes is None
        or len(shapes) != len(embeddings)
        or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes)
        or len({size, *(shape[0] for shape in shapes)} - {None}) > 1
    ):
        given = f"shapes {shapes}" if shapes else f"{type(guide).__name__}"
        raise invalid(
            "guide",
            f"a tuple of {len(embeddings)} embeddings (batch, guide_dim), one for each view",
            received=f"guide of {given}",
        )
