"""A chunk on its way through a pipeline, a slice at a time.

Theory: by the law of chunking a chunk may be cut anywhere. Its slices step a *fork* of the stream's state, so
that the stream itself is as it was until the last slice has succeeded: then the fork *lands*, and the chunk
counts as one. Whatever fails before that drops the fork, and nothing has happened. Between two slices other
streams take their turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import NonFiniteError, RunnelError, StreamError
from ..notices import Notices
from ..spec import Array
from ..stage import Chunk, Steps
from .calls import Calls, alone

if TYPE_CHECKING:
    from ..stream import Stream
    from .pipeline import States


class Passage:
    """One chunk of one stream, of which the first `at` of `steps` time steps are done.

    Made by `Engine.begin`, advanced by `Engine.advance`, ended by `land` or `drop`. Do not step the stream
    meanwhile: the passage of a stream that has moved on cannot land.
    """

    __slots__ = ("_before", "_over", "at", "chunk", "states", "steps", "stream")

    def __init__(self, stream: Stream, chunk: Array | Chunk, over: Callable[[Passage], None]) -> None:
        """`over` is called once it has landed or was dropped.

        Raises as `Stream.feed` for a chunk that is not what the pipeline takes; LimitError.
        """
        stream._check_live()
        pipeline = stream._pipeline
        self.stream = stream
        self.chunk = chunk = pipeline.accept(chunk)
        self.steps = chunk.count if isinstance(chunk, Steps) else len(next(iter(chunk.values())))
        self.at = 0
        self._over = over
        self._before = stream._states
        self.states = pipeline.fork(self._before)

    @property
    def left(self) -> int:
        """Time steps that are still to be done."""
        return self.steps - self.at

    @alone
    def flush(self) -> Chunk:
        """The end of the stream, behind all slices: what is still inside. Raises as `Stream.flush`."""
        self.states, made = self.stream._pipeline.flush(self.states)
        return made

    @alone
    def land(self, ended: bool = False) -> None:
        """The chunk counts: the stream goes on from here. `ended`: it was flushed as well.

        Raises StreamError where the stream was stepped, reset or closed meanwhile; it then stays as it is.
        """
        stream = self.stream
        if stream._closed or stream._states is not self._before:
            raise StreamError(f"stream {stream.id!r} was changed while a chunk of it was on its way")
        forked, self.states = self.states, ()  # given back whatever comes
        after = stream._pipeline.land(self._before, forked)
        stream._states, stream.seq, stream._ended = after, stream.seq + 1, ended
        self._over(self)
        if stream.seq - 1 == stream._due:
            stream._due += stream._health.every
            stream._health.look(stream)

    @alone
    def drop(self, error: RunnelError | None = None) -> None:
        """The chunk does not count: the stream is as it was. Allowed at any time, once it landed as well.

        `error`: why, for those who are notified of it.
        """
        states, self.states = self.states, ()
        self._over(self)
        if error is not None:
            self.stream._failed(error)
        if states:
            self.stream._pipeline.drop(states)

    @property
    def _calls(self) -> Calls:
        return self.stream._calls

    @property
    def _notices(self) -> Notices:
        return self.stream._notices

    def _slice(self, steps: int) -> Chunk:
        if isinstance(self.chunk, Steps):
            return Steps(steps)
        end = self.at + steps
        return {name: array[self.at : end] for name, array in self.chunk.items()}


def advance(parts: Sequence[tuple[Passage, int]]) -> list[Chunk | RunnelError]:
    """The next time steps of each passage, stepped together: what each makes, or its error.

    The passages are of one pipeline. One that failed is to be dropped.
    """
    if not parts:
        return []
    pipeline = parts[0][0].stream._pipeline
    chunks = [passage._slice(steps) for passage, steps in parts]
    done: Sequence[tuple[States, Chunk] | RunnelError]
    if len(parts) == 1:
        passage = parts[0][0]
        try:
            done = [pipeline.step(passage.states, chunks[0])]
        except RunnelError as error:
            done = [error]
    else:
        done = pipeline.step_many([passage.states for passage, _ in parts], chunks)
    made: list[Chunk | RunnelError] = []
    for (passage, steps), result in zip(parts, done, strict=True):
        if isinstance(result, RunnelError):
            made.append(_located(result, passage, steps))
            continue
        passage.states, out = result
        passage.at += steps
        made.append(out)
    return made


def _located(error: RunnelError, passage: Passage, steps: int) -> RunnelError:
    """The error, with the slice of the chunk in which it came: a slice knows of no other."""
    if steps == passage.steps:
        return error
    end = passage.at + steps - 1
    placed = type(error)(f"in time steps {passage.at} to {end} of {passage.steps}: {error.message}")
    placed.__cause__ = error
    if isinstance(error, NonFiniteError) and isinstance(placed, NonFiniteError):
        placed.state = error.state
    return placed
