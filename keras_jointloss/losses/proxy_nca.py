"""Proxy-NCA: softmax over the squared distances of an embedding from the proxies."""

import keras

from keras_jointloss._core.types import Config, Mask, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._proxies import cosines, cross_entropy
from keras_jointloss.losses.proxy_loss import ProxyLoss


def proxy_nca(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    valid: Mask = None,
    scale: float = 1.0,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`, as the function of `ProxyNCA`."""
    # The squared distance of unit vectors is 2 minus twice their cosine.
    return cross_entropy(cosines(embeddings, proxies), labels, 2 * scale)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ProxyNCA(ProxyLoss):
    """Cross-entropy of the negative squared distances between unit vectors.

    With the distance `d_ic` between the embedding of item `i` and the proxy of class `c`, both
    scaled to length 1, its own class `y` and the scale `s`:

        loss_i = -log( e^{-s d_iy^2} / sum_c e^{-s d_ic^2} )

    The sum contains the own class, so that the loss is a cross-entropy, as in Proxy-NCA++ and in
    most libraries. The paper of 2017 leaves the own class out of it. Proxy-NCA++ has the scale 9.

    Args:
        scale: The scale `s`, above 0: the inverse of a temperature.

    Labels:
        One class of each item, or rows of classes. The cross-entropy is that of the row divided by
        its sum.

    Raises:
        ValueError: If an argument is invalid.

    References:
        - Movshovitz-Attias et al., 2017, No Fuss Distance Metric Learning using Proxies
        - Teh, DeVries, Taylor, 2020, ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood
          Component Analysis

    Example:

    >>> loss = ProxyNCA()
    >>> proxies = [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(loss.values([[2.0, 0.0]], proxies, [0])[0]), 4)  # log(1 + e^{-2})
    0.1269
    """

    function = staticmethod(proxy_nca)

    def __init__(self, scale: float = 1.0):
        super().__init__(scale=validate_number(scale, "scale", 0, exclusive=True))

    def logits(self, embeddings: Tensor, proxies: Tensor) -> Tensor:
        """Returns the negative squared distances times the scale, as in `ProxyLoss`."""
        return super().logits(embeddings, proxies) - 2 * self.scale

    def _scale(self, arguments: Config) -> Tensor:
        return 2 * arguments["scale"]
