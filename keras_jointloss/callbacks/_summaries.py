"""The TensorBoard runs of training, and the charts that show all terms together."""

import os
from typing import Any

from keras_jointloss.tensorboard import SummaryWriter

# The charts of the custom scalars dashboard, with the tags in each.
_TERM_CHARTS = {
    "weighted": [r"^joint_loss/.+/weighted$", r"^joint_loss/total$"],
    "raw": [r"^joint_loss/.+/raw$"],
    "weight": [r"^joint_loss/.+/weight$"],
    "share": [r"^joint_loss/.+/share$"],
}
_GRADIENT_CHARTS = {
    "gradient norm": [r"^gradients/.+/norm$"],
    "gradient coefficient": [r"^gradients/.+/coefficient$"],
    "gradient cosine": [r"^gradients/.+/cosine$"],
    "gradient conflict": [r"^gradients/(.+/)?conflict$"],
}


class Summaries:
    """Writes the runs `train` and `validation`.

    Args:
        log_dir: The folder, or `None` to write nothing.
        has_terms: Whether there are terms to show.
        has_gradients: Whether there are gradients to show.
    """

    def __init__(self, log_dir: str | None, has_terms: bool, has_gradients: bool):
        self._log_dir = log_dir
        self._has_terms = has_terms
        self._has_gradients = has_gradients
        self._writers: dict[str, SummaryWriter] = {}

    def open(self, run: str) -> None:
        """Opens a run, unless `log_dir` is `None`.

        Raises:
            OSError: If the folder cannot be written.
        """
        if self._log_dir is None or run in self._writers:
            return
        self._writers[run] = writer = SummaryWriter(os.path.join(self._log_dir, run))
        charts = _TERM_CHARTS if self._has_terms else {}
        if self._has_gradients and run == "train":
            charts = {**charts, **_GRADIENT_CHARTS}
        if charts:
            writer.chart_layout("Joint loss", charts)

    def scalars(self, run: str, values: dict[str, float], step: int) -> None:
        """Writes scalars by tag."""
        self.open(run)
        if run in self._writers:
            self._writers[run].scalars(values, step)

    def image(self, run: str, tag: str, picture: Any, step: int, description: str) -> None:
        """Writes a picture."""
        self.open(run)
        if run in self._writers:
            self._writers[run].image(tag, picture, step, description)

    def flush(self) -> None:
        """Writes buffered data to the files."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Closes all runs."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
