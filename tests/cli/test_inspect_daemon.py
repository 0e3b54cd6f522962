"""`runnel inspect ADDRESS`: what a daemon says of itself, as text and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runnel.cli.main import main
from tests.serve.peers import ask, dealer
from tests.serve.workers import workers


def test_a_daemon_is_shown_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workers(tmp_path) as (one, two), dealer(two.address) as sock:
        ask(sock, "open")
        assert main(["inspect", one.address]) == 0
        shown = {
            line.split(maxsplit=1)[0]: line for line in capsys.readouterr().out.splitlines() if line[0] != " "
        }
        assert main(["inspect", one.address, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        served = ask(sock, "hello").server
        assert served
        fingerprint = served.pipeline
    assert shown["inputs"].split() == ["inputs", "x", "FP32", "(time,", "2)"]
    assert shown["latency"].split()[1] == "1"
    assert shown["rate"].split(maxsplit=1)[1] == "100 Hz in, 100 Hz out"
    assert shown["pipeline"].split()[1] == fingerprint
    assert shown["stages"].split()[1] == "tally:"
    assert document["pipeline"] == fingerprint
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert document["limits"]["streams"] == 1024
    assert document["workers"] == [
        {"address": one.address, "boot_id": "first", "streams": 0, "error": None},
        {"address": two.address, "boot_id": "second", "streams": 1, "error": None},
    ]


def test_a_worker_that_is_silent_is_named_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with workers(tmp_path) as (one, two):
        two.turning.clear()
        assert main(["inspect", one.address, "--timeout", "3"]) == 0
        assert f"1  {two.address}  no answer from {two.address} within 3 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ipc://{}/none.sock", "--timeout", "0.1"], "is the daemon running there"),
        (["tcp://example.org:1"], "other machines"),
        (["tcp://127.0.0.1:9", "--timeout", "0"], "timeout"),
    ],
)
def test_what_cannot_be_asked_is_told_with_status_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_daemon_that_is_stopping_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workers(tmp_path, ("a",)) as (worker,):
        worker.server.stop()
        assert main(["inspect", worker.address]) == 2
        assert "is stopping" in capsys.readouterr().err
