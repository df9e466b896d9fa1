"""The options of the callback of a joint loss."""

import os
from collections.abc import Mapping
from typing import Any, Literal

from keras_jointloss._core.keras_models import allow_background
from keras_jointloss.callbacks._copies import Copyable
from keras_jointloss.callbacks._summaries import OnLog, validate_log_dir, validate_on_log
from keras_jointloss.callbacks.joint._nonfinite_terms import validate_on_nonfinite
from keras_jointloss.callbacks.joint._score import validate_score
from keras_jointloss.callbacks.joint._term_readings import validate_fixed_weights
from keras_jointloss.callbacks.joint._train_curves import batches_between
from keras_jointloss.callbacks.joint._training_record import validate_hyperparameters


class JointLossOptions(Copyable):
    """Validates the options that `JointLossCallback` describes."""

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        update_freq: int | Literal["epoch", "batch"] = "epoch",
        validation_weights: Mapping[str, float] | Literal["equal", "initial"] | None = None,
        on_log: OnLog | None = None,
        hparams: Mapping[str, Any] | None = None,
        score: Mapping[str, Any] | None = None,
        on_nonfinite: Literal["warn", "raise", "skip"] | None = None,
    ):
        super().__init__()
        self.log_dir = validate_log_dir(log_dir)
        self.update_freq = update_freq
        self.validation_weights = validate_fixed_weights(validation_weights, "validation_weights")
        self.on_log = validate_on_log(on_log)
        self.hparams = validate_hyperparameters(hparams)
        self.score = score
        self.on_nonfinite = validate_on_nonfinite(on_nonfinite)
        self._tasks = validate_score(score)
        self._every = batches_between(update_freq)
        self._is_logging = self.log_dir is not None or on_log is not None
        is_read = self._is_logging or on_nonfinite is not None
        allow_background(self, self._every is None or not is_read)  # Empty hooks are safe there.
        self._readings: Any = None  # Created by `set_model`, as others are.
        self._is_training = False
        self._is_first_test_batch = False
        self._unknown: set[str] = set()  # The logged values of the last epoch that are NaN
