"""The examples of the classical ways to write a joint loss run, and learn something."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"

# What one epoch must surpass. Without learning the separation is 0.5, the accuracy at most 0.2, the
# share of the largest category, and the explained shares are 0 or less.
SURPASSED = {
    "weighted_sum": {"separation": 0.6, "category_accuracy": 0.25},
    "explicit_weights": {"image": 0.1, "text": 0.5},
    "add_loss": {"image": 0.1, "text": 0.5},
}


# Their models are trained on all backends by `test_equality_with_loop.py`.
@pytest.mark.backend("torch")
@pytest.mark.parametrize("name", SURPASSED)
def test_example(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    result = importlib.import_module(name).main(["--epochs", "1"])
    printed = capsys.readouterr().out
    assert set(result) == set(SURPASSED[name])
    for key, value in result.items():
        assert SURPASSED[name][key] < value < 1
        assert f"{value:.1%}" in printed
