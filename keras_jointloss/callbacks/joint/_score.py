"""The score over tasks: the mean relative gain of logged values over baselines."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from keras_jointloss._core.keras_calls import running_callbacks, running_fit
from keras_jointloss._core.keras_models import mode_of
from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.callbacks.retrieval._evaluation import Evaluation
from keras_jointloss.terms.wrapped_metric import WrappedMetric

#: The name of the score in the logs, and its tag.
SCORE, TAG = "joint_score", "joint_loss/score"
_EXPECTED = (
    "None, or a dict of the name of a value in the logs to its baseline, a finite number other "
    "than 0, or to ('max', baseline) or ('min', baseline); by task, a dict of such dicts"
)


class Baseline(NamedTuple):
    """The value to compare a logged value with."""

    value: float
    mode: str | None  # `"max"` if a larger value is better, `"min"` if not; `None`: as its metric


#: The baselines by the name of a task, and by the name of a value in the logs.
Tasks = dict[str, dict[str, Baseline]]


def validate_score(score: Any) -> Tasks | None:
    """Returns the baselines by task; a value outside of any task is a task of its own."""
    if score is None:
        return None
    if not isinstance(score, Mapping) or not score:
        raise invalid("score", _EXPECTED, score)
    tasks = {}
    for name, given in score.items():
        of_task, label = (given, f"score[{name!r}]") if isinstance(given, Mapping) else (None, "")
        if not isinstance(name, str) or (of_task is not None and not of_task):
            raise invalid("score", _EXPECTED, score)
        values = {name: given} if of_task is None else of_task
        tasks[name] = {
            key: _baseline(x, f"{label or 'score'}[{key!r}]") for key, x in values.items()
        }
    return tasks


def _baseline(given: Any, label: str) -> Baseline:
    is_pair = isinstance(given, list | tuple)
    mode, value = given if is_pair and len(given) == 2 else (None, given)
    if is_pair and mode not in ("max", "min"):
        raise invalid(label, "a number, ('max', number) or ('min', number)", given)
    expected = "a finite number other than 0, by which the gain is divided"
    number = validate_number(value, label, expected=expected)
    if number == 0:
        raise invalid(label, expected, given)
    return Baseline(number, mode)


def relative_gain(value: float, baseline: float, mode: str) -> float:
    """Returns how much better a value is than a baseline, as a share of the baseline's size."""
    gain = (value - baseline) / abs(baseline)
    return gain if mode == "max" else -gain


class JointScore:
    """Adds the score over tasks to the logs of each epoch that has its values.

    Without tasks, it does nothing.
    """

    def __init__(self, tasks: Tasks | None, model: keras.Model):
        self._tasks = tasks or {}
        self._scored = model
        self._modes: dict[str, str] = {}
        self._missing: list[str] = []  # The values that the latest epoch without a score lacked

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for values in self._tasks.values() for name in values))

    @property
    def run(self) -> str:
        """The run that the score belongs to."""
        is_validation = any(name.startswith("val_") for name in self._names)
        return "validation" if is_validation else "train"

    def start(self) -> None:
        """Checks, at the start of training, that it validates the model if the score needs that."""
        self._modes, self._missing = {}, []
        fit = running_fit()
        if fit is None or fit.validates or any(map(_evaluates, running_callbacks())):
            return
        missing = [name for name in self._names if name.startswith("val_")]
        if missing:
            raise invalid(
                "score",
                "names of values of training, since `fit` has no `validation_data`",
                received=f"the names {missing}",
            )

    def add_to(self, logs: dict[str, Any], epoch: int) -> float | None:
        """Adds the score to the logs of an epoch and returns it; `None` if the epoch has none."""
        if not self._tasks:
            return None
        missing = [name for name in self._names if name not in logs]
        if missing:
            self._expect_later(missing, logs, epoch)
            return None
        if SCORE in logs:
            raise invalid("score", f"None, since {SCORE!r} in the logs is a value of the model")
        self._missing = []
        score = float(
            sum(self._gain(values, logs) for values in self._tasks.values()) / len(self._tasks)
        )
        logs[SCORE] = score
        return score

    def end(self) -> None:
        """Warns, at the end of training, of values that the last epochs lacked."""
        if self._missing and not self._modes:
            warnings.warn(
                f"There is no {SCORE!r} in the logs: no epoch of the training had {self._missing}.",
                stacklevel=3,
            )

    def _expect_later(self, missing: list[str], logs: Mapping[str, Any], epoch: int) -> None:
        """Raises `ValueError` if no other epoch can have the values that are missing."""
        self._missing = missing
        evaluations = filter(_evaluates, running_callbacks())
        if any((epoch + 1) % x.every for x in evaluations):
            return
        if "val_loss" in logs or not all(name.startswith("val_") for name in missing):
            raise invalid(
                "score",
                f"names among those in the logs, {sorted(logs)} (values that later callbacks of "
                "other packages add are not among them)",
                received=f"the unknown names {missing}",
            )

    def _gain(self, values: Mapping[str, Baseline], logs: Mapping[str, Any]) -> float:
        gains = [
            relative_gain(float(logs[name]), baseline.value, self._mode(name, baseline))
            for name, baseline in values.items()
        ]
        return sum(gains) / len(gains)

    def _mode(self, name: str, baseline: Baseline) -> str:
        if name not in self._modes:
            mode = baseline.mode or _find_mode(name, self._scored)
            if mode is None:
                raise invalid(
                    f"score[{name!r}]",
                    "('max', baseline) or ('min', baseline), since its metric does not say whether "
                    "a larger value is better",
                    baseline.value,
                )
            self._modes[name] = mode
        return self._modes[name]


def _evaluates(callback: Any) -> bool:
    return isinstance(callback, Evaluation)


def _find_mode(name: str, model: keras.Model) -> str | None:
    """Returns `"max"` or `"min"` for a value in the logs, or `None` if that is unknown."""
    plain = name.removeprefix("val_")
    if plain == "loss" or plain.endswith("_loss"):
        return "min"
    if any(name in x.latest for x in filter(_evaluates, running_callbacks())):
        return "min" if plain.endswith("median_rank") else "max"
    # Keras logs a metric under its own name, after that of the output if there are several.
    metrics = [x for metric in model.metrics for x in getattr(metric, "metrics", [metric])]
    found = [x for x in metrics if f"_{plain}".endswith(f"_{x.name}")]
    longest = max((len(x.name) for x in found), default=0)
    modes = {
        mode_of(x.resolved if isinstance(x, WrappedMetric) else x)
        for x in found
        if len(x.name) == longest
    }
    return modes.pop() if len(modes) == 1 else None
