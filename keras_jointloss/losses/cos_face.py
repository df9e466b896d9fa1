"""CosFace: a margin on the cosine of an embedding and the proxy of its class."""

import keras

from keras_jointloss._core.types import Annealable, Config, Mask, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._proxies import cosines, cross_entropy
from keras_jointloss.losses.proxy_loss import ProxyLoss


def cos_face(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    valid: Mask = None,
    margin: float | Tensor = 0.35,
    scale: float = 64.0,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`, as the function of `CosFace`."""

    def with_margin(cosine, share):
        return cosine - margin * share

    return cross_entropy(cosines(embeddings, proxies), labels, scale, with_margin)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class CosFace(ProxyLoss):
    """Cross-entropy of cosines with a margin that the cosine of the own class loses.

    With the cosine `cos_ic` of the embedding of item `i` and the proxy of class `c`, its own class
    `y`, the margin `m` and the scale `s`:

        z_iy   = s (cos_iy - m)
        z_ic   = s cos_ic                                     for c != y
        loss_i = log( sum_c e^{z_ic} ) - z_iy

    Args:
        margin: The margin `m`, 0 or more, or a schedule of it.
        scale: The scale `s`, above 0.

    Labels:
        One class of each item, or rows of classes. A class with the entry `y` in the row of an item
        has the margin `y m`, and the cross-entropy is that of the row divided by its sum.

    Raises:
        ValueError: If an argument is invalid.

    References:
        - Wang et al., 2018, CosFace: Large Margin Cosine Loss for Deep Face Recognition

    Example:

    >>> loss = CosFace(margin=0.25, scale=1.0)
    >>> proxies = [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(loss.values([[2.0, 0.0]], proxies, [0])[0]), 4)  # log(1 + e^{-0.75})
    0.3869
    """

    function = staticmethod(cos_face)

    def __init__(self, margin: Annealable = 0.35, scale: float = 64.0):
        super().__init__(
            margin=annealed(margin, validate_number, "margin", 0),
            scale=validate_number(scale, "scale", 0, exclusive=True),
        )

    def _scale(self, arguments: Config) -> Tensor:
        return arguments["scale"]
