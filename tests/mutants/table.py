"""The table of mutants: each removes one bound or promise, and names the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = Path(__file__).with_name("table.txt")
COLUMNS: Final = 5


@dataclass(frozen=True)
class Mutant:
    """A change of one file that removes what `promise` says."""

    promise: str
    file: str  # below the root
    text: str
    replacement: str
    tests: tuple[str, ...]  # below the root, as pytest takes them

    def applied(self, root: Path = ROOT) -> str:
        """The file's text with the change. Raises ValueError unless the text occurs exactly once."""
        whole = (root / self.file).read_text()
        found = whole.count(self.text)
        if found != 1:
            raise ValueError(f"{self.promise}: {self.text!r} occurs {found} times in {self.file}, not once")
        return whole.replace(self.text, self.replacement)


def read(path: Path = TABLE) -> list[Mutant]:
    """All mutants of a table. Raises ValueError for a line that is no row."""
    mutants = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        cells = [cell.strip().replace("\\n", "\n") for cell in line.split(" | ")]
        if len(cells) != COLUMNS or not all(cells):
            raise ValueError(f"{path.name}:{number}: {len(cells)} columns, not {COLUMNS}, or one is empty")
        promise, file, text, replacement, tests = cells
        mutants.append(
            Mutant(promise, file, text, replacement, tuple(f"tests/{name}" for name in tests.split()))
        )
    return mutants
