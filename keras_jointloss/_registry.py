"""Finds a member of a family of rules by instance, by name or by config."""

from typing import Any, TypeVar

import keras

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
        ValueError: If there is no such member.
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
            is_member = isinstance(value, type) and issubclass(value, base)
            if is_member and name.rpartition(">")[2].replace("_", "").lower() == plain:
                return value()
    raise ValueError(
        f"Invalid value for argument `{argument}`. Expected a member of `keras_jointloss.{module}`,"
        f" or the name of its class. Received: {argument}={identifier!r}"
    )
