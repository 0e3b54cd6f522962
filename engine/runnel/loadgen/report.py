"""The result of a load test, as text for people and as a document for programs. Pure."""

from __future__ import annotations

from typing import Any, Final

from .latency import Latencies
from .ramp import Capacity
from .trial import Result

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
_BAR: Final = 40  # characters
_SHARE_OF_LATENCY: Final = 0.25  # above this share of a latency, a lag makes the latency doubtful


def text(result: Result, remote: bool) -> str:
    """A run's figures in a few lines, and a histogram."""
    plan, latencies = result.plan, result.latencies
    lines = [
        f"{plan.streams} streams at {plan.rate:g} Hz ({plan.pattern} arrivals), {plan.seconds:g} s after "
        f"{plan.warm_up:g} s of warm-up: {plan.offered:.0f} chunks/s offered, "
        f"{result.answered_rate:.0f} answered",
        f"latency from the due time  {_percentiles(latencies)}",
    ]
    if remote:
        lines.append(f"the generator's own lag    {_percentiles(result.lags)}")
    if late := lateness(result, remote):
        lines.append(f"warning: {late}")
    if result.behind:
        lines.append(
            f"fell behind: more than {plan.most_outstanding} chunks were without an answer; broken off"
        )
    if result.failed:
        lines.append(f"failed: {failures(result)}")
    return "\n".join([*lines, "", *histogram(latencies)])


def capacity_text(found: Capacity, deadline: float, percentile: float, remote: bool) -> str:
    """The result of a ramp."""
    goal = f"p{percentile:g} < {millis(deadline)}"
    lines = [f"{found.streams} live streams at {goal}, found in {found.trials} trials"]
    for name, result in (("held", found.held), ("missed", found.missed)):
        if result is None:
            continue
        why = " (fell behind)" if result.behind else f" ({failures(result)})" if result.failed else ""
        lines.append(f"{name:<7}{result.plan.streams:>8} streams  {_percentiles(result.latencies)}{why}")
        if late := lateness(result, remote):
            lines.append(f"warning: at {result.plan.streams} streams {late}")
    if found.missed is None:
        lines.append("all streams that were allowed were held: the machine may hold more")
    return "\n".join([*lines, "", *histogram(found.held.latencies)] if found.held else lines)


def lateness(result: Result, remote: bool) -> str:
    """Why the generator may have caused the latencies; empty if it did not."""
    lag, latency = result.lags.percentile(99), result.latencies.percentile(99)
    if not remote or lag <= _SHARE_OF_LATENCY * latency:
        return ""
    return (
        f"the generator itself sent 1 % of the chunks more than {millis(lag)} late, of a p99 of "
        f"{millis(latency)}: what is served may be faster than these figures"
    )


def failures(result: Result) -> str:
    """``3 × LIMIT, 2 unanswered (first: …)``."""
    parts = [f"{n} × {code}" for code, n in result.failures.most_common()]
    parts += [f"{result.unanswered} unanswered"] * bool(result.unanswered)
    return ", ".join(parts) + (f" (first: {result.first_failure})" if result.first_failure else "")


def histogram(latencies: Latencies) -> list[str]:
    """Lines of ``≤ 2.05 ms  ########  12.3 %  1234``."""
    rows = latencies.spread()
    peak = max((n for _, n in rows), default=0)
    return [
        f"≤ {millis(upper):>9}  {'#' * -(-n * _BAR // peak):<{_BAR}}  {n / latencies.count:6.1%}  {n}"
        for upper, n in rows
    ]


def millis(seconds: float) -> str:
    """``1.23 ms``, three digits at least."""
    value = seconds * 1e3
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f} ms"


def document(result: Result) -> dict[str, Any]:
    """All figures; times in seconds."""
    plan = result.plan
    return {
        "streams": plan.streams,
        "rate": plan.rate,
        "pattern": plan.pattern,
        "seconds": plan.seconds,
        "offered_per_second": plan.offered,
        "answered_per_second": result.answered_rate,
        "due": result.due,
        "answered": result.latencies.count,
        "failed": dict(result.failures),
        "unanswered": result.unanswered,
        "first_failure": result.first_failure,
        "fell_behind": result.behind,
        "latency": _summary(result.latencies),
        "generator_lag": _summary(result.lags),
    }


def capacity_document(found: Capacity, deadline: float, percentile: float) -> dict[str, Any]:
    """The result of a ramp; times in seconds."""
    return {
        "capacity": found.streams,
        "deadline": deadline,
        "percentile": percentile,
        "trials": found.trials,
        "held": document(found.held) if found.held else None,
        "missed": document(found.missed) if found.missed else None,
    }


def _summary(latencies: Latencies) -> dict[str, float]:
    named = {f"p{p:g}": latencies.percentile(p) for p in PERCENTILES}
    return {"mean": latencies.mean, **named, "max": latencies.max}


def _percentiles(latencies: Latencies) -> str:
    named = [f"p{p:g} {millis(latencies.percentile(p))}" for p in PERCENTILES]
    return "  ".join([*named, f"max {millis(latencies.max)}"])
