"""Addresses of daemons, ``ipc:///path`` or ``tcp://host:port``, checked before use."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ..errors import UsageError

MAX_PATH: Final = 107  # bytes: the limit of a Unix socket's address on Linux
_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/]+):(?P<port>\*|[0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address; `path` is the socket file of an ipc address."""

    text: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.text


def parse(text: str, keyed: bool = False) -> Address:
    """Check an address. Raises UsageError, with the expected form.

    `keyed`: whether both ends prove who they are; only then may the address lead to other machines.
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
    """Where a client finds a worker bound to `address`, given that it reached a sibling at `home`.

    All workers are on one machine, and their socket files in one folder. But the client may see that machine
    or folder under another name than the daemon: instead of 0.0.0.0, from outside a container, from another
    working directory, or through a mount.
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
        # An abstract socket has no file and so no permissions: every user of the machine could connect.
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
        return False  # the name of a host or a network interface: it may lead anywhere
