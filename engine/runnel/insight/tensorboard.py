"""Write a record for TensorBoard: scalars, histograms, pictures, text.

TensorBoard's own writer frames the records. The file appears under its name only when complete, so that a
full disk leaves no partial file. The time of an event is the stream's time, counted from the time of writing.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import UsageError
from ..files import OutputFile, library
from ..spec import Array
from . import captions, picture
from .recorder import MAX_LINES, Record, Track

MAX_HISTOGRAMS: Final = 200  # of one track; beyond that, several steps share a histogram
_BINS: Final = 40


def require_libraries() -> None:
    """Raise UsageError if events cannot be written here."""
    library("tensorboard", "events for TensorBoard", "plot")
    picture.require_libraries()  # for the heat maps


def write(record: Record, folder: Path, image: bytes) -> int:
    """Add an event file to `folder`. `image`: the whole picture, a PNG.

    Returns the number of tags. Raises UsageError if the file cannot be written.
    """
    require_libraries()
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    steps: defaultdict[int, list[Any]] = defaultdict(list)
    for track in record.tracks:
        for step, tag, number in _scalars(record, track):
            steps[step].append(Summary.Value(tag=tag, simple_value=number))
        if track.kind in ("layer", "states"):
            for step, numbers in _blocks(record, track):
                steps[step].append(Summary.Value(tag=f"{_tag(track)}/units", histo=_histogram(numbers)))
    first = min(steps, default=0)
    for track in record.tracks:
        if picture.is_map(track) and captions.row_texts(track) is None:
            png, width, height = picture.heat_map(track)
            steps[first].append(_image(_tag(track), png, width, height))
        elif (texts := captions.row_texts(track)) is not None:
            steps[first].append(_text(_tag(track), texts))
    steps[first].append(_image("picture", image, *_size(image)))
    began, data = time.time(), BytesIO()
    writer = RecordWriter(data)
    writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
    for step in sorted(steps):
        at = record.axis.seconds(step * float(record.axis.tick)) if record.axis.rate else 0.0
        event = Event(wall_time=began + at, step=step, summary=Summary(value=steps[step]))
        writer.write(event.SerializeToString())
    name = f"events.out.tfevents.{began:010.0f}.{socket.gethostname()}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _keep(folder / name, data.getvalue())
    except OSError as error:
        raise UsageError(f"--tensorboard {folder}: cannot write there: {error.strerror or error}") from None
    return len({value.tag for values in steps.values() for value in values})


def _keep(path: Path, data: bytes) -> None:
    out, whole = OutputFile(path), False
    try:
        out.file.write(data)
        whole = True
    finally:
        out.close(whole)


def _tag(track: Track) -> str:
    """Return ``input x``, ``lstm.0/f``: TensorBoard groups tags by the part before the first slash."""
    return f"{track.name}/{track.letter}" if track.letter else track.name.replace(": ", "/")


def _scalars(record: Record, track: Track) -> Iterator[tuple[int, str, float]]:
    """Yield (step, tag, number): the first channels; for layers and states, statistics of all units."""
    if track.kind in ("layer", "states"):
        named = [("mean", track.mean)]
        if track.saturated is not None:
            named.append(("saturated", track.saturated))
    elif captions.row_texts(track) is not None and track.labels is None:
        return  # the bytes of a text
    else:
        names = [str(unit) for unit in track.units] if track.size > 1 else ["value"]
        named = list(zip(names, track.values.T, strict=True))[:MAX_LINES]
    for name, column in named:
        tag = f"{_tag(track)}/{name}"
        for step, part in _parted(record, track, column.astype(np.float64)):
            if len(part) == 1:
                yield step, tag, float(part[0])
            else:
                yield step, f"{tag}/least", float(part.min())
                yield step, f"{tag}/greatest", float(part.max())


def _parted(record: Record, track: Track, column: Array) -> Iterator[tuple[int, Array]]:
    """Yield the finite numbers of a column by step of the model."""
    steps = (track.edges[:-1] / float(record.axis.tick) + 1e-9).astype(int)
    starts = np.flatnonzero(np.diff(steps, prepend=-1))
    for start, part in zip(starts, np.split(column, starts[1:]), strict=True):
        if len(part := part[np.isfinite(part)]):
            yield int(steps[start]), part


def _blocks(record: Record, track: Track) -> Iterator[tuple[int, Array]]:
    """Yield the numbers of all units, over one row or several."""
    rows = len(track.values)
    width = -(-rows // MAX_HISTOGRAMS)
    for first in range(0, rows, width):
        at = (track.start + first * track.step) / float(record.axis.tick)
        yield int(at + 1e-9), track.values[first : first + width].astype(np.float64).ravel()


def _histogram(numbers: Array) -> Any:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    counts, edges = np.histogram(numbers, bins=_BINS)
    return HistogramProto(
        min=numbers.min(), max=numbers.max(), num=len(numbers), sum=numbers.sum(),
        sum_squares=np.square(numbers).sum(), bucket_limit=edges[1:], bucket=counts,
    )  # fmt: skip


def _image(tag: str, png: bytes, width: int, height: int) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary.Value(tag=f"{tag}/map" if tag != "picture" else tag, image=image)


def _size(png: bytes) -> tuple[int, int]:
    """Return width and height, from the PNG's header."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def _text(tag: str, texts: list[str]) -> Any:
    """Return a summary for TensorBoard's text plugin: Markdown with the text as a code block."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    body = (
        "".join(texts)
        if captions.are_characters(texts)
        else " ".join(run.text for run in captions.runs(texts))
    )
    fence = "    " + body.replace("\n", "\n    ")
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return Summary.Value(
        tag=f"{tag}/text",
        metadata=SummaryMetadata(plugin_data=plugin),
        tensor=TensorProto(dtype=DT_STRING, string_val=[fence.encode()]),
    )
