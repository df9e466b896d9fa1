"""The loss of a term that is computed from several outputs and their targets."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_jointloss._core.keras_models import pass_all_outputs
from keras_jointloss._core.types import Config, Nested
from keras_jointloss._core.validation import invalid
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.missing import targets
from keras_jointloss.terms.missing.labelled_loss import (
    LabelledValue,
    labelled_value,
    validate_reduction,
)
from keras_jointloss.terms.output_weight import LossWeight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossAcross(TermLoss):
    """A term's loss over several outputs, which also records its value in the term's `LossWeight`.

    It is called with dicts of targets and predictions by the name of the output, as `loss` is, and
    with sample weights for all outputs, or a dict of them. Of the sample weights of an item, the
    smallest one applies: an item counts where all of its outputs count, and weights that are the
    same for all outputs apply once. If there are weights for the elements of an output, their mean
    is that of the item.

    Args:
        loss: A function, or a `keras.losses.Loss`, of two dicts by the name of the output: targets
            and predictions. It returns a number, or one for each item, `(batch,)`.
        weight: The `LossWeight` of the term.
        name: The name of the term.
        outputs: The names of the outputs.
        positions: Their positions in a list of outputs that has no names; `None` for others.
        missing: The value of a target that is missing, for each output that may have some. An item
            is labelled if no target of it is missing. `None` if none is.

    Raises:
        ValueError: If the loss has no reduction, although targets may be missing; in a call, if it
            returns neither a number nor one for each item, or if it returns a number, although
            targets may be missing.

    Example:

    >>> import numpy as np
    >>> def product(y, p):
    ...     return abs(y["a"] - p["a"]) * p["b"]
    >>> loss = LossAcross(product, LossWeight(), "both", ["a", "b"])
    >>> y = {"a": np.array([1.0, 2.0]), "b": np.array([0.0, 0.0])}
    >>> p = {"a": np.array([0.0, 0.0]), "b": np.array([0.5, 1.0])}
    >>> float(loss(y, p))
    1.25
    >>> float(loss(y, p, {"a": np.array([1.0, 0.0]), "b": np.array([1.0, 1.0])}))
    0.25
    """

    def __init__(
        self,
        loss: Any,
        weight: LossWeight,
        name: str | None = None,
        outputs: Sequence[str] = (),
        positions: Sequence[int] | None = None,
        missing: Mapping[str, float] | None = None,
    ):
        self.outputs = tuple(outputs)
        if len(self.outputs) < 2 or not all(isinstance(x, str) for x in self.outputs):
            raise invalid("outputs", "the names of two or more outputs", outputs)
        self.positions = None if positions is None else tuple(positions)
        if missing is not None and not (
            isinstance(missing, Mapping) and missing and set(missing) <= set(self.outputs)
        ):
            expected = f"the value of a missing target by output, of {list(self.outputs)}, or None"
            raise invalid("missing", expected, missing)
        super().__init__(loss, weight, name, missing)  # type: ignore[arg-type]
        weight.is_across = True

    def _labelled_loss(self, missing: Any) -> Any:
        return _LabelledAcross(self._values, self._own().reduction, self._own().dtype, missing)

    def of_outputs(self, names: list[str] | None) -> Callable[..., Any]:
        """Returns the loss as a function of all outputs, which have these names if in a list."""

        def chosen(values: Nested) -> Nested:
            if isinstance(values, Mapping):
                return {name: values[name] for name in self.outputs}
            if not isinstance(values, list | tuple):
                return values  # The sample weights of all outputs.
            positions = self.positions
            if positions is None:
                positions = tuple((names or []).index(name) for name in self.outputs)
            return {name: values[i] for name, i in zip(self.outputs, positions, strict=True)}

        def compute(y_true, y_pred, sample_weight=None):
            return self(*map(chosen, (y_true, y_pred, sample_weight)))

        return compute

    def __call__(self, y_true, y_pred, sample_weight=None):
        return super().__call__(y_true, y_pred, self._item_weights(sample_weight))

    def _item_weights(self, sample_weight: Nested) -> Any:
        """Returns the weight of each item, `(batch,)`, or of all, from those of the outputs."""
        given = [sample_weight]
        if isinstance(sample_weight, Mapping):
            given = [sample_weight[name] for name in self.outputs]
        weights = [self._mean_of_item(x) for x in given if x is not None]
        return functools.reduce(ops.minimum, weights) if weights else None

    def _mean_of_item(self, weight):
        weight = ops.convert_to_tensor(weight, dtype=self._own().dtype)
        axes = tuple(range(1, len(weight.shape)))
        return ops.mean(weight, axis=axes) if axes else weight

    def _values_to_weight(self, y_true, y_pred, sample_weight):
        return self._values(y_true, y_pred) if self._is_usual() else None, sample_weight

    def _is_usual(self) -> bool:
        return super()._is_usual() or self._own() is self

    def _values(self, y_true, y_pred):
        """Returns the unreduced loss, `()` or `(batch,)`."""
        loss = self._own()
        pair = keras.tree.map_structure(
            lambda y: ops.convert_to_tensor(y, dtype=loss.dtype), (y_true, y_pred)
        )
        values = loss.call(*pair)
        if values is not None:
            values = ops.convert_to_tensor(values)
            size, shape = keras.tree.flatten(pair[1])[0].shape[0], tuple(values.shape)
            if not shape or (len(shape) == 1 and (None in (*shape, size) or shape[0] == size)):
                return values
        raise invalid(
            "across",
            f"the loss of {self.term!r} to return a number, or one for each item, (batch,)",
            received="None" if values is None else f"values of the shape {shape} for {size} items",
        )

    def call(self, y_true, y_pred):
        """Computes a loss that was given as a function."""
        return self._resolved(y_true, y_pred)

    def _divisor(self, y_pred, sample_weight):
        # One value for each item, and no mask, which concerns the loss of one output.
        first = keras.tree.flatten(y_pred)[0]
        of_items = ops.zeros_like(first[(slice(None), *(0,) * (len(first.shape) - 1))])
        return super()._divisor(of_items, sample_weight)

    def get_config(self) -> Config:
        positions = None if self.positions is None else list(self.positions)
        own = {"outputs": list(self.outputs), "positions": positions}
        return {**super().get_config(), **own}


pass_all_outputs(LossAcross)


class _LabelledAcross:
    """Computes a loss over the items of which no target is missing."""

    def __init__(
        self,
        compute: Callable[[Any, Any], Any],
        reduction: Any,
        dtype: str,
        missing: Mapping[str, float],
    ):
        validate_reduction(reduction, missing)
        #: The value of missing targets by the name of the output.
        self.missing = {name: targets.validate_missing(x) for name, x in missing.items()}
        self._compute = compute
        self._reduction = reduction
        self.dtype = dtype

    def __call__(self, y_true, y_pred, sample_weight=None) -> LabelledValue:
        labelled = self._labelled(y_true, y_pred)
        y_true = _filled(y_true, labelled, 0.0)
        values = self._compute(y_true, _filled(y_pred, labelled, targets.PREDICTION))
        if not len(values.shape):
            raise ValueError(
                "Expected a loss that returns one value for each item, (batch,), over the outputs "
                f"{list(y_pred)}, since targets may be missing. Received: a loss that returns one "
                "number for the batch"
            )
        values = ops.where(labelled, values, 0)
        counts = ops.cast(labelled, values.dtype)
        weights = (sample_weight, self._reduction, self.dtype)
        return labelled_value(values, counts, False, values, *weights)

    def has_weight(self, y_true, y_pred, sample_weight):
        """Returns whether any labelled item has a weight other than 0."""
        weighs = ops.not_equal(ops.convert_to_tensor(sample_weight), 0)
        return ops.any(ops.logical_and(self._labelled(y_true, y_pred), weighs))

    def _labelled(self, y_true, y_pred):
        """Returns which items have all of their targets: `(batch,)`, bool."""
        found = []
        for name, missing in self.missing.items():
            if keras.tree.is_nested(y_true[name]) or keras.tree.is_nested(y_pred[name]):
                raise ValueError(
                    "Expected one tensor as target and prediction of an output with missing "
                    f"targets. Received: a nested output {name!r}"
                )
            target, prediction = (ops.convert_to_tensor(y[name]) for y in (y_true, y_pred))
            found.append(targets.with_rank(targets.items(target, prediction, missing), 1))
        return functools.reduce(ops.logical_and, found)


def _filled(values: Nested, labelled: Any, constant: float) -> Nested:
    """Returns tensors of items with a constant in place of those that are not labelled."""

    def fill(x):
        x = ops.convert_to_tensor(x)
        return ops.where(targets.expand(labelled, len(x.shape)), x, ops.cast(constant, x.dtype))

    return keras.tree.map_structure(fill, values)
