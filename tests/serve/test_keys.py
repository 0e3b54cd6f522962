"""Key files: made, read back, and refused if a secret or the list of users is not safe."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from runnel.cli.main import main
from runnel.errors import UsageError
from runnel.wire import keys
from runnel.wire.keys import Secret, client_keys, key_bytes, read_public, read_secret, read_users, write

ALICE, BOB = (z85.encode(bytes([n]) * 32).decode() for n in (7, 9))
TOMLISH = st.text(st.sampled_from("secret = [\"]'\n.#" + ALICE[:3]), max_size=80)


def test_a_key_is_decoded_as_libzmq_decodes_it() -> None:
    """The oracles: libzmq, which checks a key when it is set, and pyzmq's Z85."""
    for _ in range(20):
        public, _ = zmq.curve_keypair()
        assert key_bytes(public.decode()) == z85.decode(public)


@given(st.text(st.sampled_from(keys._Z85), min_size=40, max_size=40))
def test_a_key_that_libzmq_refuses_is_refused(text: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        try:
            socket.curve_serverkey = text.encode()
            taken = True
        except zmq.ZMQError:
            taken = False
    try:
        key_bytes(text)
        assert taken
    except ValueError:
        assert not taken


@pytest.mark.parametrize("text", ["", ALICE[:-1], ALICE + "0", "\u00e4" * 40, '"' * 40, None, 7, ["x"]])
def test_the_error_of_an_invalid_key_does_not_contain_it(text: object) -> None:
    with pytest.raises(ValueError, match="40 characters of Z85"):
        key_bytes(text)


@pytest.mark.parametrize("name", ["a", "Müller & Söhne", 'a "quoted\\ name', "x" * 64, "[table]", "a.b = 1"])
def test_files_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    private, public = write(tmp_path, name, ALICE, Secret(BOB, ALICE))
    assert read_secret(private) == Secret(BOB, ALICE)
    assert read_public(public) == ALICE
    assert read_users(public) == read_users(tmp_path) == {b"\7" * 32: name}
    assert private.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65, "a\nb", "\0", "\u202e"])
def test_an_invalid_user_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 to 64 printable characters"):
        write(tmp_path, name, ALICE, Secret(BOB))
    assert not list(tmp_path.iterdir())


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path, "a", ALICE, Secret(BOB))
    with pytest.raises(UsageError, match=r"a\.key is there already"):
        write(tmp_path, "a", BOB, Secret(ALICE))
    assert read_secret(tmp_path / "a.key").secret == BOB


def test_a_secret_is_in_no_repr() -> None:
    assert BOB not in repr(Secret(BOB, ALICE))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_a_secret_that_others_could_read_is_refused(mode: int, tmp_path: Path) -> None:
    private, _ = write(tmp_path, "a", ALICE, Secret(BOB))
    private.chmod(mode)
    with pytest.raises(UsageError, match=rf"mode {mode:04o}.*chmod 600"):
        read_secret(private)


def test_a_list_that_others_could_write_is_refused(tmp_path: Path) -> None:
    _, public = write(tmp_path, "a", ALICE, Secret(BOB))
    public.chmod(0o646)
    with pytest.raises(UsageError, match="let themselves in"):
        read_users(public)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no `secret`"),
        (f'secert = "{BOB}"', "did you mean 'secret'"),
        (f'alice = "{ALICE}"', "not the .pub?"),
        (f'secret = "{BOB[:-1]}"', "secret: a key is 40 characters"),
        ("secret = 7", "secret: a key is 40 characters"),
        (f'secret = "{BOB}"\nserver = "x"', "server: a key is 40 characters"),
        (f"secret = {BOB}", "not TOML"),
        ("\0", "not TOML"),
        ("a = " + "[" * 100_000, "not TOML"),
        ("# " + "x" * keys.MAX_FILE, "at most 1048576"),
    ],
)
def test_a_bad_secret_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read_secret(path)
    assert str(path) in caught.value.message
    assert BOB[:-1] not in caught.value.message


@given(st.binary(max_size=100) | TOMLISH.map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a"
    path.write_bytes(data)
    path.chmod(0o600)
    for read in (read_secret, read_users, read_public):
        with suppress(UsageError):
            read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a = "x"', "'a': a key is 40 characters"),
        (f'"a/b" = "{ALICE}"', "without '/'"),
        (f'[users]\na = "{ALICE}"', "'users': a key is 40 characters"),
        (f'a = "{ALICE}"\nb = "{ALICE}"', "'b' has the same key as 'a'"),
    ],
)
def test_a_bad_list_of_users(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_users(path)


def test_a_user_may_hold_several_keys_and_the_list_may_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_text(f'a = ["{ALICE}", "{BOB}"]')
    (tmp_path / "a.key").write_text("not read")
    assert read_users(tmp_path) == {b"\7" * 32: "a", b"\t" * 32: "a"}
    with pytest.raises(UsageError, match="expected one line"):
        read_public(tmp_path / "a.pub")


def test_the_list_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_USERS", 1)
    (tmp_path / "users.toml").write_text(f'a = "{ALICE}"\nb = "{BOB}"')
    with pytest.raises(UsageError, match="more than 1 keys"):
        read_users(tmp_path / "users.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (read_secret, read_users, read_public):
        with pytest.raises(UsageError, match="No such file"):
            read(tmp_path / "none")


def test_the_command_makes_a_matching_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)  # the command itself sets the mode
    try:
        assert main(["keys", "new", "daemon", "--folder", str(tmp_path)]) == 0
    finally:
        os.umask(before)
    assert main(["keys", "new", "mic", "--folder", str(tmp_path), "--server", f"{tmp_path}/daemon.pub"]) == 0
    told = capsys.readouterr().out
    assert (tmp_path / "daemon.key").stat().st_mode & 0o777 == 0o600
    daemon, mic = (read_secret(tmp_path / f"{name}.key") for name in ("daemon", "mic"))
    assert (
        zmq.curve_public(daemon.secret.encode()).decode()
        == read_public(tmp_path / "daemon.pub")
        == mic.server
    )
    assert zmq.curve_public(mic.secret.encode()).decode() == read_public(tmp_path / "mic.pub")
    assert "--keys" in told
    assert daemon.secret not in told
    assert main(["keys", "new", "mic", "--folder", str(tmp_path)]) == 2


@pytest.mark.parametrize("there", [True, False])
def test_the_public_half_is_refused_as_a_secret(tmp_path: Path, there: bool) -> None:
    private, public = write(tmp_path, "mic", ALICE, Secret(BOB, ALICE))
    if not there:
        private.unlink()
    with pytest.raises(
        UsageError, match=r"mic\.pub: that is the public half.* give the secret one, .*mic\.key"
    ) as told:
        client_keys(public)
    assert ("stands beside it" in str(told.value)) == there
