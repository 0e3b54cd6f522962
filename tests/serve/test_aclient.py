"""The asyncio client against a daemon: the same rules, with tasks instead of threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import runnel
from runnel import AsyncClient, errors
from runnel.client.aclient import AsyncRemoteStream
from runnel.daemon.loop import Daemon
from runnel.spec import Array

from .peers import Gate
from .support import UNLUCKY, SpyEngine, plain_engine, rows

T = TypeVar("T")


def play(daemon: Daemon, scene: Callable[[AsyncClient], Awaitable[T]], **options: Any) -> T:
    """Run a scene with a client of its own; check that nothing waits in the client afterwards."""

    async def main() -> T:
        async with AsyncClient(daemon.address, **{"timeout": 20, **options}) as client:
            result = await scene(client)
            for connection in client._connections.values():
                assert not connection._waiters
                assert not connection._others
            return result

    return asyncio.run(main())


def column(chunks: list[Array]) -> list[float]:
    return list(np.concatenate(chunks)[:, 0].tolist())


def test_a_remote_stream_behaves_as_a_local_one(daemon: Daemon) -> None:
    async def scene(client: AsyncClient) -> None:
        local, remote = plain_engine().open("a"), await client.open("a")
        for chunk in (rows(1, 2, 3), rows(4), {"x": rows(5, 6)}):
            ours, theirs = await remote.feed(chunk), local.feed(chunk)
            assert type(ours) is type(theirs)
            if isinstance(ours, dict):
                ours, theirs = ours["y"], theirs["y"]
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(await remote.flush(), local.flush())
        with pytest.raises(errors.StreamEndedError):
            await remote.feed(rows(1))
        await remote.reset()
        local.reset()
        np.testing.assert_array_equal(await remote.feed(rows(1, 1)), local.feed(rows(1, 1)))
        with pytest.raises(errors.StageError):
            await remote.feed(rows(UNLUCKY))
        with pytest.raises(errors.ChunkError):
            await remote.feed([1.0])  # type: ignore[arg-type]
        await remote.close()
        await remote.close()
        with pytest.raises(errors.StreamClosedError):
            await remote.feed(rows(1))
        assert (await client.describe()).limits["streams"] == 64

    play(daemon, scene)
    assert runnel.AsyncClient is AsyncClient


def test_many_tasks_share_a_client(daemon: Daemon) -> None:
    async def one(client: AsyncClient, k: int) -> list[float]:
        async with await client.open(f"s{k}") as stream:
            return column([*[await stream.feed(rows(k + 1)) for _ in range(40)], await stream.flush()])

    async def scene(client: AsyncClient) -> list[list[float]]:
        return await asyncio.gather(*(one(client, k) for k in range(50)))

    for k, got in enumerate(play(daemon, scene)):
        assert got == [float(k + 1) * n for n in range(1, 41)]


def test_tasks_share_a_stream(daemon: Daemon) -> None:
    async def scene(client: AsyncClient) -> list[float]:
        stream = await client.open()

        async def some() -> list[Array]:
            return [await stream.feed(rows(1)) for _ in range(30)]

        told = await asyncio.gather(*(some() for _ in range(5)))
        return [*sorted(v for chunks in told for v in column(chunks)), *column([await stream.flush()])]

    assert play(daemon, scene) == list(range(1, 151))


def test_one_task_sends_and_another_receives(daemon: Daemon) -> None:
    """A full window makes the sender wait until results are received."""

    async def scene(client: AsyncClient) -> list[float]:
        stream = await client.open()
        most = 0

        async def send() -> None:
            nonlocal most
            for value in range(1, 201):
                await stream.send(rows(value))
                most = max(most, stream.outstanding)

        async def receive() -> list[Array]:
            out = []
            while len(out) < 200:
                if stream.outstanding:
                    out.append(await stream.receive())
                else:
                    await asyncio.sleep(0)
            return out

        _, out = await asyncio.gather(send(), receive())
        assert most <= 5
        return column([*out, await stream.flush()])

    assert play(daemon, scene, window=5) == np.cumsum(range(1, 201)).tolist()


def test_a_full_window_is_an_error(daemon: Daemon) -> None:
    async def scene(client: AsyncClient) -> None:
        stream = await client.open()
        await stream.send(rows(1))
        await stream.send(rows(2))
        client.timeout = 0.1
        with pytest.raises(errors.LimitError, match="2 results are outstanding"):
            await stream.send(rows(3))
        client.timeout = 20
        assert column([*[out async for out in stream.results()], await stream.flush()]) == [1, 3]
        with pytest.raises(errors.StreamError, match="no result to receive"):
            await stream.receive()

    play(daemon, scene, window=2)


def test_feed_all_takes_either_kind_of_iterable(daemon: Daemon) -> None:
    async def chunks() -> AsyncIterator[Array]:
        for value in (3, 4):
            await asyncio.sleep(0)
            yield rows(value)

    async def scene(client: AsyncClient) -> list[float]:
        stream = await client.open()
        out = [out async for out in stream.feed_all([rows(1), rows(2)])]
        out += [out async for out in stream.feed_all(chunks())]
        return column([*out, await stream.flush()])

    assert play(daemon, scene) == [1, 3, 6, 10]


def test_feed_many_behaves_as_the_engines(daemon: Daemon) -> None:
    plan = [(0, rows(1, 2)), (1, rows(3)), (0, rows(4)), (2, rows(UNLUCKY)), (2, rows(5)), (1, rows(6))]

    async def scene(client: AsyncClient) -> list[Any]:
        ours = [await client.open(f"s{i}") for i in range(3)]
        return await client.feed_many([(ours[i], chunk) for i, chunk in plan])

    local = plain_engine()
    theirs = [local.open() for _ in range(3)]
    for got, want in zip(
        play(daemon, scene), local.feed_many([(theirs[i], chunk) for i, chunk in plan]), strict=True
    ):
        if isinstance(want, errors.RunnelError):
            assert isinstance(got, type(want))
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("by_time", [False, True])
def test_a_cancelled_feed_is_applied_and_the_stream_goes_on(
    daemon: Daemon, engine: SpyEngine, by_time: bool
) -> None:
    gate = Gate(engine)

    async def give_up(stream: AsyncRemoteStream) -> None:
        if by_time:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.feed(rows(2)), 0.05)
            return
        task = asyncio.create_task(stream.feed(rows(2)))
        await asyncio.to_thread(gate.entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def scene(client: AsyncClient) -> list[float]:
        stream = await client.open()
        await stream.send(rows(1))
        await give_up(stream)
        gate.go.set()
        out = [await stream.receive()]
        out += [await stream.feed(rows(3)), await stream.flush()]
        assert stream.seq == 4
        return column(out)

    assert play(daemon, scene) == [3, 6]  # the cancelled feed took row 1, which chunk 2 let out


def test_a_cancelled_receive_leaves_the_result(daemon: Daemon, engine: SpyEngine) -> None:
    gate = Gate(engine)

    async def scene(client: AsyncClient) -> list[float]:
        stream = await client.open()
        for value in (1, 2, 3):
            await stream.send(rows(value))
        tasks = [asyncio.create_task(stream.receive()) for _ in range(2)]
        await asyncio.to_thread(gate.entered.wait, 10)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        gate.go.set()
        assert stream.outstanding == 3
        return column([*[out async for out in stream.results()], await stream.flush()])

    assert play(daemon, scene) == [1, 3, 6]


def test_a_snapshot_a_restore_and_a_take_over(daemon: Daemon) -> None:
    async def scene(client: AsyncClient) -> None:
        stream = await client.open("a")
        await stream.send(rows(1))
        blob = await stream.snapshot()
        copy = await client.restore(blob, "b")
        assert column([await copy.feed(rows(2)), await copy.flush()]) == [1, 3]
        taken = await client.resume("a")
        assert taken.seq == 1
        with pytest.raises(errors.FencedError):
            await stream.feed(rows(9))
        await stream.close()
        assert column([await taken.feed(rows(3)), await taken.flush()]) == [1, 4]
        (stats,) = await client.stats()
        assert stats["resumed"] == 1

    play(daemon, scene)


def test_no_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncClient(f"ipc://{tmp_path}/nobody.sock", timeout=0.1) as client:
            with pytest.raises(errors.TimeoutError, match="is the daemon running there"):
                await client.open()

    asyncio.run(main())


def test_closing_wakes_waiting_tasks(daemon: Daemon, engine: SpyEngine) -> None:
    gate = Gate(engine)

    async def main() -> None:
        client = AsyncClient(daemon.address, timeout=60)
        stream = await client.open()
        tasks = [asyncio.create_task(stream.feed(rows(1))) for _ in range(3)]
        await asyncio.to_thread(gate.entered.wait, 10)
        await client.close()
        await client.close()
        for task in tasks:
            with pytest.raises(errors.UsageError, match="closed"):
                await task
        with pytest.raises(errors.UsageError, match="closed"):
            await client.open()

    asyncio.run(main())
    gate.go.set()


def test_a_client_belongs_to_one_loop(daemon: Daemon) -> None:
    client = AsyncClient(daemon.address, timeout=20)
    with asyncio.Runner() as one, asyncio.Runner() as two:
        stream = one.run(client.open())

        async def feed() -> None:
            with pytest.raises(errors.UsageError, match="event loop"):
                await stream.feed(rows(1))

        two.run(feed())
        one.run(client.close())
