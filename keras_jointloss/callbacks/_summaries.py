"""The TensorBoard runs of training, and the charts that show all terms together."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import keras

from keras_jointloss._core.backend import is_chief
from keras_jointloss._core.keras_calls import when_callbacks_are_deleted
from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard import SummaryWriter

# The charts of the custom scalars dashboard, with the tags in each.
_TERM_CHARTS = {
    "weighted": [r"^joint_loss/.+/weighted$", r"^joint_loss/other$", r"^joint_loss/total$"],
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


#: Called with the run, the scalars by tag, and the training step.
OnLog: TypeAlias = Callable[[str, dict[str, float], int], Any]
#: By term, the steps and the weights of its schedule.
Schedules: TypeAlias = Mapping[str, tuple[Sequence[int], Sequence[float]]]


def validate_log_dir(value: Any) -> str | None:
    """Returns the path of a folder as a string; `None` for none."""
    if value is not None and not isinstance(value, str | os.PathLike):
        raise invalid("log_dir", "a path, or None", value)
    return None if value is None else str(os.fspath(value))


def validate_on_log(on_log: Any) -> OnLog | None:
    """Returns `on_log`, or raises `ValueError` if it is neither `None` nor a function."""
    if on_log is not None and not callable(on_log):
        raise invalid(
            "on_log",
            "None or a function of the run, the scalars by tag and the training step",
            on_log,
        )
    return on_log


class Summaries:
    """Writes the runs `train` and `validation`, and passes their scalars on.

    Of several processes that train together, only the chief does. Without a `log_dir` nothing is
    written. The charts are those of the terms and of the gradients, if there are any.

    A full disk, a folder that is gone or a tracker that does not answer ends no training. If a file
    cannot be written, no other is until the next training. Once `on_log` has returned for a run,
    its errors there are one warning, and it is called with the next values.
    """

    def __init__(
        self,
        model: keras.Model,
        log_dir: str | None,
        has_terms: bool = False,
        has_gradients: bool = False,
        on_log: OnLog | None = None,
    ):
        is_writer = is_chief(model)
        self._log_dir = log_dir if is_writer else None
        self._on_log = on_log if is_writer else None
        self._has_terms = has_terms
        self._has_gradients = has_gradients
        self._writers: dict[str, SummaryWriter] = {}
        self._has_failed = self._has_warned = False
        self._logged: set[str] = set()  # The runs whose first values `on_log` has accepted.

    @property
    def log_dir(self) -> str | None:
        """Where to write, or `None` to write nothing."""
        return None if self._has_failed else self._log_dir

    def start_training(self, run: str) -> None:
        """Opens a run, unless `log_dir` is `None`; raises `OSError` if it cannot be written."""
        self._has_failed = self._has_warned = False
        self._logged.clear()
        self._open(run)

    def _open(self, run: str) -> None:
        if self.log_dir is None or run in self._writers:
            return
        self._writers[run] = writer = SummaryWriter(os.path.join(self.log_dir, run))
        when_callbacks_are_deleted(partial(_close, writer))
        charts = _TERM_CHARTS if self._has_terms else {}
        if self._has_gradients and run == "train":
            charts = {**charts, **_GRADIENT_CHARTS}
        if charts:
            writer.chart_layout("Joint loss", charts)

    def scalars(self, run: str, values: dict[str, float], step: int) -> None:
        """Writes scalars by tag, and passes them to `on_log`."""
        with self.writing(run) as writer:
            if writer is not None:
                writer.scalars(values, step)
        if self._on_log is not None:
            self._pass_on(self._on_log, run, dict(values), step)

    def images(self, run: str, images: Iterable[tuple[str, Any, str]], step: int) -> None:
        """Writes images, given as tag, image and description. Without a folder, draws none."""
        with self.writing(run) as writer:
            if writer is not None:
                for tag, image, description in images:
                    writer.image(tag, image, step, description)

    def start(self, run: str, epoch: int, step: int, end: int, schedules: Schedules) -> None:
        """Writes where a training starts and is to end, and the schedules of its terms."""
        with self.writing(run) as writer:
            if writer is not None:
                writer.training(schedules, step, end)
                writer.epochs(epoch, step)

    def end_epoch(self, run: str, epoch: int, step: int) -> None:
        """Writes that an epoch has ended, and flushes all runs."""
        if run in self._writers:
            with self.writing(run) as writer:
                if writer is not None:
                    writer.epochs(epoch + 1, step)
        self.flush()

    def flush(self) -> None:
        """Writes buffered data to the files."""
        with self.writing():
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        """Closes all runs."""
        with self.writing():
            for writer in self._writers.values():
                writer.close()
        self._writers.clear()

    @contextlib.contextmanager
    def writing(self, run: str | None = None) -> Iterator[SummaryWriter | None]:
        """Opens a run, and yields its writer; a failure to write becomes a warning.

        The writer is `None` if nothing is to be written, as after a failure.
        """
        try:
            if run is not None:
                self._open(run)
            yield self._writers.get(run) if run is not None else None
        except Exception as error:
            if not _is_of_files(error):
                raise
            writers = [*self._writers.values()]
            self._has_failed = True
            self._writers.clear()
            for writer in writers:
                _close(writer)
            warnings.warn(
                f"No more logs are written to {self._log_dir!r}: training goes on without. {error}",
                stacklevel=2,
            )

    def _pass_on(self, on_log: OnLog, run: str, values: dict[str, float], step: int) -> None:
        try:
            on_log(run, values, step)
        except Exception as error:
            if run not in self._logged:
                raise
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"`on_log` has failed at step {step}, and may fail again: training goes on. "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
        self._logged.add(run)


def _is_of_files(error: Exception) -> bool:
    """Returns whether a file cannot be written. TensorFlow's errors are of a class of their own."""
    return isinstance(error, OSError) or "OpError" in [x.__name__ for x in type(error).__mro__]


def _close(writer: SummaryWriter) -> None:
    """Closes a file, as far as it can be written."""
    with contextlib.suppress(OSError):
        writer.close()
