"""The text: what Python's own help knows of the language, cut into what is learnt from and what is foretold.

`pydoc_data.topics` holds the pages that `help("for")` and the like show, in English with code in between. Two
things are done to them. Pages quote one another, whole sections of them; a paragraph that has come before is
left out, else the test would ask for what was learnt by heart. And the few typographic characters (curly
quotes, dashes) are written as typewriters do, so that one byte is one character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pydoc_data.topics import topics

from runnel.errors import RunnelError

PARTS = (0.8, 0.1, 0.1)  # to train on, to choose by, to measure on: in this order, each in one piece
LEAST = 100_000  # characters; Python 3.11 has 373,000: with far fewer it is another text than this is about
BEGIN = b"\n"  # what is read before the first character: a line's end, as if one had just been

_TYPEWRITTEN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\N{NO-BREAK SPACE}": " "}
)
_BLANK_LINES = re.compile(r"\n[ \t]*\n+")


@dataclass(frozen=True)
class Corpus:
    """Three parts of one text, ASCII."""

    train: bytes
    validation: bytes
    test: bytes
    pages: int
    written: int  # characters of the pages
    kept: int  # of them, without what repeats


def load() -> Corpus:
    """The text of the Python that runs this. Raises RunnelError where it is no such text."""
    pages = [topics[name] for name in sorted(topics)]
    text = "\n\n".join(without_repeats(pages)).translate(_TYPEWRITTEN).encode("ascii", "replace")
    if len(text) < LEAST:
        raise RunnelError(
            f"pydoc_data.topics has {len(text)} characters here, expected {LEAST} at least: is it a Python "
            "without its documentation?"
        )
    first, second = (round(share * len(text)) for share in (PARTS[0], PARTS[0] + PARTS[1]))
    return Corpus(
        train=text[:first],
        validation=text[first:second],
        test=text[second:],
        pages=len(pages),
        written=sum(map(len, pages)),
        kept=len(text),
    )


def without_repeats(pages: list[str]) -> list[str]:
    """The paragraphs of all pages in order, each only where it stands first."""
    paragraphs = (part.rstrip() for page in pages for part in _BLANK_LINES.split(page.strip("\n")))
    first: dict[str, str] = {}  # by what it says, however far it is indented
    for paragraph in paragraphs:
        first.setdefault(paragraph.strip(), paragraph)
    first.pop("", None)
    return list(first.values())
