"""Proxy-Anchor: each proxy is an anchor among the items of the batch."""

import keras
from keras import ops

from keras_jointloss._core.math import divide_or_0, mean, soft_sum_where
from keras_jointloss._core.types import Annealable, Config, Mask, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._proxies import cosines, own_classes
from keras_jointloss.losses.proxy_loss import ProxyLoss


def proxy_anchor(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    valid: Mask = None,
    margin: float | Tensor = 0.1,
    alpha: float = 32.0,
) -> Tensor:
    """Returns the loss of the batch for each item, `(batch,)`, as the function of `ProxyAnchor`."""
    cosine = cosines(proxies, embeddings)  # (classes, batch)
    positive = ops.transpose(own_classes(labels, proxies.shape[0]))
    negative = ops.logical_not(positive)
    if valid is not None:
        positive, negative = (ops.logical_and(x, valid[None, :]) for x in (positive, negative))
    pull = soft_sum_where(-alpha * (cosine - margin), positive, axis=1)
    push = soft_sum_where(alpha * (cosine + margin), negative, axis=1)
    count = ops.sum(ops.cast(ops.any(positive, axis=1), pull.dtype))
    loss = divide_or_0(ops.sum(pull), count) + mean(push)
    return ops.broadcast_to(loss, ops.shape(embeddings)[:1])


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ProxyAnchor(ProxyLoss):
    """Proxies attract the items of their class and repel the others, the hardest most.

    With the cosine `s_ic` of the embedding of item `i` and the proxy of class `c`, the margin `d`,
    the classes `C` and, among them, the classes `P` of which the batch has an item:

        loss = mean_{c in P} log( 1 + sum_{i of class c} e^{-a (s_ic - d)} )
             + mean_{c in C} log( 1 + sum_{i not of class c} e^{a (s_ic + d)} )

    It is a loss of the whole batch, which every item has.

    Args:
        margin: The margin `d`, 0 or more, or a schedule of it.
        alpha: The scale `a`, above 0.

    Labels:
        One class of each item, or rows of classes: the classes of an item are those whose entry
        exceeds 0.5. An item without a class is a negative for all proxies.

    Raises:
        ValueError: If an argument is invalid.

    References:
        - Kim, Kim, Cho, Kwak, 2020, Proxy Anchor Loss for Deep Metric Learning

    Example:

    >>> loss = ProxyAnchor(margin=0.0, alpha=1.0)
    >>> proxies = [[1.0, 0.0], [0.0, 1.0]]
    >>> loss_of_batch = loss.values([[2.0, 0.0]], proxies, [0])[0]
    >>> round(float(loss_of_batch), 4)  # log(1 + e^{-1}) + log(1 + e^0) / 2
    0.6598
    """

    function = staticmethod(proxy_anchor)
    compares_items = True

    def __init__(self, margin: Annealable = 0.1, alpha: float = 32.0):
        super().__init__(
            margin=annealed(margin, validate_number, "margin", 0),
            alpha=validate_number(alpha, "alpha", 0, exclusive=True),
        )

    def _scale(self, arguments: Config) -> Tensor:
        return arguments["alpha"]
