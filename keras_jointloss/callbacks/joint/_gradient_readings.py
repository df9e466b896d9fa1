"""The logged values of the layers that combine gradients."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from keras_jointloss.layers.gradients._combination import GradientCombination
from keras_jointloss.layers.gradients._statistics import GradientStatistics
from keras_jointloss.tensorboard import heat_map

#: Statistics by the tag prefix of their layer.
Statistics = dict[str, GradientStatistics]
#: The sums of which they are the means, likewise.
Totals = dict[str, np.ndarray]


class GradientReadings:
    """Reads the gradient statistics of layers."""

    def __init__(self, layers: Sequence[GradientCombination]):
        self._layer_of = {
            "gradients" if len(layers) == 1 else f"gradients/{layer.name}": layer
            for layer in layers
        }

    def reset(self) -> None:
        """Resets the means."""
        for layer in self._layer_of.values():
            layer.reset_statistics()

    def sums(self) -> Totals:
        """Returns the sums since the last reset, to read differences of them."""
        records = {prefix: layer.record for prefix, layer in self._layer_of.items()}
        return {prefix: x.totals() for prefix, x in records.items() if x is not None}

    def read(self, now: Totals | None = None, since: Totals | None = None) -> Statistics:
        """Returns the statistics since the last reset, or between two times.

        The sums `now` are by default the current ones, and `since` earlier ones after that reset.
        """
        now, since = self.sums() if now is None else now, since or {}
        statistics = {
            prefix: layer.record.read(now[prefix] - since.get(prefix, 0.0))
            for prefix, layer in self._layer_of.items()
            if layer.record is not None and prefix in now
        }
        return {prefix: value for prefix, value in statistics.items() if value is not None}

    def lengths(self, statistics: Statistics, terms: Collection[str]) -> dict[str, float]:
        """Returns the mean lengths by term, of the first layer that reports those of all `terms`.

        Empty if there is none.
        """
        for prefix, of_layer in statistics.items():
            names = self._layer_of[prefix].terms
            if set(terms) <= set(names):
                return dict(zip(names, of_layer.norms.tolist(), strict=True))
        return {}

    def to_tags(self, statistics: Statistics) -> dict[str, float]:
        """Returns the statistics by TensorBoard tag, without those that are unknown."""
        tags = {
            f"{prefix}/{tag}": value
            for prefix, of_layer in statistics.items()
            for tag, value in of_layer.to_tags(self._layer_of[prefix].terms).items()
        }
        return {tag: value for tag, value in tags.items() if not math.isnan(value)}

    def to_logs(self, statistics: Statistics) -> dict[str, float]:
        """Returns the statistics by their names in the Keras logs, NaN for unknown ones."""
        logs = {}
        for prefix, layer in self._layer_of.items():
            of_layer = statistics.get(prefix, GradientStatistics.unknown(len(layer.terms)))
            for tag, value in of_layer.to_tags(layer.terms).items():
                logs[f"{prefix}/{tag}".replace("/", "_")] = value
        return logs

    def heat_maps(self, statistics: Statistics) -> Iterator[tuple[str, Any, str]]:
        """Yields pictures of the cosines: tag, picture and description."""
        for prefix, of_layer in statistics.items():
            terms = ", ".join(f"`{term}`" for term in self._layer_of[prefix].terms)
            description = (
                f"Rows and columns: {terms}. Blue: cosine 1; white: 0; red: -1, in conflict."
            )
            yield f"{prefix}/cosines", heat_map(of_layer.cosines), description

    def unrecorded(self, statistics: Statistics, batches: int) -> Iterator[str]:
        """Yields the names of the layers that should have statistics and have none.

        The statistics are those of an epoch of so many batches.
        """
        for prefix, layer in self._layer_of.items():
            # On JAX a step whose gradients the optimizer accumulates leaves no record.
            is_due = layer.telemetry and batches >= layer.accumulated_steps
            if is_due and prefix not in statistics:
                yield layer.name

    def nonfinite_gradients(self, statistics: Statistics) -> Iterator[tuple[str, str]]:
        """Yields the gradients that were the first to be non-finite: prefix and sentence."""
        for prefix, of_layer in statistics.items():
            layer, steps = self._layer_of[prefix], of_layer.nonfinite_step
            if steps.any():
                terms = [layer.terms[i] for i in steps.nonzero()[0]]
                what = f"not finite at layer {layer.name!r} (train, step {steps.max()})"
                yield prefix, f"The gradients of the terms {terms} are {what}."

    def without_gradient(self, statistics: Statistics) -> Iterator[tuple[str, str]]:
        """Yields the copies whose gradient was 0 in every step: names of layer and copy.

        The statistics of a layer that is called several times in a step do not tell: they cover one
        of the calls.
        """
        for prefix, of_layer in statistics.items():
            layer = self._layer_of[prefix]
            if layer.has_several_calls:
                continue
            for term, norm in zip(layer.terms, of_layer.norms, strict=True):
                if norm == 0:
                    yield layer.name, term
