"""Finds a loss of a family by instance, by name or by config."""

import contextlib
from typing import Any

import keras

from keras_jointloss._core.registry import find
from keras_jointloss._core.validation import invalid
from keras_jointloss.losses.proxy_loss import ProxyLoss


def get(identifier: str | dict[str, Any] | keras.losses.Loss) -> keras.losses.Loss:
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
    try:
        return find(identifier, keras.losses.Loss, "loss", "losses` or `keras.losses", others)
    except ValueError:
        _refuse_proxies(identifier)
        raise


def get_proxy_loss(identifier: str | dict[str, Any] | ProxyLoss) -> ProxyLoss:
    """Returns a loss with proxies by instance, by class name or by config.

    Raises `ValueError` if there is no such loss.
    """
    return find(identifier, ProxyLoss, "loss", "losses")


def _refuse_proxies(identifier):
    """Raises `ValueError` if this is a loss with proxies, where another is expected."""
    with contextlib.suppress(ValueError):
        identifier = get_proxy_loss(identifier)
    if isinstance(identifier, ProxyLoss):
        expected = "a loss without proxies: only `keras_jointloss.layers.ProxyTerm` has proxies"
        raise invalid("loss", expected, received=type(identifier).__name__) from None
