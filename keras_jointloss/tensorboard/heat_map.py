"""Draws a matrix of cosines as an image."""

import numpy as np

# The colors of -1, 0 and 1, and of a missing value.
_COLORS = np.array([[178, 24, 43], [247, 247, 247], [33, 102, 172]], "float64")
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
