"""Monitoring a daemon from outside, over real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.client.monitor import MAX_WORKERS, UNANSWERED, Watcher
from runnel.daemon.loop import Daemon
from runnel.errors import UsageError
from runnel.wire.placement import Placement

from .peers import ask, dealer
from .workers import Worker, workers


def test_a_daemon_reports_its_streams_and_its_process(daemon: Daemon) -> None:
    with dealer(daemon.address) as sock, Watcher([daemon.address], 10) as watcher:
        ask(sock, "open", "a")
        ask(sock, "open", "b")
        ask(sock, "open", "b")
        (seen,) = watcher.look()
    assert seen.alive
    assert seen.ready
    assert seen.stats is not None
    assert (seen.stats["streams"], seen.stats["opened"]) == (2, 2)
    assert seen.stats["errors"] == {"STREAM_EXISTS": 1}
    assert seen.stats["resident_bytes"] > 2**20
    assert seen.served
    assert seen.served.inputs[0].name == "x"


def test_one_address_leads_to_all_workers(tmp_path: Path) -> None:
    with workers(tmp_path, ("a", "b", "c")) as three, Watcher([three[1].address], 10) as watcher:
        seen = watcher.look()
        assert [worker.address for worker in seen] == [worker.address for worker in three]
        assert [worker.served.boot_id for worker in seen if worker.served] == ["a", "b", "c"]
        assert [worker.address for worker in watcher.look()] == [worker.address for worker in three]


def test_workers_are_found_beside_the_one_that_was_asked(tmp_path: Path) -> None:
    """The folder of their sockets, mounted elsewhere, as in a container."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.symlink_to(inside)
    with workers(inside) as two, Watcher([f"ipc://{outside}/w0.sock"], 10) as watcher:
        inside.rename(tmp_path / "moved")  # their own addresses lead nowhere
        outside.unlink()
        outside.symlink_to(tmp_path / "moved")
        seen = watcher.look()
        assert [worker.address for worker in seen] == [
            f"ipc://{outside}/w{at}.sock" for at in range(len(two))
        ]
        assert all(worker.ready for worker in seen)


def test_only_a_stuck_worker_is_silent(tmp_path: Path) -> None:
    with workers(tmp_path) as (one, two), Watcher([one.address], 10) as watcher:
        assert all(worker.ready for worker in watcher.look())
        two.turning.clear()
        watcher.timeout = 0.5
        first, second = watcher.look()
        while not first.ready:  # on a busy machine
            first, second = watcher.look()
        assert not second.alive
        assert second.error == f"no answer from {two.address} within 0.5 s"
        two.turning.set()
        watcher.timeout = 10
        assert all(worker.ready for worker in watcher.look())


def test_a_restarted_worker_is_found_again(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    with Watcher([address], 0.2) as watcher:
        assert not watcher.look()[0].alive
        for boot in ("one", "two"):
            worker = Worker(address, Placement(0, [address]), boot)
            watcher.timeout = 10
            (seen,) = watcher.look()
            assert seen.served
            assert seen.served.boot_id == boot
            worker.end()
            watcher.timeout = 0.2
            assert not watcher.look()[0].alive


def test_a_stopping_worker_is_alive_and_not_ready(tmp_path: Path) -> None:
    with workers(tmp_path, ("a",)) as (worker,), Watcher([worker.address], 10) as watcher:
        worker.server.stop()
        (seen,) = watcher.look()
    assert seen.alive
    assert not seen.ready


def test_unanswered_questions_are_bounded(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    with Watcher([address], 0.001) as watcher:
        for _ in range(2 * UNANSWERED):
            assert not watcher.look()[0].alive
        worker = Worker(address, Placement(0, [address]), "a")
        watcher.timeout = 10
        assert watcher.look()[0].ready
        answered = worker.server.stats.requests.total()
        worker.end()
    assert answered <= UNANSWERED + 2


@pytest.mark.parametrize("count", [MAX_WORKERS, MAX_WORKERS + 1])
def test_a_daemon_with_too_many_workers_is_refused(tmp_path: Path, count: int) -> None:
    addresses = [f"ipc://{tmp_path}/{i}.sock" for i in range(count)]
    worker = Worker(addresses[0], Placement(0, addresses), "a")
    try:
        with Watcher(addresses[:1], 10) as watcher:
            if count == MAX_WORKERS:
                watcher.timeout = 0.5  # for the missing ones
                while len(watcher.look()) < count:
                    pass
            else:
                with pytest.raises(UsageError, match=f"at most {MAX_WORKERS} are watched"):
                    watcher.look()
    finally:
        worker.end()


@pytest.mark.parametrize("address", ["somewhere", "tcp://127.0.0.1:*"])
def test_an_invalid_address(address: str) -> None:
    with pytest.raises(UsageError, match="address"):
        Watcher([address])


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), 1e9])
def test_a_time_out_is_checked(timeout: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="timeout"):
        Watcher([f"ipc://{tmp_path}/d.sock"], timeout)
