"""Parse log lines by the rules of logfmt."""

from __future__ import annotations

import json
import re

_PAIR = re.compile(r'(?P<key>[^ =]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^ "]*))(?: |\Z)')


def parsed(line: str) -> dict[str, str]:
    """The fields of a logfmt line."""
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
    """The events of a log that may contain other lines, such as a traceback's."""
    return [parsed(line) for line in text.splitlines() if line.startswith("ts=")]
