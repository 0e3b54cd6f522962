"""The output's last values as gauges for Prometheus, over HTTP, by prometheus_client.

``runnel_output{column="y.0"}`` is the last value of a column, ``runnel_output_rows_total`` the number of time
steps, ``runnel_output_time_seconds`` the time of the last one (seconds since 1970), which shows whether a run
hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from runnel import Signal, Sink, hookimpl
from runnel.columns import columns_of, flat
from runnel.errors import UsageError
from runnel.files import library
from runnel.hookspecs import SinkFactory
from runnel.stage import Chunk

MAX_COLUMNS: Final = 1000  # each is a time series in the scraper's database
MAX_CONNECTIONS: Final = 16  # at once, with one thread each: a scraper and a few viewers; others are refused
REQUEST_SECONDS: Final = 5.0  # for a request and its reply; then the connection is closed


class Prometheus(Sink):
    """Serve the last value of each column as a Prometheus gauge at http://host:port/metrics.

    A number with a label is served as the number.
    """

    def __init__(self, signal: Signal, port: int = 9465, host: str = "127.0.0.1") -> None:
        client = library("prometheus_client", "prometheus: its metrics", "metrics")
        names = columns_of(signal)
        if len(names) > MAX_COLUMNS:
            raise UsageError(f"prometheus: the pipeline gives {len(names)} columns; at most {MAX_COLUMNS}")
        if not 0 <= port <= 65535:
            raise UsageError(f"prometheus: port must be 0 (any that is free) to 65535, not {port}")
        self._signal = signal
        registry = client.CollectorRegistry()
        gauge = client.Gauge(
            "runnel_output", "The last value of a column of the output.", ["column"], registry=registry
        )
        self._rows = client.Counter("runnel_output_rows", "Time steps of output.", registry=registry)
        self._time = client.Gauge(
            "runnel_output_time_seconds", "When the last output came, since 1970.", registry=registry
        )
        self._columns = [gauge.labels(name) for name in names]
        for column in self._columns:
            column.set(float("nan"))  # no value yet
        try:
            self._server, self._thread = client.start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise UsageError(f"prometheus: cannot listen at {host}:{port}: {error}") from None
        _bound(self._server)
        self.port: int = self._server.server_port

    def write(self, chunk: Chunk) -> None:
        steps = len(chunk[self._signal.names[0]])
        if not steps:
            return
        columns = iter(self._columns)
        for tensor in self._signal.tensors:
            for value in flat(tensor, chunk[tensor.name][-1:])[0].tolist():
                next(columns).set(value)
        self._rows.inc(steps)
        self._time.set(time.time())

    def close(self, whole: bool) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _bound(server: Any) -> None:
    """Limit the connections of the library's server, which starts one thread for each."""
    connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
    take, answer = server.process_request, server.process_request_thread

    def take_if_free(request: Any, address: Any) -> None:
        if connections.acquire(blocking=False):
            take(request, address)
        else:
            server.shutdown_request(request)

    def answer_and_leave(request: Any, address: Any) -> None:
        try:
            answer(request, address)
        finally:
            connections.release()

    handler = server.RequestHandlerClass
    server.RequestHandlerClass = type("Handler", (handler,), {"timeout": REQUEST_SECONDS})
    server.process_request, server.process_request_thread = take_if_free, answer_and_leave


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"prometheus": Prometheus}
