"""Calls losses, metrics, aggregators and layers with bad batches, by hypothesis."""

import traceback
from collections.abc import Mapping

import keras
import numpy as np
from hypothesis import strategies as st
from keras import ops

from tests.fuzzing.call_targets import ITEMS, Target
from tests.fuzzing.changes import CHANGES, FINITE

ANY_CHANGE = st.sampled_from(sorted(CHANGES))


def _is_of_keras(error: Exception) -> bool:
    """Returns whether Keras refuses an input of a layer before the layer sees it."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return not any("keras_jointloss/" in name and "/tests/" not in name for name in files)


def _is_wrong(name: str, change: str, changes: Mapping[str, str], size: int) -> bool:
    """Returns whether a change that is wrong by itself is so beside the others, too."""
    others = [x for other, x in changes.items() if other != name]
    if (change, size) in (("shorter", 2), ("longer", 1)):
        return False  # Keras repeats an only item.
    if change in ("shorter", "longer", "empty"):
        return change not in others  # Else the numbers of items may agree.
    if change in ("row", "ragged"):
        return size > 1  # Else it is a column.
    # An item whose weight becomes 0 may have any label.
    return "nan" not in change or "sample_weight" not in changes


def problem(target: Target, changes: Mapping[str, str], size: int = ITEMS) -> str | None:
    """Calls something with changed arrays; returns what is wrong with the outcome.

    Args:
        target: What to call.
        changes: The changes by the name of the argument.
        size: The number of items of the batch.
    """
    arrays = {name: x[:size] if name in target.aligned else x for name, x in target.arrays.items()}
    given = {name: CHANGES[changes.get(name, "as it is")](x) for name, x in arrays.items()}
    if changes.get("sample_weight") == "none":
        changes = {name: x for name, x in changes.items() if name != "sample_weight"}
    if target.skipped & set(changes.values()):
        return None
    wrong = [
        f"{name} ({x})"
        for name, x in changes.items()
        if x in target.wrong.get(name, ()) and _is_wrong(name, x, changes, size)
    ]
    try:
        result = target.call(**given)
    except ValueError as error:
        text = str(error)
        if _is_of_keras(error):
            return None
        if not any(name in text for name in (*target.names, *(f"`{x}`" for x in given))):
            return f"ValueError without a name: {text[:200]}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if wrong:
        return f"accepted {', '.join(wrong)}"
    if set(changes.values()) <= FINITE:
        values = [ops.convert_to_numpy(x) for x in keras.tree.flatten(result)]
        if not all(np.isfinite(x).all() for x in values):
            return "not finite"
    return None
