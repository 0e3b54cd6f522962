"""One live sequence with its own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from . import snapshot as snapshots
from .errors import RunnelError, StreamClosedError, StreamEndedError, StreamError
from .insight.health import Condition, Health, Watch
from .insight.statistics import StateHealth
from .notices import Notices
from .pipeline.calls import Calls, exclusive
from .pipeline.pipeline import Pipeline, States
from .spec import Array
from .stage import Chunk, Steps

Out = Any  # dict[str, Array]; one Array if the chunk was one array and the pipeline has one output


Savepoint = tuple[States, int, bool, int]
"""A stream's states, `seq`, whether it ended, and the `seq` of its next health check."""


class Stream:
    """A stream of an engine; made by `Engine.open` and `Engine.restore`.

    A stream is a tuple of its stages' states and a sequence number, replaced as a whole only after every
    stage has succeeded. After any error, `state` and `seq` are unchanged. An interrupt (Ctrl-C) leaves the
    stream as before the chunk or as after it. Not thread-safe: an engine and its streams run one call at a
    time, and raise StreamError for another.
    """

    __slots__ = (
        "__weakref__", "_calls", "_closed", "_due", "_ended", "_forget", "_health", "_notices", "_pipeline",
        "_states", "_watch", "id", "seq",
    )  # fmt: skip

    def __init__(
        self,
        pipeline: Pipeline,
        id: str,
        opened: States,
        calls: Calls,
        forget: Callable[[Stream], None],
        notices: Notices,
        health: Health,
        seq: int = 0,
        ended: bool = False,
    ) -> None:
        self.id = id
        self.seq = seq  # chunks applied since the stream was opened or reset
        self._pipeline = pipeline
        self._calls = calls
        self._notices = notices
        self._forget = forget  # called by `close`
        self._states = opened
        self._health = health
        # The `seq` whose chunk is followed by a health check; a past value: no check.
        self._due = health.first(id) + seq
        self._watch: Watch | None = None  # what later checks must still observe
        self._ended = ended
        self._closed = False

    def feed(self, chunk: Array | Chunk) -> Out:
        """Apply one chunk and return its output.

        `chunk`: a dict of arrays with the names and dtypes of `engine.pipeline.inputs`, each (T, ...) with
        the same T >= 1; or one array if the pipeline has one input. Returns a dict of arrays as in
        `engine.pipeline.outputs`; or one array if `chunk` is one array and the pipeline has one output. The
        number of output time steps may differ from the input's, and may be zero.

        Raises ChunkError (a wrong name, dtype, shape), EmptyChunkError, NonFiniteError, StageError,
        StreamClosedError, StreamEndedError.
        """
        calls = self._calls
        if calls.busy:
            calls.refuse()
        due = self.seq == self._due
        calls.busy = True  # as `exclusive` does, but inline
        try:
            if self._ended or self._closed:
                self._check_live()
            pipeline = self._pipeline
            if due:
                self._health.start_recording()
            # Fast path without a call: one valid time step of the only input, as most sensors send.
            if (
                chunk.__class__ is np.ndarray
                and chunk.dtype is pipeline.tick_dtype
                and chunk.shape == pipeline.tick_shape
            ):
                after, out = pipeline.step(self._states, {pipeline.tick_name: chunk})
            else:
                after, out = pipeline.step(self._states, pipeline.accept(chunk))
            self._states, self.seq = after, self.seq + 1
            if due:
                self._due += self._health.every
                self._health.check(self, out, 0)
            return pipeline.answer(chunk, out)
        except RunnelError as error:
            self._failed(error)
            raise
        finally:
            calls.busy = False
            if due:
                self._health.stop_recording()
            if self._notices.waiting:
                self._notices.deliver()

    def generate(self, steps: int) -> Out:
        """Generate `steps` time steps without input, 1 to `runnel.stage.MAX_STEPS`; return the outputs.

        For a pipeline whose file feeds all its inputs back ([feedback]): each step gets the output of the
        step before, and the first step gets the last output or the initial value. Returns a dict of arrays as
        in `engine.pipeline.outputs`, or one array if there is one output; `seq` counts the call as one chunk.
        Raises ChunkError for another pipeline or a wrong number, and as `feed` does. After an error the
        stream is unchanged, at whichever step it occurred.
        """
        return self._pipeline.answer(None, self.feed(Steps(steps)))

    @exclusive
    def flush(self) -> Out:
        """End the stream and return what the stages still hold.

        Afterwards `feed` and `flush` raise StreamEndedError until `reset`. Raises as `feed` does; the stream
        has then not ended.
        """
        self._check_live()
        pipeline = self._pipeline
        try:
            after, out = pipeline.flush(self._states)
        except RunnelError as error:
            self._failed(error)
            raise
        self._states, self._ended = after, True
        if self._health.every:  # a file fed in large chunks may end without any check
            self._health.check(self)
        return pipeline.answer(None, out)

    @exclusive
    def reset(self) -> None:
        """Return to the initial state, as a new stream with `seq` 0."""
        self._check_open()
        self._go_on(self._pipeline.reset(self._states), 0, False)
        self._health.forget(self)
        self._notices.queue("reset", self.id, 0)

    @exclusive
    def rewind(self, blob: bytes) -> None:
        """Return to a snapshot of this pipeline; the stream's id stays.

        Raises SnapshotError for damaged bytes or the snapshot of another pipeline; the stream is then
        unchanged.
        """
        self._check_open()
        snapshot = snapshots.decode(blob, self._pipeline.admit, most_header=self._pipeline.most_header)
        self._go_on(self._pipeline.load(self._states, snapshot), snapshot.seq, snapshot.ended)
        if self._watch is not None:
            self._health.check(self)

    def close(self, reason: str = "closed") -> None:
        """Close the stream and free its state. Closing twice is allowed; other calls then raise
        StreamClosedError.

        `reason`: the reason in the notice.
        """
        if not self._closed:
            self._close(reason)

    @exclusive
    def _close(self, reason: str) -> None:
        self._closed = True
        try:
            self._forget(self)
        finally:
            self._notices.queue("closed", self.id, self.seq, reason)

    @exclusive
    def snapshot(self) -> bytes:
        """Return the stream's state as bytes for `Engine.restore`: no pickle, a checksum at the end."""
        self._check_open()
        pipeline = self._pipeline
        return snapshots.encode(
            snapshots.Snapshot(
                pipeline.fingerprint, self.seq, self._ended, pipeline.dump(self._states), pipeline.parts
            )
        )

    def savepoint(self) -> Savepoint:
        """Return the stream's position for `rollback`: valid until the next step but one."""
        return self._states, self.seq, self._ended, self._due

    def rollback(self, savepoint: Savepoint) -> None:
        """Undo the step since the mark, because its output cannot be delivered. Ignored if closed."""
        if not self._closed:
            self._states, self.seq, self._ended, self._due = savepoint

    @property
    def state_bytes(self) -> int:
        """Bytes of the stream's whole state: about the size of a snapshot."""
        return sum(a.nbytes for _, arrays in self._pipeline.dump(self._states) for a in arrays.values())

    @property
    @exclusive
    def state(self) -> Mapping[str, Array]:
        """Every state array by name, ``stage.name``, copied and read-only."""
        self._check_open()
        laid: dict[str, Array] = {}
        for name, arrays in self._pipeline.dump(self._states):
            for key, array in arrays.items():
                copy = np.array(array)
                copy.setflags(write=False)
                laid[f"{name}.{key}"] = copy
        return MappingProxyType(laid)

    @property
    @exclusive
    def health(self) -> Mapping[str, StateHealth]:
        """Statistics of the current float states of its models, by ``stage.name``.

        `rms`, `peak` and `distance` (from the initial state) are in the state's own unit; `saturated` is a
        share, 0 to 1. They are computed on each access, regardless of [health].
        """
        self._check_open()
        return MappingProxyType(self._health.of(self._states))

    @property
    def condition(self) -> Condition:
        """The result of the last health check: "", "died" or "blown_up"; see `runnel.insight.health`."""
        return self._watch.condition if self._watch is not None else ""

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed."""
        return self._ended

    def _failed(self, error: RunnelError) -> None:
        if self._closed or self._ended:  # no further call of it can fail
            return
        self._notices.queue("failed", self.id, self.seq, str(error))
        self._health.refused(self, error)

    def _go_on(self, states: States, seq: int, ended: bool) -> None:
        """Commit a state that is not a chunk's result, atomically even if interrupted."""
        due = self._due + seq - self.seq  # keep the number of chunks until the next check
        self._states, self.seq, self._ended, self._due = states, seq, ended, due

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError(f"stream {self.id!r} is closed: open it anew")

    def _check_live(self) -> None:
        self._check_open()
        if self._ended:
            raise StreamEndedError(f"stream {self.id!r} was flushed: reset it, or open another")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise StreamError(
            f"stream {self.id!r} cannot be copied or pickled: two would share one state. Take a snapshot(), "
            "and restore it with Engine.restore under another id"
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        phase = "closed" if self._closed else "ended" if self._ended else f"seq {self.seq}"
        return f"<Stream {self.id!r}, {phase}>"
