"""The statistics of the terms of a model in one state of it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_jointloss.probing.measurement import Measured

# The computed cosine of orthogonal gradients can be this far below 0.
_ROUNDING = 1e-6
# Losses that are the same may differ by so much.
_SAME = 5e-7


class Pairs(Mapping[tuple[str, str], Any]):
    """A value for each pair of terms, `pairs[a, b]`, whatever their order is."""

    def __init__(self, values: Mapping[tuple[str, str], Any]):
        self._values = dict(values)

    def __getitem__(self, pair: tuple[str, str]) -> Any:
        a, b = pair
        return self._values[pair if pair in self._values else (b, a)]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class State:
    """The statistics of the terms of a model in one state of it.

    A mean or deviation is over the batches in which a term was computed, and gradients are those of
    the losses without weights. Values are NaN where the loss or gradient was not finite or not
    computed in any batch, and for what needs two batches if there was one. A pair of terms without
    a shared parameter is in none of the mappings of pairs.
    """

    def __init__(
        self,
        measured: Measured,
        terms: list[str],
        weights: Mapping[str, float],
        layers: list[str],
    ):
        """Computes the statistics.

        Args:
            measured: What was measured.
            terms: The names of the terms.
            weights: Their weights.
            layers: The name of the layer of each variable.
        """
        reached, computed = measured.reached, measured.computed
        both = (computed[:, :, None] & computed[:, None])[:, None]
        measured = measured._replace(products=np.where(both, measured.products, math.nan))
        #: The names of the terms: of outputs first, then of layers.
        self.terms = list(terms)
        #: How many batches were measured.
        self.batches = len(computed)
        #: The mean loss of each term, unweighted.
        self.loss = self._named(_mean(measured.losses))
        #: The standard deviation of the loss over batches.
        self.loss_deviation = self._named(_deviation(measured.losses))
        lengths = np.sqrt(np.einsum("bvii->bvi", measured.products).clip(min=0))
        #: The length of the gradient with respect to all trainable parameters.
        self.norm = self._named(_mean(np.linalg.norm(lengths, axis=1)))
        shared = common_parameters(reached)
        of_shared = np.where(shared.T, lengths, 0.0)
        #: The length of the gradient with respect to the shared parameters: those that all terms
        #: with a gradient share. If there is none, those that the term shares with any other.
        self.shared_norm = self._named(_mean(np.linalg.norm(of_shared, axis=1)))
        #: The share of each term in the sum of the lengths of the weighted gradients: with respect
        #: to the shared parameters, or to all if a term with a gradient shares none.
        self.share = self._shares(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            count = computed.sum(axis=0)
            sizes = computed.cumsum(axis=0) - computed  # The batches before, of each term.
            squares = np.where(computed, measured.deviations * sizes / (sizes + 1), 0.0)
            variance = squares.sum(axis=0) / np.where(count > 1, count - 1, math.nan)
            noise = np.sqrt(variance / measured.mean_squares)
            # A sum of martingale differences, if the mean is 0, over its deviation.
            differences = np.where(computed, measured.agreements * sizes, 0.0)
            signal = differences.sum(axis=0) / np.sqrt((differences**2).sum(axis=0))
        #: The standard deviation of the gradient of a batch, divided by the length of the mean.
        self.noise = self._named(noise)
        #: By how many standard errors the gradients of batches agree; about 0 for pure noise.
        self.signal = self._named(signal)
        cosines = self._cosines(measured)
        errors = {k: _deviation(x) / math.sqrt(max(np.isfinite(x).sum(), 1)) for k, x in cosines}
        #: The mean cosine of the angle between the gradients of two terms, with respect to the
        #: parameters that they share.
        self.cosine = Pairs({k: float(_mean(x)) for k, x in cosines})
        #: The standard error of the mean cosine.
        self.cosine_error = Pairs({k: float(x) for k, x in errors.items()})
        #: The share of the batches in which the cosine was negative.
        self.conflict = Pairs({k: float(_mean(_is_negative(x))) for k, x in cosines})
        #: In how many batches the loss or the gradient of a term was not finite.
        is_finite = np.isfinite(measured.losses) & np.isfinite(lengths).all(axis=1)
        nonfinite = (computed & ~is_finite).sum(axis=0)
        self.nonfinite = dict(zip(terms, map(int, nonfinite), strict=True))
        #: Whether the loss of a term was the same in all batches, but for rounding.
        self.is_constant = {
            x: self.loss_deviation[x] <= _SAME * abs(self.loss[x]) for x in self.terms
        }
        #: The pairs of outputs that are one tensor when the model is called.
        self.same_outputs = list(measured.same_outputs)
        #: The names of the layers whose parameters a term reaches.
        self.layers = {
            term: list(dict.fromkeys(x for x, y in zip(layers, row, strict=True) if y))
            for term, row in zip(terms, reached, strict=True)
        }
        #: For each term, the layers that it shares with each other term.
        self.shared_layers = {
            a: {
                b: both
                for b in terms
                if b != a and (both := [x for x in self.layers[a] if x in self.layers[b]])
            }
            for a in terms
        }

    def _named(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.terms, map(float, values), strict=True))

    def lengths(self) -> dict[str, float]:
        """Returns the lengths by which terms are compared, as in `share`."""
        with_gradient = [x for x in self.terms if self.norm[x] > 0]
        has_shared = all(self.shared_norm[x] > 0 for x in with_gradient)
        return self.shared_norm if has_shared else self.norm

    def _shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        lengths = self.lengths()
        weighted = {x: weights[x] * lengths[x] for x in self.terms}
        total = np.nansum(list(weighted.values()))
        return {x: float(y / total) if total else math.nan for x, y in weighted.items()}

    def _cosines(self, measured: Measured) -> list[tuple]:
        """Returns the cosines of each pair of terms over the batches."""
        found = []
        for i, a in enumerate(self.terms):
            for j in range(i + 1, len(self.terms)):
                both = measured.reached[i] & measured.reached[j]
                if both.any():
                    of_both = measured.products[:, both].sum(axis=1)
                    squares = of_both[:, i, i] * of_both[:, j, j]
                    with np.errstate(invalid="ignore", divide="ignore"):
                        cosines = of_both[:, i, j] / np.sqrt(squares)
                    found.append(((a, self.terms[j]), cosines))
        return found

    @property
    def conflicts(self) -> list[tuple[str, str]]:
        """The pairs of terms whose mean cosine is negative beyond two standard errors."""
        return [x for x in self.cosine if self.cosine[x] + 2 * self.cosine_error[x] < 0]


def common_parameters(reached: np.ndarray) -> np.ndarray:
    """Returns the parameters that each term shares, as in `State.shared_norm`.

    Args:
        reached: `(terms, variables)`, whether a term depends on a variable.

    Returns:
        `(terms, variables)`, bool.
    """
    with_any = reached.any(axis=1)
    if with_any.sum() > 1:
        common = reached[with_any].all(axis=0)
        if common.any():
            return reached & common
    return reached & (reached.sum(axis=0) > 1)


def _mean(values: np.ndarray) -> Any:
    """Returns the means over the finite values of batches."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    return np.where(count, np.where(finite, values, 0).sum(axis=0) / np.maximum(count, 1), math.nan)


def _deviation(values: np.ndarray) -> Any:
    """Returns the standard deviations over the finite values of batches; NaN if there is one."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    squares = np.where(finite, values - _mean(values), 0) ** 2
    return np.where(count > 1, np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1)), math.nan)


def _is_negative(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values < -_ROUNDING, math.nan)
