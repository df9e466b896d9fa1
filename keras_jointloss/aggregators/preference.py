"""The base class of the aggregators that can prefer some terms to others."""

import numpy as np
from keras import ops

from keras_jointloss._core.types import Config, Numbers, Tensor
from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.aggregators._gramian import active_terms, nonzero
from keras_jointloss.aggregators.base import Aggregator


class PreferenceAggregator(Aggregator):
    """Base class of the aggregators that can prefer some terms to others.

    Args:
        preference: A number >= 0 for each term, not all 0. Only their ratios matter. `None` for
            equal preferences.
        rescale, ema: As in `Aggregator`.

    Raises:
        ValueError: If `preference` is anything else or `ema` is not a number >= 0 and < 1; when
            called, if the number of terms differs.

    Example:

    >>> from keras_jointloss.aggregators import Mean
    >>> [float(x) for x in Mean(preference=[3.0, 1.0])([[1.0, 0.0], [0.0, 1.0]])]
    [0.75, 0.25]
    """

    #: The name of the argument, for the error messages.
    argument = "preference"

    def __init__(self, preference: Numbers | None = None, rescale: bool = False, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)
        self.preference = None
        if preference is not None:
            is_list = hasattr(preference, "__iter__") and np.ndim(preference) > 0
            if isinstance(preference, str | dict) or not is_list:
                raise self._invalid(preference)
            self.preference = [
                validate_number(value, f"{self.argument}[{i}]", minimum=0)
                for i, value in enumerate(preference)
            ]
            if not sum(self.preference):
                raise self._invalid(preference)

    def _invalid(self, preference) -> ValueError:
        return invalid(self.argument, "a list of numbers >= 0, not all 0", preference)

    def preferences(self, gramian: Tensor) -> Tensor:
        """Returns the preferences, 0 for absent terms and normalized to sum 1: `(k,)`."""
        result = ops.cast(active_terms(gramian), gramian.dtype)
        if self.preference is not None:
            if len(self.preference) != gramian.shape[0]:
                raise invalid(
                    self.argument, f"{gramian.shape[0]} numbers, one for each term", self.preference
                )
            result = result * ops.convert_to_tensor(self.preference, dtype=gramian.dtype)
        return result / nonzero(ops.sum(result))

    def get_config(self) -> Config:
        return {"preference": self.preference, **super().get_config()}
