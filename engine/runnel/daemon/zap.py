"""ZeroMQ's authentication protocol (ZAP, RFC 27), as a function of its frames.

Rules of this file: pure; everything but an authorised key is refused.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

DOMAIN: Final = b"runnel"  # must not be empty: without a domain libzmq does not ask, and admits everyone
_VERSION: Final = b"1.0"
_NOT_NOW: Final = b"300"  # not 400: after that, libzmq never tries again, though the list may change
_FRAMES: Final = 7  # version, request id, domain, address, routing id, mechanism, and CURVE's one credential


def admit(frames: Sequence[bytes], keys: Container[bytes]) -> list[bytes]:
    """Answer a ZAP request: 200 for a client that has proved to hold one of `keys`.

    The user id of the connection is the key itself, in hexadecimal. The name is looked up for each message,
    so that a change of the list applies at once: a key that was removed, or that has another name.
    """
    request_id = frames[1] if len(frames) > 1 else b""
    known = (
        len(frames) == _FRAMES
        and frames[0] == _VERSION
        and frames[2] == DOMAIN
        and frames[5] == b"CURVE"
        and frames[6] in keys
    )
    if not known:
        return [_VERSION, request_id, _NOT_NOW, b"no authorised key", b"", b""]
    return [_VERSION, request_id, b"200", b"OK", frames[6].hex().encode(), b""]
