"""The callback that anneals or adapts the weights of a joint loss and logs its terms."""

import math
import os
import warnings
from typing import Any

import keras

from keras_jointloss._loops import enclosing_callbacks, running_loop
from keras_jointloss.find_terms import (
    bind_weighting,
    find_gradient_layers,
    find_terms,
    find_weighting,
)
from keras_jointloss.layers._gradient_combination import GradientCombination
from keras_jointloss.layers._gradient_record import GradientStatistics
from keras_jointloss.tensorboard import SummaryWriter, heat_map
from keras_jointloss.terms.clock import Clock, accumulated_steps, optimizer_step
from keras_jointloss.terms.layer_weight import LayerWeight
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import Weighting

Readings = dict[str, dict[str, float]]

# The charts of the custom scalars dashboard, with the tags in each.
_TERM_CHARTS = {
    "weighted": [r"^joint_loss/.+/weighted$", r"^joint_loss/total$"],
    "raw": [r"^joint_loss/.+/raw$"],
    "weight": [r"^joint_loss/.+/weight$"],
    "share": [r"^joint_loss/.+/share$"],
}
_GRADIENT_CHARTS = {
    "gradient norm": [r"^gradients/.+/norm$"],
    "gradient coefficient": [r"^gradients/.+/coefficient$"],
    "gradient cosine": [r"^gradients/.+/cosine$"],
    "gradient conflict": [r"^gradients/(.+/)?conflict$"],
}


class JointLossCallback(keras.callbacks.Callback):
    """Anneals or adapts the weights of a joint loss while `fit` runs, and logs every term.

    Annealing: at the start of training the schedules of all terms, output and layer terms alike,
    are put at the training step, the number of batches the model has been trained on; from there
    the weights move inside the compiled step. So a resumed training (`initial_epoch`, a loaded
    model, `keras.callbacks.BackupAndRestore`) goes on where it was, and evaluation moves nothing. A
    model that is compiled again with a new optimizer starts again at step 0.

    Weighting: a rule that `keras_jointloss.joint_loss` was given is bound to all the terms of the
    model, those of layers included, and then runs in the compiled step. What it has learned goes
    with the model into its files, those of `keras.callbacks.BackupAndRestore` and weights files
    included.

    The callback moves to the front of the list of callbacks, so that those that monitor or log its
    values find them in the `logs` wherever they stand. It also works in a custom loop that calls
    the hooks of a `keras.callbacks.CallbackList` around `train_on_batch`.

    Logging: into `log_dir/train` and `log_dir/validation`, over the training step,

    - `joint_loss/<term>/raw`: the mean loss of the term, unweighted,
    - `joint_loss/<term>/weight`: the weight now,
    - `joint_loss/<term>/weighted`: the mean of weight times loss,
    - `joint_loss/<term>/share`: weighted over total,
    - `joint_loss/<term>/<reading>`: what else a layer or a weighting has to say of the term, as
      `temperature` or `noise`,
    - `joint_loss/total`: the loss that is minimised, which is the sum of the weighted terms and of
      whatever else layers and regularizers add.

    and, of layers that combine gradients, into `log_dir/train`

    - `gradients/<term>/norm`, `gradients/<term>/coefficient`: the length of the term's gradient and
      what it was multiplied by,
    - `gradients/<term>~<other>/cosine`, `gradients/<term>~<other>/conflict`: the cosine of the
      angle between two gradients, and in which share of the steps it was negative,
    - `gradients/conflict`: the share of the steps in which any was,
    - `gradients/cosines`: at the end of an epoch all the cosines in a picture,

    under `gradients/<name of the layer>/` if there are several of these layers.

    Means run from the start of the epoch and weigh each batch by its size, as Keras averages
    `loss`. (In Keras' own `<term>_loss` a smaller last batch may count fully.) The custom scalars
    dashboard of TensorBoard shows all the terms in one chart. `log_dir` may be that of a
    `keras.callbacks.TensorBoard` in the same `fit`.

    `History` has `<term>_loss` and `<term>_weight` of every term, also where Keras does not show
    them by itself, and what the tags above tell of gradients, with underscores for slashes:
    `gradients_conflict`. A warning names each term whose loss is not finite, and those whose
    gradients were the first that were not. Another one says if the weights stood still in an epoch.

    Args:
        log_dir: The folder for TensorBoard, or `None` to write nothing.
        update_freq: When to write the `train` run: `"epoch"`, `"batch"`, or a number of batches.
            An epoch's end is always written.

    Raises:
        ValueError: If `update_freq` is invalid; at the start of `fit`, if the model has no term and
            no layer that reports gradients, two terms of the same name, other outputs than the
            losses are for, or weights that belong to another model; after the first batch, if
            the model does not use the weights, as it was not compiled with all that `joint_loss`
            returned.
        FloatingPointError: At the end of an epoch, if a weighting met a loss that it cannot use and
            has `on_nonfinite="raise"`.
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
        # Keras runs the batch hooks in the background if all are safe there; doing nothing is.
        self.async_safe = not self._writes_batches
        self._terms: dict[str, TermWeight] = {}
        self._weighting: Weighting | None = None
        self._clock: Any = None  # A `Clock`.
        self._is_validated = False
        self._get_metrics: Any = list
        # The layers that combine gradients, by what goes before the names of what they tell.
        self._gradient_layers: dict[str, GradientCombination] = {}
        self._writers: dict[str, SummaryWriter] = {}
        self._is_training = False
        # The training step at which the epoch began and the `train` run was written last, and how
        # many batches have begun since.
        self._begin_step = 0
        self._written_step = 0
        self._batches = 0
        self._readings: dict[str, Readings] = {}
        self._warned: set[str] = set()

    def set_model(self, model):
        super().set_model(model)
        _move_to_front(self)
        self._terms = find_terms(model)
        layers = find_gradient_layers(model)
        if not self._terms and not layers:
            raise ValueError(
                "JointLossCallback expects a model with a term: compile it with "
                "`keras_jointloss.joint_loss`, or put a `ContrastiveTerm` or a `GradientBalancer` "
                f"in it. Received: model {model.name!r} without any"
            )
        self._gradient_layers = {
            "gradients" if len(layers) == 1 else f"gradients/{layer.name}": layer
            for layer in layers
        }
        if any([layer.accumulate(accumulated_steps(model)) for layer in layers]):
            # What has been compiled counts otherwise.
            model.train_function = None
        _validate_output_names(model)
        self._clock = Clock.of(model)
        self._clock.attach(self._terms, find_weighting(self._terms))
        self._weighting = bind_weighting(model, self._terms)
        self._get_metrics = lambda: model.metrics
        self._is_validated = False
        if model.train_function is None:
            for term in self._terms.values():
                if isinstance(term, LossWeight):
                    term.is_applied = term.is_counted = False
        _name_weights(model, self._terms)

    def on_train_begin(self, logs=None):
        self._is_training = True
        self._warned = set()
        self._clock.start_training(self, is_custom_loop=running_loop() is None)
        if self.log_dir is not None:
            self._writer("train")

    def on_epoch_begin(self, epoch, logs=None):
        self._readings = {}
        self._reset_layer_terms()
        for layer in self._gradient_layers.values():
            layer.reset_statistics()
        _ = self.model  # On JAX this brings the state of the step into the variables.
        # Not at the beginning of training: another callback may restore the optimizer there.
        if self._clock.driver is self:
            self._clock.start_epoch()
        self._begin_step = self._written_step = self._training_step()
        self._batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        self._batches += 1
        # Another callback may have evaluated the model in the middle of the epoch.
        if not self._clock.is_on and self._clock.driver is self:
            self._readings = {}
            _ = self.model
            self._clock.start()

    def on_train_batch_end(self, batch, logs=None):
        self._validate_use()
        if not self._writes_batches:
            return
        every = 1 if self.update_freq == "batch" else int(self.update_freq)
        if (self._begin_step + batch + 1) // every > self._written_step // every:
            self._write("train", self._read(), logs, self._by_tag(self._statistics()))

    def on_epoch_end(self, epoch, logs=None):
        self._keep_train_readings()
        self._warn_of_standstill(epoch)
        step = self._training_step()
        for run, prefix in (("train", ""), ("validation", "val_")):
            for name, reading in self._readings.get(run, {}).items():
                if not math.isfinite(reading.get("loss", 0.0)):
                    what = f"The loss of term {name!r} is {reading['loss']} ({run}, step {step})."
                    self._warn_once(f"loss of {name}", what)
                for key, value in reading.items():
                    if key != "weighted":
                        logs.setdefault(f"{prefix}{name}_{key}", value)
        statistics = self._statistics()
        self._warn_of_gradients(statistics)
        gradients = self._by_tag(statistics)
        logs.update({tag.replace("/", "_"): value for tag, value in gradients.items()})
        if step > self._written_step:
            self._write("train", self._readings["train"], logs, gradients)
        if self.log_dir is not None:
            self._write_heat_maps(statistics, step)
        self._flush()
        if self._weighting is not None:
            self._weighting.report(epoch)

    def on_train_end(self, logs=None):
        self._is_training = False
        _ = self.model
        self._clock.end_training()
        self._close()

    def on_test_begin(self, logs=None):
        if self._is_training:
            self._keep_train_readings()
        self._reset_layer_terms()

    def on_test_end(self, logs=None):
        readings = self._read()
        self._write("validation", readings, logs)
        if self._is_training:
            self._readings["validation"] = readings
        else:
            self._close()

    def _training_step(self) -> int:
        """Returns the number of batches that the model has been trained on."""
        step = self._clock.step if self._is_training else None
        return optimizer_step(self.model) if step is None else step

    def _validate_use(self) -> None:
        """Raises `ValueError` if the model does not use the weights of its output terms."""
        if self._is_validated or not self._is_training:
            return
        self._is_validated = True
        # Not by `self.model`: that writes to the variables on JAX, which trains meanwhile.
        metrics = [
            x for metric in self._get_metrics() for x in getattr(metric, "metrics", [metric])
        ]
        for name, term in self._terms.items():
            if not isinstance(term, LossWeight):
                continue
            is_metric = any(term is metric for metric in metrics)
            if not (is_metric and term.is_applied and term.is_counted):
                raise ValueError(
                    f"The model does not use the weight of the term {name!r}. Expected a model "
                    "that is compiled with all that `keras_jointloss.joint_loss` returns, "
                    "`compile(..., **joint_loss(...))`, with further metrics as arguments of "
                    "`joint_loss`; a `metrics` property of its own has to include "
                    "`super().metrics`, and a `train_step` of its own has to call "
                    "`self.compute_loss` and `self.compute_metrics`. Received: a model in which "
                    f"the weight is {'' if term.is_applied else 'not '}applied to the loss and "
                    f"{'' if is_metric and term.is_counted else 'not '}among the metrics"
                )

    def _warn_of_standstill(self, epoch: int) -> None:
        is_driven = self._is_training and self._clock.driver is self
        if is_driven and self._clock.has_missed(self._batches):
            self._warn_once(
                "standstill",
                "The weights of a schedule or weighting did not move in all of the "
                f"{self._batches} batches of epoch {epoch}. Expected training by `fit`, or by "
                "`train_on_batch` between the hooks of a `keras.callbacks.CallbackList` without "
                "`reset_metrics` after `on_train_batch_begin`, of all the layers that are terms.",
            )

    def _reset_layer_terms(self) -> None:
        # Keras does it through the metrics of the layer, but not on JAX, nor in a model that has
        # its own idea of `metrics`.
        for term in self._terms.values():
            if isinstance(term, LayerWeight):
                term.reset()

    def _read(self) -> Readings:
        _ = self.model  # On JAX this brings the state of the step into the variables.
        others = {} if self._weighting is None else self._weighting.read()
        return {name: {**term.read(), **others.get(name, {})} for name, term in self._terms.items()}

    def _statistics(self) -> dict[str, GradientStatistics]:
        """Returns what the layers that combine gradients tell, by the layer's prefix."""
        told = {prefix: layer.statistics() for prefix, layer in self._gradient_layers.items()}
        return {prefix: statistics for prefix, statistics in told.items() if statistics is not None}

    def _by_tag(self, told: dict[str, GradientStatistics]) -> dict[str, float]:
        return {
            f"{prefix}/{tag}": value
            for prefix, statistics in told.items()
            for tag, value in statistics.by_tag(self._gradient_layers[prefix].terms).items()
        }

    def _write_heat_maps(self, told: dict[str, GradientStatistics], step: int) -> None:
        for prefix, statistics in told.items():
            terms = ", ".join(f"`{term}`" for term in self._gradient_layers[prefix].terms)
            description = (
                f"Rows and columns: {terms}. Blue: cosine 1; white: 0; red: -1, in conflict."
            )
            picture = heat_map(statistics.cosines)
            self._writer("train").image(f"{prefix}/cosines", picture, step, description)

    def _keep_train_readings(self) -> None:
        """Reads the terms at the end of an epoch, before an evaluation starts their means anew."""
        if "train" not in self._readings:
            self._readings["train"] = self._read()
            if not self._clock.is_on:
                # Another callback has evaluated the model before: the means are those of that.
                for reading in self._readings["train"].values():
                    reading.pop("loss", None)
                    reading.pop("weighted", None)

    def _warn_of_gradients(self, told: dict[str, GradientStatistics]) -> None:
        if isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            return  # It tries scales that are too large on purpose, and skips these steps.
        for prefix, statistics in told.items():
            layer = self._gradient_layers[prefix]
            if statistics.nonfinite_step.any():
                step = statistics.nonfinite_step.max()
                terms = [layer.terms[i] for i in statistics.nonfinite_step.nonzero()[0]]
                what = f"not finite at layer {layer.name!r} (train, step {step})"
                self._warn_once(prefix, f"The gradients of the terms {terms} are {what}.")

    def _warn_once(self, about: str, what: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(what, stacklevel=3)

    def _writer(self, run: str) -> SummaryWriter:
        if run not in self._writers:
            self._writers[run] = writer = SummaryWriter(os.path.join(str(self.log_dir), run))
            charts = _TERM_CHARTS if self._terms else {}
            if self._gradient_layers and run == "train":
                charts = {**charts, **_GRADIENT_CHARTS}
            if charts:
                writer.chart_layout("Joint loss", charts)
        return self._writers[run]

    def _write(
        self, run: str, readings: Readings, logs: dict, others: dict[str, float] | None = None
    ) -> None:
        if self.log_dir is None:
            return
        total = logs.get("loss", math.nan)
        values = {"joint_loss/total": total, **(others or {})}
        for name, reading in readings.items():
            for key, value in reading.items():
                values[f"joint_loss/{name}/{'raw' if key == 'loss' else key}"] = value
            if "weighted" in reading:
                share = reading["weighted"] / total if total else math.nan
                values[f"joint_loss/{name}/share"] = share
        step = self._training_step()
        self._writer(run).scalars(values, step)
        if run == "train":
            self._written_step = step

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _move_to_front(callback: keras.callbacks.Callback) -> None:
    """Puts a callback first in the list that sets its model, which no argument of it gives away."""
    owner = enclosing_callbacks()
    if owner is not None and callback in owner.callbacks:
        owner.callbacks.remove(callback)
        owner.callbacks.insert(0, callback)


def _name_weights(model: keras.Model, terms: dict[str, TermWeight]) -> None:
    """Gives each weight of an output the name with which it is logged as `<term>_weight`."""
    # Keras puts the output's name before a metric's only if there are several outputs.
    count = len(getattr(model, "outputs", None) or [])
    for name, term in terms.items():
        if not count or not isinstance(term, LossWeight):
            continue
        right = "weight" if count > 1 else f"{name}_weight"
        if term.name != right and term.name in ("weight", f"{name}_weight"):
            term.name = right
            # What has been compiled returns it under the other name.
            model.train_function = model.test_function = None


def _validate_output_names(model: keras.Model) -> None:
    """Raises `ValueError` if the losses of a Functional model are for other outputs."""
    if isinstance(model.loss, dict) and isinstance(model, keras.Sequential):
        raise ValueError(
            "Expected one loss in place of a dict for a `keras.Sequential`, whose output has no "
            f"name: `joint_loss(loss, weights=...)`. Received: losses for {sorted(model.loss)}"
        )
    if not isinstance(model.loss, dict) or not hasattr(model, "output_names"):
        return
    has_dict = isinstance(model.output, dict)
    names, losses = set(model.output if has_dict else model.output_names), set(model.loss)
    # Keras wants a loss, if only `None`, for every output of a list.
    if losses == names or (has_dict and losses < names):
        return
    raise ValueError(
        "Expected losses for the outputs of the model (`None` for one without a loss), which are "
        f"{sorted(names)}. Received: losses for {sorted(losses)}"
    )
