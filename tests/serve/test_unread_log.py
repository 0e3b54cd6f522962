"""A log that nobody reads, a full disk, no standard error at all: the daemon serves, and stops when asked."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runnel.client.client import Client
from runnel.client.monitor import Watcher
from runnel.daemon import logs
from runnel.daemon.logs import MAX_WAITING, Log, written

from .peers import ask, dealer
from .support import model_pipeline, rows

log = Log("runnel.test")


class Pipe:
    """A pipe whose reader may read nothing; `text` is its write end."""

    def __init__(self) -> None:
        self.read_end, write_end = os.pipe()
        self.text = open(write_end, "w")  # noqa: SIM115

    def read_to_the_end(self) -> list[dict[str, object]]:
        self.text.close()
        with open(self.read_end) as reader:
            return [json.loads(line) for line in reader]


@pytest.fixture(autouse=True)
def _no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few thousand lines of one kind are not suppressed."""
    monkeypatch.setattr(logs.RateLimit, "filter", lambda *_: True)
    monkeypatch.setattr(logs, "LAST_SECONDS", 0.2)


def test_lines_that_nobody_reads_are_lost_and_counted() -> None:
    pipe = Pipe()
    with written(pipe.text, "json"):
        for number in range(MAX_WAITING + 5000):
            log.info("done", number=number, filling="x" * 100)
        assert logs.lost_lines() > 3000
    os.close(pipe.read_end)
    for thread in threading.enumerate():
        if thread.name == "runnel-log":  # else it would write to whoever gets the descriptor's number next
            thread.join(30)
    pipe.text.close()
    assert logs.lost_lines() == 0, "counted while they are written"


def test_each_lost_line_is_counted_once_when_lines_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LAST_SECONDS", 30.0)
    pipe = Pipe()
    many = MAX_WAITING + 5000
    with written(pipe.text, "json"):
        for number in range(many):
            log.info("done", number=number, filling="x" * 100)
        lost = logs.lost_lines()
        found: list[dict[str, object]] = []
        reader = threading.Thread(target=lambda: found.extend(map(json.loads, os.fdopen(pipe.read_end))))
        reader.start()
    pipe.text.close()
    reader.join(30)
    numbers = [line["number"] for line in found if line["event"] == "done"]
    told = [int(str(line["lines"])) for line in found if line["event"] == "log lines were lost"]
    assert numbers == sorted(numbers), "in order"
    assert sum(told) == lost, "in several lines, if the writer was slower than the log"
    assert len(numbers) + lost == many


def test_a_full_disk_costs_lines_only() -> None:
    with open("/dev/full", "w") as full, written(full, "json"):
        log.info("done")
        for _ in range(1000):
            if logs.lost_lines() == 1:
                break
            threading.Event().wait(0.01)
        assert logs.lost_lines() == 1


def test_no_stream_at_all() -> None:
    with written(None):
        log.info("done")


def test_a_field_whose_text_fails_ends_nothing() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("no text")

    out = io.StringIO()
    with written(out, "json"):
        log.info("odd", value=Odd())
        log.info("done")
    events = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert sorted(events) == ["done", "log lines were lost"]


@contextmanager
def served(pipeline: Path, address: str, error: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """`runnel serve` with this standard error; None: it is closed."""
    words = [sys.executable, "-m", "runnel.cli.main", "serve", str(pipeline), "--bind", address]
    if error is None:
        words = ["sh", "-c", 'exec "$0" "$@" 2>&-', *words]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=error)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["a pipe that is full", "a full disk", "closed"])
def test_a_daemon_whose_log_cannot_be_written_serves_and_stops(tmp_path: Path, kind: str) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 65536)
    except BlockingIOError:
        os.set_blocking(writer, True)
    full = os.open("/dev/full", os.O_WRONLY)
    error = {"a pipe that is full": writer, "a full disk": full, "closed": None}[kind]
    with served(model_pipeline(tmp_path), address, error) as process:
        while not (tmp_path / "d.sock").exists():
            assert process.poll() is None
            threading.Event().wait(0.05)
        with Client(address, timeout=30) as client, client.open() as stream, dealer(address) as stranger:
            for number in range(1, 31):  # each is a line
                stranger.send_multipart([b"nonsense"])
                assert stranger.poll(10_000)
                stranger.recv_multipart()
                assert stream.feed(rows(1)).tolist() == [[number, number]]
            assert ask(stranger, "hello").error is None
            with Watcher([address], 30) as watcher:
                [seen] = watcher.look()
        assert seen.stats is not None
        assert kind == "a pipe that is full" or seen.stats["log_lost"] > 10
        process.terminate()
        assert process.wait(30) == 0
    for descriptor in (reader, writer, full):
        os.close(descriptor)


def test_an_error_at_the_end_does_not_wait_for_a_full_pipe(tmp_path: Path) -> None:
    """It is printed after the log is closed."""
    reader, writer = os.pipe()
    code = (
        "import sys, warnings\n"
        "from runnel.daemon import logs\n"
        "with logs.written(sys.stderr):\n"
        "    for _ in range(2000): logs.Log('runnel.x').info('e' * 200, n=_)\n"
        "    for _ in range(300): logs.Log('runnel.x').info('e%d' % _ * 200)\n"
        "print('runnel: ' + 'e' * 70000, file=sys.stderr)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=writer)
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(reader)
        os.close(writer)
