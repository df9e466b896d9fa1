"""The weight of a layer term, and the other logged values of the layer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.math import float_dtype, to_numpy
from keras_jointloss._core.state import layer_state
from keras_jointloss.terms.record import Totals
from keras_jointloss.terms.value import Weight
from keras_jointloss.terms.weight import TermWeight


class LayerWeight(TermWeight):
    """The weight of a layer term. The layer owns its variables, `state`.

    Args:
        weight: As in `LossWeight`.
        prefix: Prefix of the names of the variables.
        readings: Other values of the layer to log: by name, functions that return a scalar tensor.
        means: Other means to log: by name, functions that map the mean to the logged value. Their
            sums are reset with those of the loss.
        schedules: The other numbers of the layer that follow a schedule, by name.
    """

    def __init__(
        self,
        weight: Weight,
        prefix: str,
        readings: Mapping[str, Callable[[], Any]],
        means: Mapping[str, Callable[[Any], Any]],
        schedules: Mapping[str, LearningRateSchedule],
    ):
        def add_variable(name, *arguments, **options):
            return layer_state(f"{prefix}_{name}", *arguments, **options)

        dtype = float_dtype(keras.config.floatx())
        self._create_variables(weight, dtype, add_variable)
        self.anneal(schedules)
        # It is known only later whether a weighting and a callback need these variables.
        self.adapt()
        # For each mean, the sums over items of the value and of 1.
        self._other_sums = {name: add_variable(name, (2,), 0.0, dtype=dtype) for name in means}
        self._finish, self._readings = dict(means), dict(readings)
        #: The logged values by name, as functions that return a scalar tensor.
        self.tensors = {
            "loss": self.recorded.loss,
            "weight": self.tensor,
            **{name: partial(self._annealed_tensor, name) for name in self.annealed},
            **readings,
            **{name: partial(self._mean, name) for name in means},
        }

    @property
    def state(self) -> list:
        return [*super().state, *self._other_sums.values()]

    def _annealed_tensor(self, name: str):
        return ops.convert_to_tensor(self.annealed_values()[name], dtype=self.recorded.dtype)

    def record_mean(self, name: str, total, count) -> None:
        """Records the sum of values and their number."""
        sums = ops.cast(ops.stack([total, count]), self._other_sums[name].dtype)
        self._other_sums[name].assign_add(ops.stop_gradient(sums))

    def _mean(self, name: str, sums: Any = None):
        variable = self._other_sums[name]
        sums = ops.convert_to_tensor(variable if sums is None else sums, dtype=variable.dtype)
        return self._finish[name](ops.divide_no_nan(sums[0], sums[1]))

    def reset(self) -> None:
        super().reset()
        for sums in self._other_sums.values():
            sums.assign(np.zeros(2))

    def totals(self) -> Totals:
        resets, own = super().totals()
        others = [to_numpy(x).astype("float64") for x in self._other_sums.values()]
        return Totals(resets, [*own, *others])

    def read(self, totals: Totals | None = None) -> dict[str, float]:
        totals = self.totals() if totals is None else totals
        means = zip(self._other_sums, totals.sums[1:], strict=True)
        return {
            **super().read(totals),
            **{name: float(to_numpy(read())) for name, read in self._readings.items()},
            **{name: float(to_numpy(self._mean(name, sums))) for name, sums in means},
        }
