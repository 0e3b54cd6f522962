"""Settings of `runnel serve`: the [serve] table of a pipeline file, overridden by flags.

Rules of this file: no socket, no clock. Every value is checked, whether or not it is used. Settings in
`RELOADABLE` may change while the daemon runs; all others need a restart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from ..errors import UsageError, nearest
from ..loading import toml

MAX_WORKERS: Final = 256  # processes: more than the cores of any machine that serves one daemon
MAX_PROVIDERS: Final = 16
MAX_PORT: Final = 65535
LEAST_SECONDS: Final = 0.001  # below a clock's resolution, a stream in use would be idle
LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. Times are in seconds; an empty text means: not wanted."""

    bind: str = ""
    max_streams: int = 1024  # open at once, in each worker; a hash of the name distributes streams, unevenly
    user_streams: int = 0  # streams that each user can count on; 0: a share of a quarter of all
    idle_seconds: float = 3600.0  # a stream without a request for longer is closed; 0: never
    workers: int = 1
    keys: str = ""  # file of the daemon's secret key; with it, only users are admitted, from any machine
    authorised: str = ""  # file or folder that lists the users
    threads: int = 1  # of onnxruntime, for one step
    providers: tuple[str, ...] = ()
    log_level: str = "info"
    log_format: str = "text"
    metrics: str = ""  # host:port of /metrics, /healthz and /readyz
    metrics_keys: str = ""  # file of the user key with which the metrics server asks a daemon that has keys


RELOADABLE: Final = ("idle_seconds", "log_level")
Check = Callable[[Any, str], Any]


def make(table: Mapping[str, Any], flags: Mapping[str, Any], where: str) -> Settings:
    """Make settings from a [serve] table and from flags; a flag of None was not given.

    Raises PipelineError for an unknown key, UsageError for an invalid value, and for keys without users.
    """
    toml.known(table, tuple(_CHECKS), f"{where}: [serve]")
    given = {name: _CHECKS[name](value, f"{where}: [serve] {name}") for name, value in table.items()}
    for name, value in flags.items():
        if value is not None:
            given[name] = _CHECKS[name](value, _flag(name))
    if ("keys" in given) != ("authorised" in given):
        raise UsageError(
            f"{where}: keys and authorised go together: the daemon's own key, and the list of its users"
        )
    if "keys" in given and "metrics" in given and "metrics_keys" not in given:
        raise UsageError(
            f"{where}: metrics of a daemon with keys are asked for as a user: metrics_keys names its key file"
        )
    return Settings(**given)


def _flag(name: str) -> str:
    return "--provider" if name == "providers" else f"--{name.replace('_', '-')}"


class Source:
    """A pipeline file and the command's flags, from which settings are read and reloaded."""

    def __init__(self, path: Path, flags: Mapping[str, Any]) -> None:
        self.path = path
        self._flags = flags
        self._rest: Mapping[str, Any] = {}  # the rest of the file at the first reading: the pipeline

    def read(self) -> tuple[Settings, bool]:
        """Read the settings, and whether the pipeline differs from the first reading.

        A bare model has no table. Raises as `make` does, and PipelineError for a file that is not TOML.
        """
        document = toml.read_toml(self.path) if self.path.suffix == ".toml" else {}
        table = toml.table(document, "serve", str(self.path))
        for name in ("keys", "authorised", "metrics_keys"):  # relative to the file that names them
            if isinstance(table.get(name), str):
                table = {**table, name: str(self.path.parent / table[name])}
        rest = {key: value for key, value in document.items() if key != "serve"}
        settings = make(table, self._flags, str(self.path))
        self._rest = self._rest or rest
        return settings, rest != self._rest


def renewed(now: Settings, read: Settings) -> tuple[Settings, list[str], list[str]]:
    """Settings after a reload, the names that changed, and the names that need a restart."""
    changed = [f.name for f in fields(Settings) if getattr(now, f.name) != getattr(read, f.name)]
    free = [name for name in changed if name in RELOADABLE]
    return (
        replace(now, **{name: getattr(read, name) for name in free}),
        free,
        [name for name in changed if name not in RELOADABLE],
    )


def _whole(least: int, most: int) -> Check:
    def check(value: Any, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise UsageError(f"{where} must be a whole number in {least}..{most}, not {value!r}")
        return value

    return check


def _seconds(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value == 0 or LEAST_SECONDS <= value < math.inf):
        raise UsageError(
            f"{where} must be a number of seconds, {LEAST_SECONDS:g} at least, 0 for never, not {value!r}"
        )
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where} must be a text, not {value!r}")
    return value


def _address(value: Any, where: str) -> str:
    """Check an address. A port alone, as a number or a text, means one on this machine."""
    text = _port(value, where)
    return f"tcp://127.0.0.1:{text}" if text.isascii() and text.isdigit() else text


def _port(value: Any, where: str) -> str:
    """A text; a number is a port."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= MAX_PORT:
            raise UsageError(f"{where}: a port is at most {MAX_PORT}, not {value}")
        return str(value)
    return _text(value, where)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_PROVIDERS:
        raise UsageError(f"{where} must be a list of 1 to {MAX_PROVIDERS} names, not {value!r:.80}")
    return tuple(_text(name, where) for name in value)


def _among(known: tuple[str, ...]) -> Check:
    def check(value: Any, where: str) -> str:
        if value not in known:
            raise UsageError(f"{where}: {value!r} is none of them{nearest(str(value), known)}")
        return str(value)

    return check


_CHECKS: Final[Mapping[str, Check]] = {
    "bind": _address,  # `address.parse` checks it
    "max_streams": _whole(1, 10_000_000),
    "user_streams": _whole(0, 10_000_000),
    "idle_seconds": _seconds,
    "workers": _whole(1, MAX_WORKERS),
    "keys": _text,
    "authorised": _text,
    "threads": _whole(1, 1024),
    "providers": _texts,
    "log_level": _among(LEVELS),
    "log_format": _among(FORMATS),
    "metrics": _port,  # `metrics.parse` checks it
    "metrics_keys": _text,
}

FLAGS: Final = tuple(_CHECKS)
