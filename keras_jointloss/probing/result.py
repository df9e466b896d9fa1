"""What a probe returns: the statistics, the faults, weights and advice."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from keras_jointloss._core.validation import (
    invalid,
    validate_by_name,
    validate_choice,
    validate_names,
    validate_number,
)
from keras_jointloss.probing import text
from keras_jointloss.probing.advice import Advice, advise
from keras_jointloss.probing.facts import Facts
from keras_jointloss.probing.faults import Fault, find_faults
from keras_jointloss.probing.statistics import State

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Probe(State):
    """The terms of a model as `probe` has measured them.

    All statistics of `State` are attributes, of the model after the warm-up. `untrained` has those
    before it. `str` and `print` show them as text, notebooks as HTML, and
    `keras_jointloss.plot(probe)` as a figure.
    """

    def __init__(self, untrained: State, trained: State | None, facts: Facts, warmup_epochs: int):
        vars(self).update(vars(trained or untrained))
        #: The statistics before the warm-up.
        self.untrained = untrained
        #: How many epochs the model has been trained for before these statistics.
        self.warmup_epochs = warmup_epochs
        #: The weights of the terms when the model was probed.
        self.current_weights = dict(facts.weights)
        #: What is wrong, each with `term`, `kind` and `text`.
        self.faults: list[Fault] = find_faults(self, untrained, facts)
        self._facts = facts
        #: What to do, each with `text` and `guide`.
        self.advice: list[Advice] = advise(self, untrained, facts, self.faults, self._equal)

    def weights(
        self,
        by: Literal["gradient", "loss"] = "gradient",
        shares: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Returns constant weights that give each term its share.

            weight_i = c share_i / size_i

        The sum of the weights is that of the current weights of these terms, or their number if
        that is 0. The weights are for `joint_loss(weights=...)`; that of a layer term is for the
        argument `weight` of the layer.

        Args:
            by: What the size of a term is: `"gradient"`, the length of its gradient as in `share`,
                or `"loss"`, its mean loss.
            shares: The share of each term, a number > 0, in any unit: only their ratios count. By
                default, the shares of all terms that have a weight are equal. Terms that are not
                named have no weight.

        Returns:
            The weights by the name of the term.

        Raises:
            ValueError: If an argument is invalid, or a term has no size to divide by: no gradient,
                a loss that is not positive, or what is not finite. `faults` says why.
        """
        validate_choice(by, "by", ("gradient", "loss"))
        found = dict.fromkeys(self._facts.used, 1.0)
        if shares is not None:
            found = validate_by_name(shares, "shares", _validate_share, "a number > 0")
            validate_names(found, "shares", self.terms)
        sizes = self.lengths() if by == "gradient" else self.loss
        unusable = {x: sizes[x] for x in found if not 0 < sizes[x] < math.inf}
        if unusable:
            what = "gradient" if by == "gradient" else "loss"
            raise invalid(
                "shares",
                f"terms with a {what} > 0: leave out others by naming those with a share",
                received=f"terms with {what} {unusable}",
            )
        current = sum(self.current_weights[x] for x in found) or float(len(found))
        return _scaled({x: y / sizes[x] for x, y in found.items()}, current)

    def _equal(self, terms: list[str]) -> dict[str, float]:
        return self.weights(shares=dict.fromkeys(terms, 1.0))

    def __str__(self) -> str:
        return text.to_text(self)

    def __repr__(self) -> str:
        return str(self)

    def to_html(self) -> str:
        """Returns the tables, the faults and the advice as HTML."""
        return text.to_html(self)

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_figure(self, theme: Literal["light", "dark"] = "light") -> "Figure":
        """Returns a figure of lengths and cosines, as `keras_jointloss.plot(probe)`."""
        from keras_jointloss.probing.figure import draw

        return draw(self, theme).figure()


def _validate_share(value: Any, name: str) -> float:
    return validate_number(value, name, minimum=0, exclusive=True)


def _scaled(weights: Mapping[str, float], total: float) -> dict[str, float]:
    factor = total / sum(weights.values())
    return {name: factor * weight for name, weight in weights.items()}
