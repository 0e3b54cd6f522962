"""`runnel check` says what `serve` would say, and serves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runnel.cli.main import main
from runnel.daemon.loop import Daemon
from runnel.daemon.settings import make
from tests.serve.conftest import daemon, engine  # noqa: F401 - fixtures
from tests.serve.site import Site
from tests.serve.support import model_pipeline


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/live.sock"


def found(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["check", *words, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_what_would_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").mkdir()
    site = Site(tmp_path / "keys")
    site.user("alice")
    site.user("bob")
    pipeline = model_pipeline(tmp_path)
    with pipeline.open("a") as file:
        file.write(
            "[serve]\nbind = 7070\nworkers = 3\nmax_streams = 10\nmetrics = 9464\nidle_seconds = 5\n"
            'keys = "keys/daemon.key"\nauthorised = "keys/users"\nmetrics_keys = "keys/users/alice.key"\n'
        )
    told = found(capsys, str(pipeline))
    assert told["bind"] == [f"tcp://127.0.0.1:{7070 + worker}" for worker in range(3)]
    assert told["users"] == ["alice", "bob"]
    assert told["metrics"] == "http://127.0.0.1:9464"
    assert told["memory"] == {"state_bytes": 8, "max_streams_bytes": 2 * 8 * 10 * 3}
    assert told["limits"]["idle_seconds"] == 5
    assert told["warnings"] == []
    assert main(["check", str(pipeline)]) == 0
    text = capsys.readouterr().out
    assert "2: alice, bob" in text
    assert "tcp://127.0.0.1:7072" in text


def test_what_is_odd_and_no_error(
    tmp_path: Path,
    daemon: Daemon,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline = str(model_pipeline(tmp_path))
    [warning] = found(capsys, pipeline)["warnings"]
    assert "no address" in warning
    live, spread, many = found(
        capsys, pipeline, "--bind", daemon.address, "--metrics", "0.0.0.0:9464", "--max-streams", "1000000"
    )["warnings"]
    assert "a daemon is serving there now" in live
    assert "open files" in spread
    assert "readable by whoever" in many


@pytest.mark.parametrize(
    "words",
    [
        ["--bind", "nowhere"],
        ["--bind", "tcp://0.0.0.0:7070"],
        ["--bind", "tcp://127.0.0.1:65535", "--workers", "2"],
        ["--bind", "7070", "--metrics", "example.org:1"],
        ["--bind", "7070", "--max-streams", "0"],
        ["--bind", "7070", "--keys", "none.key", "--authorised", "none"],
        ["--bind", "7070", "--keys", "none.key"],
        ["--bind", "7070", "--provider", "Magic"],
        ["--bind", "ipc:///dev/null"],
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_told_in_the_words_of_serve(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = str(model_pipeline(tmp_path))
    assert main(["check", pipeline, *words]) == 2
    checked = capsys.readouterr().err
    assert main(["serve", pipeline, *words]) == 2
    served = capsys.readouterr().err
    assert checked in served, "serve logs as well"
    assert len(checked.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ['[model]\npath = "none.onnx"\n', "[serve]\nbind = 7\nbnid = 8\n", "[model\n"]
)
def test_a_pipeline_that_is_wrong(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").write_text(text)
    assert main(["check", str(tmp_path / "p.toml")]) == 2
    checked = capsys.readouterr().err
    assert main(["serve", str(tmp_path / "p.toml"), "--bind", "7070"]) == 2
    assert checked in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "bind", "metrics"),
    [
        ({"bind": 7070, "metrics": 9464}, "tcp://127.0.0.1:7070", "9464"),
        ({"bind": "7070", "metrics": "9464"}, "tcp://127.0.0.1:7070", "9464"),
        ({"bind": "tcp://127.0.0.1:1"}, "tcp://127.0.0.1:1", ""),
    ],
)
def test_a_port_may_be_a_number(table: dict[str, Any], bind: str, metrics: str) -> None:
    settings = make(table, {}, "p.toml")
    assert (settings.bind, settings.metrics) == (bind, metrics)


@pytest.mark.parametrize("value", [-1, 65536, True, 1.5, []])
@pytest.mark.parametrize("name", ["bind", "metrics"])
def test_what_is_no_port(name: str, value: object) -> None:
    from runnel.errors import UsageError

    with pytest.raises(UsageError, match=name):
        make({name: value}, {}, "p.toml")
