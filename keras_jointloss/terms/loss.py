"""The loss of an output term: the user's loss, which also records its value in the weight."""

from typing import Any

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import reduce_values, reduced
from keras_jointloss._core.keras import masked
from keras_jointloss._core.registry import deserialized, shallow_copy
from keras_jointloss._core.types import Tensor
from keras_jointloss._core.validation import invalid, validate_name
from keras_jointloss.terms._named_errors import errors_named
from keras_jointloss.terms._probe import is_mean_over_elements, outside_of_traces
from keras_jointloss.terms.applied_weight import hand_over
from keras_jointloss.terms.by_shape import get_loss
from keras_jointloss.terms.class_weights import ClassWeights, is_one_hot
from keras_jointloss.terms.element_weights import validate_rank, weighs_elements, weighted_items
from keras_jointloss.terms.missing import targets
from keras_jointloss.terms.missing.labelled_loss import LabelledLoss
from keras_jointloss.terms.output_loss import (
    OutputLoss,
    divisor_of_sum,
    record_loss,
    unscaled,
)
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.shared_config import shared_configs


@keras.saving.register_keras_serializable(package="keras_jointloss")
class TermLoss(keras.losses.Loss):
    """A term's loss, which also records its value in the term's `LossWeight`.

    Value, gradient, reduction, mask and sample weights are those of `loss`.

    There are two additions: `class_weight`, and a `sample_weight` `(batch, ..., k)` of the elements
    of targets, if the loss is a mean over the last axis.

    Args:
        loss: A loss as Keras accepts it for an output: a name, a function or a
            `keras.losses.Loss`.
        weight: The `LossWeight` of the term.
        name: The name of the term.
        missing: The value of a target that is missing, NaN or a number; `None` if none is. See
            `keras_jointloss.terms.missing.labelled_loss.LabelledLoss`.
        class_weight: A dict of class to weight, which multiplies sample weights in training; `None`
            if classes have no weights. See `keras_jointloss.terms.class_weights.ClassWeights`.

    Raises:
        ValueError: If the loss has no reduction, although targets may be missing; if `class_weight`
            is invalid, or the loss has no values to weight.
    """

    def __init__(
        self,
        loss: Any,
        weight: LossWeight,
        name: str | None = None,
        missing: float | None = None,
        class_weight: Any = None,
    ):
        if not isinstance(weight, LossWeight):
            raise invalid("weight", "a `LossWeight`", weight)
        # Keras opens a name scope with the name of a loss, which must not contain a slash.
        super().__init__(name=(validate_name(name) or "").replace("/", "_") or None)
        self.term = name
        self.loss = loss
        self.weight = weight
        self._resolved = weight.moved(get_loss(loss))
        self._labelled: Any = None if missing is None else self._labelled_loss(missing)
        self._class_weights: Any = None
        if class_weight is not None:
            self._class_weights = ClassWeights.of(class_weight)
            if self._labelled is not None and self._labelled.ignores_zeros:
                raise invalid(
                    "class_weight",
                    "None for a loss that is one number for a batch or an item, such as "
                    "`keras.losses.Dice`",
                    class_weight,
                )
        #: Whether the loss is a mean over the last axis; `None` until it matters.
        self._is_elementwise: bool | None = None
        weight.term, weight.has_missing_targets = name, missing is not None

    def _labelled_loss(self, missing: Any) -> Any:
        loss = self._own()
        return LabelledLoss(self._unreduced(), loss.reduction, loss.dtype, missing)

    def _own(self) -> Any:
        """Returns the loss that was given; this object, if it was a function."""
        return self._resolved if isinstance(self._resolved, keras.losses.Loss) else self

    def _unreduced(self):
        """Returns the function that computes the unreduced loss."""
        loss = self._resolved
        if not isinstance(loss, keras.losses.Loss):
            return self._converted_call
        unreduced = shallow_copy(loss)
        unreduced.reduction = "none"
        return unreduced

    def _converted_call(self, y_true, y_pred):
        return self.call(*(ops.convert_to_tensor(y, dtype=self.dtype) for y in (y_true, y_pred)))

    def __call__(self, y_true, y_pred, sample_weight=None):
        value = self._recorded(y_true, y_pred, sample_weight)
        hand_over(self.weight)
        return value

    def weighted(self, y_true, y_pred, sample_weight=None) -> Tensor:
        """Returns the loss times the weight of the term, for a sum of several."""
        value = self._recorded(y_true, y_pred, sample_weight)
        return ops.cast(value, keras.config.floatx()) * self.weight.applied()

    def _recorded(self, y_true, y_pred, sample_weight):
        """Returns the loss, which the weight of the term has recorded."""

        def compute(y_pred) -> OutputLoss:
            # Not around the recording: on JAX the last term to record its loss runs the rule.
            arrays = {"y_true": y_true, "y_pred": y_pred, "sample_weight": sample_weight}
            with errors_named(self.term, self._resolved, **arrays):
                return self._computed(y_true, y_pred, sample_weight)

        return record_loss(self.weight, y_pred, compute)

    def _computed(self, y_true, y_pred, sample_weight) -> OutputLoss:
        if self._class_weights is not None:
            sample_weight = self._with_class_weights(y_true, y_pred, sample_weight)
        if self._labelled is not None:
            return self._call_with_missing(self._labelled, y_true, y_pred, sample_weight)
        values, sample_weight = self._values_to_weight(y_true, y_pred, sample_weight)
        value = self._reduced(y_true, y_pred, sample_weight, values)
        batch_size = _batch_size(y_pred)
        counts = self._counts(y_true, sample_weight)
        mean = ops.mean(value) if len(value.shape) else value
        if self._own_reduction() in ("none", None):
            return OutputLoss(value, mean, batch_size, counts)
        replicas = current_replicas()
        is_part = replicas.count > 1 and not self._is_of_all_replicas(y_pred)
        divisor = self._divisor(y_pred, sample_weight) if is_part else None
        if self._own_reduction() != "sum" and is_part:
            share = ops.cast(batch_size, value.dtype) if divisor is None else divisor
            value = replicas.own_mean(value, share)
        return OutputLoss(value, unscaled(mean), batch_size, counts, divisor=divisor)

    def _with_class_weights(self, y_true, y_pred, sample_weight):
        """Returns the sample weights times those of the classes."""
        weights = self._class_weights.times(sample_weight, y_true, y_pred, self._own().dtype)
        if weights is not sample_weight and is_one_hot(y_true, y_pred) and self._has_elements():
            raise ValueError(
                f"Expected classes as targets of {self.term!r}, which has class weights: integers, "
                "or one-hot rows with a loss of rows. Received: targets of the shape "
                f"{tuple(y_true.shape)} with a loss of each element. Pass a `sample_weight` of "
                "that shape in place of `class_weight`"
            )
        return weights

    def _has_elements(self) -> bool:
        """Returns whether the loss is a mean over the last axis."""
        if self._labelled is not None:
            return self._labelled.is_elementwise
        if self._is_elementwise is None:
            compute = self._unreduced()
            self._is_elementwise = outside_of_traces(lambda: is_mean_over_elements(compute))
        return self._is_elementwise

    def _values_to_weight(self, y_true, y_pred, sample_weight):
        """Returns the unreduced loss and its weights, where these are not as Keras knows them.

        Otherwise, `None` and the weights.
        """
        if sample_weight is None or keras.tree.is_nested(y_pred) or not self._is_usual():
            return None, sample_weight
        loss, has_weights_of_elements = self._own(), weighs_elements(sample_weight, y_pred)

        def compute(*pair):
            return loss.call(*(ops.convert_to_tensor(y, dtype=loss.dtype) for y in pair))

        if has_weights_of_elements and self._has_elements():
            return weighted_items(compute, y_true, y_pred, sample_weight)
        if not has_weights_of_elements and self._class_weights is None:
            return None, sample_weight
        values = compute(y_true, y_pred)
        validate_rank(values, sample_weight, self.term)
        return values, sample_weight

    def _is_usual(self) -> bool:
        """Returns whether Keras computes the loss by `call` and reduces it."""
        return type(self._own()).__call__ in (keras.losses.Loss.__call__, TermLoss.__call__)

    def _reduced(self, y_true, y_pred, sample_weight, values=None):
        """Returns the loss as Keras reduces it, except that replicas count one number once.

        Keras does not divide a loss that is one number for a batch, such as `Dice()`, by the number
        of replicas, as it divides the mean of any other loss. `values` is the unreduced loss, if it
        is known.
        """
        loss, reduction = self._own(), self._own_reduction()
        takes_no_turns = not current_replicas().takes_turns or reduction in ("sum", "none", None)
        if values is None and (takes_no_turns or not self._is_usual()):
            compute = super().__call__ if loss is self else loss
            return reduced(compute(y_true, y_pred, sample_weight), reduction)
        if values is None:
            pair = keras.tree.map_structure(
                lambda y: ops.convert_to_tensor(y, dtype=loss.dtype), (y_true, y_pred)
            )
            values = loss.call(*pair)
        value = reduce_values(values, y_pred, sample_weight, reduction, loss.dtype)
        if takes_no_turns:
            return value
        unreduced = reduce_values(values, y_pred, sample_weight, "none", loss.dtype)
        return value if len(unreduced.shape) else current_replicas().once(value)

    def _is_of_all_replicas(self, y_pred) -> bool:
        """Returns whether the loss that was given is that of all replicas, as one on views is."""
        ask = getattr(self._resolved, "is_of_all_replicas", None)
        return ask is not None and ask(y_pred)

    def _own_reduction(self):
        """Returns the reduction of the loss that was given."""
        return getattr(self._resolved, "reduction", self.reduction)

    def _divisor(self, y_pred, sample_weight):
        """Returns what the loss of a replica divides a sum by, up to a constant.

        `None` if this is the batch size, times a number that all replicas share.
        """
        if self._own_reduction() == "sum":
            return divisor_of_sum()
        first = keras.tree.flatten(y_pred)[0]
        ones = ops.cast(ops.ones_like(first[..., 0] if len(first.shape) > 1 else first), self.dtype)
        is_weighted = self._own_reduction() == "mean_with_sample_weight"
        weight = sample_weight if is_weighted else None
        # Otherwise sequences may have different lengths in different processes.
        is_regular = current_replicas().takes_turns and None not in ones.shape[1:]
        if is_regular and masked(ones, first, weight, self.dtype) is None:
            return None
        return reduce_values(ones, first, weight, "sum", self.dtype)

    def _counts(self, y_true, sample_weight):
        """Returns whether any item has a weight other than 0 and a label; `None` if all do."""
        counts = None
        if sample_weight is not None:
            counts = ops.not_equal(ops.convert_to_tensor(sample_weight), 0)
        if getattr(self._resolved, "unlabelled", None) is not None:
            counts = None if counts is None else ops.reshape(counts, (-1,))
            counts = self._resolved.labelled(ops.convert_to_tensor(y_true), counts)
        return None if counts is None else ops.any(counts)

    def _call_with_missing(self, labelled, y_true, y_pred, sample_weight):
        value = labelled(y_true, y_pred, sample_weight)
        counts = None
        if sample_weight is not None:
            counts = labelled.has_weight(y_true, y_pred, sample_weight)
        batch_size = _batch_size(y_pred)
        loss, divisor = unscaled(value.loss), None
        if current_replicas().count > 1:
            divisor = divisor_of_sum() if value.divisor is None else value.divisor
        numbers = loss, value.labelled, counts, batch_size, value.targets, divisor
        return OutputLoss(value.loss, *numbers)

    def call(self, y_true, y_pred):
        """Computes a loss that was given as a function."""
        pairs = keras.tree.map_structure(targets.match_ranks, y_true, y_pred)
        y_true = keras.tree.map_structure_up_to(y_true, lambda pair: pair[0], pairs)
        y_pred = keras.tree.map_structure_up_to(y_pred, lambda pair: pair[1], pairs)
        return self._resolved(y_true, y_pred)

    def get_config(self) -> dict:
        # The objects themselves: Keras then saves a weight that is used in several places once.
        config = {"loss": self.loss, "weight": self.weight, "name": self.term}
        if self._labelled is not None:
            config["missing"] = targets.serialize_missing(self._labelled.missing)
        if self._class_weights is not None:
            config["class_weight"] = self._class_weights.pairs()
        return config

    @classmethod
    def from_config(cls, config: dict) -> "TermLoss":
        loss = deserialized(config.get("loss"), "loss")
        weight = shared_configs.create(config.get("weight"))
        missing = targets.deserialize_missing(config.get("missing"))
        return cls(**{**config, "loss": loss, "weight": weight, "missing": missing})


def _batch_size(y_pred):
    first = y_pred if ops.is_tensor(y_pred) else keras.tree.flatten(y_pred)[0]
    size = first.shape[0]
    return ops.shape(first)[0] if size is None else size
