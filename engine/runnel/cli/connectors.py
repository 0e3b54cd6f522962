"""Parse and open the sources and sinks of a run.

Each is written as a file, as ``NAME:ARGUMENT?key=value``, or as a table of a pipeline file.

Each is a plugin of an installed package: ``readings.csv`` is the source ``csv`` with that path,
``host:?rate=2`` the source ``host`` with that option.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np

from ..columns import columns_of
from ..connectors import Sink, Source
from ..errors import PipelineError, PluginError, UsageError, nearest
from ..files import STDIO, warn
from ..loading import toml
from ..loading.registry import Plugin, from_text, installed, load, make, offers
from ..spec import Array, Signal, TensorSpec
from ..stage import Chunk
from .pace import rows_of
from .stamps import Stamps

MAX_SINKS = 16  # of one run: each takes every chunk
INPUT, OUTPUT = "INPUT", "-o"  # names of the arguments in errors

INPUTS = """what INPUT and OUT may be:
  a file whose ending says its kind: speech.wav, readings.csv, x.npy, rows.jsonl, day.parquet, text.txt
  -                      raw little-endian numbers on standard input; a table on standard output
  "NAME:ARGUMENT?key=value&key=value"
                         an end by its name, with its first option and others: "host:?rate=2",
                         "lines:/dev/ttyUSB0?baud=9600", "sub:tcp://127.0.0.1:5556?topic=a",
                         "csv:x.csv?time=t", plot:, prometheus:9100
  "x.csv?key=value"      a file with options: "x.csv?time=t&unit=ms", "x.csv?sep=;&decimal=,"
The quotes keep the shell from reading ? & and ; itself.
`runnel plugins` lists the sources and sinks that are installed, with their options.
"""

Kind = Literal["source", "sink"]

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*):(.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """A source or a sink that was asked for, not yet opened."""

    kind: Kind
    use: str  # the plugin
    name: str  # its name in messages of the run
    where: str  # its origin, for errors
    first: str | None = None  # text of its first option
    texts: Mapping[str, str] = field(default_factory=dict)  # options as text
    options: Mapping[str, Any] = field(default_factory=dict)  # options as values
    folder: Path | None = None  # the folder of relative paths in the options
    file: Path | None = None  # the file, if it was named by a file


def parse_connector(kind: Kind, text: str, columns: Sequence[str] | None = None) -> ConnectorSpec:
    """Parse a source or sink of the command line; `columns` of --columns. Raises UsageError."""
    where = INPUT if kind == "source" else OUTPUT
    more: dict[str, Any] = {} if columns is None else {"columns": list(columns)}
    if text == STDIO:
        use, name = ("raw", "standard input") if kind == "source" else ("csv", "standard output")
        return ConnectorSpec(kind, use, name, where, options=more)
    match = _NAMED.match(text)
    if match and match[1] in installed():
        argument, texts = _query(match[2], where)
        return ConnectorSpec(kind, match[1], text, where, argument or None, texts, more)
    path, texts = text, {}
    if "?" in text and not Path(text).exists():
        path, texts = _query(text, where)
    if text in installed():
        for plugin in offers(text):
            if plugin.kind == kind:
                needs = (
                    plugin.options[0].name.upper() if plugin.options and plugin.options[0].required else ""
                )
                raise UsageError(f"{where}: {text} is a {kind}, and no file: write {text}:{needs}")
    use = Path(path).suffix.lower().removeprefix(".")
    if use not in installed():
        if match and not use:
            raise UsageError(f"{where}: {text}: no {kind} {match[1]!r} is installed{_known(kind, match[1])}")
        what = {"source": "input", "sink": "output"}[kind]
        ending = "." + use if use else "none"
        raise UsageError(
            f"{where}: {path}: the kind of {what} is told by the name's ending, and {ending} is not one"
            f"{_known(kind, use, '.')}"
        )
    return ConnectorSpec(kind, use, path, where, path, texts, more, file=Path(path))


def declared_connectors(pipeline: Path) -> tuple[ConnectorSpec | None, list[ConnectorSpec]]:
    """The source and the sinks in a pipeline file: its [source] and [[sink]] tables. Raises PipelineError."""
    if pipeline.suffix != ".toml":
        return None, []
    document = toml.read_toml(pipeline)
    source = None
    if "source" in document:
        source = _table("source", toml.table(document, "source", str(pipeline)), pipeline, "[source]")
    found = toml.tables(document, "sink", str(pipeline))
    if len(found) > MAX_SINKS:
        raise PipelineError(f"{pipeline}: {len(found)} [[sink]] tables; at most {MAX_SINKS}")
    sinks = [
        _table("sink", part, pipeline, f"[[sink]] number {i + 1}" if len(found) > 1 else "[[sink]]")
        for i, part in enumerate(found)
    ]
    return source, sinks


def sinks_of(texts: Sequence[str] | None, of_pipeline: Sequence[ConnectorSpec] = ()) -> list[ConnectorSpec]:
    """The sinks of -o, else of the pipeline, else a table on standard output."""
    if not texts:
        return list(of_pipeline) or [parse_connector("sink", STDIO)]
    if len(set(texts)) < len(texts):
        raise UsageError(f"{OUTPUT}: {next(t for t in texts if texts.count(t) > 1)} is given twice")
    if len(texts) > MAX_SINKS:
        raise UsageError(f"{OUTPUT}: {len(texts)} outputs; at most {MAX_SINKS}")
    return [parse_connector("sink", text) for text in texts]


def path_of(connector: ConnectorSpec) -> Path | None:
    """The file that a source reads or a sink writes, ``-`` for standard input or output.

    None for a plugin without an option named `path`, which may read or write anything.
    """
    try:
        options = load(connector.use, connector.kind).options
    except PluginError:
        return None  # reported when it is opened
    option = next((option for option in options if option.name == "path"), None)
    if option is None:
        return None
    first = connector.first if option is options[0] else None
    given = connector.texts.get("path", connector.options.get("path", first))
    if given is None or Path(str(given)).name == STDIO:
        return Path(STDIO) if not option.required else None
    return (connector.folder or Path()) / str(given)


def fit_together(source: ConnectorSpec | None, sinks: Sequence[ConnectorSpec]) -> None:
    """Raise UsageError if a sink would overwrite the input, or another sink's output."""
    read = path_of(source) if source is not None else None
    taken: dict[Path, ConnectorSpec] = {}
    for sink in sinks:
        path = path_of(sink)
        if path is None or (path.exists() and not path.is_file()):
            continue  # a device or a pipe holds no data that could be lost
        if path.name != STDIO and read is not None and path.resolve() == read.resolve():
            raise UsageError(f"{sink.where}: {path} is what is read, and would be lost: name another file")
        other = taken.setdefault(path.resolve(), sink)
        if other is not sink:
            what = "standard output" if path.name == STDIO else str(path)
            raise UsageError(f"{sink.where}: {what} is written by {other.name} already: name another file")


def on_terminal(sinks: Sequence[ConnectorSpec]) -> bool:
    """Whether output lines appear on the terminal that shows the progress."""
    return any(path_of(sink) == Path(STDIO) for sink in sinks) and sys.stdout.isatty()


def open_connector(connector: ConnectorSpec, signal: Signal) -> Any:
    """Open a source or sink, with its options checked. Raises PipelineError or UsageError, with the place."""
    try:
        plugin = load(connector.use, connector.kind)
    except PluginError as error:
        raise PluginError(f"{connector.where}: {error}") from error
    known = {option.name: option for option in plugin.options}
    options: dict[str, Any] = dict(connector.options)
    if connector.where == INPUT and "columns" in options and "columns" not in known:
        raise UsageError(
            f"{INPUT}: --columns is for sources that have such an option, and {connector.use!r} has none"
        )
    texts = dict(connector.texts)
    if connector.first is not None:
        if not plugin.options:
            raise UsageError(f"{connector.where}: {plugin} takes no option, so no {connector.first!r}")
        texts = {plugin.options[0].name: connector.first} | texts
    for key, text in texts.items():
        options[key] = from_text(text, known[key]) if key in known else text
    return make(connector.kind, connector.use, (signal,), options, connector.where, connector.folder)


class Nothing(Source):
    """No input at all, for a pipeline that feeds itself."""

    steps = 0

    def chunks(self, block: int) -> Iterator[Chunk]:
        return iter(())


@contextmanager
def source_of(connector: ConnectorSpec | None, signal: Signal) -> Iterator[Source]:
    """Open the source, and close it at the end; without one, an empty source. Raises as `open_connector`."""
    source: Source = open_connector(connector, signal) if connector is not None else Nothing()
    try:
        yield source
    finally:
        source.close()


def keeps_time(connector: ConnectorSpec) -> bool:
    """Whether a sink also takes the times of the rows."""
    try:
        return bool(getattr(load(connector.use, connector.kind).factory, "keeps_time", False))
    except PluginError:
        return False  # reported when it is opened


def stamps_of(
    source: Source, step: Fraction | str, sinks: Sequence[ConnectorSpec], signal: Signal
) -> Stamps | None:
    """Times of output rows, if the input has times and a sink takes them; else None, with a warning."""
    name = source.stamped
    if name is None or not any(map(keeps_time, sinks)):
        return None
    if name in columns_of(signal):
        step = "the pipeline has an output of that name"
    if isinstance(step, str):
        warn(f"the time column {name!r} is not kept in the output: {step}")
        return None
    return Stamps(name, step)


def _with_time(stamps: Stamps, signal: Signal) -> Signal:
    return Signal((TensorSpec(stamps.name, "float64"), *signal.tensors), signal.rate)


class Outputs:
    """Sinks that take the same chunks. In a ``with``, either all are completed or none.

    `keep`: complete them even after an error, since the input of a live source cannot be had again. `stamps`:
    times of the rows, for the sinks that take them. Raises as `open_connector`, and then leaves none open.
    """

    def __init__(
        self, connectors: Sequence[ConnectorSpec], signal: Signal, keep: bool, stamps: Stamps | None = None
    ) -> None:
        self._connectors, self._signal, self._keep, self._stamps = connectors, signal, keep, stamps
        self._sinks: list[Sink] = []
        self._timed: list[Sink] = []  # the sinks that also get the times
        self.rows = 0
        try:
            for connector in connectors:
                timed = stamps is not None and keeps_time(connector)
                self._sinks.append(
                    open_connector(connector, _with_time(stamps, signal) if timed and stamps else signal)
                )
                if timed:
                    self._timed.append(self._sinks[-1])
        except BaseException as error:
            self._close(False)
            self._raise_if_interrupted(error)
            raise

    def write(self, made: Chunk | Array) -> None:
        """Write a stream's output; a single output may be a bare array."""
        chunk = {self._signal.names[0]: made} if isinstance(made, np.ndarray) else made
        timed = {}
        if self._stamps is not None:
            timed = {self._stamps.name: self._stamps.take(rows_of(chunk)), **chunk}
        for sink in self._sinks:
            sink.write(timed if sink in self._timed else chunk)
        self.rows += rows_of(chunk)

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._close(kind is None or self._keep)
        self._raise_if_interrupted(error)

    def _raise_if_interrupted(self, error: BaseException | None) -> None:
        """If `error` is a KeyboardInterrupt and nothing was written, raise one with that message."""
        only_files = all(
            connector.file and (connector.file.is_file() or not connector.file.exists())
            for connector in self._connectors
        )
        if isinstance(error, KeyboardInterrupt) and only_files and not self._keep:
            raise KeyboardInterrupt("nothing written") from error

    def _close(self, whole: bool) -> None:
        """Close all sinks. After one fails, the others are discarded, and its error is raised."""
        failed: BaseException | None = None
        for sink in self._sinks:
            try:
                sink.close(whole and failed is None)
            except BaseException as error:
                failed = failed or error
        if failed is not None:
            raise failed


def last_row(made: Chunk | Array) -> Chunk | Array:
    """The last time step of a stream's output."""
    return made[-1:] if isinstance(made, np.ndarray) else {name: array[-1:] for name, array in made.items()}


def _query(text: str, where: str) -> tuple[str, dict[str, str]]:
    """The part before the ``?``, and the options after it, with %XX in their values decoded."""
    before, _, after = text.partition("?")
    options: dict[str, str] = {}
    for part in after.split("&") if after else []:
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise UsageError(f"{where}: {text}: expected key=value, or several with & between, not {part!r}")
        if key in options:
            raise UsageError(f"{where}: {text}: {key!r} is given twice")
        options[key] = unquote(value)
    return before, options


def _table(kind: Kind, part: Mapping[str, Any], pipeline: Path, place: str) -> ConnectorSpec:
    where = f"{pipeline}: {place}"
    use = toml.text(part, "use", where)
    options = {key: value for key, value in part.items() if key != "use"}
    return ConnectorSpec(
        kind, use, f"{use} of {pipeline}", f"{where} ({use})", options=options, folder=pipeline.parent
    )


def _known(kind: Kind, word: str, mark: str = "") -> str:
    """The nearest name of that kind, or all of them. Only for errors, since it loads every plugin."""
    names = []
    for name in installed():
        try:
            found: list[Plugin] = offers(name)
        except PluginError:
            continue
        of_kind = next((plugin for plugin in found if plugin.kind == kind), None)
        if of_kind and (not mark or (of_kind.options and of_kind.options[0].name == "path")):
            names.append(mark + name)
    return nearest(mark + word, names)
