"""The callback that anneals or adapts the weights of a joint loss and logs its terms."""

import math
import os
import warnings

import keras

from keras_jointloss.callbacks.steps import optimizer_step
from keras_jointloss.joint import bind_weighting, find_gradient_layers, find_terms
from keras_jointloss.layers._gradient_combination import GradientCombination
from keras_jointloss.layers._gradient_record import GradientStatistics
from keras_jointloss.loss_weight import LayerWeight, LossWeight, TermWeight
from keras_jointloss.tensorboard import SummaryWriter, heat_map
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

    Annealing: at the start of training the schedule of each term, output and layer terms alike, is
    put at the training step, the count of batches the optimizer has seen; from there the weight
    moves inside the compiled step. So a resumed training (`initial_epoch`, a loaded model,
    `keras.callbacks.BackupAndRestore`) goes on where it was, and evaluation moves nothing.

    Weighting: a rule that `keras_jointloss.joint_loss` was given is tied to all the terms of the
    model, which only the callback can know, as layers have theirs, too; it then runs in the
    compiled step. What it has learned goes with the model into its files, those of
    `keras.callbacks.BackupAndRestore` and weights files included. To load a weights file by hand
    before the first `fit` of a model, call `set_model(model)` first.

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
    gradients were the first that were not.

    Args:
        log_dir: The folder for TensorBoard, or `None` to write nothing.
        update_freq: When to write the `train` run: `"epoch"`, `"batch"`, or a number of batches.
            An epoch's end is always written.

    Raises:
        ValueError: If `update_freq` is invalid; at the start of `fit`, if the model has no term and
            no layer that tells of gradients, two terms of the same name, or other outputs than the
            losses are for.
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
        # The layers that combine gradients, by what goes before the names of what they tell.
        self._gradient_layers: dict[str, GradientCombination] = {}
        self._writers: dict[str, SummaryWriter] = {}
        self._is_training = False
        # The training step at which the epoch began and the `train` run was written last.
        self._begin_step: int | None = None
        self._written_step = 0
        self._readings: dict[str, Readings] = {}
        self._warned: set[str] = set()

    def set_model(self, model):
        super().set_model(model)
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
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        steps = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        if any([layer.accumulate(steps) for layer in layers]):
            # What has been compiled counts otherwise.
            model.train_function = None
        _validate_output_names(model)
        self._weighting = bind_weighting(model, self._terms)
        outputs = getattr(model, "outputs", None) or []
        for name, term in self._terms.items():
            # Keras puts the output's name before a metric's only if there are several outputs.
            if len(outputs) == 1 and isinstance(term, LossWeight) and term.name == "weight":
                term.name = f"{name}_weight"

    def on_train_begin(self, logs=None):
        self._is_training = True
        self._begin_step = None
        self._warned = set()
        if self.log_dir is not None:
            self._writer("train")

    def on_epoch_begin(self, epoch, logs=None):
        self._readings = {}
        self._reset_layer_terms()
        for layer in self._gradient_layers.values():
            layer.reset_statistics()
        # Not at the beginning of training: another callback may restore the optimizer there.
        self._start_annealing(
            optimizer_step(self.model) if self._begin_step is None else None, is_new_epoch=True
        )
        self._begin_step = self._written_step = self._training_step()

    def on_train_batch_begin(self, batch, logs=None):
        # Another callback may have evaluated the model in the midst of the epoch.
        if not self._is_annealing():
            self._readings = {}
            self._start_annealing()

    def on_train_batch_end(self, batch, logs=None):
        if not self._writes_batches:
            return
        every = 1 if self.update_freq == "batch" else int(self.update_freq)
        if (self._begin_step + batch + 1) // every > self._written_step // every:
            self._write("train", self._read(), logs, self._by_tag(self._statistics()))

    def on_epoch_end(self, epoch, logs=None):
        self._keep_train_readings()
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
        for term in self._terms.values():
            term.stop_annealing()
        if self._weighting is not None:
            self._weighting.reset_state()
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
        if self._is_training:
            for term in self._terms.values():
                if term.schedule is not None:
                    return term.step
        return optimizer_step(self.model)

    def _start_annealing(self, step: int | None = None, is_new_epoch: bool = False) -> None:
        _ = self.model  # On JAX this brings the state of the step into the variables.
        for term in self._terms.values():
            term.start_annealing(step)
        if self._weighting is not None:
            self._weighting.start(is_new_epoch)

    def _is_annealing(self) -> bool:
        return all(term.annealing for term in self._terms.values())

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
            if not self._is_annealing():
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


def _validate_output_names(model: keras.Model) -> None:
    """Raises `ValueError` if the losses of a Functional model are for other outputs."""
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
