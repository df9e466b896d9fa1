"""Full disks, folders that are gone and trackers that fail in the middle of a training."""

import errno
import os
import shutil
import threading

import keras
import numpy as np
import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from keras_jointloss.callbacks import JointLossCallback, KNNEvaluation, RetrievalEvaluation
from keras_jointloss.tensorboard import SummaryWriter, _event_file, read
from tests.backends import once_compiled
from tests.small_models import X, compiled, fit

pytestmark = once_compiled


class AtEpoch(keras.callbacks.Callback):
    """Calls a function at the beginning of an epoch."""

    def __init__(self, epoch, function):
        super().__init__()
        self.epoch, self.function = epoch, function

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.function()


def full_disk(monkeypatch):
    """Makes every later write fail."""

    def fails(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", fails)
    monkeypatch.setattr(_event_file, "_open", fails)


def deleted(monkeypatch, folder):
    """Deletes a folder, in place of which there is a file."""
    shutil.rmtree(folder)
    folder.write_text("")


FAULTS = {"full": lambda patch, folder: full_disk(patch), "deleted": deleted}


def callbacks_of(folder):
    """Returns all callbacks that log."""
    classes = np.arange(40) % 3
    return [
        JointLossCallback(folder, "batch", hparams={"own": 1}),
        RetrievalEvaluation(
            X, embeddings=("a", "a"), name="r", log_dir=folder, projector=folder is not None
        ),
        KNNEvaluation(X, classes, X, classes, embeddings="a", log_dir=folder),
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_training_goes_on_without_logs(tmp_path, monkeypatch, fault):
    folder = tmp_path / "logs"
    expected = fit(compiled(), callbacks_of(None), epochs=3)
    breaks = AtEpoch(1, lambda: FAULTS[fault](monkeypatch, folder))
    callbacks = callbacks_of(folder)
    with pytest.warns(UserWarning, match="No more logs are written") as caught:
        history = fit(compiled(), [*callbacks, breaks], epochs=3, validation_split=0.25)
    # One of each callback, and none of another kind.
    messages = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert len(messages) == len(callbacks)
    assert len(history["loss"]) == 3
    assert set(expected) <= set(history)
    # The next training says at its start that nothing can be written.
    for callback in callbacks:
        with pytest.raises(OSError, match=r"No space|Not a directory|File exists"):
            fit(compiled(), [callback])


def test_one_warning_for_a_tracker_that_fails_later():
    calls = []

    def on_log(run, values, step):
        calls.append(step)
        if len(calls) > 1:
            raise ConnectionError("no answer")

    with pytest.warns(UserWarning, match=r"`on_log` has failed at step 2.*ConnectionError: no a"):
        fit(compiled(), [JointLossCallback(on_log=on_log, update_freq="batch")], epochs=2)
    assert calls == [*range(1, 9)]
    with pytest.raises(ConnectionError):  # Each training begins anew.
        fit(compiled(), [JointLossCallback(on_log=on_log)])


def test_tracker_that_refuses_the_values_of_a_run_ends_training():
    def on_log(run, values, step):
        if run == "train":  # After those of validation.
            raise ValueError("invalid name")

    with pytest.raises(ValueError, match="invalid name"):
        fit(compiled(), [JointLossCallback(on_log=on_log)], validation_split=0.5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_tracker_ends_training(error):
    calls = []

    def on_log(run, values, step):
        calls.append(step)
        if len(calls) > 1:
            raise error

    with pytest.raises(error):
        fit(compiled(), [JointLossCallback(on_log=on_log, update_freq="batch")])


def test_errors_of_the_writing_thread_reach_the_caller(tmp_path, monkeypatch):
    monkeypatch.setattr(_event_file, "_file_name", lambda: "../full")
    (tmp_path / "run").mkdir()
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        SummaryWriter(tmp_path / "run")


def test_file_is_whole_while_others_write(tmp_path):
    writer = SummaryWriter(tmp_path)
    threads = [
        threading.Thread(target=writer.scalars, args=({f"joint_loss/{i}/raw": 1.0}, i))
        for i in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    writer.close()
    assert len(read(tmp_path)["."]) == 40
    assert not any(x.name.startswith("joint_loss") and x.is_alive() for x in threading.enumerate())
