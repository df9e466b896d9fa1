"""Writes embeddings for TensorBoard's projector."""

import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_jointloss._core.validation import invalid

#: The side, in pixels, of the largest image of thumbnails that browsers display.
LARGEST_SPRITE = 8192


def write_projector(
    log_dir: str | os.PathLike[str],
    name: str,
    embeddings: np.ndarray,
    metadata: Mapping[str, Sequence[Any]],
    thumbnails: np.ndarray | None = None,
) -> None:
    """Writes embeddings for the projector and replaces those of the same name.

    Args:
        log_dir: The directory of a run.
        name: The name of the embeddings.
        embeddings: `(points, dim)`.
        metadata: By heading, one value per point.
        thumbnails: `(points, height, width, 3)`, uint8: one image per point.

    Raises:
        ValueError: If the number of metadata values or thumbnails differs from that of the
            embeddings, or the thumbnails are invalid.
        OSError: If the directory cannot be written.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as log_dir:
    ...     write_projector(log_dir, "pair", np.eye(3), {"label": ["cat", "dog", "eel"]})
    """
    from google.protobuf import text_format
    from tensorboard.compat.tensorflow_stub.io import gfile
    from tensorboard.plugins.projector import ProjectorConfig
    from tensorboard.plugins.projector.metadata import PROJECTOR_FILENAME

    lengths = {f"metadata {heading!r}": len(column) for heading, column in metadata.items()}
    if thumbnails is not None:
        validate_thumbnails(thumbnails)
        lengths["thumbnails"] = len(thumbnails)
    for what, length in lengths.items():
        if length != len(embeddings):
            raise ValueError(
                f"Expected {what} of each of the {len(embeddings)} points. Received: {length}"
            )
    log_dir = os.fspath(log_dir)
    if not gfile.exists(log_dir):
        gfile.makedirs(log_dir)
    config = ProjectorConfig()
    config_path = os.path.join(log_dir, PROJECTOR_FILENAME)
    if gfile.exists(config_path):
        with gfile.GFile(config_path, "r") as file:
            text_format.Parse(file.read(), config)
    others = [other for other in config.embeddings if other.tensor_name != name]
    del config.embeddings[:]
    config.embeddings.extend(others)

    stem = name.replace("/", "_")
    embedding = config.embeddings.add()
    embedding.tensor_name = name
    embedding.tensor_path = f"{stem}_embeddings.tsv"
    embedding.tensor_shape.extend(embeddings.shape)
    embedding.metadata_path = f"{stem}_metadata.tsv"
    files: dict[str, str | bytes] = {
        embedding.tensor_path: "".join(
            "\t".join(f"{x:.7g}" for x in vector) + "\n" for vector in np.asarray(embeddings)
        ),
        embedding.metadata_path: _table(metadata),
    }
    if thumbnails is not None:
        embedding.sprite.image_path = f"{stem}_thumbnails.png"
        embedding.sprite.single_image_dim.extend([thumbnails.shape[2], thumbnails.shape[1]])
        files[embedding.sprite.image_path] = encode_png(_sprite(thumbnails))
    files[PROJECTOR_FILENAME] = text_format.MessageToString(config)
    for file_name, content in files.items():
        mode = "wb" if isinstance(content, bytes) else "w"
        with gfile.GFile(os.path.join(log_dir, file_name), mode) as file:
            file.write(content)


def validate_thumbnails(thumbnails: np.ndarray, copies: int = 1) -> None:
    """Raises `ValueError` if thumbnails are invalid or `copies` of each do not fit one image."""
    shape = np.shape(thumbnails)
    if len(shape) != 4 or shape[3] != 3 or np.asarray(thumbnails).dtype != np.uint8:
        expected = "an array of shape (items, height, width, 3) and dtype uint8"
        received = f"shape={shape}, dtype={np.asarray(thumbnails).dtype}"
        raise invalid("thumbnails", expected, received=received)
    side = math.ceil(math.sqrt(copies * shape[0])) * max(shape[1:3])
    if side > LARGEST_SPRITE:
        square = f"{LARGEST_SPRITE} x {LARGEST_SPRITE} pixels"
        raise invalid(
            "thumbnails",
            f"fewer or smaller ones that fit side by side into {square}",
            received=f"{copies} x {shape[0]} of {shape[2]} x {shape[1]} pixels",
        )


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image `(height, width, 3)`, uint8, as a PNG file."""
    height, width, _ = image.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    rows = np.pad(image.reshape(height, 3 * width), ((0, 0), (1, 0)))  # filter 0 before each row
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )


def _sprite(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the thumbnails row by row in one image with as many rows as columns."""
    count, height, width, _ = thumbnails.shape
    side = math.ceil(math.sqrt(count))
    grid = np.zeros((side * side, height, width, 3), "uint8")
    grid[:count] = thumbnails
    grid = grid.reshape(side, side, height, width, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(side * height, side * width, 3)


def _table(columns: Mapping[str, Sequence]) -> str:
    """Returns the lines of a metadata file, which has headings only with several columns."""
    rows: list[Sequence] = [tuple(columns)] if len(columns) > 1 else []
    rows.extend(zip(*columns.values(), strict=True))
    return "".join("\t".join(" ".join(str(x).split()) for x in row) + "\n" for row in rows)
