"""Finds a member of a family of rules by instance, by name or by config."""

import inspect
from typing import Any, TypeVar

import keras

from keras_jointloss._core.validation import invalid

Member = TypeVar("Member")


def find(identifier: Any, base: type[Member], argument: str, module: str) -> Member:
    """Returns a member of a family by instance, by name or by config.

    Args:
        identifier: An instance of `base`, the name of a registered subclass (case and underscores
            do not matter), or the serialized form of an instance.
        base: The base class of the family.
        argument: The name of the argument, for the error message.
        module: The module of the family.

    Raises:
        ValueError: If there is no such member, or it cannot be created without arguments.
    """
    if isinstance(identifier, base):
        return identifier
    if isinstance(identifier, dict):
        result = keras.saving.deserialize_keras_object(identifier)
        if isinstance(result, base):
            return result
    if isinstance(identifier, str):
        plain = identifier.replace("_", "").lower()
        for name, value in keras.saving.get_custom_objects().items():
            if not isinstance(value, type) or not issubclass(value, base):
                continue
            # The two differ for a class that another family has, too.
            names = (name.rpartition(">")[2], value.__name__)
            if plain in (name.replace("_", "").lower() for name in names):
                _validate_name(value, argument, identifier)
                return value()
    raise invalid(
        argument, f"a member of `keras_jointloss.{module}`, or the name of its class", identifier
    )


def _validate_name(member: type, argument: str, name: str) -> None:
    """Raises `ValueError` if a member has arguments without default."""
    parameters = inspect.signature(member).parameters.values()
    required = [
        f"{x.name}=..."
        for x in parameters
        if x.default is x.empty and x.kind is x.POSITIONAL_OR_KEYWORD
    ]
    if required:
        raise invalid(
            argument,
            f"an instance, `{member.__name__}({', '.join(required)})`, since the name alone does "
            "not give these arguments",
            name,
        )
