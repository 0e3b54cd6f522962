"""Outgoing replies, their bundles, and descriptions of errors and pipelines.

Pure. `server` decides which reply a request gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ... import __version__
from ...errors import RunnelError
from ...wire import messages
from ...wire.tensors import describe

if TYPE_CHECKING:
    from ...engine import Engine

BUNDLE_BYTES: Final = 1024 * 1024  # replies in one message: larger messages gain nothing

Peer = bytes


class Outgoing(NamedTuple):
    """A reply and its destination."""

    peer: Peer
    frames: list[bytes]


class Replies:
    """The replies of one run. Replies to bundled requests travel in a bundle."""

    def __init__(self) -> None:
        self._loose: list[Outgoing] = []
        self._bundled: dict[Peer, list[list[bytes]]] = {}

    def add(self, peer: Peer, bundled: bool, frames: list[bytes]) -> None:
        """Add a reply; `bundled`: its request came in a bundle."""
        if not bundled:
            self._loose.append(Outgoing(peer, frames))
        elif (together := self._bundled.get(peer)) is not None:
            together.append(frames)
        else:
            self._bundled[peer] = [frames]

    def outgoing(self) -> list[Outgoing]:
        for peer, replies in self._bundled.items():
            self._loose += bundles(peer, replies)
        return self._loose


def bundles(peer: Peer, replies: list[list[bytes]]) -> list[Outgoing]:
    """Replies to one peer in as few messages as possible. A single reply is sent as it is."""
    return [Outgoing(peer, frames) for _, frames in messages.bundles(replies, BUNDLE_BYTES)]


def error_info(error: RunnelError) -> messages.ErrorInfo:
    return messages.ErrorInfo(error.code, error.message, error.retry)


def description(engine: Engine) -> dict[str, Any]:
    """The pipeline's part of the answer to hello."""
    pipeline = engine.pipeline
    return {
        "version": __version__,
        "pipeline": pipeline.fingerprint,
        "stages": [f"{s.name}: {s.inputs} -> {s.outputs}" for s in pipeline.unrolled.stages],
        "state_bytes": pipeline.state_bytes,
        "inputs": describe(pipeline.inputs),
        "outputs": describe(pipeline.outputs),
        "input_rate": pipeline.inputs.rate or 0.0,
        "output_rate": pipeline.outputs.rate or 0.0,
        "latency": pipeline.latency,
    }
