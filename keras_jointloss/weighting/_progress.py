"""Stores what a rule has learned about its terms."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.math import to_numpy


class Progress:
    """The variables of a rule: a number for each name and term, and the counters.

    Args:
        rule: The metric that owns the variables.
        terms: The names of the terms.
        initial: The initial numbers by name, one for all terms or one for each.
    """

    def __init__(self, rule: keras.metrics.Metric, terms: tuple[str, ...], initial: Mapping):
        self.terms = terms
        self.names = tuple(initial)
        rows = [np.broadcast_to(np.asarray(x), (len(terms),)) for x in initial.values()]
        self._initial = np.stack(rows).astype("float64")
        self._state = _variable(rule, "state", rule.dtype, self._initial)
        self._step = _variable(rule, "step", "int32", 0)
        self._epoch = _variable(rule, "epoch", "int32", 0)
        self._advancing = _variable(rule, "advancing", "bool", False)

    # Within the compiled step.

    def begin_step(self) -> tuple[Any, Any]:
        """Counts a training step if the rule is on.

        Returns:
            The number of the step, from 0, and whether the rule is on: int32 and bool scalars.
        """
        is_on, step = ops.copy(self._advancing), ops.copy(self._step)
        self._step.assign(step + ops.cast(is_on, "int32"))
        return step, is_on

    def tensors(self) -> dict[str, Any]:
        """Returns the state: `(terms,)` by name."""
        return dict(zip(self.names, ops.unstack(ops.copy(self._state)), strict=True))

    def assign(self, state: Mapping[str, Any]) -> None:
        """Sets the state."""
        self._state.assign(ops.stack([state[name] for name in self.names]))

    @property
    def epoch(self):
        """The number of epochs that have begun, an int32 scalar tensor."""
        return ops.copy(self._epoch)

    # On the host.

    @property
    def variables(self) -> list[keras.Variable]:
        """All that the rule keeps."""
        return [self._state, self._step, self._epoch, self._advancing]

    @property
    def step(self) -> int:
        """The number of training steps in which the rule was on."""
        return int(to_numpy(self._step))

    def start(self, is_new_epoch: bool) -> None:
        """Starts to count steps."""
        if is_new_epoch:
            # Keras restarts its own count at 0 in each `fit`.
            self._epoch.assign(int(to_numpy(self._epoch)) + 1)
        self._advancing.assign(True)

    def stop(self) -> None:
        """Stops counting steps."""
        self._advancing.assign(False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the state: `(terms,)` by name."""
        return dict(zip(self.names, to_numpy(self._state), strict=True))

    def clear(self, *names: str) -> None:
        """Sets the state of these names to 0."""
        values = to_numpy(self._state).copy()
        values[[self.names.index(name) for name in names]] = 0
        self._state.assign(values)

    def forget(self) -> None:
        """Resets to the initial state."""
        self.load({"state": self._initial, "step": 0, "epoch": 0})

    def save(self) -> dict[str, np.ndarray]:
        """Returns everything that training changes."""
        variables = {"state": self._state, "step": self._step, "epoch": self._epoch}
        return {name: to_numpy(variable) for name, variable in variables.items()}

    def load(self, progress: Mapping[str, Any]) -> None:
        """Restores what `read_progress` has found to fit."""
        self._state.assign(progress["state"])
        self._step.assign(progress["step"])
        self._epoch.assign(progress["epoch"])


def _variable(rule: keras.metrics.Metric, name: str, dtype: str, initial: Any) -> Any:
    def initialize(shape, dtype=None):
        return ops.convert_to_tensor(initial, dtype=dtype)

    return rule.add_variable(
        shape=np.shape(initial),
        dtype=dtype,
        initializer=initialize,
        aggregation="only_first_replica",
        name=name,
    )
