"""What the package assumes of models, optimizers and callbacks that Keras does not document.

As in `_core/keras.py`, each function has a check of its name in `tests/test_keras.py`.
"""

import functools
import math
import sys
from collections.abc import Callable, Collection
from typing import Any

import keras


def compile_again(model: keras.Model, evaluation: bool = False) -> None:
    """Makes `fit` compile the step of a model again, and `evaluate`, too, with `evaluation`.

    Keras keeps a compiled step in an attribute.
    """
    model.train_function = None
    if evaluation:
        model.test_function = None


def is_to_compile(model: keras.Model) -> bool:
    """Returns whether `fit` has yet to compile the step of a model."""
    return model.train_function is None


def output_names(model: keras.Model) -> list[str] | None:
    """Returns the names that a Functional model has for its outputs; `None` for other models."""
    return getattr(model, "output_names", None)


def before_build(check: Callable[[Any, Any, Any], None]) -> None:
    """Calls a function before Keras matches losses or metrics with the outputs of a model.

    Keras does so once after each `compile`, in the first step. Only a message depends on it, so
    nothing is raised where Keras lacks a name.

    Args:
        check: Its arguments are `loss` or `metrics` as given to `compile`, what the model returns,
            and the names of its outputs, or `None`.
    """
    for name, given in (("CompileLoss", "_user_loss"), ("CompileMetrics", "_user_metrics")):
        owner: Any = getattr(_trainer_module(), name, None)
        if hasattr(owner, "build"):

            def build(original, self, y_true, y_pred, given=given):
                check(getattr(self, given, None), y_pred, getattr(self, "output_names", None))
                return original(self, y_true, y_pred)

            owner.build = _replaced(owner.build, build)


def pass_all_outputs(kind: type) -> None:
    """Lets Keras compute the losses of a class from all outputs of a model.

    In `loss` and `loss_weights`, they stand under names that no output has, or after those of a
    list of outputs. Keras keeps the path to the output of each loss, and an empty path leads to all
    of them, but no `loss` that it accepts has this path. It computes, weights and logs them after
    those of outputs. Raises `ImportError` if Keras lacks what this needs.

    Args:
        kind: Its objects have a name, `term`, and a method `of_outputs`. From the names of outputs
            in a list, or `None`, this returns a function of all targets, predictions and sample
            weights.
    """
    owner: Any = getattr(_trainer_module(), "CompileLoss", None)
    fields = getattr(getattr(owner, "Loss", None), "_fields", ())
    if fields != ("path", "loss", "loss_weights", "name") or not hasattr(owner, "build"):
        raise unsupported("adds to `CompileLoss.Loss`", "does not have")

    def build(original, self, y_true, y_pred):
        given = losses, weights = self._user_loss, self._user_loss_weights
        found: dict[Any, Any] = {
            key: x for key, x in _by_key(losses).items() if isinstance(x, kind)
        }
        if not found:
            return original(self, y_true, y_pred)
        self._user_loss, self._user_loss_weights = (_without(x, found) for x in given)
        try:
            original(self, y_true, y_pred)
        except Exception:
            # Keras builds it again in the next step.
            self._user_loss, self._user_loss_weights = given
            raise
        for key, loss in found.items():
            compute, weight = loss.of_outputs(self.output_names), _by_key(weights).get(key)
            self._flat_losses.append(self.Loss((), compute, weight, loss.term))
        # Keras logs no loss that is the only one.
        for loss in self._flat_losses[len(self._metrics) :]:
            self._tracker.add_to_store("metrics", keras.metrics.Mean(name=f"{loss.name}_loss"))
        return None

    owner.build = _replaced(owner.build, build)


def _by_key(values: Any) -> dict[Any, Any]:
    """Returns what belongs to each output by its name, or by its position in a list."""
    if isinstance(values, list | tuple):
        return dict(enumerate(values))
    return values if isinstance(values, dict) else {}


def _without(values: Any, keys: Collection[Any]) -> Any:
    """Returns what belongs to each output without some of them."""
    kept = {key: value for key, value in _by_key(values).items() if key not in keys}
    if isinstance(values, list | tuple):
        return list(kept.values())
    return kept if isinstance(values, dict) else values


def _trainer_module() -> Any:
    """Returns the module of the base of models that trains them."""
    trainer = next(x for x in keras.Model.__mro__ if "compute_metrics" in vars(x))
    return sys.modules[trainer.__module__]


def replace_in_trainer(fit: Callable, build: Callable, reduce: Callable) -> None:
    """Replaces three functions with which Keras trains on TensorFlow, in all models.

    They fail with several workers: the method `fit`, the method that builds a model before its
    first batch, and the function that reduces the logs of the replicas. Each replacement is called
    with the original, and its arguments. Raises `ImportError` if Keras lacks one of them.
    """
    build_name, reduce_name = "_maybe_symbolic_build", "reduce_per_replica"
    trainer = next((x for x in keras.Model.__mro__ if build_name in vars(x)), None)
    if trainer is None:
        raise unsupported(f"replaces `Model.{build_name}`", "does not have")
    module = sys.modules[trainer.__module__]
    if not hasattr(module, reduce_name):
        raise unsupported(f"replaces `{reduce_name}`", "does not have")
    for owner, name, new in (
        (trainer, "fit", fit),
        (trainer, build_name, build),
        (module, reduce_name, reduce),
    ):
        setattr(owner, name, _replaced(getattr(owner, name), new))


def _replaced(original, new):
    @functools.wraps(original)
    def call(*args, **kwargs):
        return new(original, *args, **kwargs)

    return call


def unsupported(needs: str, lacks: str) -> ImportError:
    """Returns the error for a version of Keras that lacks what the package needs."""
    version = sys.modules["keras_jointloss"].__version__
    return ImportError(
        f"keras_jointloss {version} {needs}, which Keras {keras.__version__} {lacks}: install "
        "Keras 3.12 or another version that this release supports, or a newer keras_jointloss."
    )


# Optimizers.


def inner_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer that updates the variables.

    With `mixed_float16`, each `compile` wraps it in a new optimizer that scales the loss.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)


def accumulated_steps(optimizer: Any) -> int:
    """Returns over how many batches an optimizer accumulates gradients, which no method tells."""
    return getattr(inner_optimizer(optimizer), "gradient_accumulation_steps", None) or 1


# Metrics.


def mode_of(metric: keras.metrics.Metric) -> str | None:
    """Returns `"max"` if a larger value of a metric is better, `"min"` if not; `None` if unknown.

    With it, callbacks whose mode is `"auto"` compare epochs.
    """
    return {"up": "max", "down": "min"}.get(getattr(metric, "_direction", ""))


def set_mode(metric: keras.metrics.Metric, is_larger_better: bool) -> None:
    """Tells callbacks whose mode is `"auto"` whether a larger value of a metric is better."""
    metric._direction = "up" if is_larger_better else "down"


# Callbacks.


def sync_state(callback: keras.callbacks.Callback) -> None:
    """Copies the state of a step on JAX into the variables, as Keras does when `model` is read."""
    _ = callback.model


def allow_background(callback: keras.callbacks.Callback, is_safe: bool) -> None:
    """Lets Keras run the batch hooks of all callbacks in the background, as if there were none."""
    callback.async_safe = is_safe


def forget_best(callback: Any) -> None:
    """Makes a callback that compares epochs begin again, if all it knows is NaN.

    If its first value is NaN, Keras compares all others with it, and none is better.
    """
    if callback.best is not None and math.isnan(callback.best):
        callback.best = None


def append_callback(
    callbacks: keras.callbacks.CallbackList, callback: keras.callbacks.Callback
) -> None:
    """Adds a callback that has its model; the method of the list would add it without one."""
    callbacks.callbacks.append(callback)


# Files.


class NoMethod:
    """Hides a method of a base class.

    Keras saves an object without `save_own_variables` in no group of its own in a file, where an
    empty one takes 2 kB. It goes on with the layers within it.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        raise AttributeError("This object has no such method.")
