"""Arguments of the rules that hold a number or a schedule for each term, by the term's name."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.validation import validate_by_name, validate_number
from keras_jointloss.terms.value import Weight, deserialize_weight, validate_schedule

#: A number or a schedule by the name of the term.
ByTerm: TypeAlias = Mapping[str, Weight]
#: What helps where a loss that reaches 0 takes all the weight.
FLOOR_REMEDY = (
    "A loss near 0 takes the weight of the others: give that term a `floor`, or all terms a "
    "`min_weight`."
)


def validate_by_term(
    values: Any, argument: str, minimum: float = -math.inf, exclusive: bool = False
) -> dict[str, Any]:
    """Returns the numbers and schedules by the name of the term.

    Args:
        values: The value passed.
        argument: The name of the argument, for the error message.
        minimum: The smallest valid number.
        exclusive: Whether `minimum` itself is invalid as a number. A schedule may return it.

    Raises:
        ValueError: If `values` is not a dict of such numbers and schedules, or empty.
    """

    def validate(value, name):
        if isinstance(value, LearningRateSchedule):
            validate_schedule(value, name, minimum)
            return value
        return validate_number(value, name, minimum, exclusive)

    return validate_by_name(values, argument, validate, "a number or a schedule")


def validate_floor(floor: Any) -> float | ByTerm | None:
    """Returns the argument `floor`: a number > 0 for all terms or by the name, or `None`.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(floor, Mapping):
        return validate_by_term(floor, "floor", minimum=0, exclusive=True)
    expected = "a number > 0, a dict of such numbers by the name of the term, or None"
    return None if floor is None else validate_number(floor, "floor", 0, True, expected)


def raise_to_floor(losses, floor: Any, terms: Iterable[str], step):
    """Returns the losses, `(terms,)`, with those below the floor replaced by it.

    Args:
        losses: `(terms,)`.
        floor: What `validate_floor` returned. Where it has no value, it is
            `keras.config.epsilon()`.
        terms: The names of the terms.
        step: The number of the step, an int32 scalar tensor.
    """
    least = keras.config.epsilon()
    values = least if floor is None else floor
    return ops.maximum(losses, tensor_by_term(values, terms, least, step, losses.dtype))


def describe_default_floor(rule: Any, terms: Iterable[str]) -> str | None:
    """Returns a sentence on a loss below the floor that holds by default; `None` if there is none.

    Args:
        rule: A rule with a `floor`.
        terms: The names of the terms that take part in training.
    """
    by_name = rule.floor if isinstance(rule.floor, Mapping) else {}
    if rule.min_weight or (rule.floor is not None and not by_name):
        return None
    least = keras.config.epsilon()
    # The mean of an epoch falls below the floor long after the loss itself.
    latest = dict(zip(rule.terms, rule.runner.arrays()["loss"].tolist(), strict=True))
    for name in terms:
        loss = latest[name] - rule.minimum_loss
        if loss < least and name not in by_name:
            return (
                f"the loss of the term {name!r} is {loss:.3g} and counts as {least:g}, the least "
                "without a `floor`. Its part falls with it, and the weights of the others do not "
                "recover. Give it a `floor`: on the scale of the other losses if the term is "
                "solved, below its own size if it is not."
            )
    return None


def tensor_by_term(values: Any, terms: Iterable[str], default: float, step, dtype: str):
    """Returns the values of the terms in a training step: `(terms,)`, or a number for all.

    Args:
        values: A number for all terms, or numbers and schedules by the name of the term.
        terms: The names of the terms.
        default: The value of a term without one.
        step: The number of the step, an int32 scalar tensor.
        dtype: The dtype of the result.
    """
    if not isinstance(values, Mapping):
        return values
    found = [values.get(name, default) for name in terms]
    if not any(isinstance(value, LearningRateSchedule) for value in found):
        return ops.convert_to_tensor(np.array(found), dtype=dtype)
    numbers = [value(step) if isinstance(value, LearningRateSchedule) else value for value in found]
    return ops.stack([ops.cast(number, dtype) for number in numbers])


def serialize_by_term(values: Any) -> Any:
    """Returns the values with schedules as configs; anything but a dict unchanged."""
    if not isinstance(values, Mapping):
        return values
    return {name: keras.saving.serialize_keras_object(value) for name, value in values.items()}


def deserialize_by_term(values: Any) -> Any:
    """Returns the values that `serialize_by_term` has serialized."""
    if not isinstance(values, Mapping):
        return values
    return {name: deserialize_weight(value) for name, value in values.items()}
