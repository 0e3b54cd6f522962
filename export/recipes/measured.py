"""Results of recipes, printed on the screen and written into their READMEs."""

from __future__ import annotations

import os
import platform
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

BEGIN, END = "<!-- measured -->", "<!-- end -->"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Table:
    """A table of text: one list of cells for each row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        """Text for a terminal: the first column is aligned to the left, the others to the right."""
        lines = [list(self.header), *map(list, self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.header))]
        told = [
            "  ".join(
                c.ljust(w) if k == 0 else c.rjust(w)
                for k, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([self.title, *(f"  {line.rstrip()}" for line in told)])

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Passage:
    """A text that a model generated, shown unchanged."""

    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title}\n" + textwrap.indent(self.text, "  | ", lambda _: True)

    def markdown(self) -> str:
        """The text in a fence of more backticks than any run of backticks in it."""
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", self.text))])
        return f"**{self.title}**\n\n{fence}text\n{self.text}\n{fence}"


class Recipe(Protocol):
    """Interface of a recipe's module."""

    def run(self, out: Path, quick: bool, say: Say) -> Sequence[Table | Passage]:
        """Run the recipe and write its files to `out`. `quick`: in seconds, with meaningless figures."""


def record(readme: Path, tables: Sequence[Table | Passage], seconds: float) -> None:
    """Write the tables between the marks of the page, with the machine, the versions and the duration."""
    machine = (
        f"{os.cpu_count()} processors, of which torch uses one; "
        f"torch {version('torch')}, Python {platform.python_version()}"
    )
    body = "\n\n".join(table.markdown() for table in tables)
    text = readme.read_text("utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.S)
    if not pattern.search(text):
        raise OSError(f"{readme} has no {BEGIN} … {END} to write between")
    made = f"{BEGIN}\n{body}\n\n({seconds / 60:.1f} minutes in all; {machine}.)\n{END}"
    readme.write_text(pattern.sub(lambda _: made, text), "utf-8")
