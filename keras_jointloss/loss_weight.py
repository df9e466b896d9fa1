"""The weight of one loss term, together with the running means of what the term contributed."""

import math
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._loops import running_loop
from keras_jointloss._math import float_dtype, to_numpy
from keras_jointloss._state import constant, layer_state
from keras_jointloss._validation import validate_count, validate_number

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
    is_schedule = isinstance(config, dict)
    return keras.optimizers.schedules.deserialize(config) if is_schedule else config


def validate_schedule(schedule: LearningRateSchedule, name: str = "weight") -> float:
    """Returns the value of `schedule` at step 0, or raises `ValueError` if it is no weight."""
    start = to_numpy(schedule(0))
    if start.shape != () or not np.isfinite(start) or start < 0:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected a schedule that returns a finite "
            f"scalar >= 0. Received: {name}={schedule!r}, which returns {start!r} at step 0"
        )
    return float(start)


class TermWeight:
    """What an output term's and a layer term's weight have in common.

    The owner (a metric or a layer) calls `_create_variables` once with the function that makes
    its variables. From then on training runs

    1. `record(loss, batch_size)` when the term's loss has been computed with the weight of this
       step; it passes the loss on to `observer`, if there is one, and
    2. `advance()` once a training step, which moves the weight along its schedule,

    both inside the compiled step. From the host the `keras_jointloss.clock.Clock` of the model
    calls `start_annealing`, and Keras calls `reset` at the start of each epoch, before the
    callbacks switch annealing on, and of each evaluation, which annealing thus never reaches.
    """

    #: Called with the loss, the number of items and whether any of them counts, or `None`.
    observer: Callable[[Any, Any, Any], None] | None = None
    #: The `keras_jointloss.clock.Clock` of the model whose callback moves the weight, if any.
    clock: Any = None

    def _create_variables(
        self, weight: Weight, dtype: str, add_variable: Callable[..., Any]
    ) -> None:
        self.schedule: Any = weight if isinstance(weight, LearningRateSchedule) else None
        start = validate_weight(weight) if self.schedule is None else validate_schedule(weight)
        self.initial = weight if self.schedule is not None else start
        self.annealing = False
        self._has_warned = False
        replicated = {"dtype": dtype, "aggregation": "only_first_replica"}
        self._value = add_variable("value", (), start, **replicated)
        self._step = add_variable("step", (), 0, **{**replicated, "dtype": "int32"})
        # Whether `advance` counts: part of the compiled step, unlike `annealing`.
        self._advancing = add_variable("advancing", (), False, **{**replicated, "dtype": "bool"})
        # Sums over items of 1, the loss and the weighted loss.
        self._sums = add_variable("sums", (3,), 0.0, dtype=dtype, aggregation="sum")
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

    @property
    def is_dynamic(self) -> bool:
        """Whether the weight is meant to move during training."""
        return self.schedule is not None or self.observer is not None

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
        """Records the term's raw loss (the mean over `batch_size` items) of this step.

        Args:
            loss: The mean loss.
            batch_size: Over how many items.
            counts: Whether any of them has a weight other than 0; `None` if it is known.
        """
        dtype = self._sums.dtype
        detached = ops.stop_gradient(ops.cast(loss, dtype))
        one = ops.ones((), dtype=dtype)
        self._sums.assign_add(
            ops.cast(batch_size, dtype) * ops.stack([one, detached, detached * self.tensor()])
        )
        if self.observer is not None:
            self.observer(loss, batch_size, counts)

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
        """Detaches the weight from its weighting."""
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
        """Resets the means and stops annealing; keeps the weight and the step."""
        self._sums.assign(np.zeros(3))
        if self.annealing and not (self.clock is not None and self.clock.outlasts_reset()):
            self.stop_annealing()

    def stop_annealing(self) -> None:
        """Keeps `advance` from moving the weight."""
        self.annealing = False
        if self.schedule is not None:
            self._advancing.assign(False)

    def warn_if_it_stands_still(self) -> None:
        """Warns if `fit` has trained an epoch without moving a weight that is meant to move.

        Called where Keras reads its metrics; what it reads at the end of an epoch of `fit`, it
        reads outside of the steps and loops within.
        """
        is_driven = self.clock is not None and self.clock.driver is not None
        if not (self._has_warned or is_driven) and self.is_dynamic and running_loop() == "fit":
            self._has_warned = True
            warnings.warn(
                "The weights of a joint loss that follow a schedule or a weighting do not move: "
                "no `JointLossCallback` takes part in `fit`. Pass "
                "`callbacks=[keras_jointloss.callbacks.JointLossCallback()]`.",
                stacklevel=2,
            )

    def read(self) -> dict[str, float]:
        """Returns the values to log.

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
        """Sets the weight; under a weighting, the value that the adapted weight is multiplied by.

        A constant weight keeps the value, through saving and loading as well. A scheduled weight
        keeps it until annealing goes on.

        Args:
            value: A finite number, 0 or more.

        Raises:
            ValueError: If `value` is not such a number.
        """
        self._value.assign(validate_number(value, "value", minimum=0))

    def save(self, store: Any) -> None:
        """Puts into the store of a weights file what training has changed."""
        store["value"], store["step"] = to_numpy(self._value), to_numpy(self._step)
        store["unassigned"] = np.array(self._unassigned(self.step))
        if self._factor is not None:
            store["factor"] = to_numpy(self._factor)

    def load(self, store: Any) -> None:
        """Takes over what `save` has put into the store of a weights file.

        A schedule goes on at the step of the file. A weight that is compiled with another number or
        schedule than that of the file keeps to its own.
        """
        if "value" not in store.keys():  # noqa: SIM118 (a store is no dict)
            return
        step = int(np.array(store["step"]))
        own, other = self._unassigned(step), float(np.array(store["unassigned"]))
        if self.schedule is not None:
            self._step.assign(step)
            self._value.assign(own)
        if math.isclose(own, other, rel_tol=1e-5, abs_tol=1e-7):
            self.assign(float(np.array(store["value"])))
        if self._factor is not None and "factor" in store.keys():  # noqa: SIM118
            self.scale(float(np.array(store["factor"])))

    def _unassigned(self, step: int) -> float:
        """Returns what the weight is at a step unless it is assigned or adapted."""
        if self.schedule is None:
            return self.initial
        return float(to_numpy(self._scheduled(ops.convert_to_tensor(step, dtype="int32"))))

    def __float__(self) -> float:
        return float(to_numpy(self.tensor()))


class _Sharing(threading.local):
    """The weights that configs have brought back and that a second config stands for, too."""

    def __init__(self):
        self.weights: dict[str, weakref.ref] = {}


_sharing = _Sharing()


def deserialize_term_weight(config: Any) -> "LossWeight":
    """Returns the weight of a term from its config, and lets its copy in the metrics be the same.

    Within a model file Keras itself knows which objects are one. Elsewhere, as in `clone_model` and
    `compile_from_config`, it deserializes first the losses and then the metrics, each by itself,
    and a weight that stands in both would come back as two.

    Raises:
        ValueError: If that is not the config of a `LossWeight`.
    """
    if isinstance(config, dict):
        _sharing.weights.pop(str((config.get("config") or {}).get("key")), None)
        weight = keras.saving.deserialize_keras_object(config)
    else:
        weight = config
    if not isinstance(weight, LossWeight):
        raise ValueError(
            "Invalid value for argument `weight`. Expected a `LossWeight`. "
            f"Received: weight={weight!r}"
        )
    if isinstance(config, dict):
        _sharing.weights[weight.key] = weakref.ref(weight)
    return weight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossWeight(TermWeight, keras.metrics.Metric):
    """The weight of an output term: a number that lives, and can move, while `fit` runs.

    The same object belongs to the term's loss, which records its value in it, and stands in
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

    def __init__(self, weight: Weight = 1.0, name: str = "weight", dtype=None):
        keras.metrics.Metric.__init__(self, name=name, dtype=dtype)
        #: Stands in the config, so that the copies of one weight in it can be told from others.
        self.key = uuid.uuid4().hex
        # Orbax and `Model.get_state_tree` tell variables apart by their paths.
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
        #: The `Weighting` whose variables come to the model with this metric, if any.
        self.weighting: Any = None
        # What has happened in the step that a thread traces or runs: replicas have one each.
        self._trace = threading.local()
        #: Whether Keras has ever multiplied the loss by the weight.
        self.is_applied = False
        #: Whether Keras has ever updated the weight as a metric.
        self.is_counted = False

    @property
    def is_dynamic(self) -> bool:
        return super().is_dynamic or self.weighting is not None

    def record(self, loss, batch_size, counts=None) -> None:
        # The observer may move the weight for the next step: the one of this step is taken before.
        _applied.weight, _applied.tensor = self, ops.cast(self.tensor(), keras.config.floatx())
        self._trace.is_recorded, self._trace.is_applied = True, False
        _sharing.weights.pop(self.key, None)  # No copy is to come any more.
        super().record(loss, batch_size, counts)

    def update_state(self, y_true=None, y_pred=None, sample_weight=None) -> None:
        """Counts a training step; the outputs do not matter.

        Raises:
            ValueError: If the loss of the step was not multiplied by the weight.
        """
        self.is_counted = True
        # An output that stands twice in a model has its metrics updated twice.
        if not getattr(self._trace, "is_recorded", False):
            return
        self._trace.is_recorded = False
        if not self._trace.is_applied:
            raise ValueError(
                "The loss of a term was not multiplied by its weight. Expected `loss_weights` as "
                "`keras_jointloss.joint_loss` returned them: `compile(**joint_loss(...))`. "
                f"Received: a model whose {self.name!r} would be logged but not used"
            )
        self.advance()
        if self.weighting is not None:
            self.weighting.update_state()

    def result(self):
        """Returns the weight now."""
        self.warn_if_it_stands_still()
        return self.tensor()

    def reset_state(self) -> None:
        """Resets the means and stops annealing; keeps the weight and the step."""
        self.reset()
        if self.weighting is not None:
            self.weighting.reset_state()

    def begin_anew(self) -> None:
        """Returns to the first step, as for a copy of a model; a constant keeps its value."""
        self._step.assign(0)
        if self.schedule is not None:
            self._value.assign(self._unassigned(0))
        if self.weighting is not None:
            self.weighting.begin_anew()
        if self._factor is not None:
            self.scale(1.0)

    def save_own_variables(self, store: Any) -> None:
        """Saves the weight, which is no part of the model, with the model's weights."""
        self.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` has saved."""
        self.load(store)

    def get_config(self) -> dict:
        config = {
            **super().get_config(),
            "weight": keras.saving.serialize_keras_object(self.initial),
            "value": float(to_numpy(self._value)),
            "step": self.step,
            "key": self.key,
        }
        if self._factor is not None:
            config["factor"] = float(to_numpy(self._factor))
        # The object itself, as several weights may lead to it.
        return config if self.weighting is None else {**config, "weighting": self.weighting}

    @classmethod
    def from_config(cls, config: dict) -> "LossWeight":
        config = dict(config)
        key = config.pop("key", None)
        reference = _sharing.weights.pop(str(key), None)
        shared = None if reference is None else reference()
        if shared is not None:
            shared.begin_anew()
            return shared
        value, step = config.pop("value", None), config.pop("step", 0)
        factor, weighting = config.pop("factor", None), config.pop("weighting", None)
        config["weight"] = deserialize_weight(config["weight"])
        instance = cls(**config)
        if key is not None:
            instance.key = key
        if value is not None:
            instance.assign(value)
        instance._step.assign(validate_count(step, "step", minimum=0))
        if factor is not None:
            instance.adapt(validate_number(factor, "factor", minimum=0))
        if isinstance(weighting, dict):
            weighting = keras.saving.deserialize_keras_object(weighting)
        if weighting is not None and not hasattr(weighting, "bind"):
            raise ValueError(
                "Invalid value for argument `weighting`. Expected a weighting of "
                f"`keras_jointloss.weighting`. Received: weighting={weighting!r}"
            )
        instance.weighting = weighting
        return instance


class _Applied(threading.local):
    """The weight of the term whose loss was computed last, in the thread."""

    weight: LossWeight | None = None
    tensor: Any = None


_applied = _Applied()

# On PyTorch Keras reads anything but a tensor or a variable of its own by way of NumPy, which waits
# for the device in every step.
_Number: Any = keras.Variable if keras.backend.backend() == "torch" else object


@keras.saving.register_keras_serializable(package="keras_jointloss")
class AppliedWeight(_Number):
    """Stands in `loss_weights` for the weight of the term whose loss Keras has just computed.

    Keras multiplies each loss by its weight right after it has computed it. This object has no
    state, so that no copy of it can fall apart from the term.
    """

    def __init__(self):
        # Not that of `keras.Variable`: there is no variable.
        pass

    @property
    def value(self):
        """The weight of the term, a scalar tensor of `keras.config.floatx()`."""
        weight, tensor = _applied.weight, _applied.tensor
        if weight is None:
            raise RuntimeError(
                "Expected the losses and `loss_weights` that `keras_jointloss.joint_loss` returned "
                "together. Received: `loss_weights` with other losses"
            )
        _applied.weight = _applied.tensor = None
        weight._trace.is_applied = weight.is_applied = True
        return tensor

    @property
    def shape(self) -> tuple:
        return ()

    @property
    def dtype(self) -> str:
        return keras.config.floatx()

    def __tf_tensor__(self, dtype=None, name=None):
        return ops.convert_to_tensor(self.value, dtype=dtype)

    def __jax_array__(self):
        return self.value

    def __repr__(self) -> str:
        return "AppliedWeight()"

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "AppliedWeight":
        return cls(**config)


class LayerWeight(TermWeight):
    """The weight of a layer term. Its variables, `state`, are the layer's.

    Args:
        weight: As in `LossWeight`.
        prefix: Goes before the names of the variables.
        readings: Other values of the layer to log: by name, functions that return a scalar tensor.
        means: Other values of which the mean is logged: by name, functions that turn the mean into
            what is logged. Their sums are reset with those of the loss.
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

        dtype = float_dtype(keras.config.floatx())
        self._create_variables(weight, dtype, add_variable)
        self.adapt()  # The variables of a layer are there before it is known who will need them.
        # For each the sums over items of the value and of 1.
        self._means = {name: add_variable(name, (2,), 0.0, dtype=dtype) for name in means}
        self._readings: dict[str, Callable[[], Any]] = {
            **readings,
            **{name: partial(self._mean, name, finish) for name, finish in means.items()},
        }
        self.tensors = {"loss": self.loss_tensor, "weight": self.tensor, **self._readings}

    @property
    def state(self) -> list:
        return [*super().state, *self._means.values()]

    def record_mean(self, name: str, total, count) -> None:
        """Records the sum of values, and how many they are."""
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
