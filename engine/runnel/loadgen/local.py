"""A load on an engine in this process, batched as the daemon batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

from ..engine import Engine
from ..errors import RunnelError
from ..stage import Chunk
from ..stream import Stream
from .inputs import Playlist
from .trial import Answer


class LocalTarget:
    """Streams of an engine in this process. `poll` runs one batch: the oldest chunk of each stream.

    The generating thread also computes, as in a program that embeds the engine. A chunk that falls due during
    a batch is sent after it, and its wait counts as latency.
    """

    def __init__(self, engine: Engine, chunks: Sequence[Chunk], streams: int) -> None:
        """Open the streams. Raises as `Engine.open`, and then leaves none open."""
        self._engine = engine
        self._playlist = Playlist(chunks, streams)
        self._streams: list[Stream] = []
        self._waiting: deque[tuple[int, int, float]] = deque()  # stream, chunk, due
        with ExitStack() as undo:
            undo.callback(self.close)
            self._streams += (engine.open() for _ in range(streams))
            undo.pop_all()

    def send(self, stream: int, due: float) -> None:
        self._waiting.append((stream, self._playlist.next_index(stream), due))

    def poll(self, seconds: float) -> list[Answer]:
        if not self._waiting:
            time.sleep(seconds)
            return []
        batch: dict[int, tuple[int, float]] = {}
        later: deque[tuple[int, int, float]] = deque()
        for stream, chunk, due in self._waiting:
            if stream in batch:
                later.append((stream, chunk, due))
            else:
                batch[stream] = chunk, due
        self._waiting = later
        streams, chunks = self._streams, self._playlist.chunks
        results = self._engine.feed_many([(streams[s], chunks[chunk]) for s, (chunk, _) in batch.items()])
        return [
            (due, result if isinstance(result, RunnelError) else None)
            for (_, due), result in zip(batch.values(), results, strict=True)
        ]

    def close(self) -> None:
        """Close the streams."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def __enter__(self) -> LocalTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
