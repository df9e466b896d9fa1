"""Finds a member of a family (losses, metrics, rules, aggregators) by instance, name or config."""

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

import keras

from keras_jointloss._core.validation import invalid

Member = TypeVar("Member")


def find(
    identifier: Any, base: type[Member], argument: str, module: str, others: Iterable[type] = ()
) -> Member:
    """Returns a member of a family by instance, by name or by config.

    The name is that of a subclass that is registered or else among `others`; case and underscores
    do not matter. The error for anything else names the argument, and the module of the family.
    """
    if isinstance(identifier, base):
        return identifier
    if isinstance(identifier, dict):
        result = deserialized(identifier, argument)
        if isinstance(result, base):
            return result
    registered = keras.saving.get_custom_objects().items()
    members = [(name.rpartition(">")[2], x) for name, x in registered if _is_subclass(x, base)]
    if isinstance(identifier, str):
        for name, member in [*members, *((x.__name__, x) for x in others if _is_subclass(x, base))]:
            # The two differ for a class that another family has, too.
            if _plain(identifier) in (_plain(name), _plain(member.__name__)):
                _validate_name(member, argument, identifier)
                return member()
    names = sorted({x.__name__ for _, x in members if not (x.__name__[0] == "_" or _required(x))})
    raise invalid(
        argument,
        f"a member of `keras_jointloss.{module}`, or the name of its class, one of {names}",
        identifier,
    )


def deserialized(value: Any, argument: str) -> Any:
    """Returns the object of a config of Keras, and anything else unchanged.

    Keras finds the class, and checks what it may load. Errors of Python from a config that does not
    fit the class become a `ValueError` that names the argument.
    """
    if not isinstance(value, dict):
        return value
    try:
        return keras.saving.deserialize_keras_object(value)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        cause = str(error).rpartition("Exception encountered: ")[2]
        received = f"a config of {value.get('class_name')!r}, and {type(error).__name__}: {cause}"
        expected = "the config of an object, as Keras saves it"
        raise invalid(argument, expected, received=received) from error


def deserialized_list(values: Any, argument: str) -> Any:
    """Returns the objects of a list of configs, and anything but a list unchanged."""
    if not isinstance(values, list | tuple):
        return values
    return [deserialized(value, f"{argument}[{i}]") for i, value in enumerate(values)]


def _is_subclass(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _required(member: type) -> list[str]:
    """Returns the arguments of a class that have no default."""
    return [
        x.name
        for x in inspect.signature(member).parameters.values()
        if x.default is x.empty and x.kind is x.POSITIONAL_OR_KEYWORD
    ]


def _validate_name(member: type, argument: str, name: str) -> None:
    """Raises `ValueError` if a member has arguments without default."""
    required = [f"{x}=..." for x in _required(member)]
    if required:
        raise invalid(
            argument,
            f"an instance, `{member.__name__}({', '.join(required)})`, since the name alone does "
            "not give these arguments",
            name,
        )


def shallow_copy(found: Member) -> Member:
    """Returns an object with the same attributes.

    `copy.copy` saves and loads an object of Keras. While another one is being loaded, Keras then
    forgets which objects of its file are one.
    """
    copied = object.__new__(type(found))
    vars(copied).update(vars(found))
    return copied
