"""Arguments of a loss that follow a schedule of the training step."""

import math
from collections.abc import Callable
from typing import Any, Self

from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.registry import deserialized, shallow_copy
from keras_jointloss._core.types import Config, Schedule, Tensor
from keras_jointloss._core.validation import invalid
from keras_jointloss.terms.value import validate_schedule


class AnnealedArguments:
    """Base of losses with arguments that may follow a schedule, by the clock of a term's weight.

    A term asks for the `schedules` of its loss and computes the loss that `moved_by` returns.
    """

    _annealed_values: Callable[[], dict[str, Tensor]] | None = None
    # The names of the arguments that follow a schedule; `None` until it matters.
    _annealed_names: tuple[str, ...] | None = None

    def _arguments(self) -> dict[str, Any]:
        """Returns the arguments as they were given, by name."""
        raise NotImplementedError

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The arguments that follow a schedule, by name."""
        given = self._arguments().items()
        return {name: x for name, x in given if isinstance(x, LearningRateSchedule)}

    def moved_by(self, values: Callable[[], dict[str, Tensor]]) -> Self:
        """Returns a copy whose annealed arguments are what a function returns in each step."""
        moved = shallow_copy(self)
        moved._annealed_values = values
        return moved

    def _arguments_of_step(self) -> dict[str, Any]:
        """Returns the arguments, those that follow a schedule at the current step."""
        if self._annealed_names is None:
            self._annealed_names = tuple(self.schedules)
        if not self._annealed_names:
            return self._arguments()
        if self._annealed_values is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} follows a schedule, which only a term moves. Expected a loss given to "
                "`keras_jointloss.joint_loss` or to a term of `keras_jointloss.layers`. "
                f"Received: {name} with schedules of {list(self._annealed_names)}"
            )
        return {**self._arguments(), **self._annealed_values()}

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Creates a loss from its config, in which a schedule is a config, too."""
        names = [name for name, x in config.items() if isinstance(x, dict) and name != "dtype"]
        objects = {name: deserialized(config[name], name) for name in names}
        return cls(**{**config, **objects})


def annealed(value: Any, validate: Callable[..., Any], name: str, *bounds: Any, **options: Any):
    """Returns a valid number, or a schedule whose value at step 0 is valid."""
    if not isinstance(value, LearningRateSchedule):
        return validate(value, name, *bounds, **options)
    start = validate_schedule(value, name, -math.inf)
    try:
        validate(start, name, *bounds, **options)
    except ValueError as error:
        message = f"a schedule that starts with a valid value ({error})"
        raise invalid(name, message, value) from error
    return value
