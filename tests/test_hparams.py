"""Hyperparameters and results, as TensorBoard's HParams dashboard finds them."""

import pytest
from tensorboard.plugins.hparams import metadata

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from tests.processes import run_python
from tests.summaries import accumulated, read_scalars
from tests.training_logs import STEPS, TERMS, train


def read_session(run):
    """Returns the hyperparameters of a run, the name of its group, and the status at its end."""
    found = accumulated(run)
    tags = (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
    start, end = (found.SummaryMetadata(tag).plugin_data.content for tag in tags)
    start = metadata.parse_session_start_info_plugin_data(start)
    end = metadata.parse_session_end_info_plugin_data(end)
    values = {name: getattr(x, x.WhichOneof("kind")) for name, x in start.hparams.items()}
    return values, start.group_name, end.status


def test_callback_writes_hyperparameters_and_results(tmp_path):
    history = train(tmp_path, epochs=2, hparams={"learning_rate": 0.01, "seed": 3}).history
    hparams, group, status = read_session(tmp_path / "hparams")
    assert hparams == {
        "learning_rate": 0.01,
        "seed": 3,
        "weight/label": 1.0,
        "weight/mood": 0.5,
        "weight/pair": "Linear(start=0.0, end=0.5, steps=20, begin=0)",
        "weighting": "none",
        "aggregator": "PCGrad",
    }
    assert (group, status) == (str(tmp_path), 1)
    results = read_scalars(tmp_path / "hparams")
    expected = {"loss", "val_loss", "label_accuracy", "val_label_accuracy"}
    expected |= {f"{prefix}{term}_loss" for prefix in ("", "val_") for term in TERMS}
    retrieval = {name for name in results if "recall" in name}
    assert retrieval == {name for name in history if "recall" in name}
    assert expected <= set(results)
    for name in (*expected, *retrieval):
        assert results[name] == {2 * STEPS: pytest.approx(history[name][-1], rel=1e-5)}
    assert not any(name.endswith(("weight", "share", "temperature")) for name in results)
    assert not any(name.startswith("gradients") for name in results)


def test_callback_writes_none_unless_asked(tmp_path):
    train(tmp_path, epochs=1)
    assert not (tmp_path / "hparams").exists()


@pytest.mark.parametrize("hparams", [3, {"a": [1]}, {1: 2.0}, {"a": None}])
def test_invalid_hyperparameters_raise(hparams):
    with pytest.raises(ValueError, match="Expected None, or a dict of name"):
        JointLossCallback(hparams=hparams)


def test_each_folder_is_a_trial(tmp_path):
    for name in ("a", "b"):
        kj.tensorboard.write_hparams(tmp_path / name, {"x": True, "y": "z"}, {"loss": 1.0})
    sessions = [read_session(tmp_path / name / "hparams") for name in ("a", "b")]
    assert sessions[0][0] == sessions[1][0] == {"x": True, "y": "z"}
    assert sessions[0][1] != sessions[1][1]


def test_writing_imports_no_tensorflow(tmp_path):
    code = (
        "import sys, types; sys.modules['tensorboard.program'] = sys\n"
        "sys.modules['tensorboard.compat.notf'] = types.ModuleType('notf')\n"
        "from keras_jointloss.tensorboard import write_hparams\n"
        "write_hparams(sys.argv[1], {'x': 1}, {'loss': 0.5}, step=4)\n"
        "print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    assert run_python(code, tmp_path).stdout.strip() == "[]"
    assert read_scalars(tmp_path / "hparams") == {"loss": {4: 0.5}}
