"""The gradients of several losses of a model on PyTorch, and its other state."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import torch

from keras_jointloss._core.keras_calls import training_outputs


def gradient_step(model: keras.Model, variables: list, collect: Callable, reduce: Callable):
    """Returns a function of a state, a batch and a scale, as `_core.backend` says."""

    def step(state: Any, batch: tuple, scale: Any) -> Any:
        parameters = [variable.value for variable in variables]
        with torch.enable_grad():
            losses = collect(lambda: training_outputs(model, *batch))
            gradients = [_gradient(loss, scale, parameters) for loss in losses]
        with torch.no_grad():
            losses = [None if loss is None else loss.detach() for loss in losses]
            return reduce(state, losses, [*zip(*gradients, strict=True)], scale)

    return step


def _gradient(loss, scale, parameters: list) -> list:
    if loss is None or not loss.requires_grad:
        return [None] * len(parameters)
    scale = torch.as_tensor(scale, dtype=loss.dtype, device=loss.device)
    # The graph stays for the next loss.
    found = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
    return list(found)


def native_values(layers: Iterable) -> Callable[[], None]:
    """Returns a function that puts buffers of layers and the random numbers back."""
    host = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    buffers = {id(x): x for layer in layers for x in layer.buffers()}
    values = {key: x.detach().clone() for key, x in buffers.items()}

    def restore():
        torch.set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        with torch.no_grad():
            for key, x in buffers.items():
                x.copy_(values[key])

    return restore
