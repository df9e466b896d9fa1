"""A value of a term that may be dropped from a training step in which it is not finite."""

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Tensor
from keras_jointloss.terms.clocked_value import ClockedValue
from keras_jointloss.terms.value import Mode


class GuardedValue(ClockedValue):
    """Base of the values of terms: whether training watches for what is not finite."""

    #: What training does about a loss, weight or gradient that is not finite: `"warn"`, `"raise"`
    #: or `"skip"`; `None` if nothing watches for them.
    on_nonfinite: str | None = None

    @property
    def is_guarded(self) -> bool:
        """Whether a training step watches for what is not finite."""
        return self.on_nonfinite is not None and self.annealing

    @property
    def drops(self) -> bool:
        """Whether a training step is without the term if that is not finite."""
        return self.is_guarded and self.on_nonfinite == "skip"

    def or_still(self, condition: Tensor | bool) -> Tensor | bool:
        """Returns a condition for keeping the term, true where no callback drops it from a step."""
        if not self.drops:
            return condition
        mode = self._mode.read()
        if isinstance(mode, int):
            return condition if mode > Mode.STILL.value else True
        return ops.logical_or(condition, ops.equal(mode, Mode.STILL.value))
