"""A chunk that passes through a pipeline in slices.

By the law of chunking a chunk may be cut anywhere. The slices step a *fork* of the stream's state, so the
stream does not change until the last slice has succeeded. Then the fork *lands*, and the chunk counts as one.
After an error the fork is dropped, and nothing has changed. Between two slices other streams are stepped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import NonFiniteError, RunnelError, StreamError
from ..notices import Notices
from ..spec import Array
from ..stage import Chunk, Steps
from .calls import Calls, exclusive

if TYPE_CHECKING:
    from ..stream import Stream
    from .pipeline import States


class Passage:
    """One chunk of one stream; `at` of its `steps` time steps are done.

    Made by `Engine.begin`, advanced by `Engine.advance`, ended by `land` or `drop`. Do not step the stream
    meanwhile: a passage cannot land if its stream has changed.
    """

    __slots__ = ("_before", "_over", "at", "chunk", "states", "steps", "stream")

    def __init__(self, stream: Stream, chunk: Array | Chunk, over: Callable[[Passage], None]) -> None:
        """`over` is called when the passage has landed or was dropped.

        Raises as `Stream.feed` does for an invalid chunk; LimitError.
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
        """Time steps that remain."""
        return self.steps - self.at

    @exclusive
    def flush(self) -> Chunk:
        """Flush the stages after the last slice; return what they still hold. Raises as `Stream.flush`."""
        self.states, made = self.stream._pipeline.flush(self.states)
        return made

    @exclusive
    def land(self, ended: bool = False) -> None:
        """Commit the chunk: the stream continues from the fork. `ended`: it was flushed as well.

        Raises StreamError, and leaves the stream as it is, if it was stepped, reset or closed meanwhile.
        """
        stream = self.stream
        if stream._closed or stream._states is not self._before:
            raise StreamError(f"stream {stream.id!r} was changed while a chunk of it was on its way")
        forked, self.states = self.states, ()  # freed in any case
        after = stream._pipeline.land(self._before, forked)
        stream._states, stream.seq, stream._ended = after, stream.seq + 1, ended
        self._over(self)
        if stream.seq - 1 == stream._due:
            stream._due += stream._health.every
            stream._health.check(stream)

    @exclusive
    def drop(self, error: RunnelError | None = None) -> None:
        """Discard the chunk: the stream is unchanged. Allowed at any time, also after `land`.

        `error`: the reason, for the notice.
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
    """Step the next time steps of each passage together; return the outputs, or errors.

    All passages are of one pipeline. Drop a passage that failed.
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
    """Return the error with its time steps in the chunk."""
    if steps == passage.steps:
        return error
    end = passage.at + steps - 1
    placed = type(error)(f"in time steps {passage.at} to {end} of {passage.steps}: {error.message}")
    placed.__cause__ = error
    if isinstance(error, NonFiniteError) and isinstance(placed, NonFiniteError):
        placed.state = error.state
    return placed
