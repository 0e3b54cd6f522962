"""A pause of the daemon's process does not count as silence of a peer. Made-up times, and a real SIGSTOP."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.daemon.protocol.outbox import SLOW_SECONDS, Outbox, SendResult
from runnel.daemon.protocol.replycache import CACHED_SECONDS
from runnel.daemon.protocol.server import ServerProtocol
from runnel.daemon.protocol.stats import Stats
from runnel.wire import messages
from runnel.wire.pauses import LATE, SHORTLY, PauseDetector, extended

from .peers import dealer, feed, reply_of
from .support import Peer, code, model_pipeline, rows, tally_engine

IDLE = 10.0
LAG = 0.9 * (SHORTLY - LATE)  # after a pause, until libzmq has read what the kernel holds


class Process:
    """A daemon's loop around a server, in made-up time, that does not run during the pauses."""

    def __init__(self, pauses: list[tuple[float, float]], working: float = 0.0) -> None:
        self.pauses = pauses  # (from, until), in order
        self.working = working  # seconds of the processor in each turn
        self.ran = 0.0
        self.engine = tally_engine()
        self.server = ServerProtocol(self.engine, "boot", idle_seconds=IDLE)
        self.detector = PauseDetector(0.0)
        self.now = 0.0

    def running(self, at: float) -> float:
        """The first time from then on at which the process runs."""
        return next((end for start, end in self.pauses if start <= at < end), at)

    def readable(self, at: float) -> float:
        """When the loop can read what arrives then."""
        run = self.running(at)
        return run + LAG if run > at else at

    def work(self) -> None:
        """Half the work of a turn. A pause that begins within it makes it end later."""
        end = self.now + self.working / 2
        for start, until in self.pauses:
            if self.now <= start < end:
                end += until - start
        self.now = end
        self.ran += self.working / 2

    def check(self) -> None:
        if paused := self.detector.paused_for(self.now, self.ran):
            self.server.postpone(paused)

    def send(self, op: str, now: float) -> None:
        request = messages.Request(v=1, op=op, sequence_id="a", epoch=5)  # type: ignore[arg-type]
        self.server.receive(b"p", messages.encode_request(request), now)

    def live(self, arrivals: list[float], until: float, woken: float = math.inf) -> float | None:
        """Open a stream and reset it at each arrival. Return when it was closed as idle; None: never.

        `woken`: when the loop wakes for another reason.
        """
        self.send("open", 0.0)
        self.server.run(0.0)
        unread = sorted(map(self.readable, arrivals))
        while self.now < until:
            look = self.detector.wake_at(self.server.due, self.now)
            first = unread[0] if unread else math.inf
            first = min(first, woken if woken > self.now else math.inf)
            self.now = self.running(max(self.now, min(first, math.inf if look is None else look)))
            self.check()
            while unread and unread[0] <= self.now:
                unread.pop(0)
                self.send("reset", self.now)
            self.work()
            if (due := self.server.due) is not None and due <= self.now:
                self.check()
                if (due := self.server.due) is not None and due <= self.now:
                    self.server.tick(self.now)
                if not self.engine.streams:
                    return self.now
            self.work()
            self.server.run(self.now)
            self.server.done(self.now)
        return None


WORK = st.sampled_from([0.0, 0.01, 0.1])  # seconds of each turn


@st.composite
def pauses(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Pauses of any length, with the process running for a while in between."""
    found: list[tuple[float, float]] = []
    at = 0.0
    for _ in range(draw(st.integers(1, 6))):
        at += draw(st.floats(LAG + 0.3, 25.0))
        length = draw(st.one_of(st.floats(0.01, 3.0), st.floats(0.01, 60.0)))
        found.append((at, at + length))
        at += length
    return found


@given(pauses(), st.floats(0.2, IDLE - SHORTLY - LATE), WORK)
@settings(max_examples=120)
def test_pauses_never_close_a_stream_that_is_fed(
    pauses: list[tuple[float, float]], every: float, working: float
) -> None:
    end = pauses[-1][1] + 3 * IDLE
    arrivals = [k * every for k in range(1, int(end / every) + 2)]
    assert Process(pauses, working).live(arrivals, end) is None


@given(pauses(), WORK)
@settings(max_examples=80)
def test_a_silent_stream_is_closed_despite_pauses_and_never_early(
    pauses: list[tuple[float, float]], working: float
) -> None:
    latest = IDLE + sum(end - start + IDLE + SHORTLY for start, end in pauses) + SHORTLY + working
    closed = Process(pauses, working).live([], latest + 1.0)
    assert closed is not None
    assert IDLE <= closed <= latest


def test_a_pause_within_the_work_of_a_turn_is_seen() -> None:
    """The loop wakes for another stream and is stopped in that stream's batch. Meanwhile ours is fed."""
    process = Process([(5.3, 4 * IDLE)], working=0.4)
    assert process.live([4 * IDLE - 1.0], 4.5 * IDLE, woken=5.0) is None


def test_after_a_pause_there_is_time_to_read_what_has_arrived() -> None:
    """The request comes at the last moment, during a pause of the daemon."""
    arrives = IDLE - LAG / 2
    process = Process([(arrives - 0.01, 4 * IDLE)])
    assert process.live([arrives], 4.5 * IDLE, woken=arrives - 0.02) is None


def test_without_a_pause_a_stream_is_closed_on_time() -> None:
    assert Process([]).live([3.0], 100.0) == 3.0 + IDLE


def test_work_and_announced_waits_are_no_pauses() -> None:
    detector = PauseDetector(0.0, 0.0)
    assert detector.wake_at(None, 0.0) is None
    assert detector.paused_for(1000.0, 0.1) == 0.0  # something arrived, after a long wait
    assert detector.wake_at(1000.0, 1000.0) == 1000.0
    assert detector.paused_for(1005.0, 5.0) == 0.0  # a batch that took 5 s of the processor
    assert detector.wake_at(1005.0, 1005.0) == 1005.0
    assert detector.paused_for(1009.0, 5.0) == 4.0 + SHORTLY  # stopped within one
    assert detector.wake_at(1020.0, 1009.0) == 1020.0 - SHORTLY
    assert detector.paused_for(1019.0 + LATE, 5.0) == 0.0
    assert detector.wake_at(1020.0, 1019.5) == 1020.0
    assert detector.paused_for(1021.0, 5.0) == 1.5 + SHORTLY
    assert detector.wake_at(1030.0, 1021.2) == 1030.0 - SHORTLY
    assert detector.paused_for(1022.0, 5.1) == 0.0
    assert detector.wake_at(1030.0, 1025.0) == 1030.0 - SHORTLY  # stopped at work, before the wait
    assert detector.paused_for(1026.0, 5.2) == 4.0 + SHORTLY


def test_a_pause_extends_how_long_replies_and_ends_are_remembered() -> None:
    server = ServerProtocol(tally_engine(), "boot")
    peer = Peer(server)
    for name, end in (("a", False), ("b", True)):
        peer.ask("feed", name, rows(1), epoch=7, seq=1, sequence_start=True, sequence_end=end)
    assert server.due == CACHED_SECONDS
    server.postpone(100.0)
    assert server.due == CACHED_SECONDS + 100.0
    server.tick(CACHED_SECONDS + 99.0)
    for name, end in (("a", False), ("b", True)):
        fed = {"epoch": 7, "seq": 1, "sequence_start": True, "sequence_end": end}
        assert code(peer.ask("feed", name, rows(1), **fed)[0]) == "ok"
    server.tick(CACHED_SECONDS + 100.0)
    assert server.document()["kept_bytes"] == 0
    assert code(peer.ask("feed", "b", rows(1), epoch=7, seq=2)[0]) == "UNKNOWN_STREAM"


def test_a_peer_is_not_dropped_for_what_it_could_not_read_during_a_pause() -> None:
    stats = Stats()
    outbox = Outbox(lambda *_: SendResult.FULL, stats)
    outbox.post(b"p", [b"reply"], 0.0)
    outbox.postpone(100.0)
    outbox.retry(100.0 + SLOW_SECONDS - 1.0)
    assert (outbox.waiting, stats.dropped_peers) == (1, 0)
    outbox.retry(100.0 + SLOW_SECONDS)
    assert (outbox.waiting, stats.dropped_peers) == (0, 1)


def test_a_wait_that_ends_late_is_prolonged_and_one_that_ends_on_time_is_not() -> None:
    assert extended(5.0, 5.0) == extended(5.0, 5.0 + LATE) == 5.0
    assert extended(5.0, 9.0) == 9.0 + SHORTLY


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether the daemon is stopped")
def test_requests_sent_while_the_daemon_is_stopped_find_their_streams(tmp_path: Path) -> None:
    """On a machine of any load, since only requests sent while the daemon was seen to be stopped count.

    The kernel chooses where the loop is stopped and which thread runs first after SIGCONT, so this test sees
    a fault only at times. The tests in made-up time, above, always see it.
    """
    path = tmp_path / "d.sock"
    idle = 4.0
    serve = [sys.executable, "-m", "runnel.cli.main", "serve", str(model_pipeline(tmp_path))]
    serve += ["--trust", "--bind", f"ipc://{path}", "--idle-seconds", str(idle)]
    with subprocess.Popen(serve, stderr=subprocess.DEVNULL) as process, ExitStack() as stack:
        stack.callback(process.kill)
        stack.callback(os.kill, process.pid, signal.SIGCONT)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        # One connection for each: libzmq reads them one after the other, and the loop does not wait for all.
        busy = stack.enter_context(dealer(f"ipc://{path}"))
        peers = [stack.enter_context(dealer(f"ipc://{path}")) for _ in range(40)]
        for round in range(10):
            began = time.monotonic()
            for number, sock in enumerate(peers):
                sock.send_multipart(feed(f"{round}-{number}", 1, sequence_start=True))
            for sock in peers:
                assert code(reply_of(sock)) == "ok"
            # The loop is stopped at work, and continues before libzmq has read anything.
            for number in range(900):
                busy.send_multipart(feed(f"busy-{round}", 1, sequence_start=not number))
            os.kill(process.pid, signal.SIGSTOP)
            while not stopped(process.pid):
                time.sleep(0.001)
            if time.monotonic() - began < idle / 4:
                break
            os.kill(process.pid, signal.SIGCONT)  # the machine is too slow to show anything now
        else:
            pytest.skip("the machine was too slow ten times: the streams may have been idle before the pause")
        for number, sock in enumerate(peers):
            sock.send_multipart(feed(f"{round}-{number}", 2))
        time.sleep(idle + 1.0)
        os.kill(process.pid, signal.SIGCONT)
        assert [code(reply_of(sock)) for sock in peers] == ["ok"] * len(peers)
