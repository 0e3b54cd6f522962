"""Replies on their way: whose they are, which of them go together, and what they say of errors and pipelines.

Pure. Which reply a request gets is `protocol`'s to decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ... import __version__
from ...errors import RunnelError
from ...wire import messages as wire
from ...wire.tensors import describe

if TYPE_CHECKING:
    from ...engine import Engine

BUNDLE_BYTES: Final = 1024 * 1024  # of the replies in one message: larger ones gain nothing

Peer = bytes


class Outgoing(NamedTuple):
    """A reply and where it goes."""

    peer: Peer
    frames: list[bytes]


class Replies:
    """The replies of one run; those to what came in a bundle go in a bundle."""

    def __init__(self) -> None:
        self._loose: list[Outgoing] = []
        self._bundled: dict[Peer, list[list[bytes]]] = {}

    def add(self, peer: Peer, bundled: bool, frames: list[bytes]) -> None:
        """`bundled`: the request was."""
        if not bundled:
            self._loose.append(Outgoing(peer, frames))
        elif (together := self._bundled.get(peer)) is not None:
            together.append(frames)
        else:
            self._bundled[peer] = [frames]

    def outgoing(self) -> list[Outgoing]:
        for peer, messages in self._bundled.items():
            self._loose += bundles(peer, messages)
        return self._loose


def bundles(peer: Peer, messages: list[list[bytes]]) -> list[Outgoing]:
    """Replies to one peer, as few messages as may be; one alone goes as it is."""
    return [Outgoing(peer, frames) for _, frames in wire.bundles(messages, BUNDLE_BYTES)]


def told(error: RunnelError) -> wire.ErrorInfo:
    return wire.ErrorInfo(error.code, error.message, error.retry)


def description(engine: Engine) -> dict[str, Any]:
    """What hello says of the pipeline."""
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
