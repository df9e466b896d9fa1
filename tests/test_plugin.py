"""What the plugin answers, without a browser, on TensorBoard's own data provider."""

import contextlib
import csv
import importlib.util
import json
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

import keras_jointloss as kj
from keras_jointloss.tensorboard import SummaryWriter, provider
from keras_jointloss.tensorboard.plugin import JointLossPlugin
from keras_jointloss.tensorboard.runs import Series
from tests.judged_logs import falling
from tests.training_logs import write, write_scalars

# TensorBoard's own, on the import of what finds the context of a request.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is:DeprecationWarning")


class Server:
    """The plugin over a folder.

    Args:
        log_dir: The folder.
        samples: As `--samples_per_plugin scalars=`, or `None` if it is not given.
    """

    def __init__(self, log_dir, samples=None):
        self.multiplexer = EventMultiplexer(
            tensor_size_guidance={"scalars": 1000 if samples is None else samples}
        )
        self.multiplexer.AddRunsFromDirectory(str(log_dir))
        self.multiplexer.Reload()
        self.provider = MultiplexerDataProvider(self.multiplexer, str(log_dir))
        hints = None if samples is None else {"scalars": samples}
        context = TBContext(data_provider=self.provider, logdir=str(log_dir), sampling_hints=hints)
        self.plugin = JointLossPlugin(context)
        self.apps = self.plugin.get_plugin_apps()

    def get(self, route, **arguments):
        """Returns the status and the answer of a route."""
        path, _, query = route.partition("?")
        response = Client(self.apps[path]).get(path, query_string=query or arguments)
        return response.status_code, response.get_data()

    def json(self, route, **arguments):
        """Returns the answer of a route, which has to be valid."""
        status, content = self.get(route, **arguments)
        assert status == 200, content
        return json.loads(content, parse_constant=pytest.fail)  # JSON has no NaN.


def test_csv_has_what_the_figure_shows(tmp_path):
    write(tmp_path, ["a", "b"])
    server = Server(tmp_path)
    status, content = server.get("/csv", kind="losses", term="b", split="train")
    assert status == 200
    rows = list(csv.DictReader(content.decode().splitlines()))
    assert (tmp_path.name, "train") in {(row["run"], row["split"]) for row in rows}
    own = [row for row in rows if row["tag"] == "joint_loss/b/raw" and row["split"] == "train"]
    points = [(row["step"], row["epoch"], row["value"]) for row in own]
    assert points == [("1", "1.0", "2.0"), ("2", "2.0", "3.0"), ("3", "3.0", "4.0")]
    assert all(abs(float(row["wall_time"]) - time.time()) < 600 for row in own)


def test_csv_of_logs_without_epochs(tmp_path):
    write_scalars(tmp_path, ({"joint_loss/a/raw": 0.5, "joint_loss/a/weight": 1.0}, 7))
    _, content = Server(tmp_path).get("/csv", kind="losses")
    (row,) = csv.DictReader(content.decode().splitlines())
    assert (row["step"], row["epoch"], row["value"]) == ("7", "", "0.5")


@pytest.mark.parametrize(
    ("query", "code", "sentence"),
    [
        ("figure?run=nobody", 404, "There is no run 'nobody'."),
        ("figure?kind=pie", 400, "Expected one of"),
        ("figure?smoothing=?", 400, "`smoothing`. Expected a number. Received: smoothing='?'"),
        ("figure?smoothing=nan", 400, "Expected a number >= 0"),
        ("figure?columns=0", 400, "whole number"),
        ("figure?term=nothing", 400, "unknown terms"),
        ("figure?x=../../etc/passwd", 400, "Expected one of"),
        ("csv?columns=two", 400, "`columns`. Expected a number. Received: columns='two'"),
        ("csv?run=..%2f..%2fetc%2fpasswd", 404, "There is no run '../../etc/passwd'"),
        ("table?run=nobody", 404, "There is no run"),
    ],
)
def test_invalid_requests_are_answered_with_a_sentence(tmp_path, query, code, sentence):
    write(tmp_path, ["a"])
    status, content = Server(tmp_path).get(f"/{query}")
    assert status == code
    assert sentence in json.loads(content)["error"]


def test_training_that_ends_before_its_validation_is_named(tmp_path):
    write(tmp_path, ["a"], steps=5)
    write_scalars(tmp_path, ({"joint_loss/a/raw": 7.0}, 6), split="validation")
    (note,) = Server(tmp_path).json("/figure")["notes"]
    assert "end at step 5, before those of validation at step 6" in note


def test_data_alone_makes_the_tab_active(tmp_path):
    assert not Server(tmp_path).plugin.is_active()


def test_runs_need_not_have_all_markers(tmp_path):
    for split, marker in (("train", ("epochs", 1, 3)), ("validation", ("training", {}, 0, 9))):
        with contextlib.closing(SummaryWriter(tmp_path / split)) as writer:
            writer.scalars({"joint_loss/a/raw": 2.0, "joint_loss/a/weight": 1.0}, 3)
            getattr(writer, marker[0])(*marker[1:])
    server = Server(tmp_path)
    (run,) = server.plugin._logs.runs(RequestContext(), "")
    assert (run.epochs.values.tolist(), run.end) == ([1.0], 9)
    with pytest.raises(KeyError):
        run.train["joint_loss/b/raw"]


def test_ends_of_epochs_that_tensorboard_leaves_out_are_found():
    # It keeps ten of them, at random, and the last one.
    steps, numbers = np.arange(0, 130, 5), np.arange(26.0)
    for kept in ([0, 3, 4, 8, 9, 11, 17, 18, 22, 25], [2, 4, 5, 6, 9, 12, 13, 20, 21, 25]):
        found = provider.without_gaps(Series(steps[kept], np.arange(10.0), numbers[kept]))
        assert found.values.tolist() == numbers.tolist()
        assert found.steps.tolist() == steps.tolist()
    whole = Series(steps, np.zeros(26), numbers)
    assert provider.without_gaps(whole) == whole
    resumed = Series(steps[:4], np.zeros(4), np.array([1.0, 2, 8, 9]))
    assert provider.without_gaps(resumed) == resumed


def test_left_out_points_are_named(tmp_path, monkeypatch):
    write(tmp_path, ["a"], steps=60)
    (note,) = Server(tmp_path, samples=50).json("/figure", kind="losses")["notes"]
    assert "50 at most" in note
    assert "--samples_per_plugin scalars=0" in note
    for samples in (0, None):
        assert Server(tmp_path, samples).json("/figure", kind="losses")["notes"] == []
    monkeypatch.setattr(provider, "MOST_POINTS", 40)
    (note,) = Server(tmp_path, samples=0).json("/figure", kind="losses")["notes"]
    assert "40 at most. Draw all" in note


def test_silent_training_is_named(tmp_path, monkeypatch):
    write(tmp_path, ["a"], steps=5, end=10)
    server = Server(tmp_path)
    assert server.json("/figure")["notes"] == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    (note,) = server.json("/figure")["notes"]
    assert "of step 5 of 10, is 60 minutes old" in note


def test_series_are_read_once_until_they_grow(tmp_path, monkeypatch):
    write(tmp_path, ["a", "b"], steps=5)
    server = Server(tmp_path)
    calls = []
    read = server.provider.read_scalars

    def count(*arguments, **options):
        calls.append(options["run_tag_filter"].tags)
        return read(*arguments, **options)

    monkeypatch.setattr(server.provider, "read_scalars", count)
    server.json("/figure", kind="losses", events="false")
    assert sorted(map(sorted, calls)) == [["joint_loss/a/raw", "joint_loss/b/raw"]] * 2
    server.json("/figure", kind="losses", events="false", x="epoch")
    assert len(calls) == 2
    time.sleep(1)  # TensorBoard takes the files of a second in the order of their names.
    write_scalars(tmp_path, ({"joint_loss/a/raw": 7.0}, 6))
    server.multiplexer.Reload()
    figure = server.json("/figure", kind="losses", events="false", split="train")["figure"]
    assert [tag for tags in calls[2:] for tag in tags] == ["joint_loss/a/raw"]
    assert figure["data"][0]["meta"]["term"] == "a"


def test_memory_of_the_server_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(provider, "_MOST_CACHED", 100)
    write(tmp_path, [f"term {i}" for i in range(6)], steps=30)
    server = Server(tmp_path)
    for kind in ("terms", "losses", "weights"):
        server.json("/figure", kind=kind)
        logs = server.plugin._logs
        cached = sum(len(series.steps) for _, series in logs._cache.values())
        assert cached == logs._cached_points <= 100


def test_page_says_what_to_install_without_plotly(tmp_path, monkeypatch):
    write(tmp_path, ["a"])
    server = Server(tmp_path)
    assert server.json("/runs")["plotly"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda x: None if x == "plotly" else find(x))
    answer = server.json("/runs")
    assert answer["plotly"] is False
    assert answer["install"] == "pip install 'keras-jointloss[dashboard]'"
    for route in ("/figure", "/csv", "/plotly.min.js"):
        status, content = server.get(route)
        assert status in (400, 404)
        assert b"keras-jointloss[dashboard]" in content
    assert server.json("/table")["rows"][0]["term"] == "a"


def test_other_logs_do_not_count(tmp_path):
    write_scalars(tmp_path, ({"loss": 1.0}, 1), split="other")
    write(tmp_path / "mine", ["a"])
    assert [run["name"] for run in Server(tmp_path).json("/runs")["runs"]] == ["mine"]


def test_run_in_the_folder_itself_is_named_by_it(tmp_path):
    write(tmp_path / "emoji", ["a"])
    server = Server(tmp_path / "emoji")
    assert [run["name"] for run in server.json("/runs")["runs"]] == ["emoji"]
    assert server.json("/figure", run="emoji", kind="losses")["figure"]["data"]


def test_table_marks_the_terms_that_have_a_fault(tmp_path):
    losses = {"a": falling(8), "b": [2.5] * 8}
    for epoch in range(8):
        tags = {"joint_loss/total": losses["a"][epoch] + losses["b"][epoch]}
        for name, values in losses.items():
            tags |= {f"joint_loss/{name}/raw": values[epoch], f"joint_loss/{name}/weight": 1.0}
            tags[f"joint_loss/{name}/weighted"] = values[epoch]
        write_scalars(tmp_path, (tags, 10 * epoch + 10))
    rows = {row["term"]: row["marks"] for row in Server(tmp_path).json("/table")["rows"]}
    assert rows["a"] == []
    (mark,) = rows["b"]
    assert mark["kind"] == "stands_still"
    assert "has not changed since step 10" in mark["reason"]
    assert mark["reason"].endswith("Guide: examples/guides/pitfalls.py")
    (finding,) = kj.diagnose(tmp_path).faults
    assert mark["reason"].startswith(finding.text)


def test_missing_values_are_null_in_the_table(tmp_path):
    values = [{"joint_loss/a/raw": x, "joint_loss/a/weight": 1.0} for x in (2.0, float("nan"))]
    write_scalars(tmp_path, *zip(values, (1, 2), strict=True))
    (row,) = Server(tmp_path).json("/table")["rows"]
    assert row["train"]["raw"] is None
    assert row["train"]["trend"] == [2.0, None]
    assert row["validation"] is None


def test_term_that_was_never_computed_has_a_weight_only(tmp_path):
    write_scalars(tmp_path, ({"joint_loss/a/weight": 0.5}, 1))
    (row,) = Server(tmp_path).json("/table")["rows"]
    assert row["train"] == {"weight": 0.5, "change": None, "trend": [], "step": 1}


def test_nothing_to_show_is_a_sentence(tmp_path):
    write(tmp_path, ["a"])
    figure = Server(tmp_path).json("/figure", kind="retrieval")["figure"]
    assert "RetrievalEvaluation" in figure["message"]


def test_page_is_part_of_the_package(tmp_path):
    server = Server(tmp_path)
    pages = {"/index.js": b"export async function render", "/page.css": b"--paper"}
    for route, words in {**pages, "/plotly.min.js": b"plotly.js"}.items():
        status, content = server.get(route)
        assert status == 200
        assert words in content
    assert server.plugin.frontend_metadata().es_module_path in server.apps


@pytest.mark.parametrize("route", ["/figure", "/table", "/csv"])
def test_empty_folder_is_answered_with_a_sentence(tmp_path, route):
    status, content = Server(tmp_path).get(route)
    assert (status, json.loads(content)["error"]) == (404, "There is no run yet.")
