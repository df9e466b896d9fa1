"""Reading event files, and what the callbacks write for the dashboard."""

import gc
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

import keras_jointloss as kj
from keras_jointloss.tensorboard import SummaryWriter
from keras_jointloss.tensorboard.read import read_runs
from tests.backends import once_compiled, tf
from tests.callbacks import Interrupts
from tests.processes import ENVIRONMENT
from tests.small_models import compiled, fit
from tests.training_logs import HOSTILE, STEPS, TERMS, train, write, write_scalars

pytestmark = once_compiled


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Returns a folder with the logs of a training, and its history."""
    log_dir = tmp_path_factory.mktemp("logs") / "one"
    return log_dir, train(log_dir)


def test_read_equals_history(logs):
    log_dir, history = logs
    readings = kj.tensorboard.read(log_dir)
    assert set(readings) == {"train", "validation"}
    for run, prefix in (("train", ""), ("validation", "val_")):
        total = readings[run]["joint_loss/total"]
        assert total.steps.tolist() == [STEPS, 2 * STEPS, 3 * STEPS]
        assert total.values == pytest.approx(history.history[f"{prefix}loss"], rel=1e-6)
        for term in TERMS:
            for key, name in (("raw", "loss"), ("weight", "weight"), ("share", "share")):
                values = readings[run][f"joint_loss/{term}/{key}"].values
                assert values == pytest.approx(history.history[f"{prefix}{term}_{name}"], rel=1e-5)


@pytest.mark.parametrize(
    "kind", ["terms", "losses", "weights", "gradients", "cosines", "retrieval"]
)
def test_figures_of_logs_and_history_agree(logs, kind):
    log_dir, history = logs
    drawn = kj.plot(log_dir, kind, x="epoch")
    expected = kj.plot(history, kind)
    pairs = [trace for trace in expected.data if trace.meta and "run" in trace.meta]
    assert len(pairs) >= 2
    for trace in pairs:
        key = (dict(trace.meta, run="one"), trace.yaxis, trace.name)
        (same,) = [x for x in drawn.data if (x.meta, x.yaxis, x.name) == key]
        is_map = trace.type == "heatmap"
        values = [np.array(x["z" if is_map else "y"], "float64") for x in (same, trace)]
        assert np.allclose(*values, rtol=1e-4, atol=1e-6)
        assert is_map or np.allclose(same.x, trace.x)


def test_schedules_are_drawn_ahead_unless_they_cannot_be(tmp_path):
    writer = SummaryWriter(tmp_path / "train")
    points = [0, 10, 20], [0.0, 0.5, 1.0]
    writer.training({"a": points, "b": points, "unknown": points}, step=0, end=20)
    writer.scalars({"joint_loss/a/weight": 0.5, "joint_loss/a/raw": 1.0}, step=10)
    # The weight of this term has not been logged yet.
    writer.scalars({"joint_loss/b/raw": 1.0}, step=10)
    writer.epochs(1, 10)
    writer.close()
    ahead = [x for x in kj.plot(tmp_path, "weights").data if x.meta.get("ahead")]
    assert {x.meta["term"]: list(x.x) for x in ahead} == {"a": [10, 20], "b": [0, 10, 20]}
    assert [list(x.y)[-2:] for x in ahead] == [[0.5, 1.0]] * 2
    assert {x.line.dash for x in ahead} == {"dash"}
    assert not [x for x in kj.plot(tmp_path, "weights", x="time").data if x.meta.get("ahead")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"end": 3, "schedules": {"a": 1}}'])
def test_facts_of_others_are_left_out(tmp_path, text, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("keras_jointloss.tensorboard.writer.json.dumps", lambda _: text)
        write(tmp_path, ["a"])
    (run,) = read_runs(tmp_path)
    assert (run.end, dict(run.schedules)) == (None, {})
    assert kj.plot(tmp_path, "weights").data


def test_values_of_older_writers_are_read(tmp_path):
    writer = EventFileWriter(str(tmp_path))
    for value in (
        Summary.Value(tag="joint_loss/a/raw", simple_value=0.5),
        Summary.Value(tag="text", tensor=tensor_util.make_tensor_proto("other")),
    ):
        writer.add_event(Event(step=3, wall_time=1.0, summary=Summary(value=[value])))
    writer.close()
    readings = kj.tensorboard.read(tmp_path)["."]
    assert {tag: x.values.tolist() for tag, x in readings.items()} == {"joint_loss/a/raw": [0.5]}
    with pytest.raises(ValueError, match="has no epochs"):
        kj.plot(tmp_path, "losses", x="epoch")


@pytest.mark.backend("tensorflow")
def test_logs_in_a_remote_folder():
    writer = SummaryWriter("ram://logs/train")
    writer.scalars({"joint_loss/a/raw": 0.5}, step=3)
    writer.close()
    (path,) = tf.io.gfile.glob("ram://logs/train/*")
    assert tf.io.gfile.stat(path).length > 100


def test_terms_are_stacked_at_the_steps_of_the_total(tmp_path):
    """TensorBoard keeps some points of each tag, which need not be of the same steps."""
    steps = range(1, 6)
    totals = [({"joint_loss/total": 2.0 * x}, x) for x in steps]
    terms = [({"joint_loss/a/weighted": 2.0 * x, "joint_loss/a/weight": 1.0}, x) for x in steps]
    write_scalars(tmp_path, *totals, *(terms[:2] + terms[3:]))
    (area, _) = kj.plot(tmp_path).data[:2]
    assert (list(area.x), list(area.y)) == ([1, 2, 3, 4, 5], [2.0, 4.0, 6.0, 8.0, 10.0])


def test_callback_logs_schedules_and_epochs(logs):
    (run,) = read_runs(logs[0])
    assert run.epochs.steps.tolist() == [0, STEPS, 2 * STEPS, 3 * STEPS]
    assert run.epochs.values.tolist() == [0, 1, 2, 3]
    assert run.end == 3 * STEPS
    assert set(run.schedules) == {"pair"}
    schedule = run.schedules["pair"]
    assert schedule.values == pytest.approx(0.5 * schedule.steps / 20)
    assert schedule.steps[-1] == 3 * STEPS


@keras.saving.register_keras_serializable(package="tests")
class OneStepAtATime(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that takes no vector of steps."""

    def __call__(self, step):
        if self.refuses and np.ndim(step):
            raise TypeError("Expected one step.")
        return keras.ops.where(keras.ops.any(step < 2), 0.25, 0.75)

    def __init__(self, refuses):
        self.refuses = refuses

    def get_config(self):
        return {"refuses": self.refuses}


@pytest.mark.parametrize("refuses", [False, True])
def test_schedule_that_takes_one_step_is_logged(tmp_path, refuses):
    model = compiled(weights={"a": OneStepAtATime(refuses)})
    fit(model, [kj.callbacks.JointLossCallback(str(tmp_path))], batch_size=5, epochs=2)
    (run,) = read_runs(tmp_path)
    schedule = run.schedules["a"]
    assert schedule.values.tolist() == np.where(schedule.steps < 2, 0.25, 0.75).tolist()
    assert schedule.steps.tolist() == list(range(run.end + 1))


def test_axes_of_logs(logs):
    by_epoch = kj.plot(logs[0], x="epoch").data[0]
    assert list(by_epoch.x) == [1, 2, 3]
    by_time = kj.plot(logs[0], x="time").data[0]
    assert 0 <= by_time.x[0] < by_time.x[1] < by_time.x[2] < 60


def test_runs_are_named_by_their_folders(tmp_path):
    write(tmp_path / "a" / "x", ["one"])
    write(tmp_path / "b", ["one"], offset=1.0)
    assert [run.name for run in read_runs(tmp_path)] == ["a/x", "b"]
    figure = kj.plot([tmp_path / "b", tmp_path / "a"], "losses")
    assert {x.meta["run"] for x in figure.data if "run" in x.meta} == {"b", "x"}
    write(tmp_path / "a" / "y", ["one"])
    figure = kj.plot({"first": tmp_path / "b", "second": tmp_path / "a"}, "losses")
    names = {x.meta["run"] for x in figure.data if "run" in x.meta}
    assert names == {"first", "second/x", "second/y"}


def test_hostile_names_are_read_as_they_are(tmp_path):
    names = [*HOSTILE, "total", "other"]
    write(tmp_path, names)
    figure = kj.plot(tmp_path, "losses", splits=["train"])
    values = {x.meta["term"]: list(x.y) for x in figure.data if "term" in x.meta}
    assert values == {name: [1.0 + i, 2.0 + i, 3.0 + i] for i, name in enumerate(names)}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_files_count_up_to_the_damage(tmp_path, damage):
    write(tmp_path, ["a"], steps=50)
    (path,) = (tmp_path / "train").iterdir()
    content = path.read_bytes()
    middle = len(content) // 2
    cut = content[:middle]
    flipped = cut + bytes(64) + content[middle + 64 :]
    path.write_bytes({"cut": cut, "flipped": flipped, "empty": b""}[damage])
    readings = kj.tensorboard.read(tmp_path)
    assert len(readings["validation"]["joint_loss/a/raw"].steps) == 50
    if damage != "empty":
        series = readings["train"]["joint_loss/a/raw"]
        assert 5 < len(series.steps) < 50
        assert series.values.tolist() == series.steps.tolist()
    assert kj.plot(tmp_path, "losses").data


def test_folder_without_event_files_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="Expected a folder with event files"):
            kj.tensorboard.read(folder)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_writers_are_closed_on_error_and_interrupt(tmp_path, error):
    callback = kj.callbacks.JointLossCallback(tmp_path, "batch")
    with pytest.raises(error, match="stop"):
        fit(compiled(), [callback, Interrupts(error, batch=2)])
    gc.collect()
    assert kj.tensorboard.read(tmp_path)["train"]["joint_loss/total"].steps.tolist() == [1, 2, 3]
    (writer,) = callback._summaries._writers.values()
    with pytest.raises(OSError, match="closed"):
        writer.flush()


CHILD = """
import sys, time
# Neither Keras nor TensorFlow is needed to write.
sys.modules["tensorboard.program"] = sys.modules["tensorboard.compat.notf"] = sys
from keras_jointloss.tensorboard import SummaryWriter
writer = SummaryWriter(sys.argv[1])
for step in range(100):
    writer.scalars({"joint_loss/total": float(step)}, step)
writer.flush()
writer.scalars({"joint_loss/total": 100.0}, 100)
print("flushed", flush=True)
time.sleep(60)
"""


def test_logs_of_a_killed_process_are_readable_up_to_the_last_flush(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "train")],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert child.stdout.readline() == b"flushed\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    series = kj.tensorboard.read(tmp_path)["train"]["joint_loss/total"]
    assert series.values.tolist()[:100] == list(range(100))


def test_what_is_written_is_flushed_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_jointloss.tensorboard.writer.FLUSH_SECONDS", 0.2)
    writer = SummaryWriter(tmp_path / "train")
    writer.scalars({"joint_loss/total": 1.0}, 1)
    end = time.monotonic() + 20
    while "train" not in kj.tensorboard.read(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    assert kj.tensorboard.read(tmp_path)["train"]["joint_loss/total"].values.tolist() == [1.0]
    writer.close()
