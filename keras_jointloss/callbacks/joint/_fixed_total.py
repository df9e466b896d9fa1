"""The total at fixed weights, which stands still while the weights of the terms move."""

from collections.abc import Mapping
from typing import Any

from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.terms.weight import TermWeight

_NAMED = ("initial", "equal")
_EXPECTED = "None, 'initial', 'equal', or a dict with a finite number >= 0 for each term, not all 0"


def validate_fixed_weights(weights: Any, name: str) -> Any:
    """Returns `weights`, or raises `ValueError` if they cannot be the weights of any model.

    Args:
        weights: `None`, `"initial"`, `"equal"`, or a dict of numbers by term.
        name: The name of the argument.
    """
    if weights is None or (isinstance(weights, str) and weights in _NAMED):
        return weights
    if not isinstance(weights, Mapping):
        raise invalid(name, _EXPECTED, weights)
    return {term: validate_number(x, f"{name}[{term!r}]", 0) for term, x in weights.items()}


class FixedTotal:
    """Adds up the raw losses of the terms with weights that do not move.

    Args:
        weights: As `validate_fixed_weights` returns them, not `None`.
        terms: The weights of the terms by name.
        name: The name of the argument, for error messages.

    Raises:
        ValueError: If `weights` are not those of all terms, or all are 0, or if a term is named
            `"joint"`.
    """

    def __init__(self, weights: Any, terms: Mapping[str, TermWeight], name: str):
        if weights == "equal":
            self.weights = dict.fromkeys(terms, 1.0)
        elif weights == "initial":
            self.weights = {term: weight.at_start for term, weight in terms.items()}
        else:
            self.weights = dict(weights)
        if set(self.weights) != set(terms):
            raise invalid(name, f"a number for each term of the model, {list(terms)}", weights)
        if "joint" in terms:
            raise invalid(
                name,
                "None, since the model has a term named 'joint': 'joint_loss' in the logs is its "
                "loss",
                weights,
            )
        if self.weights and not any(self.weights.values()):
            raise invalid(
                name, "a weight > 0 for one term at least", weights, f", the weights {self.weights}"
            )

    def of(self, readings: Mapping[str, Mapping[str, float]]) -> float | None:
        """Returns the total, or `None` if no term was computed.

        Args:
            readings: The values of the terms by name, with the mean raw `loss` of those that were
                computed. The others count 0, as in the loss of the model.
        """
        found = {name: x["loss"] for name, x in readings.items() if "loss" in x}
        if not found:
            return None
        # A term of weight 0 does not count, even if its loss is not finite.
        return sum(self.weights[x] * loss for x, loss in found.items() if self.weights[x])
