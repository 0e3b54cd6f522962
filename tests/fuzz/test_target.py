"""The fuzzer's target without the fuzzer: its corpus, tapes cut and changed, and that it can fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.daemon.protocol.server import ServerProtocol
from runnel.wire.messages import bundled, decode_request, decode_requests

from . import target
from .corpus import messages, page_messages, tapes
from .target import Item, Tape, one_input

TAPES = tapes()
ITEMS = [item for tape in TAPES for item in Tape.read(tape)]
flags = st.fixed_dictionaries({name: st.booleans() for name in ("last", "run", "second", "wait", "sign")})


def test_the_corpus_has_every_op_and_the_page() -> None:
    assert len(page_messages()) >= 8
    single = [frames for frames in messages() if not bundled(frames)]
    together = [decode_requests(frames) for frames in messages() if bundled(frames)]
    assert max(map(len, together)) > 2
    ops = {decode_request(frames)[0].op for frames in single}
    assert ops - {request.op for requests in together for request, _ in requests} == {"restore"}
    assert ops == {
        "hello", "stats", "open", "feed", "flush", "reset", "close", "resume", "snapshot", "restore"
    }  # fmt: skip


@pytest.mark.parametrize("tape", TAPES, ids=range(len(TAPES)))
def test_the_corpus_passes(tape: bytes) -> None:
    one_input(tape)


def test_a_tape_is_read_as_it_was_written() -> None:
    items = [
        Item(b"a", last=False),
        Item(b"", second=True),
        Item(b"b" * 999, wait=True, sign=True, run=False),
    ]
    assert list(Tape.read(Tape.write(items))) == items


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    one_input(data)


@given(st.lists(st.tuples(st.sampled_from(ITEMS), flags), max_size=30))
def test_frames_of_the_corpus_in_any_order(chosen: list[tuple[Item, dict[str, bool]]]) -> None:
    one_input(Tape.write(item._replace(**changed) for item, changed in chosen))


@given(st.sampled_from(TAPES), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_changed_bytes_of_the_corpus(tape: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(tape)
    for at, value in changes:
        changed[at % len(changed)] = value
    one_input(bytes(changed))


@pytest.mark.parametrize("fault", ["lost", "twice", "touched", "untyped"])
def test_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ServerProtocol.run

    def faulty(self: ServerProtocol, now: float):  # type: ignore[no-untyped-def]
        replies = run(self, now)
        if fault == "lost":
            return replies[:-1]
        if fault == "twice":
            return replies + replies
        if fault == "touched" and replies:
            self._engine.streams["witness/mic"].feed(target.rows(1))
        if fault == "untyped" and replies:
            raise KeyError("mic")
        return replies

    monkeypatch.setattr(ServerProtocol, "run", faulty)
    with pytest.raises((AssertionError, KeyError)):
        one_input(TAPES[-1])
