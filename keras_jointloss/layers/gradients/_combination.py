"""The base of the layers that combine the gradients of several terms."""

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_jointloss import aggregators
from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import (
    current_replicas,
    custom_gradient,
    is_traced,
    trains_functionally,
)
from keras_jointloss._core.keras_calls import is_training
from keras_jointloss._core.math import float_dtype, to_numpy
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.state import as_state, layer_state
from keras_jointloss._core.validation import invalid, validate_bool, validate_choice
from keras_jointloss.aggregators._gramian import correlation, nonzero
from keras_jointloss.layers.gradients._loss_scale import loss_scale, probe_loss
from keras_jointloss.layers.gradients._overlapping_calls import FunctionGradient, TrainedCall
from keras_jointloss.layers.gradients._record import GradientRecord, GradientStatistics
from keras_jointloss.layers.gradients._record_gradient import tensor_of, validate_optimizer


class Copies(NamedTuple):
    """One copy of a tensor for each term, and the loss to add that determines the loss scale."""

    of_terms: list
    probe: Any


class _Forward(NamedTuple):
    """What the backward pass needs of the forward pass.

    Attributes:
        step: The number of the step, from 0.
        gradient: The gradient that JAX is taking; `None` on other backends.
        parts_of: As in `GradientCombination._copies`.
        call: The call.
    """

    step: Any
    gradient: FunctionGradient | None
    parts_of: Callable[[Any], list]
    call: TrainedCall


class GradientCombination(keras.layers.Layer):
    """Base of the layers that pass a tensor to several terms and combine their gradients.

    Args:
        terms: The names of the terms.
        aggregator: As in `GradientBalancer`.
        reduction: How to reduce the rows of the tensor: `"flatten"` or `"sum"`.
        rescale: As in `GradientBalancer`.
        telemetry: As in `GradientBalancer`.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is invalid.
    """

    #: What the layer does with several calls that one backward pass reaches.
    several_calls: ClassVar[str]

    def __init__(
        self,
        terms: Sequence[str],
        aggregator: Any = "pcgrad",
        reduction: str = "flatten",
        rescale: bool = True,
        telemetry: bool = True,
        name: str | None = None,
        **kwargs,
    ):
        # Without autocasting the layer returns its inputs unchanged.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        _keras.keep_from_recomputation(self)
        is_list = isinstance(terms, Sequence) and not isinstance(terms, str)
        if (
            not is_list
            or not terms
            or not all(isinstance(term, str) for term in terms)
            or len(set(terms)) < len(terms)
        ):
            raise invalid("terms", "a non-empty list of distinct names", terms)
        self.terms = tuple(terms)
        self.reduction = validate_choice(reduction, "reduction", ("flatten", "sum"))
        self.rescale = validate_bool(rescale, "rescale")
        self.telemetry = validate_bool(telemetry, "telemetry")
        found = aggregators.get("sum" if aggregator is None else aggregator)
        self.aggregator = found.for_terms(self.terms)
        if isinstance(aggregator, str) and not self.rescale:
            self.aggregator.rescale = False
        if "losses" in self.aggregator.inputs:
            raise ValueError(
                "Invalid value for argument `aggregator`. Expected an aggregator that does "
                "not need the losses, which are unknown in the backward pass. Received: aggregator="
                f"{type(self.aggregator).__name__} with {self.aggregator.get_config()}"
            )
        self.record: GradientRecord | None = None
        #: Over how many steps the optimizer accumulates gradients, as far as it is known.
        self.accumulated_steps = 1
        self._get_latest_call: Callable[[], TrainedCall | None] = lambda: None
        self._latest_gradient: FunctionGradient | None = None
        #: Whether a step of training has reached several calls; the record covers one of them.
        self.has_several_calls = False

    def build(self, input_shape=None):
        # Each replica has its own count: to assign a mirrored one, it would wait for the others.
        step = layer_state(f"{self.name}_step", (), 0, "int32", aggregation="only_first_replica")
        (self._step,) = as_state([step])
        if self.telemetry or self.aggregator.ema:
            dtype = float_dtype(keras.config.floatx())
            self.record = GradientRecord(len(self.terms), self.name, dtype)
            self._trained = self.record.trained
            self._record_state = as_state(self.record.state)

    def statistics(self) -> GradientStatistics | None:
        """Returns statistics of the terms' gradients, averaged over the steps of an epoch.

        An epoch begins with `reset_statistics`, which the
        `keras_jointloss.callbacks.JointLossCallback` calls.

        Returns:
            `norms` and `coefficients`, `(terms,)`, in the order of the terms; for each pair of
            terms `cosines` and `conflicts`, `(terms, terms)`, the latter as a share of the steps,
            both `nan` if the two terms never had a gradient in the same step; `conflict`, the share
            of the steps with any conflict. `None` without `telemetry` or before the first step.
        """
        return self.record.read() if self.record is not None and self.telemetry else None

    def reset_statistics(self) -> None:
        """Resets the means of `statistics`."""
        if self.record is not None:
            self.record.reset()

    def accumulate(self, steps: int) -> bool:
        """Sets over how many steps the optimizer accumulates gradients, before `fit` compiles.

        On JAX the statistics cover only the last of these steps. The
        `keras_jointloss.callbacks.JointLossCallback` calls this method.

        Returns:
            Whether that changes what a training step computes.
        """
        is_new = self.accumulated_steps != steps
        self.accumulated_steps = steps
        return is_new

    def _is_trained(self, training: bool | None, tensors: Any) -> bool:
        """Returns whether a backward pass can follow the call.

        Args:
            training: The argument of the call.
            tensors: What the gradients would be taken with respect to.
        """
        if self.record is not None:
            validate_optimizer(self.record, self.name)
        found = is_training(training)
        if found is not None or not trains_functionally():
            return found is not False
        # JAX takes gradients of traced functions only. Another step than a gradient can be traced.
        if is_traced(tensors):
            warnings.warn(
                f"{self.name!r} cannot know whether this is training and counts the step. Give the "
                "`call` of the enclosing model an argument `training`.",
                stacklevel=2,
            )
        return is_traced(tensors)

    def _copies(self, x, parts_of: Callable[[Any], list] = lambda x: [x]) -> Copies:
        """Returns one copy of `x` for each term; the gradients of the copies are combined.

        Args:
            x: A tensor.
            parts_of: Splits it, or a stack of such tensors, into those that have a batch axis.
        """
        count, record = len(self.terms), self.record
        if record is not None and self.telemetry:
            record.add()
        step = ops.copy(self._step.state)
        if trains_functionally():
            # There only gradients leave the backward pass.
            self._step.state.assign(step + 1)
        gradient = None
        if trains_functionally():
            gradient = FunctionGradient(None if record is None else record.latest.value)
        call = TrainedCall(self._get_latest_call())
        self._get_latest_call = weakref.ref(call)
        forward = _Forward(step, gradient, parts_of, call)
        # PyTorch keeps the closure alive, in a cycle with the losses.
        backward = weakref.WeakMethod(self._backward)

        def compute(x, *state):
            def gradient(upstream):
                run = backward()
                if run is None:
                    raise RuntimeError("The layer was deleted before the backward pass.")
                combined, latest = run(upstream, state, forward)
                return (combined, latest) if state else combined

            return ops.stack([x] * count + [ops.zeros_like(x)]), gradient

        state = [] if record is None else [tensor_of(record)]
        *copies, probe = ops.unstack(custom_gradient(compute, x, *state), count + 1)
        # Keras sums the losses of a model, and some backends can only sum losses of one dtype.
        return Copies(copies, ops.cast(probe_loss(probe), keras.config.floatx()))

    def _backward(self, upstream, state, forward):
        """Returns the combined gradient, and the gradient of the variable that holds the record."""
        # JAX traces the backward pass along with the forward pass, which then cannot overlap.
        is_again = forward.gradient is not None and forward.gradient.follows(self._latest_gradient)
        self._latest_gradient = forward.gradient
        if (forward.call.reach() or is_again) and not self.has_several_calls:
            self.has_several_calls = True
            warnings.warn(f"{self.name!r} {self.several_calls}", stacklevel=2)
        before = GradientRecord.decode(state[0]) if state else None
        combined, latest = self._combined(upstream, before, forward)
        if trains_functionally():
            # The gradients of the variable add up: it holds the record of one call.
            return combined, ops.zeros_like(latest) if is_again and state else latest
        # Counted in the backward pass, so that prediction and evaluation take no steps.
        self._step.state.assign(forward.step + 1)
        if self.record is not None:
            self.record.latest.assign(latest)
        return combined, None

    def _combined(self, upstream, before, forward):
        """Combines the gradients `(terms + 1, batch, ...)`; returns the result and its record."""
        count, replicas = len(self.terms), current_replicas()
        upstream, dtype = ops.cast(upstream, float_dtype(upstream.dtype)), upstream.dtype
        rows = gradients = ops.reshape(upstream, (count + 1, -1))
        if self.reduction == "sum":
            sums = [ops.sum(part, axis=1) for part in forward.parts_of(upstream)]
            sums = [ops.reshape(x, (count + 1, -1)) for x in sums]
            rows = replicas.sum(ops.concatenate(sums, axis=1))
        rows = rows[:-1]
        is_finite = ops.all(ops.isfinite(rows), axis=1)
        # Keeps squares within the range of the dtype. Replicas would each have a different scale.
        largest = ops.max(abs(rows)) if replicas.count == 1 else ops.ones((), rows.dtype)
        scale = nonzero(largest)
        rows = rows / scale
        gramian = rows @ ops.transpose(rows)
        if self.reduction == "flatten":
            gramian = replicas.sum(gramian)
        if replicas.count > 1:
            is_finite = ops.isfinite(ops.diagonal(gramian))
        scale = scale / loss_scale(gradients[-1], replicas.count)
        coefficients = self.aggregator.solve(gramian, step=forward.step)
        if self.aggregator.degree and not self.aggregator.rescale:
            coefficients = coefficients * scale**self.aggregator.degree
        if self.aggregator.ema:
            earlier = ops.cast(before.coefficients[0], coefficients.dtype)
            smooth = self.aggregator.smooth(earlier, coefficients)
            coefficients = ops.where(ops.any(earlier != 0), smooth, coefficients)
        combined = ops.sum(coefficients[:, None] * gradients[:-1], axis=0)
        combined = ops.reshape(combined, ops.shape(upstream)[1:])
        latest = self._record_of(gramian, scale, coefficients, is_finite, forward.step, before)
        return ops.cast(combined, dtype), latest

    def _record_of(self, gramian, scale, coefficients, is_finite, step, before):
        """Returns the record of a step, or `None`."""
        if self.record is None:
            return None
        lengths, cosines = correlation(gramian)
        is_there = ops.cast(ops.diagonal(gramian) > 0, gramian.dtype)
        cosines = ops.clip(cosines, -1, 1) * (is_there[:, None] * is_there)
        return self.record.encode(
            step,
            lengths=scale * lengths * is_there,
            coefficients=coefficients,
            cosines=cosines,
            is_finite=is_finite,
            before=before,
            accumulated_steps=self.accumulated_steps,
        )

    def save_own_variables(self, store):
        # By name, since the order of the variables depends on which ones the backend trains.
        store["step"] = self._step.state
        if self.record is not None:
            store["latest"] = self.record.latest

    def load_own_variables(self, store):
        sums = None if self.record is None else to_numpy(self.record.sums)

        def restore(before):
            self._load(before)
            if self.record is not None:  # The file does not hold the means of the epoch.
                self.record.sums.assign(sums)

        load_or_undo(self, store, self._load, restore)

    def _load(self, store):
        state = SavedState(store, f"the {type(self).__name__} {self.name!r}")
        step = state.count("step")
        if self.record is not None and "latest" in state:
            self.record.load(state.array("latest", self.record.latest.shape, 0))
        self._step.state.assign(step)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "terms": list(self.terms),
            "aggregator": keras.saving.serialize_keras_object(self.aggregator),
            "reduction": self.reduction,
            "rescale": self.rescale,
            "telemetry": self.telemetry,
        }
