"""Event files of TensorBoard, which a thread writes while training goes on."""

import itertools
import os
import queue
import socket
import threading
import time
from typing import Any

_counter = itertools.count()


class EventFile:
    """A new event file in a folder.

    A thread of its own writes the file: the checksums take as long as a short training step. Of
    what the thread cannot write, the error is raised by every call that follows.

    Args:
        log_dir: The folder, which must exist if it is not remote.
        flush_seconds: What has been written is on disk after this time at the latest.

    Raises:
        OSError: If the file cannot be written, in each method, or is closed.
    """

    def __init__(self, log_dir: str, flush_seconds: float):
        from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata

        self._log_dir = log_dir
        self._flush_seconds = flush_seconds
        self._file_path = os.path.join(log_dir, _file_name())
        self._error: Exception | None = None
        self._is_closed = False
        # Bytes to write, or what the thread sets once all before it is on disk, `_closed` the last.
        # The garbage collector, which may close a file at any time, can put into such a queue.
        self._waiting: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(None, self._run, "joint_loss event file", daemon=True)
        self._thread.start()
        source = SourceMetadata(writer="keras_jointloss.tensorboard")
        self.write(
            Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source)
        )
        try:
            self.flush()
        except OSError:
            self._wait(self._closed)
            raise

    def write(self, event: Any) -> None:
        """Writes an `Event` message of TensorBoard, some time later."""
        self._check()
        self._waiting.put(event.SerializeToString())

    def flush(self) -> None:
        """Writes everything to disk now."""
        self._check()
        if "://" not in self._log_dir and not os.path.isdir(self._log_dir):
            # The system lets a process go on writing to a file that is deleted.
            raise FileNotFoundError(f"There is no folder {self._log_dir} any more")
        self._wait(threading.Event())
        self._check()

    def close(self) -> None:
        """Writes everything to disk, and closes the file."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wait(self._closed)
        self._raise_error()

    def _check(self) -> None:
        if self._is_closed:
            raise OSError(f"{self._file_path} is closed")
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            # Errors of TensorFlow's file systems are not of this class.
            raise OSError(f"{self._file_path}: {self._error}") from self._error

    def _wait(self, reached: threading.Event) -> None:
        self._waiting.put(reached)
        if threading.current_thread() is not self._thread:
            # A forked process does not have the thread.
            while self._thread.is_alive() and not reached.wait(1.0):
                pass

    def _run(self) -> None:
        """Writes what is waiting, and flushes in time."""
        records, due = None, None
        while not self._closed.is_set():
            try:
                item = self._waiting.get(timeout=due and max(0.0, due - time.monotonic()))
            except queue.Empty:
                item = threading.Event()
            try:
                records = records or _open(self._file_path)
                if self._error is None and isinstance(item, bytes):
                    records.write(item)
                    due = due or time.monotonic() + self._flush_seconds
                elif self._error is None:
                    records.flush()
                if item is self._closed:
                    records.close()
            except Exception as error:
                self._error = self._error or error
            if isinstance(item, threading.Event):
                due = None
                item.set()


def _file_name() -> str:
    """Returns a name that no other process and no other file of this one has."""
    own = f"{socket.gethostname()}.{os.getpid()}.{next(_counter)}"
    return f"events.out.tfevents.{int(time.time()):010d}.{own}"


def _open(path: str) -> Any:
    from tensorboard.compat import tf
    from tensorboard.summary.writer.record_writer import RecordWriter

    return RecordWriter(tf.io.gfile.GFile(path, "wb"))
