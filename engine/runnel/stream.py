"""One live sequence with its own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from . import snapshot as states
from .errors import RunnelError, StreamClosedError, StreamEndedError, StreamError
from .insight.health import Condition, Health, Watch
from .insight.statistics import StateHealth
from .notices import Notices
from .pipeline.calls import Calls, alone
from .pipeline.pipeline import Pipeline, States
from .spec import Array
from .stage import Chunk, Steps

Out = Any  # dict[str, Array], or one Array where the chunk was one array and the pipeline has one output


Mark = tuple[States, int, bool, int]
"""Where a stream stands: its states, `seq`, whether it ended, and the `seq` of its next look."""


class Stream:
    """A stream of an engine; made by `Engine.open` and `Engine.restore`.

    It is a tuple of its stages' states and a sequence number, replaced as a whole only after every
    stage has succeeded: whatever a method raises, `state` and `seq` are what they were. An interrupt (Ctrl-C)
    finds a stream before a chunk, or after it.
    Not thread-safe: an engine and its streams serve one call at a time, and refuse another with StreamError.
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
        self._forget = forget  # what the engine does when the stream is closed
        self._states = opened
        self._health = health
        self._due = (
            health.first(id) + seq
        )  # the `seq` whose chunk is followed by a look; one that is past: none is
        self._watch: Watch | None = None  # what a look before left to be seen
        self._ended = ended
        self._closed = False

    def feed(self, chunk: Array | Chunk) -> Out:
        """Apply one chunk and return what it makes.

        `chunk`: a dict of arrays named and typed as `engine.pipeline.inputs`, each (T, ...) with the
        same T >= 1; or one array where the pipeline has one input. Returns a dict of arrays as
        `engine.pipeline.outputs`, or one array for one array in where there is one output. The
        outputs may have another number of time steps than the input, zero included.

        Raises ChunkError (a wrong name, dtype, shape), EmptyChunkError, NonFiniteError, StageError,
        StreamClosedError, StreamEndedError.
        """
        calls = self._calls
        if calls.busy:
            calls.refuse()
        due = self.seq == self._due
        calls.busy = True  # as `alone` does, in the shortest way
        try:
            if self._ended or self._closed:
                self._check_live()
            pipeline = self._pipeline
            if due:
                self._health.listen()
            # One well-formed tick of the only input, seen without a call: what a sensor sends all day.
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
                self._health.look(self, out, 0)
            return pipeline.answer(chunk, out)
        except RunnelError as error:
            self._failed(error)
            raise
        finally:
            calls.busy = False
            if due:
                self._health.rest()
            if self._notices.waiting:
                self._notices.deliver()

    def generate(self, steps: int) -> Out:
        """So many time steps without input, 1 to `runnel.stage.MAX_STEPS`: what they make, in `steps` rows.

        For a pipeline whose file feeds all its inputs back ([feedback]); the first step is given what the
        last one made, or the initial value. Returns a dict of arrays as `engine.pipeline.outputs`, or one
        array where there is one output; `seq` counts it as one chunk. Raises ChunkError for another pipeline
        or number, and as `feed` does; the stream is then as it was, however far it had come.
        """
        return self._pipeline.answer(None, self.feed(Steps(steps)))

    @alone
    def flush(self) -> Out:
        """End the stream: return what is still inside (an array where there is one output).

        After it `feed` and `flush` raise StreamEndedError until `reset`. Raises as `feed` does; the
        stream is then not ended.
        """
        self._check_live()
        pipeline = self._pipeline
        try:
            after, out = pipeline.flush(self._states)
        except RunnelError as error:
            self._failed(error)
            raise
        self._states, self._ended = after, True
        if self._health.every:  # a file fed in large chunks may have come to its end without a look
            self._health.look(self)
        return pipeline.answer(None, out)

    @alone
    def reset(self) -> None:
        """Back to the initial state: as a new stream, with `seq` 0."""
        self._check_open()
        self._go_on(self._pipeline.reset(self._states), 0, False)
        self._health.forget(self)
        self._notices.queue("reset", self.id, 0)

    @alone
    def rewind(self, blob: bytes) -> None:
        """Back to a snapshot of this pipeline, its own or another stream's; the stream stays the same one.

        Raises SnapshotError for damaged bytes or another pipeline's; the stream is then as it was.
        """
        self._check_open()
        snapshot = states.decode(blob, self._pipeline.admit, most_header=self._pipeline.most_header)
        self._go_on(self._pipeline.load(self._states, snapshot), snapshot.seq, snapshot.ended)
        if self._watch is not None:
            self._health.look(self)

    def close(self, reason: str = "closed") -> None:
        """Give the stream's place back. Closing twice is allowed; all else then raises StreamClosedError.

        `reason`: what the notice of it says.
        """
        if not self._closed:
            self._close(reason)

    @alone
    def _close(self, reason: str) -> None:
        self._closed = True
        try:
            self._forget(self)
        finally:
            self._notices.queue("closed", self.id, self.seq, reason)

    @alone
    def snapshot(self) -> bytes:
        """The stream at rest, as bytes for `Engine.restore`: no pickle, a checksum at the end."""
        self._check_open()
        pipeline = self._pipeline
        return states.encode(
            states.Snapshot(
                pipeline.fingerprint, self.seq, self._ended, pipeline.dump(self._states), pipeline.parts
            )
        )

    def mark(self) -> Mark:
        """Where the stream stands, for `back`: valid until its next step but one."""
        return self._states, self.seq, self._ended, self._due

    def back(self, mark: Mark) -> None:
        """Undo the step since the mark, since its output cannot be delivered. Of a closed stream: nothing."""
        if not self._closed:
            self._states, self.seq, self._ended, self._due = mark

    @property
    def state_bytes(self) -> int:
        """Bytes of the stream's whole state: about what a snapshot of it takes."""
        return sum(a.nbytes for _, arrays in self._pipeline.dump(self._states) for a in arrays.values())

    @property
    @alone
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
    @alone
    def health(self) -> Mapping[str, StateHealth]:
        """The figures of its models' states as they are now, by ``stage.name``; of whole numbers none.

        `rms`, `peak` and `distance` (from the initial state) are in the state's own unit; `saturated` is a
        share, 0 to 1. They are computed when asked for, whatever [health] says.
        """
        self._check_open()
        return MappingProxyType(self._health.of(self._states))

    @property
    def condition(self) -> Condition:
        """What the last look found: "", "died" or "blown_up"; see `runnel.insight.health`."""
        return self._watch.condition if self._watch is not None else ""

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def ended(self) -> bool:
        """Whether the stream was flushed."""
        return self._ended

    def _failed(self, error: RunnelError) -> None:
        if self._closed or self._ended:  # nothing of it can fail any more
            return
        self._notices.queue("failed", self.id, self.seq, str(error))
        self._health.refused(self, error)

    def _go_on(self, states: States, seq: int, ended: bool) -> None:
        """Commit other states than a chunk's: all of it, or nothing where an interrupt comes first."""
        due = self._due + seq - self.seq  # the chunks until the next look are as many as before
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
