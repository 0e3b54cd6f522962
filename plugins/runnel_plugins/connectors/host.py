"""Host sensors: this machine's own sensors, by psutil, a live series that every machine has.

At tick k, due k / rate seconds after the first reading on the monotonic clock, a row holds a current value
(memory, swap, load), or a rate since the row before: for a counter c read at the times t,

    (c[k] - c[k-1]) / (t[k] - t[k-1])          bytes a second: disk_*, net_*
    100 (busy[k] - busy[k-1]) / (all[k] - all[k-1])     percent: cpu, cpu0, cpu1, …

so that the first row comes one tick after the first reading. Ticks are due by the clock, so lateness does not
add up. Missed ticks (the machine slept) are left out, and their number is reported at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from runnel import Signal, Source, hookimpl
from runnel.columns import pack, tensor_columns
from runnel.errors import UsageError, nearest
from runnel.files import library, warn
from runnel.hookspecs import SourceFactory
from runnel.stage import Chunk
from runnel_plugins.connectors.cells import Row

MAX_RATE: Final = 100.0  # Hz: the kernel counts processor time in hundredths of a second
MIN_RATE: Final = 1 / 3600.0  # Hz
ORDER: Final = (
    "cpu", "memory", "net_received", "net_sent", "disk_read", "disk_written", "load", "swap",
)  # fmt: skip


class Host(Source):
    """Read this machine's sensors at a fixed rate: processor, memory, disk, network.

    `metrics`: the sensors, in the order of the inputs. The default is the first of this list, as many as the
    pipeline takes: cpu (% busy, of all), memory (% used), net_received, net_sent, disk_read, disk_written
    (bytes/s), load (the mean of the last minute), swap (% used). Also cpu0, cpu1, … (% busy). `rate`: rows
    per second; the default is the pipeline's rate, or 1. A pipeline's float64 input ``time`` is filled with
    seconds since 1970.
    """

    live = True

    def __init__(self, signal: Signal, metrics: list[str] | None = None, rate: float | None = None) -> None:
        self._psutil = library("psutil", "host: the machine's sensors", "sensors")
        if signal.rate and rate is not None and rate != signal.rate:
            raise UsageError(f"host: rate is {rate:g} Hz, but the pipeline takes {signal.rate:g} Hz")
        self.rate = asked = rate if rate is not None else signal.rate or 1.0
        if not MIN_RATE <= asked <= MAX_RATE:
            raise UsageError(f"host: rate must be {MIN_RATE:.2g} to {MAX_RATE:g} Hz, not {asked:g}")
        self._signal = signal
        self._row = Row("host", signal, "time")
        integers = [t for t in self._row.numbers.tensors if t.dtype not in ("float32", "float64", "float16")]
        if integers:
            raise UsageError(f"host: sensors give fractions, but the pipeline takes {integers[0]}")
        self._metrics = self._chosen(metrics)
        self._missed = 0
        self._clock: Callable[[], float] = time.monotonic
        self._sleep: Callable[[float], None] = time.sleep

    def _chosen(self, metrics: list[str] | None) -> list[str]:
        wanted = sum(len(tensor_columns(t)) for t in self._row.numbers.tensors)
        known = [*ORDER, *(f"cpu{n}" for n in range(self._psutil.cpu_count() or 1))]
        if metrics is None:
            if wanted > len(ORDER):
                raise UsageError(
                    f"host: the pipeline takes {wanted} numbers a time step ({self._signal}): say which, as "
                    f"in host:{','.join(known[:2])},…; there are {', '.join(known)}"
                )
            return list(ORDER[:wanted])
        for name in metrics:
            if name not in known:
                raise UsageError(f"host: no metric {name!r}{nearest(name, known)}")
        if len(metrics) != wanted:
            raise UsageError(
                f"host: {len(metrics)} metrics are named, but the pipeline takes {wanted} numbers a time "
                f"step ({self._signal})"
            )
        return metrics

    def chunks(self, block: int) -> Iterator[Chunk]:
        rate = self.rate or 1.0
        began = self._clock()
        before, read_at = self._read(), began
        tick = 0
        while True:
            tick += 1
            now = self._clock()
            late = int((now - began) * rate) + 1 - tick  # ticks whose time is over
            if late > 0:
                self._missed += late
                tick += late
            while (wait := began + tick / rate - now) > 0:
                self._sleep(wait)
                now = self._clock()
            after, now = self._read(), self._clock()
            values = [self._value(name, before, after, now - read_at) for name in self._metrics]
            before, read_at = after, now
            self.stamp = time.time()
            yield pack([self._row.full(values, self.stamp)], self._signal)

    def close(self) -> None:
        if self._missed:
            warn(f"host: {self._missed} ticks were missed, and left out")

    def _read(self) -> dict[str, Any]:
        """Read the raw values for the chosen metrics."""
        ps = self._psutil
        read: dict[str, Any] = {}
        for kind in {_kind(name) for name in self._metrics}:
            if kind == "cpu":
                read["cpu"] = _busy(ps.cpu_times())
                read["cores"] = [_busy(times) for times in ps.cpu_times(percpu=True)]
            elif kind == "net":
                read["net"] = ps.net_io_counters()
            elif kind == "disk":
                read["disk"] = ps.disk_io_counters()
            elif kind == "memory":
                read["memory"] = ps.virtual_memory().percent
            elif kind == "swap":
                read["swap"] = ps.swap_memory().percent
            else:
                read["load"] = ps.getloadavg()[0]
        return read

    def _value(self, name: str, before: dict[str, Any], after: dict[str, Any], seconds: float) -> float:
        if name == "cpu":
            return _percent(before["cpu"], after["cpu"])
        if name.startswith("cpu"):
            core = int(name[3:])
            if core >= min(len(before["cores"]), len(after["cores"])):
                return 0.0  # the core was switched off
            return _percent(before["cores"][core], after["cores"][core])
        if name in ("memory", "swap", "load"):
            return float(after[name])
        kind, field = _COUNTERS[name]
        if before[kind] is None or after[kind] is None:
            return 0.0  # a machine without a disk, or without a network
        more = float(getattr(after[kind], field) - getattr(before[kind], field))
        return max(0.0, more) / max(seconds, 1e-9)  # below 0 if a device was removed


_COUNTERS: Final = {
    "net_received": ("net", "bytes_recv"),
    "net_sent": ("net", "bytes_sent"),
    "disk_read": ("disk", "read_bytes"),
    "disk_written": ("disk", "write_bytes"),
}


def _kind(name: str) -> str:
    return _COUNTERS[name][0] if name in _COUNTERS else "cpu" if name.startswith("cpu") else name


def _busy(times: Any) -> tuple[float, float]:
    """Return (seconds busy, seconds in total).

    Linux counts a guest's time twice, also as its host's.
    """
    spent = times._asdict()
    all_of_it = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)
    return all_of_it - spent["idle"] - spent.get("iowait", 0.0), all_of_it


def _percent(before: tuple[float, float], after: tuple[float, float]) -> float:
    passed = after[1] - before[1]
    return min(100.0, max(0.0, 100.0 * (after[0] - before[0]) / passed)) if passed > 0 else 0.0


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"host": Host}
