"""The contract of every stage: ``(state, chunk) -> (state, chunk)``.

A stage object is immutable and holds no data of a stream. All that it must remember for a stream is in the
`State` that it receives and returns: named arrays, never changed in place. Reset, snapshot, restore,
roll-back and batching therefore work for every stage.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import numpy as np

from .errors import ChunkError, LimitError, NonFiniteError, RunnelError, StageError
from .spec import DTYPES, Array, Signal

# Forks alive at once, besides those that one call makes and ends. Each fork is a long chunk that a server
# runs in slices, and holds two rows of states.
MAX_PASSAGES: Final = 64
MAX_STEPS: Final = 1024  # for one `Steps`: 50 ms of a small model, during which no other stream is stepped

Chunk = Mapping[str, Array]
"""Named arrays that share a leading time axis of any length, including zero. No batch axis."""

State = Any
"""The state of a stage for one stream: a dict of arrays for every stage except the model."""

Arrays = Mapping[str, Array]
"""A state as arrays by name."""

Results = Sequence[tuple[State, Chunk] | RunnelError]
"""Result of `step_many`: for each stream its next state and its output, or its error."""

_ZEROS = np.zeros(4096, np.float32)


class Steps(Mapping[str, Array]):
    """A chunk of `count` time steps without arrays, for a pipeline that feeds itself (`generates`)."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count

    def __getitem__(self, name: str) -> NoReturn:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def check(self) -> None:
        """Raise ChunkError for a count that is not in 1..MAX_STEPS."""
        count = self.count
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or not 1 <= count <= MAX_STEPS:
            raise ChunkError(
                f"steps without input: a whole number in 1..{MAX_STEPS}, not {count!r:.80}; "
                "for more, ask several times"
            )

    def __repr__(self) -> str:
        return f"Steps({self.count})"


class Stage(abc.ABC):
    """A pre-processor, a model or a post-processor.

    A subclass sets `name`, `inputs`, `outputs` and `latency` in ``__init__`` and defines `initial` and
    `step`. It defines `flush` if it holds output back, and `step_many` if it is faster than a loop.
    """

    name: str
    inputs: Signal
    outputs: Signal
    latency: int = 0  # in its own input time steps: at stream time t, outputs describe t - latency
    # Output time steps per input time steps: (up, down). None if outputs come at irregular times, as events
    # do: their position in the input is then not known. `outputs.rate` is then None too, unless the outputs
    # are regular though the inputs are not, as after a clock.
    ratio: tuple[int, int] | None = (1, 1)
    generates: bool = False  # whether `step` also accepts `Steps`: its input is its own output
    storage_bytes: int = 0  # bytes of one stream's state that the stage stores itself, outside `State`

    @abc.abstractmethod
    def initial(self) -> Arrays:
        """Return the state of a new stream."""

    @abc.abstractmethod
    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        """Return the next state and the output of this chunk.

        `chunk` has the names and dtypes of `inputs`, shapes (T, ...) with T >= 0. Neither `state` nor `chunk`
        may be changed. May raise any exception: the engine wraps it, and the stream keeps the old state.
        """

    def flush(self, state: State) -> tuple[State, Chunk]:
        """Return what the stage still holds at the end of the stream. Default: nothing."""
        return state, self.outputs.empty()

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        """Run `step` for several streams; errors replace results.

        To be faster than this loop, derive from `RowStage` or `StackedStage` (batch.py).
        """
        results: list[tuple[State, Chunk] | RunnelError] = []
        for state, chunk in zip(states, chunks, strict=True):
            try:
                results.append(self.step(state, chunk))
            except Exception as error:
                results.append(as_error(self.name, error))
        return results

    # Storage of the state. Only the model, which stores states in slots, overrides these methods.

    def open(self) -> State:
        """Allocate the state of a new stream, with the initial values."""
        return self.initial()

    def load(self, state: State, arrays: Arrays) -> State:
        """Return `state` with the values of `arrays`, for restore and reset. `state` itself stays valid.

        The names, dtypes and ranks are those of `initial`. Check here all else that `step` relies on (a
        length, the range of an index): a client that restores a stream may have written its state. May raise
        any exception: the engine wraps it, and nothing is restored.
        """
        return dict(arrays)

    def dump(self, state: State) -> Arrays:
        """Return the state's arrays. They may be views and must not be written to."""
        arrays: Arrays = state
        return arrays

    def close(self, state: State) -> None:  # noqa: B027 - most stages store no state themselves
        """Free the state's storage, because the stream is closed."""

    def reclaim(self, states: Sequence[State]) -> None:  # noqa: B027 - most stages store no state themselves
        """Free all storage except that of `states`, after an interrupted call.

        `states` are those of the open streams. Forks are not included: their makers free them.
        """

    # Several steps before a commit: the ticks of a loop, the slices of a long chunk. Every step stays pure,
    # so a step whose result was discarded may be repeated.

    def fork(self, state: State) -> State:
        """Return a copy of `state` with its own storage.

        The copy is stepped while the stream keeps `state`. Each fork ends in one `land` or one `drop`. Raises
        LimitError if no storage is left; `state` is then unchanged. Default: `state` itself, because a dict
        of arrays needs no storage here.
        """
        return state

    def land(self, state: State, forked: State) -> State:
        """Return the state that a fork of `state` has reached, in the storage of `state`.

        The fork's storage is freed. `state` itself stays valid: the caller commits by using the result, as
        after `step`.
        """
        return forked

    def drop(self, forked: State) -> None:  # noqa: B027 - most stages store no state themselves
        """Free a fork's storage and discard its state."""


def as_error(name: str, error: Exception) -> RunnelError:
    """Return the error; wrap it in a StageError unless it is a RunnelError."""
    if isinstance(error, RunnelError):
        return error
    if isinstance(error, MemoryError):
        short = LimitError(
            f"{name}: out of memory; the stream is as it was before: send smaller chunks, or later"
        )
        short.__cause__ = error
        return short
    try:
        text = str(error)
    except Exception:  # an error whose own text fails
        text = "it cannot say why"
    wrapped = StageError(f"stage {name!r} failed: {type(error).__name__}: {text}")
    wrapped.__cause__ = error
    return wrapped


def require_finite(name: str, array: Array, stage: str) -> None:
    """Raise NonFiniteError if a float array holds a NaN or an infinity.

    A stage that stores samples must call this first: a NaN in its state would stay there.
    """
    if array.dtype.kind != "f":
        return
    # 0 * x is 0 for every finite x, and NaN otherwise: numpy's fastest exact check.
    if array.size <= _ZEROS.size and np.vdot(array, _ZEROS[: array.size]) == 0:
        return
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise NonFiniteError(
            f"{stage}: {name!r} has {array[where]} at time step {where[0]}"
            + (f", element {where[1:]}" if len(where) > 1 else "")
            + "; the chunk was not applied"
        )


def misdeclared(stage: Stage) -> str:
    """Return what is wrong with a stage's attributes; "" if nothing is."""
    for part, kind in (("name", str), ("inputs", Signal), ("outputs", Signal), ("latency", int)):
        value = getattr(stage, part, None)
        if not isinstance(value, kind):
            return f"its {part} must be a {kind.__name__}, not {value!r}"
    for part in ("inputs", "outputs"):
        signal: Signal = getattr(stage, part)
        if not signal.tensors or len(set(signal.names)) < len(signal.names):
            return f"its {part} must hold one array or more, each of another name, not {signal}"
        for tensor in signal.tensors:
            if tensor.dtype not in DTYPES:
                return f"its {part} hold {tensor}: a dtype is one of {', '.join(DTYPES)}"
    given: Any = (1, 1) if stage.ratio is None else stage.ratio
    ratio = tuple(given) if isinstance(given, list | tuple) else ()
    if stage.latency < 0 or len(ratio) != 2 or not all(isinstance(n, int) and n > 0 for n in ratio):
        return (
            f"latency must be at least 0, not {stage.latency}; ratio (up, down), both at least 1, or None, "
            f"not {stage.ratio!r}"
        )
    return ""
