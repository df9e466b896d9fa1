"""What the losses share whose anchors and candidates are all views of the batch."""

import math
from typing import Any

from keras_jointloss._core.math import SIMILARITIES
from keras_jointloss._core.types import DType, Reduction, Similarity
from keras_jointloss._core.validation import validate_choice, validate_number
from keras_jointloss.losses._tiles import validate_tile_size
from keras_jointloss.losses.base import ViewsLoss


class AmongViews(ViewsLoss):
    """Base class of the losses whose anchors and candidates are all views of the batch."""

    max_views = math.inf
    has_memory = True
    takes_items = True

    def __init__(
        self,
        name: str,
        reduction: Reduction,
        dtype: DType,
        temperature: float,
        similarity: Similarity,
        tile_size: int | None,
        **arguments: Any,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            temperature=validate_number(temperature, "temperature", 0, exclusive=True),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            tile_size=validate_tile_size(tile_size, similarity),
            **arguments,
        )
