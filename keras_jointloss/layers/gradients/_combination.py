"""The base of the layers that combine the gradients of several terms."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import keras
from keras import ops

from keras_jointloss import aggregators
from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import current_replicas, custom_gradient
from keras_jointloss._core.keras_calls import is_training
from keras_jointloss._core.math import float_dtype, to_numpy
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.state import as_state
from keras_jointloss._core.types import Config, LayerOptions, Nested
from keras_jointloss._core.validation import invalid, validate_bool, validate_choice
from keras_jointloss.aggregators import Aggregator
from keras_jointloss.aggregators._gramian import nonzero
from keras_jointloss.layers.gradients._record import new_record
from keras_jointloss.layers.gradients._statistics import GradientStatistics, StepRecord

# By which the zeros of a probe are multiplied: small, to keep a scale of 2**15 and more within the
# range of float16.
_PROBE = 2.0**-12


class Copies(NamedTuple):
    """One copy of a tensor for each term, and the loss to add that determines the loss scale."""

    of_terms: list
    probe: Any


class _Forward(NamedTuple):
    """What the backward pass needs of the forward pass."""

    step: Any  # The number of the step, from 0
    call: Any  # The call, as the record of the layer knows it
    parts_of: Callable[[Any], list]  # As in `GradientCombination._copies`


class GradientCombination(keras.layers.Layer):
    """Base of the layers that pass a tensor to several terms and combine their gradients.

    The arguments are those of `GradientBalancer`. The rows of the tensor are reduced by `"flatten"`
    or `"sum"`.
    """

    #: What the layer does with several calls that one backward pass reaches.
    several_calls: ClassVar[str]

    def __init__(
        self,
        terms: Sequence[str],
        aggregator: str | Config | Aggregator | None = "pcgrad",
        reduction: Literal["flatten", "sum"] = "flatten",
        rescale: bool = True,
        telemetry: bool = True,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
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
            name, config = type(self.aggregator).__name__, self.aggregator.get_config()
            raise invalid(
                "aggregator",
                "an aggregator that does not need the losses, which are unknown in the backward "
                "pass",
                received=f"aggregator={name} with {config}",
            )
        #: The `GradientRecord` of the built layer.
        self.record: Any = None
        #: Over how many steps the optimizer accumulates gradients, as far as it is known.
        self.accumulated_steps = 1
        #: Whether a step of training has reached several calls; the record covers one of them.
        self.has_several_calls = False
        self._is_bypassed = False

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """Lets gradients add up as without the layer, and records nothing."""
        before, self._is_bypassed = self._is_bypassed, True
        try:
            yield
        finally:
            self._is_bypassed = before

    def build(self, input_shape: Nested = None) -> None:
        has_statistics = self.telemetry or bool(self.aggregator.ema)
        state_rows = self.aggregator.state_rows(len(self.terms))
        self.record = new_record(len(self.terms), self.name, has_statistics, state_rows)
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

    def _spec_for_terms(self, spec):
        """Returns symbolic tensors like those in a structure, for each term."""

        def like(x):
            return keras.KerasTensor(x.shape, dtype=x.dtype)

        return {term: keras.tree.map_structure(like, spec) for term in self.terms}

    def _precedes_backward(self, training: bool | None, tensors: Any) -> bool:
        """Returns whether a backward pass can follow the call, to take gradients of the tensors."""
        if self._is_bypassed:
            return False
        self.record.validate_optimizer()
        return self.record.precedes_backward(is_training(training), tensors)

    def _copies(self, x, parts_of: Callable[[Any], list] = lambda x: [x]) -> Copies:
        """Returns one copy of `x` for each term; the gradients of the copies are combined.

        `parts_of` splits it, or a stack of such tensors, into those that have a batch axis.
        """
        count = len(self.terms)
        if self.telemetry:
            self.record.add()
        step, call = self.record.begin()
        forward = _Forward(step, call, parts_of)
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

        stacked = custom_gradient(compute, x, *self.record.inputs())
        *copies, zeros = ops.unstack(stacked, count + 1)
        # The backward pass knows neither by what mixed precision multiplies the loss, nor by how
        # many replicas Keras divides the losses of layers. So the layer adds a loss that is 0, a
        # small number times a tensor of zeros: the gradient of the zeros is that number times the
        # scale.
        probe = _PROBE * ops.sum(ops.cast(zeros[:1], float_dtype(zeros.dtype)))
        # Keras sums the losses of a model, and some backends can only sum losses of one dtype.
        return Copies(copies, ops.cast(probe, keras.config.floatx()))

    def _backward(self, upstream, state, forward):
        """Returns the combined gradient, and the gradient with respect to the state."""
        is_again = self.record.reach(forward.call)
        if is_again and not self.has_several_calls:
            self.has_several_calls = True
            warnings.warn(f"{self.name!r} {self.several_calls}", stacklevel=2)
        before = self.record.decode(state[0]) if state else None
        combined, latest = self._combined(upstream, before, forward)
        return combined, self.record.end(forward.step, latest, is_again)

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
        # 1 in a loop that ignores losses added by layers.
        scale = scale / nonzero(ops.sum(gradients[-1][:1]) * (replicas.count / _PROBE))
        coefficients, kept = self.aggregator.solve_next(
            gramian, None if before is None else before.state, step=forward.step, scale=scale
        )
        if self.aggregator.degree and not self.aggregator.rescale:
            coefficients = coefficients * scale**self.aggregator.degree
        if self.aggregator.ema:
            earlier = ops.cast(before.coefficients[0], coefficients.dtype)
            smooth = self.aggregator.smooth(earlier, coefficients)
            coefficients = ops.where(ops.any(earlier != 0), smooth, coefficients)
        combined = ops.sum(coefficients[:, None] * gradients[:-1], axis=0)
        combined = ops.reshape(combined, ops.shape(upstream)[1:])
        latest = None
        if before is not None:
            of_step = forward.step, gramian, scale, coefficients, kept, is_finite
            rows = StepRecord.rows_of_step(*of_step, before)
            latest = self.record.encode(rows, forward.step, before, self.accumulated_steps)
        return ops.cast(combined, dtype), latest

    def save_own_variables(self, store: Any) -> None:
        if not self.built:  # It has no state yet, as in a copy.
            return
        # By name, since the order of the variables depends on which ones the backend trains.
        store["step"] = self.record.step
        if self.record.has_statistics:
            store["latest"] = self.record.latest

    def load_own_variables(self, store: Any) -> None:
        if not self.built and not store.keys():
            return
        sums = to_numpy(self.record.sums) if self.record.has_statistics else None

        def restore(before):
            self._load(before)
            if sums is not None:  # The file does not hold the means of the epoch.
                self.record.sums.assign(sums)

        load_or_undo(self, store, self._load, restore)

    def _load(self, store):
        state = SavedState(store, f"the {type(self).__name__} {self.name!r}")
        step = state.count("step")
        if self.record.has_statistics and "latest" in state:
            self.record.load(state.array("latest", self.record.latest.shape, 0))
        self.record.step.assign(step)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "terms": list(self.terms),
            "aggregator": keras.saving.serialize_keras_object(self.aggregator),
            "reduction": self.reduction,
            "rescale": self.rescale,
            "telemetry": self.telemetry,
        }
