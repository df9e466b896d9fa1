"""The hinge of the triplet losses, with a margin or soft."""

from typing import Any

from keras import ops

from keras_jointloss._core.validation import validate_number


def hinge(difference, margin: float | str):
    """Returns `[difference + margin]+`, or the softplus of the difference if `margin="soft"`."""
    return ops.softplus(difference) if margin == "soft" else ops.relu(difference + margin)


def validate_margin(value: Any) -> float | str:
    """Returns `value` if it is a number >= 0 or `"soft"`.

    Raises:
        ValueError: If it is anything else.
    """
    return (
        value if isinstance(value, str) and value == "soft" else validate_number(value, "margin", 0)
    )
