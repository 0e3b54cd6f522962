"""What recipes have in common: what they measured and made, on the screen and in their READMEs."""

from __future__ import annotations

import platform
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runnel.cli.progress import counted

BEGIN, END = "<!-- measured -->", "<!-- end -->"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Table:
    """Figures as text: one list of cells a row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        """For a terminal: columns aligned, the first to the left, figures to the right."""
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
    """A text that a model made, shown as it is."""

    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title}\n" + textwrap.indent(self.text, "  | ", lambda _: True)

    def markdown(self) -> str:
        """Fenced by more backticks than the text has in a row."""
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", self.text))])
        return f"**{self.title}**\n\n{fence}text\n{self.text}\n{fence}"


class Recipe(Protocol):
    """What a recipe's module offers."""

    def run(self, out: Path, quick: bool, say: Say) -> Sequence[Table | Passage]:
        """All of it, its files in `out`. `quick`: in seconds, with figures that say little."""


def record(readme: Path, tables: Sequence[Table | Passage], seconds: float) -> None:
    """Put the tables between the marks of the page, with what they were measured on and how long it took."""
    import torch  # not above: --help is for those without it, too

    threads = torch.get_num_threads()
    machine = f"{counted(threads, 'thread')}, torch {torch.__version__}, Python {platform.python_version()}"
    body = "\n\n".join(table.markdown() for table in tables)
    text = readme.read_text("utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.S)
    if not pattern.search(text):
        raise OSError(f"{readme} has no {BEGIN} … {END} to write between")
    made = f"{BEGIN}\n{body}\n\n({seconds / 60:.1f} minutes in all; {machine}.)\n{END}"
    readme.write_text(pattern.sub(lambda _: made, text), "utf-8")
