"""Raw bytes: little-endian numbers in C order (``raw``), or text (``txt``), read and written.

For each time step, the text output is the byte of a uint8 output, or the label of a number: the characters or
words of a `tokens`, a `labels` or a `sample` stage with a vocabulary.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from runnel import Signal, Sink, Source, TensorSpec, hookimpl
from runnel.columns import label_texts, only_tensor
from runnel.errors import UsageError, nearest
from runnel.files import Input, OutputText
from runnel.hookspecs import SinkFactory, SourceFactory
from runnel.stage import Chunk


class Raw(Source):
    """Read little-endian numbers of the input's dtype and shape, as they come; no path: standard input."""

    def __init__(self, signal: Signal, path: Path | None = None) -> None:
        self._input = Input(path)
        self._tensor = only_tensor(self._input.name, signal)
        self.live = self._input.live

    def chunks(self, block: int) -> Iterator[Chunk]:
        tensor = self._tensor
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        size = dtype.itemsize * math.prod(tensor.shape)
        held, steps = b"", 0
        while data := self._input.read(block * size - len(held)):  # it does not wait for a full block
            held += data
            ready = len(held) // size
            if ready:
                values = np.frombuffer(held, dtype, count=ready * size // dtype.itemsize)
                yield {tensor.name: values.astype(tensor.dtype).reshape(ready, *tensor.shape)}
                held, steps = held[ready * size :], steps + ready
        if held:
            raise UsageError(
                f"{self._input.name} ended {len(held)} bytes into time step {steps}, which takes {size}: cut "
                f"off, or not {dtype.name} numbers of shape {tensor.shape} a step"
            )

    def close(self) -> None:
        self._input.close()


class Text(Raw):
    """Read a text, one byte per time step, for a pipeline that takes uint8 (such as `tokens` first)."""

    def __init__(self, signal: Signal, path: Path | None = None) -> None:
        super().__init__(signal, path)
        if (self._tensor.dtype, self._tensor.shape) != ("uint8", ()):
            self.close()
            raise UsageError(
                f"{self._input.name}: a text is a byte a time step (uint8), but the pipeline takes "
                f"{self._tensor}; for numbers in lines of text: lines:PATH"
            )


class TextSink(Sink):
    """Write an output as UTF-8 text: a file, or standard output without a path.

    The output is the only one of integers with labels, which are written, or else the only one of bytes
    (uint8); `of` names it if there are several. A number without a label, and invalid UTF-8, are written as
    U+FFFD. `separator` is written between two time steps, for example " " between words.
    """

    def __init__(
        self, signal: Signal, path: Path | None = None, of: str | None = None, separator: str = ""
    ) -> None:
        self._tensor = _text_of(signal, of)
        self._labels = label_texts(self._tensor)
        if separator and self._labels is None:
            raise UsageError("txt: a separator is for words, and this output's rows are bytes")
        self._separator = separator
        self._between = ""  # nothing before the first
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._out = OutputText(path)

    def write(self, chunk: Chunk) -> None:
        values = chunk[self._tensor.name].tolist()
        if self._labels is None:
            text = self._decoder.decode(bytes(values))
        else:
            text = self._separator.join(self._labels.get(value, "\ufffd") for value in values)
            if values:
                text, self._between = self._between + text, self._separator
        self._out.text.write(text)
        self._out.text.flush()

    def close(self, whole: bool) -> None:
        if whole:
            self._out.text.write(self._decoder.decode(b"", final=True))
        if whole and self._out.stdio:
            self._out.text.write("\n")  # the shell's prompt then starts on a new line
        self._out.close(whole)


def _text_of(signal: Signal, of: str | None) -> TensorSpec:
    """Return the tensor that is a text; UsageError if there is none, or several."""
    scalars = [tensor for tensor in signal.tensors if tensor.shape == ()]
    labelled = [tensor for tensor in scalars if label_texts(tensor) is not None]
    possible = labelled or [tensor for tensor in scalars if tensor.dtype == "uint8"]
    if of is not None:
        possible = [t for t in scalars if t.name == of and (t.dtype == "uint8" or label_texts(t) is not None)]
        if of not in signal.names:
            raise UsageError(f"txt: no output {of!r}{nearest(of, list(signal.names))}")
    if len(possible) == 1:
        return possible[0]
    if possible:
        raise UsageError(
            f"txt: {', '.join(t.name for t in possible)} could be the text: say which, as in "
            f"txt:?of={possible[0].name}"
        )
    raise UsageError(
        f"txt: a text is bytes (uint8), or whole numbers with labels, one a time step, but the pipeline "
        f"makes {signal if of is None else next(t for t in signal.tensors if t.name == of)}: "
        "a `sample` or `labels` stage with names gives labels"
    )


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"raw": Raw, "txt": Text}


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"txt": TextSink}
