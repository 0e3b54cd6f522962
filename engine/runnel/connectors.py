"""Sources and sinks: the input and the output of a run.

Plugins make a `Source` and a `Sink`, as they make stages, for one run of one pipeline: `runnel run` and
`runnel feed` open them. Unlike a stage, a connector may hold files, sockets and devices.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

from .spec import Array
from .stage import Chunk


class Source(abc.ABC):
    """The input of a stream, opened for one run.

    A factory is called as ``factory(signal, **options)``, where `signal` is the pipeline's input. It opens
    the source or raises `runnel.errors.UsageError`. A subclass defines `chunks`, and `close` if it holds a
    resource.
    """

    steps: int | None = None  # time steps in total, if known in advance
    rate: float | None = None  # Hz, if the source knows it
    live: bool = False  # the input happens now: it sets the pace, and ends when `runnel` is interrupted
    stamp: float | None = None  # seconds: the time of the last time step returned, if the input has times
    stamped: str | None = None  # the input's name for that time, if a table of outputs should have it too
    stamps: Array | None = None  # float64 (T,): the times of the last chunk, in the input's own unit
    share: float | None = None  # share of the input that was read, 0 to 1, if its size is known

    @abc.abstractmethod
    def chunks(self, block: int) -> Iterator[Chunk]:
        """Yield the input in chunks of 1 to `block` time steps.

        A live input is returned as it comes. Called once. Raises UsageError, with the position, for input
        that cannot be read.
        """

    def close(self) -> None:  # noqa: B027 - many sources hold no resource
        """Release resources; called once, after success and after failure."""


class Sink(abc.ABC):
    """The output of a stream, opened for one run.

    A factory is called as ``factory(signal, **options)``, where `signal` is the pipeline's output. It opens
    the sink or raises `runnel.errors.UsageError`. A subclass defines `write`, and `close` if it holds a
    resource.
    """

    keeps_time: bool = False  # whether `signal` may begin with a float64 tensor: the times of the rows

    @abc.abstractmethod
    def write(self, chunk: Chunk) -> None:
        """Write one chunk of the signal, of any length. A display shows it at once."""

    def close(self, whole: bool) -> None:  # noqa: B027 - many sinks hold no resource
        """End the run; called once. `whole`: all was written; else leave no incomplete output."""
