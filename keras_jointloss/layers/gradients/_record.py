"""What a layer records of its steps, and how that leaves the backward pass."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import differentiated, is_traced, trains_functionally
from keras_jointloss._core.keras import overwrite_with_gradient
from keras_jointloss._core.keras_calls import training_optimizer
from keras_jointloss._core.keras_models import inner_optimizer
from keras_jointloss._core.math import float_dtype, to_numpy
from keras_jointloss._core.state import constant, layer_state
from keras_jointloss.layers.gradients._calls import FunctionGradient, TrainedCall
from keras_jointloss.layers.gradients._statistics import (
    GradientStatistics,
    StepRecord,
    Sums,
    number_of,
)


class GradientRecord:
    """Counts the steps of a layer, and keeps the statistics of the latest one and their sums.

    The backward pass assigns count and statistics; on JAX see `ReturnedRecord`. The next forward
    pass in training adds the statistics to the sums. Without statistics it keeps the count alone.
    """

    def __init__(self, terms: int, name: str, has_statistics: bool, state_rows: int = 0):
        self._name = name
        self.has_statistics = has_statistics
        self._get_latest_call: Callable[[], Any] = lambda: None
        # Each replica has its own count: to assign a mirrored one, it would wait for the others.
        self._options = {"aggregation": "only_first_replica"}
        self.step = layer_state(f"{name}_step", (), 0, "int32", **self._options)
        if not has_statistics:
            return
        dtype = float_dtype(keras.config.floatx())
        # The positive and the negative part of the rows of the `StepRecord`, since Keras takes the
        # maximum over the steps whose gradients an optimizer accumulates.
        rows = 3 + terms + state_rows
        self.latest = self._create_latest(f"{name}_latest", (2, rows, terms), dtype)
        shape = (6 + 3 * terms, terms)
        self.sums = layer_state(f"{name}_sums", shape, 0.0, dtype, **self._options)

    def _create_latest(self, name: str, shape: tuple, dtype: str) -> keras.Variable:
        return layer_state(name, shape, 0.0, dtype, is_watched=True, **self._options)

    @property
    def state(self) -> list:
        """The variables that are not weights."""
        return [self.step, self.latest, self.sums] if self.has_statistics else [self.step]

    @property
    def trained(self) -> list:
        """The variables that an optimizer overwrites; they must be among those that it trains."""
        return []

    # Within the compiled step.

    def validate_optimizer(self) -> None:
        """Raises `ValueError` if the optimizer of the model would fail on `trained`."""

    def precedes_backward(self, training: bool | None, tensors: Any) -> bool:
        """Returns whether a backward pass can follow the call of the layer.

        Whether the model trains may be unknown. Gradients would be taken with respect to the
        tensors.
        """
        return training is not False

    def begin(self) -> tuple[Any, Any]:
        """Begins a forward pass; returns the number of the step, from 0, and the call."""
        call = TrainedCall(self._get_latest_call())
        self._get_latest_call = weakref.ref(call)
        return ops.copy(self.step), call

    def reach(self, call: Any) -> bool:
        """Begins the backward pass of a call; returns whether it reaches another call, too."""
        return call.reach()

    def end(self, step: Any, latest: Any, is_again: bool) -> Any:
        """Ends the backward pass of a step; returns the gradient with respect to `inputs`.

        The latest statistics are what `encode` returned, or `None`; `is_again` is what `reach` did.
        """
        # Counted in the backward pass, so that prediction and evaluation take no steps.
        self.step.assign(step + 1)
        if self.has_statistics:
            self.latest.assign(latest)

    def inputs(self) -> list:
        """Returns the latest statistics in a list, as a tensor that each backward pass reaches.

        The gradients of the terms are then known also if nothing before the layer is trained.
        """
        return [differentiated(ops.copy(self.latest))] if self.has_statistics else []

    @staticmethod
    def decode(latest) -> StepRecord:
        """Returns the record that `latest` holds."""
        return StepRecord.of(latest[0] - latest[1])

    def latest_lengths(self):
        """Returns the number of the latest step, 0 if there was none, and its lengths, `(terms,)`.

        On JAX this is the previous step.
        """
        record = self.decode(ops.stop_gradient(ops.copy(self.latest)))
        return record.number[0, 0], record.lengths[0]

    def encode(self, rows, step, before: StepRecord, accumulated_steps: int):
        """Returns the rows of the `StepRecord` of a step, numbered from 0, as `latest` holds them.

        The optimizer accumulates gradients over some steps. The record `before` is the previous
        one.
        """
        return ops.relu(ops.stack([rows, -rows]))

    def add(self) -> None:
        """Adds the record of the latest step to the sums, unless they include it already."""
        record = self.decode(ops.stop_gradient(ops.copy(self.latest)))
        self.sums.assign(Sums.extended(ops.copy(self.sums), record))

    # From the host.

    @property
    def is_empty(self) -> bool:
        """Whether no step has been recorded."""
        return not to_numpy(self.latest).any()

    def totals(self) -> np.ndarray:
        """Returns the rows of the sums since the last `reset`, with the latest step."""
        rows = ops.convert_to_tensor(to_numpy(self.sums).astype("float64"))
        record = self.decode(ops.convert_to_tensor(to_numpy(self.latest).astype("float64")))
        return ops.convert_to_numpy(Sums.extended(rows, record))

    def read(self, rows: np.ndarray | None = None) -> GradientStatistics | None:
        """Returns the means over the steps since the last `reset`; `None` if there were none.

        The rows are what `totals` returns, or the difference of two of its values, for the steps
        between them.
        """
        rows = self.totals() if rows is None else rows
        return Sums.of(rows).means() if rows[:-1].any() else None

    def reset(self) -> None:
        """Resets the means."""
        if not self.has_statistics:
            return
        record = self.decode(to_numpy(self.latest))
        rows = np.zeros(self.sums.shape)
        sums = Sums.of(rows)  # Views of the rows.
        sums.latest[:] = record.number
        if np.any(record.lengths < 0):
            # The first non-finite term may be the cause of what is not finite now.
            statistics = self.read()
            sums.first_nonfinite[:] = 0 if statistics is None else statistics.nonfinite_step
        self.sums.assign(rows)

    def load(self, latest) -> None:
        """Loads a record that is encoded as in `latest`."""
        self.latest.assign(latest)
        self.reset()


class ReturnedRecord(GradientRecord):
    """The record on JAX, where only gradients leave the backward pass.

    The statistics are the "gradient" of a variable that counts as trainable in Keras and that
    optimizers overwrite with it. The forward pass counts the step.
    """

    #: The latest call whose backward pass has begun. JAX traces that along with the forward pass.
    _latest_reached: FunctionGradient | None = None

    def _create_latest(self, name, shape, dtype):
        # Created by a function, as Keras may build the model before it creates variables.
        variable = keras.Variable(
            constant(0.0), shape=shape, dtype=dtype, autocast=False, name=name
        )
        overwrite_with_gradient(variable)
        return variable

    @property
    def state(self):
        return [x for x in super().state if not any(x is latest for latest in self.trained)]

    @property
    def trained(self):
        return [self.latest] if self.has_statistics else []

    def validate_optimizer(self):
        # Keras builds a model in `fit` before it begins with the steps, where it would hide an
        # error.
        if not self.has_statistics:
            return
        optimizer = inner_optimizer(training_optimizer())
        # Keras multiplies the moving average of each variable by 0 or 1, but keeps none of a
        # variable that is overwritten with its gradient.
        frequency = getattr(optimizer, "ema_overwrite_frequency", None)
        if frequency is not None and optimizer.use_ema:
            raise ValueError(
                "Invalid value for argument `ema_overwrite_frequency` of the optimizer. Expected "
                f"None on JAX, where {self._name!r} keeps its record in a variable of which Keras "
                "has no moving average. Use `use_ema=True` alone, which overwrites the weights "
                "once, at the end of `fit`; or create the layer with `telemetry=False`, and "
                "an aggregator without `ema` and without a state. "
                f"Received: ema_overwrite_frequency={frequency}"
            )

    def precedes_backward(self, training, tensors):
        if training is not None:
            return training
        # JAX takes gradients of traced functions only. Another step than a gradient can be traced.
        if is_traced(tensors):
            warnings.warn(
                f"{self._name!r} cannot know whether this is training and counts the step. Give "
                "the `call` of the enclosing model an argument `training`.",
                stacklevel=2,
            )
        return is_traced(tensors)

    def begin(self):
        step = ops.copy(self.step)
        self.step.assign(step + 1)
        return step, FunctionGradient(self.latest.value if self.has_statistics else None)

    def reach(self, call):
        is_again, self._latest_reached = call.follows(self._latest_reached), call
        return is_again

    def encode(self, rows, step, before, accumulated_steps):
        if accumulated_steps > 1:
            # All other records are 0, so that the maximum is the record of the last step.
            number = number_of(step, before.number.dtype)
            rows = ops.where(number >= before.number[0, 0] + accumulated_steps, rows, 0)
        return super().encode(rows, step, before, accumulated_steps)

    def end(self, step, latest, is_again):
        # The gradients of the variable add up: it holds the record of one call.
        return ops.zeros_like(latest) if is_again and self.has_statistics else latest


def new_record(terms: int, name: str, has_statistics: bool, state_rows: int = 0) -> GradientRecord:
    """Returns the record of the backend; with a state of the aggregator it has statistics."""
    record = ReturnedRecord if trains_functionally() else GradientRecord
    return record(terms, name, has_statistics or state_rows > 0, state_rows)
