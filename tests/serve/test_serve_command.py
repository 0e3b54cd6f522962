"""`runnel serve` in a process of its own: start, serve, signals, end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from runnel.client.client import Client
from runnel.errors import UnknownStreamError
from tests import models

from .logfmt import events, parsed
from .peers import ask, dealer, feed, reply_of
from .processes import command, ready
from .support import code, model_pipeline, rows


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_pipeline(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_after_answering_what_arrived(
    pipeline: Path, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "d.sock"
    with command(str(pipeline), "--bind", f"ipc://{path}", "--max-streams", "300") as process:
        assert ready(process) == f"ipc://{path}"
        with dealer(f"ipc://{path}") as sock:
            for i in range(200):
                assert code(ask(sock, "open", f"s{i}")) == "ok"
            os.kill(process.pid, signal.SIGSTOP)  # so that everything has arrived before the signal
            for i in range(200):
                sock.send_multipart(feed(f"s{i}", 1))
            time.sleep(0.5)
            os.kill(process.pid, number)
            os.kill(process.pid, signal.SIGCONT)
            replies = [reply_of(sock) for _ in range(200)]
        assert process.wait(20) == 0
        assert process.stderr
        log = process.stderr.read()
    assert [code(reply) for reply in replies] == ["ok"] * 200
    (stopped,) = (line for line in events(log) if line["event"] == "stopped")
    assert [stopped[name] for name in ("requests", "errors", "chunks")] == ["400", "0", "200"]
    assert not path.exists()


def test_it_serves_the_model_over_loopback(pipeline: Path) -> None:
    with command(str(pipeline), "--bind", "tcp://127.0.0.1:*") as process:
        with Client(ready(process)) as client, client.open() as one, client.open() as two:
            values = np.arange(1, 8, dtype="float32")
            first = np.concatenate([one.feed(rows(*part)) for part in np.split(values, [1, 4])])
            second = two.feed(rows(10))
            np.testing.assert_array_equal(first[:, 0], np.cumsum(values))
            assert second.tolist() == [[10, 10]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_daemon_that_was_killed_starts_again_at_the_same_address(pipeline: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    with command(str(pipeline), "--bind", address) as process:
        ready(process)
    assert (tmp_path / "d.sock").exists()
    with command(str(pipeline), "--bind", address) as process:
        assert ready(process) == address


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bind", "tcp://0.0.0.0:7070"], "other machines"),
        (["--bind", "ipc:///nowhere/at/all.sock"], "No such file"),
        ([], "--bind"),
        (["--bind", "tcp://127.0.0.1:*", "--max-streams", "0"], "--max-streams"),
        (["--bind", "tcp://127.0.0.1:*", "--workers", "1000"], "--workers"),
        (["--bind", "tcp://127.0.0.1:65535", "--workers", "2"], "65535"),
        (["--bind", "tcp://127.0.0.1:*", "--provider", "MagicExecutionProvider"], "MagicExecutionProvider"),
    ],
)
def test_an_unservable_pipeline_is_a_one_line_error(pipeline: Path, words: list[str], message: str) -> None:
    with command(str(pipeline), *words) as process:
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 2
    assert message in stderr
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) == 1


def test_sighup_reads_the_table_again_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = model_pipeline(tmp_path)
    text = path.read_text()
    table = f'[serve]\nbind = "ipc://{tmp_path}/d.sock"\n'
    path.write_text(text + table + "idle_seconds = 100\nmax_streams = 5\n")
    with command(str(path), "--max-streams", "7") as process:
        address = ready(process)
        assert process.stderr

        closed: list[dict[str, str]] = []

        def reloaded() -> dict[str, str]:
            process.send_signal(signal.SIGHUP)
            assert process.stderr
            while (told := parsed(process.stderr.readline()))["event"] == "stream closed":
                closed.append(told)  # the idle one, at its own time
            return told

        with Client(address) as client, client.open("a") as stream:
            assert client.describe().limits["streams"] == 7, "the flag goes before the table"
            assert client.describe().limits["idle_seconds"] == 100
            assert reloaded()["event"] == "nothing to reload: nothing is new"
            path.write_text(text + table + "idle_seconds = 0.2\n")
            told = reloaded()
            assert (told["event"], told["name"], told["value"]) == ("setting changed", "idle_seconds", "0.2")
            for broken, said in (
                ("[serve", "not TOML"),
                ("[serve]\nworkers = 0", "workers"),
                ("[serve]\nwrokers = 1", "'workers'"),
            ):
                path.write_text(text + broken)
                told = reloaded()
                assert told["event"] == "reload failed: nothing was changed"
                assert said in told["error"]
            while not closed:
                closed.append(parsed(process.stderr.readline()))
                assert closed[-1]["event"] == "stream closed"
            with pytest.raises(UnknownStreamError, match=r"no request for 0\.2 s"):
                stream.feed(rows(1))
        path.write_text(text.replace("time", "ticks") + table + "idle_seconds = 0.2\n")
        told = reloaded()
        assert told["event"] == "setting not changed: that needs a restart"
        assert (told["name"], told["path"]) == ("pipeline", str(path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_sighup_of_a_bare_model_is_logged_and_harmless(tmp_path: Path) -> None:
    model = models.lstm(tmp_path / "m.onnx").path
    with command(str(model), "--trust", "--bind", f"ipc://{tmp_path}/d.sock") as process:
        ready(process)
        process.send_signal(signal.SIGHUP)
        assert process.stderr
        assert "a model has no settings" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
