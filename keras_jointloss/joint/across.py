"""Validates the argument of `joint_loss` for losses over several outputs."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from keras_jointloss._core.validation import invalid
from keras_jointloss.joint.arguments import Output, is_loss
from keras_jointloss.losses.base import ViewsLoss


class Across(NamedTuple):
    """A loss over several outputs."""

    loss: Any
    outputs: tuple[str, ...]  # Their names


def validate_across(
    across: Any, losses: Mapping[str, Output], known: Collection[str] | None
) -> dict[str, Across]:
    """Returns the losses over several outputs by the name of the term.

    Args:
        across: A dict of term name to a loss and the names of its outputs, or `None`.
        losses: The losses of single outputs.
        known: The names of all outputs; `None` if only the model has them.
    """
    if across is None:
        return {}
    if not isinstance(across, Mapping) or not across:
        expected = "a non-empty dict of term name to a loss and its outputs, (loss, [name, ...])"
        raise invalid("across", expected, across)
    found = {name: _validate_entry(name, given, known) for name, given in across.items()}
    terms = {term for output in losses.values() for term in output.losses}
    taken = {*losses, *terms, *(x for entry in found.values() for x in entry.outputs)}
    if taken & set(found):
        expected = f"names of terms that no output and no other term has: not {sorted(taken)}"
        raise invalid("across", expected, received=f"terms named {list(found)}")
    return found


def _validate_entry(name: Any, given: Any, known: Collection[str] | None) -> Across:
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise invalid("across", "names of terms as keys", received=f"the key {name!r}")
    if not isinstance(given, list | tuple) or len(given) != 2:
        expected = f"a loss and the names of its outputs, (loss, [name, ...]), for {name!r}"
        raise invalid("across", expected, {name: given})
    loss, outputs = given
    if not is_loss(loss) or isinstance(loss, str | type | ViewsLoss):
        expected = (
            f"the loss of {name!r} to be a function, or a `keras.losses.Loss`, of two dicts by "
            "output name: targets and predictions"
        )
        raise invalid("across", expected, {name: given})
    if (
        not isinstance(outputs, list | tuple)
        or not all(isinstance(x, str) for x in outputs)
        or len(set(outputs)) < max(len(outputs), 2)
        or not (known is None or set(outputs) <= set(known))
    ):
        among = "" if known is None else f", among {list(known)}"
        expected = f"the names of two or more different outputs for {name!r}{among}"
        raise invalid("across", expected, {name: given})
    return Across(loss, tuple(outputs))
