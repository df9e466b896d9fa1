"""Validates the arguments of `joint_loss` and resolves them by output and by term."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras

from keras_jointloss._core.validation import invalid, validate_names
from keras_jointloss.losses.base import ViewsLoss
from keras_jointloss.terms.by_shape import get_loss
from keras_jointloss.terms.class_weights import validate_class_weight
from keras_jointloss.terms.missing.targets import validate_missing
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.wrapped_metric import WrappedMetric


class Output(NamedTuple):
    """The losses of one output of a model."""

    #: The loss of each term by the term's name; empty for an output without a loss.
    losses: dict[str, Any]
    #: The short name of each term by its name if the output has several losses.
    parts: dict[str, str] | None = None


def is_loss(value: Any) -> bool:
    """Returns whether Keras accepts `value` as the loss of an output."""
    is_object = isinstance(value, keras.metrics.Metric | keras.layers.Layer)
    return isinstance(value, str) or (callable(value) and not is_object)


def validate_losses(
    losses: Any, only_output: str | None, may_be_none: bool = False
) -> dict[str, Output]:
    """Returns the losses by output, from a dict of name to a loss, `None`, or several losses.

    If the user gave no name, the terms of the only output have the names of the losses. All losses
    may be `None` if there are others, of several outputs.
    """
    if (
        not isinstance(losses, Mapping)
        or not all(isinstance(name, str) for name in losses)
        or (all(loss is None for loss in losses.values()) and not may_be_none)
    ):
        raise invalid(
            "losses",
            "a dict of output name to loss with at least one loss, or a loss for the only output",
            losses,
        )
    outputs = {}
    for name, loss in losses.items():
        if isinstance(loss, Mapping | list | tuple):
            prefix = "" if name == only_output else f"{name}_"
            parts = _parts(name, loss)
            terms = {f"{prefix}{part}": part for part in parts}
            outputs[name] = Output({term: _found(parts[x]) for term, x in terms.items()}, terms)
        elif loss is None or is_loss(loss):
            outputs[name] = Output({} if loss is None else {name: _found(loss)})
        else:
            expected = f"the loss of {name!r} to be a name, a function or a `keras.losses.Loss`"
            raise invalid("losses", expected, {name: loss})
    names = [term for output in outputs.values() for term in output.losses]
    names += [name for name, output in outputs.items() if output.parts and name != only_output]
    for name in names:
        if names.count(name) > 1:
            received = f"two terms or outputs named {name!r} in losses={losses!r}"
            raise invalid("losses", "terms with different names", received=received)
    return outputs


def _found(loss: Any) -> Any:
    """Returns the loss on views that a name is for, unless Keras has one; others as they are."""
    found = get_loss(loss) if isinstance(loss, str) else None
    return found if isinstance(found, ViewsLoss) else loss


def _parts(output: str, losses: Any) -> dict[str, Any]:
    """Returns several losses of an output by name."""
    is_named = isinstance(losses, Mapping)
    names = list(losses) if is_named else [_name_of(loss) for loss in losses]
    values = list(losses.values()) if is_named else list(losses)
    if (
        not names
        or not all(isinstance(name, str) and name.isprintable() and name for name in names)
        or not all(is_loss(loss) for loss in values)
    ):
        raise invalid(
            "losses",
            f"the losses of {output!r} as one loss, a dict of name to loss or a list of losses "
            "that have names. A nested output needs a top-level name of its own",
            {output: losses},
        )
    if len(set(names)) < len(names):
        raise invalid(
            "losses",
            f"the losses of {output!r} to have different names: use a dict of name to loss",
            received=f"losses named {names} in losses={{{output!r}: {losses!r}}}",
        )
    return dict(zip(names, values, strict=True))


def _name_of(loss: Any) -> Any:
    """Returns the name of a loss; `None` if it has none."""
    name = loss if isinstance(loss, str) else getattr(loss, "name", None)
    name = getattr(loss, "__name__", None) if name is None else name
    return None if name == "<lambda>" else name


def validate_weights(
    weights: Any, outputs: Mapping[str, Output], across: Iterable[str], has_names: bool
) -> dict[str, LossWeight]:
    """Returns the weight of each term, from a dict of term name to weight, or `None`.

    The terms are those of outputs, and those across several. Keras logs metrics with the name of
    the output, unless there is only one, or the outputs are a list.
    """
    weights = {} if weights is None else weights
    terms = [*(term for output in outputs.values() for term in output.losses), *across]
    if not isinstance(weights, Mapping) or not set(weights) <= set(terms):
        raise invalid("weights", f"a dict whose keys are names of losses, among {terms}", weights)
    result = {}
    for output in outputs.values():
        for term in output.losses:
            prefix = (output.parts or {}).get(term) if has_names else term
            metric_name = "weight" if prefix is None else f"{prefix}_weight"
            result[term] = _loss_weight(weights.get(term, 1.0), term, metric_name)
    for term in across:
        result[term] = _loss_weight(weights.get(term, 1.0), term, f"{term}_weight")
    if len({id(weight) for weight in result.values()}) < len(result):
        raise invalid("weights", "a `LossWeight` of its own for each term", weights)
    return result


def _loss_weight(weight: Any, term: str, metric_name: str) -> LossWeight:
    if isinstance(weight, LossWeight):
        if weight.clock is not None or weight.weighting is not None:
            raise invalid(
                "weights",
                f"for {term!r} a `LossWeight` that belongs to no model and to no weighting yet: "
                "create a new one",
                {term: weight},
            )
        if weight.name == "weight":
            weight.name = metric_name
        return weight
    try:
        return LossWeight(weight, name=metric_name)
    except ValueError as error:
        raise ValueError(
            f"The weight of loss {term!r} in `weights` of joint_loss is invalid. {error}"
        ) from None


def metrics_by_output(metrics: Any, outputs: Mapping[str, Output], argument: str) -> dict[str, Any]:
    """Returns metrics by output name."""
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        return dict(metrics)
    names = [name for name, output in outputs.items() if output.losses]
    if len(names) == 1:
        return {names[0]: metrics}
    raise invalid(argument, "a dict of output name to metrics", metrics)


def missing_by_output(
    missing: Any, outputs: Mapping[str, Output], others: Iterable[str] = ()
) -> dict[str, float]:
    """Returns the value of missing targets for each output that may have some.

    The `others` are outputs of a loss over several.
    """
    names = [name for name, output in outputs.items() if output.losses]
    names += [name for name in others if name not in names]
    if missing is None:
        return {}
    values = missing if isinstance(missing, Mapping) else dict.fromkeys(names, missing)
    if not set(values) <= set(names):
        raise invalid(
            "missing",
            f"a number, or a dict whose keys are outputs with a loss, among {names}",
            missing,
        )
    for name in values:
        for loss in outputs[name].losses.values() if name in outputs else ():
            if isinstance(loss, ViewsLoss):
                raise invalid(
                    "missing",
                    f"a dict without the output {name!r}: {type(loss).__name__} compares all "
                    "items of a batch. Give it `unlabelled=` if it has class labels, or a "
                    "`sample_weight` of 0 for items to leave out",
                    missing,
                )
    return {name: validate_missing(value) for name, value in values.items() if value is not None}


def class_weights_by_term(
    class_weight: Any, outputs: Mapping[str, Output]
) -> dict[str, dict[int, float]]:
    """Returns the weights of classes for each term, and for each output, that has some."""
    if class_weight is None:
        return {}
    with_loss = {name: output for name, output in outputs.items() if output.losses}
    terms = {term: x for output in with_loss.values() for term, x in output.losses.items()}
    is_by_name = isinstance(class_weight, Mapping) and all(isinstance(x, str) for x in class_weight)
    if isinstance(class_weight, Mapping) and len(with_loss) == 1 and not is_by_name:
        class_weight = {next(iter(with_loss)): class_weight}
    elif not is_by_name or not set(class_weight) <= {*with_loss, *terms}:
        raise invalid(
            "class_weight",
            "a dict of class to weight for each output with a loss, or for a term of an output "
            f"with several losses, among {list(dict.fromkeys((*with_loss, *terms)))}",
            class_weight,
        )
    result = {}
    # The terms last, whose weights replace those of their output.
    for name in sorted(class_weight, key=lambda name: name not in with_loss):
        if class_weight[name] is None:
            continue
        weights = validate_class_weight(class_weight[name], f"class_weight[{name!r}]")
        for term in with_loss[name].losses if name in with_loss else [name]:
            if isinstance(terms[term], ViewsLoss):
                raise invalid(
                    "class_weight",
                    f"a dict without {name!r}: {type(terms[term]).__name__} compares all items of "
                    "a batch. Use a `sample_weight`",
                    class_weight,
                )
            result[term] = weights
        result[name] = weights
    return result


def wrapped_metrics(
    metrics: Mapping[str, Any], wrapper: type[WrappedMetric], values: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Returns metrics by output as lists; those of outputs with a value are wrapped with it."""
    result = {name: as_list(given) for name, given in metrics.items()}
    for name in set(result) & set(values):
        result[name] = [wrapper(x, values[name]) for x in result[name] if x is not None]
    return result


def in_order(
    by_output: Mapping[str, Any], outputs: Mapping[str, Output], argument: str
) -> list[Any]:
    """Returns what belongs to each output as a list in the order of the outputs."""
    validate_names(by_output, argument, outputs)
    return [by_output.get(name) for name in outputs]


def as_list(metrics: Any) -> list:
    """Returns the metrics of an output as a list."""
    if metrics is None:
        return []
    return list(metrics) if isinstance(metrics, list | tuple) else [metrics]
