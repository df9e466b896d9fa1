"""The examples of classical joint losses run and improve on chance."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"

# One epoch must exceed these values. Without learning, the separation is 0.5, the accuracy is at
# most 0.2 (the share of the largest category), and the explained shares are at most 0.
SURPASSED = {
    "weighted_sum": {"separation": 0.6, "category_accuracy": 0.25},
    "explicit_weights": {"image": 0.1, "text": 0.5},
    "add_loss": {"image": 0.1, "text": 0.5},
}


# `test_equality_with_loop.py` trains their models on all backends.
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
