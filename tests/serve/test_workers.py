"""Several workers, as real processes: placement, addresses, restart, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import zmq

from runnel.daemon.settings import MAX_WORKERS, Settings, Source
from runnel.daemon.supervision import control as control
from runnel.daemon.supervision import supervisor as workers_module
from runnel.daemon.supervision import worker
from runnel.daemon.supervision.supervisor import (
    FIRST_PAUSE,
    LAST_PAUSE,
    SOUND_SECONDS,
    Backoff,
    Supervisor,
    addresses,
)
from runnel.daemon.supervision.systemd import Notifier
from runnel.errors import RunnelError, UsageError
from runnel.wire import messages
from runnel.wire.address import MAX_PATH
from runnel.wire.placement import worker_of

from .logfmt import events
from .peers import ask, dealer, feed, reply_of
from .processes import children, command, observe_nothing, ready
from .support import code, model_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_pipeline(tmp_path_factory.mktemp("model"))


def hello(address: str) -> messages.Description:
    with dealer(address) as sock:
        reply = ask(sock, "hello")
        assert reply.server
        return reply.server


def named(worker: int, workers: int, but: str = "") -> str:
    """A stream of this worker."""
    return next(n for n in map("s{}".format, range(1000)) if worker_of(n, workers) == worker and n != but)


def finished(process: subprocess.Popen[str], status: int) -> str:
    """Its output, once it has ended."""
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == status, stderr
    return stderr


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:1]


def within(seconds: float, true: Any) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_addresses_follow_from_the_first() -> None:
    assert addresses("ipc:///run/r.sock", 3) == [
        "ipc:///run/r.sock",
        "ipc:///run/r.sock.1",
        "ipc:///run/r.sock.2",
    ]
    assert addresses("tcp://127.0.0.1:7000", 2) == ["tcp://127.0.0.1:7000", "tcp://127.0.0.1:7001"]
    assert addresses("tcp://[::1]:*", 2) == ["tcp://[::1]:*"] * 2


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:65535", f"ipc:///{'x' * 105}"])
def test_an_invalid_address_of_a_later_worker_is_an_error_at_the_start(bind: str) -> None:
    assert addresses(bind, 1) == [bind]
    with pytest.raises(UsageError, match="at most"):
        addresses(bind, 2)


def test_the_back_off_grows_to_a_bound_and_resets_after_a_long_life() -> None:
    backoff = Backoff()
    pauses = [backoff.after(0.0) for _ in range(10)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LAST_PAUSE
    assert backoff.after(SOUND_SECONDS) == FIRST_PAUSE
    assert backoff.after(0.0) == 2 * FIRST_PAUSE


@pytest.mark.parametrize("bind", ["ipc://{}/d.sock", "tcp://127.0.0.1:*"])
def test_each_worker_names_all_addresses_and_serves_its_own_streams(
    pipeline: Path, tmp_path: Path, bind: str
) -> None:
    with command(str(pipeline), "--bind", bind.format(tmp_path), "--workers", "3") as process:
        told = hello(ready(process, 3))
        assert len(set(told.workers)) == 3
        for index, address in enumerate(told.workers):
            about = hello(address)
            assert (about.worker, about.workers) == (index, told.workers)
            with dealer(address) as sock:
                mine, other = named(index, 3), named((index + 1) % 3, 3)
                assert code(ask(sock, "open", mine)) == "ok"
                assert code(ask(sock, "open", other)) == "WRONG_WORKER"
                sock.send_multipart(feed(mine, 1, 2))
                assert reply_of(sock).applied_seq == 1
        process.send_signal(signal.SIGTERM)
        finished(process, 0)
    assert not list(tmp_path.iterdir()), "socket files are left"


def test_no_worker_serves_another_pipeline_than_the_others(tmp_path: Path) -> None:
    file = model_pipeline(tmp_path)
    served = file.read_text()
    with command(str(file), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2") as process:
        told = hello(ready(process, 2))
        file.write_text(f'{served}[model.outputs]\ny = "zz"\n')
        os.kill(children(process)[1], signal.SIGKILL)
        log = [process.stderr.readline()]  # type: ignore[union-attr]
        while "was changed" not in log[-1]:
            assert log[-1], log
            log.append(process.stderr.readline())  # type: ignore[union-attr]
        with dealer(told.workers[0]) as zero:
            assert code(ask(zero, "open", named(0, 2))) == "ok"
        file.write_text(served)
        with dealer(told.workers[1]) as one:
            one.send_multipart(feed(named(1, 2), 1))
            assert code(reply_of(one, within=30_000)) == "UNKNOWN_STREAM"
        process.send_signal(signal.SIGTERM)
        finished(process, 0)


def test_a_worker_that_dies_is_started_again_and_the_others_go_on(pipeline: Path, tmp_path: Path) -> None:
    with command(str(pipeline), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2") as process:
        told = hello(ready(process, 2))
        mine, other = named(0, 2), named(1, 2)
        with dealer(told.workers[0]) as zero, dealer(told.workers[1]) as one:
            assert code(ask(zero, "open", mine)) == code(ask(one, "open", other)) == "ok"
            boot = hello(told.workers[1]).boot_id
            victim = children(process)[1]
            os.kill(victim, signal.SIGKILL)
            assert within(30, lambda: len(children(process)) == 2 and victim not in children(process))
            zero.send_multipart(feed(mine, 1))
            assert reply_of(zero).applied_seq == 1, "the other one was not touched"
            # The same connection recovers by itself: a request on it waits for the new worker.
            one.send_multipart(feed(other, 1))
            reply = reply_of(one, within=30_000)
            assert code(reply) == "UNKNOWN_STREAM"
            again = hello(told.workers[1])
            assert (again.worker, again.workers) == (1, told.workers)
            assert again.boot_id != boot
            assert code(ask(one, "open", other)) == "ok"
        process.send_signal(signal.SIGTERM)
        log = finished(process, 0)
    (lost,) = (line for line in events(log) if line["event"] == "worker lost, with its streams")
    assert (lost["worker"], lost["why"]) == ("1", "worker 1 ended with status -9")
    assert lost["again_in_seconds"] == f"{FIRST_PAUSE:g}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_all_of_them(pipeline: Path, tmp_path: Path, number: signal.Signals) -> None:
    with command(str(pipeline), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2") as process:
        told = hello(ready(process, 2))
        with dealer(told.workers[0]) as zero, dealer(told.workers[1]) as one:
            for index, sock in enumerate((zero, one)):
                assert code(ask(sock, "open", named(index, 2))) == "ok"
            workers = children(process)
            for pid in workers:  # so that everything has arrived before the signal
                os.kill(pid, signal.SIGSTOP)
            for index, sock in enumerate((zero, one)):
                for i in range(100):
                    sock.send_multipart(feed(named(index, 2), i))
            time.sleep(0.5)
            process.send_signal(number)
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            for sock in (zero, one):
                assert [reply_of(sock).applied_seq for _ in range(100)] == list(range(1, 101))
        finished(process, 0)
    assert all(gone(pid) for pid in workers)


def test_a_second_signal_ends_even_a_worker_that_hangs(pipeline: Path, tmp_path: Path) -> None:
    with command(str(pipeline), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2") as process:
        ready(process, 2)
        workers = children(process)
        os.kill(workers[0], signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        assert process.stderr
        while "event=stopping workers=2" not in process.stderr.readline():
            assert process.poll() is None  # two signals at once are one
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        finished(process, 1)
    assert all(gone(pid) for pid in workers)


def test_workers_whose_supervisor_was_killed_stop(pipeline: Path, tmp_path: Path) -> None:
    with command(str(pipeline), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2") as process:
        ready(process, 2)
        workers = children(process)
        process.kill()
        assert within(30, lambda: all(gone(pid) for pid in workers))
    assert not list(tmp_path.iterdir()), "they leave their socket files behind"


def test_signals_of_a_service_manager_to_every_process_do_not_force_the_workers(
    pipeline: Path, tmp_path: Path
) -> None:
    with command(str(pipeline), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2") as process:
        address = ready(process, 2)
        for pid in children(process):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        assert len(hello(address).workers) == 2
        process.send_signal(signal.SIGTERM)
        finished(process, 0)


def test_a_workers_error_is_reported_in_its_words(pipeline: Path, tmp_path: Path) -> None:
    taken = f"ipc://{tmp_path}/d.sock.1"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.bind(taken)
        with command(str(pipeline), "--bind", f"ipc://{tmp_path}/d.sock", "--workers", "2") as process:
            log = finished(process, 2)
    assert f"runnel: cannot bind {taken}: another daemon is serving there" in log
    assert "Traceback" not in log
    assert "all workers serve" not in log
    assert not (tmp_path / "d.sock").exists()


def test_a_silently_ended_worker_is_reported(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    settings = Settings(bind=f"ipc://{tmp_path}/d.sock", workers=2)
    with Notifier({}) as notifier, pytest.raises(RunnelError, match="ended with status 1 before it served"):
        Supervisor(str(pipeline), settings, Source(pipeline, {}), notifier, observe_nothing).serve(())


def test_workers_reload_their_settings(pipeline: Path, tmp_path: Path) -> None:
    path = model_pipeline(tmp_path)
    text = path.read_text()
    path.write_text(f'{text}[serve]\nbind = "ipc://{tmp_path}/d.sock"\nworkers = 2\nidle_seconds = 100\n')
    with command(str(path)) as process:
        told = hello(ready(process, 2))
        assert told.limits.idle_seconds == 100
        path.write_text(f'{text}[serve]\nbind = "ipc://{tmp_path}/e.sock"\nworkers = 3\nidle_seconds = 50\n')
        process.send_signal(signal.SIGHUP)
        for address in told.workers:
            assert within(20, lambda at=address: hello(at).limits.idle_seconds == 50)
        process.send_signal(signal.SIGTERM)
        log = finished(process, 0)
    changed = {line["name"]: line["event"] for line in events(log) if "name" in line}
    assert changed == {
        "idle_seconds": "setting changed",
        "bind": "setting not changed: that needs a restart",
        "workers": "setting not changed: that needs a restart",
    }


def test_a_link_that_is_not_read_is_not_waited_for() -> None:
    ours, theirs = control.pair()
    with ours, theirs:
        while control.send(ours, {"beat": True}):
            pass


def test_the_largest_packet_fits() -> None:
    ours, theirs = control.pair()
    longest = f"ipc:///{chr(0x20AC) * (MAX_PATH // 3)}"  # as JSON writes them, six bytes a character
    packet = {"workers": [longest] * MAX_WORKERS}
    with ours, theirs:
        assert control.send(ours, packet)
        assert control.receive(theirs) == packet


def test_a_worker_that_never_serves_is_ended(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    monkeypatch.setattr(workers_module, "START_SECONDS", 0.3)
    settings = Settings(bind=f"ipc://{tmp_path}/d.sock", workers=2)
    with Notifier({}) as notifier, pytest.raises(RunnelError, match="ended with status -9 before it served"):
        Supervisor(str(pipeline), settings, Source(pipeline, {}), notifier, observe_nothing).serve(())


def test_a_worker_that_cannot_be_started_is_tried_again(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    settings = Settings(bind=f"ipc://{tmp_path}/d.sock", workers=2)
    with Notifier({}) as notifier:
        supervisor = Supervisor(str(pipeline), settings, Source(pipeline, {}), notifier, observe_nothing)
        with pytest.raises(RunnelError, match="worker 0 cannot be started: Resource temporarily"):
            supervisor.serve(())
        supervisor._serving = True
        lost = supervisor._workers[1]
        supervisor._start(lost)
        assert lost.process is None
        assert lost.channel is None
        assert lost.restart_at is not None


def test_a_hanging_worker_ends_itself_when_its_supervisor_is_gone(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.0)
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    stopped: list[bool] = []
    ours, theirs = control.pair()
    with theirs:
        config = control.WorkerConfig(0, str(pipeline), "ipc:///x", False, Settings(), 0.0)
        hooks = worker._WorkerHooks(theirs, config)
        hooks.daemon = types.SimpleNamespace(stop=lambda: stopped.append(True))  # type: ignore[assignment]
        hooks.ready("ipc:///x")
        assert control.receive(ours) == {"ready": True}
        assert not ended.is_set()
        ours.close()
        assert ended.wait(10)
    assert stopped == [True]
