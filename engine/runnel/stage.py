"""The contract of everything on a stream's path: ``(state, chunk) -> (state, chunk)``.

A stage object is immutable once made and knows no stream. All that it must remember of one is in the
`State` that it is given and gives back: named arrays, never changed in place. That is what makes
reset, snapshot, restore, roll-back and batching work for every stage alike.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import numpy as np

from .errors import ChunkError, LimitError, NonFiniteError, RunnelError, StageError
from .spec import DTYPES, Array, Signal

# Forks alive at once, beside those that one call makes and ends. Each is a long chunk that a server runs in
# slices, and holds two rows of states.
MAX_PASSAGES: Final = 64
MAX_STEPS: Final = 1024  # of one `Steps`: 50 ms of a small model, in which no other stream is stepped

Chunk = Mapping[str, Array]
"""Named arrays that share a leading time axis, of any length, zero included. No batch axis."""

State = Any
"""What a stage carries for one stream. For all stages but the model: a dict of arrays."""

Arrays = Mapping[str, Array]
"""A state laid open: names to arrays."""

Results = Sequence[tuple[State, Chunk] | RunnelError]
"""What `step_many` gives: for each stream its next state and what its chunk makes, or its error."""

_ZEROS = np.zeros(4096, np.float32)


class Steps(Mapping[str, Array]):
    """A chunk of so many time steps with no arrays in it: for a pipeline that feeds itself (`generates`)."""

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
    `step`; `flush` where it holds something back, `step_many` where it can do better than a loop.
    """

    name: str
    inputs: Signal
    outputs: Signal
    latency: int = 0  # in its own input time steps: at stream time t, outputs describe t - latency
    # Output time steps for so many input time steps: (up, down). None where rows come when they come, as
    # events do: then nothing is known of which input a row lies at. `outputs.rate` is None too, unless the
    # rows out are regular though those in are not, as behind a clock.
    ratio: tuple[int, int] | None = (1, 1)
    generates: bool = False  # whether `step` takes `Steps` too: all that it needs comes from itself
    place_bytes: int = 0  # of one stream's state that it keeps in a place of its own, and not in `State`

    @abc.abstractmethod
    def initial(self) -> Arrays:
        """A new stream's state."""

    @abc.abstractmethod
    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        """The next state, and what this chunk makes.

        `chunk` has the names and dtypes of `inputs`, shapes (T, ...) with T >= 0. Neither `state` nor
        `chunk` may be changed. Raises: anything; the engine wraps it and the old state stays.
        """

    def flush(self, state: State) -> tuple[State, Chunk]:
        """The end of the stream: what is still inside. Default: nothing is."""
        return state, self.outputs.empty()

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        """`step` for several streams; an error stands in the place of the stream that it belongs to.

        A stage that can do better than this loop is best made a `RowStage` or a `StackedStage` (batch.py).
        """
        results: list[tuple[State, Chunk] | RunnelError] = []
        for state, chunk in zip(states, chunks, strict=True):
            try:
                results.append(self.step(state, chunk))
            except Exception as error:
                results.append(as_error(self.name, error))
        return results

    # Where the state lives. Only a stage that keeps it elsewhere (the model, in slots) overrides these.

    def open(self) -> State:
        """A place for a new stream's state, with the initial state in it."""
        return self.initial()

    def load(self, state: State, arrays: Arrays) -> State:
        """`state`'s place with these arrays in it: restore and reset. `state` itself stays valid.

        The names, dtypes and ranks are those of `initial`. What else must hold for `step` to be safe (a
        length, the range of a position) is checked here: whoever restores a stream may have written its
        state. Raises: anything; the engine wraps it and nothing was restored.
        """
        return dict(arrays)

    def dump(self, state: State) -> Arrays:
        """The state laid open; the arrays may be views and are not to be written to."""
        arrays: Arrays = state
        return arrays

    def close(self, state: State) -> None:  # noqa: B027 - most stages hold no place
        """The stream is gone: give its place back."""

    def reclaim(self, states: Sequence[State]) -> None:  # noqa: B027 - most stages hold no place
        """Give back all places but those of `states`, the open streams': a call was interrupted.

        Forks are not counted here: they are given back by those who made them.
        """

    # Several steps before the stream keeps any (the ticks of a loop, the slices of a long chunk). Every step
    # stays pure: a step whose result is thrown away may be done again.

    def fork(self, state: State) -> State:
        """A copy of `state` in a place of its own, to be stepped while the stream still has `state`.

        Each fork ends in one `land` or one `drop`. Raises LimitError if no place is left; `state` is then
        as it was. Default: `state` itself, since a dict of arrays needs no place.
        """
        return state

    def land(self, state: State, forked: State) -> State:
        """The state that a fork of `state` came to, in the place of `state`.

        The fork's place is given back. `state` itself stays valid: the caller commits by keeping the result,
        as after `step`.
        """
        return forked

    def drop(self, forked: State) -> None:  # noqa: B027 - most stages hold no place
        """Give a fork's place back without landing it."""


def as_error(name: str, error: Exception) -> RunnelError:
    """An error of the tree: itself, or a StageError that names the stage and the cause."""
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
    except Exception:  # somebody's error whose own text fails
        text = "it cannot say why"
    wrapped = StageError(f"stage {name!r} failed: {type(error).__name__}: {text}")
    wrapped.__cause__ = error
    return wrapped


def require_finite(name: str, array: Array, stage: str) -> None:
    """Raise NonFiniteError if a float array holds a NaN or an infinity.

    A stage that keeps samples back must call this before it keeps them: a NaN in its state would stay.
    """
    if array.dtype.kind != "f":
        return
    # 0 * x is 0 for every finite x, and NaN otherwise: the fastest exact check that numpy has.
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
    """What is wrong with what a stage says of itself, as an author would be told; "" where nothing is."""
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
