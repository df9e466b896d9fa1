"""One of several processes that train a model together: `python -m tests.workers CONFIGURATION`.

The configuration is JSON: the `rank` of the process, the number of `processes`, the `port` for
their messages, the folder `out` for what the process finds and logs, `killed_at`,
`[epoch, batch]`, where the last process dies, or null, and the `timeout` of a message in seconds.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from tests.workers import models

CONFIGURATION = json.loads(sys.argv[1])
RANK, PROCESSES, PORT = (CONFIGURATION[x] for x in ("rank", "processes", "port"))
OUT = Path(CONFIGURATION["out"])
EPOCHS = OUT / f"epochs_{RANK}"
EPOCHS.mkdir(exist_ok=True)


def own_rows(data):
    """Returns the rows of this process in each of the global batches."""
    rows = np.arange(models.ITEMS).reshape(-1, PROCESSES, models.BATCH // PROCESSES)
    return {name: x[rows[:, RANK].ravel()] for name, x in data.items()}


def logging_callbacks():
    """Returns callbacks that write all logs there are."""
    log = OUT / f"logged_{RANK}"

    def on_log(run, values, step):
        with log.open("a") as file:
            file.write(f"{run} {step} {sorted(values)}\n")

    options = {"log_dir": OUT / f"tensorboard_{RANK}", "on_log": on_log}
    retrieval = kj.callbacks.RetrievalEvaluation(
        models.INPUTS, k=1, embeddings="tiles", batch_size=models.BATCH, projector=True, **options
    )
    return [kj.callbacks.JointLossCallback(**options), retrieval]


class DieAt(keras.callbacks.Callback):
    """Ends the process as if its machine were gone."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if [self.epoch, batch] == CONFIGURATION["killed_at"] and RANK == PROCESSES - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train_jax():
    keras.distribution.initialize(f"localhost:{PORT}", PROCESSES, RANK)
    models.use_float64()
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)
    data = own_rows(models.INPUTS), own_rows(models.TARGETS)
    batch = models.BATCH // PROCESSES
    return models.fitted(
        models.compiled(), *data, batch_size=batch, callbacks=logging_callbacks(), folder=EPOCHS
    )


def train_tensorflow():
    import tensorflow as tf

    addresses = [f"localhost:{PORT + rank}" for rank in range(PROCESSES)]
    task = {"type": "worker", "index": RANK}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    timeout = CONFIGURATION["timeout"]
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    models.use_float64()
    with strategy.scope():
        model = models.compiled()
    data = models.INPUTS, models.TARGETS
    is_first = CONFIGURATION["killed_at"] is not None  # Else it goes on where another has died.
    for part in ("fit", "reduce") if is_first else ():
        found = failure_of_keras(model, part, strategy, data)
        assert found is not None, f"Keras no longer needs the replacement of `{part}`"
    kj.distribution.enable_multi_worker_fit()
    if is_first:
        message = r"same epoch.*epoch 0, step 0 on replica 0, epoch 1"
        with pytest.raises(RuntimeError, match=message):
            model.fit(*data, batch_size=models.BATCH, initial_epoch=RANK, epochs=2, verbose=0)
    backup = keras.callbacks.BackupAndRestore(OUT / f"backup_{RANK}")
    callbacks = [backup, *logging_callbacks(), DieAt()]
    return models.fitted(model, *data, batch_size=models.BATCH, callbacks=callbacks, folder=EPOCHS)


def failure_of_keras(model, part, strategy, data):
    """Returns the error of Keras without `enable_multi_worker_fit`, or `None`."""
    try:
        if part == "fit":
            model.fit(*data, batch_size=models.BATCH, verbose=0)
        else:
            trainer = sys.modules["keras.src.backend.tensorflow.trainer"]
            trainer.reduce_per_replica(keras.ops.ones(()), strategy, "auto")
    except Exception as error:
        return error
    return None


def train_torch():
    import torch

    options = {"rank": RANK, "world_size": PROCESSES}
    torch.distributed.init_process_group("gloo", f"tcp://localhost:{PORT}", **options)
    models.use_float64()
    model = models.for_loop()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    found = models.looped(model, parallel, lambda batch: np.array_split(batch, PROCESSES)[RANK])
    torch.distributed.destroy_process_group()
    return found


train = {"jax": train_jax, "tensorflow": train_tensorflow, "torch": train_torch}
np.savez(OUT / f"found_{RANK}.npz", **train[keras.backend.backend()]())
