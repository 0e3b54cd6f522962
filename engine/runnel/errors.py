"""Every error that Runnel raises on purpose, as one tree.

A class has a stable ``code``, which is also used on the wire, and a flag ``retry``: whether the same call can
succeed later. The message names the thing, what was given, what was expected and, if known, the likely
mistake. After any error, the stream's state and its ``seq`` are unchanged.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import ClassVar

MAX_MESSAGE = 2000  # characters: the text is sent to clients, so it is bounded


class RunnelError(Exception):
    """The root of the tree."""

    code: ClassVar[str] = "ERROR"
    retry: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        # A file name may hold bytes that are not text. They are escaped, so that the message can be sent.
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…")

    @property
    def message(self) -> str:
        return str(self.args[0])


class ChunkError(RunnelError):
    """A chunk that is not what the pipeline takes: a wrong name, dtype, rank, shape or type."""

    code = "BAD_CHUNK"


class EmptyChunkError(ChunkError):
    """A chunk without time steps."""

    code = "EMPTY_CHUNK"


class NonFiniteError(ChunkError):
    """A NaN or an infinity in the input, or in a stage's output."""

    code = "NON_FINITE"
    state = ""  # the model's state that became non-finite, as ``stage.name``, if it was a state


class StreamError(RunnelError):
    """The stream is not in a state that allows the call."""

    code = "STREAM"


class UnknownStreamError(StreamError):
    """No such stream is open."""

    code = "UNKNOWN_STREAM"


class StreamExistsError(StreamError):
    """A stream of that id is open already."""

    code = "STREAM_EXISTS"


class StreamClosedError(StreamError):
    """The stream was closed."""

    code = "STREAM_CLOSED"


class StreamEndedError(StreamError):
    """The stream was flushed: reset it, or open another."""

    code = "STREAM_ENDED"


class GapError(StreamError):
    """A ``seq`` beyond the next one: requests between have not arrived, or have failed."""

    code = "GAP"


class ConflictError(StreamError):
    """A ``seq`` that was applied, or an epoch that was begun, with another payload: it was used twice."""

    code = "CONFLICT"


class AlreadyAppliedError(StreamError):
    """A ``seq`` that was applied, and whose reply is no longer in the reply cache."""

    code = "ALREADY_APPLIED"


class FencedError(StreamError):
    """An epoch that is not the stream's: another client has the stream."""

    code = "FENCED"


class WrongWorkerError(StreamError):
    """The stream's name belongs to another worker of this daemon."""

    code = "WRONG_WORKER"


class AccessError(RunnelError):
    """A key that is not, or no longer, on the daemon's list of users."""

    code = "NO_ACCESS"


class LimitError(RunnelError):
    """A bound was met: too many streams, too many requests at once."""

    code = "LIMIT"
    retry = True


class SnapshotError(RunnelError):
    """A snapshot that is damaged, or that belongs to another pipeline."""

    code = "BAD_SNAPSHOT"


class PipelineError(RunnelError):
    """A pipeline file that is wrong, or whose stages do not fit each other."""

    code = "BAD_PIPELINE"


class PluginError(PipelineError):
    """A stage that is not installed, or that cannot be loaded."""

    code = "BAD_PLUGIN"


class StageError(RunnelError):
    """A stage failed on a chunk."""

    code = "STAGE_FAILED"


class SlowStageError(StageError):
    """A stage took longer for a chunk than the pipeline's limit; its result was discarded."""

    code = "STAGE_SLOW"
    retry = True


class ModelError(RunnelError):
    """A model file that is missing, damaged, or not what its description says."""

    code = "BAD_MODEL"


class CertificateError(ModelError):
    """A model file that is not the one that was certified."""

    code = "NOT_CERTIFIED"


class ProviderError(ModelError):
    """An onnxruntime execution provider that is not available."""

    code = "NO_PROVIDER"


class ExportError(RunnelError):
    """A module that cannot be exported as a step model that equals it."""

    code = "NOT_EXPORTABLE"


class NotStreamableError(ExportError):
    """A layer whose output depends on the future, or on absolute time."""

    code = "NOT_STREAMABLE"


class WireError(RunnelError):
    """Bytes that are not a message of the protocol."""

    code = "BAD_MESSAGE"


class TooLargeError(WireError):
    """A message above the size limit: send smaller chunks."""

    code = "TOO_LARGE"


class TimeoutError(RunnelError):
    """The daemon did not answer in time."""

    code = "TIMEOUT"
    retry = True


class ShutdownError(RunnelError):
    """The daemon is stopping."""

    code = "SHUTDOWN"
    retry = True


class UsageError(RunnelError):
    """A command line, or a file named on it, that cannot be used."""

    code = "USAGE"


def _walk(cls: type[RunnelError]) -> list[type[RunnelError]]:
    return [cls, *(c for sub in cls.__subclasses__() for c in _walk(sub))]


def by_code(code: str) -> type[RunnelError]:
    """Return the class with this ``code``, or ``RunnelError``."""
    return next((cls for cls in _walk(RunnelError) if cls.code == code), RunnelError)


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return ' (did you mean 'hop'?)' for a near word, else the known words."""
    close = get_close_matches(word, known, n=1, cutoff=0.75)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(sorted(known))})" if known else ""
