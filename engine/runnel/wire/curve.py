"""CURVE keys, and authentication of a client's socket."""

from __future__ import annotations

import zmq

from .keys import Secret


def new_pair() -> tuple[str, str]:
    """Make a new public and secret key."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def connect_as(socket: zmq.Socket[bytes], keys: Secret) -> None:
    """Set the keys of a client's socket; it will talk only to the holder of `keys.server`."""
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = zmq.curve_public(keys.secret.encode())
    socket.curve_serverkey = keys.server.encode()
