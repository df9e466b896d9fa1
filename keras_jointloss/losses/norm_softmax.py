"""Softmax over the cosines of an embedding and the proxies of the classes."""

import keras

from keras_jointloss._core.types import Annealable, Config, Mask, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._proxies import cosines, cross_entropy
from keras_jointloss.losses.proxy_loss import ProxyLoss


def norm_softmax(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    valid: Mask = None,
    temperature: float | Tensor = 0.05,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`, as the function of `NormSoftmax`."""
    return cross_entropy(cosines(embeddings, proxies), labels, 1 / temperature)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class NormSoftmax(ProxyLoss):
    """Cross-entropy of cosines divided by a temperature.

    With the cosine `s_ic` of the embedding of item `i` and the proxy of class `c`, its own class
    `y` and the temperature `t`:

        loss_i = -log( e^{s_iy / t} / sum_c e^{s_ic / t} )

    Args:
        temperature: The temperature `t`, above 0, or a schedule of it.

    Labels:
        One class of each item, or rows of classes. The cross-entropy is that of the row divided by
        its sum.

    Raises:
        ValueError: If an argument is invalid.

    References:
        - Zhai and Wu, 2019, Classification is a Strong Baseline for Deep Metric Learning

    Example:

    >>> loss = NormSoftmax(temperature=1.0)
    >>> proxies = [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(loss.values([[2.0, 0.0]], proxies, [0])[0]), 4)  # log(1 + e^{-1})
    0.3133
    """

    function = staticmethod(norm_softmax)

    def __init__(self, temperature: Annealable = 0.05):
        super().__init__(
            temperature=annealed(temperature, validate_number, "temperature", 0, exclusive=True)
        )

    def _scale(self, arguments: Config) -> Tensor:
        return 1 / arguments["temperature"]
