"""Run the pages as a reader would: write the files, type the commands, compare what they print.

A `python` or `toml` block whose first line is ``# NAME`` becomes that file. The lines of a `console` block
that begin with ``$ `` are typed into one shell; all other lines are the expected standard output.
`sh` and `text` blocks are not run.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {  # page: the heading from which on its blocks are run
    "README.md": "# Runnel",
    "engine/api.md": "# The Python API",
    "deploy/serving.md": "# Serving",
    "deploy/pipelines.md": "## Examples",
    "export/insight.md": "# Insight",
}
LONGEST = 600  # seconds for one console block: torch is imported and a model exported in it
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block to run, in order."""
    text = (ROOT / page).read_text("utf-8")
    return _BLOCK.findall(text[text.index(PAGES[page]) :])


def typed(commands: list[str], folder: Path) -> str:
    """What the commands print, in a shell of their own that leaves no process behind."""
    bin = Path(sys.executable).parent  # not resolved: a virtual environment's python is a link
    environment = os.environ | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    shell = subprocess.Popen(
        ["bash", "-c", "\n".join(commands)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaints = shell.communicate(timeout=LONGEST)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # a daemon that a failed command left running
        shell.wait()
    sys.stderr.write(complaints)  # shown by pytest where the comparison fails
    return printed


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here to type the commands into")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(page: str, tmp_path: Path) -> None:
    folder = tmp_path  # empty, as a reader's is
    ran = 0
    for language, text in blocks(page):
        if language in ("python", "toml"):
            name = re.match(r"# (\S+)\n", text)
            assert name, f"a {language} block says its file's name in its first line:\n{text}"
            (folder / name[1]).write_text(text)
        elif language == "console":
            lines = text.splitlines(keepends=True)
            commands = [line.removeprefix("$ ").rstrip("\n") for line in lines if line.startswith("$ ")]
            expected = "".join(line for line in lines if not line.startswith("$ "))
            assert typed(commands, folder) == expected, commands
            ran += 1
        else:
            assert language in ("sh", "text"), f"a {language} block is neither run nor known as not to be run"
    assert ran


def test_the_first_pages_of_the_readme_have_the_two_commands() -> None:
    first = "\n".join(README.read_text("utf-8").splitlines()[:50])
    assert re.search(r"^make run\b", first, re.M)
    assert re.search(r"^make test\b", first, re.M)
