"""The memory of a contrastive term: embeddings of earlier training steps as further candidates."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss import losses
from keras_jointloss._core.batch import Batch, label_tensor
from keras_jointloss._core.math import float_dtype, to_numpy, value_range
from keras_jointloss._core.saved_state import SavedState
from keras_jointloss._core.state import layer_state
from keras_jointloss._core.validation import MAX_COUNT, invalid


class EmbeddingMemory:
    """Keeps the views and labels of the latest items, in variables of a layer.

    Args:
        size: The number of items.
        views: The number of views of each item.
        dim: The size of an embedding.
        labels: The shape of the labels, `(batch,)`, `(batch, 1)` or `(batch, classes)`, or `None`.
        prefix: Prefix of the names of the variables.
        has_probability: Whether the items have a probability to be sampled.
        guide_dim: The size of an embedding of the guide, or `None`.
    """

    def __init__(
        self,
        size: int,
        views: int,
        dim: int,
        labels: tuple | None,
        prefix: str,
        has_probability: bool = False,
        guide_dim: int | None = None,
    ):
        largest = max(dim, guide_dim or 0)
        if (numbers := size * views * largest) > MAX_COUNT:
            most = f"a memory of at most {MAX_COUNT} numbers"
            expected = f"{most}, with {views} views of size {largest} for each item"
            raise invalid("memory_size", expected, size, f", which requires {numbers}")

        def add_state(name, shape, dtype):
            return layer_state(
                f"{prefix}_memory_{name}", shape, 0, dtype, aggregation="only_first_replica"
            )

        self.size = size
        dtype = float_dtype(keras.config.floatx())
        self._state = {
            "views": add_state("views", (size, views, dim), dtype),
            "valid": add_state("valid", (size,), "bool"),
            "position": add_state("position", (), "int32"),
        }
        if has_probability:
            self._state["sampling_probability"] = add_state("sampling_probability", (size,), dtype)
        if guide_dim is not None:
            self._state["guide"] = add_state("guide", (size, views, guide_dim), dtype)
        self._has_classes = labels is not None and len(labels) == 2 and labels[1] != 1
        if self._has_classes and labels is not None:  # Rows of classes, from 0 to 1.
            self._state["labels"] = add_state("labels", (size, labels[1]), dtype)
        elif labels is not None:
            # No dtype holds every integer and every fraction, so a label is stored as the sum of
            # the two. On JAX int64 is int32 unless it is enabled.
            whole = keras.backend.standardize_dtype(label_tensor(np.zeros(0, "int64")).dtype)
            self._state["labels"] = add_state("labels", (size,), whole)
            self._state["fractions"] = add_state("fractions", (size,), dtype)

    @property
    def state(self) -> list:
        """The variables."""
        return list(self._state.values())

    def read(self, dtype: Any = None) -> losses.Memory:
        """Returns the items as further candidates, with labels of the dtype if there is one."""
        labels = None
        if dtype is not None:
            parts = [ops.copy(self._state[x]) for x in ("labels", "fractions") if x in self._state]
            labels = sum(ops.cast(part, dtype) for part in parts)
        views, valid = ops.copy(self._state["views"]), ops.copy(self._state["valid"])
        others = (
            ops.copy(self._state[x]) if x in self._state else None
            for x in ("sampling_probability", "guide")
        )
        return losses.Memory(views, labels, valid, *others)

    def put(self, batch: Batch, valid) -> None:
        """Replaces the oldest items with the items of a step."""
        views, labels = ops.stop_gradient(batch.views[-self.size :]), batch.labels
        count = ops.shape(views)[0]
        position = ops.copy(self._state["position"])
        places = (position + ops.arange(count, dtype="int32")) % self.size

        def put(name, values):
            state = self._state[name]
            values = ops.cast(values, state.dtype)
            state.assign(ops.scatter_update(ops.copy(state), places[:, None], values))

        put("views", views)
        put("valid", ops.ones_like(places) if valid is None else valid[-self.size :])
        if labels is not None:
            labels = labels[-self.size :]
            put("labels", labels)
            if not self._has_classes:
                put("fractions", self._fractions(labels))
        for name in ("sampling_probability", "guide"):
            if name in self._state:
                put(name, ops.stop_gradient(getattr(batch, name)[-self.size :]))
        self._state["position"].assign((position + count) % self.size)

    def _fractions(self, labels):
        if "float" not in keras.backend.standardize_dtype(labels.dtype):
            return ops.zeros_like(labels)
        whole = ops.cast(labels, self._state["labels"].dtype)
        return labels - ops.cast(whole, labels.dtype)

    def save(self, store: Any) -> None:
        """Saves the memory to the store of a weights file."""
        for name, variable in self._state.items():
            store[f"memory_{name}"] = to_numpy(variable)

    def load(self, state: SavedState) -> None:
        """Loads the memory that `save` has put into the store of a weights file, if any."""
        if not any(f"memory_{name}" in state for name in self._state):
            return
        valid = state.array("memory_valid", (self.size,), 0, 1)
        state.count("memory_position", maximum=self.size - 1)
        for name, variable in self._state.items():
            # Older files may have NaN in the place of an item that was excluded.
            is_checked = valid.reshape(-1, *(1,) * (len(variable.shape) - 1)) > 0
            bounds = value_range(variable.dtype)
            given = state.array(f"memory_{name}", variable.shape, *bounds, is_checked=is_checked)
            variable.assign(given)
