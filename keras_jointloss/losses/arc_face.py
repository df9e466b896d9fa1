"""ArcFace: a margin on the angle between an embedding and the proxy of its class."""

import math

import keras
from keras import ops

from keras_jointloss._core.math import safe_sqrt
from keras_jointloss._core.types import Annealable, Config, Mask, Tensor
from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._proxies import cosines, cross_entropy
from keras_jointloss.losses.proxy_loss import ProxyLoss


def arc_face(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    valid: Mask = None,
    margin: float | Tensor = 0.5,
    scale: float = 64.0,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`, as the function of `ArcFace`."""

    def with_margin(cosine, share):
        angle = margin * share
        cos, sin = ops.cos(angle), ops.sin(angle)
        # The derivative of the sine is infinite at 1 and -1. There the function returns 0 for it.
        moved = cosine * cos - safe_sqrt((1 - cosine) * (1 + cosine)) * sin
        # Beyond an angle of pi - margin, the cosine would increase again.
        return ops.where(cosine >= -cos, moved, cosine - angle * sin)

    return cross_entropy(cosines(embeddings, proxies), labels, scale, with_margin)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ArcFace(ProxyLoss):
    """Cross-entropy of cosines with an additive margin on the angle of the own class.

    With the angle `theta_ic` between the embedding of item `i` and the proxy of class `c`, its own
    class `y`, the margin `m` and the scale `s`:

        z_iy   = s cos(theta_iy + m)
        z_ic   = s cos(theta_ic)                            for c != y
        loss_i = log( sum_c e^{z_ic} ) - z_iy

    Where `theta_iy + m` exceeds pi, `cos(theta_iy) - m sin(m)` replaces the cosine with the margin,
    as in the authors' code, so that a larger angle never has a smaller loss. At an angle of exactly
    0 or pi, the part of the gradient that has no direction there is 0.

    Args:
        margin: The margin `m` in radians, 0 or more and below pi, or a schedule of it. Libraries
            that take degrees have 28.6 for 0.5.
        scale: The scale `s`, above 0.

    Labels:
        One class of each item, or rows of classes. A class with the entry `y` in the row of an item
        has the margin `y m`, and the cross-entropy is that of the row divided by its sum.

    Raises:
        ValueError: If an argument is invalid.

    References:
        - Deng, Guo, Xue, Zafeiriou, 2019, ArcFace: Additive Angular Margin Loss for Deep Face
          Recognition

    Example:

    >>> loss = ArcFace(margin=0.5, scale=1.0)
    >>> proxies = [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(loss.values([[2.0, 0.0]], proxies, [0])[0]), 4)  # log(1 + e^{-cos 0.5})
    0.3477
    """

    function = staticmethod(arc_face)

    def __init__(self, margin: Annealable = 0.5, scale: float = 64.0):
        super().__init__(
            margin=annealed(margin, _validate_angle, "margin"),
            scale=validate_number(scale, "scale", 0, exclusive=True),
        )

    def _scale(self, arguments: Config) -> Tensor:
        return arguments["scale"]


def _validate_angle(value, name):
    """Returns an angle in [0, pi) as a float."""
    expected = "a number of radians >= 0 and < pi"
    angle = validate_number(value, name, 0, expected=expected)
    if angle >= math.pi:
        raise invalid(name, expected, value)
    return angle
