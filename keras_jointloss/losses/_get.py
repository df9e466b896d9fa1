"""Finds a loss by instance, by name or by config."""

import contextlib

import keras

from keras_jointloss._core.registry import find
from keras_jointloss._core.types import Config


def get(identifier: str | Config | keras.losses.Loss) -> keras.losses.Loss:
    """Returns a loss by instance, by name or by config.

    Args:
        identifier: A `keras.losses.Loss`, the name of a class of `keras_jointloss.losses`, of a
            registered custom class or of a class of `keras.losses` (`"InfoNCE"`, `"info_nce"`,
            `"mean_squared_error"`: case and underscores do not matter), a short name of Keras
            (`"mse"`), or the serialized form of a loss.

    Raises:
        ValueError: If there is no such loss.

    Example:

    >>> get("info_nce").name, get("mse").name
    ('info_nce', 'mean_squared_error')
    """
    if isinstance(identifier, str):
        with contextlib.suppress(ValueError):  # "mse" is the function `mean_squared_error`.
            identifier = getattr(keras.losses.get(identifier), "__name__", identifier)
    others = vars(keras.losses).values()
    return find(identifier, keras.losses.Loss, "loss", "losses` or `keras.losses", others)
