"""Threads or processes that make the next batches of an epoch."""

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any


class Ahead:
    """Makes the batches that follow the last one that was asked for, while the model trains.

    Args:
        data: The data set, whose `make` returns a batch.
        workers: The number of threads or processes.
        uses_processes: Whether they are processes.
        size: The number of batches to make.
    """

    def __init__(self, data: Any, workers: int, uses_processes: bool, size: int):
        self._data, self._size = data, size
        self._make = _make if uses_processes else data.make
        # Processes receive the data once.
        self._pool: ThreadPoolExecutor | ProcessPoolExecutor = (
            ProcessPoolExecutor(workers, initializer=_receive, initargs=(data,))
            if uses_processes
            else ThreadPoolExecutor(workers)
        )
        self._futures: dict[int, Future] = {}
        self._is_stopped = False

    def get(self, plan: Sequence[Any], index: int) -> tuple:
        """Returns the batch at a position of an epoch, and begins with those that follow."""
        try:
            for i in range(index, min(index + 1 + self._size, len(plan))):
                if i not in self._futures:
                    self._futures[i] = self._pool.submit(self._make, plan[i])
            return self._futures.pop(index).result()
        except (CancelledError, RuntimeError, KeyError):
            # TensorFlow may still ask for batches of an epoch that has ended.
            if not self._is_stopped:
                raise
            return self._data.make(plan[index])

    def stop(self) -> None:
        """Leaves out what has not begun yet."""
        self._is_stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)


#: The data of a process.
_received: list = []


def _receive(data: Any) -> None:
    _received[:] = [data]


def _make(planned: Any) -> tuple:
    return _received[0].make(planned)
