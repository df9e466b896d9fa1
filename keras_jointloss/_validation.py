"""Validates arguments: numbers, booleans and choices."""

import math
import numbers
from typing import Any

import numpy as np

#: The largest count: steps and sizes are computed in int32, which holds no larger number.
MAX_COUNT = 2**31 - 1


def validate_number(
    value: Any,
    name: str,
    minimum: float = -math.inf,
    exclusive: bool = False,
    expected: str | None = None,
) -> float:
    """Returns `value` as a float if it is a finite number that is large enough.

    Args:
        value: The value passed.
        name: The name of the argument, for the error message.
        minimum: The smallest valid number.
        exclusive: Whether `minimum` itself is invalid.
        expected: The expected value in words, in place of the bounds.

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


def validate_count(value: Any, name: str, minimum: int = 1) -> int:
    """Returns `value` as an int if it is a whole number from `minimum` to `MAX_COUNT`.

    Raises:
        ValueError: If `value` is anything else.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not minimum <= int(value) <= MAX_COUNT:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected a whole number >= {minimum} "
            f"and <= {MAX_COUNT}. Received: {name}={value!r}"
        )
    return int(value)


def validate_bool(value: Any, name: str) -> bool:
    """Returns `value` if it is `True` or `False`.

    Raises:
        ValueError: If `value` is anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected True or False. "
            f"Received: {name}={value!r}"
        )
    return bool(value)


def validate_choice(value: Any, name: str, choices: tuple) -> Any:
    """Returns `value` if it is one of `choices`.

    Raises:
        ValueError: If it is none of them.
    """
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected one of {choices}. "
            f"Received: {name}={value!r}"
        )
    return value


def validate_share(value: Any, name: str) -> float:
    """Returns `value` as a float if it is a number >= 0 and < 1.

    Raises:
        ValueError: If `value` is anything else.
    """
    expected = "a number >= 0 and < 1"
    value = validate_number(value, name, minimum=0, expected=expected)
    if value >= 1:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected {expected}. Received: {name}={value!r}"
        )
    return value


def validate_seed(value: Any) -> int:
    """Returns `value` as an int if it is a valid random seed.

    Raises:
        ValueError: If `value` is anything else.
    """
    return validate_count(value, "seed", minimum=0)
