"""RESULTS.md: the page, and the rows read back from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from .case import GROUPS, Case
from .outcome import Outcome

HEAD = (
    "model", "package", "wrapper", "result", "parameters", "error", "rate", "latency", "nodes",
    "µs a step ÷ torch eager", "export",
)  # fmt: skip
STEP = "µs a step ÷ torch eager"
LONGEST = 150  # characters of a reason
NOTES = """\
Each model has its published sizes, or those of its package's own examples, and random weights. It goes into
`runnel_export.export` as it is; the wrapper column names what stands between. Results:

- **certified**: exported, and equal to torch in a second, independent comparison over a whole sequence;
- **refused**: `export` raised an error; its first line is given;
- **fault**: anything else: another exception, a crash, a time-out, a wrong number;
- **absent**: the package does not import, or the model cannot be built.

*error* is the greatest difference relative to the output's peak. *rate* is output rows a tick of the input,
*latency* is in ticks of the input. *nodes* counts the step graph. *µs a step* is the engine's time for the
smallest chunk that gives a row, on one thread. It is divided by torch's time for a chunk of as many ticks
without state, or for the shortest chunk that the model takes. *export* is the time until `export` returned or
refused.
"""


def page(
    head: Iterable[tuple[str, str]],
    cases: Mapping[str, Case],
    rows: Mapping[str, Sequence[str]],
    missing: Mapping[str, str],
) -> str:
    """The whole page. `rows`: by case. `missing`: packages that are left out, and why."""
    parts = ["# Other people's models", "", "Written by `make public`; not edited by hand.", ""]
    parts += [f"- {what}: {value}" for what, value in head]
    parts += ["", "| group | what its models need | certified |", "|---|---|---|"]
    for group, needs in GROUPS.items():
        names = [name for name in rows if cases[name].needs == group]
        parts.append(f"| {group} | {needs} | {sum(map(certified, map(rows.get, names)))} of {len(names)} |")
    parts += ["", NOTES]
    shown = [i for i, name in enumerate(HEAD) if name != STEP or any(cells[i] for cells in rows.values())]
    for group, needs in GROUPS.items():
        table = [
            HEAD,
            ["---"] * len(HEAD),
            *(cells for name, cells in rows.items() if cases[name].needs == group),
        ]
        parts += [f"## {group}: {needs}", ""]
        parts += ["| " + " | ".join(cells[i] for i in shown) + " |" for cells in table]
        parts.append("")
    parts += ["## Packages left out", "", "| package | reason |", "|---|---|"]
    parts += [f"| {package} | {reason} |" for package, reason in missing.items()]
    return "\n".join(parts) + "\n"


def certified(row: Sequence[str] | None) -> bool:
    return row is not None and row[HEAD.index("result")] == "certified"


def row(case: Case, outcome: Outcome) -> tuple[str, ...]:
    """One row of the table."""
    reason = " ".join(outcome.reason.split())
    reason = reason if len(reason) <= LONGEST else reason[: LONGEST - 1] + "…"
    reason = re.sub(r"/\S*/", "", reason).replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
    ratio = "" if outcome.ratio is None else f"{outcome.step_us:.0f} µs, ÷ torch {outcome.ratio:.2f}"
    return (
        case.name,
        f"{case.package} {outcome.version}".strip(),
        case.wrapper or "none",
        outcome.result + (f": {reason}" if reason else ""),
        f"{outcome.parameters / 1e6:.2f} M" if outcome.parameters else "",
        "" if outcome.error is None else f"{outcome.error:.1e}",
        outcome.rate,
        "" if outcome.latency is None else str(outcome.latency),
        "" if outcome.nodes is None else str(outcome.nodes),
        ratio,
        "" if outcome.seconds is None else f"{outcome.seconds:.1f} s",
    )


def rows_of(text: str) -> dict[str, tuple[str, ...]]:
    """The rows of a page, by model. A column that the page leaves out is empty."""
    found: dict[str, tuple[str, ...]] = {}
    head: tuple[str, ...] = ()
    for line in text.splitlines():
        cells = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if cells[:1] == HEAD[:1]:
            head = cells
        elif head and len(cells) == len(head) and set(cells[0]) != {"-"}:
            at = dict(zip(head, cells, strict=True))
            found[cells[0]] = tuple(at.get(name, "") for name in HEAD)
    return found
