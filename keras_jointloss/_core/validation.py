"""Validates arguments: numbers, booleans and choices."""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

#: The largest count: steps and sizes are computed in int32, which holds no larger number.
MAX_COUNT = 2**31 - 1
#: The largest number: a larger one is infinity in float32, in which options are used.
MAX_NUMBER = float(np.finfo("float32").max)


def invalid(name: str, expected: str, value: Any, note: str = "") -> ValueError:
    """Returns the error of an invalid argument.

    Args:
        name: The name of the argument.
        expected: What it should be, in words.
        value: What it is.
        note: What else to say of it.
    """
    return ValueError(
        f"Invalid value for argument `{name}`. Expected {expected}. "
        f"Received: {name}={value!r}{note}"
    )


def validate_number(
    value: Any,
    name: str,
    minimum: float = -math.inf,
    exclusive: bool = False,
    expected: str | None = None,
) -> float:
    """Returns `value` as a float if it is a number that is finite in float32 and large enough.

    Args:
        value: The value passed.
        name: The name of the argument, for the error message.
        minimum: The smallest valid number.
        exclusive: Whether `minimum` itself is invalid.
        expected: The expected value in words, in place of the bounds.

    Raises:
        ValueError: If `value` is anything else.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.shape == ()):
        value = value.item()
    number: Any = value if isinstance(value, numbers.Real) else math.nan
    if (
        isinstance(value, bool)
        or not abs(number) <= MAX_NUMBER  # Nor is NaN.
        or number < minimum
        or (exclusive and number == minimum)
    ):
        bound = "" if minimum == -math.inf else f" {'>' if exclusive else '>='} {minimum:g}"
        is_large = MAX_NUMBER < abs(number) < math.inf
        if is_large and isinstance(value, int):  # Python writes out no integer of any size.
            received = f"an integer of {value.bit_length()} bits"
        else:
            received = repr(value)
        if is_large:
            received = f"{received}, which float32 cannot hold"
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected {expected or f'a finite number{bound}'}"
            f". Received: {name}={received}"
        )
    return float(value)


def validate_count(value: Any, name: str, minimum: int = 1) -> int:
    """Returns `value` as an int if it is a whole number from `minimum` to `MAX_COUNT`.

    Raises:
        ValueError: If `value` is anything else.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not minimum <= int(value) <= MAX_COUNT:
        raise invalid(name, f"a whole number >= {minimum} and <= {MAX_COUNT}", value)
    return int(value)


def validate_bool(value: Any, name: str) -> bool:
    """Returns `value` if it is `True` or `False`.

    Raises:
        ValueError: If `value` is anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise invalid(name, "True or False", value)
    return bool(value)


def validate_list(value: Any, name: str, expected: str) -> list:
    """Returns `value` as a list if it is a list, a tuple or an array.

    Args:
        value: The value passed.
        name: The name of the argument, for the error message.
        expected: What the list contains, in words.

    Raises:
        ValueError: If `value` is anything else.
    """
    is_array = isinstance(value, np.ndarray) and value.ndim > 0
    if not is_array and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise invalid(name, f"a list of {expected}", value)
    return list(value)


def validate_choice(value: Any, name: str, choices: tuple) -> Any:
    """Returns `value` if it is one of `choices`.

    Raises:
        ValueError: If it is none of them.
    """
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        raise invalid(name, f"one of {choices}", value)
    return value


def validate_share(value: Any, name: str) -> float:
    """Returns `value` as a float if it is a number >= 0 and < 1.

    Raises:
        ValueError: If `value` is anything else.
    """
    expected = "a number >= 0 and < 1"
    value = validate_number(value, name, minimum=0, expected=expected)
    if value >= 1:
        raise invalid(name, expected, value)
    return value


def validate_seed(value: Any) -> int:
    """Returns `value` as an int if it is a valid random seed.

    Raises:
        ValueError: If `value` is anything else.
    """
    return validate_count(value, "seed", minimum=0)


def validate_by_name(
    values: Any, argument: str, validate: Callable[[Any, str], Any], expected: str = "a number"
) -> dict[str, Any]:
    """Returns a dict of valid values by the name of a term.

    Args:
        values: The value passed.
        argument: The name of the argument, for the error message.
        validate: Returns a valid value; its arguments are a value and its name for the message.
        expected: A valid value in words.

    Raises:
        ValueError: If `values` is not a dict with strings as keys, or empty, or a value is invalid.
    """
    is_dict = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
    if not is_dict or not values:
        raise invalid(argument, f"a dict with {expected} by the name of the term", values)
    return {name: validate(value, f"{argument}[{name!r}]") for name, value in values.items()}


def validate_names(
    values: Any, argument: str, names: Iterable[str], is_complete: bool = False
) -> None:
    """Checks that an argument that may be given by the names of the terms fits them.

    Args:
        values: The argument; anything but a dict fits.
        argument: The name of the argument, for the error message.
        names: The names of the terms.
        is_complete: Whether each term must have a value.

    Raises:
        ValueError: If it has an unknown name or, with `is_complete`, lacks a term.
    """
    if not isinstance(values, Mapping):
        return
    names = list(names)
    unknown = [name for name in values if name not in names]
    missing = [name for name in names if name not in values] if is_complete else []
    if not unknown and not missing:
        return
    problems = [f"unknown names {unknown}"] * bool(unknown)
    problems += [f"no value for {missing}"] * bool(missing)
    expected = f"a value for each of the terms {names}" if is_complete else f"names among {names}"
    raise invalid(argument, expected, dict(values), f", with {' and '.join(problems)}")
