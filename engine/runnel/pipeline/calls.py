"""An engine's calls: one at a time, with a clean-up after an interrupt.

An engine and its streams share buffers, so a call must not begin during another call, from another thread or
from a stage that calls its own engine. `busy` is set during a call. It is set and cleared by plain
assignments next to a ``try``: between these the interpreter neither handles a signal nor switches threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

from ..errors import StreamError
from ..notices import Notices


class Calls:
    """Whether a call of an engine is running, and the clean-up after an interrupted call."""

    __slots__ = ("_repair", "busy", "dirty", "opening")

    def __init__(self, repair: Callable[[], None]) -> None:
        """`repair`: frees the storage that no open stream uses."""
        self.busy = False
        # The stream that the call opens: no caller has it if the call is interrupted.
        self.opening: object = None
        self.dirty = False  # a call was interrupted, and `repair` has not completed since
        self._repair = repair

    def refuse(self) -> NoReturn:
        raise StreamError(
            "the engine is in the middle of another call, from another thread or from a stage: an engine and "
            "its streams serve one call at a time. Use an engine for each thread, or a lock around all calls"
        )

    def interrupted(self) -> None:
        """Clean up after a call that was interrupted, such as by Ctrl-C."""
        self.dirty = True
        self.repair()

    def repair(self) -> None:
        self._repair()
        self.dirty = False


class _Caller(Protocol):
    @property
    def _calls(self) -> Calls: ...
    @property
    def _notices(self) -> Notices: ...


_Self = TypeVar("_Self", bound=_Caller)
_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def exclusive(
    method: Callable[Concatenate[_Self, _Given], _Made],
) -> Callable[Concatenate[_Self, _Given], _Made]:
    """Run a method as one call of the engine; deliver its notices at the end."""

    @wraps(method)
    def call(self: _Self, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        calls = self._calls
        if calls.busy:
            calls.refuse()
        calls.busy, calls.opening = True, None
        try:
            if calls.dirty:
                calls.repair()
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
