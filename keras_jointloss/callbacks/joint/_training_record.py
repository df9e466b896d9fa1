"""What a training logs about itself: schedules, ends of epochs, hyperparameters and results."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_jointloss._core.validation import invalid
from keras_jointloss.callbacks._summaries import Summaries
from keras_jointloss.joint.model_terms import ModelTerms
from keras_jointloss.tensorboard.hparams import write_hparams

#: The number of points of a schedule.
_POINTS = 100


class TrainingRecord:
    """Logs for TensorBoard how a training is set up and where its epochs end.

    Without hyperparameters, it writes none to the HParams dashboard.
    """

    def __init__(self, summaries: Summaries, terms: ModelTerms, hparams: Mapping[str, Any] | None):
        self._summaries = summaries
        self._terms = terms
        self._hparams = hparams
        self._start_time = time.time()
        self._has_schedules = False
        self._latest: tuple[int, Mapping[str, Any], Mapping[str, float]] | None = None

    def start_epoch(self, epoch: int, step: int, params: Mapping[str, Any]) -> None:
        """Logs the schedules up to the end of training, once the number of steps is known.

        What `fit` tells its callbacks, `params`, has the `epochs` and `steps`, `None` if unknown.
        """
        steps, epochs = params.get("steps"), params.get("epochs")
        if self._summaries.log_dir is None or self._has_schedules or not steps or not epochs:
            return
        self._has_schedules = True
        end = step + steps * (epochs - epoch)
        schedules = follow_schedules(self._terms, step, end)
        self._summaries.start("train", epoch, step, end, schedules)

    def end_epoch(
        self, epoch: int, step: int, logs: Mapping[str, Any], readings: Mapping[str, float]
    ) -> None:
        """Logs the end of an epoch, to whose logs later callbacks may still add.

        Of what the terms logged, the readings, only the losses are results.
        """
        self._latest = step, logs, readings
        self._summaries.end_epoch("train", epoch, step)

    def end(self) -> None:
        """Writes hyperparameters and results at the end of training."""
        log_dir = self._summaries.log_dir
        if self._hparams is None or log_dir is None or self._latest is None:
            return
        step, logs, readings = self._latest
        results = {
            key: float(value)
            for key, value in logs.items()
            if not key.startswith(("gradients_", "other/"))
            and (key not in readings or key.endswith("_loss"))
        }
        values = hyperparameters(self._terms, self._hparams)
        with self._summaries.writing():
            write_hparams(log_dir, values, results, step, self._start_time)


def follow_schedules(
    terms: ModelTerms, begin: int, end: int
) -> dict[str, tuple[list[int], list[float]]]:
    """Returns by term the steps and the weights of its schedule, between two steps.

    A weighting, which multiplies the weights, makes them unknown: then there is none.
    """
    if terms.weighting is not None:
        return {}
    steps = np.unique(np.linspace(begin, end, _POINTS).round().astype("int64")).tolist()
    return {
        name: (steps, weight.given.values(steps))
        for name, weight in terms.items()
        if weight.given.moves
    }


def hyperparameters(
    terms: ModelTerms, others: Mapping[str, Any]
) -> dict[str, str | bool | int | float]:
    """Returns the hyperparameters of a joint loss by name; `others`, of the user, go before."""
    found: dict[str, Any] = {
        f"weight/{name}": _words(weight.given.source) for name, weight in terms.items()
    }
    found["weighting"] = "none" if terms.weighting is None else type(terms.weighting).__name__
    for layer in terms.gradient_layers:
        name = "aggregator" if len(terms.gradient_layers) == 1 else f"aggregator/{layer.name}"
        found[name] = "none" if layer.aggregator is None else type(layer.aggregator).__name__
    return {**found, **others}


def validate_hyperparameters(values: Any) -> dict[str, Any] | None:
    """Returns `values`, or raises `ValueError` if they are neither `None` nor a dict of them."""
    kinds = (str, bool, int, float, np.bool_, np.integer, np.floating, np.str_)
    if values is not None and not (
        isinstance(values, Mapping)
        and all(isinstance(x, str) for x in values)
        and all(isinstance(x, kinds) for x in values.values())
    ):
        raise invalid(
            "hparams", "None, or a dict of name to a string, a number or a boolean", values
        )
    return None if values is None else dict(values)


def _words(weight: Any) -> str | float:
    """Returns a number, or the class of a schedule and its numbers."""
    if isinstance(weight, int | float):
        return weight
    config = weight.get_config()
    words = [f"{key}={x!r}" for key, x in config.items() if isinstance(x, int | float)]
    return f"{type(weight).__name__}({', '.join(words)})"
