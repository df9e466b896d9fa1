"""Adam, for what a weighting moves along a gradient."""

import math

from keras import ops

# Those of Adam (Kingma and Ba, 2015).
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8

#: What it keeps of each term, for the `initial_state` of a weighting.
ADAM_STATE = {"first_moment": 0.0, "second_moment": 0.0, "updates": 0.0}


def adam_step(state, gradient, learning_rate, is_step):
    """Returns what a step of Adam takes off a value, and puts the moments into the state.

    Args:
        state: A dict that has `ADAM_STATE`, `(terms,)` each.
        gradient: `(terms,)`.
        learning_rate: A number.
        is_step: Which terms take the step, a bool tensor. The others keep moments and value.
    """
    is_step = ops.cast(is_step, gradient.dtype)
    count = state["updates"] + is_step
    first = state["first_moment"] + is_step * (1 - _BETA_1) * (gradient - state["first_moment"])
    square = ops.square(gradient) - state["second_moment"]
    second = state["second_moment"] + is_step * (1 - _BETA_2) * square
    state.update({"updates": count, "first_moment": first, "second_moment": second})
    count = ops.maximum(count, 1)
    # `ops.power` would round the base to `floatx`: in bfloat16 0.999 is 1.
    corrected = second / (1 - ops.exp(count * math.log(_BETA_2)))
    step = first / (1 - ops.exp(count * math.log(_BETA_1))) / (ops.sqrt(corrected) + _EPSILON)
    return learning_rate * is_step * step
