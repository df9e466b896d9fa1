"""The callback that anneals or adapts the weights of a joint loss and logs its terms."""

import math
import os
import warnings
from typing import Any

import keras

from keras_jointloss._loops import running_loop
from keras_jointloss.callbacks._compiled_model import (
    move_to_front,
    name_weights,
    validate_output_names,
    validate_use,
)
from keras_jointloss.callbacks._gradient_readings import GradientReadings
from keras_jointloss.callbacks._summaries import Summaries
from keras_jointloss.callbacks._term_readings import Readings, TermReadings, to_tags
from keras_jointloss.find_terms import (
    bind_weighting,
    find_gradient_layers,
    find_terms,
    find_weighting,
)
from keras_jointloss.terms.clock import Clock, accumulated_steps, optimizer_step
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import Weighting


class JointLossCallback(keras.callbacks.Callback):
    """Anneals or adapts the weights of a joint loss while `fit` runs, and logs every term.

    Annealing: at the start of training the callback sets the schedules of all output and layer
    terms to the training step, the number of batches the model has been trained on. From there the
    weights move inside the compiled step. A resumed training (`initial_epoch`, a loaded model,
    `keras.callbacks.BackupAndRestore`) thus continues where it stopped, and evaluation moves
    nothing. A model that is compiled again with a new optimizer starts again at step 0.

    Weighting: the callback binds the rule given to `keras_jointloss.joint_loss` to all terms of the
    model, including layer terms. The rule then runs in the compiled step. Its state is saved with
    the model, including in the files of `keras.callbacks.BackupAndRestore` and in weights files.

    The callback moves to the front of the list of callbacks, so that callbacks that monitor or log
    its values find them in the `logs`, whatever their position. It also works in a custom loop that
    calls the hooks of a `keras.callbacks.CallbackList` around `train_on_batch`.

    Logging: the callback writes to `log_dir/train` and `log_dir/validation`, over the training
    step,

    - `joint_loss/<term>/raw`: the mean loss of the term, unweighted,
    - `joint_loss/<term>/weight`: the current weight,
    - `joint_loss/<term>/weighted`: the mean of weight times loss,
    - `joint_loss/<term>/share`: weighted divided by total,
    - `joint_loss/<term>/<reading>`: other values that a layer or a weighting reports for the term,
      such as `temperature` or `noise`,
    - `joint_loss/total`: the minimized loss, which is the sum of the weighted terms and of all
      other losses that layers and regularizers add.

    For layers that combine gradients, it also writes to `log_dir/train`

    - `gradients/<term>/norm`, `gradients/<term>/coefficient`: the length of the term's gradient and
      the coefficient that multiplied it,
    - `gradients/<term>~<other>/cosine`, `gradients/<term>~<other>/conflict`: the cosine of the
      angle between two gradients, and the share of the steps in which it was negative,
    - `gradients/conflict`: the share of the steps in which any cosine was negative,
    - `gradients/cosines`: a picture of all cosines at the end of an epoch,

    under `gradients/<name of the layer>/` if there are several such layers.

    Means run from the start of the epoch and weight each batch by its size, as Keras averages
    `loss`. (In Keras' own `<term>_loss` a smaller last batch may count fully.) The custom scalars
    dashboard of TensorBoard shows all terms in one chart. `log_dir` may be the same as that of a
    `keras.callbacks.TensorBoard` in the same `fit`.

    `History` contains `<term>_loss` and `<term>_weight` of every term, even where Keras does not
    show them itself, and the gradient statistics above, with underscores for slashes:
    `gradients_conflict`. The callback warns of each term whose loss is not finite, of the terms
    whose gradients were the first to be non-finite, and if the weights did not move in
    every step of an epoch.

    Args:
        log_dir: The folder for TensorBoard, or `None` to write nothing.
        update_freq: When to write the `train` run: `"epoch"`, `"batch"`, or a number of batches.
            The end of an epoch is always written.

    Raises:
        ValueError: If `update_freq` is invalid; at the start of `fit`, if the model has no term and
            no layer that reports gradients, two terms of the same name, losses that do not match
            its outputs, or weights that belong to another model; after the first batch, if the
            model does not use the weights, because it was not compiled with everything that
            `joint_loss` returned.
        FloatingPointError: At the end of an epoch, if a weighting with `on_nonfinite="raise"`
            received an unusable loss.
        OSError: At the start of `fit`, if `log_dir` cannot be written.

    Example:

    >>> callback = JointLossCallback(log_dir="logs", update_freq=100)
    """

    def __init__(self, log_dir: str | os.PathLike | None = None, update_freq: str | int = "epoch"):
        super().__init__()
        is_count = isinstance(update_freq, int) and not isinstance(update_freq, bool)
        if not (update_freq in ("epoch", "batch") or (is_count and int(update_freq) >= 1)):
            raise ValueError(
                "Invalid value for argument `update_freq`. Expected 'epoch', 'batch' or a number "
                f"of batches >= 1. Received: update_freq={update_freq!r}"
            )
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        self.update_freq = update_freq
        self._writes_batches = self.log_dir is not None and update_freq != "epoch"
        # Keras runs batch hooks in the background if all are safe there. Empty hooks are.
        self.async_safe = not self._writes_batches
        self._terms: dict[str, TermWeight] = {}
        self._weighting: Weighting | None = None
        # Created for a model: a `Clock`, `TermReadings`, `GradientReadings`, `Summaries`.
        self._clock: Any = None
        self._readings: Any = None
        self._gradients: Any = None
        self._summaries: Any = None
        self._get_metrics: Any = list
        self._is_validated = False
        self._is_training = False
        # The training steps at which the epoch began and at which the `train` run was last written,
        # and the number of batches that have begun in the epoch.
        self._begin_step = 0
        self._written_step = 0
        self._batches = 0
        self._warned: set[str] = set()

    def set_model(self, model):
        super().set_model(model)
        move_to_front(self)
        self._terms = find_terms(model)
        layers = find_gradient_layers(model)
        if not self._terms and not layers:
            raise ValueError(
                "JointLossCallback expects a model with a term: compile it with "
                "`keras_jointloss.joint_loss`, or add a `ContrastiveTerm` or a `GradientBalancer` "
                f"to it. Received: model {model.name!r} without any of these"
            )
        if any([layer.accumulate(accumulated_steps(model)) for layer in layers]):
            # The compiled function uses another number of accumulated steps.
            model.train_function = None
        validate_output_names(model)
        self._clock = Clock.of(model)
        self._clock.attach(self._terms, find_weighting(self._terms))
        self._weighting = bind_weighting(model, self._terms)
        self._readings = TermReadings(self._terms, self._weighting)
        self._gradients = GradientReadings(layers)
        self._summaries = Summaries(self.log_dir, bool(self._terms), bool(layers))
        self._get_metrics = lambda: model.metrics
        self._is_validated = False
        if model.train_function is None:
            for term in self._terms.values():
                if isinstance(term, LossWeight):
                    term.is_applied = term.is_counted = False
        name_weights(model)

    def on_train_begin(self, logs=None):
        self._is_training = True
        self._warned = set()
        self._clock.start_training(self, is_custom_loop=running_loop() is None)
        self._summaries.open("train")

    def on_epoch_begin(self, epoch, logs=None):
        self._readings.start_epoch()
        self._gradients.reset()
        self._sync_state()
        # Not at the start of training, when another callback may restore the optimizer.
        if self._clock.driver is self:
            self._clock.start_epoch()
        self._begin_step = self._written_step = self._training_step()
        self._batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        self._batches += 1
        # Another callback may have evaluated the model in the middle of the epoch.
        if not self._clock.is_on and self._clock.driver is self:
            self._readings.kept = {}
            self._sync_state()
            self._clock.start()

    def on_train_batch_end(self, batch, logs=None):
        if self._is_training and not self._is_validated:
            self._is_validated = True
            # Not through `self.model`, which on JAX writes to the variables while training runs.
            validate_use(self._terms, self._get_metrics())
        if not self._writes_batches:
            return
        every = 1 if self.update_freq == "batch" else int(self.update_freq)
        if (self._begin_step + batch + 1) // every > self._written_step // every:
            self._write_train(self._read(), logs, self._gradients.to_tags(self._gradients.read()))

    def on_epoch_end(self, epoch, logs=None):
        self._keep_train_readings()
        self._warn_of_standstill(epoch)
        step = self._training_step()
        for name, loss, run in self._readings.nonfinite_losses():
            what = f"The loss of term {name!r} is {loss} ({run}, step {step})."
            self._warn_once(f"loss of {name}", what)
        for key, value in self._readings.to_logs().items():
            logs.setdefault(key, value)
        logs.update(self._readings.labelled_losses())
        statistics = self._gradients.read()
        self._warn_of_gradients(statistics)
        gradients = self._gradients.to_tags(statistics)
        logs.update({tag.replace("/", "_"): value for tag, value in gradients.items()})
        if step > self._written_step:
            self._write_train(self._readings.kept["train"], logs, gradients)
        if self.log_dir is not None:
            for tag, picture, description in self._gradients.heat_maps(statistics):
                self._summaries.image("train", tag, picture, step, description)
        self._summaries.flush()
        if self._weighting is not None:
            self._weighting.report(epoch)

    def on_train_end(self, logs=None):
        self._is_training = False
        self._sync_state()
        self._clock.end_training()
        self._summaries.close()

    def on_test_begin(self, logs=None):
        if self._is_training:
            self._keep_train_readings()
        self._readings.reset_layer_terms()

    def on_test_end(self, logs=None):
        readings = self._read()
        tags = to_tags(readings, logs.get("loss", math.nan))
        self._summaries.scalars("validation", tags, self._training_step())
        if self._is_training:
            self._readings.kept["validation"] = readings
        else:
            self._summaries.close()

    def _sync_state(self) -> None:
        """Copies the state of the step into the variables on JAX, as Keras does for `model`."""
        _ = self.model

    def _read(self) -> Readings:
        self._sync_state()
        return self._readings.read()

    def _keep_train_readings(self) -> None:
        if "train" not in self._readings.kept:
            self._sync_state()
            # If the clock is off, another callback has already evaluated the model.
            self._readings.keep_train(has_means=self._clock.is_on)

    def _training_step(self) -> int:
        """Returns the number of batches that the model has been trained on."""
        step = self._clock.step if self._is_training else None
        return optimizer_step(self.model) if step is None else step

    def _write_train(self, readings: Readings, logs: dict, gradients: dict[str, float]) -> None:
        step = self._training_step()
        tags = {**to_tags(readings, logs.get("loss", math.nan)), **gradients}
        self._summaries.scalars("train", tags, step)
        self._written_step = step

    def _warn_of_standstill(self, epoch: int) -> None:
        is_driven = self._is_training and self._clock.driver is self
        if is_driven and self._clock.has_missed(self._batches):
            self._warn_once(
                "standstill",
                "The weights of a schedule or weighting did not move in all of the "
                f"{self._batches} batches of epoch {epoch}. Expected training of all layer terms "
                "by `fit`, or by `train_on_batch` between the hooks of a "
                "`keras.callbacks.CallbackList` without `reset_metrics` after "
                "`on_train_batch_begin`.",
            )

    def _warn_of_gradients(self, statistics) -> None:
        if isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            return  # It deliberately tries scales that are too large and skips these steps.
        for prefix, what in self._gradients.nonfinite_gradients(statistics):
            self._warn_once(prefix, what)

    def _warn_once(self, about: str, what: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(what, stacklevel=3)
