"""Rules that follow the lengths of the terms' gradients, which a layer of the model reports."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

from keras_jointloss._core.backend import trains_functionally
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_share
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting.base import Weighting


class GradientRule(Weighting):
    """Base of the rules that follow the lengths of the terms' gradients."""

    # A function, as Keras would track the layer as part of this metric.
    _get_layer: Callable[[], Any] | None = None

    def bind_gradients(self, layers: Sequence[Any]) -> None:
        telling = [layer for layer in layers if set(self.terms) <= set(layer.terms)]
        if telling:
            self._get_layer = lambda: telling[0]
            return
        raise ValueError(
            f"{type(self).__name__} expects a layer that reports the gradients of all the terms, "
            f"{list(self.terms)}: a `GradientBalancer` or `SharedTrunk` with these `terms` and "
            "with `telemetry`. Several losses of one output share a gradient: return an output for "
            "each, `keras.layers.Identity(name=term)(head(z[term]))`. "
            f"Received: layers with the terms {[list(x.terms) for x in layers]}"
        )

    def latest_lengths(self) -> tuple[Tensor, Tensor]:
        """Returns the number of the latest record and the lengths in it: `(terms,)`.

        They are those of the weighted losses. On JAX the record is that of the previous step.
        """
        if self._get_layer is None:
            raise RuntimeError(
                f"{type(self).__name__} works only in a model with a layer that reports gradients, "
                "to which the `JointLossCallback` connects it."
            )
        layer = self._get_layer()
        number, lengths = layer.record.latest_lengths()
        chosen = [lengths[layer.terms.index(term)] for term in self.terms]
        return ops.cast(number, self.dtype), ops.cast(ops.stack(chosen), self.dtype)

    def report(self, epoch: int) -> None:
        super().report(epoch)
        if self._get_layer is not None and self._get_layer().record.is_empty:
            raise RuntimeError(
                f"{type(self).__name__} expects gradients of the terms {list(self.terms)}. "
                f"Received none in epoch {epoch}: no gradient has reached the layer "
                f"{self._get_layer().name!r}."
            )


class InverseGradientRule(GradientRule):
    """Base of the rules whose weights are inverse to a measure of the terms' gradients.

    A subclass implements `measure`. With its values `m_i`, the weights follow
    `sum_j m_j^exponent / m_i^exponent`, in a moving mean.
    """

    initial_state: ClassVar = {
        "mean": 1.0,
        "measure": 0.0,  # None yet.
        # The number of the last gradient record used.
        "number": 0.0,
        # Of the previous step, whose record JAX has.
        "last_weight": 0.0,
        "last_loss": 0.0,
    }
    nonnegative_state = frozenset(initial_state) - {"last_loss"}
    needs_applied_weights = True
    small_weight_remedy = (
        "Its gradient is that much longer than others: limit the weights with `max_weight`."
    )
    exponent = 1.0

    def __init__(self, alpha: float, **kwargs: Unpack[Options]):
        super().__init__(**kwargs)
        self.alpha = validate_share(alpha, "alpha")

    def measure(self, lengths: Tensor, losses: Tensor) -> Tensor:
        """Returns the measures of the terms; 0 for a term that cannot be measured.

        Args:
            lengths: `(terms,)`, the lengths of the gradients of the losses without weights.
            losses: `(terms,)`.

        Returns:
            `(terms,)`.
        """
        raise NotImplementedError

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        state = self.state
        number, lengths = self.latest_lengths()
        weights, of_record = self.applied_weights, losses
        if trains_functionally() and self.update_every == 1:
            weights, of_record = state["last_weight"], state["last_loss"]
        found = self.measure(ops.divide_no_nan(lengths, weights), of_record)
        is_new = (weights > 0) & (found > 0) & ops.not_equal(number, state["number"])
        measure = ops.where(is_new, found, state["measure"])
        # In units of the largest, so that no power leaves the range of the dtype.
        relative = ops.maximum(measure / ops.maximum(ops.max(measure), 1e-37), 1e-37)
        relative = ops.maximum(ops.exp(self.exponent * ops.log(relative)), 1e-30)
        total = ops.sum(ops.where(measure > 0, relative, 0))
        mean = self.alpha * state["mean"] + (1 - self.alpha) * total / relative
        self.state = {
            "mean": ops.where(is_new, mean, state["mean"]),
            "measure": measure,
            "number": number + ops.zeros_like(measure),
            "last_weight": self.applied_weights,
            "last_loss": losses,
        }
        return self.state["mean"]

    def get_config(self) -> Config:
        return {**super().get_config(), "alpha": self.alpha}
