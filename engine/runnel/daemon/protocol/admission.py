"""Decide by epoch, seq and phase whether a request is done, repeated or refused.

Rules of this file: pure, and nothing is changed here. The rules themselves are the tables of `transitions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...errors import ConflictError, FencedError, StreamError, UnknownStreamError
from ...wire import messages
from .streamtable import StreamRecord
from .transitions import HINTS, OPENS, TRANSITIONS, VERDICT_TEXTS, VERDICTS, Event, Phase, Verdict

Body = tuple[list[messages.TensorInfo], Sequence[bytes]]  # the tensors of a reply
NOTHING: Final[Body] = ([], ())


def admit(record: StreamRecord, request: messages.Request, event: Event, digest: int) -> Body | None:
    """Return None if the request must be done, or the cached reply if it was done before.

    `digest` covers the request's event and payload. Raises the error that the tables give, FencedError for an
    epoch that is not the stream's, ConflictError if another request began that epoch.
    """
    stated = request.epoch
    seq = request.seq
    stream = record.stream
    if (
        event is Event.FEED
        and stream is not None
        and stated == record.epoch
        and seq == record.applied + 1
        and not stream.ended
    ):
        return None  # fast path: the next feed of a live stream
    phase = record.phase
    if event in OPENS:
        if not stated or stated != record.epoch:  # not the current epoch: the table alone decides
            _look_up(record, phase, event)
            return None
        opens = event is Event.OPEN or event is Event.RESTORE
        if phase is Phase.ABSENT and opens:
            raise _unknown(record)
        if phase is not Phase.ABSENT and record.begun != digest:
            raise ConflictError(f"stream {record.name!r}: epoch {stated} was begun by another request")
        if opens:
            return NOTHING
        seq = 1
    elif event is Event.RESUME:
        _look_up(record, phase, event)
        chosen = request.new_epoch
        if chosen == record.epoch if chosen else stated and stated == record.resumed_from:
            return NOTHING
        if stated and stated != record.epoch:
            raise FencedError(f"stream {record.name!r} {HINTS[FencedError]}")
        return None
    elif stated and stated != record.epoch:
        if phase is Phase.ABSENT:
            raise _unknown(record)
        raise FencedError(f"stream {record.name!r} {HINTS[FencedError]}")
    if seq:
        verdict, cached = record.judge(seq, digest)
        if verdict is Verdict.REPEAT and cached is not None:
            return cached.infos, cached.buffers
        if phase is Phase.ABSENT:
            raise _unknown(record)
        outcome = VERDICTS[verdict]
        if not isinstance(outcome, str):
            raise outcome(
                f"stream {record.name!r}: {VERDICT_TEXTS[verdict].format(seq=seq, n=record.applied)}"
            )
    _look_up(record, phase, event)
    return None


def _look_up(record: StreamRecord, phase: Phase, event: Event) -> None:
    after = TRANSITIONS[phase][event]
    if isinstance(after, Phase):
        return
    if after is UnknownStreamError:
        raise _unknown(record)
    raise after(f"stream {record.name!r} {HINTS[after]}")


def _unknown(record: StreamRecord) -> StreamError:
    return UnknownStreamError(f"stream {record.name!r} {record.gone or HINTS[UnknownStreamError]}")
