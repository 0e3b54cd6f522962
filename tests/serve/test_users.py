"""A daemon with keys, over real TCP sockets: users are isolated, and strangers get nothing."""

from __future__ import annotations

import http.client
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from runnel.cli.main import main
from runnel.client.monitor import Watcher
from runnel.daemon import loop as daemon_module
from runnel.daemon.loop import Daemon
from runnel.daemon.metrics import http as metrics
from runnel.errors import UsageError
from runnel.wire import messages
from runnel.wire.curve import connect_as, new_pair
from runnel.wire.keys import Secret

from . import raw
from .peers import ask, dealer, feed, knock, reply_of
from .processes import command, ready
from .site import Site, guarded, here
from .support import SpyEngine, code, model_pipeline


@contextmanager
def peer(address: str, keys: Secret, id: bytes = b"") -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context.instance().socket(zmq.DEALER) as sock:
        sock.linger = 0
        if id:
            sock.routing_id = id
        connect_as(sock, keys)
        sock.connect(address)
        yield sock


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def alice(site: Site) -> Secret:
    return site.user("alice")


@pytest.fixture
def bob(site: Site) -> Secret:
    return site.user("bob")


@pytest.fixture
def daemon(site: Site, engine: SpyEngine, alice: Secret, bob: Secret) -> Iterator[Daemon]:
    """A daemon that other machines can reach."""
    with guarded(engine, site) as daemon:
        yield daemon


@pytest.fixture
def address(daemon: Daemon) -> str:
    return here(daemon)


def test_streams_of_one_name_and_two_users_never_meet(
    address: str, engine: SpyEngine, alice: Secret, bob: Secret
) -> None:
    with peer(address, alice) as a, peer(address, bob) as b:
        assert code(ask(a, "open", "mic")) == "ok"
        assert code(ask(b, "feed", "mic")) == "UNKNOWN_STREAM"
        assert code(ask(b, "resume", "mic")) == "UNKNOWN_STREAM"
        assert code(ask(b, "snapshot", "mic")) == "UNKNOWN_STREAM"
        assert code(ask(b, "close", "mic")) == "UNKNOWN_STREAM"
        assert code(ask(b, "open", "alice/mic")) == "ok"  # nor by the engine's name of the stream
        assert code(ask(b, "open", "mic")) == "ok"
        a.send_multipart(feed("mic", 1, 2))
        reply = reply_of(a)
        assert (reply.sequence_id, reply.applied_seq) == ("mic", 1)
        b.send_multipart(feed("mic", 10))
        assert code(reply_of(b)) == "ok"
        assert sorted(engine.streams) == ["alice/mic", "bob/alice/mic", "bob/mic"]
        assert engine.streams["alice/mic"].state["tally.sum"].tolist() == [3, 3]
        assert engine.streams["bob/mic"].state["tally.sum"].tolist() == [10, 10]


def test_a_user_cannot_take_all_streams(address: str, engine: SpyEngine, alice: Secret, bob: Secret) -> None:
    with peer(address, alice) as a, peer(address, bob) as b:
        told = ask(b, "hello").server
        assert told is not None
        part = told.limits.user_streams
        assert part == engine.max_streams // 4 // 2
        said = [code(ask(a, "open", f"mic-{i}")) for i in range(engine.max_streams)]
        assert said == ["ok"] * (engine.max_streams - part) + ["LIMIT"] * part
        assert [code(ask(b, "open", f"mic-{i}")) for i in range(part)] == ["ok"] * part


def test_two_connections_of_a_user_share_its_streams(address: str, alice: Secret) -> None:
    with peer(address, alice) as one:
        assert code(ask(one, "open", "mic")) == "ok"
    with peer(address, alice) as two:
        assert code(ask(two, "resume", "mic")) == "ok"


@pytest.mark.parametrize("who", ["no key", "unknown key", "wrong daemon"])
def test_a_stranger_gets_no_answer(address: str, daemon: Daemon, alice: Secret, site: Site, who: str) -> None:
    public, secret = new_pair()
    stranger = {
        "no key": lambda: dealer(address),
        "unknown key": lambda: peer(address, Secret(secret, site.public)),
        "wrong daemon": lambda: peer(address, Secret(alice.secret, public)),
    }[who]
    with stranger() as sock, peer(address, alice) as good:
        knock(sock, feed("mic", 1, sequence_start=True))
        assert not sock.poll(500)
        assert code(ask(good, "hello")) == "ok"
    assert daemon.stats.requests.total() == 1


def test_a_removed_key_is_refused_at_once_and_can_be_added_again(
    address: str, daemon: Daemon, site: Site, alice: Secret, bob: Secret
) -> None:
    with peer(address, alice) as a, peer(address, bob) as b:
        assert code(ask(a, "open", "mic")) == "ok"
        line = (site.users / "alice.pub").read_text()
        (site.users / "alice.pub").unlink()
        daemon.reload()
        reply = until(a, "NO_ACCESS")
        assert reply.error
        assert "list of users" in reply.error.message
        assert code(ask(b, "hello")) == "ok"
        (site.users / "alice.pub").write_text(line)
        daemon.reload()
        until(a, "ok")
        assert code(ask(a, "flush", "mic")) == "ok"  # the stream was open all the time


def until(sock: zmq.Socket[bytes], wanted: str) -> messages.Reply:
    """Ask until the daemon has read its list."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        reply = ask(sock, "hello")
        if code(reply) == wanted:
            return reply
    raise AssertionError(f"never {wanted}")


def test_a_chosen_routing_id_is_refused_with_the_reason(address: str, alice: Secret) -> None:
    with peer(address, alice, b"me") as sock:
        reply = ask(sock, "hello")
    assert code(reply) == "NO_ACCESS"
    assert reply.error
    assert "routing id" in reply.error.message


def test_without_keys_nothing_beyond_this_machine_is_served(engine: SpyEngine) -> None:
    with pytest.raises(UsageError, match="without keys anyone could use it"):
        Daemon(engine, "tcp://0.0.0.0:*")


def test_keys_apply_to_a_socket_file_too(
    site: Site, engine: SpyEngine, alice: Secret, tmp_path: Path
) -> None:
    with (
        guarded(engine, site, f"ipc://{tmp_path}/d.sock") as daemon,
        dealer(daemon.address) as plain,
        peer(daemon.address, alice) as sock,
    ):
        knock(plain, feed("a", 1, sequence_start=True))
        sock.send_multipart(feed("a", 5, sequence_start=True))
        assert code(reply_of(sock)) == "ok"
        assert not plain.poll(200)
        assert list(engine.streams) == ["alice/a"]


@pytest.mark.parametrize(
    "sent",
    [
        raw.greeting(),
        raw.greeting() + raw.ready() + raw.message(b"hello"),
        raw.greeting(b"PLAIN") + raw.frame(b"\x05HELLO\x05alice\x00", raw.COMMAND),
        raw.greeting(b"CURVE"),
        raw.greeting(b"CURVE") + raw.frame(b"\x05HELLO\x01\x00" + bytes(192), raw.COMMAND),
        raw.greeting(b"CURVE") + raw.frame(b"\x08INITIATE" + bytes(300), raw.COMMAND),
        raw.greeting(b"CURVE") + raw.frame(b"\x07MESSAGE" + bytes(100), raw.COMMAND),
        raw.greeting(b"CURVE") + raw.message(b"hello"),
    ],
    ids=[
        "silence",
        "NULL",
        "PLAIN",
        "half",
        "a false HELLO",
        "INITIATE first",
        "MESSAGE first",
        "no command",
    ],
)
def test_an_invalid_handshake_is_ended(
    site: Site, alice: Secret, tmp_path: Path, engine: SpyEngine, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(daemon_module, "HANDSHAKE_MS", 300)
    with (
        guarded(engine, site, f"ipc://{tmp_path}/d.sock") as daemon,
        raw.connected(daemon.address) as false,
        peer(daemon.address, alice) as sock,
    ):
        raw.tell(false, sent)
        assert code(ask(sock, "hello")) == "ok"
        assert b"boot_id" not in raw.rest(false), "the daemon ends it, at the latest when its time is over"
        assert code(ask(sock, "hello")) == "ok"


# The command


@pytest.mark.parametrize("workers", [1, 2])
def test_a_daemon_with_keys_by_its_settings(site: Site, tmp_path: Path, workers: int) -> None:
    alice = site.user("alice")
    pipeline = model_pipeline(tmp_path)
    with pipeline.open("a") as file:
        file.write(f'[serve]\nkeys = "daemon.key"\nauthorised = "users"\nworkers = {workers}\n')
    with command(str(pipeline), "--bind", "tcp://0.0.0.0:*") as process:
        address = ready(process, workers).replace("0.0.0.0", "127.0.0.1")
        with dealer(address) as plain, peer(address, alice) as sock:
            assert code(ask(sock, "hello")) == "ok"
            knock(plain, feed("mic", 1, sequence_start=True))
            assert not plain.poll(300)
            (site.users / "alice.pub").unlink()
            process.send_signal(signal.SIGHUP)
            until(sock, "NO_ACCESS")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keys", "daemon.key"], "keys and authorised go together"),
        (
            ["--keys", "none.key", "--authorised", "users"],
            "none.key: cannot read a file of keys: No such file",
        ),
        (["--keys", "daemon.pub", "--authorised", "users"], "that is the public half of the pair"),
        ([], "without keys anyone could use it"),
    ],
)
def test_keys_that_cannot_be_used(site: Site, tmp_path: Path, words: list[str], message: str) -> None:
    words = [str(site.folder / word) if "." in word or word == "users" else word for word in words]
    with command(str(model_pipeline(tmp_path)), "--bind", "tcp://0.0.0.0:*", *words) as process:
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 2
    assert message in stderr
    assert "Traceback" not in stderr


def test_a_monitor_is_a_user_too(
    site: Site, daemon: Daemon, alice: Secret, capsys: pytest.CaptureFixture[str]
) -> None:
    address = daemon.address.replace("0.0.0.0", "127.0.0.1")
    with Watcher([address], 10, alice) as watcher:
        (seen,) = watcher.look()
    assert seen.ready
    assert seen.address == address, "and not the one that the daemon is bound to"
    with Watcher([address], 0.5) as stranger:
        assert not stranger.look()[0].alive
    (site.folder / "alice.key").write_text(f'secret = "{alice.secret}"\nserver = "{alice.server}"\n')
    (site.folder / "alice.key").chmod(0o600)
    assert main(["inspect", address, "--keys", str(site.folder / "alice.key")]) == 0
    assert (
        main(["top", address, "--once", "--interval", "0.1", "--keys", str(site.folder / "alice.key")]) == 0
    )
    assert address in capsys.readouterr().out


def test_pages_of_a_daemon_with_keys_ask_as_a_user(site: Site, daemon: Daemon, alice: Secret) -> None:
    with metrics.serve("127.0.0.1:0", [daemon.address.replace("0.0.0.0", "127.0.0.1")], alice) as address:
        host, _, port = address.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()
