"""Builds what Keras compiles for the terms of `joint_loss`: losses, weights and metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_jointloss.joint.across import Across
from keras_jointloss.joint.arguments import Output
from keras_jointloss.terms.applied_weight import AppliedWeight
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_across import LossAcross
from keras_jointloss.terms.loss_part import LossPart
from keras_jointloss.terms.loss_sum import LossSum
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.term_reading import TermReading


def loss_of(
    name: str,
    output: Output,
    weights: Mapping[str, LossWeight],
    missing: float | None,
    class_weights: Mapping[str, Any],
) -> Any:
    """Returns the loss of an output."""
    losses = {
        term: TermLoss(loss, weights[term], term, missing, class_weights.get(term))
        for term, loss in output.losses.items()
    }
    if output.parts is None:
        return losses.get(name)
    parts = {part: losses[term] for term, part in output.parts.items()}
    # Keras logs an output without a name by the name of its loss.
    return LossSum(parts, name.replace("/", "_"))


def weight_of(output: Output) -> Any:
    """Returns what Keras multiplies the loss of an output by."""
    if not output.losses:
        return None
    return AppliedWeight(next(iter(output.losses))) if output.parts is None else 1.0


def metrics_of(
    output: Output, weights: Mapping[str, LossWeight], has_missing: bool, is_list: bool
) -> tuple[list, list]:
    """Returns the metrics that log the terms of an output, and those that log parts of losses."""
    own: list[Any] = []
    parts: list[Any] = []
    for term, loss in output.losses.items():
        own.append(weights[term])
        prefix = f"{term}_" if is_list else ""
        if output.parts is not None:
            # Keras logs the loss of the output only.
            own.append(TermReading(weights[term]))
            prefix = prefix or f"{output.parts[term]}_"
        elif has_missing:
            own.append(TermReading(weights[term], "labelled_loss"))
        for part in getattr(loss, "part_names", ()):
            if loss.schedules:  # The weight ends the step, to which the schedules belong.
                own.insert(0, LossPart(loss, part, f"{prefix}{part}", weight=weights[term]))
            else:
                parts.append(LossPart(loss, part, f"{prefix}{part}"))
    return own, parts


def loss_across(
    name: str,
    entry: Across,
    weights: Mapping[str, LossWeight],
    missing: Mapping[str, float],
    in_list: Sequence[str] | None,
) -> LossAcross:
    """Returns the loss of a term over several outputs, which may be those of a list."""
    positions = None if in_list is None else [in_list.index(x) for x in entry.outputs]
    own = {output: missing[output] for output in entry.outputs if output in missing}
    return LossAcross(entry.loss, weights[name], name, entry.outputs, positions, own or None)


def metrics_across(loss: LossAcross) -> list[Any]:
    """Returns the metrics that log a term over several outputs."""
    weight = loss.weight
    return [weight, *([TermReading(weight, "labelled_loss")] if weight.has_missing_targets else [])]
