"""Draws a matrix of cosines as an image."""

import numpy as np

#: From -1, two gradients in conflict, to 1; distinct for readers with any color vision.
COSINE_COLORS = ("#B2182B", "#F7F7F7", "#2166AC")
_COLORS = np.array([[*bytes.fromhex(x[1:])] for x in COSINE_COLORS], "float64")
# The color of a missing value.
_NOTHING = (189, 189, 189)
_CELL = 32


def heat_map(cosines: np.ndarray) -> np.ndarray:
    """Returns an image of a matrix of numbers from -1 (red) to 1 (blue); 0 is white.

    Args:
        cosines: `(rows, columns)`; `nan` is gray.

    Returns:
        `(height, width, 3)`, uint8: 32 x 32 pixels for each number, separated by a line.

    Example:

    >>> heat_map(np.eye(2)).shape
    (64, 64, 3)
    """
    cosines = np.asarray(cosines, "float64")
    position = np.clip(np.nan_to_num(cosines), -1, 1)
    channels = [np.interp(position, [-1, 0, 1], channel) for channel in _COLORS.T]
    colors = np.where(np.isnan(cosines)[..., None], _NOTHING, np.stack(channels, axis=-1))
    image = np.kron(np.rint(colors), np.ones((_CELL, _CELL, 1))).astype("uint8")
    image[::_CELL] = image[:, ::_CELL] = 255
    return image
