"""PyTorch, which runs operation by operation."""

import contextlib
from typing import Any

import keras
import torch
from keras import ops

from keras_jointloss._core.backend.torch.chunks import for_chunks
from keras_jointloss._core.backend.torch.gradients import (
    custom_gradient,
    differentiated,
    has_own_gradient,
)
from keras_jointloss._core.backend.torch.quick_ops import quick_ops
from keras_jointloss._core.backend.torch.replicas import current_replicas

__all__ = [
    "batch_shards", "current_replicas", "current_trace", "custom_gradient",
    "decided", "differentiated", "for_chunks", "has_own_gradient", "is_chief", "is_on_accelerator",
    "is_readable", "is_traced", "native_state", "predict", "quick_ops", "runs_in_python",
    "trains_functionally", "variable_scope",
]  # fmt: skip


def trains_functionally() -> bool:
    """Returns False: a training step changes variables in place."""
    return False


def runs_in_python() -> bool:
    """Returns True: a condition on a tensor waits for the device, and loops of Python are fast."""
    return True


def batch_shards() -> int:
    """Returns 1: Keras does not split a batch over devices."""
    return 1


def is_chief(model: keras.Model) -> bool:
    """Returns whether this is the first process."""
    return current_replicas().count == 1 or torch.distributed.get_rank() == 0


def predict(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """Returns what `model.predict` returns."""
    return model.predict(x, batch_size=batch_size, verbose=0)


def variable_scope(model: keras.Model):
    """Returns a context that does nothing."""
    return contextlib.nullcontext()


def is_on_accelerator(x) -> bool:
    """Returns whether a tensor is on a GPU or TPU."""
    return x.device.type not in ("cpu", "meta")


def decided(condition):
    """Returns the condition as a bool, for which `ops.cond` does not wait for the device."""
    # No values in a symbolic call.
    return condition if condition.device.type == "meta" else bool(condition)


def is_traced(tensors: Any) -> bool:
    """Returns whether PyTorch traces; does not recognize `torch.func`, such as `vmap`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_readable(x: Any) -> bool:
    """Returns whether an array has values on the CPU."""
    return not is_traced(x) and (not ops.is_tensor(x) or x.device.type == "cpu")


def current_trace() -> Any:
    """Returns `None`: operations run immediately."""
    return None


def native_state(layer: keras.layers.Layer) -> list[str]:
    """Returns the names of the buffers of a layer."""
    return [attribute for attribute, _ in layer.named_buffers(recurse=False)]
