"""Ends opened as the command line opens them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from runnel import Signal, Source
from runnel.cli.connectors import Outputs, parse_connector, source_of
from runnel.stage import Chunk


def open_source(text: str | Path, signal: Signal) -> AbstractContextManager[Source]:
    """The source that INPUT names."""
    return source_of(parse_connector("source", str(text)), signal)


@contextmanager
def open_sink(text: str | Path, signal: Signal, keep: bool = False) -> Iterator[Callable[[Chunk], None]]:
    """The `write` of the sink that -o names; the sink ends whole unless the block raises."""
    with Outputs([parse_connector("sink", str(text))], signal, keep) as outputs:
        yield outputs.write


def read(text: str | Path, signal: Signal, block: int = 3) -> list[Chunk]:
    """All the chunks of a source."""
    with open_source(text, signal) as source:
        return list(source.chunks(block))
