"""Who is let in: ZeroMQ's authentication protocol (ZAP, RFC 27), as a function of its frames.

Rules of this file: pure; whatever is not plainly an authorised key is refused.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

DOMAIN: Final = b"runnel"  # must not be empty: libzmq lets anyone in where there is no domain to ask about
_VERSION: Final = b"1.0"
_NOT_NOW: Final = b"300"  # not 400: a libzmq that was told so never tries again, though the list may change
_FRAMES: Final = 7  # version, request id, domain, address, routing id, mechanism, and CURVE's one credential


def admit(frames: Sequence[bytes], keys: Container[bytes]) -> list[bytes]:
    """The answer to a request of libzmq's: 200 for a client that has proved to hold one of `keys`.

    A connection's user id is then the key itself, in hexadecimal: names are looked up when a message
    comes, so that a key that is struck off the list, or that another name takes over, is at once what the
    list says.
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
