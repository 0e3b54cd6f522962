"""Rates and percentiles from stats documents, over an interval and over several workers.

Rules of this file: pure. A document is the result of `Stats.document`, with a daemon's gauges. A missing name
(in an older daemon's document) counts as 0; an unknown name is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Final

from ..protocol.stats import Stats

Document = Mapping[str, Any]

# These only grow while a worker lives. All other values are gauges.
COUNTERS: Final = frozenset(
    (
        *Stats.__slots__, "cpu_seconds", "stage_seconds", "stage_chunks", "looks", "look_failures",
        "state_events", "non_finite", "state_rms", "state_distance", "gate_units", "gate_units_shut",
        "gate_units_open",
    )
)  # fmt: skip


def since(after: Document, before: Document | None) -> Document:
    """Changes between two documents of one worker: differences of counters, gauges of `after`.

    Without `before`, or if the worker restarted in between: since its start.
    """
    if before is None or before.get("boot_id") != after.get("boot_id"):
        return after
    return {k: _minus(v, before.get(k)) if k in COUNTERS else v for k, v in after.items()}


def together(documents: Iterable[Document]) -> Document:
    """Several workers as one: the sums of counters, histograms and gauges. Other values are left out."""
    total: dict[str, Any] = {}
    for document in documents:
        for name, value in document.items():
            if isinstance(value, str | bool) or name == "worker":
                continue
            total[name] = _plus(total[name], value) if name in total else value
    return total


def percentile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """The value below which a share `q` (0 to 1) of a histogram's values lies; None if it is empty.

    `bounds` are upper and inclusive; `counts` has one more entry, for values above all bounds. Linear within
    a bucket, as Prometheus' histogram_quantile: the error is at most the bucket's width. A value past the
    last bound counts as that bound.
    """
    total = sum(counts)
    if not total:
        return None
    rank = q * total
    for at, reached in enumerate(accumulate(counts)):
        if counts[at] and reached >= rank:
            if at == len(bounds):
                return bounds[-1]
            lower = bounds[at - 1] if at else 0.0
            return lower + (bounds[at] - lower) * max(0.0, rank - (reached - counts[at])) / counts[at]
    return bounds[-1]


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one worker, or of all together, over an interval. Rates are per second."""

    streams: int
    max_streams: int
    steps: float  # chunks applied
    requests: float
    fill: float | None  # mean number of streams in a batch; None if there was no batch
    p50: float | None  # seconds from a request's arrival until its reply was sent
    p90: float | None
    p99: float | None
    pending: int  # queued requests
    pending_bytes: int
    kept_bytes: int  # cached replies
    resident_bytes: int
    cpu: float  # cores
    errors: Mapping[str, float]  # by code
    opened: float
    closed: Mapping[str, float]  # by reason
    repeats: float
    resumed: float
    dropped: float  # replies that could not be delivered
    stages: Mapping[str, float]  # processor time of each stage: cores
    stage_chunk: Mapping[str, float]  # mean seconds of each stage for a chunk
    looks: float  # health checks of streams
    unhealthy: Mapping[str, int]  # streams whose state died or blew up
    state_rms: Mapping[str, float]  # of each state, mean over the checks
    state_distance: Mapping[str, float]  # mean distance of each state from its initial value
    non_finite: Mapping[str, float]  # chunks refused, by the state that was no longer finite
    gates: Mapping[str, tuple[float, float]]  # share of checked units that were nearly shut, and nearly open

    def document(self) -> dict[str, Any]:
        """As plain numbers and maps."""
        return asdict(self)


def rates_of(happened: Document, seconds: float) -> Rates:
    """Rates and percentiles of a document from `since` or `together`; `seconds`: the interval."""

    def number(name: str) -> Any:
        return happened.get(name, 0)

    def rate(name: str) -> float:
        return float(number(name)) / seconds

    def rates(name: str) -> dict[str, float]:
        return {key: count / seconds for key, count in happened.get(name, {}).items() if count}

    sizes, latency = happened.get("batch_sizes", _EMPTY), happened.get("latency", _EMPTY)
    batches = sum(sizes["counts"])
    p50, p90, p99 = (percentile(latency["bounds"], latency["counts"], q) for q in (0.5, 0.9, 0.99))
    return Rates(
        streams=number("streams"),
        max_streams=number("max_streams"),
        steps=rate("chunks"),
        requests=sum(rates("requests").values()),
        fill=sizes["sum"] / batches if batches else None,
        p50=p50,
        p90=p90,
        p99=p99,
        pending=number("pending"),
        pending_bytes=number("pending_bytes"),
        kept_bytes=number("kept_bytes"),
        resident_bytes=number("resident_bytes"),
        cpu=rate("cpu_seconds"),
        errors=rates("errors"),
        opened=rate("opened"),
        closed=rates("closed"),
        repeats=rate("repeats"),
        resumed=rate("resumed"),
        dropped=rate("dropped_replies"),
        stages=rates("stage_seconds"),
        stage_chunk={
            stage: happened.get("stage_seconds", {}).get(stage, 0.0) / chunks
            for stage, chunks in happened.get("stage_chunks", {}).items()
            if chunks
        },
        looks=rate("looks"),
        unhealthy=dict(happened.get("unhealthy", {})),
        state_rms=_means(happened.get("state_rms", {})),
        state_distance=_means(happened.get("state_distance", {})),
        non_finite=rates("non_finite"),
        gates={
            gate: (happened["gate_units_shut"][gate] / units, happened["gate_units_open"][gate] / units)
            for gate, units in happened.get("gate_units", {}).items()
            if units
        },
    )


def _means(histograms: Mapping[str, Document]) -> dict[str, float]:
    return {name: h["sum"] / many for name, h in histograms.items() if (many := sum(h["counts"]))}


_EMPTY: Final[Document] = {"bounds": [], "counts": [], "sum": 0.0}


def _minus(after: Any, before: Any) -> Any:
    if before is None:
        return after
    if isinstance(after, Mapping):
        return {k: v if k == "bounds" else _minus(v, before.get(k)) for k, v in after.items()}
    if isinstance(after, list):
        return [a - b for a, b in zip(after, before, strict=True)]
    return after - before


def _plus(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        both = {**one, **other}
        return {
            k: _plus(one[k], other[k]) if k in one and k in other and k != "bounds" else v
            for k, v in both.items()
        }
    if isinstance(one, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    return one + other
