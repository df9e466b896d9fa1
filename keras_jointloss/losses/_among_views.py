"""What the losses share whose anchors and candidates are all views of the batch."""

import math

from keras_jointloss._core.math import SIMILARITIES
from keras_jointloss._core.validation import validate_choice, validate_number
from keras_jointloss.losses._tiles import validate_tile_size
from keras_jointloss.losses.base import ViewsLoss


class AmongViews(ViewsLoss):
    """Base class of the losses whose anchors and candidates are all views of the batch."""

    max_views = math.inf
    has_memory = True
    takes_items = True

    def __init__(self, name, reduction, dtype, temperature, similarity, tile_size, **arguments):
        super().__init__(
            name,
            reduction,
            dtype,
            temperature=validate_number(temperature, "temperature", 0, exclusive=True),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            tile_size=validate_tile_size(tile_size, similarity),
            **arguments,
        )
