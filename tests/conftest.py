"""Shared setup: four devices, a fresh Keras state for each test, and backend-specific tests."""

import collections
import functools
import gc
import importlib
import importlib.metadata
import os
import sys
import tempfile

# One of several processes, and those that it starts, leave the other cores to the others.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Its rounding depends on the processor and the size of a batch.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# The tests compile a lot and compute little. JAX and TensorFlow read this at import.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if os.environ.get("KERAS_BACKEND") == "jax" and importlib.metadata.version("jaxlib") < "0.11":
    # They shorten compilation by two thirds. XLA ends a process with a flag that it does not know.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if flags not in os.environ["XLA_FLAGS"]:  # Processes of a run inherit them.
        os.environ["XLA_FLAGS"] += f" {flags}"
# All processes of a run inherit these variables, and share JAX's cache and reference results.
if "KERAS_JOINTLOSS_TEST_RESULTS" not in os.environ:
    RESULTS = tempfile.TemporaryDirectory(prefix="test_results_")
    os.environ["KERAS_JOINTLOSS_TEST_RESULTS"] = RESULTS.name
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jax_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import keras
import numpy as np
import pytest

# Tracing creates many objects that stay: Python need not look so often for what can be freed.
gc.set_threshold(200_000, 50, 100)

BACKEND = keras.backend.backend()
IS_ONE_OF_SEVERAL_PROCESSES = "PYTEST_XDIST_WORKER" in os.environ


def configure_tensorflow():
    """Splits the CPU into four devices, which is possible only before TensorFlow first computes."""
    import tensorflow as tf
    from tensorflow.python.data.ops import dataset_ops
    from tensorflow.python.eager import context
    from tensorflow.python.util import tf_stack

    # TensorFlow would note for each operation where in Python it is created, for error messages.
    stack = tf_stack.extract_stack()
    tf_stack.extract_stack = lambda stacklevel=1: stack
    # Keras would empty it before and after each test.
    context.Context.clear_kernel_cache = lambda self: None
    # It shortens steps, of which the tests take few, and is a fourth of their compilation.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    # An iterator that is dropped can wait for its autotuning, which sleeps for up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    dataset_ops.DatasetV2._apply_debug_options = lambda self: self.with_options(options)

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    if IS_ONE_OF_SEVERAL_PROCESSES:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        # One thread for each device: in a collective operation, each device waits for the other.
        tf.config.threading.set_inter_op_parallelism_threads(4)


def configure_jax():
    """Splits the CPU into four devices, which is possible only before JAX first computes."""
    import jax
    from jax._src.interpreters import mlir

    jax.config.update("jax_num_cpu_devices", 4)
    # JAX would make one for each function that it compiles, which takes longer than most of them.
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


if BACKEND == "tensorflow":
    configure_tensorflow()
elif BACKEND == "jax":
    configure_jax()
elif IS_ONE_OF_SEVERAL_PROCESSES:
    importlib.import_module("torch").set_num_threads(1)  # The others have the other cores.

from tests.backends import jax, tf, torch  # noqa: E402


def reset_keras():
    """Resets the global state that a test may have changed."""
    # This also clears the dtype policy, which follows `floatx` until a test sets it.
    keras.utils.clear_session(free_memory=False)
    keras.config.set_floatx("float32")
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Resets Keras to its state after import, with a fixed seed, for every test."""
    reset_keras()
    yield
    reset_keras()


@pytest.fixture(autouse=True)
def one_trace(request, fresh_keras):
    """Halves the time in which TensorFlow traces a step of a model.

    Keras creates the metrics of the losses in the first trace, so that TensorFlow traces again.
    Here they are created outside of it, except in tests with the mark `traces_twice`.
    """
    if BACKEND != "tensorflow" or request.node.get_closest_marker("traces_twice"):
        yield
        return
    variable_class = type(tf.Variable(0.0))

    def create(next_creator, use_resource=None, **options):
        if not tf.inside_function() or tf.distribute.has_strategy():
            return next_creator(use_resource=use_resource, **options)
        with tf.init_scope():
            return variable_class(**options)

    with tf.variable_creator_scope(create):
        yield


@pytest.fixture(autouse=True, scope="session")
def short_pipelines():
    """Saves most of the time in which TensorFlow prepares to read a few arrays, for each `fit`.

    Keras builds a pipeline for large arrays. Here arrays that are not split over replicas become
    the shortest pipeline with the same batches, in another random order if they are shuffled.
    """
    if BACKEND != "tensorflow":
        yield
        return
    from keras.src.trainers.data_adapters import array_slicing
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    original = ArrayDataAdapter.get_tf_dataset

    def get_tf_dataset(adapter):
        inputs = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
        kinds = {type(x) for x in keras.tree.flatten(inputs)}
        is_dense = all(issubclass(kind, np.ndarray | tf.Tensor) for kind in kinds)
        if not is_dense or adapter._shuffle == "batch" or tf.distribute.has_strategy():
            return original(adapter)
        dataset = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(inputs))
        if adapter._shuffle:
            dataset = dataset.shuffle(adapter._num_samples)
        return dataset.batch(adapter._batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayDataAdapter, "get_tf_dataset", get_tf_dataset)
        yield


@pytest.fixture(autouse=True, scope="session")
def kept_iterator():
    """Keeps the latest iterator of replicas on TensorFlow until the next one is dropped.

    One that Keras drops while it still fetches a batch for a replica can end the process. Several
    that are kept take the threads of those that are in use.
    """
    if BACKEND != "tensorflow":
        yield
        return
    import tensorflow as tf
    from keras.src.backend.tensorflow.trainer import TFEpochIterator

    reset, kept = TFEpochIterator.reset, collections.deque(maxlen=1)

    def reset_later(self):
        if isinstance(self._current_iterator, tf.distribute.DistributedIterator):
            kept.append(self._current_iterator)
        reset(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TFEpochIterator, "reset", reset_later)
        yield


def fails_on_a_gpu(create):
    """Returns a function of PyTorch that the package may not call without a device, by Keras too.

    It would create its tensor on the CPU, which no operation combines with tensors on a GPU.
    """

    def checked(*args, device=None, **options):
        frame = None if device is not None else sys._getframe(1)
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            assert not name.startswith("keras_jointloss."), f"`torch.{create.__name__}` on the CPU"
            # Keras loads batches, of `predict` for example, on the CPU.
            frame = None if name.startswith(("tests.", "torch.utils.data.")) else frame.f_back
        return create(*args, device=device, **options)

    return checked


@pytest.fixture(autouse=True, scope="session")
def named_devices():
    """Makes the package's operations fail here that would fail on a GPU."""
    if BACKEND != "torch":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in ("arange", "empty", "eye", "full", "linspace", "ones", "tensor", "zeros"):
            patch.setattr(torch, name, fails_on_a_gpu(getattr(torch, name)))
        yield


@pytest.fixture(autouse=True, scope="module")
def leftovers():
    """Frees the memory that the tests of a module leave behind, several GiB in a full run."""
    yield
    if BACKEND == "jax":
        from jax._src.interpreters import mlir

        jax.clear_caches()
        mlir.make_ir_context.cache_clear()
    # TensorFlow never frees its graphs: every full collection would visit all of them again.
    gc.collect()
    gc.freeze()


@pytest.fixture
def graphs(monkeypatch):
    """Returns a function that counts the graphs of TensorFlow that are alive."""
    if BACKEND != "tensorflow":
        return lambda: 0
    # With this function, which returns its argument if there is one replica, the optimizers of
    # Keras keep the graph of every training step alive.
    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", lambda self, op, x: x)
    tf.compat.v1.get_default_graph()  # There is one that lives forever.

    def count():
        keras.utils.clear_session()
        gc.collect()
        return sum(isinstance(value, tf.Graph) for value in gc.get_objects())

    return count


def pytest_collection_modifyitems(items):
    """Starts with what takes long, so that at the end no process waits for another."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item):
    for marker in item.iter_markers("backend"):
        if BACKEND not in marker.args:
            pytest.skip(f"runs on {' and '.join(marker.args)} only")
