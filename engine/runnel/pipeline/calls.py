"""An engine's calls: one at a time, and whole again after an interrupt.

An engine and its streams share buffers, so that a call must not begin while another one is inside: of another
thread, or of a stage that calls the engine which steps it. `busy` says so. It is set and cleared by plain
assignments beside a ``try``, between which the interpreter looks for no signal and switches no thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

from ..errors import StreamError
from ..notices import Notices


class Calls:
    """Whether a call is inside of an engine, and what to do after one that was interrupted."""

    __slots__ = ("_mend", "busy", "made", "torn")

    def __init__(self, mend: Callable[[], None]) -> None:
        """`mend`: gives back the places that no open stream has."""
        self.busy = False
        self.made: object = (
            None  # the stream that the call inside opens: nobody has it if that is interrupted
        )
        self.torn = False  # a call was interrupted, and `mend` has not run to its end since
        self._mend = mend

    def refuse(self) -> NoReturn:
        raise StreamError(
            "the engine is in the middle of another call, from another thread or from a stage: an engine and "
            "its streams serve one call at a time. Use an engine for each thread, or a lock around all calls"
        )

    def interrupted(self) -> None:
        """To be called where a call ends by something that is no Exception, as Ctrl-C is."""
        self.torn = True
        self.mend()

    def mend(self) -> None:
        self._mend()
        self.torn = False


class _Caller(Protocol):
    @property
    def _calls(self) -> Calls: ...
    @property
    def _notices(self) -> Notices: ...


_Self = TypeVar("_Self", bound=_Caller)
_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def alone(
    method: Callable[Concatenate[_Self, _Given], _Made],
) -> Callable[Concatenate[_Self, _Given], _Made]:
    """A method as a call of its own; notices of what happened in it are delivered at its end."""

    @wraps(method)
    def call(self: _Self, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        calls = self._calls
        if calls.busy:
            calls.refuse()
        calls.busy, calls.made = True, None
        try:
            if calls.torn:
                calls.mend()
            return method(self, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            calls.interrupted()
            raise
        finally:
            calls.busy = False
            if self._notices.waiting:
                self._notices.deliver()

    return call
