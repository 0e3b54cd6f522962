"""Both clients and `runnel feed` with keys: admitted, or given the reason why not."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runnel
from runnel.cli.main import main
from runnel.client.client import Client
from runnel.daemon.loop import Daemon
from runnel.errors import AccessError, TimeoutError, UsageError

from .processes import command, ready
from .site import Site, guarded, here
from .support import SpyEngine, model_pipeline, rows


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    for name in ("alice", "bob"):
        site.user(name)
    return site


@pytest.fixture
def daemon(engine: SpyEngine, site: Site) -> Iterator[Daemon]:
    with guarded(engine, site) as daemon:
        yield daemon


def test_two_users_and_one_name(daemon: Daemon, site: Site) -> None:
    with (
        Client(here(daemon), 20, keys=site.key_file("alice")) as alice,
        Client(here(daemon), 20, keys=site.key_file("bob")) as bob,
    ):
        one, two = alice.open("mic"), bob.open("mic")
        one.feed(rows(1, 2))
        two.feed(rows(10))
        assert (one.flush().tolist(), two.flush().tolist()) == ([[3, 3]], [[10, 10]])


def test_asyncio(daemon: Daemon, site: Site) -> None:
    async def talk() -> list[list[float]]:
        async with runnel.AsyncClient(here(daemon), 20, keys=site.key_file("alice")) as client:
            stream = await client.open("mic")
            await stream.feed(rows(1, 2))
            rest = await stream.flush()
            return list(rest.tolist())

    assert asyncio.run(talk()) == [[3, 3]]


@pytest.mark.parametrize("who", ["no key", "unknown key", "wrong daemon"])
def test_a_client_that_is_not_admitted_gets_a_hint(
    daemon: Daemon, site: Site, tmp_path: Path, who: str
) -> None:
    (tmp_path / "else").mkdir()
    elsewhere = Site(tmp_path / "else")
    elsewhere.user("carol")
    carol = elsewhere.key_file("carol").read_text()
    if who == "unknown key":
        elsewhere.key_file("carol").write_text(carol.replace(elsewhere.public, site.public))
    keys = None if who == "no key" else elsewhere.key_file("carol")
    with (
        Client(here(daemon), 0.5, keys=keys) as client,
        pytest.raises(TimeoutError, match="answers those on its list alone"),
    ):
        client.open("mic")


def test_a_client_that_is_authorised_later_gets_in(daemon: Daemon, site: Site) -> None:
    listed = site.users / "alice.pub"
    text = listed.read_text()
    with Client(here(daemon), 1, keys=site.key_file("alice")) as alice:
        with Client(here(daemon), 20, keys=site.key_file("bob")) as bob:
            listed.unlink()
            daemon.reload()
            while len(daemon._authenticator._users) > 1:  # type: ignore[union-attr]
                bob.stats()
            with pytest.raises(TimeoutError):
                alice.open("mic")
            listed.write_text(text)
            daemon.reload()
            while len(daemon._authenticator._users) < 2:  # type: ignore[union-attr]
                bob.stats()
        alice.timeout = 20
        assert alice.open("mic").feed(rows(1)).tolist() == []


def test_a_client_whose_key_is_removed_gets_an_error(daemon: Daemon, site: Site) -> None:
    with Client(here(daemon), 20, keys=site.key_file("alice")) as alice:
        stream = alice.open("mic")
        (site.users / "alice.pub").unlink()
        daemon.reload()
        with pytest.raises(AccessError, match="list of users"):
            list(stream.feed_all(rows(1) for _ in range(100_000)))  # until the daemon has read its list


def test_invalid_keys(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"daemon\.key: no `server` in it"):
        Client("tcp://example.org:1", keys=tmp_path / "daemon.key")
    with pytest.raises(UsageError, match="without keys anyone could use it"):
        Client("tcp://example.org:1")


def test_feed_with_workers_beyond_loopback(site: Site, tmp_path: Path) -> None:
    """HELLO names 0.0.0.0 for each worker: a client uses the host at which it found the first."""
    pipeline = model_pipeline(tmp_path)
    with pipeline.open("a") as file:
        file.write('[serve]\nkeys = "daemon.key"\nauthorised = "users"\nworkers = 2\n')
    source, out = tmp_path / "in.npy", tmp_path / "out.npy"
    np.save(source, rows(1, 2, 3))
    with command(str(pipeline), "--bind", "tcp://0.0.0.0:*") as process:
        address = ready(process, 2).replace("0.0.0.0", "127.0.0.1")
        for name in ("a", "b", "c", "d"):  # at both workers
            words = ["feed", address, str(source), "-o", str(out), "--id", name, "--quiet"]
            assert main([*words, "--keys", str(site.key_file("alice")), "--timeout", "20"]) == 0
            assert np.load(out).tolist() == [[1, 1], [3, 3], [6, 6]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_load_on_a_daemon_that_has_keys(
    daemon: Daemon, site: Site, engine: SpyEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", here(daemon), "--streams", "2", "--chunk", "10", "--seconds", "0.5", "--warm-up", "0"]
    assert main([*words, "--json", "--timeout", "20", "--keys", str(site.key_file("alice"))]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["due"] == found["answered"] == 10
    assert not engine.streams
