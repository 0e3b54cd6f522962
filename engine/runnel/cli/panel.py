"""The screen of `runnel top` as lines of text. Pure, so that it is tested without a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..client.monitor import WorkerStatus
from ..daemon.metrics.rates import Document, Rates, rates_of, since, together

HISTORY: Final = 240  # intervals of steps/s in the history: more than the width of a terminal
_BARS: Final = "▁▂▃▄▅▆▇█"
_GAP: Final = "  "
_COLUMNS: Final = (
    "streams", "steps/s", "req/s", "fill", "p50", "p90", "p99", "queue", "mem", "cpu", "err/s"
)  # fmt: skip
_MOST_CODES: Final = 6  # error codes named in one line


@dataclass(frozen=True, slots=True)
class Frame:
    """The rates of one interval: of each worker, None if it did not answer, and of all."""

    address: str
    seconds: float
    seen: Sequence[WorkerStatus]
    workers: Sequence[Rates | None]
    all: Rates | None
    history: Sequence[float] = field(default=())  # steps/s of the intervals up to this one


def frame(
    address: str,
    before: Sequence[WorkerStatus],
    after: Sequence[WorkerStatus],
    seconds: float,
    history: Sequence[float] = (),
) -> Frame:
    """The changes between two polls, `seconds` apart. A worker missing in the first has no rates."""
    earlier = {worker.address: worker.stats for worker in before}
    happened: list[Document | None] = []
    for worker in after:
        first = earlier.get(worker.address)
        happened.append(since(worker.stats, first) if worker.stats and first else None)
    known = [one for one in happened if one is not None]
    total = rates_of(together(known), seconds) if known else None
    history = [*history, total.steps if total else 0.0][-HISTORY:]
    workers = [rates_of(one, seconds) if one is not None else None for one in happened]
    return Frame(address, seconds, after, workers, total, history)


def document(shown: Frame) -> dict[str, Any]:
    """A frame for programs: plain numbers and maps; seconds and bytes."""
    workers = [
        {"address": seen.address, "error": seen.error or None, **(one.document() if one else {})}
        for seen, one in zip(shown.seen, shown.workers, strict=True)
    ]
    return {
        "address": shown.address,
        "seconds": shown.seconds,
        "all": shown.all.document() if shown.all else None,
        "workers": workers,
    }


def render(shown: Frame, width: int = 100, height: int = 1000) -> list[str]:
    """The lines of the frame, at most `height`, cut to `width`."""
    lines = [_title(shown), "", *_table(shown, width), "", *_details(shown, width)]
    return ["".join(filter(str.isprintable, line))[:width].rstrip() for line in lines[:height]]


def _title(shown: Frame) -> str:
    words = ["runnel top", shown.address, f"over {shown.seconds:.3g} s"]
    served = next((seen.served for seen in shown.seen if seen.served), None)
    if served:
        words.append(f"version {served.version}")
        if served.pipeline:
            words.append(f"pipeline {served.pipeline[:12]}")
    if any(seen.stats and seen.stats.get("stopping") for seen in shown.seen):
        words.append("STOPPING")
    return _GAP.join(words)


def _table(shown: Frame, width: int) -> list[str]:
    """The header, a row for each worker, and a total if there are several; gaps narrow if needed."""
    rows: list[tuple[str, ...] | str] = [("worker", *_COLUMNS)]
    for at, (seen, one) in enumerate(zip(shown.seen, shown.workers, strict=True)):
        if one is not None:
            rows.append((str(at), *_cells(one)))
        else:
            rows.append(f"{at:>6}{_GAP}" + (f"trying: {seen.error}" if seen.error else "here; one more look"))
    if len(shown.seen) > 1 and shown.all:
        rows.append(("all", *_cells(shown.all)))
    widths = [
        max(map(len, column)) for column in zip(*(r for r in rows if isinstance(r, tuple)), strict=True)
    ]
    gap = _GAP if sum(widths) + len(_GAP) * (len(widths) - 1) <= width else " "
    return [
        row if isinstance(row, str) else gap.join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True))
        for row in rows
    ]


def _cells(one: Rates) -> tuple[str, ...]:
    return (
        f"{one.streams}/{one.max_streams}" if one.max_streams else str(one.streams),
        number(one.steps),
        number(one.requests),
        "-" if one.fill is None else f"{one.fill:.1f}",
        duration(one.p50),
        duration(one.p90),
        duration(one.p99),
        number(one.pending),
        size(one.resident_bytes),
        f"{one.cpu:.0%}",
        number(sum(one.errors.values())),
    )


def _details(shown: Frame, width: int) -> list[str]:
    one = shown.all
    if one is None:
        return []
    return [
        f"steps/s   {sparkline(shown.history, max(1, width - 30))}  most {number(max(shown.history))}",
        f"queue     {number(one.pending)} requests, {size(one.pending_bytes)} of tensors",
        f"streams   {_rates({'opened': one.opened, **{f'closed: {k}': v for k, v in one.closed.items()}})}",
        f"replies   {_rates({'repeated': one.repeats, 'dropped': one.dropped})}, "
        f"kept {size(one.kept_bytes)}, resumed {number(one.resumed)}/s",
        f"errors    {_rates(one.errors) or 'none'}",
        *_stages(one, width),
        *_health(one, width),
    ]


def _stages(one: Rates, width: int) -> list[str]:
    """Time of each stage for a chunk, and its share of a core."""
    entries = [
        f"{stage}  {duration(one.stage_chunk.get(stage))} a chunk, {share:.0%}"
        for stage, share in one.stages.items()
    ]
    return _filled("stages", entries, width)


def _health(one: Rates, width: int) -> list[str]:
    """Unhealthy streams, and the size of each state, if any stream was checked."""
    if not one.looks and not any(one.unhealthy.values()) and not one.non_finite:
        return []
    ill = [f"{count} {condition.replace('_', ' ')}" for condition, count in one.unhealthy.items() if count]
    entries = [", ".join(ill) or "no stream unhealthy"]
    entries += [f"{state}  non-finite {number(rate)}/s" for state, rate in one.non_finite.items()]
    entries += [
        f"{state}  rms {rms:.3g}, {one.state_distance.get(state, 0.0):.3g} from its start"
        for state, rms in one.state_rms.items()
    ]
    entries += [f"{gate}  shut {shut:.0%}, open {wide:.0%}" for gate, (shut, wide) in one.gates.items()]
    return _filled("health", entries, width)


def _filled(head: str, entries: Sequence[str], width: int) -> list[str]:
    """Fill lines with as many entries as fit."""
    lines: list[str] = []
    for words in entries:
        if lines and len(lines[-1]) + len(words) + 3 <= width:
            lines[-1] += f" | {words}"
        else:
            lines.append(f"{'' if lines else head:<10}{words}")
    return lines


def _rates(rates: Mapping[str, float]) -> str:
    most = sorted(rates.items(), key=lambda item: -item[1])[:_MOST_CODES]
    text = ", ".join(f"{name} {number(rate)}/s" for name, rate in most)
    return text + (", …" if len(rates) > _MOST_CODES else "")


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars, from 0 to their maximum."""
    values = values[-width:]
    most = max(values, default=0.0)
    if most <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(v / most * len(_BARS)))] for v in values)


def number(value: float) -> str:
    """``0``, ``0.25``, ``12.3``, ``999``, ``24.3k``, ``1.2M``."""
    if value >= 999.5:
        for letter in "kMGT":
            value /= 1000
            if value < 999.5 or letter == "T":
                return f"{value:.3g}{letter}" if value < 999.5 else f"{value:.0f}{letter}"
    if value == int(value):
        return str(int(value))
    return f"{value:.2f}" if value < 1 else f"{value:.3g}"


def size(value: float) -> str:
    """Bytes: ``0``, ``512B``, ``12.3M``."""
    letters = iter("BKMGT")
    letter = next(letters)
    while value >= 999.5 and letter != "T":
        value, letter = value / 1024, next(letters)
    return f"{value:.3g}{letter}" if value else "0"


def duration(seconds: float | None) -> str:
    """``-``, ``85ns``, ``85µs``, ``1.2ms``, ``3.4s``."""
    if seconds is None:
        return "-"
    if seconds < 0.9995e-6:
        return f"{seconds * 1e9:.3g}ns"
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.3g}µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g}ms"
    return f"{seconds:.3g}s"
