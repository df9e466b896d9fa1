"""Measures the losses and the gradients of the terms of a model over batches."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import (
    gradient_step,
    is_on_accelerator,
    native_values,
    trains_functionally,
)
from keras_jointloss._core.keras import flatten_layers, is_overwritten_with_gradient
from keras_jointloss._core.keras_models import output_names
from keras_jointloss._core.math import float_dtype, to_numpy
from keras_jointloss.probing.facts import same_tensors
from keras_jointloss.terms.weight import TermWeight

#: By which a loss scale of mixed precision is divided as long as gradients are not finite.
_STEP_OF_SCALE = 16.0


class Measured(NamedTuple):
    """What was measured over batches. Axes are batches, variables and terms."""

    computed: np.ndarray  # `(batches, terms)`, bool: a model may leave a term out
    losses: np.ndarray  # `(batches, terms)`, NaN where a term was not computed
    #: `(batches, variables, terms, terms)`, inner products of the gradients of a variable. A term
    #: that was not computed has a gradient of 0 here.
    products: np.ndarray
    #: `(batches, terms)`, squares of the distance of a gradient from the mean of those before it.
    deviations: np.ndarray
    #: `(batches, terms)`, inner products with the mean of the gradients before it.
    agreements: np.ndarray
    mean_squares: np.ndarray  # `(terms,)`, of the length of the mean gradient
    #: `(terms, variables)`, whether a term depends on a variable.
    reached: np.ndarray
    #: The pairs of outputs that are one tensor when the model is called.
    same_outputs: list[tuple[str, str]]


class Meter:
    """Measures the terms of a model.

    Args:
        model: A compiled model, whose terms are constant: see `TermWeight.constant`.
        terms: The weights of its terms by name, whose observer is `observer`.
    """

    def __init__(self, model: keras.Model, terms: dict[str, TermWeight]):
        self._probed, self._terms = model, terms
        #: The variables with respect to which gradients are taken.
        self.variables = [
            x for x in model.trainable_variables if not is_overwritten_with_gradient(x)
        ]
        self._dtype_of_sums = float_dtype(keras.config.floatx(), *(x.dtype for x in self.variables))
        self._collected: dict[str, Any] = {}
        self._same_outputs: list[tuple[str, str]] = []
        self._known = np.zeros((len(terms), len(self.variables)), "bool")
        on_host = not is_on_accelerator(model.trainable_variables[0].value)
        # NumPy has nothing to compile, which takes JAX longer than all batches.
        self._numpy: Any = np if on_host else ops
        reduce = _as_they_are if on_host else self._reduce
        self._step = gradient_step(model, self.variables, self._collect, reduce)

    def observer(self, name: str) -> Callable[..., None]:
        """Returns the observer of the term of a name."""

        def observe(loss, items, counts):
            self._collected[name] = loss

        return observe

    def measure(self, batches: Iterable[tuple], note: Callable[[], Any]) -> Measured:
        """Measures the terms over batches, of which there is at least one.

        Args:
            batches: Inputs, targets and sample weights, tensors or `None`.
            note: Called after each batch.
        """
        state, rows, reached = self._begin(), [], None
        scale = float(to_numpy(self._probed.optimizer.scale_loss(ops.ones(()))))
        for batch in batches:
            is_marking = reached is None and trains_functionally()
            # A memory that has seen the batch would be compared with it when it runs again.
            restore = self._kept() if is_marking or scale > 1 else None
            if is_marking and restore:
                # The gradient of a loss times infinity is 0 only where there is none.
                marked = to_numpy(self._run(state, batch, np.inf)[1][2])
                reached = np.isnan(np.diagonal(marked, axis1=1, axis2=2)).T
                restore()
            after, row = self._run(state, batch, scale)
            while restore and scale > 1 and _overflows(row):
                scale = max(scale / _STEP_OF_SCALE, 1.0)
                restore()
                after, row = self._run(state, batch, scale)
            state = after
            rows.append([to_numpy(x).astype("float64") for x in row])
            note()
        columns = map(np.stack, zip(*rows, strict=True))
        computed, losses, products, deviations, agreements, squares = columns
        # A gradient may be there although a selection hides it from the mark.
        has_gradient = np.diagonal(products, axis1=2, axis2=3).any(axis=0).T
        known = self._known if reached is None else reached | has_gradient
        means = deviations, agreements, squares[-1]
        same = list(self._same_outputs)
        return Measured(computed.astype("bool"), losses, products, *means, known, same)

    def _kept(self) -> Callable[[], None]:
        """Returns a function that puts back what a forward pass changes."""
        model = self._probed
        variables = [*model.non_trainable_variables, *model.metrics_variables]
        kept = [(x, np.array(to_numpy(x))) for x in variables]
        of_backend = native_values(list(flatten_layers(model)))

        def restore():
            for variable, value in kept:
                variable.assign(value)
            of_backend()

        return restore

    def _run(self, state, batch, scale: float):
        factor = np.array(scale, "float32")
        found = self._step(state, batch, factor)
        if self._numpy is ops:
            return found
        losses, gradients = keras.tree.map_structure(
            lambda x: None if x is None else to_numpy(x), found
        )
        with np.errstate(all="ignore"):  # What is not finite is counted.
            return self._reduce(state, losses, gradients, factor)

    def _begin(self):
        """Returns in how many batches each term was computed, and its mean gradient."""
        count = len(self._terms)
        shapes = (count, 1), (count, sum(math.prod(x.shape) for x in self.variables))
        return tuple(self._array(np.zeros(x)) for x in shapes)

    def _array(self, x):
        convert = np.asarray if self._numpy is np else ops.convert_to_tensor
        return convert(x, dtype=self._dtype_of_sums)

    # Within the step.

    def _collect(self, run: Callable[[], Any]) -> list:
        """Returns the losses of the terms in a forward pass, `None` for those not computed."""
        self._collected.clear()
        outputs = run()
        self._same_outputs = same_tensors(_by_name(outputs, output_names(self._probed)))
        losses = [self._collected.get(name) for name in self._terms]
        self._collected.clear()
        return losses

    def _reduce(self, state, losses: list, gradients: list, scale):
        """Returns the next state, and what `Measured` has of a batch.

        On accelerators, this is part of the compiled step.
        """
        count, mean = state
        xp, scale, terms = self._numpy, self._array(scale), range(len(losses))
        known = np.array([[x[k] is not None for x in gradients] for k in terms], "bool")
        # A term that is not computed in a batch reaches nothing there.
        self._known |= known.reshape(self._known.shape)
        computed = self._array([[float(x is not None)] for x in losses])
        pairs = zip(gradients, self.variables, strict=True)
        rows = [self._rows(*pair) / scale for pair in pairs]
        found = xp.concatenate(rows, axis=1)
        difference = found - mean
        after = xp.where(computed > 0, mean + difference / (count + 1), mean)
        # No matrix product, which accelerators may round more.
        products = [xp.stack([xp.sum(x[k] * x, axis=1) for k in terms]) for x in rows]
        sums = [
            xp.sum(x * y, axis=1)
            for x, y in ((difference, difference), (found, mean), (after, after))
        ]
        values = [self._array(np.nan if x is None else x) for x in losses]
        row = computed[:, 0], xp.stack(values), xp.stack(products), *sums
        return (count + computed, after), [*row]

    def _rows(self, gradients, variable):
        """Returns the gradients of the terms with respect to a variable, a row for each."""
        if isinstance(gradients, list | tuple):  # On JAX it is one tensor.
            zeros = self._numpy.zeros(variable.shape, dtype=self._dtype_of_sums)
            rows = [zeros if x is None else self._array(x) for x in gradients]
            gradients = self._numpy.stack(rows)
        return self._numpy.reshape(self._array(gradients), (len(self._terms), -1))


def _as_they_are(state, losses: list, gradients: list, scale):
    """Returns the losses and gradients of a step, for the host."""
    return losses, gradients


def _overflows(row: Sequence) -> bool:
    """Returns whether gradients are not finite although the losses are."""
    losses, products = (to_numpy(x) for x in row[1:3])
    lengths = np.diagonal(products, axis1=1, axis2=2)
    return bool((np.isfinite(losses) & ~np.isfinite(lengths).all(axis=0)).any())


def _by_name(outputs: Any, names: list[str] | None) -> dict[str, Any]:
    """Returns the tensors that a model returns by the name of the output."""
    if isinstance(outputs, dict):
        return outputs
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    return dict(zip(names or map(str, range(len(outputs))), outputs, strict=False))
