"""What numbers over time stand for, as text: characters of a text, or names, one after the other."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .recorder import Record, Track

_SHOWN: Final = {" ": "␣", "\n": "↵", "\r": "↵", "\t": "⇥"}
_STRANGE: Final = "\ufffd"
_MOST_STRANGE: Final = 0.1  # the share of a text that may be no characters; numbers have more


def written(track: Track) -> list[str] | None:
    """What each row stands for, "" for nothing; None where it is a number.

    A row is a label, or a byte of a text in UTF-8: its character stands at its last byte.
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
    """With blanks and line ends that can be seen."""
    return "".join(_SHOWN.get(c, _STRANGE if _strange(c) else c) for c in text)


def characters(texts: Sequence[str]) -> bool:
    """Whether each stands for one character at most."""
    return all(len(text) <= 1 for text in texts)


@dataclass(frozen=True, slots=True)
class Run:
    """Rows one after the other that stand for the same."""

    first: int
    end: int
    text: str


def runs(texts: Sequence[str]) -> list[Run]:
    """Rows that stand for the same, together; rows that stand for nothing make none."""
    found: list[Run] = []
    first = 0
    for i in range(1, len(texts) + 1):
        if i == len(texts) or texts[i] != texts[first]:
            if texts[first]:
                found.append(Run(first, i, texts[first]))
            first = i
    return found


def words(texts: Sequence[str]) -> list[Run]:
    """The words of a text that is written character by character: what stands between blanks."""
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


def on_axis(record: Record) -> tuple[Track, list[str]] | None:
    """The text that goes in, a step of the model a row, if one does: what the axis of time can be told by."""
    tick = float(record.axis.tick)
    for track in record.tracks:
        if track.kind in ("input", "to") and track.step == tick:
            texts = written(track)
            if texts is not None:
                return track, texts
    return None
