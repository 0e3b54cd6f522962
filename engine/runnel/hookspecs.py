"""The hooks by which a package joins Runnel. A hook hands over factories; none is called per message.

A package is found by an entry point in the group ``runnel``. Its name is what a pipeline writes after
``use``; its value is the module that implements the hook. The module is imported when a pipeline
names it, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pluggy

from .ends import Sink, Source
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

    The factory is called as ``factory(inputs, **options)`` when a pipeline is read. `inputs` is the
    `runnel.Signal` that arrives at the stage; the options are what the pipeline's entry holds beside
    ``use``. Every option is a keyword with an annotation out of int, float, bool, str, Path, a Literal of
    strings, a list of one of these, or one of these with ``| None``: the pipeline's values are checked
    against it, and an int is taken for a float. A factory that cannot work with `inputs` or with an
    option's value raises `runnel.errors.PipelineError`.

    A whole plugin, ``runnel_gain.py``::

        """Multiply every sample: y[t] = factor * x[t]."""

        import numpy as np
        import runnel


        class Gain(runnel.Stage):
            """Multiply every sample by a factor."""

            name = "gain"

            def __init__(self, inputs: runnel.Signal, factor: float = 1.0) -> None:
                self.inputs = self.outputs = inputs
                self.factor = factor

            def initial(self):
                return {}

            def step(self, state, chunk):
                made = {n: (a * self.factor).astype(a.dtype) for n, a in chunk.items()}
                return state, made


        @runnel.hookimpl
        def runnel_stages():
            return {"gain": Gain}

    its entry in the package's ``pyproject.toml``::

        [project.entry-points.runnel]
        gain = "runnel_gain"

    and in a pipeline::

        [[before]]
        use = "gain"
        factor = 0.5
    '''
    raise NotImplementedError


@hookspec
def runnel_sources() -> Mapping[str, SourceFactory]:
    """Sources: the name, and the factory that opens one."""
    raise NotImplementedError


@hookspec
def runnel_sinks() -> Mapping[str, SinkFactory]:
    """Sinks: the name, and the factory that opens one."""
    raise NotImplementedError


@hookspec
def runnel_notices() -> Mapping[str, ListenerFactory]:
    """Listeners to what happens to streams: the name, and the factory that makes one."""
    raise NotImplementedError
