"""Messages of both clients, over real sockets, counted by the receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runnel import AsyncClient
from runnel.client import connection
from runnel.client.client import Client
from runnel.client.common import HELD

from .recorder import Recorder, recording
from .support import plain_engine, rows

STREAMS = HELD + 36


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with recording(tmp_path) as recorder:
        yield recorder


def test_feed_many_sends_the_held_requests_together(recorder: Recorder) -> None:
    with Client(recorder.address, timeout=30) as client:
        streams = [client.open() for _ in range(STREAMS)]
        got = client.feed_many([(stream, rows(k, 1)) for k, stream in enumerate(streams)])
        assert [out[0, 0] for out in got] == list(range(STREAMS))
    assert recorder.sizes("feed") == [HELD, STREAMS - HELD]
    assert recorder.sizes("open") == [1] * STREAMS


def test_feed_many_of_asyncio_does_the_same(recorder: Recorder) -> None:
    async def main() -> list[float]:
        async with AsyncClient(recorder.address, timeout=30) as client:
            streams = [await client.open() for _ in range(STREAMS)]
            got = await client.feed_many([(stream, rows(k, 1)) for k, stream in enumerate(streams)])
            return [out[0, 0] for out in got]

    assert asyncio.run(main()) == list(range(STREAMS))
    assert recorder.sizes("feed") == [HELD, STREAMS - HELD]


def test_requests_of_one_turn_of_the_loop_go_together(recorder: Recorder) -> None:
    """The first does not wait for the others: it might be alone."""

    async def main() -> None:
        async with AsyncClient(recorder.address, timeout=30) as client:
            streams = [await client.open() for _ in range(20)]
            for _ in range(3):
                recorder.go.clear()
                asyncio.get_running_loop().call_later(0.05, recorder.go.set)
                await asyncio.gather(*(stream.feed(rows(1)) for stream in streams))

    asyncio.run(main())
    assert recorder.sizes("feed") == [1, 19] * 3


def test_a_single_request_is_bundled_and_its_reply_is_not(
    recorder: Recorder,
) -> None:
    async def main() -> None:
        async with AsyncClient(recorder.address, timeout=30) as client, await client.open() as stream:
            for k in range(5):
                await stream.feed(rows(k))
            await stream.flush()

    asyncio.run(main())
    with Client(recorder.address, timeout=30) as client, client.open() as stream:
        for k in range(5):
            stream.feed(rows(k))
        client.feed_many([(stream, rows(5))])
    assert recorder.sizes("feed") == [1] * 11
    assert len(recorder.answers) == len(recorder.messages)
    assert {frames[0][0] & 0xF0 for frames in recorder.answers} == {0x80}  # a map each


def test_a_bundle_is_bounded_in_bytes_and_a_large_chunk_goes_alone(recorder: Recorder) -> None:
    """Outputs are as large: the replies too are within the bound."""
    sizes = [100_000] * 5 + [300_000] + [10] * 3 + [300_000] * 2 + [100_000]
    chunks = [np.ones((nbytes // 8, 2), "float32") for nbytes in sizes]
    with Client(recorder.address, timeout=30) as client:
        streams = [client.open() for _ in sizes]
        got = client.feed_many(list(zip(streams, chunks, strict=True)))
    for out, chunk in zip(got, chunks, strict=True):
        np.testing.assert_array_equal(out, plain_engine().open().feed(chunk))
    assert recorder.sizes("feed") == [2, 2, 1, 0, 3, 0, 0, 1]
    for frames in recorder.messages:
        assert len(frames) == 1 or len(frames[1]) <= connection.BUNDLE_BYTES or len(frames[1]) == 300_000


def test_a_client_that_is_closed_sends_nothing_more(recorder: Recorder) -> None:
    """Requests held for the end of the loop's turn are dropped, without an error in the loop."""
    faults: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        client = AsyncClient(recorder.address, timeout=30)
        stream = await client.open()
        await stream.send(rows(1))
        await stream.send(rows(2))
        await client.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert not faults
    # The first goes at once, and so does the second if that was answered already.
    assert recorder.sizes("feed") in ([], [1], [1, 1])
