"""The checks and changes that the callback applies to a compiled model before training."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_jointloss._loops import enclosing_callbacks
from keras_jointloss.find_terms import find_losses
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight


def move_to_front(callback: keras.callbacks.Callback) -> None:
    """Moves a callback to the front of the list that sets its model, which no argument exposes."""
    owner = enclosing_callbacks()
    if owner is not None and callback in owner.callbacks:
        owner.callbacks.remove(callback)
        owner.callbacks.insert(0, callback)


def name_weights(model: keras.Model) -> None:
    """Gives each output weight the name with which Keras logs it as `<term>_weight`."""
    count = len(getattr(model, "outputs", None) or [])
    for output, losses in find_losses(model).items() if count else ():
        for term, loss in losses.items():
            long = f"{term}_weight"
            short = long.removeprefix(f"{output}_")
            # Keras prefixes a metric's name with the output's only if there are several outputs.
            right, wrong = (short, long) if count > 1 else (long, short)
            if loss.weight.name != right and loss.weight.name in ("weight", wrong):
                loss.weight.name = right
                # The compiled functions return it under the old name.
                model.train_function = model.test_function = None


def validate_output_names(model: keras.Model) -> None:
    """Raises `ValueError` if the losses of a Functional model do not match its outputs."""
    if isinstance(model.loss, dict) and isinstance(model, keras.Sequential):
        raise ValueError(
            "Expected one loss in place of a dict for a `keras.Sequential`, whose output has no "
            f"name: `joint_loss(loss, weights=...)`. Received: losses for {sorted(model.loss)}"
        )
    if not isinstance(model.loss, dict) or not hasattr(model, "output_names"):
        return
    has_dict = isinstance(model.output, dict)
    names, losses = set(model.output if has_dict else model.output_names), set(model.loss)
    # Keras requires a loss or `None` for every output of a list.
    if losses == names or (has_dict and losses < names):
        return
    raise ValueError(
        "Expected losses for the outputs of the model (`None` for one without a loss), which are "
        f"{sorted(names)}. Received: losses for {sorted(losses)}"
    )


def validate_use(terms: Mapping[str, TermWeight], metrics: Iterable[Any]) -> None:
    """Raises `ValueError` if a model has trained without using the weights of its output terms.

    Args:
        terms: The weights of all terms by name.
        metrics: The metrics of the model.
    """
    metrics = [x for metric in metrics for x in getattr(metric, "metrics", [metric])]
    for name, term in terms.items():
        if not isinstance(term, LossWeight):
            continue
        is_metric = any(term is metric for metric in metrics)
        if not (is_metric and term.is_applied and term.is_counted):
            raise ValueError(
                f"The model does not use the weight of the term {name!r}. Expected a model "
                "that is compiled with everything that `keras_jointloss.joint_loss` returns, "
                "`compile(..., **joint_loss(...))`, with further metrics passed to "
                "`joint_loss`; a custom `metrics` property must include "
                "`super().metrics`, and a custom `train_step` must call "
                "`self.compute_loss` and `self.compute_metrics`. Received: a model in which "
                f"the weight is {'' if term.is_applied else 'not '}applied to the loss and "
                f"{'' if is_metric and term.is_counted else 'not '}among the metrics"
            )
