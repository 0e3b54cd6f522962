"""The two ends of a run: where chunks come from, and where they go.

A `Source` and a `Sink` are made by plugins, as stages are, for one run of one pipeline: `runnel run` and
`runnel feed` open them. Other than a stage they hold files, sockets and devices.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

from .spec import Array
from .stage import Chunk


class Source(abc.ABC):
    """Where a stream's input comes from, opened for one run.

    A factory is called as ``factory(signal, **options)`` with what the pipeline takes, and opens the source
    or raises `runnel.errors.UsageError`. A subclass defines `chunks`, and `close` where it holds something.
    """

    steps: int | None = None  # time steps in all, where that is known beforehand
    rate: float | None = None  # Hz, where the source itself says
    live: bool = False  # it happens now: it sets its own pace, and ends when it is told to
    stamp: float | None = None  # seconds: when the last time step given was taken, where the input says
    stamped: str | None = None  # what the input calls that time, where a table of outputs is to have it too
    stamps: Array | None = None  # float64 (T,): the times of the chunk last given, in the input's own unit
    share: float | None = None  # of the input that was read, 0 to 1, where its size is known

    @abc.abstractmethod
    def chunks(self, block: int) -> Iterator[Chunk]:
        """The input as the signal says, in chunks of 1 to `block` time steps; a live one's as they come.

        Called once. Raises UsageError for the part that cannot be read, and says where that is.
        """

    def close(self) -> None:  # noqa: B027 - many hold nothing
        """Give back what is held; called once, whether the run ended well or not."""


class Sink(abc.ABC):
    """Where a stream's output goes, opened for one run.

    A factory is called as ``factory(signal, **options)`` with what the pipeline makes, and opens the sink or
    raises `runnel.errors.UsageError`. A subclass defines `write`, and `close` where it holds something.
    """

    keeps_time: bool = False  # whether `signal` may begin with a float64 tensor: the times of the rows

    @abc.abstractmethod
    def write(self, chunk: Chunk) -> None:
        """Take one chunk of the signal, of any length. What can be seen at once is shown at once."""

    def close(self, whole: bool) -> None:  # noqa: B027 - many hold nothing
        """The run is over; called once. `whole`: all was written; else nothing half-made may remain."""
