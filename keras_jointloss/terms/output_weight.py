"""The weight of an output term: a metric, which Keras saves, shows and resets with the model."""

import contextlib
import math
import threading
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import current_replicas, trains_functionally
from keras_jointloss._core.keras_calls import is_stateless
from keras_jointloss._core.math import divide_or_0, float_dtype
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.state import constant
from keras_jointloss._core.types import Config, DType, Nested, Tensor
from keras_jointloss._core.validation import (
    invalid,
    validate_bool,
    validate_count,
    validate_name,
    validate_number,
)
from keras_jointloss.terms.shared_config import shared_configs
from keras_jointloss.terms.value import Weight, deserialize_weight
from keras_jointloss.terms.weight import TermWeight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossWeight(TermWeight, keras.metrics.Metric):
    """The weight of an output term: a number that can move while `fit` runs.

    The same object belongs to the term's loss, which records the loss in it, and to `metrics`,
    where it counts the steps and shows its value in the logs. `keras_jointloss.joint_loss` puts it
    in both places; creating one by hand is rarely needed.

    While a `keras_jointloss.callbacks.JointLossCallback` takes part in `fit`, the weight in the
    i-th training step (from 0) is `schedule(i)`, or 0 where that is negative, times the factor of a
    weighting, if there is one. Without the callback, in `evaluate` and in `predict` it never moves.

    Under a `tf.distribute` strategy create it in the strategy's scope, like any metric.

    Args:
        weight: The weight: a finite number, 0 or more, or a
            `keras.optimizers.schedules.LearningRateSchedule`, a function of the training step.
        name: Name of the metric. Keras prefixes it with the name of the output.
        dtype: The dtype of the weight, `keras.config.floatx()` by default; float32 at least.

    Raises:
        ValueError: If the weight is negative, not finite or of another type, or if the schedule
            does not return a scalar.

    Example:

    >>> weight = LossWeight(0.5)
    >>> float(weight)
    0.5
    >>> weight.assign(0.25)
    >>> float(weight)
    0.25
    """

    _constant: ClassVar = {**TermWeight._constant, "weighting": None}

    def __init__(self, weight: Weight = 1.0, name: str = "weight", dtype: DType = None):
        keras.metrics.Metric.__init__(self, name=validate_name(name), dtype=dtype)
        #: Part of the config, to distinguish the copies of one weight from other weights.
        self.key = uuid.uuid4().hex
        # Orbax and `Model.get_state_tree` distinguish variables by their paths.
        number = keras.backend.get_uid("loss_weight")

        def add_variable(name, shape, initial, dtype, aggregation):
            return self.add_variable(
                shape=shape,
                initializer=constant(initial),
                dtype=dtype,
                aggregation=aggregation,
                name=f"{name}_{number}",
            )

        self._create_variables(weight, float_dtype(self.dtype), add_variable)
        #: The `Weighting` whose variables the model tracks through this metric, if any.
        self.weighting: Any = None
        # The events of the step that a thread traces or runs. Each replica has its own thread.
        self._trace = threading.local()
        #: The name of the term, once it has a loss.
        self.term: str | None = None
        #: Whether the loss is computed from several outputs.
        self.is_across = False
        #: Whether Keras has ever multiplied the loss by the weight.
        self.is_applied = False
        #: Whether Keras has ever updated the weight as a metric.
        self.is_counted = False

    @property
    def is_dynamic(self) -> bool:
        return super().is_dynamic or self.weighting is not None

    @contextlib.contextmanager
    def constant(self, observer: Any = None) -> Iterator[None]:
        events = dict(self._trace.__dict__)
        with super().constant(observer):
            try:
                yield
            finally:
                self._trace.__dict__.clear()
                self._trace.__dict__.update(events)

    def record(
        self,
        loss: Tensor,
        items: Tensor,
        counts: Tensor | None = None,
        batch_size: Tensor | None = None,
        targets: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor:
        if divisor is not None and current_replicas().takes_turns:
            part = loss, divisor, items, counts, batch_size, targets
            self._trace.__dict__.setdefault("parts", []).append(part)
            weight = self.current()
        else:
            weight = super().record(loss, items, counts, batch_size, targets, divisor)
        self._trace.is_recorded = True
        self._trace.applied = ops.convert_to_tensor(weight, dtype=keras.config.floatx())
        shared_configs.end(self.key)  # No further copy is expected.
        return weight

    def settle(self) -> None:
        for loss, divisor, items, *others in self._trace.__dict__.pop("parts", ()):
            self._settle(loss, divisor, items, *(items if x is None else x for x in others))

    def _settle(self, *numbers) -> None:
        """Records the mean over all replicas from what this one passes to `record`."""
        loss, divisor, *counted = (ops.cast(x, self.recorded.dtype) for x in numbers)
        total = ops.where(divisor > 0, loss * divisor, 0)  # The mean of nothing may be NaN.
        replicas = current_replicas()
        sums = replicas.sum(ops.stack([total, divisor, *counted]))
        total, divisor, *counted = ops.unstack(sums)
        # All replicas count alike in a mean that each knows.
        items, counts, batch_size, targets = (replicas.once(x) for x in counted)
        super().record(divide_or_0(total, divisor), items, counts > 0, batch_size, targets)

    def applied(self) -> Tensor | None:
        """Returns the weight of the step, by which the caller multiplies the loss just computed.

        `None` if there is no such loss.
        """
        tensor = self._trace.__dict__.pop("applied", None)
        if tensor is not None and not self.is_applied:  # Keras tracks it slowly.
            self.is_applied = True
        return tensor

    def update_state(
        self, y_true: Nested = None, y_pred: Nested = None, sample_weight: Nested = None
    ) -> None:
        """Counts a training step and ignores the outputs.

        Raises:
            ValueError: If the loss of the step was not multiplied by the weight.
        """
        if not self.is_counted:
            self.is_counted = True
        # If a model contains an output twice, Keras updates its metrics twice.
        if not getattr(self._trace, "is_recorded", False):
            return
        self._trace.is_recorded = False
        if self._trace.__dict__.pop("applied", None) is not None:
            raise ValueError(
                "The loss of a term was not multiplied by its weight. Expected `loss_weights` as "
                "`keras_jointloss.joint_loss` returned them: `compile(**joint_loss(...))`. "
                f"Received: a model whose {self.name!r} would be logged but not used"
            )
        self.settle()
        self.advance()
        if self.weighting is not None:
            self.weighting.update_state()

    def result(self) -> Tensor | dict[str, Tensor]:
        """Returns the current weight, by the name to log for a loss of several outputs.

        Keras logs it as it is, without the name of the output whose metrics have the weight.
        """
        self.warn_if_it_stands_still()
        weight = self._result()
        return {f"{self.term}_weight": weight} if self.is_across else weight

    def _result(self) -> Tensor:
        if not trains_functionally():
            return self.tensor()
        if not is_stateless():  # On the host, where JAX compiles each operation.
            dtype = self.recorded.dtype
            return ops.convert_to_tensor(np.array(float(self), dtype), dtype=dtype)
        # On a GPU, XLA (jaxlib 0.11) overwrites a variable that a step returns twice unchanged: as
        # a variable and as a log. So return a result that no compiler knows to be the variable.
        return ops.where(self._mode.read() >= 0, self.tensor(), 0)

    def reset_state(self) -> None:
        """Resets the means and stops annealing; keeps the weight and the step."""
        self.reset()
        if self.weighting is not None:
            self.weighting.reset_state()

    def begin_anew(self) -> None:
        """Returns to the first step, as for a copy of a model; a constant keeps its value."""
        self.switch_on()
        self._step.assign(0)
        if self.given.moves:
            self._value.assign(self.given.number_at(0))
        if self.weighting is not None:
            self.weighting.begin_anew()
        if self._factor is not None:
            self.scale(1.0)

    def save_own_variables(self, store: Any) -> None:
        """Saves the weight of the term in a weights file of the model."""
        self.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` has saved."""
        load_or_undo(self, store, self._load)

    def _load(self, store: Any) -> None:
        self.load(SavedState(store, f"the weight of the term {self.term or self.name!r}"))

    def get_config(self) -> Config:
        config = {
            **super().get_config(),
            "weight": keras.saving.serialize_keras_object(self.given.source),
            "value": self.value if math.isfinite(self.value) else None,  # A schedule may not be.
            "step": self.step,
            "off": self.is_off,
            "key": self.key,
        }
        if (factor := self.factor) is not None:
            config["factor"] = float(factor)
        # The object itself, since several weights may refer to it.
        return config if self.weighting is None else {**config, "weighting": self.weighting}

    @classmethod
    def from_config(cls, config: Config) -> "LossWeight":
        config = dict(config)
        key = config.pop("key", None)
        shared = shared_configs.find(key)
        if shared is not None:
            shared.begin_anew()
            return shared
        value, step = config.pop("value", None), config.pop("step", 0)
        is_off = validate_bool(config.pop("off", False), "off")
        factor, weighting = config.pop("factor", None), config.pop("weighting", None)
        config["weight"] = deserialize_weight(config.get("weight"))
        instance = cls(**config)
        if key is not None and not isinstance(key, str):
            raise invalid("key", "a string", key)
        instance.key = key or instance.key
        instance._step.assign(step := validate_count(step, "step", minimum=0))
        if value is not None:
            instance.assign(value)
        elif instance.given.moves:
            instance._value.assign(instance.given.number_at(step))
        if is_off:
            instance.switch_off()
        if factor is not None:
            instance.adapt(validate_number(factor, "factor", minimum=0))
        weighting = deserialized(weighting, "weighting")
        if weighting is not None and not hasattr(weighting, "bind"):
            raise invalid("weighting", "a weighting of `keras_jointloss.weighting`", weighting)
        instance.weighting = weighting
        return instance
