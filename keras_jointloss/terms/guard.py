"""Watches a term for what is not finite in a step, and drops the term from it."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_jointloss._core.backend import all_finite, checked, current_replicas
from keras_jointloss._core.keras_losses import copy_mask
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Nested
from keras_jointloss.terms.weight import TermWeight


def guarded(
    weight: TermWeight, compute: Callable[[Nested], tuple[Any, Any, Any]], inputs: Nested
) -> tuple[Any, Any, Any]:
    """Computes a loss of a term, whose gradients with respect to the inputs are watched.

    They are those in float32 at least, before mixed precision casts them: what overflows only there
    still reaches the optimizer, which then lowers the scale of the loss.

    Args:
        weight: The weight of the term, which `is_guarded`.
        compute: A function of the inputs that has no side effects. It returns the value to
            minimize, the mean to report, and anything else.
        inputs: A structure of tensors.

    Returns:
        What `compute` returns besides the mean, and whether the loss and the weight are finite:
        see `all_finite`. If the weight `drops` the term, its gradients are 0 unless they, the loss
        and the weight are all finite.
    """
    flat = keras.tree.flatten(inputs)
    floats = [i for i, x in enumerate(flat) if _is_float(x)]

    def run(tensors):
        given = list(flat)
        for i, x in zip(floats, tensors, strict=True):
            copy_mask(flat[i], x)
            given[i] = x
        value, mean, others = compute(keras.tree.pack_sequence_as(inputs, given))
        return value, (mean, others)

    def judge(found):
        return weight.is_finite(found[0])

    def check(is_good, gradients):
        is_kept = weight.or_still(functools.reduce(_both, map(all_finite, gradients), is_good))
        replicas = current_replicas()
        if weight.drops and replicas.count > 1:
            # A backward pass may exchange values.
            is_bad = ops.logical_not(ops.convert_to_tensor(is_kept))
            is_kept = replicas.sum(ops.cast(is_bad, "float32")) <= 0
        if is_kept is True:
            return gradients
        weight.nonfinite.add_gradient(_both(is_good, ops.logical_not(is_kept)))
        if not weight.drops:
            return gradients
        return [ops.where(is_kept, x, ops.zeros_like(x)) for x in gradients]

    tensors = [ops.cast(flat[i], float_dtype(flat[i].dtype)) for i in floats]
    value, (_, others), is_good = checked(run, tensors, judge, check)
    return value, others, is_good


def _is_float(x: Any) -> bool:
    dtype = keras.backend.standardize_dtype(getattr(x, "dtype", "int32"))
    return keras.backend.is_float_dtype(dtype)


def _both(a: Any, b: Any) -> Any:
    """Returns whether two conditions hold, each `True` or a tensor."""
    if a is True or b is True:
        return b if a is True else a
    return ops.logical_and(a, b)


def kept_if(is_good: Any, x: Any) -> Any:
    """Returns a tensor that is 0 unless a step is good; `None` for `None`."""
    return None if x is None else ops.where(is_good, x, ops.zeros_like(x))
