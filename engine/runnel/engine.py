"""Many streams of one pipeline, in one process."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from . import snapshot as snapshots
from .errors import LimitError, PipelineError, RunnelError, StreamError, StreamExistsError
from .insight.health import Health, Settings
from .notices import Notices
from .pipeline.calls import Calls, exclusive
from .pipeline.passage import Passage, advance
from .pipeline.pipeline import Pipeline, States
from .spec import Array, brief
from .stage import Chunk, Steps
from .stream import Stream

MAX_ID = 512  # characters of a stream's name with its user's prefix: stored per stream, repeated in messages
MAX_STREAMS = 10_000_000
_ID = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{MAX_ID}}}\Z")


class Engine:
    """A loaded pipeline and its streams.

    An engine runs one call at a time. A call during a call of another thread, or from a stage, raises
    StreamError. Between two calls another thread may take over.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        max_streams: int = 1024,
        notices: Notices | None = None,
        health: Settings | None = None,
    ) -> None:
        """`notices`: the listeners to events of streams. `health`: when and how states are checked."""
        self.pipeline = pipeline
        self.max_streams = max_streams
        self._notices = notices or Notices()
        self.health = Health(pipeline, health or Settings())
        self._streams: dict[str, Stream] = {}
        self._calls = Calls(self._repair)
        self._passages: set[Passage] = set()  # chunks that are being stepped in slices
        self._numbers = itertools.count(1)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        max_streams: int = 1024,
        providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
        threads: int = 1,
        trust: bool = False,
        flush_denormals: bool = False,
    ) -> Engine:
        """Load a pipeline file (.toml) or a self-describing model (.onnx).

        `max_streams` bounds the streams open at once; their state rows are reserved, but memory is touched
        only when used. `providers`: onnxruntime execution providers by name, CPU by default. `threads`:
        onnxruntime's threads for one step; small steps run fastest with 1. `trust`: load a file that is not
        the certified one, or has no certificate.

        `flush_denormals`: treat numbers below 1e-38 as 0, so that a state that decays in silence cannot slow
        a step by up to 30 times. onnxruntime does this by setting the calling thread's floating-point mode,
        once and permanently for the whole process, so use it only in a process of your own, as `runnel serve`
        does. onnxruntime supports it on x86-64 only; elsewhere the logger `runnel.model` warns.

        Raises PipelineError, PluginError, ModelError, CertificateError, ProviderError.
        """
        # Imported here, because it loads onnxruntime.
        from .loading.loader import load_health, load_notices, load_pipeline

        for name, value, most in (("max_streams", max_streams, MAX_STREAMS), ("threads", threads, 1024)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise LimitError(f"{name} must be a whole number in 1..{most}, not {value!r}")
        file = Path(path)
        pipeline = load_pipeline(file, max_streams, providers, threads, trust, flush_denormals)
        notices, health = load_notices(file), load_health(file)
        try:
            return cls(pipeline, max_streams, notices, health)
        except PipelineError as error:  # [health] does not fit the pipeline
            raise PipelineError(f"{file}: {error.message}") from None

    def __repr__(self) -> str:
        signals = f"{brief(self.pipeline.inputs)} -> {brief(self.pipeline.outputs)}"
        return f"<Engine {signals}, {len(self._streams)} of {self.max_streams} streams open>"

    @property
    def notices(self) -> Notices:
        """The listeners to events of streams."""
        return self._notices

    @notices.setter
    def notices(self, notices: Notices) -> None:
        self._notices = notices

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The open streams by id."""
        return MappingProxyType(self._streams)

    @exclusive
    def open(self, id: str | None = None) -> Stream:
        """Open a stream in its initial state; the default id is chosen by the engine.

        Raises StreamExistsError, LimitError if `max_streams` are open, StreamError for a bad id.
        """
        return self._add(id, self._claim(id), "new")

    @exclusive
    def restore(self, blob: bytes, id: str | None = None, *, checked: bool = False) -> Stream:
        """Open a stream that continues exactly where the snapshot was taken.

        `checked`: the snapshot's checksum was verified before (`runnel.snapshot.Checksum`). Raises
        SnapshotError for damaged bytes or the snapshot of another pipeline, and the errors of `open`. After
        an error no stream is open.
        """
        snapshot = snapshots.decode(blob, self.pipeline.admit, checked, self.pipeline.most_header)
        states = self._claim(id)
        try:
            loaded = self.pipeline.load(states, snapshot)
        except Exception:
            self.pipeline.close(states)
            raise
        return self._add(id, loaded, "restored", snapshot.seq, snapshot.ended)

    def feed_many(self, pairs: Sequence[tuple[Stream, Array | Chunk]]) -> list[Any]:
        """Feed several streams in batches; return what `Stream.feed` returns for each, in the same order.

        A failed chunk has its error (a RunnelError, not raised) in place of its output; its stream is
        unchanged, and other streams are not affected. A stream may occur more than once: its chunks are
        applied in order, and after a failed chunk its later chunks fail too, so that no chunk is skipped.
        """
        if len(pairs) == 1:  # a batch of one costs twice as much as a single step
            return [self._feed_one(*pairs[0])]
        return self._feed_together(pairs)

    @exclusive
    def _feed_together(self, pairs: Sequence[tuple[Stream, Array | Chunk]]) -> list[Any]:
        results: list[Any] = [None] * len(pairs)
        pipeline = self.pipeline
        name, dtype, shape = pipeline.tick_name, pipeline.tick_dtype, pipeline.tick_shape
        ndarray = np.ndarray  # a local name, because it is looked up twice per stream
        broken: set[Stream] = set()
        for indices in _rounds([stream for stream, _ in pairs]):
            now: list[int] = []
            states: list[States] = []
            chunks: list[Chunk] = []
            due: list[tuple[int, int]] = []  # index in `pairs`, index among the streams stepped now
            for i in indices:
                stream, chunk = pairs[i]
                try:
                    if (
                        stream._pipeline is not pipeline
                        or stream._ended
                        or stream._closed
                        or (broken and stream in broken)
                    ):
                        self._refuse(stream)
                    # Fast path without a call: one valid time step of the only input, as in Stream.feed.
                    if chunk.__class__ is ndarray and chunk.dtype is dtype and chunk.shape == shape:
                        chunks.append({name: chunk})
                    else:
                        chunks.append(pipeline.accept(chunk))
                except RunnelError as error:
                    results[i] = error
                    broken.add(stream)
                    if stream._pipeline is pipeline:
                        stream._failed(error)
                    continue
                if stream.seq == stream._due:
                    due.append((i, len(now)))
                now.append(i)
                states.append(stream._states)
            if due:
                self.health.start_recording()
            try:
                self._step(pairs, now, states, chunks, results, broken)
                for i, at in due:
                    stream = pairs[i][0]
                    if not isinstance(results[i], RunnelError):
                        stream._due += self.health.every
                        self.health.check(stream, results[i], at)
            finally:
                if due:
                    self.health.stop_recording()
        return results

    def _step(
        self,
        pairs: Sequence[tuple[Stream, Array | Chunk]],
        now: Sequence[int],
        states: Sequence[States],
        chunks: Sequence[Chunk],
        results: list[Any],
        broken: set[Stream],
    ) -> None:
        """Step the streams with the indices `now` in `pairs`; commit each, or store its error."""
        only_out = self.pipeline.only_out
        for i, done in zip(now, self.pipeline.step_many(states, chunks), strict=True):
            stream, chunk = pairs[i]
            if isinstance(done, RunnelError):
                results[i] = done
                broken.add(stream)
                stream._failed(done)
                continue
            after, out = done
            stream._states, stream.seq = after, stream.seq + 1
            if only_out is not None and isinstance(chunk, np.ndarray):
                results[i] = out[only_out]
            else:
                results[i] = out

    def generate_many(self, pairs: Sequence[tuple[Stream, int]]) -> list[Any]:
        """Run `Stream.generate` for several streams, batched tick by tick.

        `pairs`: each stream, and the number of time steps to generate. Results and errors as in `feed_many`.
        """
        made = self.feed_many([(stream, Steps(steps)) for stream, steps in pairs])
        return [m if isinstance(m, RunnelError) else self.pipeline.answer(None, m) for m in made]

    @exclusive
    def begin(self, stream: Stream, chunk: Array | Chunk) -> Passage:
        """Start to apply a chunk in slices; see `advance`.

        The stream does not change before the last slice. Raises as `Stream.feed` does; LimitError if
        MAX_PASSAGES have started.
        """
        if stream._pipeline is not self.pipeline:
            self._refuse(stream)
        passage = Passage(stream, chunk, self._passages.discard)
        self._passages.add(passage)
        return passage

    @exclusive
    def advance(self, parts: Sequence[tuple[Passage, int]]) -> list[Chunk | RunnelError]:
        """Step each passage by its number of time steps, batched; return the outputs, or errors."""
        return advance(parts)

    def _feed_one(self, stream: Stream, chunk: Array | Chunk) -> Any:
        try:
            if stream._pipeline is not self.pipeline:
                self._refuse(stream)
            return stream.feed(chunk)
        except RunnelError as error:
            return error

    def _refuse(self, stream: Stream) -> None:
        stream._check_live()
        if stream._pipeline is not self.pipeline:
            raise StreamError(f"stream {stream.id!r} belongs to another engine")
        raise StreamError(f"stream {stream.id!r}: an earlier chunk of it in this call failed")

    def placement(self) -> dict[str, Counter[str]]:
        """Count the operators of all models by the onnxruntime provider that runs them."""
        from .model.session import ModelStage, placement

        placed: dict[str, Counter[str]] = {}
        for stage in self.pipeline.unrolled.stages:
            if isinstance(stage, ModelStage):
                for provider, ops in placement(stage.session).items():
                    placed.setdefault(provider, Counter()).update(ops)
        return placed

    def close(self) -> None:
        """Close every stream, with the notice ``evicted``, because its owner did not close it."""
        for stream in list(self._streams.values()):
            self._notices("evicted", stream.id, stream.seq, "the engine is closed")
            stream.close("evicted")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise StreamError(
            "an engine cannot be copied or pickled: load another one from the same file, in each process"
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self, id: str | None) -> States:
        if id is not None and (not isinstance(id, str) or not _ID.match(id)):
            raise StreamError(f"a stream's id is 1 to {MAX_ID} printable characters, not {id!r:.80}")
        if id in self._streams:
            raise StreamExistsError(f"stream {id!r} is open already: close it first, or choose another id")
        if len(self._streams) >= self.max_streams:
            raise LimitError(
                f"all {self.max_streams} streams are open: close some, or allow more: max_streams of "
                "Engine.load, --max-streams of runnel serve"
            )
        return self.pipeline.open()

    def _add(self, id: str | None, states: States, reason: str, seq: int = 0, ended: bool = False) -> Stream:
        while id is None or id in self._streams:
            id = f"stream-{next(self._numbers)}"
        stream = Stream(
            self.pipeline, id, states, self._calls, self._forget, self._notices, self.health, seq, ended
        )
        self._calls.opening = stream
        self._notices.queue("opened", id, seq, reason)
        self._streams[id] = stream
        return stream

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        self.health.forget(stream)
        states, stream._states = stream._states, ()
        self.pipeline.close(states)

    def _repair(self) -> None:
        """After an interrupted call, release what it had claimed or had not yet released."""
        for stream in list(self._streams.values()):
            if stream is self._calls.opening:
                stream._closed = True
                self._notices.queue("closed", stream.id, stream.seq, "interrupted")
            if stream._closed:
                self._streams.pop(stream.id, None)
        open_ones = [stream._states for stream in self._streams.values()]
        self.pipeline.reclaim(open_ones + [passage.states for passage in self._passages])
        self.health.recount(self._streams.values())


def _rounds(streams: Sequence[Stream]) -> list[Sequence[int]]:
    """Group the indices into rounds with each stream at most once, in order."""
    if len(set(streams)) == len(streams):
        return [range(len(streams))]
    rounds: list[list[int]] = []
    before: Counter[Stream] = Counter()
    for i, stream in enumerate(streams):
        if before[stream] == len(rounds):
            rounds.append([])
        rounds[before[stream]].append(i)
        before[stream] += 1
    return list(rounds)
