"""Key files: the keys of a daemon, of a client, and of a daemon's authorised users.

The file of a secret key is TOML that only its owner may read: `secret`, and for a client `server`, the public
key of its daemon. The file of a public key has one line, ``"name" = "key"``. The list of authorised users is
one file of many such lines, or a folder of such files, ``*.pub``. Keys are Curve25519 keys in ZeroMQ's Z85.

Rules of this file: no socket. For any content of a file, a function returns a valid result or raises a
UsageError that names the file. No message contains a secret.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .. import regular
from ..errors import UsageError, nearest
from ..loading.toml import parse_toml

MAX_FILE: Final = 2**20  # bytes: 10,000 users with long names
MAX_USERS: Final = 10_000  # keys in all: the list is in memory, and read whole at each reload
MAX_NAME: Final = 64  # characters of a user's name: it is part of the name of each of the user's streams
_Z85: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUE: Final = {letter: value for value, letter in enumerate(_Z85)}
_KEY_CHARACTERS: Final = 40  # of Z85: 32 bytes
_OTHERS_READ: Final = 0o077
_OTHERS_WRITE: Final = 0o002

Users = Mapping[bytes, str]
"""Public keys of 32 bytes, each with the name of its user. A user may hold several."""


@dataclass(frozen=True, slots=True)
class Secret:
    """The keys of one end of a connection. `server`: the other end's public key; empty for a daemon."""

    secret: str = field(repr=False)
    server: str = ""


def key_bytes(text: object) -> bytes:
    """Decode a key from Z85 to 32 bytes. Raises ValueError, whose text does not contain the key."""
    if not isinstance(text, str) or len(text) != _KEY_CHARACTERS or not set(text) <= _VALUE.keys():
        raise ValueError(f"a key is {_KEY_CHARACTERS} characters of Z85, in quotes")
    words = []
    for at in range(0, _KEY_CHARACTERS, 5):
        word = 0
        for letter in text[at : at + 5]:
            word = word * 85 + _VALUE[letter]
        if word >= 2**32:
            raise ValueError("a key whose characters are no Z85: is one of them mistyped?")
        words.append(word.to_bytes(4, "big"))
    return b"".join(words)


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is valid for a user."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or "/" in name:
        raise ValueError(
            f"a user's name is 1 to {MAX_NAME} printable characters without '/', not {name!r:.80}"
        )


def read_secret(path: Path) -> Secret:
    """Read a file made by `runnel keys new`. Raises UsageError, also if others may read the file."""
    _refuse_public(path)
    document = _read(path, _OTHERS_READ, "others can read this secret key: chmod 600 it, or make a new one")
    for name in document:
        if name not in ("secret", "server"):
            hint = nearest(name, ["secret", "server"])
            raise UsageError(f"{path}: unknown key {name!r:.80}{hint}; is it the .key file, not the .pub?")
    if "secret" not in document:
        raise UsageError(f"{path}: no `secret` in it: is it what `runnel keys new` made?")
    for name, text in document.items():
        try:
            key_bytes(text)
        except ValueError as error:
            raise UsageError(f"{path}: {name}: {error}") from None
    return Secret(**document)


def _refuse_public(path: Path) -> None:
    """Raise UsageError for the public half of a pair."""
    if path.suffix != ".pub":
        return
    secret = path.with_suffix(".key")
    there = ", which stands beside it" if secret.exists() else ""
    raise UsageError(f"{path}: that is the public half of the pair; give the secret one, {secret}{there}")


def client_keys(path: str | Path) -> Secret:
    """Read a client's key file. Raises UsageError, also if the daemon's key is missing."""
    keys = read_secret(Path(path))
    if not keys.server:
        raise UsageError(
            f'{path}: no `server` in it: add server = "KEY" with the key in the .pub file of the daemon'
        )
    return keys


def read_users(path: Path) -> Users:
    """Read the authorised users, from a file or a folder of ``*.pub`` files.

    A line is ``name = "key"``, or a name with a list of keys.

    Raises UsageError for any fault, and for a key that belongs to two names.
    """
    users: dict[bytes, str] = {}
    for file in _files(path):
        document = _read(
            file, _OTHERS_WRITE, "others can write this list, and so let themselves in: chmod o-w"
        )
        for name, held in document.items():
            for text in held if isinstance(held, list) else [held]:
                try:
                    check_name(name)
                    key = key_bytes(text)
                except ValueError as error:
                    raise UsageError(f"{file}: {name!r:.80}: {error}") from None
                if users.setdefault(key, name) != name:
                    raise UsageError(f"{file}: {name!r} has the same key as {users[key]!r}: who would it be?")
                if len(users) > MAX_USERS:
                    raise UsageError(f"{path}: more than {MAX_USERS} keys")
    return users


def read_public(path: Path) -> str:
    """Read the single key of a public key's file. Raises UsageError."""
    read_users(path)
    keys = list(_read(path, 0, "").values())
    if len(keys) != 1 or not isinstance(keys[0], str):
        raise UsageError(f'{path}: expected one line, "name" = "key", as in the .pub file of a daemon')
    return keys[0]


def write(folder: Path, name: str, public: str, secret: Secret) -> tuple[Path, Path]:
    """Write ``NAME.key``, for its owner only, and ``NAME.pub``; neither may exist. Return both paths."""
    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    lines = [
        f"# The secret key of {name}. It stays here; nobody else needs it.",
        f'secret = "{secret.secret}"',
    ]
    if secret.server:
        lines += ["# The daemon's public key: only who has its secret half is talked to.",
                  f'server = "{secret.server}"']  # fmt: skip
    # A JSON string of printable characters is a TOML string.
    public_line = f'{json.dumps(name, ensure_ascii=False)} = "{public}"'
    paths = folder / f"{name}.key", folder / f"{name}.pub"
    for path, text, mode in zip(paths, ("\n".join(lines), public_line), (0o600, 0o644), strict=True):
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
                file.write(f"{text}\n")
        except FileExistsError:
            raise UsageError(f"{path} is there already: whoever needs that key would lose it") from None
        except OSError as error:
            raise UsageError(f"cannot make {path}: {error.strerror}") from None
    return paths


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from sorted(path.glob("*.pub"))


def _read(path: Path, forbidden: int, why: str) -> dict[str, Any]:
    data, mode = regular.read_with_mode(path, MAX_FILE, "a file of keys", UsageError)
    if mode & forbidden:
        raise UsageError(f"{path} has mode {mode:04o}: {why}")
    try:
        return parse_toml(data.decode())
    except (ValueError, RecursionError):  # its text could repeat a line of a secret key's file
        raise UsageError(f'{path}: not TOML; expected lines such as name = "key"') from None
