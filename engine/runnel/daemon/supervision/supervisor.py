"""A daemon of several processes: the supervisor starts, restarts and stops its workers.

Each worker has its own engine and socket. A hash of its name assigns a stream to a worker, and clients talk
to each worker directly, so no message passes through the supervisor. At the start all workers must come up. A
worker that ends later is started again at the same address, after a back-off. Its streams are lost; those of
the other workers are not affected.
"""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Final

from ...errors import RunnelError, UsageError
from ...wire.address import parse
from .. import logs
from ..loop import FINISH_SECONDS, LINGER_MS, signals_to
from ..settings import Settings, Source
from . import control, systemd
from .lifecycle import Observe, reread
from .worker import OTHER_PIPELINE

START_SECONDS: Final = 300.0  # for a worker to load a large model from a slow disk, and to bind
STOP_SECONDS: Final = FINISH_SECONDS + LINGER_MS / 1000 + 3.0  # for workers to answer what has arrived
REAP_SECONDS: Final = 2.0  # from the end of a worker's channel to the end of its process
FIRST_PAUSE: Final = 0.5  # seconds before a worker that ended is started again
LAST_PAUSE: Final = 30.0  # seconds: a worker that keeps failing must not cost the others a core
SOUND_SECONDS: Final = 60.0  # a worker that served this long did not end because of its start

log = logs.Log("runnel.serve")


def addresses(bind: str, workers: int, keyed: bool = False) -> list[str]:
    """The address of each worker: ``path``, ``path.1``, …; ``port``, ``port + 1``, …; ``*`` for each.

    Raises UsageError if one of them is no valid address.
    """
    if parse(bind, keyed).path is not None:
        asked = [bind, *(f"{bind}.{i}" for i in range(1, workers))]
    else:
        host, _, port = bind.rpartition(":")
        asked = [f"{host}:{port if port == '*' else int(port) + i}" for i in range(workers)]
    return [parse(address, keyed).text for address in asked]


class Backoff:
    """Delay before a worker is started again."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE

    def after(self, served: float) -> float:
        """Seconds to wait after a worker served for `served` seconds."""
        if served >= SOUND_SECONDS:
            self._pause = FIRST_PAUSE
        pause, self._pause = self._pause, min(2 * self._pause, LAST_PAUSE)
        return pause


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker's index and address, and its current process."""

    index: int
    address: str  # to bind; after binding, the actual address
    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    bound: bool = False  # its address is known; stays True over restarts
    ready: bool = False
    failure: str = ""  # why it could not serve
    since: float = 0.0  # when it was started
    beat: float = 0.0  # when its loop last reported
    restart_at: float | None = None  # when to start it again
    backoff: Backoff = field(default_factory=Backoff)


class Supervisor:
    """Runs `settings.workers` workers of a pipeline file at `settings.bind`.

    `observe(settings, addresses)` is for monitoring from outside: entered once all workers serve, left when
    they stop. Raises UsageError for an address that cannot be served.
    """

    def __init__(
        self,
        pipeline: str,
        settings: Settings,
        source: Source,
        notifier: systemd.Notifier,
        observe: Observe,
        *,
        trust: bool = False,
    ) -> None:
        self._pipeline = pipeline
        self._fingerprint = ""  # of the pipeline that all workers serve, once one has reported it
        self._settings = settings
        self._source = source
        self._notifier = notifier
        self._observe = observe
        self._trust = trust
        asked = addresses(settings.bind, settings.workers, keyed=bool(settings.keys))
        self._workers = [_Worker(i, address) for i, address in enumerate(asked)]
        self._selector = selectors.DefaultSelector()
        self._serving = False  # all were ready once
        self._stops = 0
        self._unanswered = False
        self._next_watchdog = 0.0

    def serve(self, signals: Sequence[int]) -> bool:
        """Serve until a signal stops the workers. Return whether everything that had arrived was answered.

        Raises RunnelError, with the worker's error text, if a worker cannot start; then no worker is left
        running.
        """
        wakeup, waker = socket.socketpair()
        with wakeup, waker, self._selector, ExitStack() as stack:
            wakeup.setblocking(False)
            waker.setblocking(False)
            stack.enter_context(signals_to(signals, waker))
            self._selector.register(wakeup, selectors.EVENT_READ, None)
            try:
                for worker in self._workers:
                    self._start(worker)
                while not self._stops:
                    self._turn(wakeup, stack)
                return self._finish(wakeup)
            finally:
                self._kill()

    def _turn(self, wakeup: socket.socket, stack: ExitStack) -> None:
        """Wait for an event, and handle what is due."""
        for key, _ in self._selector.select(self._patience()):
            if key.data is None:
                self._listen(wakeup)
            else:
                self._handle_packet(key.data)
        now = time.monotonic()
        for worker in self._workers:
            if worker.restart_at is not None and worker.restart_at <= now and not self._stops:
                self._start(worker)
            elif worker.process and not worker.ready and worker.since + START_SECONDS <= now:
                log.error(
                    "worker ended: it did not serve in time", worker=worker.index, seconds=START_SECONDS
                )
                worker.process.kill()
                worker.since = now  # report it once
        if not self._serving and all(worker.ready for worker in self._workers):
            self._serving = True
            served = [worker.address for worker in self._workers]
            stack.enter_context(self._observe(self._settings, served))
            log.info("all workers serve", address=served[0], workers=len(served), last=served[-1])
            self._notifier.send(systemd.READY, systemd.status(f"{len(served)} workers at {served[0]}"))
        self._watch(now)

    def _patience(self) -> float | None:
        """Seconds until the next deadline; None if there is none."""
        dues = [worker.restart_at for worker in self._workers if worker.restart_at is not None]
        dues += [w.since + START_SECONDS for w in self._workers if w.process and not w.ready]
        if self._serving and self._notifier.watchdog_seconds:
            dues.append(self._next_watchdog)
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _watch(self, now: float) -> None:
        """Send systemd's watchdog message if every running worker reported recently."""
        every = self._notifier.watchdog_seconds
        if not every or not self._serving or now < self._next_watchdog:
            return
        self._next_watchdog = now + every / 2
        if all(worker.beat + every > now for worker in self._workers if worker.ready):
            self._notifier.send(systemd.WATCHDOG)

    # Signals.

    def _listen(self, wakeup: socket.socket) -> None:
        with suppress(BlockingIOError):
            numbers = wakeup.recv(64)
            reloads = numbers.count(signal.SIGHUP)
            self._stops += len(numbers) - reloads
            if reloads and not self._stops:
                self._reload()

    def _reload(self) -> None:
        self._notifier.send(systemd.reloading(time.monotonic()))
        settings = reread(self._source, self._settings)
        if settings is not None:
            self._settings = settings
            logs.set_level(settings.log_level)
            for worker in self._workers:
                if worker.channel:
                    control.send(worker.channel, {"settings": asdict(settings)})
        self._notifier.send(systemd.READY)

    def _finish(self, wakeup: socket.socket) -> bool:
        """Have all workers answer what has arrived, then stop. A second signal stops them at once."""
        log.info("stopping", workers=sum(worker.process is not None for worker in self._workers))
        self._notifier.send(systemd.STOPPING, systemd.status("answering what has arrived"))
        deadline = time.monotonic() + STOP_SECONDS
        asked = 0
        while any(worker.process for worker in self._workers):
            if asked < min(self._stops, 2):
                asked += 1
                for worker in self._workers:
                    if worker.channel:
                        control.send(worker.channel, {"stop": True})
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in self._selector.select(left):
                if key.data is None:
                    self._listen(wakeup)
                    if self._stops > 1:
                        deadline = min(deadline, time.monotonic() + REAP_SECONDS)
                else:
                    self._handle_packet(key.data)
        return not self._unanswered

    # Workers.

    def _start(self, worker: _Worker) -> None:
        ours, theirs = control.pair()
        with theirs:
            try:
                worker.process = subprocess.Popen(
                    [sys.executable, "-m", "runnel.daemon.supervision.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # the terminal signals only the supervisor, which passes them on
                )
            except OSError as error:  # for example: no memory, or too many processes
                ours.close()
                self._not_started(worker, f"worker {worker.index} cannot be started: {error.strerror}")
                return
        beat_seconds = self._notifier.watchdog_seconds / 4
        control.send(
            ours,
            control.WorkerConfig(
                worker.index,
                self._pipeline,
                worker.address,
                self._trust,
                self._settings,
                beat_seconds,
                self._fingerprint,
            ).packet(),
        )
        worker.channel, worker.ready, worker.failure, worker.restart_at = ours, False, "", None
        worker.since = time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _handle_packet(self, worker: _Worker) -> None:
        """Handle a packet of a worker, or its end."""
        assert worker.channel is not None
        packet = control.receive(worker.channel)
        if packet is None:
            self._ended(worker)
        elif "bound" in packet:
            self._fingerprint = self._fingerprint or packet["pipeline"]
            if packet["pipeline"] != self._fingerprint:  # the file changed while the first workers started
                worker.failure = OTHER_PIPELINE
                if worker.process:
                    worker.process.kill()
                return
            worker.address, worker.bound = packet["bound"], True
            self._send_addresses(worker)
        elif "failed" in packet:
            worker.failure = packet["failed"]
        else:  # ready, or a beat
            worker.ready = True
            worker.beat = time.monotonic()

    def _send_addresses(self, newcomer: _Worker) -> None:
        """Send all addresses, once known, to all workers or to a restarted one."""
        if not all(worker.bound for worker in self._workers):
            return
        packet = {"workers": [worker.address for worker in self._workers]}
        for worker in [newcomer] if self._serving else self._workers:
            if worker.channel and not worker.ready:
                control.send(worker.channel, packet)

    def _ended(self, worker: _Worker) -> None:
        """Handle the end of a worker's channel: its process has ended, or will soon."""
        assert worker.process is not None
        assert worker.channel is not None
        self._selector.unregister(worker.channel)
        worker.channel.close()
        try:
            status = worker.process.wait(REAP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            status = worker.process.wait()
        worker.process = worker.channel = None
        served = time.monotonic() - worker.since if worker.ready else 0.0
        worker.ready = False
        why = worker.failure or f"worker {worker.index} ended with status {status}"
        if self._stops:
            self._unanswered = self._unanswered or status != 0
        elif not self._serving:
            raise UsageError(why) if worker.failure else RunnelError(f"{why} before it served")
        else:
            log.error(
                "worker lost, with its streams",
                worker=worker.index,
                why=why,
                again_in_seconds=self._schedule_restart(worker, served),
            )

    def _not_started(self, worker: _Worker, why: str) -> None:
        """Schedule another attempt for a worker that could not be started; the others keep serving."""
        if not self._serving:
            raise RunnelError(why)
        log.error(
            "worker not started",
            worker=worker.index,
            why=why,
            again_in_seconds=self._schedule_restart(worker, 0.0),
        )

    def _schedule_restart(self, worker: _Worker, served: float) -> float:
        """Schedule a restart of the worker, and return the delay in seconds."""
        pause = worker.backoff.after(served)
        worker.restart_at = time.monotonic() + pause
        return pause

    def _kill(self) -> None:
        """End all remaining processes."""
        for worker in self._workers:
            if worker.channel:
                worker.channel.close()  # a worker that only waits ends by itself, and cleans up
        for worker in self._workers:
            if worker.process:
                try:
                    worker.process.wait(REAP_SECONDS if self._stops < 2 else 0.0)
                except subprocess.TimeoutExpired:
                    worker.process.kill()
                    worker.process.wait()
