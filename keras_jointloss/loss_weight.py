"""The weight of one loss term, together with the account of what the term contributed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._math import to_numpy
from keras_jointloss._validation import validate_number

Weight: TypeAlias = float | LearningRateSchedule


def validate_weight(weight: Any, name: str = "weight") -> float:
    """Returns `weight` as a float, or raises `ValueError` if it cannot weigh a loss."""
    return validate_number(
        weight,
        name,
        minimum=0,
        expected="a finite number >= 0 or a `keras.optimizers.schedules.LearningRateSchedule`",
    )


def deserialize_weight(config: Any) -> Any:
    """Returns the number or the schedule that stands in a config."""
    return config if isinstance(config, float) else keras.optimizers.schedules.deserialize(config)


def validate_schedule(schedule: LearningRateSchedule, name: str = "weight") -> float:
    """Returns the value of `schedule` at step 0, or raises `ValueError` if it is no weight."""
    start = ops.convert_to_numpy(schedule(0))
    if start.shape != () or not np.isfinite(start) or start < 0:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected a schedule that returns a finite "
            f"scalar >= 0. Received: {name}={schedule!r}, which returns {start!r} at step 0"
        )
    return float(start)


def _constant(value: float) -> Callable:
    """Returns an initializer; that of Keras rounds to float32, even on the way to float64."""
    return lambda shape, dtype=None: ops.convert_to_tensor(np.full(shape, value), dtype=dtype)


def layer_state(name, shape, initial, dtype=None, aggregation="sum"):
    """Returns a variable for what a layer takes down in `call`, whatever the strategy.

    Each replica has its own, so that to assign it needs no other replica: `tf.distribute` would
    go on with another one, in the midst of the layer.
    """
    return keras.Variable(
        initializer=_constant(initial),
        shape=shape,
        dtype=dtype or keras.config.floatx(),
        trainable=False,
        autocast=False,
        aggregation=aggregation,
        synchronization="on_read",
        name=name,
    )


class TermWeight:
    """What an output term's and a layer term's weight have in common.

    The owner (a metric or a layer) calls `_create_variables` once with the function that makes
    its variables. From then on training runs

    1. `record(loss, batch_size)` when the term's loss has been computed with the weight of this
       step, which tells it to `observer`, if there is one, and
    2. `advance()` once a training step, which moves the weight along its schedule,

    both inside the compiled step, while from the host the callback calls `start_annealing`, and
    Keras calls `reset` at the start of each epoch, before the callbacks switch annealing on, and of
    each evaluation, which annealing thus never reaches.
    """

    #: Called with the loss, the number of items and whether any of them counts, or `None`.
    observer: Callable[[Any, Any, Any], None] | None = None

    def _create_variables(self, weight: Weight, add_variable: Callable[..., Any]) -> None:
        self.schedule: Any = weight if isinstance(weight, LearningRateSchedule) else None
        start = validate_weight(weight) if self.schedule is None else validate_schedule(weight)
        self.initial = weight if self.schedule is not None else start
        self.annealing = False
        replicated = {"aggregation": "only_first_replica"}
        self._value = add_variable("value", (), start, **replicated)
        self._step = add_variable("step", (), 0, dtype="int32", **replicated)
        # Whether `advance` counts: part of the compiled step, unlike `annealing`.
        self._advancing = add_variable("advancing", (), False, dtype="bool", **replicated)
        # Sums over items of 1, the loss and the weighted loss.
        self._sums = add_variable("sums", (3,), 0.0, aggregation="sum")
        self._factor: Any = None
        self._add_factor = partial(add_variable, "factor", (), **replicated)

    def adapt(self, factor: float = 1.0) -> None:
        """Lets the weight be multiplied by a factor that a weighting sets."""
        if self._factor is None:
            self._factor = self._add_factor(factor)

    @property
    def state(self) -> list:
        """The variables of the term."""
        factor = [] if self._factor is None else [self._factor]
        return [self._value, self._step, self._advancing, self._sums, *factor]

    # Within the compiled step.

    def tensor(self):
        """Returns the weight now as a scalar tensor."""
        # A copy: the variable's own tensor is overwritten in place on PyTorch, where the backward
        # pass may still need it, and its buffer is donated to the next step on JAX.
        value = ops.copy(self._value)
        return value if self._factor is None else value * ops.copy(self._factor)

    def loss_tensor(self):
        """Returns the mean loss since the last reset as a scalar tensor."""
        return ops.divide_no_nan(self._sums[1], self._sums[0])

    def record(self, loss, batch_size, counts=None) -> None:
        """Takes down the term's raw loss (the mean over `batch_size` items) of this step.

        Args:
            loss: The mean loss.
            batch_size: Over how many items.
            counts: Whether any of them has a weight other than 0; `None` if it is known.
        """
        if self.observer is not None:
            self.observer(loss, batch_size, counts)
        dtype = self._sums.dtype
        loss = ops.stop_gradient(ops.cast(loss, dtype))
        one = ops.ones((), dtype=dtype)
        self._sums.assign_add(
            ops.cast(batch_size, dtype) * ops.stack([one, loss, loss * self.tensor()])
        )

    def advance(self) -> None:
        """Counts a training step and moves the weight along its schedule, if annealing is on."""
        if self.schedule is None:
            return
        is_on = ops.copy(self._advancing)  # TensorFlow would read the variable at each use.
        step = ops.convert_to_tensor(self._step) + ops.cast(is_on, "int32")
        self._step.assign(step)
        self._value.assign(ops.where(is_on, self._scheduled(step), ops.copy(self._value)))

    def scale(self, factor) -> None:
        """Sets the factor, within the compiled step or from the host."""
        self._factor.assign(ops.cast(factor, self._factor.dtype))

    def _scheduled(self, step):
        # Rounding can put a schedule that ends at 0 a little below it.
        return ops.maximum(ops.cast(self.schedule(step), self._value.dtype), 0)

    # From the host.

    def release(self) -> None:
        """Ends what a weighting had to do with the weight."""
        self.observer = None
        if self._factor is not None:
            self.scale(1.0)

    def start_annealing(self, step: int | None = None) -> None:
        """Lets `advance` move the weight, from `step` or from where the schedule stands."""
        self.annealing = True
        if self.schedule is None:
            return
        if step is not None:
            self._step.assign(step)
        self._value.assign(self._scheduled(ops.convert_to_tensor(self._step)))
        self._advancing.assign(True)

    def reset(self) -> None:
        """Starts the means anew and stops annealing; keeps the weight and the step."""
        self._sums.assign(np.zeros(3))
        if self.annealing:
            self.stop_annealing()

    def stop_annealing(self) -> None:
        """Keeps `advance` from moving the weight."""
        self.annealing = False
        if self.schedule is not None:
            self._advancing.assign(False)

    def read(self) -> dict[str, float]:
        """Returns what there is to log.

        Returns:
            `weight`, the weight now, and, if the term was computed since the last `reset`, `loss`
            and `weighted`, the means over its items of the raw and the weighted loss.
        """
        items, loss, weighted = (float(x) for x in to_numpy(self._sums))
        means = {"loss": loss / items, "weighted": weighted / items} if items else {}
        return {**means, "weight": float(self)}

    @property
    def step(self) -> int:
        """The step at which the schedule stands."""
        return int(to_numpy(self._step))

    def assign(self, value: float) -> None:
        """Sets the weight, under a weighting that by which it multiplies the adapted weight.

        A constant weight keeps the value, through saving and loading as well. A scheduled weight
        keeps it until annealing goes on.

        Args:
            value: A finite number, 0 or more.

        Raises:
            ValueError: If `value` is not such a number.
        """
        self._value.assign(validate_number(value, "value", minimum=0))

    def __float__(self) -> float:
        return float(to_numpy(self.tensor()))


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossWeight(TermWeight, keras.metrics.Metric):
    """The weight of an output term: a number that lives, and can move, while `fit` runs.

    The same object stands in `loss_weights`, where Keras multiplies the term by it, and in
    `metrics`, where it counts the steps and shows its value in the logs.
    `keras_jointloss.joint_loss` puts it in both places; it is rarely needed by hand.

    While a `keras_jointloss.callbacks.JointLossCallback` takes part in `fit`, the weight in the
    i-th training step (from 0) is `schedule(i)`, or 0 where that is negative, times the factor of a
    weighting, if there is one. Without the callback, in `evaluate` and in `predict` it never moves.

    Under a `tf.distribute` strategy create it in the strategy's scope, as any metric.

    Args:
        weight: The weight: a finite number, 0 or more, or a
            `keras.optimizers.schedules.LearningRateSchedule`, a function of the training step.
        name: Name of the metric. Keras puts the name of the output before it.
        dtype: The dtype of the weight, `keras.config.floatx()` by default.

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

    def __init__(self, weight: Weight = 1.0, name: str = "weight", dtype=None):
        keras.metrics.Metric.__init__(self, name=name, dtype=dtype)

        def add_variable(name, shape, initial, dtype=self.dtype, aggregation="sum"):
            return self.add_variable(
                shape=shape,
                initializer=_constant(initial),
                dtype=dtype,
                aggregation=aggregation,
                name=name,
            )

        self._create_variables(weight, add_variable)
        #: The `Weighting` whose variables come to the model with this metric, if any.
        self.weighting: Any = None
        #: What to do on JAX when a loss has been multiplied by the weight; done once.
        self.after_use: Callable[[], None] | None = None

    def update_state(self, y_true=None, y_pred=None, sample_weight=None) -> None:
        """Counts a training step; what the outputs are does not matter."""
        self.advance()
        if self.weighting is not None:
            self.weighting.update_state()

    def result(self):
        """Returns the weight now."""
        return self.tensor()

    def reset_state(self) -> None:
        """Starts the means anew and stops annealing; keeps the weight and the step."""
        self.reset()
        if self.weighting is not None:
            self.weighting.reset_state()

    def get_config(self) -> dict:
        config = {
            **super().get_config(),
            "weight": keras.saving.serialize_keras_object(self.initial),
            "value": float(to_numpy(self._value)),
            "step": self.step,
        }
        if self._factor is not None:
            config["factor"] = float(to_numpy(self._factor))
        # The object itself, as several weights may lead to it.
        return config if self.weighting is None else {**config, "weighting": self.weighting}

    @classmethod
    def from_config(cls, config: dict) -> "LossWeight":
        config = dict(config)
        value, step = config.pop("value", None), config.pop("step", 0)
        factor, weighting = config.pop("factor", None), config.pop("weighting", None)
        config["weight"] = deserialize_weight(config["weight"])
        instance = cls(**config)
        if value is not None:
            instance.assign(value)
        instance._step.assign(step)
        if factor is not None:
            instance.adapt(factor)
        if weighting is not None:
            is_config = isinstance(weighting, dict)
            instance.weighting = (
                keras.saving.deserialize_keras_object(weighting) if is_config else weighting
            )
        return instance

    # What lets Keras multiply a loss by the object itself, on each backend.

    @property
    def shape(self) -> tuple:
        return ()

    def __tf_tensor__(self, dtype=None, name=None):
        value = self._value if self._factor is None else self.tensor()
        return ops.convert_to_tensor(value, dtype=dtype)

    def __jax_array__(self):
        value = self.tensor()
        after_use, self.after_use = self.after_use, None
        if after_use is not None:
            after_use()
        return value

    def __array__(self, dtype=None, copy=None):
        return np.asarray(to_numpy(self.tensor()), dtype=dtype)


class LayerWeight(TermWeight):
    """The weight of a layer term. Its variables, `state`, are the layer's.

    Args:
        weight: As in `LossWeight`.
        prefix: Goes before the names of the variables.
        readings: What else the layer has to log: by name, functions that return a scalar tensor.
        means: What else it has to log the mean of: by name, functions that make of the mean what
            is logged. Their sums begin anew with those of the loss.
    """

    def __init__(
        self,
        weight: Weight,
        prefix: str,
        readings: Mapping[str, Callable[[], Any]],
        means: Mapping[str, Callable[[Any], Any]],
    ):
        def add_variable(name, *arguments, **options):
            return layer_state(f"{prefix}_{name}", *arguments, **options)

        self._create_variables(weight, add_variable)
        self.adapt()  # The variables of a layer are there before it is known who will need them.
        # For each the sums over items of the value and of 1.
        self._means = {name: add_variable(name, (2,), 0.0) for name in means}
        self._readings: dict[str, Callable[[], Any]] = {
            **readings,
            **{name: partial(self._mean, name, finish) for name, finish in means.items()},
        }
        self.tensors = {"loss": self.loss_tensor, "weight": self.tensor, **self._readings}

    @property
    def state(self) -> list:
        return [*super().state, *self._means.values()]

    def record_mean(self, name: str, total, count) -> None:
        """Takes down the sum of values, and how many they are."""
        sums = ops.cast(ops.stack([total, count]), self._means[name].dtype)
        self._means[name].assign_add(ops.stop_gradient(sums))

    def _mean(self, name: str, finish: Callable[[Any], Any]):
        sums = ops.convert_to_tensor(self._means[name])
        return finish(ops.divide_no_nan(sums[0], sums[1]))

    def reset(self) -> None:
        super().reset()
        for sums in self._means.values():
            sums.assign(np.zeros(2))

    def read(self) -> dict[str, float]:
        others = {name: float(to_numpy(read())) for name, read in self._readings.items()}
        return {**super().read(), **others}
