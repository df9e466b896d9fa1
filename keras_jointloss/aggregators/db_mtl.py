"""DB-MTL: gradients of the logarithms of the losses, all as long as the longest."""

import keras
from keras import ops

from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_bool
from keras_jointloss.aggregators._gramian import active_terms, at_least, correlation, epsilon
from keras_jointloss.aggregators.base import Aggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class DBMTL(Aggregator):
    """Dual balancing: gradients of log losses, lengthened to the longest, then summed.

        w_i = max_j |h_j| / |g_i|,    h_j = g_j / L_j

    where `h_j` is the gradient of `log L_j`. All terms contribute the same length, whatever the
    scales of their losses and gradients. The losses change only the length of the combined
    gradient, not its direction. The rule does not look at the angles, so the result can conflict
    with some gradients, and opposed gradients cancel. It lengthens a gradient however short it is.

    Without `log`, `h_j = g_j`: the losses are already logarithms, or weighted by `1 / L_j`. This
    is the way in a layer, where the losses are unknown in the backward pass:
    `kj.weighting.GeometricMean` gives each term a weight in proportion to `1 / L_j`, and the layer
    sees the gradients of the weighted terms.

    The published rule first takes a moving average of each gradient, which would need `k` times the
    memory of the gradients. This is the rule without one (`beta` 0), whose gradients are those of
    the step; `ema` smooths the coefficients.

    Args:
        log: Whether to take the gradients of the logarithms of the losses, which are then required.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian. `losses`: `(k,)`,
        > 0, required with `log`.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `log` is not a bool or `ema` is not a number >= 0 and < 1; when called, if
            required losses are missing.

    References:
        - Lin et al., 2023, Dual-Balancing for Multi-Task Learning

    Example:

    >>> [round(float(x), 3) for x in DBMTL(log=True)([[3.0, 0.0], [0.0, 1.0]], losses=[1.0, 0.1])]
    [10.0, 10.0]
    """

    def __init__(self, log: bool = False, rescale: bool = False, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)
        self.log = validate_bool(log, "log")
        self.inputs = ("losses",) if self.log else ()

    def coefficients(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        lengths, _ = correlation(gramian)
        is_active = active_terms(gramian)
        compared = lengths
        if losses is not None:
            least = epsilon(losses) * ops.max(ops.where(is_active, losses, 0))
            compared = lengths / at_least(losses, least)
        return ops.max(ops.where(is_active, compared, ops.zeros_like(compared))) / lengths

    def get_config(self) -> Config:
        return {"log": self.log, **super().get_config()}
