"""PyTorch, which runs operation by operation."""

import contextlib
import math
from typing import Any

import keras
import torch
from keras import ops
from torch import distributed

from keras_jointloss._core.backend.replicas import ONE_DEVICE, OneDevice, Replicas, RowCounts
from keras_jointloss._core.backend.torch.numbers import FirstRow, Number, is_immediate, vector
from keras_jointloss._core.backend.torch.quick_ops import quick_ops

__all__ = [
    "FirstRow", "Number", "all_finite", "batch_shards", "checked", "current_replicas",
    "current_trace", "custom_gradient", "decided", "differentiated", "has_own_gradient", "is_chief",
    "is_immediate", "is_on_accelerator", "is_readable", "is_traced", "native_state", "predict",
    "quick_ops", "replica_values", "runs_in_python", "trains_functionally", "variable_scope",
    "vector",
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
    return current_replicas().count == 1 or distributed.get_rank() == 0


def predict(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """Returns what `model.predict` returns."""
    return model.predict(x, batch_size=batch_size, verbose=0)


def variable_scope(model: keras.Model):
    """Returns a context that does nothing."""
    return contextlib.nullcontext()


def replica_values(variable: keras.Variable) -> list:
    """Returns the value: each process has its own."""
    return [variable.value.detach().cpu().numpy()]


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


def all_finite(x: Any) -> Any:
    """Returns whether all numbers of a tensor are finite, without waiting for a device."""
    # The sum of finite numbers may overflow, and that of others is never finite.
    if is_readable(x) and math.isfinite((x.sum() if x.ndim else x).item()):
        return True
    return torch.isfinite(x).all()


def current_trace() -> Any:
    """Returns `None`: operations run immediately."""
    return None


def native_state(layer: keras.layers.Layer) -> list[str]:
    """Returns the names of the buffers of a layer."""
    return [attribute for attribute, _ in layer.named_buffers(recurse=False)]


# Gradients.


def custom_gradient(compute, *inputs):
    """Returns the tensor that `compute` returns, differentiated with the function it returns."""

    def computed(*inputs):
        result, gradient = compute(*inputs)
        # Keras passes the upstream gradient by name, after the inputs.
        return result, lambda *_, upstream: gradient(upstream)

    return ops.custom_gradient(computed)(*inputs)


class _Checked(torch.autograd.Function):
    """Returns the tensors, whose gradients pass through a function."""

    @staticmethod
    def forward(ctx: Any, check: Any, *tensors: Any) -> Any:
        ctx.check = check
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, *ctx.check(list(gradients))


def checked(compute, inputs, judge, check):
    """Returns what `compute` returns, whose gradients are checked in the backward pass."""
    found: list[Any] = []

    def gradient(gradients):
        return check(found[0], gradients)

    value, others = compute(list(_Checked.apply(gradient, *inputs)) if inputs else [])
    found.append(judge(others))
    return value, others, found[0]


def differentiated(x):
    """Returns a tensor to differentiate with respect to, a leaf of the graph."""
    return x.detach().requires_grad_()


def has_own_gradient(outermost) -> bool:
    """Returns False: no function leaves out the gradients of the tensors it captures."""
    return False


# The processes of `torch.distributed`.


class Processes(Replicas):
    """The processes of `torch.distributed`, each with a loss and a state of its own.

    `DistributedDataParallel` averages their gradients. While Keras builds a model, its tensors have
    no values, and no process sends them.
    """

    custom_gradient = staticmethod(custom_gradient)

    def __init__(self, count: int):
        super().__init__(count, loss_divisor=1)

    def sum(self, x):
        x = x.detach().clone()
        if x.device.type != "meta":
            distributed.all_reduce(x)
        return x

    def state_sum(self, x):
        return self.sum(x)

    def gather(self, tensors: list, own) -> tuple[list, RowCounts]:
        count = len(own)
        if own.device.type == "meta":
            return [x.detach() for x in tensors], RowCounts([count], 0, 0)
        sent = torch.tensor([count], device=own.device)
        received = [torch.zeros_like(sent) for _ in range(self.count)]
        distributed.all_gather(received, sent)
        counts = [int(count) for count in received]
        results = []
        for x in tensors:
            # All processes send the same number of rows.
            padded = x.new_zeros((max(counts), *x.shape[1:]))
            padded[:count] = x.detach()
            parts = [torch.empty_like(padded) for _ in counts]
            distributed.all_gather(parts, padded)
            results.append(torch.cat([x[:n] for x, n in zip(parts, counts, strict=True)]))
        index = distributed.get_rank()
        return results, RowCounts(counts, index, sum(counts[:index]))

    def tensor_of(self, replica: int, x, after):
        x = x.detach().clone()
        if x.device.type != "meta":
            distributed.broadcast(x, replica)
        return x

    def share_loop(self, x) -> bool:
        """Returns whether a gradient may be taken with respect to a tensor.

        One process alone may compute a loss for validation.
        """
        if not torch.is_tensor(x):
            return False
        return x.device.type == "meta" or (torch.is_grad_enabled() and x.requires_grad)


def current_replicas() -> OneDevice:
    """Returns who computes the step: the processes of `torch.distributed`, if there are several."""
    is_on = distributed.is_available() and distributed.is_initialized()
    count = distributed.get_world_size() if is_on else 1
    return Processes(count) if count > 1 else ONE_DEVICE
