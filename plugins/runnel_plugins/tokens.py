"""Text to the integers that a language model takes.

A chunk is UTF-8 (F. Yergeau, RFC 3629, 2003), one byte per time step, cut anywhere. The output is one id for
each

- byte: its own value, or its index in the alphabet; one output per byte;
- character (Unicode code point): its index in the alphabet or the vocabulary, once its last byte is in;
- word (text between blanks, as found by Python's ``str.split``): its index in the vocabulary, once the blank
  after it is in, or at the flush.

Bytes and ids have no unit. Latency 0 for bytes; else the output comes at irregular times.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

import runnel
from runnel.batch import RowStage
from runnel.errors import ChunkError, PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, Stage, State

from . import _names
from ._choose import one, with_tensors

MAX_TOKENS = 2**20  # larger than any vocabulary in use
MAX_PENDING = 3  # bytes of an incomplete UTF-8 character


def tokens(
    inputs: Signal,
    unit: Literal["byte", "character", "word"] = "character",
    alphabet: str | None = None,
    vocabulary: Path | None = None,
    unknown: int | None = None,
    invalid: Literal["error", "replace"] = "error",
    of: str | None = None,
) -> Stage:
    """Turn UTF-8 text into ids.

    Input: uint8 (T,), one byte per time step. Output: int64 of the same name, one id per unit, with the
    tokens as its labels. An id is an index, from 0, in `alphabet`, a text, or in `vocabulary`, a UTF-8 file
    with one token per line; bytes need neither, and are then ids themselves. A token of several characters at
    unit "character" ("<pad>") has its id and never occurs.

    Text that is not a token gets the id `unknown`, at most one past the last; without `unknown`, it raises
    ChunkError. Invalid UTF-8 raises ChunkError; with `invalid` "replace" it becomes U+FFFD as in Python's
    decoder. At unit "byte" any byte is valid, and other arrays may arrive too, and pass.

    Raises PipelineError for tokens that are missing, given twice, or impossible in that unit.
    """
    listed = _tokens(alphabet, vocabulary)
    if unknown is not None and not (listed and 0 <= unknown <= len(listed)):
        raise PipelineError(
            f"tokens: unknown must be in 0..{len(listed)}, one past the last token at most, not {unknown}"
            if listed
            else "tokens: unknown needs an alphabet or a vocabulary that something can be missing from"
        )
    if unit == "byte":
        if invalid != "error":
            raise PipelineError("tokens: every byte is valid at unit 'byte': drop the option invalid")
        return Bytes(inputs, listed, unknown, of)
    if not listed or (unit == "word" and alphabet is not None):
        needs = "a vocabulary" if unit == "word" else "an alphabet or a vocabulary"
        raise PipelineError(f"tokens: unit {unit!r} needs {needs}")
    return (Characters if unit == "character" else Words)(inputs, listed, unknown, invalid, of)


def _tokens(alphabet: str | None, vocabulary: Path | None) -> tuple[str, ...]:
    """Return the tokens in order of their ids; () if neither is given."""
    listed = _names.given("tokens", "alphabet and vocabulary", alphabet, vocabulary)
    if listed is None:
        return ()
    if not 1 <= len(listed) <= MAX_TOKENS:
        raise PipelineError(f"tokens: 1..{MAX_TOKENS} tokens make a vocabulary, not {len(listed)}")
    ids: dict[str, int] = {}
    for i, token in enumerate(listed):
        if not token:
            raise PipelineError(f"tokens: line {i + 1} of {vocabulary} is empty: one token a line")
        if token in ids:
            raise PipelineError(f"tokens: {token!r} is token {ids[token]} and token {i}: which is it?")
        ids[token] = i
    return listed


def _spec(tensor: TensorSpec, listed: Sequence[str], unknown: int | None) -> TensorSpec:
    labels = (*listed, "unknown") if unknown == len(listed) else tuple(listed)
    return TensorSpec(tensor.name, "int64", tensor.shape, labels)


def _is_text(tensor: TensorSpec) -> bool:
    return tensor.dtype == "uint8" and tensor.shape == ()


TEXT = "text as uint8 (T,), one byte a time step"


class Bytes(RowStage):
    """Return an id for each byte; see `tokens`."""

    name = "tokens"

    def __init__(
        self, inputs: Signal, listed: Sequence[str] = (), unknown: int | None = None, of: str | None = None
    ) -> None:
        self.tensor = one(self.name, inputs, of, _is_text, TEXT)
        self.table = np.arange(256)
        if listed:
            self.table = np.full(256, -1 if unknown is None else unknown)
            for i, token in enumerate(listed):
                code = token.encode()
                if len(code) > 1:
                    raise PipelineError(f"tokens: {token!r} is more than one byte: use unit 'character'")
                self.table[code[0]] = i
        self.listed = listed or tuple(chr(b) if 32 < b < 127 else f"0x{b:02x}" for b in range(256))
        made = _spec(self.tensor, self.listed, unknown)
        self.inputs = inputs
        self.outputs = with_tensors(self.name, inputs, self.tensor, made)

    def rows(self, arrays: Chunk) -> Chunk:
        text = arrays[self.tensor.name]
        ids = self.table[text]
        if ids.size and ids.min() < 0:
            at = tuple(np.argwhere(ids < 0)[0])
            raise ChunkError(
                f"tokens: byte {bytes([text[at]])!r} at time step {at[0]} is not in the alphabet; give an id "
                "for such with unknown = …"
            )
        return {**arrays, self.tensor.name: ids}


class Characters(Stage):
    """Return an id for each character; see `tokens`."""

    name = "tokens"
    ratio = None

    def __init__(
        self,
        inputs: Signal,
        listed: Sequence[str],
        unknown: int | None = None,
        invalid: Literal["error", "replace"] = "error",
        of: str | None = None,
    ) -> None:
        self.tensor = one(self.name, inputs, of, _is_text, TEXT)
        if len(inputs.tensors) > 1:
            raise PipelineError(
                f"tokens: but at unit 'byte' nothing can stand beside the text, and {inputs} arrives"
            )
        self.unknown, self.errors = unknown, "strict" if invalid == "error" else "replace"
        self.inputs, self.outputs = inputs, Signal((_spec(self.tensor, listed, unknown),))
        self._learn(listed)

    def _learn(self, listed: Sequence[str]) -> None:
        """Make the tables that find a token's id."""
        single = sorted((ord(token), i) for i, token in enumerate(listed) if len(token) == 1)
        if not single:
            raise PipelineError("tokens: no token of the vocabulary is one character: is the unit 'word'?")
        self.codes, self.ids = (np.array(column) for column in zip(*single, strict=True))

    def initial(self) -> Arrays:
        """The state `bytes`: uint8 (0 to 3,), the bytes of an incomplete character."""
        return {"bytes": np.zeros(0, np.uint8)}

    def load(self, state: State, arrays: Arrays) -> State:
        if len(arrays["bytes"]) > MAX_PENDING:
            raise SnapshotError(f"tokens: {len(arrays['bytes'])} bytes are no part of one character")
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        return self._take(state, chunk[self.tensor.name].tobytes(), False)

    def flush(self, state: State) -> tuple[State, Chunk]:
        """Return the ids that the end completes: a last word. An incomplete character is invalid."""
        return self._take(state, b"", True)

    def _take(self, state: State, data: bytes, final: bool) -> tuple[State, Chunk]:
        text, pending = self._decode(state["bytes"].tobytes(), data, final)
        after, ids = self._ids(state, text, final)
        return {"bytes": np.frombuffer(pending, np.uint8).copy(), **after}, {self.tensor.name: ids}

    def _decode(self, pending: bytes, data: bytes, final: bool) -> tuple[str, bytes]:
        """Return the complete characters, and the bytes of an incomplete one."""
        decoder = codecs.getincrementaldecoder("utf-8")(self.errors)
        decoder.setstate((pending, 0))
        try:
            text = decoder.decode(data, final)
        except UnicodeDecodeError as error:
            at = error.start - len(pending)
            position = (
                f"time step {at}" if at >= 0 else "the beginning, with what was left of the chunk before it"
            )
            raise ChunkError(
                f"tokens: {error.object[error.start : error.end]!r} at {position} is no UTF-8 "
                f'({error.reason}); encode the text as UTF-8, or set invalid = "replace"'
            ) from None
        return text, decoder.getstate()[0]

    def _ids(self, state: State, text: str, final: bool) -> tuple[Arrays, Array]:
        """Return the rest of the next state, and the ids."""
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        index = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        known = self.codes[index] == codes
        if self.unknown is None and not known.all():
            first = int(np.argmin(known))
            raise ChunkError(self._not_known(text[first], f"character {first} of the chunk"))
        return {}, np.where(known, self.ids[index], 0 if self.unknown is None else self.unknown)

    def _not_known(self, token: str, what: str) -> str:
        return f"tokens: {token!r}, {what}, is not among the tokens; give an id for such with unknown = …"


class Words(Characters):
    """Return an id for each word; see `tokens`."""

    def _learn(self, listed: Sequence[str]) -> None:
        for i, token in enumerate(listed):
            if token.split() != [token]:
                raise PipelineError(f"tokens: token {i}, {token!r}, has a blank in it, and no word has")
        self.id_of = {token: i for i, token in enumerate(listed)}
        self.longest = max(map(len, listed))

    def initial(self) -> Arrays:
        """The state.

        - `bytes`: uint8 (0 to 3,), the bytes of an incomplete character.
        - `word`: uint32, the code points of a word that has not ended, at most one more than the longest
          token has: a longer word is unknown.
        """
        return {**super().initial(), "word": np.zeros(0, np.uint32)}

    def load(self, state: State, arrays: Arrays) -> State:
        word = arrays["word"]
        if len(word) > self.longest + 1:
            raise SnapshotError(
                f"tokens: a word of {len(word)} characters; at most {self.longest + 1} are kept"
            )
        if ((word >= 0x110000) | ((word >= 0xD800) & (word < 0xE000))).any():
            raise SnapshotError("tokens: 'word' holds numbers that are no characters")
        return super().load(state, arrays)

    def _ids(self, state: State, text: str, final: bool) -> tuple[Arrays, Array]:
        text = state["word"].astype("<u4").tobytes().decode("utf-32-le") + text
        words = text.split()
        ended = final or not text or text[-1].isspace()
        word = "" if ended else words.pop()[: self.longest + 1]
        ids = [self.id_of.get(word, self.unknown) for word in words]
        if None in ids:
            first = ids.index(None)
            raise ChunkError(self._not_known(words[first][: self.longest + 1], f"word {first} of the chunk"))
        after = np.frombuffer(word.encode("utf-32-le"), "<u4").astype(np.uint32)
        return {"word": after}, np.array(ids, np.int64)


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"tokens": tokens}
