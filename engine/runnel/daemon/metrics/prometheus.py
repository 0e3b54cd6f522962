"""Stats as Prometheus metrics, encoded by Prometheus' own library.

Names follow Prometheus' conventions: counters end in ``_total``, units are base units, and each metric has a
line of help. The label `worker` is the worker's index. No label value comes from a client: ops, codes and
reasons are closed sets; stages, states and gates are those of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from ...client.monitor import WorkerStatus
from ...errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

INSTALL: Final = "metrics need prometheus_client: pip install 'runnel[metrics]'"

# The key in a stats document, the metric, its help text.
_COUNTERS: Final = (
    ("chunks", "runnel_chunks", "Chunks applied, each once."),
    ("repeats", "runnel_repeated_requests", "Requests answered with a reply that was kept."),
    ("opened", "runnel_streams_opened", "Streams opened."),
    ("resumed", "runnel_streams_resumed", "Streams taken over by another connection."),
    ("dropped_replies", "runnel_dropped_replies", "Replies let go: the peer is gone, or does not read."),
    ("dropped_peers", "runnel_dropped_peers", "Peers let go because they did not read."),
    ("looks", "runnel_looks", "Looks at the states of streams."),
    ("look_failures", "runnel_look_failures", "Looks that failed themselves."),
    ("log_lost", "runnel_log_lines_lost", "Log lines that could not be written."),
    ("cpu_seconds", "process_cpu_seconds", "User and system processor time."),
)
_LABELLED: Final = (
    ("requests", "runnel_requests", "op", "Requests received, by op; without one where it was not read."),
    ("errors", "runnel_errors", "code", "Errors answered, by code."),
    ("closed", "runnel_streams_closed", "reason", "Streams closed, by reason."),
    ("stage_seconds", "runnel_stage_seconds", "stage", "Time that each stage took, by position and name."),
    ("stage_chunks", "runnel_stage_chunks", "stage", "Chunks that each stage stepped."),
    ("state_events", "runnel_state_events", "event", "Streams found died, blown_up, or recovered."),
    ("non_finite", "runnel_state_non_finite", "state", "Chunks refused: the state was not finite any more."),
    ("gate_units", "runnel_gate_units", "gate", "Units whose gate was looked at."),
    ("gate_units_shut", "runnel_gate_units_shut", "gate", "Those of them whose gate was below 0.1."),
    ("gate_units_open", "runnel_gate_units_open", "gate", "Those of them whose gate was above 0.9."),
)
_GAUGES: Final = (
    ("streams", "runnel_streams", "Streams open."),
    ("max_streams", "runnel_streams_limit", "Streams that may be open at once."),
    ("pending", "runnel_pending_requests", "Requests taken and not yet run."),
    ("pending_bytes", "runnel_pending_bytes", "Bytes of tensors taken and not yet run."),
    ("kept_bytes", "runnel_kept_reply_bytes", "Bytes of replies kept for repeats."),
    ("resident_bytes", "process_resident_memory_bytes", "Resident memory."),
    ("virtual_bytes", "process_virtual_memory_bytes", "Virtual memory."),
    ("open_files", "process_open_fds", "Open file descriptors."),
    ("max_files", "process_max_fds", "Most file descriptors that may be open."),
    ("started", "process_start_time_seconds", "Start of the process, in seconds since the Unix epoch."),
)
_LABELLED_GAUGES: Final = (
    ("unhealthy", "runnel_streams_unhealthy", "condition", "Streams open whose state died or blew up."),
)
_LABELLED_HISTOGRAMS: Final = (
    ("state_rms", "runnel_state_rms", "state", "Root mean square of a state, at each look."),
    ("state_distance", "runnel_state_distance", "state", "The same of its distance from the initial state."),
)
_HISTOGRAMS: Final = (
    ("batch_sizes", "runnel_batch_size", "Streams stepped in one batch."),
    ("batch_seconds", "runnel_batch_seconds", "How long a batch took."),
    ("latency", "runnel_request_seconds", "From a request's arrival until its reply was on its way."),
)


def encoder(accept: str) -> tuple[Callable[[Sequence[WorkerStatus]], bytes], str]:
    """The encoder for an Accept header, and its content type.

    Raises UsageError if prometheus_client is not installed, with the command that installs it.
    """
    try:
        from prometheus_client.exposition import choose_encoder
    except ImportError:
        raise UsageError(INSTALL) from None
    encode, content_type = choose_encoder(accept)
    return lambda seen: encode(_Collector(seen)), content_type


class _Collector:
    """A collector, as prometheus_client defines it, of the given statuses."""

    def __init__(self, seen: Sequence[WorkerStatus]) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        return families(self._seen)


def families(seen: Sequence[WorkerStatus]) -> Iterator[Metric]:
    """Metric families of all workers. For a worker that did not answer, only `runnel_worker_up` is given."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
    )

    up = GaugeMetricFamily("runnel_worker_up", "Whether the worker's loop answers.", labels=["worker"])
    build = InfoMetricFamily("runnel_build", "What the worker serves.", labels=["worker"])
    documents: list[tuple[str, dict[str, Any]]] = []
    for at, worker in enumerate(seen):
        index = str(at)
        up.add_metric([index], float(worker.alive))
        if worker.served is not None:
            served = {"version": worker.served.version, "pipeline": worker.served.pipeline}
            build.add_metric([index], served)
        if worker.stats is not None:
            documents.append((index, worker.stats))
    yield up
    yield build
    for key, name, about in _COUNTERS:
        counter = CounterMetricFamily(name, about, labels=["worker"])
        for index, document in documents:
            if key in document:
                counter.add_metric([index], document[key])
        yield counter
    for key, name, label, about in _LABELLED:
        counter = CounterMetricFamily(name, about, labels=["worker", label])
        for index, document in documents:
            for value, count in document.get(key, {}).items():
                counter.add_metric([index, value], count)
        yield counter
    for key, name, label, about in _LABELLED_GAUGES:
        gauge = GaugeMetricFamily(name, about, labels=["worker", label])
        for index, document in documents:
            for value, count in document.get(key, {}).items():
                gauge.add_metric([index, value], count)
        yield gauge
    for key, name, about in _GAUGES:
        gauge = GaugeMetricFamily(name, about, labels=["worker"])
        for index, document in documents:
            if key in document:
                gauge.add_metric([index], document[key])
        yield gauge
    for key, name, about in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, about, labels=["worker"])
        for index, document in documents:
            if key in document:
                histogram.add_metric([index], *_buckets(document[key]))
        yield histogram
    for key, name, label, about in _LABELLED_HISTOGRAMS:
        histogram = HistogramMetricFamily(name, about, labels=["worker", label])
        for index, document in documents:
            for value, counted in document.get(key, {}).items():
                histogram.add_metric([index, value], *_buckets(counted))
        yield histogram


def _buckets(counted: dict[str, Any]) -> tuple[list[tuple[str, int]], float]:
    """A histogram's cumulative counts up to each bound, and its sum."""
    le = [*map(repr, map(float, counted["bounds"])), "+Inf"]
    return list(zip(le, accumulate(counted["counts"]), strict=True)), counted["sum"]
