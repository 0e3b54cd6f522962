"""`runnel inspect ADDRESS`: show what a daemon serves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import RunnelError
from .text import Row, aligned, count

if TYPE_CHECKING:
    from ..client.monitor import WorkerStatus
    from ..wire.messages import Description, TensorMetadata


def show(address: str, as_json: bool, timeout: float, keys: str | None = None) -> None:
    """Print a daemon's description; `keys`: the user's key file, if the daemon has keys.

    Raises UsageError if there is no socket, TimeoutError if no daemon answers, RunnelError if it is stopping.
    """
    from ..client.common import silence
    from ..client.monitor import Watcher
    from ..daemon.socketfile import require
    from ..wire.keys import client_keys

    require(address)
    with Watcher([address], timeout, client_keys(keys) if keys else None) as watcher:
        seen = watcher.look()
    served = next((worker.served for worker in seen if worker.served), None)
    if served is None:
        if any(worker.alive for worker in seen):
            raise RunnelError(f"the daemon at {address} is stopping: ask again when it is back")
        raise silence(address, timeout)
    print(json.dumps(document(served, seen), indent=2) if as_json else text(served, seen))


def document(served: Description, seen: Sequence[WorkerStatus]) -> dict[str, Any]:
    """For programs: the daemon's HELLO, and each worker's address, boot id and streams."""
    fields: dict[str, Any] = msgspec.to_builtins(served)
    del fields["worker"], fields["boot_id"]  # these belong to the worker that answered first
    fields["workers"] = [
        {
            "address": worker.address,
            "boot_id": worker.served.boot_id if worker.served else None,
            "streams": worker.stats.get("streams") if worker.stats else None,
            "error": worker.error or None,
        }
        for worker in seen
    ]
    return fields


def text(served: Description, seen: Sequence[WorkerStatus]) -> str:
    rows: list[Row] = [("version", served.version)]
    if served.pipeline:
        rows.append(("pipeline", served.pipeline))
    rows += [("stages", name) for name in served.stages]
    rows += [("inputs", line) for line in map(_tensor, served.inputs)]
    rows += [("outputs", line) for line in map(_tensor, served.outputs)]
    rows += [("rate", _rates(served)), ("latency", f"{served.latency} input time steps")]
    rows.append(("state size", f"{count(served.state_bytes)} bytes a stream, in its models"))
    rows += [("workers", f"{at}  {_worker(worker)}") for at, worker in enumerate(seen)]
    limits = msgspec.structs.asdict(served.limits)
    rows += [("limits", f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {count(value)}")
             for name, value in limits.items()]  # fmt: skip
    return aligned(rows)


def _tensor(tensor: TensorMetadata) -> str:
    shape = ", ".join("time" if length == -1 else str(length) for length in tensor.shape)
    return f"{tensor.name}  {tensor.datatype}  ({shape})"


def _rates(served: Description) -> str:
    def hertz(rate: float) -> str:
        return f"{rate:g} Hz" if rate else "not stated"

    return f"{hertz(served.input_rate)} in, {hertz(served.output_rate)} out"


def _worker(worker: WorkerStatus) -> str:
    if worker.stats is None or worker.served is None:
        return f"{worker.address}  {worker.error or 'stopping'}"
    streams = count(worker.stats.get("streams", 0))
    return f"{worker.address}  {streams} streams open, boot {worker.served.boot_id}"
