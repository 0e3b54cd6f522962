"""CURVE with real sockets: who is admitted, who sent a message, and that a dead handler admits no client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from runnel.daemon.authenticator import Authenticator
from runnel.daemon.zap import DOMAIN, admit
from runnel.errors import AccessError, UsageError
from runnel.wire.curve import connect_as, new_pair
from runnel.wire.keys import Secret, client_keys, write

from .peers import knock

KEY = b"\7" * 32


def request(**changed: bytes) -> list[bytes]:
    frames = {
        "version": b"1.0", "id": b"42", "domain": DOMAIN, "address": b"127.0.0.1", "routing_id": b"",
        "mechanism": b"CURVE", "key": KEY,
    }  # fmt: skip
    return list((frames | changed).values())


def test_an_authorised_key_is_admitted_as_itself() -> None:
    assert admit(request(), {KEY}) == [b"1.0", b"42", b"200", b"OK", KEY.hex().encode(), b""]


@pytest.mark.parametrize(
    "frames",
    [
        request(key=b"\t" * 32),
        request(version=b"2.0"),
        request(domain=b""),
        request(domain=b"other"),
        request(mechanism=b"NULL"),
        request(mechanism=b"PLAIN"),
        request()[:-1],
        [*request(), KEY],
        [],
        [b""],
    ],
)
def test_everything_else_is_refused(frames: list[bytes]) -> None:
    version, id, status, *_, user, metadata = admit(frames, {KEY})
    assert (version, status, user, metadata) == (b"1.0", b"300", b"", b"")
    assert id == b"".join(frames[1:2])


class House:
    """A ROUTER with an authenticator and its users' keys, in the test's own thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "users").mkdir()
        self.daemon = self.make("daemon", folder)
        self.alice, self.bob = self.make("alice"), self.make("bob")
        self.authenticator = Authenticator(folder / "daemon.key", folder / "users")
        self.answering = True

    def make(self, name: str, folder: Path | None = None) -> Secret:
        public, secret = new_pair()
        write(folder or self.folder / "users", name, public, Secret(secret))
        return Secret(secret, public if folder else self.daemon.server)

    @contextmanager
    def dealer(self, address: str, keys: Secret | None, id: bytes = b"") -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            if id:
                socket.routing_id = id
            if keys:
                connect_as(socket, keys)
            socket.connect(address)
            yield socket

    def turn(self, router: zmq.Socket[bytes]) -> list[tuple[bytes, str]]:
        """The senders and texts of the messages in one turn of a daemon's loop."""
        if self.answering:
            self.authenticator.answer()
        heard = []
        if router.poll(10):
            peer, body = router.recv_multipart(copy=False)
            heard.append((body.bytes, self.authenticator.user(peer.bytes, body)))
            router.send_multipart([peer.bytes, b"yes"])
        return heard


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture(params=["tcp://127.0.0.1:*", "ipc"])
def router(house: House, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        with house.authenticator.at(context, router):
            router.bind(f"ipc://{tmp_path}/r.sock" if request.param == "ipc" else request.param)
            yield router


def address(router: zmq.Socket[bytes]) -> str:
    return router.last_endpoint.decode()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


def test_each_message_says_whose_it_is(house: House, router: zmq.Socket[bytes]) -> None:
    where, heard = address(router), set[tuple[bytes, str]]()
    with house.dealer(where, house.alice) as alice, house.dealer(where, house.bob) as bob:
        alice.send(b"a")
        bob.send(b"b")
        until(lambda: heard.update(house.turn(router)) or len(heard) == 2)
    assert heard == {(b"a", "alice"), (b"b", "bob")}


@pytest.mark.parametrize("stranger", ["no key", "unknown key", "wrong daemon"])
def test_a_stranger_gets_no_message_through(house: House, router: zmq.Socket[bytes], stranger: str) -> None:
    public, secret = new_pair()
    keys = {
        "no key": None,
        "unknown key": Secret(secret, house.daemon.server),
        "wrong daemon": Secret(house.alice.secret, public),  # an impostor would have another key
    }[stranger]
    where = address(router)
    with house.dealer(where, keys) as outside, house.dealer(where, house.alice) as alice:
        knock(outside, [b"let me in"])
        for _ in range(50):
            assert not house.turn(router)
        alice.send(b"a")
        until(lambda: house.turn(router) == [(b"a", "alice")])


def test_without_a_handler_no_client_is_admitted(house: House, router: zmq.Socket[bytes]) -> None:
    """CURVE alone would admit everyone (seen with libzmq 4.3), so the domain is enforced."""
    house.answering = False
    where = address(router)
    with house.dealer(where, house.alice) as alice:
        alice.send(b"a")
        for _ in range(50):
            assert not house.turn(router)
    house.authenticator.socket.close()  # not even a handler to be asked
    with house.dealer(where, house.alice) as alice:
        alice.send(b"a")
        for _ in range(50):
            assert not house.turn(router)


def test_a_removed_key_is_refused_at_its_next_message(house: House, router: zmq.Socket[bytes]) -> None:
    where = address(router)
    with house.dealer(where, house.alice) as alice, house.dealer(where, house.bob) as bob:
        for socket in (alice, bob):
            socket.send(b"1")
            until(lambda: house.turn(router))
        (house.folder / "users" / "alice.pub").unlink()
        house.authenticator.reload()
        alice.send(b"2")
        with pytest.raises(AccessError, match="no longer"):
            until(lambda: house.turn(router))
        bob.send(b"2")
        until(lambda: house.turn(router) == [(b"2", "bob")])
    with house.dealer(where, house.alice) as again:
        again.send(b"3")
        for _ in range(50):
            assert not house.turn(router)


def test_an_unreadable_list_changes_nothing(
    house: House, router: zmq.Socket[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (house.folder / "users" / "alice.pub").write_text("alice = ")
    house.authenticator.reload()
    assert "the users stay as they were" in caplog.text
    assert "not TOML" in caplog.records[-1].fields["error"]  # type: ignore[attr-defined]
    with house.dealer(address(router), house.alice) as alice:
        alice.send(b"a")
        until(lambda: house.turn(router) == [(b"a", "alice")])


def test_a_routing_id_that_another_could_take_over_is_refused(
    house: House, router: zmq.Socket[bytes]
) -> None:
    for id in (b"same", b"12345", b"\0abc"):
        with house.dealer(address(router), house.alice, id) as alice:
            alice.send(b"a")
            with pytest.raises(AccessError, match="routing id"):
                until(lambda: house.turn(router))


def test_a_message_without_a_user_is_refused(house: House) -> None:
    with pytest.raises(AccessError):
        house.authenticator.user(b"\0abcd", zmq.Frame(b"x"))


def test_a_clients_keys_name_the_daemon(house: House) -> None:
    with pytest.raises(UsageError, match=r"alice\.key: no `server`"):
        client_keys(house.folder / "users" / "alice.key")
