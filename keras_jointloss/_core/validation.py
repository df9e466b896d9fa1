"""Validates arguments: numbers, booleans and choices.

Each `validate_*` returns the valid value, or raises `ValueError` with the name of the argument.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_jointloss._core.receiver import receiver_of_arguments

#: The largest count: steps and sizes are computed in int32, which holds no larger number.
MAX_COUNT = 2**31 - 1
#: The largest number: a larger one is infinity in float32, in which options are used.
MAX_NUMBER = float(np.finfo("float32").max)
#: The largest number of characters of a value in a message.
MAX_SHOWN = 400


def invalid(
    name: str, expected: str, value: Any = None, note: str = "", received: str | None = None
) -> ValueError:
    """Returns the error of an invalid argument.

    It says in words what was received, or else the value, which a note may follow; and by which
    class or function, if the rest does not name it.
    """
    received = f"{name}={shown(value)}{note}" if received is None else received
    message = f"Invalid value for argument `{name}`. Expected {expected}. Received: {received}"
    receiver = receiver_of_arguments()
    return ValueError(message if receiver in message else f"{message}, by {receiver}")


def shown(value: Any) -> str:
    """Returns the representation of a value, shortened if it is long.

    Python writes out no integer of any size.
    """
    try:
        text = repr(value)
    except ValueError:
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "a value"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def validate_number(
    value: Any,
    name: str,
    minimum: float = -math.inf,
    exclusive: bool = False,
    expected: str | None = None,
) -> float:
    """Returns a finite number >= `minimum`, or > `minimum` if that is `exclusive`, as a float.

    It must be finite in float32, too. What is `expected`, in words, replaces the bounds in the
    message.
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
        expected = expected or f"a finite number{bound}"
        raise invalid(name, expected, received=f"{name}={received}")
    return float(value)


def validate_count(value: Any, name: str, minimum: int = 1) -> int:
    """Returns a whole number from `minimum` to `MAX_COUNT` as an int."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not minimum <= int(value) <= MAX_COUNT:
        raise invalid(name, f"a whole number >= {minimum} and <= {MAX_COUNT}", value)
    return int(value)


def validate_bool(value: Any, name: str) -> bool:
    """Returns `True` or `False`."""
    if not isinstance(value, bool | np.bool_):
        raise invalid(name, "True or False", value)
    return bool(value)


def validate_name(value: Any) -> str | None:
    """Returns the name of an object, or `None` for the default."""
    if value is not None and not isinstance(value, str):
        raise invalid("name", "a string, or None for the default", value)
    return value


def validate_list(value: Any, name: str, expected: str) -> list:
    """Returns a list, a tuple or an array of what is `expected`, in words, as a list."""
    is_array = isinstance(value, np.ndarray) and value.ndim > 0
    if not is_array and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise invalid(name, f"a list of {expected}", value)
    return list(value)


def validate_counts(value: Any, name: str) -> tuple[int, ...]:
    """Returns a whole number >= 1, or several, as a tuple."""
    is_one = isinstance(value, str) or not isinstance(value, Iterable)
    is_one = is_one or getattr(value, "shape", None) == ()
    return tuple(validate_count(x, name) for x in ([value] if is_one else value))


def validate_choice(value: Any, name: str, choices: tuple) -> Any:
    """Returns one of the choices."""
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        raise invalid(name, f"one of {choices}", value)
    return value


def validate_share(value: Any, name: str) -> float:
    """Returns a number >= 0 and < 1 as a float."""
    expected = "a number >= 0 and < 1"
    value = validate_number(value, name, minimum=0, expected=expected)
    if value >= 1:
        raise invalid(name, expected, value)
    return value


def validate_fraction(value: Any, name: str) -> float:
    """Returns a number >= 0 and <= 1 as a float."""
    expected = "a number >= 0 and <= 1"
    value = validate_number(value, name, minimum=0, expected=expected)
    if value > 1:
        raise invalid(name, expected, value)
    return value


def validate_seed(value: Any) -> int:
    """Returns a random seed as an int."""
    return validate_count(value, "seed", minimum=0)


def validate_mapping(values: Any, argument: str, expected: str) -> dict[str, Any]:
    """Returns a dict of what is `expected`, in words, by the name of a term, one or more."""
    is_dict = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
    if not is_dict or not values:
        raise invalid(argument, f"a dict with {expected} by the name of the term", values)
    return dict(values)


def validate_by_name(
    values: Any, argument: str, validate: Callable[[Any, str], Any], expected: str = "a number"
) -> dict[str, Any]:
    """Returns a dict of values by the name of a term, one or more.

    Each is what `validate` returns for the value and its name; `expected` describes it in words.
    """
    values = validate_mapping(values, argument, expected)
    return {name: validate(value, f"{argument}[{name!r}]") for name, value in values.items()}


def validate_names(
    values: Any, argument: str, names: Iterable[str], is_complete: bool = False
) -> None:
    """Checks that an argument that may be given by the names of the terms fits them.

    Anything but a dict fits. With `is_complete`, each term must have a value.
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


def validate_distinct(objects: Iterable[Any], argument: str) -> None:
    """Checks that no two of the objects, such as metrics, have the same name."""
    names = [x.name for x in objects]
    if len(set(names)) < len(names):
        raise invalid(argument, f"{argument} with different names", received=str(names))
