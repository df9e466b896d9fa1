"""The callback that anneals or adapts the weights of a joint loss and logs its terms."""

import math

import keras

from keras_jointloss._core.keras_calls import (
    evaluation_logs,
    move_to_front,
    running_callbacks,
    running_loop,
)
from keras_jointloss._core.keras_models import sync_state
from keras_jointloss._core.types import Logs
from keras_jointloss.callbacks._summaries import Summaries
from keras_jointloss.callbacks.joint._gradient_readings import GradientReadings
from keras_jointloss.callbacks.joint._nonfinite_terms import NonfiniteTerms
from keras_jointloss.callbacks.joint._options import JointLossOptions
from keras_jointloss.callbacks.joint._score import SCORE, TAG, JointScore
from keras_jointloss.callbacks.joint._stuck_terms import TermProgress
from keras_jointloss.callbacks.joint._term_readings import TermReadings, report_of
from keras_jointloss.callbacks.joint._train_curves import TrainCurves
from keras_jointloss.callbacks.joint._training_record import TrainingRecord
from keras_jointloss.callbacks.joint._training_warnings import (
    EpochEnd,
    TrainingWarnings,
    forget_unknown,
)
from keras_jointloss.callbacks.retrieval._evaluation import Evaluation
from keras_jointloss.joint.model_terms import ModelTerms
from keras_jointloss.joint.report import Report
from keras_jointloss.terms.clock import optimizer_step


class JointLossCallback(JointLossOptions):
    """Anneals or adapts the weights of a joint loss while `fit` runs, and logs every term.

    Annealing: at the start of training the callback sets the schedules of all output and layer
    terms to the training step, the number of batches the model has been trained on. From there the
    weights move inside the compiled step. A resumed training (`initial_epoch`, a loaded model,
    `keras.callbacks.BackupAndRestore`) thus continues where it stopped, and evaluation moves
    nothing. A model that is compiled again with a new optimizer starts again at step 0.

    Weighting: the callback binds the rule given to `keras_jointloss.joint_loss` to all terms of the
    model, including layer terms. The rule runs in the compiled step, and is saved with the model.

    The callback moves to the front of the list of callbacks, so that others find its values in the
    `logs`. A custom loop with a `keras.callbacks.CallbackList` around `train_on_batch` works, too.

    Logging: the callback writes to `log_dir/train` and `log_dir/validation`, over training steps,

    - `joint_loss/<term>/raw`, `.../weight`: the mean loss, unweighted, and the current weight,
    - `joint_loss/<term>/weighted`, `.../share`: the mean of weight times loss, and this divided by
      the total,
    - `joint_loss/<term>/<reading>`: other values that a layer or a weighting reports for the term,
      such as `temperature` or `noise`,
    - `joint_loss/<term>/skipped`: in how many steps of the epoch so far `on_nonfinite="skip"` left
      the term out,
    - `joint_loss/total`: the minimized loss, which is the sum of the weighted terms and of all
      other losses that layers and regularizers add,
    - `joint_loss/other`, `.../share`: the sum of these other losses, if there are any,
    - `joint_loss/other/<layer>/weighted`, `.../share`: the part of them that a layer adds,
    - `joint_loss/fixed_total`: the total at `validation_weights`,
    - `joint_loss/score`: the `score` at the end of an epoch.

    For layers that combine gradients, it also writes to `log_dir/train`

    - `gradients/<term>/norm`, `.../coefficient`: the length of its gradient and its coefficient,
    - `gradients/<term>~<other>/cosine`, `.../conflict`: the cosine of the angle between two
      gradients, and the share of the steps in which it was negative,
    - `gradients/conflict`: the share of the steps in which any cosine was negative,
    - `gradients/cosines`: a picture of all cosines at the end of an epoch.

    If there are several such layers, `gradients/<name of the layer>/` stands before each of them.

    A point of `train` has the means since the last point or the start of the epoch. `raw` is the
    mean over the items that take part, of missing targets over the labelled ones; as in the loss of
    Keras, sample weights multiply the losses, not the number of items. `weighted` is the part of
    `loss`, in which Keras weights each batch by its size: raw times a constant weight, unless the
    batches differ in the share of items that take part. TensorBoard's tab "Joint loss" shows all of
    them. `log_dir` may be that of a `keras.callbacks.TensorBoard` in the same `fit`.

    `History` contains `<term>_loss`, `<term>_weight`, `<term>_share`, readings such as
    `<term>_skipped`, `other/<layer>_loss` and the gradient statistics, with underscores for
    slashes: `gradients_conflict`. A value that an epoch
    does not have is NaN, and no point in TensorBoard; without validation an epoch has none of its
    values, as in Keras. In the logs of epochs and of `evaluate`, `<term>_loss` is the mean `raw`;
    in the progress bar it is Keras' own, in which a smaller last batch may count fully. `summary`
    returns a table of an epoch, as does `kj.report(history)`.

    Warnings, each once: of logs that cannot be written any more, without which training goes on;
    of losses and gradients that are not finite; of weights that did not move in every step; of a
    term that contributes less than 1/10,000 of another under a weighting; of `EarlyStopping`,
    `ReduceLROnPlateau` or `ModelCheckpoint` that compare `loss` or `val_loss` of epochs with
    different weights; and, after at least two updates in an epoch, of terms with a weight whose
    loss never changed (unless at the `floor` or `target` of a `LossTerm`) or whose gradient was 0.
    After six epochs also of a loss that has not fallen beside one that does, and of a weight that
    ran away. `keras_jointloss.diagnose` judges by the same rules.

    Args:
        log_dir: The folder for TensorBoard, or `None` to write nothing.
        update_freq: When to write the `train` run: `"epoch"`, `"batch"`, or a number of batches.
            The end of an epoch is always written. Points are differences of float32 sums over the
            epoch: off by about 0.1 % after 50,000 steps of an epoch, and 0.4 % after 200,000.
        validation_weights: Weights that do not move, for a total that epochs can be compared by:
            the logs then contain `joint_loss` and `val_joint_loss`, the sums of the raw losses of
            the terms with these weights (without other losses), for callbacks such as
            `EarlyStopping("val_joint_loss", mode="min")`. A dict with a number >= 0 for each term;
            `"equal"` for 1 each; `"initial"` for the weights that the user gave, of a schedule its
            value at step 0. A term that fades in from 0 then does not count.
        on_log: Called as `on_log(run, {tag: value}, step)` with all scalars above, also without
            `log_dir`, of several processes in the chief: for another tracker. `run` is `"train"` or
            `"validation"`. An error of its first call for a run ends training, of later calls is
            one warning.
        hparams: Hyperparameters of the user for TensorBoard's HParams dashboard, or `{}`. `fit`
            then writes them at its end to `log_dir/hparams`, with the weights, the weighting and
            the aggregator, and as metrics the last losses and metrics in the `logs`.
        score: Baselines for one score over tasks, `joint_score` in the logs of an epoch: by the
            name of a value in the logs what, say, a model of this task alone reaches,
            `{"val_a_accuracy": 0.91, "val_b_mae": 0.3}`. The score is the mean of the relative
            gains, `(value - baseline) / |baseline|` if a larger value is better, as the metric
            says, or minus that. For other values write `("max", 0.91)` or `("min", 0.3)`. A dict of
            such dicts by task gives the mean over tasks of their means. An epoch without one of
            the values has no score.
        on_nonfinite: What to do if the loss, the weight or the gradient of a term is NaN or
            infinite in a step of training. `"warn"` and `"raise"` name the first such term, what it
            was, the training step, counted from 1, and the last loss and weight before it, after
            every `update_freq` batches and at the end of the epoch. `"skip"` leaves the term out of
            each such step, with its gradients, and trains the others as if there were no such term.
            It warns once of each term, and the logs contain `<term>_skipped`, the number of such
            steps in the epoch (`joint_loss/<term>/skipped`). Means are over the other steps. A
            weighting sees the term as absent, unless its gradient alone is not finite. Loss scaling
            still sees what overflows only in float16. `None` to watch for none: the end of an epoch
            then warns of mean losses.

    Raises:
        ValueError: If an argument is invalid; at the start of `fit`, if the model has no term and
            no layer that reports gradients, if names, losses, weights, `validation_weights` or the
            wiring of its terms do not fit, or the `score` needs validation data; after the first
            batch, if the model does not use the weights, because it was not compiled with
            everything that `joint_loss` returned; at the end of an epoch, if a value of the `score`
            is not in the logs, or nothing says in which direction it is better.
        FloatingPointError: With `on_nonfinite="raise"`, see there; at the end of an epoch, if a
            weighting whose own `on_nonfinite` is `"raise"` received an unusable loss.
        OSError: At the start of `fit`, if `log_dir` cannot be written. Later, training goes on.

    Example:

    >>> callback = JointLossCallback(log_dir="logs", update_freq=100, validation_weights="equal")
    """

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        move_to_front(self, behind=() if self._tasks is None else (Evaluation,))
        self._terms = terms = ModelTerms(model)
        terms.connect(model, self.on_nonfinite)
        self._nonfinite = NonfiniteTerms(self.on_nonfinite, terms, self._every)
        self._readings = TermReadings(model, terms, self.validation_weights)
        self._gradients = GradientReadings(terms.gradient_layers)
        has = bool(terms), bool(terms.gradient_layers)
        self._summaries = Summaries(model, self.log_dir, *has, self.on_log)
        self._record = TrainingRecord(self._summaries, terms, self.hparams)
        self._warnings = TrainingWarnings(terms)
        self._progress = TermProgress(model, terms)
        self._score = JointScore(self._tasks, model)
        sources = self._readings, self._gradients
        every = self._every if self._is_logging else None
        self._curves = TrainCurves(every, *sources, self._summaries, model)
        self._is_validated = False

    def on_train_begin(self, logs: Logs = None) -> None:
        self._is_training = True
        self._warnings = TrainingWarnings(self._terms)
        self._terms.clock.start_training(self, is_custom_loop=running_loop() is None)
        self._score.start()
        self._summaries.start_training("train")

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._readings.start_epoch()
        self._gradients.reset()
        sync_state(self)
        # Not at the start of training, when another callback may restore the optimizer.
        if self._terms.clock.driver is self:
            self._terms.clock.start_epoch()
        self._warnings.start_epoch()
        self._progress.start_epoch()
        forget_unknown(running_callbacks(), self._unknown)
        # The step at which the epoch begins, and how many of its batches have begun.
        self._begin_step, self._batches = self._training_step(), 0
        self._nonfinite.start(self._begin_step)
        self._curves.start_epoch(self._begin_step)
        self._record.start_epoch(epoch, self._begin_step, self.params or {})

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._batches += 1
        # Another callback may have evaluated the model in the middle of the epoch.
        if not self._terms.clock.is_on and self._terms.clock.driver is self:
            self._readings.kept = {}
            sync_state(self)
            self._progress.resume()
            self._curves.skip(self._begin_step + batch)
            self._terms.clock.start()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if self._is_training and not self._is_validated:
            self._is_validated = True
            # Not through `self.model`, which on JAX writes to the variables while training runs.
            self._terms.validate_use(self._progress.model.metrics)
        if self._curves.is_due(self._begin_step + batch + 1):
            sync_state(self)
            self._curves.write(self._training_step(), logs.get("loss", math.nan))
        if self._nonfinite.is_due(self._begin_step + batch + 1):
            sync_state(self)
            self._nonfinite.find()
            self._nonfinite.report()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._keep_train_readings()
        self._readings.totals["train"] = float(logs.get("loss", math.nan))
        self._readings.keep_report()
        step = self._training_step()
        statistics = self._gradients.read()
        end = EpochEnd(epoch, step, self._batches, logs, statistics)
        is_driven = self._is_training and self._terms.clock.driver is self
        self._warnings.leave_out(self._nonfinite.with_loss)
        self._warnings.of_epoch(end, self._readings, self._gradients, self._progress, is_driven)
        readings = {**self._readings.to_logs(), **self._gradients.to_logs(statistics)}
        self._readings.complete(logs, readings)
        score = self._score.add_to(logs, epoch)
        if score is not None:
            self._summaries.scalars(self._score.run, {TAG: score}, step)
        self._unknown = {key for key in (*readings, SCORE) if math.isnan(logs.get(key, 0.0))}
        self._curves.end_epoch(step, statistics)
        self._summaries.images("train", self._gradients.heat_maps(statistics), step)
        self._record.end_epoch(epoch, step, logs, readings)
        self._nonfinite.report()
        if self._terms.weighting is not None:
            self._terms.weighting.report(epoch)

    def on_train_end(self, logs: Logs = None) -> None:
        self._is_training = False
        sync_state(self)
        self._score.end()
        self._terms.clock.end_training()
        self._record.end()
        self._summaries.close()

    def on_test_begin(self, logs: Logs = None) -> None:
        if self._is_training:
            self._keep_train_readings()
        self._is_first_test_batch = True

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        # Not before every callback of this class has kept the readings of training.
        if self._is_first_test_batch:
            self._is_first_test_batch = False
            self._readings.reset_layers()

    def on_test_end(self, logs: Logs = None) -> None:
        sync_state(self)
        tags = self._readings.end_evaluation(logs, evaluation_logs())
        self._summaries.scalars("validation", tags, self._training_step())
        if not self._is_training:
            self._readings.keep_report()
            self._summaries.close()

    def summary(self) -> Report:
        """Returns a table of what each term contributed to the loss, as text and as HTML.

        It shows the latest epoch that has ended, or else the latest evaluation.

        Raises:
            ValueError: If there has been neither.
        """
        return report_of(self._readings)

    def _keep_train_readings(self) -> None:
        if "train" not in self._readings.kept:
            sync_state(self)
            # If the clock is off, another callback has already evaluated the model.
            self._readings.keep_train(has_means=self._terms.clock.is_on)
            self._nonfinite.find()
            if self._terms.clock.is_on:
                self._curves.keep()
            self._progress.end()

    def _training_step(self) -> int:
        """Returns the number of batches that the model has been trained on."""
        step = self._terms.clock.step if self._is_training else None
        return optimizer_step(self.model) if step is None else step
