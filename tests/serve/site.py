"""A folder of keys, and the daemon that uses them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from runnel.daemon.authenticator import Authenticator
from runnel.daemon.loop import Daemon
from runnel.engine import Engine
from runnel.wire.curve import new_pair
from runnel.wire.keys import Secret, write

from .peers import served


class Site:
    """Keys of a daemon in `folder` and of its users in `folder`/users, with their secrets beside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.users = folder / "users"
        self.users.mkdir()
        self.public, secret = new_pair()
        write(folder, "daemon", self.public, Secret(secret))

    def authenticator(self) -> Authenticator:
        return Authenticator(self.folder / "daemon.key", self.users)

    def user(self, name: str) -> Secret:
        public, secret = new_pair()
        write(self.users, name, public, Secret(secret, self.public))
        return Secret(secret, self.public)

    def key_file(self, name: str) -> Path:
        return self.users / f"{name}.key"


def guarded(engine: Engine, site: Site, address: str = "tcp://0.0.0.0:*") -> AbstractContextManager[Daemon]:
    return served(Daemon(engine, address, authenticator=site.authenticator()))


def here(daemon: Daemon) -> str:
    """Its address for a client on this machine."""
    return daemon.address.replace("0.0.0.0", "127.0.0.1")
