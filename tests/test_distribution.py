"""When `enable_multi_worker_fit` refuses; `tests/test_devices.py` trains with it."""

import signal
import sys
from unittest import mock

import keras
import pytest

import keras_jointloss as kj
from keras_jointloss import distribution
from tests.processes import run_python


@pytest.mark.backend("jax", "torch")
def test_refuses_other_backends():
    with pytest.raises(RuntimeError, match="Expected the TensorFlow backend"):
        kj.distribution.enable_multi_worker_fit()


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("version", ["3.11.9", "3.16.0", "4.0.0"])
def test_refuses_unknown_versions_of_keras(monkeypatch, version):
    monkeypatch.setattr(keras, "__version__", version)
    with pytest.raises(RuntimeError, match=f"Keras 3.12 to 3.15. Received: Keras {version}"):
        kj.distribution.enable_multi_worker_fit()


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("name", ["Model._maybe_symbolic_build", "reduce_per_replica"])
def test_refuses_keras_without_the_functions(monkeypatch, name):
    trainer = next(x for x in keras.Model.__mro__ if "_maybe_symbolic_build" in vars(x))
    fit, owner = trainer.fit, trainer if "." in name else sys.modules[trainer.__module__]
    monkeypatch.delattr(owner, name.removeprefix("Model."))
    with pytest.raises(ImportError, match=f"replaces `{name}`"):
        kj.distribution.enable_multi_worker_fit()
    assert trainer.fit is fit


@pytest.mark.backend("tensorflow")
def test_other_models_train_as_before(monkeypatch):
    model = keras.Sequential([keras.layers.Dense(1)])
    original = mock.Mock(return_value="logs")
    assert distribution._fit(original, model, 1, epochs=2) == "logs"
    assert distribution._build(original, model, "iterator", "batch") == "logs"
    assert distribution._reduce(original, "values", model.distribute_strategy, "mean") == "logs"
    assert original.mock_calls == [
        mock.call(model, 1, epochs=2),
        mock.call(model, "iterator", "batch"),
        mock.call("values", model.distribute_strategy, "mean"),
    ]
    # Keras is changed once.
    monkeypatch.setattr(distribution, "_is_enabled", True)
    monkeypatch.setattr(distribution, "replace_in_trainer", original)
    kj.distribution.enable_multi_worker_fit()
    assert len(original.mock_calls) == 3


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("as_list", [list, keras.callbacks.CallbackList, lambda x: x[0]])
def test_workers_compare_their_start_whatever_the_callbacks(monkeypatch, as_list):
    monkeypatch.setattr(distribution.workers, "is_one_of_workers", lambda strategy: True)
    found = []

    def fit(model, x=None, callbacks=None):
        found.extend(getattr(callbacks, "callbacks", callbacks))

    own = keras.callbacks.Callback()
    distribution._fit(fit, keras.Sequential(), callbacks=as_list([own]))
    distribution._fit(fit, keras.Sequential())
    assert found[0] is own
    assert [type(x) for x in found[-2:]] == [distribution._SameStart] * 2


@pytest.mark.backend("tensorflow")
def test_process_ends_by_itself_where_there_is_no_alarm(monkeypatch):
    monkeypatch.delattr(signal, "alarm")
    distribution.workers._limit()


@pytest.mark.backend("tensorflow")
def test_process_of_a_failed_training_ends_although_something_waits():
    code = (
        "import atexit, time; from keras_jointloss._core.backend.tensorflow import workers; "
        "workers._GRACE = 1; "
        "atexit.register(time.sleep, 600); workers.end_soon(); raise ValueError('failed')"
    )
    ended = run_python(code, check=False)
    assert ended.returncode == -signal.SIGALRM
    assert ended.stderr.endswith("ValueError: failed\n")
