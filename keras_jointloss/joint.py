"""The arguments of `model.compile` for several loss terms."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_jointloss.terms.applied_weight import AppliedWeight
from keras_jointloss.terms.given_weight import Weight
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_part import LossPart
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.weighting import get as get_weighting

#: The name of the term if the model has one output and the loss is not a dict.
ONLY_TERM = "output"


def joint_loss(
    losses: Mapping[str, Any] | Any,
    weights: Mapping[str, Weight | LossWeight] | Weight | LossWeight | None = None,
    weighting: Any = None,
    metrics: Mapping[str, Any] | Any | None = None,
    weighted_metrics: Mapping[str, Any] | Any | None = None,
) -> dict[str, Any]:
    """Returns the arguments for `model.compile` to train on several weighted loss terms.

    The loss of the model is

        total = sum_i weight_i(step) * loss_i(y_true_i, y_pred_i) + losses added by layers

    A weight given as a schedule moves, and a weighting adapts the weights, while a
    `keras_jointloss.callbacks.JointLossCallback` takes part in `fit`. The logs contain
    `<name>_weight` in addition to Keras' own `<name>_loss`.

    Call this function once for each model, and pass everything it returns to `compile`: the
    weights, and the state of a weighting, belong to one model.

    Outputs without a loss: omit them from `losses`, or, in a model whose outputs are a list, pass
    `None` for them (Keras then requires the name of every output). Once a model has metrics, and
    weights are metrics, Keras requires a target in `y` for every output, including those without a
    loss: pass zeros.

    Args:
        losses: For each output name a loss as Keras accepts it: a name, a function, a
            `keras.losses.Loss`, or `None`. For a model with one output whose name Keras does not
            know, such as a `keras.Sequential`, a single loss; its term is then called `"output"`.
        weights: For each name a number, 0 or more, a
            `keras.optimizers.schedules.LearningRateSchedule` or a `LossWeight`. A missing name has
            weight 1. For a single loss, a single weight.
        weighting: A rule of `keras_jointloss.weighting` that adapts the weights of all terms,
            including layer terms, as an instance or by name; `None` to disable. It multiplies the
            given weights. The `keras_jointloss.callbacks.JointLossCallback` binds it to the terms
            and runs it.
        metrics: As in `model.compile`, by output name. If there is only one loss, its metric or
            list of metrics is enough.
        weighted_metrics: Likewise, for metrics that respect `sample_weight`.

    Returns:
        A dict with `loss`, `loss_weights`, `metrics` and, if given, `weighted_metrics`.
        `model.loss[name].weight` is then the term's `LossWeight`, in a loaded model as well; for a
        single loss it is `model.loss.weight`.

    Raises:
        ValueError: If there is no loss, a weight is given for a name without a loss, a weight is
            invalid or used for two terms, the weighting does not exist, or an argument has the
            wrong type.

    Example:

    >>> import keras
    >>> inputs = keras.Input((4,))
    >>> outputs = {
    ...     "label": keras.layers.Dense(3)(inputs),
    ...     "rating": keras.layers.Dense(1)(inputs),
    ... }
    >>> model = keras.Model(inputs, outputs)
    >>> fade_in = keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 1.0)
    >>> model.compile(
    ...     "adam",
    ...     **joint_loss(
    ...         {
    ...             "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ...             "rating": "mean_squared_error",
    ...         },
    ...         weights={"rating": fade_in},
    ...     ),
    ... )
    >>> float(model.loss["label"].weight), float(model.loss["rating"].weight)
    (1.0, 0.0)
    """
    is_single = _is_loss(losses)
    if is_single:
        losses = {ONLY_TERM: losses}
        if weights is not None and not isinstance(weights, Mapping):
            weights = {ONLY_TERM: weights}
    losses = _validate_losses(losses)
    names = [name for name, loss in losses.items() if loss is not None]
    weights = _validate_weights(weights, names, is_alone=len(losses) == 1)
    rule = get_weighting(weighting)
    if rule is not None:
        for weight in weights.values():
            weight.adapt()
        # The model tracks the rule's variables through one of its metrics.
        weights[names[0]].weighting = rule
    metrics = _by_output(metrics, names, "metrics")
    for name in names:
        parts = [LossPart(losses[name], part) for part in getattr(losses[name], "part_names", ())]
        # The weight first: if two metrics have the same name, Keras renames the second.
        metrics[name] = [weights[name], *_as_list(metrics.get(name)), *parts]
    arguments: dict[str, Any] = {
        "loss": {
            name: None if loss is None else TermLoss(loss, weights[name], name)
            for name, loss in losses.items()
        },
        "loss_weights": {
            name: None if loss is None else AppliedWeight() for name, loss in losses.items()
        },
        "metrics": metrics,
    }
    if weighted_metrics is not None:
        arguments["weighted_metrics"] = _by_output(weighted_metrics, names, "weighted_metrics")
    if is_single:
        arguments = {key: value[ONLY_TERM] for key, value in arguments.items()}
        # Keras accepts a single weight without a list only if it is a number.
        arguments["loss_weights"] = [arguments["loss_weights"]]
        if weighted_metrics is not None:
            arguments["weighted_metrics"] = _as_list(arguments["weighted_metrics"])
    return arguments


def _is_loss(loss: Any) -> bool:
    is_callable = callable(loss) and not isinstance(loss, keras.metrics.Metric | keras.layers.Layer)
    return isinstance(loss, str) or is_callable


def _validate_losses(losses: Any) -> dict[str, Any]:
    if (
        not isinstance(losses, Mapping)
        or not all(isinstance(name, str) for name in losses)
        or all(loss is None for loss in losses.values())
    ):
        raise ValueError(
            "Invalid value for argument `losses`. Expected a dict of output name to loss with at "
            f"least one loss, or a loss for the only output. Received: losses={losses!r}"
        )
    for name, loss in losses.items():
        if isinstance(loss, Mapping | list | tuple):
            raise ValueError(
                "Invalid value for argument `losses`. Expected one loss for each output of a flat "
                "dict: give nested outputs their own top-level names, and sum several losses of "
                f"one output in a function. Received: losses={{{name!r}: {loss!r}}}"
            )
        if loss is not None and not _is_loss(loss):
            raise ValueError(
                f"Invalid value for argument `losses`. Expected the loss of {name!r} to be a name, "
                f"a function or a `keras.losses.Loss`. Received: losses={{{name!r}: {loss!r}}}"
            )
    return dict(losses)


def _validate_weights(weights: Any, names: list[str], is_alone: bool) -> dict[str, LossWeight]:
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping) or not set(weights) <= set(names):
        raise ValueError(
            "Invalid value for argument `weights`. Expected a dict whose keys are names of losses, "
            f"among {names}. Received: weights={weights!r}"
        )
    result = {}
    for name in names:
        # Keras prefixes a metric's name with the output's if there are several outputs.
        metric_name = f"{name}_weight" if is_alone else "weight"
        result[name] = _loss_weight(weights.get(name, 1.0), name, metric_name)
    if len({id(weight) for weight in result.values()}) < len(result):
        raise ValueError(
            "Invalid value for argument `weights`. Expected a `LossWeight` of its own for each "
            f"term. Received: weights={weights!r}"
        )
    return result


def _loss_weight(weight: Any, name: str, metric_name: str) -> LossWeight:
    if isinstance(weight, LossWeight):
        if weight.clock is not None or weight.weighting is not None:
            raise ValueError(
                f"Invalid value for argument `weights`. Expected for {name!r} a `LossWeight` that "
                "belongs to no model and to no weighting yet: create a new one. "
                f"Received: weights={{{name!r}: {weight!r}}}"
            )
        return weight
    try:
        return LossWeight(weight, name=metric_name)
    except ValueError as error:
        raise ValueError(f"The weight of loss {name!r} is invalid. {error}") from None


def _by_output(metrics: Any, names: list[str], argument: str) -> dict[str, Any]:
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        return dict(metrics)
    if len(names) == 1:
        return {names[0]: metrics}
    raise ValueError(
        f"Invalid value for argument `{argument}`. Expected a dict of output name to metrics. "
        f"Received: {argument}={metrics!r}"
    )


def _as_list(metrics: Any) -> list:
    if metrics is None:
        return []
    return list(metrics) if isinstance(metrics, list | tuple) else [metrics]
