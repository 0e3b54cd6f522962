"""Captions: values over time as text, either characters of a text or names."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .recorder import Record, Track

_SHOWN: Final = {" ": "␣", "\n": "↵", "\r": "↵", "\t": "⇥"}
_STRANGE: Final = "\ufffd"
_MOST_STRANGE: Final = 0.1  # the share of a text that may be undecodable; numbers have more


def row_texts(track: Track) -> list[str] | None:
    """Return the text of each row ("" if it has none), or None for numbers.

    A row is a label, or a byte of a text in UTF-8. A character is placed at its last byte.
    """
    if track.size != 1:
        return None
    numbers = track.values[:, 0].tolist()
    if track.labels is not None:
        return [track.labels.get(number, "") for number in numbers]
    if track.values.dtype != "uint8":
        return None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = [decoder.decode(bytes([number])) for number in numbers]
    strange = sum(_strange(c) for part in text for c in part)
    return text if strange <= _MOST_STRANGE * len(text) else None


def _strange(character: str) -> bool:
    return character == _STRANGE or (character not in _SHOWN and unicodedata.category(character) == "Cc")


def visible(text: str) -> str:
    """Replace blanks and line ends by visible characters."""
    return "".join(_SHOWN.get(c, _STRANGE if _strange(c) else c) for c in text)


def are_characters(texts: Sequence[str]) -> bool:
    """Whether each text is at most one character."""
    return all(len(text) <= 1 for text in texts)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows with the same text."""

    first: int
    end: int
    text: str


def runs(texts: Sequence[str]) -> list[Run]:
    """Group consecutive rows with the same text; rows without text are left out."""
    found: list[Run] = []
    first = 0
    for i in range(1, len(texts) + 1):
        if i == len(texts) or texts[i] != texts[first]:
            if texts[first]:
                found.append(Run(first, i, texts[first]))
            first = i
    return found


def words(texts: Sequence[str]) -> list[Run]:
    """Return the words of a text of one character per row."""
    found: list[Run] = []
    first, word = 0, ""
    for i, text in enumerate([*texts, " "]):
        if text.isspace():
            if word:
                found.append(Run(first, i, word))
            word = ""
        elif text:
            first = first if word else i
            word += text
    return found


def axis_texts(record: Record) -> tuple[Track, list[str]] | None:
    """Return an input track of texts to label the time axis, or None."""
    tick = float(record.axis.tick)
    for track in record.tracks:
        if track.kind in ("input", "to") and track.step == tick:
            texts = row_texts(track)
            if texts is not None:
                return track, texts
    return None
