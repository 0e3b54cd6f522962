"""Where a daemon is met: ``ipc:///path`` or ``tcp://host:port``, checked before any socket sees it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ..errors import UsageError

MAX_PATH: Final = 107  # bytes: what a Unix socket's address holds on Linux
_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/]+):(?P<port>\*|[0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address; `path` is that of an ipc address's socket file."""

    text: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.text


def parse(text: str, keyed: bool = False) -> Address:
    """The address, checked. Raises UsageError, saying what an address looks like.

    `keyed`: whether both ends prove who they are; only then may it lead to other machines.
    """
    if text.startswith("ipc://"):
        return Address(text, _path(text.removeprefix("ipc://"), text))
    match = _TCP.match(text)
    if match is None:
        raise UsageError(
            f"address {text!r}: expected ipc:///path/to.sock, or tcp://127.0.0.1:port; with keys, tcp://host:port"
        )
    if match["port"] != "*" and int(match["port"]) > 65535:
        raise UsageError(f"address {text!r}: a port is at most 65535")
    if not keyed and not _is_loopback(match["host"].strip("[]")):
        raise UsageError(
            f"address {text!r} is reachable from other machines, and without keys anyone could use it: make "
            "keys (runnel keys --help), or use tcp://127.0.0.1:port or an ipc address"
        )
    return Address(text)


def beside(address: str, home: str) -> str:
    """Where a client reaches a worker bound to `address`, when it reaches another of the daemon's at `home`.

    They are on one machine, and in one folder where they are files. Its name for the client need not be the
    one that they are bound to: 0.0.0.0, say, or what a container calls itself; a relative path, or where the
    folder is mounted.
    """
    here, there = _TCP.match(address), _TCP.match(home)
    if here and there:
        return f"tcp://{there['host']}:{here['port']}"
    if address.startswith("ipc://") and home.startswith("ipc://"):
        folder = os.path.dirname(home.removeprefix("ipc://"))
        return f"ipc://{os.path.join(folder, os.path.basename(address.removeprefix('ipc://')))}"
    return address


def _path(path: str, text: str) -> Path:
    if not path or path.startswith("@"):
        # An abstract socket has no file, so no permissions: anyone on the machine could connect.
        raise UsageError(f"address {text!r}: expected the path of a socket file, as ipc:///run/runnel.sock")
    if "\0" in path or len(os.fsencode(path)) > MAX_PATH:
        raise UsageError(
            f"address {text!r}: the path of a socket has at most {MAX_PATH} bytes, none of them 0"
        )
    return Path(path)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name or a network interface: where it leads is not for us to know
