"""InfoNCE: the items of a batch tell each item's pair from all other pairs."""

import math
from typing import Any

import keras
from keras import ops

from keras_jointloss._math import dot, dot_matrix, l2_normalize
from keras_jointloss._validation import validate_number
from keras_jointloss.losses.base import LearnedParameter, ViewsLoss


def info_nce(a, b, temperature=0.07, symmetric=True, normalize=True):
    """Returns the InfoNCE loss of each pair of embeddings. See `InfoNCE`.

    Args:
        a: `(batch, dim)`, the embeddings of the anchors.
        b: `(batch, dim)`, the embeddings of their positives, in the same order.
        temperature: A float or a scalar tensor, > 0.
        symmetric: Whether the positives, too, look for their anchors.
        normalize: Whether to scale the embeddings to length 1.

    Returns:
        `(batch,)`.
    """
    if normalize:
        a, b = l2_normalize(a), l2_normalize(b)
    scale = 1.0 / temperature
    logits = dot_matrix(a, b) * scale  # (batch, batch)
    positive = dot(a, b) * scale  # (batch,)
    loss = ops.logsumexp(logits, axis=1) - positive
    if symmetric:
        loss = 0.5 * (loss + ops.logsumexp(logits, axis=0) - positive)
    return loss


@keras.saving.register_keras_serializable(package="keras_jointloss")
class InfoNCE(ViewsLoss):
    """Contrastive loss that classifies each item's other view among those of the whole batch.

    With embeddings `a` and `b` of length 1, similarities `s_ij = a_i . b_j` and temperature `t`:

        loss_i = 1/2 [ LSE_j(s_ij / t) - s_ii / t  +  LSE_j(s_ji / t) - s_ii / t ]

    where `LSE` is the logarithm of the sum of exponentials; with `symmetric=False` the first two
    terms alone. The negatives of an item are the other items of the batch.

    Args:
        temperature: The number `t` > 0 by which similarities are divided.
        symmetric: Whether both views serve as anchors (as in CLIP), or only the first.
        normalize: Whether to scale the embeddings to length 1 first. A zero vector stays zero
            and gets no gradient.
        name: Name of the loss.
        reduction: As in `keras.losses.Loss`.
        dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the two views of each item. `y_true` is not used: anything
        with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If the temperature is not a number > 0 or `y_pred` has another shape.

    References:
        - van den Oord et al., 2018, Representation Learning with Contrastive Predictive Coding
        - Radford et al., 2021, Learning Transferable Visual Models From Natural Language
          Supervision (the symmetric form and the learned temperature)

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> views = np.stack([a, a], axis=1)
    >>> loss = InfoNCE(temperature=1.0)
    >>> round(float(loss(np.zeros(3), views)), 4)  # log(e + 2) - 1
    0.5514
    """

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = True,
        normalize: bool = True,
        name: str = "info_nce",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self._temperature = validate_number(temperature, "temperature", 0, exclusive=True)
        self.symmetric = symmetric
        self.normalize = normalize

    def values(self, views, labels=None, **parameters):
        a, b = views[:, 0], views[:, 1]
        return info_nce(a, b, self.temperature(**parameters), self.symmetric, self.normalize)

    def learned_parameters(self) -> dict[str, LearnedParameter]:
        """Returns CLIP's log of the inverse temperature, kept between 0 and log 100."""
        return {"log_scale": LearnedParameter(-math.log(self._temperature), 0.0, math.log(100))}

    def temperature(self, **parameters: Any) -> Any:
        """Returns the temperature, or the one that belongs to a learned `log_scale`."""
        return ops.exp(-parameters["log_scale"]) if parameters else self._temperature

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "temperature": self._temperature,
            "symmetric": self.symmetric,
            "normalize": self.normalize,
        }
