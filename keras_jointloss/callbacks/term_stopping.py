"""A callback that switches off the terms that no longer improve."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import keras

from keras_jointloss._core.types import Logs
from keras_jointloss._core.validation import (
    invalid,
    validate_choice,
    validate_count,
    validate_number,
)
from keras_jointloss.callbacks._copies import Copyable
from keras_jointloss.joint.find_terms import find_terms
from keras_jointloss.tensorboard.runs import is_larger_better
from keras_jointloss.terms.weight import TermWeight

Mode: TypeAlias = Literal["auto", "min", "max"]


class TermStopping(Copyable):
    """Gives weight 0 to each term that no longer improves, and ends training when all have stopped.

    At the end of an epoch a term has improved if the value it is monitored by is better than the
    best one so far by more than `min_delta`. A term that has not improved for `patience` epochs is
    switched off: its weight is 0 from the next epoch on, whatever its schedule and a weighting
    return. A schedule still counts the steps, and a weighting treats the term as absent, as in a
    step without items. Training ends when all monitored terms are switched off.

    `<term>_weight` in the logs shows the 0. A term stays switched off in later trainings, in the
    saved model, and after `keras.callbacks.BackupAndRestore`; `weight.switch_on()` ends that, for
    `weight = model.loss[term].weight` or, for a layer term, `model.get_layer(term).weight`. The
    epochs without improvement are counted anew in each `fit`, as `keras.callbacks.EarlyStopping`
    does. The weights of the model are not restored to those of a better epoch.

    The position in the list of callbacks does not matter, nor whether there is a
    `JointLossCallback`. But without one no schedule and no weighting moves, and on JAX the losses
    of layer terms, such as `val_pair_loss`, are missing from the logs.

    Args:
        monitor: For each term that may stop, the name of a value in the logs.
        patience: The number of epochs without improvement after which a term stops; 0 is as 1. Here
            and below: one for all terms, or a dict with one for each term of `monitor`.
        min_delta: The smallest improvement that counts, >= 0.
        mode: `"min"` if a smaller value is better, `"max"` if a larger one is. With `"auto"`, a
            larger one is better if a word of the name, after the name of the term, is `acc`,
            `accuracy`, `auc`, `f1`, `fbeta`, `gap`, `iou`, `ndcg`, `precision`, `r2`, `recall`,
            `reciprocal` or `score`, and the last word is not `loss`; otherwise a smaller one is.

    Raises:
        ValueError: If an argument is invalid; at the start of `fit`, if the model lacks a term.

    Example:

    >>> callback = TermStopping(
    ...     {"label": "val_label_accuracy", "pair": "val_pair_loss"},
    ...     patience=3,
    ...     min_delta={"label": 0.001, "pair": 0.01},
    ... )
    """

    def __init__(
        self,
        monitor: Mapping[str, str],
        patience: int | Mapping[str, int] = 0,
        min_delta: float | Mapping[str, float] = 0.0,
        mode: Mode | Mapping[str, Mode] = "auto",
    ):
        super().__init__()
        if (
            not isinstance(monitor, Mapping)
            or not monitor
            or not all(isinstance(x, str) for pair in monitor.items() for x in pair)
        ):
            raise invalid(
                "monitor",
                "a dict of term to the name of a value in the logs, with at least one term",
                monitor,
            )
        self.monitor = dict(monitor)
        self.patience = _by_term(
            patience, "patience", self.monitor, lambda x, name: validate_count(x, name, minimum=0)
        )
        self.min_delta = _by_term(
            min_delta, "min_delta", self.monitor, lambda x, name: validate_number(x, name, 0)
        )
        self.mode = _by_term(
            mode,
            "mode",
            self.monitor,
            lambda x, name: validate_choice(x, name, ("auto", "min", "max")),
        )
        #: The epoch in which each term stopped, in the latest `fit`.
        self.stopped_epoch: dict[str, int] = {}
        # Values are compared as if smaller ones were better.
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}
        # The monitored names that were in the logs, and those that a warning has reported.
        self._found: set[str] = set()
        self._missing: set[str] = set()
        self._get_weights: Callable[[], dict[str, TermWeight]] = dict

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        terms = find_terms(model)
        unknown = [term for term in self.monitor if term not in terms]
        if unknown:
            note = f", with the unknown terms {unknown}"
            raise invalid("monitor", f"terms of the model, {list(terms)}", self.monitor, note)
        # Not those of this moment: another callback may compile or restore the model.
        self._get_weights = lambda: find_terms(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        self._best = dict.fromkeys(self.monitor, math.inf)
        self._waited = dict.fromkeys(self.monitor, 0)
        self.stopped_epoch, self._found, self._missing = {}, set(), set()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        logs = logs or {}
        weights = self._get_weights()
        for term, key in self.monitor.items():
            if weights[term].is_off:
                continue
            if key not in logs:
                # With `validation_freq`, an epoch may have no values of validation.
                if "val_loss" in logs or not key.startswith("val_"):
                    self._warn_of_missing(term, logs)
                continue
            self._found.add(key)
            if self._has_waited(term, float(logs[key])):
                weights[term].switch_off()
                self.stopped_epoch[term] = epoch
        if all(weights[term].is_off for term in self.monitor):
            self.model.stop_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        weights = self._get_weights()
        for term, key in self.monitor.items():
            if key not in self._found and not weights[term].is_off:
                self._warn_of_missing(term, logs or {})

    def _has_waited(self, term: str, value: float) -> bool:
        """Returns whether a term has not improved for too long, after an epoch with this value."""
        loss = -value if self._is_up(term) else value
        # NaN is no improvement.
        if loss < self._best[term] - self.min_delta[term]:
            self._best[term], self._waited[term] = loss, 0
            return False
        self._waited[term] += 1
        return self._waited[term] >= self.patience[term]

    def _is_up(self, term: str) -> bool:
        if self.mode[term] != "auto":
            return self.mode[term] == "max"
        name = self.monitor[term].removeprefix("val_").removeprefix(f"{term}_")
        return is_larger_better(name)

    def _warn_of_missing(self, term: str, logs: Mapping[str, Any]) -> None:
        """Warns once that a term is monitored by a value that the logs do not contain."""
        key = self.monitor[term]
        if key in self._missing:
            return
        self._missing.add(key)
        warnings.warn(
            f"TermStopping monitors the term {term!r} by {key!r}, which is not in the logs: the "
            f"term does not stop. Available are {', '.join(map(repr, sorted(logs)))}.",
            stacklevel=2,
        )


def _by_term(value: Any, name: str, terms: Mapping[str, Any], validate: Callable) -> dict[str, Any]:
    """Returns a value for each term, from one for all terms or from a dict."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(terms, validate(value, name))
    if set(value) != set(terms):
        raise invalid(name, f"a value for each term of `monitor`, {list(terms)}", value)
    return {term: validate(value[term], f"{name}[{term!r}]") for term in terms}
