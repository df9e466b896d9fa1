"""Which terms do not train although they should, as measured over an epoch."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from keras_jointloss.model_terms import ModelTerms

#: The values of the terms of an epoch, by term and by name.
_Readings = Mapping[str, Mapping[str, float]]


class StuckTerm(NamedTuple):
    """A term that does not train.

    Attributes:
        name: The name of the term, or of the copy that its head should read.
        loss: Its mean loss.
        layer: The layer at which its gradient was 0 in every step, although its loss changed.
            `None` if its loss was exactly the same in every step.
    """

    name: str
    loss: float
    layer: str | None = None


def stuck_terms(
    losses: Mapping[str, float],
    constant: Collection[str],
    without_gradient: Iterable[tuple[str, str]],
    losses_of: Mapping[str, Collection[str]],
) -> list[StuckTerm]:
    """Returns the terms that do not train.

    Args:
        losses: The mean losses of the terms that should train.
        constant: The terms whose loss was exactly the same in every step.
        without_gradient: The copies whose gradient was 0 in every step: their layers and names.
        losses_of: The terms whose gradients add up in a copy, by its name.
    """
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    found = [StuckTerm(name, loss) for name, loss in finite.items() if name in constant]
    for layer, name in without_gradient:
        # A loss that has reached 0 has no gradient, nor does one that is constant.
        own = [finite[x] for x in losses_of.get(name, ()) if x in finite and x not in constant]
        if any(own):
            found.append(StuckTerm(name, sum(own), layer))
    return found


class TermProgress:
    """Measures which terms train in an epoch.

    Args:
        terms: The terms of a model.
    """

    def __init__(self, terms: ModelTerms):
        self._terms = terms
        self._epochs = 0
        self._weighted: set[str] = set()
        self._constant: set[str] | None = None

    def start_epoch(self) -> None:
        """Starts to measure, once the weights are those of the first step."""
        self._epochs += 1
        self._weighted, self._constant = self._names_with_weight(), None
        for term in self._terms.values():
            term.constancy.reset()

    def _names_with_weight(self) -> set[str]:
        return {name for name, term in self._terms.items() if float(term)}

    def end(self) -> None:
        """Ends the measurement at the end of the epoch or before an evaluation, which resets it."""
        if self._constant is None:
            holds = (name for name, term in self._terms.items() if term.constancy.holds)
            self._constant = set(holds)

    def stuck(
        self,
        readings: _Readings,
        logs: Mapping[str, Any],
        batches: int,
        without_gradient: Iterable[tuple[str, str]],
    ) -> list[StuckTerm]:
        """Returns the terms that did not train in the epoch that has ended.

        Args:
            readings: The values of the terms in training.
            logs: The logs of the epoch, for losses that are no terms.
            batches: The number of batches of the epoch.
            without_gradient: As in `stuck_terms`.
        """
        weighted = self._weighted & self._names_with_weight()
        losses = {
            name: reading["loss"]
            for name, reading in readings.items()
            if "loss" in reading and name in weighted and not self._terms[name].may_be_constant
        }
        # The first step may have no gradient, as below a head that is initialized with zeros.
        copies = list(without_gradient) if batches > 1 or self._epochs > 1 else []
        losses_of = self._terms.wiring.losses_of
        plain = {x for _, name in copies for x in losses_of.get(name, ()) if x not in self._terms}
        losses |= self._plain_losses(plain, logs) if plain else {}
        return stuck_terms(losses, self._constant or (), copies, losses_of)

    def _plain_losses(self, names: Iterable[str], logs: Mapping[str, Any]) -> dict[str, float]:
        """Returns the losses of outputs with a weight that are compiled without `joint_loss`."""
        wiring = self._terms.wiring
        only = len(wiring.outputs) == 1
        found = {name: logs.get("loss" if only else f"{name}_loss") for name in names}
        return {
            name: float(loss)
            for name, loss in found.items()
            if loss is not None and wiring.has_weight(name)
        }
