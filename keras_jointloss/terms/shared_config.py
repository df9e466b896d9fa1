"""Objects whose config is saved in several places."""

import threading
import weakref
from typing import Any

from keras_jointloss._core.registry import deserialized


class SharedConfigs(threading.local):
    """The objects of a thread that more than one copy of their config stands for.

    Within a model file Keras itself tracks shared objects. Elsewhere, as in `clone_model` and
    `compile_from_config`, it deserializes first the losses and then the metrics, each separately. A
    weight that is in both would become two objects. So the config has a key, and every further copy
    of it stands for the object of the first, until that is used.
    """

    def __init__(self):
        self._objects: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    def create(self, config: Any) -> Any:
        """Returns a new object from the first copy of a config with a `key`, its attribute.

        What is no config is returned as it is.
        """
        if not isinstance(config, dict):
            return config
        own = config.get("config")
        self.end(own.get("key") if isinstance(own, dict) else None)
        created = deserialized(config, "weight")
        key = getattr(created, "key", None)
        if key is not None:
            self._objects[key] = created
        return created

    def find(self, key: str | None) -> Any:
        """Returns the object that a further copy of a config stands for, or `None`."""
        return self._objects.get(key) if isinstance(key, str) else None

    def end(self, key: str | None) -> None:
        """Lets the next copy of a config stand for a new object."""
        if isinstance(key, str):
            self._objects.pop(key, None)


#: The weights of output terms.
shared_configs = SharedConfigs()
