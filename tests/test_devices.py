"""Several devices and processes train as one device does with the same global batches."""

import functools
import json
import re
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from tests.backends import BACKEND, jax, torch
from tests.comparisons import assert_all_close
from tests.processes import ENVIRONMENT, ROOT
from tests.workers import models

pytestmark = pytest.mark.slow

GENERATOR = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def float64():
    models.use_float64()
    yield
    models.use_float64(False)


@functools.cache
def expected():
    """Returns what one device finds."""
    model = models.compiled()
    model.run_eagerly = BACKEND == "tensorflow"  # Ten steps, which compiling would delay.
    return models.fitted(model, models.INPUTS, models.TARGETS, batch_size=models.BATCH)


def assert_as_expected(found, one=None):
    """Asserts that all that one device finds has been found."""
    assert_all_close(found, one or expected(), 1e-9, 1e-9)


def distribution(layout, count=4):
    """Returns a distribution over two or four devices."""
    devices = keras.distribution.list_devices()[:count]
    if layout == "data":
        return keras.distribution.DataParallel(devices=devices)
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["trunk/kernel"] = (None, "model")
    layouts["classes/proxies"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layouts)


def record_shards(monkeypatch):
    """Returns a list that receives the shape of a device's part of the views in a compiled step."""
    shapes, values = [], kj.losses.InfoNCE.values

    def recorded(loss, views, *args, **kwargs):
        def record(sharding):
            shapes.append(sharding.shard_shape(views.shape))

        jax.debug.inspect_array_sharding(jax.lax.stop_gradient(views), callback=record)
        return values(loss, views, *args, **kwargs)

    monkeypatch.setattr(kj.losses.InfoNCE, "values", recorded)
    return shapes


@pytest.mark.backend("jax")
@pytest.mark.parametrize(
    ("layout", "count", "rows"), [("data", 2, 4), ("data", 4, 2), ("model", 4, 4)]
)
def test_jax_devices_equal_one(monkeypatch, layout, count, rows):
    expected()
    shapes = record_shards(monkeypatch)
    models.use_float64()
    with distribution(layout, count).scope():
        model = models.compiled()
        data = models.INPUTS, models.TARGETS
        assert_as_expected(models.fitted(model, *data, batch_size=models.BATCH))
    assert {shape[0] for shape in shapes} == {rows}
    kernel = model.get_layer("trunk").kernel.value
    assert kernel.sharding.shard_shape((6, 8)) == (6, 8 if layout == "data" else 4)
    proxies = model.get_layer("classes").proxies.value
    assert proxies.sharding.shard_shape((4, 4)) == (4 if layout == "data" else 2, 4)


@pytest.mark.backend("jax")
@pytest.mark.parametrize("loss", [kj.losses.InfoNCE(), kj.losses.SigLIP()])
def test_no_jax_device_holds_all_similarities(loss):
    """Nor does a device hold all embeddings with SigLIP, whose views pass on in a ring."""
    items = 512
    with distribution("data").scope():
        layout = keras.distribution.distribution().get_data_layout((items, 2, 8)).backend_layout
        gradient = jax.grad(lambda views: loss.values(views).mean())
        views = jax.ShapeDtypeStruct((items, 2, 8), "float32")
        step = jax.jit(gradient, in_shardings=layout, out_shardings=layout)
        compiled = step.lower(views).compile()
    matrix = items * items
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * matrix
    shapes = re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    sizes = {np.prod([int(n) for n in shape.split(",")]) for shape in shapes}
    is_ring = isinstance(loss, kj.losses.SigLIP)
    assert max(sizes) == matrix / (16 if is_ring else 4)  # Own rows, columns of one or all devices.
    assert ("collective-permute" in compiled.as_text()) == is_ring
    assert ("all-gather" in compiled.as_text()) != is_ring


@pytest.mark.backend("jax")
def test_ring_of_jax_devices_equals_one_device():
    views, labels = GENERATOR.normal(size=(32, 2, 4)), GENERATOR.integers(0, 5, 32)
    weight, valid = GENERATOR.uniform(size=32), GENERATOR.uniform(size=32) < 0.8
    for options in ({}, {"same_label": "positive"}, {"same_label": "ignore", "tile_size": 3}):
        loss = kj.losses.SigLIP(**options)
        given = labels if loss.has_labels else None

        def total(views, temperature, bias, loss=loss, given=given):
            parameters = {"temperature": temperature, "bias": bias}
            return (loss.values(views, given, valid, **parameters) * weight).sum()

        compute = functools.partial(jax.value_and_grad(total, argnums=(0, 1, 2)), views, 0.3, -2.0)
        expected = compute()
        with distribution("data").scope():
            found = jax.jit(compute)()
        assert_all_close(found, expected, 1e-9, 1e-12)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(folder, processes=2, killed_at=None, timeout=120):
    """Starts processes that train together, and returns them."""
    configuration = {"out": str(folder), "processes": processes, "port": free_port()}
    configuration |= {"killed_at": killed_at, "timeout": timeout}
    workers = []
    for rank in range(processes):
        with (folder / f"output_{rank}").open("w") as output:
            arguments = ["-m", "tests.workers", json.dumps({**configuration, "rank": rank})]
            worker = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        workers.append(worker)
    return workers


def join(folder, workers):
    """Waits for processes that train together, and returns what each found."""
    for rank, worker in enumerate(workers):
        worker.wait(300)
        assert worker.returncode == 0, (folder / f"output_{rank}").read_text()[-3000:]
    return [dict(np.load(folder / f"found_{rank}.npz")) for rank in range(len(workers))]


def assert_chief_alone_logs(folder):
    names = {"joint_loss/total", "retrieval/tiles/recall_at_1"}
    assert all(name in (folder / "logged_0").read_text() for name in names)
    assert {path.name for path in folder.glob("tensorboard_0/*")} == {"train", "validation"}
    assert (folder / "tensorboard_0" / "validation" / "projector_config.pbtxt").exists()
    assert not (folder / "logged_1").exists()
    assert not (folder / "tensorboard_1").exists()


@pytest.mark.backend("jax")
def test_processes_equal_one(tmp_path):
    workers = start(tmp_path)
    expected()
    for found in join(tmp_path, workers):
        assert_as_expected(found)
    assert_chief_alone_logs(tmp_path)


@pytest.mark.backend("tensorflow")
def test_workers_resume_after_one_has_died(tmp_path):
    survivor, dead = start(tmp_path, killed_at=[1, 2], timeout=600)
    expected()
    assert dead.wait(300) == -signal.SIGKILL, (tmp_path / "output_1").read_text()[-3000:]
    assert survivor.wait(180) != 0  # Long before the timeout of a message.
    assert "tensorflow.python.framework.errors_impl" in (tmp_path / "output_0").read_text()
    workers = start(tmp_path)
    for rank, found in enumerate(join(tmp_path, workers)):
        assert_as_expected({**np.load(tmp_path / f"epochs_{rank}" / "epoch_0.npz"), **found})
    assert_chief_alone_logs(tmp_path)


@pytest.mark.backend("torch")
def test_nothing_is_exchanged_while_keras_builds_a_model():
    from keras_jointloss._core.backend.torch import Processes

    x, replicas = torch.ones((3, 2), device="meta"), Processes(2)
    for found in (replicas.sum(x), replicas.tensor_of(1, x, after=None)):
        assert (found.device.type, tuple(found.shape)) == ("meta", (3, 2))
    (rows,), counts = replicas.gather([x], x)
    assert (tuple(rows.shape), counts) == ((3, 2), ([3], 0, 0))


@pytest.mark.backend("torch")
def test_processes_exchange_where_all_of_them_compute_the_loss(monkeypatch):
    loss, y = kj.losses.InfoNCE(), np.zeros(4)
    views = torch.rand(4, 2, 3, requires_grad=True)
    alone = float(loss(y, views.detach()))
    model = keras.Sequential([keras.layers.Rescaling(1.0)])
    model.compile(loss=loss)
    # Any exchange fails here, as there is no other process.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.warns(UserWarning, match="InfoNCE compares"), torch.no_grad():
        assert float(loss(y, views)) == alone
    assert float(loss(y, views.detach())) == alone
    with pytest.raises(ValueError, match="process group"):
        loss(y, views)
    with pytest.raises(ValueError, match="process group"):
        model.test_on_batch(views.detach(), y)


@pytest.mark.backend("torch")
def test_processes_in_a_loop_equal_one(tmp_path):
    workers = start(tmp_path)
    model = models.for_loop()
    one = models.looped(model, model, lambda batch: batch)
    for found in join(tmp_path, workers):
        assert_as_expected(found, one)
