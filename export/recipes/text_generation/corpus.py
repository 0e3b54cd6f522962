"""The text: Python's own help pages, split for training, validation and test.

`pydoc_data.topics` holds the pages that `help("for")` and the like show: English, with code in between. Two
things are changed. First, pages quote whole sections of one another. A paragraph that occurred before is left
out; otherwise the test part would contain text from the training part. Second, the few typographic characters
(curly quotes, dashes) are replaced by ASCII, so that one byte is one character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pydoc_data.topics import topics

from runnel.errors import RunnelError

PARTS = (0.8, 0.1, 0.1)  # training, validation and test: in this order, each in one piece
LEAST = 100_000  # characters; Python 3.11 has 373,000, and a far shorter text is not this text
BEGIN = b"\n"  # read before the first character, as if a line had just ended

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
    kept: int  # characters without repeated paragraphs


def load() -> Corpus:
    """Load the text of the running Python. Raises RunnelError if it is not the expected kind of text."""
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
    """Return the paragraphs of all pages in order, each only at its first occurrence."""
    paragraphs = (part.rstrip() for page in pages for part in _BLANK_LINES.split(page.strip("\n")))
    first: dict[str, str] = {}  # by the paragraph's text without its indentation
    for paragraph in paragraphs:
        first.setdefault(paragraph.strip(), paragraph)
    first.pop("", None)
    return list(first.values())
