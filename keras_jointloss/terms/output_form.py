"""Checks that the losses of `joint_loss` have the form of what a model returns."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_jointloss._core.validation import invalid
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_across import LossAcross
from keras_jointloss.terms.loss_sum import LossSum
from keras_jointloss.terms.output_weight import LossWeight


def validate_form(given: Any, outputs: Any, names: list[str] | None) -> None:
    """Raises `ValueError` if losses or metrics of `joint_loss` do not fit the outputs of a model.

    Args:
        given: `loss` or `metrics` as given to `compile`. Those that do not come from `joint_loss`
            are left to Keras.
        outputs: What the model returns: any structure of tensors.
        names: The names that the model has for its outputs in a list, or `None`.
    """
    leaves = keras.tree.flatten(given)
    has_losses = any(isinstance(x, TermLoss | LossSum) for x in leaves)
    if not has_losses and not any(isinstance(x, LossWeight) for x in leaves):
        return
    if isinstance(given, Mapping):
        _validate_dict(given, outputs, names, has_losses)
    elif _is_for_a_list(given):
        _validate_list(given, outputs)
    elif len(keras.tree.flatten(outputs)) > 1:
        raise ValueError(
            "Expected a dict of output name to loss for a model with several outputs: "
            "`joint_loss({'first': ..., 'second': ...})`, with `outputs='list'` if it returns a "
            "list without names. One loss, or a list of losses, is for one output. "
            f"Received: {_described(outputs, names)}"
        )


def _is_for_a_list(given: Any) -> bool:
    """Returns whether losses or metrics are a list by output, not a list for the only output."""
    if not isinstance(given, list | tuple):
        return False
    return any(x is None or isinstance(x, TermLoss | LossSum | list | tuple) for x in given)


def _validate_dict(
    given: Mapping[str, Any], outputs: Any, names: list[str] | None, has_losses: bool
) -> None:
    has_dict = isinstance(outputs, Mapping)
    across = {name: loss for name, loss in given.items() if isinstance(loss, LossAcross)}
    given = {name: loss for name, loss in given.items() if name not in across}
    if has_dict or names is not None:
        _validate_names(set(given), set(outputs if has_dict else names or ()), has_dict, has_losses)
        for name, loss in given.items():
            if has_dict and isinstance(loss, LossSum):
                loss.validate_output(outputs[name])
        _validate_across(across, list(outputs if has_dict else names or ()))
    elif isinstance(outputs, list | tuple):
        raise ValueError(
            "Expected `joint_loss(..., outputs='list')` for a model that returns a list without "
            "names, with the losses in the order of its outputs. "
            f"Received: losses for {list(given)}, {_described(outputs)}"
        )
    else:
        raise ValueError(
            "Expected one loss, or a list of losses, in place of a dict for a model whose only "
            "output has no name, such as a `keras.Sequential`: `joint_loss(loss, weights=...)`. "
            f"Received: losses for {list(given)}"
        )


def _validate_names(found: set, expected: set, has_dict: bool, has_losses: bool) -> None:
    # Keras requires a loss or `None` for every output of a list.
    if found == expected or ((has_dict or not has_losses) and found < expected):
        return
    raise ValueError(
        "Expected losses for the outputs of the model (`None` for one without a loss), which are "
        f"{sorted(expected)}. Received: {'losses' if has_losses else 'losses and metrics'} for "
        f"{sorted(found)}"
    )


def _validate_across(across: Mapping[str, LossAcross], names: list[str]) -> None:
    for term, loss in across.items():
        if not set(loss.outputs) <= set(names) or term in names:
            raise invalid(
                "across",
                f"{term!r} to be the name of no output, with a loss of outputs among {names}",
                received=f"{term!r} with a loss of {list(loss.outputs)}",
            )


def _validate_list(given: list | tuple, outputs: Any) -> None:
    given = [loss for loss in given if not isinstance(loss, LossAcross)]
    if isinstance(outputs, Mapping):
        raise ValueError(
            "Expected `joint_loss` without `outputs='list'` for a model that returns a dict. "
            f"Received: {_described(outputs)}"
        )
    if len(given) != len(keras.tree.flatten(outputs)):
        raise ValueError(
            "Expected a loss, or `None`, for each output in their order, since `joint_loss` was "
            f"called with outputs='list'. Received: {len(given)} losses, {_described(outputs)}"
        )


def _described(outputs: Any, names: list[str] | None = None) -> str:
    names = sorted(outputs) if isinstance(outputs, Mapping) else names
    if names is not None:
        return f"a model with the outputs {names}"
    return f"a model with {len(keras.tree.flatten(outputs))} outputs"
