"""Lines of a log, read by the format's own rules."""

from __future__ import annotations

import json
import re

_PAIR = re.compile(r'(?P<key>[^ =]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^ "]*))(?: |\Z)')


def parsed(line: str) -> dict[str, str]:
    """Of a logfmt line, by the format's own rules."""
    line = line.removesuffix("\n")
    pairs, at = {}, 0
    while at < len(line):
        match = _PAIR.match(line, at)
        assert match, line[at:]
        quoted = match["quoted"]
        pairs[match["key"]] = json.loads(f'"{quoted}"', strict=False) if quoted is not None else match["bare"]
        at = match.end()
    return pairs


def events(text: str) -> list[dict[str, str]]:
    """Of a log in which other lines may be, a traceback's say."""
    return [parsed(line) for line in text.splitlines() if line.startswith("ts=")]
