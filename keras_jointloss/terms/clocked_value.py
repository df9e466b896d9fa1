"""A value that the clock of a model moves, and that warns if none does."""

import warnings
from typing import Any, ClassVar

from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss.terms.value import MovingValue


class ClockedValue(MovingValue):
    """Base of the values that a `keras_jointloss.terms.clock.Clock` switches on and off."""

    #: The clock of the model whose callback moves the value, if any.
    clock: Any = None
    #: The beginning of a warning.
    _stands_still: ClassVar[str] = (
        "The weights of a joint loss that follow a schedule or a weighting do not move"
    )
    _has_warned = False

    @property
    def is_dynamic(self) -> bool:
        """Whether the value is meant to move during training."""
        return self.counts_steps

    def reset(self) -> None:
        """Stops annealing; keeps the value and the step."""
        outlasts = self.clock is not None and self.clock.outlasts_reset()
        if self.annealing and not outlasts:
            self.stop_annealing()

    def warn_if_it_stands_still(self) -> None:
        """Warns if `fit` has trained an epoch without moving a value that is meant to move.

        Called when Keras reads its metrics. At the end of an epoch, `fit` reads them outside of its
        steps and inner loops.
        """
        is_driven = self.clock is not None and self.clock.driver is not None
        if not (self._has_warned or is_driven) and self.is_dynamic and running_loop() == "fit":
            self._has_warned = True
            warnings.warn(
                f"{self._stands_still}: no `JointLossCallback` takes part in `fit`. Pass "
                "`callbacks=[keras_jointloss.callbacks.JointLossCallback()]`.",
                stacklevel=2,
            )
