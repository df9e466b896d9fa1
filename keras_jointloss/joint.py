"""Several loss terms as the arguments of `model.compile`."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_jointloss import _keras
from keras_jointloss._masks import valid_items
from keras_jointloss.distribution import replica_count, variable_scope
from keras_jointloss.layers import ContrastiveTerm
from keras_jointloss.layers._gradient_combination import GradientCombination
from keras_jointloss.loss_weight import (
    AppliedWeight,
    LossWeight,
    TermWeight,
    Weight,
    deserialize_term_weight,
)
from keras_jointloss.weighting import Weighting
from keras_jointloss.weighting import get as get_weighting

# Keras chooses the loss for these names by the shapes it meets in the first step.
_CROSSENTROPY = ("crossentropy", "ce")
#: The name of the term where the model has one output and the loss is no dict.
ONLY_TERM = "output"


@keras.saving.register_keras_serializable(package="keras_jointloss")
class TermLoss(keras.losses.Loss):
    """A term's loss, which also records its value in the term's `LossWeight`.

    Value, gradient, reduction, mask and sample weights are those of `loss`.

    Args:
        loss: What Keras takes as the loss of an output: a name, a function or a
            `keras.losses.Loss`.
        weight: The `LossWeight` of the term.
        name: The name of the term.
    """

    def __init__(self, loss: Any, weight: LossWeight, name: str | None = None):
        # Keras opens a name scope with the name of a loss, which may hold no slash.
        super().__init__(name=name and name.replace("/", "_"))
        self.term = name
        self.loss = loss
        self.weight = weight
        self._resolved = None if loss in _CROSSENTROPY else keras.losses.get(loss)

    def __call__(self, y_true, y_pred, sample_weight=None):
        if isinstance(self._resolved, keras.losses.Loss):
            value = self._resolved(y_true, y_pred, sample_weight)
        else:
            value = super().__call__(y_true, y_pred, sample_weight)
        batch_size = ops.shape(keras.tree.flatten(y_pred)[0])[0]
        # Under `tf.distribute` Keras divides a replica's loss by the number of replicas.
        mean = ops.mean(value) if len(value.shape) else value
        replicas = replica_count()
        counts = None
        if sample_weight is not None and self.weight.observer is not None:
            counts = ops.any(ops.not_equal(ops.convert_to_tensor(sample_weight), 0))
        self.weight.record(mean * replicas if replicas > 1 else mean, batch_size, counts)
        return value

    def call(self, y_true, y_pred):
        """Computes the loss that was given as a function."""
        function = self._resolved or _crossentropy_for(y_true, y_pred)
        pairs = keras.tree.map_structure(_match_ranks, y_true, y_pred)
        y_true = keras.tree.map_structure_up_to(y_true, lambda pair: pair[0], pairs)
        y_pred = keras.tree.map_structure_up_to(y_pred, lambda pair: pair[1], pairs)
        return function(y_true, y_pred)

    def get_config(self) -> dict:
        # The objects themselves: then Keras saves a weight that stands in several places once.
        return {"loss": self.loss, "weight": self.weight, "name": self.term}

    @classmethod
    def from_config(cls, config: dict) -> "TermLoss":
        loss = config["loss"]
        if isinstance(loss, dict):
            # Not `keras.losses.deserialize`, which knows no lambda.
            loss = keras.saving.deserialize_keras_object(loss)
        weight = deserialize_term_weight(config["weight"])
        return cls(**{**config, "loss": loss, "weight": weight})


def _match_ranks(y_true, y_pred):
    """Gives targets and predictions the same rank where one has a last axis of size 1 more."""
    true_rank, pred_rank = len(y_true.shape), len(y_pred.shape)
    if true_rank == pred_rank + 1 and y_true.shape[-1] == 1:
        if pred_rank == 1:
            return y_true, ops.expand_dims(y_pred, -1)
        return ops.squeeze(y_true, -1), y_pred
    if pred_rank == true_rank + 1 and y_pred.shape[-1] == 1:
        if true_rank == 1:
            return ops.expand_dims(y_true, -1), y_pred
        return y_true, ops.squeeze(y_pred, -1)
    return y_true, y_pred


def _crossentropy_for(y_true, y_pred) -> Callable:
    """Chooses the cross-entropy by shapes, as Keras does for the loss `"crossentropy"`."""
    if y_pred.shape[-1] == 1:
        return keras.losses.binary_crossentropy
    if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
        return keras.losses.sparse_categorical_crossentropy
    return keras.losses.categorical_crossentropy


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossPart(keras.metrics.Mean):
    """The mean of a part of a loss, as of `keras_jointloss.losses.VICReg`, before it is weighed.

    Args:
        loss: A `keras_jointloss.losses.ViewsLoss`.
        part: One of its `part_names`.
        name: Name of the metric, by default that of the part.
        dtype: As in `keras.metrics.Metric`.
    """

    def __init__(self, loss: Any, part: str, name: str | None = None, dtype=None):
        super().__init__(name=name or part, dtype=dtype)
        self.loss = loss
        self.part = part

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds the items of a batch."""
        valid = valid_items(y_pred, sample_weight)
        super().update_state(self.loss.parts(y_pred, None, valid)[self.part], sample_weight)

    def get_config(self) -> dict:
        return {**super().get_config(), "loss": self.loss, "part": self.part}

    @classmethod
    def from_config(cls, config: dict) -> "LossPart":
        loss = config["loss"]
        loss = keras.losses.deserialize(loss) if isinstance(loss, dict) else loss
        return cls(**{**config, "loss": loss})


def joint_loss(
    losses: Mapping[str, Any] | Any,
    weights: Mapping[str, Weight | LossWeight] | Weight | LossWeight | None = None,
    weighting: Any = None,
    metrics: Mapping[str, Any] | Any | None = None,
    weighted_metrics: Mapping[str, Any] | Any | None = None,
) -> dict[str, Any]:
    """Returns the arguments with which `model.compile` trains on several weighted loss terms.

    The loss of the model is

        total = sum_i weight_i(step) * loss_i(y_true_i, y_pred_i) + losses added by layers

    A weight that is given as a schedule moves, and a weighting adapts the weights, while a
    `keras_jointloss.callbacks.JointLossCallback` takes part in `fit`. The logs gain
    `<name>_weight` beside Keras' own `<name>_loss`.

    Call it once for each model, and pass all that it returns to `compile`: the weights, and what a
    weighting has learned, belong to one model.

    Outputs without a loss: leave them out of `losses`, or, in a model whose outputs are a list,
    give them as `None` (Keras wants the name of every output then). As soon as a model has metrics,
    and weights are metrics, Keras wants a target in `y` for every output, also for those without
    a loss: pass zeros.

    Args:
        losses: For each output name a loss as Keras takes it: a name, a function, a
            `keras.losses.Loss`, or `None`. For a model with one output whose name Keras does not
            know, as a `keras.Sequential`, the loss alone; the term is then called `"output"`.
        weights: For each name a number, 0 or more, a
            `keras.optimizers.schedules.LearningRateSchedule` or a `LossWeight`. A name that is
            missing has weight 1. For a loss alone, its weight alone.
        weighting: A rule of `keras_jointloss.weighting` that adapts the weights of all terms, those
            of layers included, by instance or by name; `None` for none. It multiplies the given
            weights. The `keras_jointloss.callbacks.JointLossCallback` binds it to the terms and
            lets it run.
        metrics: As in `model.compile`, by output name. If there is one loss only, its metric or
            list of metrics will do.
        weighted_metrics: Likewise, for metrics that respect `sample_weight`.

    Returns:
        A dict with `loss`, `loss_weights`, `metrics` and, if given, `weighted_metrics`.
        `model.loss[name].weight` is then the term's `LossWeight`, in a loaded model as well; for a
        loss alone it is `model.loss.weight`.

    Raises:
        ValueError: If there is no loss, a weight is given for a name without loss, a weight is
            invalid or stands for two terms, there is no such weighting, or an argument has the
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
        # One of the metrics has to bring the rule's variables to the model.
        weights[names[0]].weighting = rule
    metrics = _by_output(metrics, names, "metrics")
    for name in names:
        parts = [LossPart(losses[name], part) for part in getattr(losses[name], "part_names", ())]
        # The weight first: of two metrics with one name Keras renames the second.
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
        # Keras takes a weight by itself as a number only.
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
                "dict: give nested outputs names of their own at the top, and add several losses "
                f"of one output up in a function. Received: losses={{{name!r}: {loss!r}}}"
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
            f"of {names}. Received: weights={weights!r}"
        )
    result = {}
    for name in names:
        # Keras puts the name of the output before that of a metric if there are several outputs.
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
                "belongs to no model and to no weighting yet: make a new one. "
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


def find_terms(model: keras.Model) -> dict[str, TermWeight]:
    """Returns the weight of each term of a compiled model by the term's name.

    Output terms come first, in the order of the losses, then layer terms, in the order of the
    layers, those of nested models included.

    Args:
        model: A compiled model.

    Raises:
        ValueError: If two terms have the same name.
    """
    losses = model.loss if isinstance(model.loss, Mapping) else {ONLY_TERM: model.loss}
    terms: dict[str, TermWeight] = {
        name: loss.weight for name, loss in losses.items() if isinstance(loss, TermLoss)
    }
    # The layers of layers are reachable only so: `model.layers` ends at a nested model.
    for layer in _keras.flatten_layers(model, include_self=False):
        if isinstance(layer, ContrastiveTerm):
            if terms.get(layer.name, layer.weight) is not layer.weight:
                raise ValueError(
                    f"Expected terms with different names. Received: two terms named {layer.name!r}"
                )
            terms[layer.name] = layer.weight
    return terms


def find_gradient_layers(model: keras.Model) -> list[GradientCombination]:
    """Returns the layers of a model that combine gradients and tell of them."""
    layers = _keras.flatten_layers(model, include_self=False)
    return [x for x in layers if isinstance(x, GradientCombination) and x.telemetry]


def find_weighting(terms: Mapping[str, TermWeight]) -> Weighting | None:
    """Returns the weighting that a model was compiled with, if any.

    Args:
        terms: As `find_terms` returns them.
    """
    rules = [term.weighting for term in terms.values() if isinstance(term, LossWeight)]
    return next((rule for rule in rules if rule is not None), None)


def bind_weighting(model: keras.Model, terms: Mapping[str, TermWeight]) -> Weighting | None:
    """Binds the weighting of a compiled model, if it has one, to the terms of the model.

    Args:
        model: A compiled model.
        terms: As `find_terms` returns them.

    Returns:
        The weighting.

    Raises:
        ValueError: If the weighting is bound to other terms already, or needs gradients that no
            layer reports.
    """
    rule = find_weighting(terms)
    if rule is None:
        # The model may have had one when it was compiled before.
        for term in terms.values():
            term.release()
        return None
    names = getattr(model, "output_names", None) or []
    if len(set(names)) < len(names):
        raise ValueError(
            "Expected a model whose outputs have different names, since its terms have a "
            f"weighting. Received: a model with outputs {names}"
        )
    with variable_scope(model):
        is_new = rule.bind(terms)
    rule.bind_gradients(find_gradient_layers(model))
    if is_new:
        # What has been compiled without the rule would not run it.
        model.train_function = model.test_function = None
    return rule
