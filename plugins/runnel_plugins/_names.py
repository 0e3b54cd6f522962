"""Names of classes, from an option or a file, for stages that decide between classes."""

from __future__ import annotations

from pathlib import Path

from runnel import regular
from runnel.errors import PipelineError

MAX_BYTES = 2**24  # of a file of names: a vocabulary of a million words is smaller


def given(stage: str, what: str, names: list[str] | str | None, file: Path | None) -> tuple[str, ...] | None:
    """Return the names in order, from the option or from the file's lines.

    A text as the option is its characters. `what`: the names of the two options, for the error. None if
    neither is given.
    """
    if names is not None and file is not None:
        raise PipelineError(f"{stage}: {what} are both given: one is enough")
    return tuple(names) if names is not None else None if file is None else lines(stage, file)


def lines(stage: str, file: Path) -> tuple[str, ...]:
    """Return the lines of a UTF-8 file; an empty line is an empty name."""
    try:
        data = regular.read(file, MAX_BYTES, "a list of names", PipelineError)
    except PipelineError as error:
        raise PipelineError(f"{stage}: {error.message}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PipelineError(f"{stage}: {file} is not UTF-8: byte {error.start} cannot be read") from None
    found = text.replace("\r\n", "\n").split("\n")
    if not found[-1]:
        found.pop()  # the end of the last line, not a line
    return tuple(found)


def check_count(stage: str, names: tuple[str, ...], classes: int) -> None:
    """Raise PipelineError unless there is one name per class."""
    if len(names) != classes:
        raise PipelineError(f"{stage}: {len(names)} names are given for {classes} classes")
