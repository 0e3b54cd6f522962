"""The hooks by which a package extends Runnel.

A hook returns factories, and none is called per message. A package is found by an entry point in the group
``runnel``: its name is what a pipeline writes after ``use``, and its value is the module that implements the
hook. The module is imported when a pipeline or a command line names it, not before. One module may provide
several names, each with an entry point of its own, and one name may be both a source and a sink.

A factory is usually the class itself. Its first argument is the signal at its position in the pipeline (a
notice has none). Every other argument is an option: a keyword annotated as int, float, bool, str, Path, a
Literal of strings, a list of one of these, or one of these with ``| None``. The options in a pipeline are
checked when the pipeline is read: an error names the nearest valid key or value. An int is accepted for a
float, and a Path is relative to the pipeline's file. On a command line a connector is written
``"NAME:ARG?key=value&key=value"``, where ARG is the value of the first option; the quotes are for the shell.

`runnel plugins new NAME` writes a package like those below, with a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pluggy

from .connectors import Sink, Source
from .notices import Listener
from .stage import Stage

hookspec = pluggy.HookspecMarker("runnel")

StageFactory = Callable[..., Stage]
"""``factory(inputs: Signal, **options) -> Stage``."""

SourceFactory = Callable[..., Source]
"""``factory(signal: Signal, **options) -> Source``."""

SinkFactory = Callable[..., Sink]
"""``factory(signal: Signal, **options) -> Sink``."""

ListenerFactory = Callable[..., Listener]
"""``factory(**options) -> Listener``."""


@hookspec
def runnel_stages() -> Mapping[str, StageFactory]:
    '''Stages: the name that a pipeline uses, and the factory that makes one.

    The factory is called as ``factory(inputs, **options)`` when a pipeline is read; `inputs` is the
    `runnel.Signal` that arrives at the stage. One that cannot work with `inputs` or with an option's value
    raises `runnel.errors.PipelineError`. The stage serves all streams of the pipeline, see `runnel.Stage`;
    `runnel.RowStage` and `runnel.StackedStage` are made for batches.

    A whole plugin, ``runnel_clip.py``::

        """Keep samples in bounds: y[t] = min(max(x[t], -limit), limit)."""

        import numpy as np
        import runnel
        from runnel.errors import PipelineError


        class Clip(runnel.RowStage):
            """Limit every sample of the float arrays to -limit .. limit; others pass unchanged."""

            name = "clip"

            def __init__(self, inputs: runnel.Signal, limit: float = 1.0) -> None:
                if not limit > 0:
                    raise PipelineError(f"clip: limit must be above 0, not {limit:g}")
                self.inputs = self.outputs = inputs
                self.limit = limit

            def rows(self, arrays):
                bound = self.limit
                return {n: np.clip(a, -bound, bound) if a.dtype.kind == "f" else a for n, a in arrays.items()}


        @runnel.hookimpl
        def runnel_stages():
            return {"clip": Clip}

    its entry in the package's ``pyproject.toml``::

        [project.entry-points.runnel]
        clip = "runnel_clip"

    and in a pipeline::

        [[before]]
        use = "clip"
        limit = 0.5
    '''
    raise NotImplementedError


@hookspec
def runnel_sources() -> Mapping[str, SourceFactory]:
    '''Sources: the name, and the factory that opens one.

    The factory is called as ``factory(signal, **options)`` for one run of `runnel run` or `runnel feed`;
    `signal` is what the pipeline takes. One that cannot be opened, or cannot give that, raises
    `runnel.errors.UsageError`. See `runnel.Source`.

    A whole plugin, ``runnel_tone.py``::

        """A test tone: x[t] = sin(2 pi hz t / rate)."""

        import numpy as np
        import runnel
        from runnel.errors import UsageError


        class Tone(runnel.Source):
            """A sine of `hz` Hz, `seconds` long, at the pipeline's rate, the same in each channel."""

            def __init__(self, signal: runnel.Signal, hz: float = 440.0, seconds: float = 1.0) -> None:
                if signal.rate is None or len(signal.tensors) != 1:
                    raise UsageError(f"tone: it makes one array at a known rate, not {signal}")
                self.tensor, self.rate = signal.tensors[0], signal.rate
                self.hz, self.steps = hz, round(seconds * signal.rate)

            def chunks(self, block):
                for start in range(0, self.steps, block):
                    t = np.arange(start, min(start + block, self.steps)) / self.rate
                    sine = np.multiply.outer(np.sin(2 * np.pi * self.hz * t), np.ones(self.tensor.shape))
                    yield {self.tensor.name: sine.astype(self.tensor.dtype)}


        @runnel.hookimpl
        def runnel_sources():
            return {"tone": Tone}

    its entry in the package's ``pyproject.toml``::

        [project.entry-points.runnel]
        tone = "runnel_tone"

    in a pipeline::

        [source]
        use = "tone"
        hz = 1000
        seconds = 0.5

    and on a command line::

        runnel run pipeline.toml "tone:1000?seconds=0.5"
    '''
    raise NotImplementedError


@hookspec
def runnel_sinks() -> Mapping[str, SinkFactory]:
    '''Sinks: the name, and the factory that opens one.

    The factory is called as ``factory(signal, **options)`` for one run; `signal` is what the pipeline makes.
    One that cannot be opened, or cannot take that, raises `runnel.errors.UsageError`. See `runnel.Sink`.

    A whole plugin, ``runnel_peaks.py``::

        """The largest magnitude of each output, as one JSON object."""

        import json
        from pathlib import Path

        import numpy as np
        import runnel
        from runnel.errors import UsageError


        class Peaks(runnel.Sink):
            """Write the largest magnitude of each array to `path`, once the run is over."""

            def __init__(self, signal: runnel.Signal, path: Path) -> None:
                if not path.parent.is_dir():
                    raise UsageError(f"peaks: there is no folder {path.parent}")
                self.path = path
                self.peaks = dict.fromkeys(signal.names, 0.0)

            def write(self, chunk):
                for name, rows in chunk.items():
                    self.peaks[name] = max(self.peaks[name], float(np.abs(rows).max(initial=0)))

            def close(self, whole):
                if whole:
                    self.path.write_text(json.dumps(self.peaks) + "\\n")


        @runnel.hookimpl
        def runnel_sinks():
            return {"peaks": Peaks}

    its entry in the package's ``pyproject.toml``::

        [project.entry-points.runnel]
        peaks = "runnel_peaks"

    in a pipeline::

        [[sink]]
        use = "peaks"
        path = "peaks.json"

    and on a command line::

        runnel run pipeline.toml sensors.csv -o peaks:peaks.json
    '''
    raise NotImplementedError


@hookspec
def runnel_notices() -> Mapping[str, ListenerFactory]:
    '''Listeners to what happens to streams: the name, and the factory that makes one.

    The factory is called as ``factory(**options)`` when a pipeline is read, and gives what is then called
    with each `runnel.Notice`: a stream was opened, reset, failed, idle, evicted or closed, or its state died,
    blew up or recovered, and why. That is once an event, in the thread that runs the streams. A listener that
    raises is logged, and called again.

    A whole plugin, ``runnel_journal.py``::

        """What happened to which stream, a line each."""

        from pathlib import Path

        import runnel


        def journal(path: Path, events: list[str] | None = None):
            """Append a line to `path` for each event, or only for those in `events`."""

            def listen(notice: runnel.Notice) -> None:
                if events is None or notice.event in events:
                    with path.open("a") as file:
                        print(notice.event, notice.stream, notice.seq, notice.reason, file=file)

            return listen


        @runnel.hookimpl
        def runnel_notices():
            return {"journal": journal}

    its entry in the package's ``pyproject.toml``::

        [project.entry-points.runnel]
        journal = "runnel_journal"

    and in a pipeline::

        [[notice]]
        use = "journal"
        path = "streams.log"
        events = ["opened", "closed"]
    '''
    raise NotImplementedError
