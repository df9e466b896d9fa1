"""The tab and `read` over log directories that are growing, damaged or written by an attacker."""

import json
import os
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.compat.proto import summary_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

import keras_jointloss as kj
from keras_jointloss.tensorboard import provider
from keras_jointloss.tensorboard.figures import KINDS
from keras_jointloss.tensorboard.read import read_events
from keras_jointloss.tensorboard.runs import AXES
from tests.test_plugin import Server
from tests.training_logs import HOSTILE, write, write_scalars

pytestmark = [
    pytest.mark.backend("torch"),
    # TensorBoard's own, on the import of what finds the context of a request.
    pytest.mark.filterwarnings("ignore:html5lib's sanitizer is:DeprecationWarning"),
]

FIGURES = [f"/figure?kind={kind}&x={axis}" for kind in KINDS for axis in AXES]
ROUTES = ["/runs", *FIGURES, "/table", "/csv?kind=losses"]
SCALAR, OWN = (
    ("scalars", summary_pb2.DATA_CLASS_SCALAR),
    ("joint_loss", summary_pb2.DATA_CLASS_TENSOR),
)
EPOCHS, TRAINING = "joint_loss/epochs", "joint_loss/training"
DEEP = "[" * 100_000
#: Values of the wrong type or size, by tag, as no callback writes them.
STRANGE = {
    "joint_loss/a/raw": (SCALAR, ["text", [1.0, 2.0], np.zeros(0), 1 + 2j, True, float("inf")]),
    EPOCHS: (OWN, ["text", [1.0, 2.0], np.zeros(0), 1j, -1.0, float("nan")]),
    TRAINING: (
        OWN,
        [
            *(3.0, ["{}", "{}"], b"\xff", DEEP, "null", '{"end": 1e999, "schedules": {}}'),
            *('{"end": %s}' % ("1" * 10_000), '{"end": 1%s, "schedules": {}}' % ("0" * 30)),
            '{"end": 3, "schedules": {"a": [[3, 1], [NaN, Infinity]], "b": [[[1]], [[1]]]}}',
        ],
    ),
    "gradients/cosines": (SCALAR, [1.0]),
    "joint_loss//raw": (SCALAR, [1.0]),
    "joint_loss/": (SCALAR, [1.0]),
    "gradients/": (SCALAR, [1.0]),
    f"gradients/{'~/' * 3000}/cosine": (SCALAR, [1.0]),
    f"joint_loss/{'x' * 100_000}/raw": (SCALAR, [1.0]),
    "joint_loss/a\0\n\r,\"'=1/raw": (SCALAR, [1.0]),
    f"retrieval/a/a_to_b_recall_at_{'9' * 400}": (SCALAR, [1.0]),
}


def write_events(folder, tag, kind, *values, step=1):
    """Writes values of any type for a tag of a plugin, with a data class."""
    plugin, data_class = kind
    data = summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin)
    metadata = summary_pb2.SummaryMetadata(plugin_data=data, data_class=data_class)
    writer = EventFileWriter(str(folder))
    for value in values:
        proto = make_tensor_proto(value)
        part = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=proto)
        summary = summary_pb2.Summary(value=[part])
        writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))
    writer.close()


def answers(server, routes=ROUTES):
    """Returns what the routes answer: a valid answer each, or a sentence in place of a figure."""
    found = {}
    for route in routes:
        status, content = server.get(route)
        assert status == 200 or (route in FIGURES and status == 400), (route, status, content[:99])
        assert len(content) < 2**20
        if not route.startswith("/csv"):
            found[route] = json.loads(content, parse_constant=pytest.fail)
    return found


@pytest.mark.parametrize(
    ("tag", "index"),
    [(tag, index) for tag, (_, values) in STRANGE.items() for index in range(len(values))],
    ids=lambda x: x[:20].replace("/", "-").replace("\0", "0") if isinstance(x, str) else str(x),
)
def test_values_of_wrong_types_leave_the_others(tmp_path, tag, index):
    write(tmp_path / "good", ["a", "b"])
    write(tmp_path / "bad", ["a"])
    kind, values = STRANGE[tag]
    write_events(tmp_path / "bad" / "train", tag, kind, values[index])
    found = answers(Server(tmp_path), ["/runs", "/table", *FIGURES[::3]])
    assert [run["name"] for run in found["/runs"]["runs"]] == ["bad", "good"]
    traces = found["/figure?kind=losses&x=step"]["figure"]["data"]
    good = [x["y"] for x in traces if x["meta"].get("run") == "good" and x["meta"]["term"] == "b"]
    assert good == [[2.0, 3.0, 4.0]] * 2
    readings, _ = read_events(str(tmp_path))
    assert readings["good/train"]["joint_loss/b/raw"].values.tolist() == [2.0, 3.0, 4.0]
    assert kj.plot(tmp_path, "losses").data


def test_steps_may_be_any(tmp_path):
    write(tmp_path, ["a"])
    for step in (-(2**63), 2**63 - 1):
        write_events(tmp_path / "train", "joint_loss/a/raw", SCALAR, 1.0, step=step)
    answers(Server(tmp_path))


def test_names_of_folders_are_text(tmp_path):
    names = {*(x for x in HOSTILE if "/" not in x and len(x) < 200), "..%2f..", "{{7*7}}"}
    for name in names:
        write(tmp_path / name, ["a"], steps=1)
    server = Server(tmp_path)
    found = answers(server)
    assert {run["name"] for run in found["/runs"]["runs"]} == names
    for name in names:
        table = server.json("/table", run=name)
        assert {row["run"] for row in table["rows"]} == {name}


class Many:
    """A data provider with a number of tags for each of a number of runs, and a value of each."""

    def __init__(self, runs, tags):
        point = SimpleNamespace(max_step=1, max_wall_time=1.0)
        self._tags = {tag: point for tag in tags}
        self._runs = [f"run {index:05}/train" for index in range(runs)]
        self.read = 0

    def list_scalars(self, context, **options):
        return dict.fromkeys(self._runs, self._tags)

    def read_scalars(self, context, run_tag_filter, **options):
        self.read += len(run_tag_filter.tags)
        point = SimpleNamespace(step=1, wall_time=1.0, value=1.0)
        tags = {tag: [point] for tag in run_tag_filter.tags}
        return dict.fromkeys(run_tag_filter.runs, tags)

    def read_tensors(self, context, **options):
        return {}


MILLION, MANY = 1_000_000, 100_000
#: The number of runs, and the tags of each.
TAGS = {
    "terms": (1, [f"joint_loss/{i}/raw" for i in range(MILLION)]),
    "readings": (1, [f"joint_loss/a/reading {i}" for i in range(MANY)]),
    "pairs": (
        1,
        [f"gradients/{i}/norm" for i in range(1000)]
        + [f"gradients/{i}~{j}/cosine" for i in range(MANY // 1000) for j in range(1000)],
    ),
    "names": (1, [f"joint_loss/{'~/' * 240}{i}/weight" for i in range(MANY)]),
    "runs": (MANY, [f"joint_loss/{i}/{key}" for i in range(2) for key in ("raw", "weight")]),
}


@pytest.mark.parametrize("case", TAGS)
def test_a_million_tags_are_answered_in_bounded_time_and_size(tmp_path, case, monkeypatch):
    server = Server(tmp_path)
    many = Many(*TAGS[case])
    monkeypatch.setattr(server.plugin._logs, "_provider", many)
    start = time.thread_time()
    runs = answers(server, ["/runs"])["/runs"]["runs"]
    shown = "&".join(f"run={run['name']}" for run in runs[-4:])
    for route in ["/table?x=step", *FIGURES[::3]] if case != "terms" else FIGURES[3:4]:
        status, content = server.get(f"{route}&{shown}")
        assert status in (200, 400)
        assert len(content) < 2**22
        if status == 200 and "figure" in route:
            assert "left out" in " ".join(json.loads(content)["notes"])
    assert len(runs) <= provider.MOST_RUNS
    assert many.read < 40_000
    assert time.thread_time() - start < 30


def test_files_that_grow_are_cut_or_replaced_while_the_server_runs(tmp_path):
    write(tmp_path, ["a"], steps=50)
    (path,) = (tmp_path / "train").iterdir()
    content = path.read_bytes()
    server = Server(tmp_path)
    for step in range(5):  # Written in pieces that end within records, as by another process.
        path.write_bytes(content[: len(content) * (step + 1) // 5 - 3])
        server.multiplexer.Reload()
        answers(server, ["/runs", "/figure?kind=losses&x=step", "/table"])
    path.write_bytes(content[: len(content) // 3])
    server.multiplexer.Reload()
    answers(server)
    assert len(kj.tensorboard.read(tmp_path)["train"]["joint_loss/a/raw"].steps) < 20
    path.rename(path.with_name(f"{path.name}.1"))
    write_scalars(tmp_path, ({"joint_loss/a/raw": 7.0, "joint_loss/a/weight": 1.0}, 99))
    server.multiplexer.Reload()
    answers(server)
    assert kj.tensorboard.read(tmp_path)["train"]["joint_loss/a/raw"].values[-1] == 7.0
    for found in (tmp_path / "train").iterdir():
        found.unlink()
    server.multiplexer.Reload()
    answers(server)


@pytest.mark.parametrize("length", [2**63 + 1, 2**40, 2**31])
def test_a_record_that_claims_more_than_the_file_has_ends_it(tmp_path, length):
    write(tmp_path, ["a"])
    header = length.to_bytes(8, "little")
    record = header + masked_crc32c(header).to_bytes(4, "little") + b"some bytes"
    (path,) = (tmp_path / "train").iterdir()
    path.write_bytes(path.read_bytes() + record)
    tracemalloc.start()
    assert len(kj.tensorboard.read(tmp_path)["train"]["joint_loss/a/raw"].steps) == 3
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_no_file_but_event_files_is_read(tmp_path):
    write(tmp_path / "logs", ["a"])
    secret = tmp_path / "secret.txt"
    secret.write_text("do not tell" * 99)
    (tmp_path / "logs" / "train" / "x.tfevents.link").symlink_to(secret)
    os.mkfifo(tmp_path / "logs" / "train" / "x.tfevents.pipe")  # To read it would never end.
    (tmp_path / "logs" / "train" / "x.tfevents.folder").mkdir()
    assert len(kj.tensorboard.read(tmp_path / "logs")["train"]["joint_loss/a/raw"].steps) == 3
    (tmp_path / "logs" / "train" / "x.tfevents.pipe").unlink()
    server = Server(tmp_path / "logs")
    for route in ROUTES:
        for attack in ("run=../secret.txt", "term=../../secret.txt", "a=/etc/passwd&b=/etc/passwd"):
            _, content = server.get(f"{route}{'&' if '?' in route else '?'}{attack}")
            assert b"do not tell" not in content
            assert b"root:" not in content
