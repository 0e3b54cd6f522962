"""Logs: one line per event for any content, and a rate limit for each kind."""

from __future__ import annotations

import io
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.daemon import logs
from runnel.daemon.logs import BURST, MAX_KINDS, MAX_TRACE, MAX_VALUE, Budget, Log, RateLimit, written
from runnel.daemon.protocol.server import ServerProtocol
from runnel.daemon.settings import FORMATS

from .logfmt import parsed
from .support import UNLUCKY, Peer, rows, tally_engine

log = Log("runnel.test")


def lines(format: str = "text", level: str = "debug", **fields: object) -> list[str]:
    out = io.StringIO()
    with written(out, format, level):
        log.info("thing done", **fields)
    return out.getvalue().splitlines()


def test_a_line_has_time_level_event_and_fields() -> None:
    (line,) = lines(stream="mic-1", chunks=3, share=1 / 3, peer=b"\x00\xff", on=True, nothing=None)
    ts, rest = line.split(" ", 1)
    assert re.fullmatch(r"ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ts)
    assert rest == (
        'level=info event="thing done" stream=mic-1 chunks=3 share=0.333333 peer=00ff on=true nothing=null'
    )


def test_json_keeps_numbers_and_has_no_nan() -> None:
    (line,) = lines("json", n=3, x=0.25, bad=float("nan"), on=True, name="m")
    document = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert {k: document[k] for k in ("level", "event", "n", "x", "bad", "on", "name")} == {
        "level": "info", "event": "thing done", "n": 3, "x": 0.25, "bad": "nan", "on": True, "name": "m"
    }  # fmt: skip


_HOSTILE = st.text() | st.sampled_from(
    ["\n", 'a" level=error event="forged', "\x1b[2J", "\u2028x", "a\\", "\u202egnp", "\ud800", "", "a b=c"]
)


@given(_HOSTILE)
def test_no_value_can_forge_a_line_a_field_or_a_control_sequence(value: str) -> None:
    for format in FORMATS:
        (line,) = lines(format, stream=value, after=1)
        found: dict[str, Any] = parsed(line) if format == "text" else json.loads(line)
        assert list(found) == ["ts", "level", "event", "stream", "after"]
        cut = value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 1] + "…"
        assert found["stream"] == cut
        assert line.isprintable()


@given(_HOSTILE.filter(lambda value: value.encode(errors="ignore").decode() == value))  # pytest keeps it
def test_nor_can_a_formatted_message(value: str) -> None:
    out = io.StringIO()
    with written(out, level="info"):
        logging.getLogger("runnel.test").info("closing %s", value)
    (line,) = out.getvalue().splitlines()
    assert parsed(line)["event"] == f"closing {value}"


def test_a_field_never_replaces_a_standard_one() -> None:
    assert parsed(lines(ts="1970")[0])["ts"] != "1970"


def test_values_and_tracebacks_are_cut_off() -> None:
    assert len(parsed(lines(name="x" * 10_000)[0])["name"]) == MAX_VALUE
    out = io.StringIO()
    with written(out):
        try:
            raise ValueError("why " * 5000)
        except ValueError as error:
            log.exception("stage failed", error, stage="vad")
    (line,) = out.getvalue().splitlines()
    found = parsed(line)
    assert found["stage"] == "vad"
    assert len(found["trace"]) == MAX_TRACE
    assert found["trace"].endswith("why \n")


def test_levels_are_runnels_own_and_can_change() -> None:
    out = io.StringIO()
    with written(out, level="warning"):
        log.info("quiet")
        logs.set_level("info")
        log.info("loud")
        logging.getLogger("somebody.else").info("not ours")
        logging.getLogger("somebody.else").warning("but worth it")
    log.warning("afterwards")
    events = [parsed(line)["event"] for line in out.getvalue().splitlines()]
    assert events == ["loud", "but worth it"]


class Clock:
    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=200))
def test_a_kind_has_its_budget_in_any_window_and_every_line_is_counted(
    calls: list[tuple[str, float]],
) -> None:
    budget, now = Budget(burst=3, per_second=2), 0.0
    passed: dict[str, list[float]] = {"a": [], "b": []}
    told = refused = 0
    for kind, pause in calls:
        now += pause
        suppressed = budget.spend(kind, now)
        if suppressed is None:
            refused += 1
        else:
            told += suppressed
            passed[kind].append(now)
    for times in passed.values():
        for i, first in enumerate(times):
            for j in range(i, len(times)):
                assert j - i + 1 <= 3 + 2 * (times[j] - first) + 1e-6
    assert told + sum(budget.take_suppressed().values()) == refused
    assert budget.take_suppressed() == {}


@given(st.lists(st.floats(0.5, 10), max_size=50))
def test_lines_within_the_rate_are_never_suppressed(pauses: list[float]) -> None:
    budget, now = Budget(burst=1, per_second=2), 0.0
    for pause in pauses:
        assert budget.spend("a", now) == 0
        now += pause + 1e-9


def test_kinds_are_bounded_and_further_ones_share_a_budget() -> None:
    budget = Budget(burst=2, per_second=0)
    for i in range(MAX_KINDS):
        assert budget.spend(f"kind {i}", 0.0) == 0
    beyond = [budget.spend(f"more {i}", 0.0) for i in range(100)]
    assert beyond == [0, 0] + [None] * 98
    assert len(budget.take_suppressed()) == 1
    assert budget.spend("kind 0", 0.0) == 0


def test_the_next_line_says_what_was_suppressed() -> None:
    clock, out = Clock(), io.StringIO()
    limit = RateLimit(clock=clock)
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs.LineFormatter("text", {"worker": 3}))
    handler.addFilter(limit)
    logger = logging.getLogger("runnel.test")
    logger.addHandler(handler)
    try:
        for i in range(BURST + 5):
            log.warning("bad message", peer=i)
        log.warning("another kind")
        clock.now += 2
        log.warning("bad message", peer="later")
    finally:
        logger.removeHandler(handler)
    shown = [parsed(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in shown] == ["bad message"] * BURST + ["another kind", "bad message"]
    assert shown[-1]["suppressed"] == "5"
    assert {line["worker"] for line in shown} == {"3"}
    assert "suppressed" not in shown[-2]


def test_lines_suppressed_at_the_end_are_reported_at_the_end() -> None:
    out = io.StringIO()
    with written(out):
        for _ in range(BURST + 500):
            log.warning("bad message")
    shown = [parsed(line) for line in out.getvalue().splitlines()]
    assert shown[-1]["kind"] == "WARNING bad message"
    # On a slow machine the bucket has gained a token meanwhile: one more line, with its own count.
    assert len(shown) - 1 + sum(int(line.get("suppressed", 0)) for line in shown) == BURST + 500


def test_a_server_logs_failed_stages_bad_messages_and_idle_streams() -> None:
    server = ServerProtocol(tally_engine(), "boot", idle_seconds=5.0)
    peer, out = Peer(server), io.StringIO()
    with written(out):
        peer.ask("open", "mic 1")
        peer.ask("feed", "mic 1", rows(UNLUCKY))
        peer.ask("feed", "nobody", rows(1))  # a client's own mistake: it is answered, and not logged
        server.receive(b"\x00peer", [b"nonsense"], 0.0)
        server.tick(100.0)
    failed, bad, idle = (parsed(line) for line in out.getvalue().splitlines())
    assert (failed["event"], failed["level"], failed["stream"]) == ("stage failed", "error", "mic 1")
    assert "tally' failed" in failed["error"]
    assert "an unlucky number" in failed["trace"]
    assert (bad["event"], bad["level"], bad["peer"]) == ("bad message", "warning", "0070656572")
    assert (idle["event"], idle["level"], idle["stream"]) == ("stream closed", "info", "mic 1")
    assert idle["reason"] == "idle"
