"""A small HTTP server beside a daemon: ``/metrics``, ``/healthz``, ``/readyz``.

It is an ordinary client of the daemon, in threads of its own. It shares nothing with the loop that it
monitors, so an answer proves that the loop runs. It reads no secrets and changes nothing. Everyone who can
reach its address can read it, so the default address is loopback.

Bounded: connections at once, bytes of a request, time for a request. If there are too many connections, the
one that has taken longest to send its request is closed, so that slow connections never lock out a probe.
Answers are up to `FRESH` seconds old, so that probes cost the daemon only a few questions a second.
"""

from __future__ import annotations

import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from ipaddress import ip_address
from typing import Any, Final

from ...client.monitor import Watcher, WorkerStatus
from ...errors import UsageError
from ...wire.keys import Secret
from ..logs import Log
from . import prometheus as exposition

MAX_CONNECTIONS: Final = 32  # at once, a thread each: a scraper and a few probes stay for milliseconds
MAX_HEAD: Final = 8 * 1024  # bytes of a request's line and headers
REQUEST_SECONDS: Final = 5.0  # to send a request, and to read its answer
ANSWER_SECONDS: Final = 3.0  # for each worker's loop: a batch takes milliseconds
FRESH: Final = 0.2  # seconds for which an answer is reused

_ADDRESS = re.compile(r"(?:(?P<host>\[[^\]]+\]|[^:\[\]]+)?:)?(?P<port>[0-9]{1,5})\Z")
_TEXT: Final = "text/plain; charset=utf-8"

log = Log("runnel.metrics")


def parse(text: str) -> tuple[str, int]:
    """Host and port of ``9464``, ``127.0.0.1:9464``, ``[::1]:9464``; the default host is loopback.

    Port 0: the system chooses one. Raises UsageError, with the expected form.
    """
    match = _ADDRESS.match(text)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(f"metrics address {text!r}: expected a port, or 127.0.0.1:port, or [::1]:port")
    host = (match["host"] or "127.0.0.1").strip("[]")
    try:
        return str(ip_address("127.0.0.1" if host == "localhost" else host)), int(match["port"])
    except ValueError:
        raise UsageError(
            f"metrics address {text!r}: {host!r} is no IP address: 127.0.0.1 is this machine, 0.0.0.0 all"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host that `parse` returned."""
    return ip_address(host).is_loopback


@contextmanager
def serve(http_address: str, daemon_addresses: Sequence[str], keys: Secret | None = None) -> Iterator[str]:
    """Serve the pages at `http_address` within the context; yields the address with its actual port.

    `daemon_addresses`: those of the workers, or of one of them. The workers need not be up yet. `keys`: a
    user's keys, if the daemon has keys. Raises UsageError for an address that is invalid or cannot be bound.
    On exit its threads and sockets are closed.
    """
    host, port = parse(http_address)
    with Watcher(daemon_addresses, ANSWER_SECONDS, keys) as watcher:
        try:
            server = _Server((host, port), _CachedWatcher(watcher))
        except OSError as error:
            raise UsageError(f"cannot serve metrics on {http_address}: {error.strerror}") from None
        if not is_loopback(host):
            log.warning("metrics are readable by whoever reaches them", address=http_address)
        try:
            exposition.encoder("")
        except UsageError as error:
            log.warning("health checks only", why=error.message)
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="runnel-metrics")
        thread.start()
        bound = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
        log.info("serving metrics", address=f"http://{bound}")
        try:
            yield bound
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _CachedWatcher:
    """A monitor shared by threads: one thread asks, the others reuse the answer."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._lock = threading.Lock()  # also the memory fence for passing sockets between threads
        self._seen: list[WorkerStatus] = []
        self._when = float("-inf")

    def look(self) -> list[WorkerStatus]:
        with self._lock:
            if time.monotonic() - self._when > FRESH:
                self._seen = self._watcher.look()
                self._when = time.monotonic()
            return self._seen


def health(seen: Sequence[WorkerStatus]) -> tuple[bool, str]:
    """Whether every worker's loop runs, and the text of the answer."""
    return _verdict([(w.alive, w) for w in seen])


def readiness(seen: Sequence[WorkerStatus]) -> tuple[bool, str]:
    """Whether every worker serves and is not stopping, and the text of the answer."""
    return _verdict([(w.ready, w) for w in seen])


def _verdict(workers: Sequence[tuple[bool, WorkerStatus]]) -> tuple[bool, str]:
    bad = [
        f"worker {at}: {worker.error or 'stopping'}" for at, (good, worker) in enumerate(workers) if not good
    ]
    return not bad, "\n".join(bad or ["ok"]) + "\n"


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread per connection, and at most `MAX_CONNECTIONS`; see the module."""

    allow_reuse_address = True
    request_queue_size = 128  # connections that may queue while one thread accepts them
    daemon_threads = False  # so that closing waits for them

    def __init__(self, address: tuple[str, int], watcher: _CachedWatcher) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.watcher = watcher
        self._lock = threading.Lock()
        self._open: dict[socket.socket, bool] = {}  # whether the request has arrived; the oldest first
        super().__init__(address, _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def asked(self, request: socket.socket) -> None:
        """Note that a connection's request has arrived."""
        with self._lock:
            if request in self._open:
                self._open[request] = True

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                slowest = next(
                    (one for one, asked in self._open.items() if not asked), next(iter(self._open))
                )
                del self._open[slowest]
                _end(slowest)
            self._open[request] = False
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread for it
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def server_close(self) -> None:
        with self._lock:
            for request in self._open:  # do not wait for slow clients
                _end(request)
        super().server_close()

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection failed", peer=client_address, why=sys.exception())


class _Handler(BaseHTTPRequestHandler):
    """One request per connection."""

    server: _Server
    server_version, sys_version = "runnel", ""
    error_content_type = _TEXT
    error_message_format = "%(code)d %(message)s\n"

    def handle(self) -> None:
        try:
            head = _head(self.connection)
        except ValueError:
            _refuse(self.connection, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        self.server.asked(self.connection)
        self.rfile.close()
        self.rfile = BytesIO(head)
        self.connection.settimeout(REQUEST_SECONDS)
        super().handle()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._metrics()
        elif path in ("/healthz", "/readyz"):
            good, text = (health if path == "/healthz" else readiness)(self.server.watcher.look())
            self._send(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, text.encode(), _TEXT)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"here are /metrics, /healthz and /readyz\n", _TEXT)

    do_HEAD = do_GET  # noqa: N815

    def _metrics(self) -> None:
        try:
            encode, content_type = exposition.encoder(self.headers.get("Accept", ""))
        except UsageError as error:
            self._send(HTTPStatus.NOT_IMPLEMENTED, f"{error}\n".encode(), _TEXT)
            return
        self._send(HTTPStatus.OK, encode(self.server.watcher.look()), content_type)

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("request", text=format % args)


def _head(connection: socket.socket) -> bytes:
    """Read a request's line and headers; empty if they are late. Raises ValueError if they are too large."""
    deadline = time.monotonic() + REQUEST_SECONDS
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        left = deadline - time.monotonic()
        if left <= 0:
            return b""
        connection.settimeout(left)
        try:
            more = connection.recv(MAX_HEAD + 1 - len(head))
        except OSError:  # timed out, or disconnected
            return b""
        head += more
        if not more:
            return b""
        if len(head) > MAX_HEAD:
            raise ValueError("too large")
    return head


def _end(connection: socket.socket) -> None:
    """Shut a connection down, so that its thread sees the end of it."""
    with suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RDWR)


def _refuse(connection: socket.socket, status: HTTPStatus) -> None:
    text = f"HTTP/1.0 {status.value} {status.phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    try:
        connection.sendall(text.encode())
    except OSError:
        return  # already disconnected
