"""Copies of callbacks."""

from typing import Any

import keras


class Copyable(keras.callbacks.Callback):
    """A callback of which a copy, or one from a pickle, is as it was before its first `fit`.

    What it has kept since then belongs to the model that it was used with, and not to a copy.
    """

    _as_created: dict[str, Any] | None = None

    def set_model(self, model: keras.Model) -> None:
        if self._as_created is None:
            self._as_created = dict(vars(self))
        super().set_model(model)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self) if self._as_created is None else self._as_created)
