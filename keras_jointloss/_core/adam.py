"""Adam, for the values that a rule updates by gradient descent."""

import math

from keras_jointloss._core.quick_ops import ops

# The values of the paper (Kingma and Ba, 2015).
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8

#: The state of Adam for each value, part of the initial state of a rule.
ADAM_STATE = {"first_moment": 0.0, "second_moment": 0.0, "updates": 0.0}


def adam_step(state, gradient, learning_rate, is_step):
    """Returns the decrement of a value by a step of Adam, and updates the moments in the state.

    Args:
        state: A dict with the entries of `ADAM_STATE`, `(values,)` each.
        gradient: `(values,)`.
        learning_rate: A number.
        is_step: Which values take the step, a bool tensor. The others keep their moments.
    """
    is_step = ops.cast(is_step, gradient.dtype)
    count = state["updates"] + is_step
    first = state["first_moment"] + is_step * (1 - _BETA_1) * (gradient - state["first_moment"])
    square = ops.square(gradient) - state["second_moment"]
    second = state["second_moment"] + is_step * (1 - _BETA_2) * square
    state.update({"updates": count, "first_moment": first, "second_moment": second})
    count = ops.maximum(count, 1)
    # `ops.power` would round the base to `floatx`: in bfloat16, 0.999 is 1.
    corrected = second / (1 - ops.exp(count * math.log(_BETA_2)))
    step = first / (1 - ops.exp(count * math.log(_BETA_1))) / (ops.sqrt(corrected) + _EPSILON)
    return learning_rate * is_step * step
