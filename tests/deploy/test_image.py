"""The image cannot be built in the tests: what its file says is read, and held to what it promises."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from runnel.cli import serve
from runnel.cli.main import COMMANDS
from runnel.wire.address import parse

ROOT = Path(__file__).parents[2]
KNOWN = ("FROM", "RUN", "ENV", "USER", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD")


def instructions() -> list[tuple[str, str]]:
    """(name, what follows), comments left out and continued lines joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def the(name: str) -> str:
    [only] = [rest for found, rest in instructions() if found == name]
    return only


def test_every_line_is_an_instruction_in_its_place() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) == set(KNOWN)
    assert names[0] == "FROM"
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN"), (
        "it is set up as root"
    )


def test_the_base_is_slim_pinned_to_a_release_and_a_python_that_runnel_takes() -> None:
    tag = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", the("FROM"))
    assert tag
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, tag[1].split("."))) >= tuple(map(int, wanted.removeprefix(">=").split(".")))


def test_it_runs_as_a_user_of_its_own_by_number() -> None:
    """By number, so that an orchestrator can see that it is not root."""
    user, group = the("USER").split(":")
    assert int(user) == int(group) > 0
    assert f"--uid {user}" in instructions()[1][1]


def test_it_installs_the_base_package_and_nothing_else() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    [words] = [shlex.split(rest.split("pip install")[1]) for rest in installs]
    assert [word for word in words if not word.startswith("--")] == ["/dist/runnel-*.whl"]
    assert {"--no-cache-dir", "--only-binary=:all:"} <= set(words)
    assert "apt" not in str(instructions())
    kept = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert kept == ["*", "!dist/runnel-*.whl"]


def test_what_it_starts_is_a_command_that_runnel_knows() -> None:
    program = json.loads(the("ENTRYPOINT"))
    command, *words = json.loads(the("CMD"))
    assert (program, command) == (["runnel"], "serve")
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    args = parser.parse_args(words)
    health = json.loads(the("HEALTHCHECK").split("CMD ")[1])
    assert health[0] == "runnel"
    assert health[1] in COMMANDS
    assert parse(health[-1]) == parse(args.bind), "the check asks where it serves"
    assert str(parse(args.bind).path.parent) in instructions()[1][1], "which is a folder of the user's own"  # type: ignore[union-attr]


def test_a_daemon_that_is_not_there_is_unhealthy() -> None:
    health = json.loads(the("HEALTHCHECK").split("CMD ")[1])
    asked = subprocess.run(
        [sys.executable, "-m", "runnel.cli.main", *health[1:]], capture_output=True, timeout=60, check=False
    )
    assert asked.returncode != 0
