"""The arguments of `model.compile` for several loss terms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from keras_jointloss._core.keras_models import before_build
from keras_jointloss._core.types import Config, LossLike, MetricLike, Tensor
from keras_jointloss._core.validation import invalid, validate_choice
from keras_jointloss.joint.across import validate_across
from keras_jointloss.joint.arguments import (
    class_weights_by_term,
    in_order,
    is_loss,
    metrics_by_output,
    missing_by_output,
    validate_losses,
    validate_weights,
    wrapped_metrics,
)
from keras_jointloss.joint.compiled import (
    loss_across,
    loss_of,
    metrics_across,
    metrics_of,
    weight_of,
)
from keras_jointloss.terms.applied_weight import AppliedWeight
from keras_jointloss.terms.class_weights import ClassWeightedMetric
from keras_jointloss.terms.missing.labelled_metric import LabelledMetric
from keras_jointloss.terms.output_form import validate_form
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.value import Weight
from keras_jointloss.weighting import Weighting
from keras_jointloss.weighting import get as get_weighting

# Keras refuses another form too, but speaks of metrics that the user has not given, or raises
# `TypeError: 'NoneType' object is not iterable`.
before_build(validate_form)

#: The name of the term if the model has one output and the loss is not a dict.
ONLY_TERM = "output"


def joint_loss(
    losses: LossLike | Sequence[LossLike] | Mapping[str, Any],
    weights: Mapping[str, Weight | LossWeight] | Weight | LossWeight | None = None,
    weighting: str | Config | Weighting | None = None,
    metrics: MetricLike | Sequence[MetricLike] | Mapping[str, Any] | None = None,
    weighted_metrics: MetricLike | Sequence[MetricLike] | Mapping[str, Any] | None = None,
    missing: Mapping[str, float] | float | None = None,
    class_weight: Mapping[str, Mapping[int, float]] | Mapping[int, float] | None = None,
    outputs: Literal["list"] | None = None,
    across: Mapping[str, tuple[Callable[..., Tensor], Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """Returns the arguments for `model.compile` to train on several weighted loss terms.

    The loss of the model is

        total = sum_i weight_i(step) * loss_i(y_true_i, y_pred_i) + losses added by layers

    A weight given as a schedule moves, and a weighting adapts the weights, while a
    `keras_jointloss.callbacks.JointLossCallback` takes part in `fit`. The logs contain
    `<name>_weight` in addition to Keras' own `<name>_loss`.

    An output can have several losses: `{"mask": {"dice": keras.losses.Dice(), "bce":
    "binary_crossentropy"}}` makes the terms `mask_dice` and `mask_bce`, which share the target
    `y["mask"]` and have weights, schedules and logs of their own. Keras' own `mask_loss` is then
    their weighted sum.

    Missing targets: `missing=float("nan")`, or by output `missing={"rating": -1}`, gives the value
    of a target that is missing. It contributes nothing to loss, gradient and metrics, and means run
    over the labelled targets, so that a term with 1 % of labels weighs as much as one with all. A
    batch without labels has loss 0 and moves no rule. If the loss or metric is a mean over the
    last axis (squared errors, binary cross-entropy, ...), each element of a `(batch, ..., k)`
    target can be missing on its own; otherwise a row with a missing element is left out. Sums (the
    reduction `"sum"`) run over the labelled targets. A loss that returns one number for a batch or,
    with axes, for an item, such as `keras.losses.Dice`, receives 0 for missing targets and their
    predictions. The logs contain `<name>_labelled_loss`, the mean over the labelled targets, and
    with the callback `<name>_labelled`, their share. With several outputs, Keras' own `<name>_loss`
    counts a batch by its size, a batch without labels as 0, too. With the callback, the logs of an
    epoch and of `evaluate` have the mean over the labelled targets there, but not the progress bar
    during an epoch.

    Without `missing`, a `sample_weight` of 0 leaves items out, too, but Keras' default reduction
    divides by the number of all items: a term with a quarter of labels then weighs a quarter. The
    reduction `"mean_with_sample_weight"` of a loss divides by the sum of the weights instead.

    Weights of classes: `class_weight={"category": {0: 1.0, 1: 3.0}}` does for an output what
    `fit(class_weight=)` does for a model with one output, where Keras allows no other. The class is
    an integer, a float that is rounded or the largest entry of a one-hot row; classes that are not
    named weigh 1. With more axes each position has its class, so integers `(batch, height, width)`
    weigh each pixel. The weights multiply the `sample_weight`, in the loss and in
    `weighted_metrics`, wherever a model runs its `train_step`: in `fit` and `train_on_batch`, not
    in validation, `evaluate` or a direct call of a loss. As with `sample_weight`, the mean still
    divides by the number of items, unless the reduction is `"mean_with_sample_weight"`.

    Weights of elements: if a loss is a mean over the last axis, a `sample_weight` may have the
    shape of the predictions, `(batch, ..., k)`, and weighs each element. Metrics of Keras do not
    take these weights in `weighted_metrics`, except for outputs with missing targets.

    Losses over several outputs: `across={"iou": (loss, ["box", "score"])}` adds the term `iou`,
    where `loss({"box": y, "score": y}, {"box": p, "score": p})` returns a number, or one for each
    item, `(batch,)`. Keras calls it with the targets and predictions of these outputs, in the dtype
    of the loss, after the losses of single outputs. The outputs may have losses of their own, or
    none. If the sample weights of the outputs differ, the smallest weight of an item applies: it
    counts where all of its outputs count, and weights that are the same for all outputs apply once.
    Of weights of elements, their mean is that of the item. An item with a missing target in one of
    the outputs is left out; the loss must return one value for each item then. Masks of Keras and
    `class_weight` only apply to the losses of single outputs.

    Call this function once for each model, and pass everything it returns to `compile`: the
    weights, and the state of a weighting, belong to one model.

    Models that return a list: a Functional model has names for its outputs, those of its layers
    (`model.output_names`), and takes a dict with them. A subclassed model has none: pass
    `outputs="list"` and a dict with names of your own in the order of the outputs. It becomes lists
    for `compile`; `y` and `sample_weight` are lists as well. The logs contain `<name>_loss` and
    `<name>_weight` as usual, but Keras logs `metrics` by their own names alone. (Of a Functional
    model it logs all by the names of its layers, and the callback adds those of the terms.)

    Outputs without a loss: omit them from `losses`, or, in a model whose outputs are a list, pass
    `None` for them (Keras then requires the name of every output). Once a model has metrics, and
    weights are metrics, Keras requires a target in `y` for every output, including those without a
    loss: pass zeros.

    Args:
        losses: For each output name a loss as Keras accepts it: a name (also of a class of
            `keras_jointloss.losses`), a function, a `keras.losses.Loss`, or `None`. For several
            losses of an output, a dict of name to loss, or a list, whose terms have the losses' own
            names. For a model with one output whose name Keras does not know, such as a
            `keras.Sequential`, a single loss, whose term is called `"output"`, or a list of losses,
            whose terms have the losses' own names.
        weights: For each term a number, 0 or more, a
            `keras.optimizers.schedules.LearningRateSchedule` or a `LossWeight`. A missing name has
            weight 1. For a single loss, a single weight.
        weighting: A rule of `keras_jointloss.weighting` that adapts the weights of all terms,
            including layer terms, as an instance or by name; `None` to disable. It multiplies the
            given weights. The `keras_jointloss.callbacks.JointLossCallback` binds it to the terms
            and runs it.
        metrics: As in `model.compile`, by output name. If only one output has a loss, its metric or
            list of metrics is enough.
        weighted_metrics: Likewise, for metrics that respect `sample_weight`.
        missing: The value of missing targets: NaN or a number, for all outputs or by output name;
            `None` if there are none. Contrastive losses have `unlabelled=` instead.
        class_weight: For each output, or each of several losses of an output by the name of the
            term, a dict of class to weight, a number >= 0. If only one output has a loss, its dict
            is enough. `None` if classes have no weights.
        outputs: `"list"` for a model that returns a list of tensors without names; `None` for any
            other.
        across: For each term over several outputs its name, which no output has, with a pair of the
            loss, a function or a `keras.losses.Loss` of two dicts, and the names of the outputs.
            `losses` is then a dict, in which all losses may be `None`, or which may be empty if the
            model returns a dict. `None` if there are none.

    Returns:
        A dict with `loss`, `loss_weights`, `metrics` and, if given, `weighted_metrics`.
        `model.loss[name].weight` is then the term's `LossWeight`, in a loaded model as well; for a
        single loss it is `model.loss.weight`, for one of several losses of an output
        `model.loss["mask"].parts["dice"].weight`, and for the first of a list of outputs
        `model.loss[0].weight`. In a list, losses over several outputs follow those of the outputs.

    Raises:
        ValueError: If there is no loss, two terms have the same name, a weight is given for a name
            that is not a term, a weight is invalid or used for two terms, the weighting does not
            exist, an argument has the wrong type, or `missing` is given for an output without a
            loss, with a contrastive loss, a loss without reduction, or a metric that takes no
            `sample_weight`, `class_weight` for an output without a loss or with a contrastive loss,
            or an entry of `across` is no such pair; in the first step, if the losses do not have
            the form of the outputs, `across` names an output that does not exist, its loss returns
            another shape, or a loss has no value to weight for each class.

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
    is_list = outputs is not None and validate_choice(outputs, "outputs", ("list",)) == "list"
    is_single = is_loss(losses) or isinstance(losses, list | tuple)
    if is_single and is_list:
        raise invalid(
            "losses",
            "a dict of output name to loss in the order of the outputs, since outputs='list'",
            losses,
        )
    if is_single and across is not None:
        raise invalid("across", "None, unless `losses` is a dict of output name to loss", across)
    if is_single:
        losses = {ONLY_TERM: losses}
        if is_loss(losses[ONLY_TERM]) and weights is not None and not isinstance(weights, Mapping):
            weights = {ONLY_TERM: weights}
    by_output = validate_losses(losses, ONLY_TERM if is_single else None, across is not None)
    found = validate_across(across, by_output, list(by_output) if is_list else None)
    others = [name for entry in found.values() for name in entry.outputs]
    has_names = len({*by_output, *others}) > 1 and not is_list
    weights = validate_weights(weights, by_output, found, has_names)
    rule = get_weighting(weighting)
    if rule is not None:
        for weight in weights.values():
            weight.adapt()
        rule.output_terms = tuple(weights)
        # The model tracks the rule's variables through one of its metrics.
        next(iter(weights.values())).weighting = rule
    missing = missing_by_output(missing, by_output, others)
    class_weights = class_weights_by_term(class_weight, by_output)
    metrics = metrics_by_output(metrics, by_output, "metrics")
    metrics = wrapped_metrics(metrics, LabelledMetric, missing)
    for name, output in by_output.items():
        if output.losses:
            # The weights first: if two metrics have the same name, Keras renames the second.
            own, parts = metrics_of(output, weights, name in missing, is_list)
            metrics[name] = [*own, *metrics.get(name, ()), *parts]
    arguments: dict[str, Any] = {
        "loss": {
            name: loss_of(name, output, weights, missing.get(name), class_weights)
            for name, output in by_output.items()
        },
        "loss_weights": {name: weight_of(output) for name, output in by_output.items()},
        "metrics": metrics,
    }
    of_several = {
        name: loss_across(name, entry, weights, missing, list(by_output) if is_list else None)
        for name, entry in found.items()
    }
    for name, entry in found.items():
        # Keras has metrics of outputs only.
        metrics.setdefault(entry.outputs[0], []).extend(metrics_across(of_several[name]))
    if weighted_metrics is not None:
        given = metrics_by_output(weighted_metrics, by_output, "weighted_metrics")
        given = wrapped_metrics(given, LabelledMetric, missing)
        given = wrapped_metrics(given, ClassWeightedMetric, class_weights)
        arguments["weighted_metrics"] = given
    if is_list:
        arguments = {key: in_order(value, by_output, key) for key, value in arguments.items()}
        arguments["loss"] += of_several.values()
        arguments["loss_weights"] += map(AppliedWeight, of_several)
        return arguments
    arguments["loss"] |= of_several
    arguments["loss_weights"] |= {name: AppliedWeight(name) for name in of_several}
    if is_single:
        arguments = {key: value[ONLY_TERM] for key, value in arguments.items()}
        # Keras accepts a single weight without a list only if it is a number.
        arguments["loss_weights"] = [arguments["loss_weights"]]
    return arguments
