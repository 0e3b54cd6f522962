"""`runnel plugins new NAME`: write a package with one plugin and a passing test."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from ..errors import UsageError
from ..loading.loader import MODEL
from ..loading.registry import distribution, installed

MAX_NAME = 40  # characters: it becomes the name of a file, a module and a package

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def write(name: str, kind: str, into: Path) -> str:
    """Write the package into a new folder under `into`; return a report with the next steps.

    Raises UsageError, with nothing written, for an invalid name or an existing folder.
    """
    module, package = f"runnel_{name}", f"runnel-{name.replace('_', '-')}"
    check_name(name, module)
    folder = into / package
    words = _words(name, kind, module) | {"package": package}
    files = {
        "pyproject.toml": _PROJECT,
        "README.md": _README,
        f"{module}.py": _MODULES[kind],
        f"test_{module}.py": _TESTS[kind],
    }
    made = {file: Template(text).substitute(words).lstrip("\n") for file, text in files.items()}
    try:
        folder.mkdir()
    except FileExistsError:
        raise UsageError(f"{folder} is there already, and nothing in it is overwritten") from None
    except FileNotFoundError:
        raise UsageError(f"there is no folder {into}: make it first") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot make it: {error.strerror or error}") from None
    try:
        for file, text in made.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: cannot write to it: {error.strerror or error}") from None
    return (
        f"wrote {folder}: {', '.join(made)}\n\nnext, where runnel and pytest are installed:\n"
        f"  cd {folder}\n  python -m pytest          # it passes as it is\n"
        f"  pip install -e .          # from now on pipelines can name it\n  runnel plugins {name}"
    )


def filled(name: str, kind: str, module: str) -> tuple[str, str, str]:
    """A plugin's module, the module's test, and the plugin's entry in a pipeline file."""
    words = _words(name, kind, module)
    source, test = (Template(text[kind]).substitute(words).lstrip("\n") for text in (_MODULES, _TESTS))
    return source, test, words["entry"]


def _words(name: str, kind: str, module: str) -> dict[str, str]:
    camel = "".join(part.capitalize() for part in name.split("_"))
    return {
        "name": name,
        # With its kind, so that it differs from the names that the module imports.
        "Name": camel if camel.endswith(kind.capitalize()) else camel + kind.capitalize(),
        "module": module,
        "kind": kind,
        "entry": _ENTRIES[kind].replace("$name", name),
    }


def check_name(name: str, module: str | None) -> None:
    """Raise UsageError if the name, or the top-level `module`, is invalid or taken."""
    if not _NAME.match(name) or len(name) > MAX_NAME:
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:MAX_NAME]
        hint = f": {near!r}, say" if _NAME.match(near) else ""
        raise UsageError(
            f"a plugin's name is 1 to {MAX_NAME} characters of a-z, 0-9 and _, a letter first{hint}; "
            f"not {name!r:.80}"
        )
    words = {"new": "this command", MODEL: "pipeline files"}
    if keyword.iskeyword(name) or name in words:
        raise UsageError(f"{name!r} is a word of {words.get(name, 'Python')}: choose another name")
    if name in installed():
        raise UsageError(
            f"a plugin {name!r} is installed already, of {' '.join(distribution(name))}; with two of one "
            "name neither can be used: choose another name"
        )
    if module and importlib.util.find_spec(module):
        raise UsageError(f"there is a module {module} already: choose another name")


_PROJECT = """
[build-system]
requires = ["hatchling"]  # it finds $module.py by the project's name
build-backend = "hatchling.build"

[project]
name = "$package"
version = "0.1.0"
description = "A $kind for Runnel"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["runnel"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.runnel]
$name = "$module"
"""

_README = """
# $package

A $kind for Runnel.

```sh
python -m pytest
pip install -e .
runnel plugins $name
```

$entry
"""

_ENTRIES = {
    "stage": """In a pipeline's file:

```toml
[[after]]
use = "$name"
weight = 0.2
```""",
    "source": """In a pipeline's file:

```toml
[source]
use = "$name"
hz = 440.0
```

or on a command line: `runnel run pipeline.toml "$name:440?seconds=2"`""",
    "sink": """In a pipeline's file:

```toml
[[sink]]
use = "$name"
path = "peaks.json"
```

or on a command line: `runnel run pipeline.toml input.csv -o $name:peaks.json`""",
    "notice": """In a pipeline's file:

```toml
[[notice]]
use = "$name"
path = "streams.log"
```""",
}

_MODULES = {
    "stage": '''
"""Exponential average: y[t] = y[t-1] + weight * (x[t] - y[t-1]), with y[-1] = 0."""

from collections.abc import Mapping

import numpy as np
import runnel
from runnel.errors import PipelineError
from runnel.stage import Arrays, Chunk


class $Name(runnel.StackedStage):
    """Average each array exponentially: float32 in, float32 out, units as they come, latency 0."""

    name = "$name"

    def __init__(self, inputs: runnel.Signal, weight: float = 0.1) -> None:
        if not 0 < weight <= 1:
            raise PipelineError(f"$name: weight must be above 0 and at most 1, not {weight:g}")
        if any(tensor.dtype != "float32" for tensor in inputs.tensors):
            raise PipelineError(f"$name takes float32, but {inputs} arrives")
        self.inputs = self.outputs = inputs
        self.weight = np.float32(weight)

    def initial(self) -> Arrays:
        """The average so far of each array: float32, one time step's shape, in its units."""
        return {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in self.inputs.tensors}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        after, made = {}, {}
        for name, x in chunk.items():  # (streams, time steps, ...)
            level, rows = state[name].copy(), np.empty_like(x)  # never write into the input
            for t in range(x.shape[1]):
                level += self.weight * (x[:, t] - level)
                rows[:, t] = level
            after[name], made[name] = level, rows
        return after, made


@runnel.hookimpl
def runnel_stages() -> Mapping[str, type[$Name]]:
    return {"$name": $Name}
''',
    "source": '''
"""A test tone: x[t] = sin(2 pi hz t / rate)."""

from collections.abc import Iterator, Mapping

import numpy as np
import runnel
from runnel.errors import UsageError
from runnel.stage import Chunk


class $Name(runnel.Source):
    """A sine of `hz` Hz for `seconds`, at the rate of the pipeline (1000 Hz if it has none)."""

    steps: int
    rate: float

    def __init__(self, signal: runnel.Signal, hz: float = 440.0, seconds: float = 1.0) -> None:
        if len(signal.tensors) != 1:
            raise UsageError(f"$name: it makes one array, but the pipeline takes {signal}")
        self.tensor = signal.tensors[0]
        self.rate = signal.rate or 1000.0
        self.hz, self.steps = hz, round(seconds * self.rate)

    def chunks(self, block: int) -> Iterator[Chunk]:
        for start in range(0, self.steps, block):
            t = np.arange(start, min(start + block, self.steps)) / self.rate
            sine = np.multiply.outer(np.sin(2 * np.pi * self.hz * t), np.ones(self.tensor.shape))
            yield {self.tensor.name: sine.astype(self.tensor.dtype)}


@runnel.hookimpl
def runnel_sources() -> Mapping[str, type[$Name]]:
    return {"$name": $Name}
''',
    "sink": '''
"""The largest magnitude of each output, as one JSON object."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import runnel
from runnel.errors import UsageError
from runnel.stage import Chunk


class $Name(runnel.Sink):
    """Write the largest magnitude of each array to `path`, once the run is over."""

    def __init__(self, signal: runnel.Signal, path: Path) -> None:
        if not path.parent.is_dir():
            raise UsageError(f"$name: there is no folder {path.parent}")
        self.path = path
        self.peaks = dict.fromkeys(signal.names, 0.0)

    def write(self, chunk: Chunk) -> None:
        for name, rows in chunk.items():
            self.peaks[name] = max(self.peaks[name], float(np.abs(rows).max(initial=0)))

    def close(self, whole: bool) -> None:
        if whole:  # nothing half-made stays behind
            self.path.write_text(json.dumps(self.peaks) + "\\n")


@runnel.hookimpl
def runnel_sinks() -> Mapping[str, type[$Name]]:
    return {"$name": $Name}
''',
    "notice": '''
"""Log events of streams, a line each."""

from collections.abc import Callable, Mapping
from pathlib import Path

import runnel
from runnel import Notice


def ${name}_listener(path: Path, events: list[str] | None = None) -> Callable[[Notice], None]:
    """Append a line to `path` for each event, or only for those in `events`."""

    def listen(notice: Notice) -> None:
        if events is None or notice.event in events:
            with path.open("a") as file:
                print(notice.event, notice.stream, notice.seq, notice.reason, file=file)

    return listen


@runnel.hookimpl
def runnel_notices() -> Mapping[str, Callable[..., Callable[[Notice], None]]]:
    return {"$name": ${name}_listener}
''',
}

_TESTS = {
    "stage": """
import numpy as np
from runnel import Signal, TensorSpec
from runnel.checks import check_stage

from $module import $Name

SIGNAL = Signal((TensorSpec("x", "float32", (3,)),))


def test_it_keeps_the_laws() -> None:
    check_stage(lambda: $Name(SIGNAL, weight=0.3))


def test_each_step_approaches_the_input_by_the_weight() -> None:
    stage = $Name(SIGNAL, weight=0.5)
    _, out = stage.step(stage.initial(), {"x": np.ones((3, 3), np.float32)})
    np.testing.assert_allclose(out["x"][:, 0], [0.5, 0.75, 0.875])
""",
    "source": """
import numpy as np
import pytest
from runnel import Signal, TensorSpec

from $module import $Name

SIGNAL = Signal((TensorSpec("x", "float32", (2,)),), 100.0)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_it_is_the_same_tone_in_chunks_of_any_size(block: int) -> None:
    source = $Name(SIGNAL, hz=10, seconds=0.5)
    made = list(source.chunks(block))
    assert all(1 <= len(chunk["x"]) <= block for chunk in made)
    rows = np.concatenate([chunk["x"] for chunk in made])
    assert rows.dtype == np.float32
    assert rows.shape == (source.steps, 2)
    np.testing.assert_allclose(rows[:, 0], np.sin(2 * np.pi * 10 * np.arange(50) / 100), atol=1e-6)
""",
    "sink": """
import json
from pathlib import Path

import numpy as np
from runnel import Signal, TensorSpec

from $module import $Name

SIGNAL = Signal((TensorSpec("y", "float32", (2,)),))


def test_it_writes_the_peak_of_a_whole_run(tmp_path: Path) -> None:
    sink = $Name(SIGNAL, tmp_path / "peaks.json")
    for rows in ([[1, -3]], np.zeros((0, 2)), [[2, 0]]):
        sink.write({"y": np.array(rows, np.float32)})
    sink.close(whole=True)
    assert json.loads((tmp_path / "peaks.json").read_text()) == {"y": 3.0}


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    sink = $Name(SIGNAL, tmp_path / "peaks.json")
    sink.close(whole=False)
    assert not list(tmp_path.iterdir())
""",
    "notice": """
from pathlib import Path

from runnel import Notice

from $module import ${name}_listener


def test_it_writes_a_line_for_each_selected_event(tmp_path: Path) -> None:
    listen = ${name}_listener(tmp_path / "streams.log", events=["opened", "failed"])
    listen(Notice("opened", "mic-1", 0, "new"))
    listen(Notice("reset", "mic-1", 0))
    listen(Notice("failed", "mic-1", 3, "a NaN"))
    assert (tmp_path / "streams.log").read_text() == "opened mic-1 0 new\\nfailed mic-1 3 a NaN\\n"
""",
}
