"""Checks of arguments that are numbers."""

import math
import numbers
from typing import Any

import numpy as np


def validate_number(
    value: Any,
    name: str,
    minimum: float = -math.inf,
    exclusive: bool = False,
    expected: str | None = None,
) -> float:
    """Returns `value` as a float if it is a finite number that is large enough.

    Args:
        value: What was passed.
        name: The argument, for the message.
        minimum: The least number that will do.
        exclusive: Whether `minimum` itself is too small.
        expected: What to say was expected, in place of the bounds.

    Raises:
        ValueError: If `value` is anything else.
    """
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if (
        isinstance(value, bool | np.bool_)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or value < minimum
        or (exclusive and value == minimum)
    ):
        bound = "" if minimum == -math.inf else f" {'>' if exclusive else '>='} {minimum:g}"
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected {expected or f'a finite number{bound}'}"
            f". Received: {name}={value!r}"
        )
    return float(value)
