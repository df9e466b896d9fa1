"""Operations on few numbers without the checks and conversions of Keras, which take longer."""

import types
from typing import Any

import torch
from keras import ops


def quick_ops() -> Any:
    """Returns `keras.ops` with functions of PyTorch for those that rules and terms use most."""
    return _OPS


def _maximum(x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    return torch.maximum(x, y) if torch.is_tensor(y) else torch.clamp(x, min=y)


def _minimum(x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    return torch.minimum(x, y) if torch.is_tensor(y) else torch.clamp(x, max=y)


def _any(x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    return torch.any(x) if axis is None else torch.any(x, axis)


def _softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def _divide_no_nan(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(y == 0, 0, x / y)


_SAME = (
    "abs cos exp isfinite isnan log logical_and logical_not ones_like reshape sign sqrt "
    "square stack sum where zeros_like"
)
_OPS = types.SimpleNamespace(
    **{
        **vars(ops),
        **{name: getattr(torch, name) for name in _SAME.split()},
        "any": _any,
        "clip": torch.clamp,
        "concatenate": torch.cat,
        "divide_no_nan": _divide_no_nan,
        "equal": torch.eq,
        "maximum": _maximum,
        "minimum": _minimum,
        "not_equal": torch.ne,
        "softmax": _softmax,
        "stop_gradient": torch.Tensor.detach,
        "unstack": torch.unbind,
    }
)
