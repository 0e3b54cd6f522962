"""The HTTP pages beside a daemon: names, values, health, bounds, end."""

from __future__ import annotations

import http.client
import logging
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from runnel.daemon.loop import Daemon
from runnel.daemon.metrics import http as metrics
from runnel.errors import UsageError
from runnel.wire.placement import worker_of

from .peers import Gate, ask, dealer, feed, reply_of, until
from .support import SpyEngine
from .workers import Worker, workers


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    monkeypatch.setattr(metrics, "FRESH", 0.0)
    with workers(tmp_path) as made:
        yield made


@contextmanager
def pages(*made: Worker) -> Iterator[str]:
    with metrics.serve("127.0.0.1:0", [worker.address for worker in made]) as address:
        yield address


def get(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=30)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def becomes(address: str, path: str, *answer: int | str) -> None:
    """Ask until this is the answer, its body left out or not: on a busy machine a worker may be late."""
    until(lambda: get(address, path)[::2][: len(answer)] == answer)


def families(address: str) -> dict[str, Metric]:
    status, content_type, text = get(address, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    """The metric's own samples, by their labels in the order of their names."""
    own = {family.name, f"{family.name}_total"}
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in family.samples
        if sample.name in own
    }


def test_values_are_those_of_the_work_done(two: list[Worker]) -> None:
    names = ["a", "b", "c", "d", "e"]
    at = [worker_of(name, 2) for name in names]
    with dealer(two[0].address) as zero, dealer(two[1].address) as one:
        for name, worker in zip(names, at, strict=True):
            ask([zero, one][worker], "open", name)
            [zero, one][worker].send_multipart(feed(name, 1, 2))
            assert reply_of([zero, one][worker]).error is None
        first = [zero, one][at[0]]
        ask(first, "close", names[0])
        first.send_multipart(feed(names[0], 1))
        assert reply_of(first).error
        first.send_multipart([b"nonsense"])
        assert reply_of(first).error
        with pages(*two) as address:
            found = families(address)
    chunks = values(found["runnel_chunks"])
    assert chunks == {("0",): at.count(0), ("1",): at.count(1)}
    assert sum(values(found["runnel_streams"]).values()) == 4
    mine = str(at[0])
    assert values(found["runnel_streams_closed"]) == {("closed", mine): 1}
    assert values(found["runnel_errors"]) == {("UNKNOWN_STREAM", mine): 1, ("BAD_MESSAGE", mine): 1}
    requests = values(found["runnel_requests"])
    assert requests["open", "0"] + requests["open", "1"] == 5
    assert requests["feed", mine] == at.count(at[0]) + 1
    assert requests["", mine] == 1
    for name, many in (("runnel_batch_size", 5), ("runnel_request_seconds", 12)):
        counts = [s.value for s in found[name].samples if s.name == f"{name}_count"]
        assert sum(counts) == many, name
        for worker in "01":
            buckets = [
                s.value
                for s in found[name].samples
                if s.name == f"{name}_bucket" and s.labels["worker"] == worker
            ]
            assert buckets == sorted(buckets)
    stepped = values(found["runnel_stage_chunks"])
    assert stepped == {("0: tally", "0"): at.count(0), ("0: tally", "1"): at.count(1)}
    assert all(0 < spent < 1 for spent in values(found["runnel_stage_seconds"]).values())
    assert values(found["runnel_worker_up"]) == {("0",): 1, ("1",): 1}
    assert all(rss > 2**20 for rss in values(found["process_resident_memory_bytes"]).values())
    (info,) = [s for s in found["runnel_build_info"].samples if s.labels["worker"] == "0"]
    assert info.value == 1
    assert info.labels["version"]


def test_names_keep_the_conventions(two: list[Worker]) -> None:
    """Those that `promtool check metrics` checks."""
    with pages(*two) as address:
        _, _, text = get(address, "/metrics")
    typed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helped = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
    assert typed.keys() == helped.keys()
    assert len(typed) > 15
    for name, kind in typed.items():
        assert re.fullmatch(r"(runnel|process)_[a-z][a-z0-9_]*", name)
        assert helped[name].endswith("."), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert not name.endswith(("_count", "_sum", "_bucket")), name
        assert not re.search(r"_(milli|micro|ms|us|kilo|mega|kb|mb|minutes|percent)", name), "base units"
        assert kind not in name.split("_"), "no type in a name"
        samples = re.findall(rf"^{name}(?:_bucket|_sum|_count)?{{(.*)}} \S+$", text, re.M)
        assert all('worker="' in labels for labels in samples), name


def test_openmetrics_is_given_if_asked_for(two: list[Worker]) -> None:
    with pages(*two) as address:
        status, content_type, text = get(
            address, "/metrics", Accept="application/openmetrics-text; version=1.0.0"
        )
    assert status == 200
    assert content_type.startswith("application/openmetrics-text")
    assert "runnel_chunks" in {family.name for family in parse_openmetrics(text)}


def test_health_and_readiness(two: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ANSWER_SECONDS", 0.5)
    with pages(*two) as address:
        becomes(address, "/readyz", 200, "ok\n")
        becomes(address, "/healthz", 200, "ok\n")
        two[0].server.stop()
        becomes(address, "/healthz", 200, "ok\n")
        becomes(address, "/readyz", 503, "worker 0: stopping\n")
        two[1].turning.clear()
        silent = f"worker 1: no answer from {two[1].address} within 0.5 s\n"
        becomes(address, "/healthz", 503, silent)
        becomes(address, "/readyz", 503, "worker 0: stopping\n" + silent)
        until(lambda: values(families(address)["runnel_worker_up"]) == {("0",): 1, ("1",): 0})
        two[1].turning.set()
        becomes(address, "/healthz", 200)


def test_a_batch_that_hangs_in_a_real_daemon_is_seen(
    daemon: Daemon, engine: SpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH", 0.0)
    monkeypatch.setattr(metrics, "ANSWER_SECONDS", 0.5)
    gate = Gate(engine)
    with dealer(daemon.address) as sock, metrics.serve("[::1]:0", [daemon.address]) as address:
        ask(sock, "open", "a")
        becomes(address, "/readyz", 200)
        sock.send_multipart(feed("a", 1))
        assert gate.entered.wait(10)
        assert get(address, "/healthz")[0] == 503
        gate.go.set()
        assert reply_of(sock).error is None
        becomes(address, "/healthz", 200)


def test_many_probes_cost_the_daemon_one_question(two: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FRESH", 3600.0)
    with pages(*two) as address:
        for _ in range(20):
            assert get(address, "/healthz")[0] == 200
        assert two[0].server.stats.requests["stats"] == 1


def test_head_and_missing_pages(two: list[Worker]) -> None:
    with pages(*two) as address:
        assert get(address, "/healthz", "HEAD")[::2] == (200, "")
        assert get(address, "/healthz?full=1")[0] == 200
        assert get(address, "/secrets")[::2] == (404, "here are /metrics, /healthz and /readyz\n")
        assert get(address, "/metrics", "POST")[0] == 501


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * metrics.MAX_HEAD + b" HTTP/1.0\r\n\r\n", b"431"),
        (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * metrics.MAX_HEAD, b"431"),
        (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"\x00\xff\xfe\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/9.9\r\n\r\n", b"505"),
    ],
)
def test_a_bad_request_is_refused(two: list[Worker], sent: bytes, status: bytes) -> None:
    with pages(*two) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(sent)
            assert status in connection.makefile("rb").readline()
        assert get(address, "/healthz")[0] == 200


def test_a_request_that_does_not_end_times_out(two: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REQUEST_SECONDS", 0.2)
    with pages(*two) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\nX: ")
            assert connection.recv(100) == b""


def connections() -> int:
    """How many connections a server of this process has."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_a_connection_too_many_closes_the_slowest(two: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(metrics, "REQUEST_SECONDS", 60.0)
    with pages(*two) as address:
        host, _, port = address.rpartition(":")
        first, second = (socket.create_connection((host, int(port)), timeout=30) for _ in range(2))
        second.sendall(b"GET /healthz HTTP/1.0\r\nX: ")
        assert get(address, "/healthz")[0] == 200
        assert first.recv(1) == b"", "it came first, and has asked nothing"
        for _ in range(5):
            until(lambda: connections() == 1)  # a connection has its place until its thread ends
            assert get(address, "/healthz")[0] == 200
        until(lambda: connections() == 1)
        second.sendall(b"y\r\n\r\n")
        assert b" 200 " in second.makefile("rb").readline()
        first.close()
        second.close()


def test_probes_are_answered_while_others_hold_all_connections(two: list[Worker]) -> None:
    stop = threading.Event()

    def hold(host: str, port: int) -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection((host, port), timeout=5) as slow:
                slow.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
                while not stop.is_set() and slow.recv(100):
                    pass
            stop.wait(0.05)

    with pages(*two) as address:
        host, _, port = address.rpartition(":")
        crowd = [
            threading.Thread(target=hold, args=(host, int(port))) for _ in range(2 * metrics.MAX_CONNECTIONS)
        ]
        for one in crowd:
            one.start()
        try:
            answers = [get(address, "/healthz")[0] for _ in range(20)]
        finally:
            stop.set()
        assert answers == [200] * 20
    for one in crowd:
        one.join(30)


def test_it_stops_with_nothing_left_even_when_a_connection_is_open(two: list[Worker]) -> None:
    before = set(threading.enumerate())
    with pages(*two) as address:
        host, _, port = address.rpartition(":")
        hanging = socket.create_connection((host, int(port)), timeout=30)
        get(address, "/healthz")
    assert set(threading.enumerate()) <= before
    assert hanging.recv(1) == b""
    hanging.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=30)


def test_without_the_library_health_works_and_metrics_say_what_to_install(
    two: list[Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with caplog.at_level(logging.WARNING), pages(*two) as address:
        (record,) = caplog.records
        assert record.message == "health checks only"
        assert "pip install 'runnel[metrics]'" in record.fields["why"]
        assert get(address, "/healthz")[0] == 200
        status, _, text = get(address, "/metrics")
    assert status == 501
    assert "pip install 'runnel[metrics]'" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_an_address(text: str, expected: tuple[str, int]) -> None:
    assert metrics.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "host", "example.org:80", "1.2.3.4:70000", "::1:80", "http://x:1", "x:y"]
)
def test_an_invalid_address(text: str) -> None:
    with pytest.raises(UsageError, match="metrics address"):
        metrics.parse(text)


def test_an_address_in_use_and_a_public_one(two: list[Worker], caplog: pytest.LogCaptureFixture) -> None:
    with pages(*two) as address:
        with (
            pytest.raises(UsageError, match="cannot serve metrics"),
            metrics.serve(address, [two[0].address]),
        ):
            pass
        assert not caplog.records
    with metrics.serve("0.0.0.0:0", [two[0].address]):
        assert "readable by whoever" in caplog.text
        assert {record.fields["address"] for record in caplog.records} == {"0.0.0.0:0"}
