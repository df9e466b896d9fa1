"""What a training does about a term that is not finite: it warns, raises an error, or goes on."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from keras_jointloss._core.validation import validate_choice
from keras_jointloss.terms.nonfinite import Nonfinite
from keras_jointloss.terms.weight import TermWeight

_CHOICES = (None, "warn", "raise", "skip")


def validate_on_nonfinite(value: Any) -> str | None:
    """Returns `"warn"`, `"raise"`, `"skip"` or `None`."""
    return validate_choice(value, "on_nonfinite", _CHOICES)


class NonfiniteTerms:
    """Finds the terms that were the first to be not finite in a training, and reports them.

    Only `find` reads from the device, and with `on_nonfinite=None` not even that.
    """

    def __init__(
        self, on_nonfinite: str | None, terms: Mapping[str, TermWeight], every: int | None
    ):
        self.on_nonfinite = on_nonfinite
        self._terms = terms
        self._every = None if on_nonfinite is None else every
        self._found: dict[str, Nonfinite] = {}
        self._reported: set[str] = set()
        # The steps before those that the terms count, and those at the latest look.
        self._begin = self._looked = 0

    def start(self, step: int) -> None:
        """Begins an epoch, after so many steps of training."""
        self._begin = self._looked = step
        if self.on_nonfinite is not None:
            for weight in self._terms.values():
                weight.nonfinite.reset()

    def is_due(self, batches: int) -> bool:
        """Returns whether to look after so many batches of training."""
        every = self._every
        if every is None or batches // every <= self._looked // every:
            return False
        self._looked = batches
        return True

    def find(self) -> None:
        """Finds what was not finite in the epoch so far."""
        if self.on_nonfinite is None:
            return
        for name, weight in self._terms.items():
            found = weight.nonfinite.first()
            if found is not None and name not in self._found:
                self._found[name] = found._replace(number=self._begin + found.number)

    def report(self) -> None:
        """Reports what `find` has found: of `"skip"` each term, otherwise the first one.

        Raises:
            FloatingPointError: If there is any, with `on_nonfinite="raise"`.
        """
        if not self._found:
            return
        if self.on_nonfinite == "skip":
            for name in self._found.keys() - self._reported:
                self._reported.add(name)
                warnings.warn(
                    f"{_sentence({name: self._found[name]})} Steps in which it is not finite train "
                    f"without the term; `{name}_skipped` in the logs counts them.",
                    stacklevel=3,
                )
            return
        if self._reported:
            return
        first = min(x.order for x in self._found.values())
        named = {name: x for name, x in self._found.items() if x.order == first}
        self._reported |= named.keys()
        if self.on_nonfinite == "raise":
            raise FloatingPointError(_sentence(named))
        warnings.warn(_sentence(named), stacklevel=3)

    @property
    def with_loss(self) -> set[str]:
        """The terms whose loss was found to be not finite."""
        return {name for name, x in self._found.items() if x.kind == "loss"}


def _sentence(found: Mapping[str, Nonfinite]) -> str:
    """Returns what happened to the terms that were the first in the same step."""
    (name, first), *others = found.items()
    what = "not finite" if math.isnan(first.value) and first.kind == "gradient" else first.value
    also = f", as for {[other for other, _ in others]}" if others else ""
    if first.loss is None:
        last = "There was no step of this epoch before it."
    else:
        place = "In this step" if first.kind == "gradient" else "In the step before"
        last = f"{place}, its loss was {first.loss:.6g} and its weight {first.weight:.6g}."
    return (
        f"The {first.kind} of the term {name!r} is {what} in training step {first.number}{also}. "
        f"{last}"
    )
