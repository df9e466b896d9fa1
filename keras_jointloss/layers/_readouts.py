"""The metrics that report the logged values of a layer term."""

import keras

from keras_jointloss._core.backend import current_trace, trains_functionally
from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss.terms.layer_weight import LayerWeight
from keras_jointloss.terms.scale import Scale


class _Readout(keras.metrics.Metric):
    """Reports a number held by a layer as a metric of the model."""

    def __init__(self, name, read, weight):
        super().__init__(name=name)
        self._read = read
        self._weight = weight

    def note(self):
        """Notes the number within a step."""

    def update_state(self, *args, **kwargs):
        """Does nothing: the layer keeps the number up to date."""

    def result(self):
        self._weight.warn_if_it_stands_still()
        return self._read()

    def reset_state(self):
        self._weight.reset()


class _NotedReadout(_Readout):
    """Reports the number on JAX, where no metric can read the state of a layer within a step.

    A step of `evaluate` notes the number while Keras collects the losses. A step of `fit` takes the
    gradient of what it computes then, and no value may leave a gradient: the number is not in its
    logs, and the callback adds it to those of the epoch.
    """

    _noted: tuple = (None, None)

    def note(self):
        if running_loop() == "test_step":
            self._noted = current_trace(), self._read()

    def result(self):
        self._weight.warn_if_it_stands_still()
        loop, (trace, value), self._noted = running_loop(), self._noted, (None, None)
        if loop in ("evaluate", "test_on_batch"):
            return {self.name: self._read()}
        # A custom step may take a gradient.
        is_noted = loop == "test_step" and value is not None and trace == current_trace()
        return {self.name: value} if is_noted else {}


def create_readouts(prefix: str, weight: LayerWeight | Scale) -> list:
    """Returns a metric for each logged value of the layer that has this weight or scale."""
    readout = _NotedReadout if trains_functionally() else _Readout
    return [readout(f"{prefix}_{name}", read, weight) for name, read in weight.tensors.items()]
