"""Training with several processes."""

import inspect
import re
from typing import Any

import keras

from keras_jointloss._core.backend import name
from keras_jointloss._core.keras_models import append_callback, replace_in_trainer
from keras_jointloss.terms.clock import optimizer_step

if name() == "tensorflow":
    from keras_jointloss._core.backend.tensorflow import workers

__all__ = ["enable_multi_worker_fit"]

#: The versions of Keras, from the first to the first that may differ, that need the replacements.
_FIRST, _END = (3, 12), (3, 16)

_is_enabled = False


def enable_multi_worker_fit() -> None:
    """Makes `fit` and `evaluate` work under `tf.distribute.MultiWorkerMirroredStrategy`.

    Keras 3 itself fails there (https://github.com/keras-team/keras/issues/20585). This function
    replaces, in this process, for all models, three functions of its TensorFlow trainer:

    - `_maybe_symbolic_build` builds a model with the first batch. It cannot convert a batch that is
      split over workers. The replacement passes the part of one replica.
    - `reduce_per_replica` averages the logs of a batch along an axis that they do not have. The
      replacement averages them over the replicas.

    - `fit` trains on if `keras.callbacks.BackupAndRestore` has restored different epochs on the
      workers. The replacement compares them, and raises `RuntimeError`. If a message to another
      worker fails, it sees to it that this process ends soon after Python does.

    They call the original functions in all other cases. Nothing changes before the call.

    Give each worker its own folder for `BackupAndRestore`. Set the timeout of the strategy, as
    below: without it, TensorFlow waits forever for a worker that is stuck. If a worker ends,
    the others raise a `tf.errors.OpError` and end within half a minute. Start all of them again to
    resume.

    Raises:
        RuntimeError: If the backend is not TensorFlow, or the version of Keras is not 3.12 to 3.15,
            for which the replacements are tested.
        ImportError: If Keras lacks one of the functions.

    In the script that each worker runs, with its own `TF_CONFIG`::

        kj.distribution.enable_multi_worker_fit()
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=300)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        with strategy.scope():
            model = build_and_compile()
        backup = keras.callbacks.BackupAndRestore(f"backup_{strategy.cluster_resolver.task_id}")
        model.fit(dataset, epochs=10, callbacks=[backup, kj.callbacks.JointLossCallback()])
    """
    global _is_enabled
    if name() != "tensorflow":
        raise RuntimeError(
            f"Expected the TensorFlow backend, which has `MultiWorkerMirroredStrategy`. Received: "
            f"the backend {name()}"
        )
    version = tuple(int(x) for x in re.findall(r"\d+", keras.__version__)[:2])
    if not _FIRST <= version < _END:
        raise RuntimeError(
            "`enable_multi_worker_fit` is tested with Keras 3.12 to 3.15. Received: Keras "
            f"{keras.__version__}, which may train with several workers without it"
        )
    if not _is_enabled:
        replace_in_trainer(_fit, _build, _reduce)
        _is_enabled = True


def _fit(original, model, *args, **kwargs):
    """Trains a model."""
    if not workers.is_one_of_workers(workers.strategy_of(model)):
        return original(model, *args, **kwargs)
    given = inspect.signature(original).bind(model, *args, **kwargs)
    callbacks, same_start = given.arguments.get("callbacks"), _SameStart()
    if isinstance(callbacks, keras.callbacks.CallbackList):  # Whose callbacks know their model.
        same_start.set_model(model)
        append_callback(callbacks, same_start)
    else:
        given.arguments["callbacks"] = [*keras.tree.flatten(callbacks or []), same_start]
    try:
        return original(*given.args, **given.kwargs)
    except workers.errors():
        workers.end_soon()
        raise


def _build(original, model, iterator=None, data_batch=None):
    """Builds a model before its first batch."""
    strategy = workers.strategy_of(model)
    if iterator is not None and workers.is_one_of_workers(strategy):
        data_batch = workers.local_batch(next(next(iter(iterator))[2]), strategy)
        iterator = None
    return original(model, iterator, data_batch)


def _reduce(original, values, strategy, reduction):
    """Reduces the logs, or the predictions, of the replicas."""
    if reduction in ("auto", "mean") and workers.is_one_of_workers(strategy):
        return workers.mean_of_workers(values, strategy)
    return original(values, strategy, reduction)


class _SameStart(keras.callbacks.Callback):
    """Compares the epoch and step from which the workers continue, when `fit` starts."""

    def __init__(self):
        super().__init__()
        self._is_compared = False

    def on_train_begin(self, logs=None):
        self._is_compared = False

    def on_epoch_begin(self, epoch, logs=None):
        # Not earlier, since another callback may restore the model when training begins.
        strategy = workers.strategy_of(self.model)
        if self._is_compared or not workers.is_one_of_workers(strategy):
            return
        self._is_compared = True
        own = [epoch, optimizer_step(self.model)]
        found: Any = workers.numbers_of_workers(own, strategy)
        if any(row != found[0] for row in found):
            raise RuntimeError(
                "Expected all workers to continue from the same epoch and training step. Received: "
                + ", ".join(f"epoch {e}, step {s} on replica {i}" for i, (e, s) in enumerate(found))
                + ". Copy one worker's backup to the others, or delete all backups."
            )
