"""CURVE keys, and a client's socket that proves who it is."""

from __future__ import annotations

import zmq

from .keys import Secret


def new_pair() -> tuple[str, str]:
    """A new public and secret key."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def connect_as(socket: zmq.Socket[bytes], keys: Secret) -> None:
    """Let a client's socket prove who it is, and talk to the holder of `keys.server` alone."""
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = zmq.curve_public(keys.secret.encode())
    socket.curve_serverkey = keys.server.encode()
