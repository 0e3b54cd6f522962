"""Decide whether a request may change its stream, by its epoch, its seq and the stream's phase.

Rules of this file: pure, and nothing is changed here. The rules themselves are the tables of `transitions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...errors import ConflictError, FencedError, StreamError, UnknownStreamError
from ...wire import messages
from .sequences import Named
from .transitions import BEGINS, LIKELY, SAID, TRANSITIONS, VERDICTS, Event, Phase, Verdict

Body = tuple[list[messages.TensorInfo], Sequence[bytes]]  # the tensors of a reply
NOTHING: Final[Body] = ([], ())


def admit(named: Named, request: messages.Request, event: Event, digest: int) -> Body | None:
    """Return None if the request must be done, or the cached reply if it was done before.

    `digest` covers the request's event and payload. Raises the error that the tables give, FencedError for an
    epoch that is not the stream's, ConflictError if another request began that epoch.
    """
    stated = request.epoch
    seq = request.seq
    stream = named.stream
    if (
        event is Event.FEED
        and stream is not None
        and stated == named.epoch
        and seq == named.applied + 1
        and not stream.ended
    ):
        return None  # fast path: the next feed of a live stream
    phase = named.phase
    if event in BEGINS:
        if not stated or stated != named.epoch:  # not the current epoch: the table alone decides
            _look_up(named, phase, event)
            return None
        opens = event is Event.OPEN or event is Event.RESTORE
        if phase is Phase.ABSENT and opens:
            raise _unknown(named)
        if phase is not Phase.ABSENT and named.begun != digest:
            raise ConflictError(f"stream {named.name!r}: epoch {stated} was begun by another request")
        if opens:
            return NOTHING
        seq = 1
    elif event is Event.RESUME:
        _look_up(named, phase, event)
        chosen = request.new_epoch
        if chosen == named.epoch if chosen else stated and stated == named.resumed_from:
            return NOTHING
        if stated and stated != named.epoch:
            raise FencedError(f"stream {named.name!r} {LIKELY[FencedError]}")
        return None
    elif stated and stated != named.epoch:
        if phase is Phase.ABSENT:
            raise _unknown(named)
        raise FencedError(f"stream {named.name!r} {LIKELY[FencedError]}")
    if seq:
        verdict, kept = named.judge(seq, digest)
        if verdict is Verdict.REPEAT and kept is not None:
            return kept.infos, kept.buffers
        if phase is Phase.ABSENT:
            raise _unknown(named)
        outcome = VERDICTS[verdict]
        if not isinstance(outcome, str):
            raise outcome(f"stream {named.name!r}: {SAID[verdict].format(seq=seq, n=named.applied)}")
    _look_up(named, phase, event)
    return None


def _look_up(named: Named, phase: Phase, event: Event) -> None:
    after = TRANSITIONS[phase][event]
    if isinstance(after, Phase):
        return
    if after is UnknownStreamError:
        raise _unknown(named)
    raise after(f"stream {named.name!r} {LIKELY[after]}")


def _unknown(named: Named) -> StreamError:
    return UnknownStreamError(f"stream {named.name!r} {named.gone or LIKELY[UnknownStreamError]}")
