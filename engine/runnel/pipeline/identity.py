"""The identity of a pipeline, in parts that an error can name.

A part is the model, a stage, or a table of the pipeline file that affects the numbers. What a part computes
follows from its package's version, its options and the content of the files that it names. The certificate's
date, the machine, paths, and how a pipeline is served are not part of the identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

MAX_PARTS: Final = 256  # the stages before and after the model, the model, and two tables, with room to spare
MAX_TEXT: Final = 256  # characters of a part's field
_DIGEST: Final = 32  # hexadecimal digits: 128 bits


class Part(NamedTuple):
    """One part of a pipeline's identity. All fields are texts of at most `MAX_TEXT` characters."""

    label: str  # its position in the file: "[model]", "[[before]] number 1"
    use: str = ""  # a stage's name
    package: str = ""  # a plugin's distribution and version
    content: str = ""  # a digest of a model's content
    options: str = ""  # a digest of its options in the file

    def bounded(self) -> Part:
        return Part(*(text[:MAX_TEXT] for text in self))


def digest(value: Any) -> str:
    """Return the digest of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]


def fingerprint(parts: Sequence[Part], more: Mapping[str, Any]) -> str:
    """Return the digest of a whole pipeline; `more`: further identity of a pipeline made in code."""
    return digest([[list(part) for part in parts], dict(more)])


def read(value: Any) -> tuple[Part, ...]:
    """Read the parts from a snapshot's header. Raises ValueError, TypeError."""
    if not isinstance(value, list) or len(value) > MAX_PARTS:
        raise ValueError(f"parts must be a list of at most {MAX_PARTS}")
    parts = []
    for entry in value:
        if len(entry) != len(Part._fields) or any(type(t) is not str or len(t) > MAX_TEXT for t in entry):
            raise ValueError("a part is a list of short texts")
        parts.append(Part(*entry))
    return tuple(parts)


def differences(theirs: Sequence[Part], ours: Sequence[Part]) -> list[str]:
    """Describe in words how the snapshot's pipeline differs from this one."""
    then, now = ({part.label: part for part in parts} for parts in (theirs, ours))
    found = []
    for label in dict.fromkeys([*then, *now]):
        before, here = then.get(label), now.get(label)
        if before is None or here is None:
            part, how = (here, "is new") if before is None else (before, "is no more")
            assert part is not None
            found.append(f"{_name(part)} {how}")
        elif before.use != here.use:
            found.append(f"{label} was {before.use!r}, and is {here.use!r}")
        elif before.package != here.package:
            found.append(f"{_name(here)} was of {before.package}, and is of {here.package}")
        elif before.content != here.content:
            found.append(f"the model of {_name(here)} is another one")
        elif before.options != here.options:
            found.append(f"what the file says of {_name(here)} has changed")
    return found


def _name(part: Part) -> str:
    return f"{part.label} ({part.use})" if part.use and part.use != "model" else part.label
