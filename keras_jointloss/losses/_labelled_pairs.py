"""What losses of labelled pairs share: each item is a pair whose label says whether it matches."""

from keras import ops

from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


class PairLoss(ViewsLoss):
    """Base class of losses of labelled pairs."""

    label_kind = "pair"
    compares_items = False


def mixed(views, labels, valid, losses):
    """Returns the loss of each pair, between those of a pair that matches and of one that does not.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`, from 1 for pairs that match to 0.
        valid: `(batch,)`, bool, or `None`.
        losses: Returns the losses of all pairs if they match, and if they do not, from their views.
    """
    views = as_views(views, valid)
    together, apart = losses(views[:, 0], views[:, 1])
    labels = ops.cast(labels, views.dtype)
    return item_losses(labels * together + (1 - labels) * apart, views, valid)
