"""`runnel plugins`: what is installed, and what is broken."""

from __future__ import annotations

import argparse
import re

import pytest

from runnel.cli import plugins as command
from runnel.errors import PluginError


def listing(capsys, *words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(words)) == 0
    return capsys.readouterr().out


def test_our_own_stages_are_listed_with_their_options(capsys):
    shown = listing(capsys)
    assert re.search(r"^resample  \(runnel \d+\.\d+\.\d+\)$", shown, re.M)
    assert re.search(r"^    Resample to `rate` Hz", shown, re.M)
    assert re.search(r"^    rate        a number, required$", shown, re.M)
    assert re.search(r"^    half_width  a whole number, default 10$", shown, re.M)
    assert re.search(r"^speech_segments  \(runnel ", shown, re.M)


def test_a_broken_one_is_listed_with_its_error(capsys, tmp_path, monkeypatch):
    info = tmp_path / "broken-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[runnel]\nbroken = no_such_module_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    shown = listing(capsys)
    assert "broken  (broken)\n    stage 'broken' of broken 2.0 cannot be loaded: ModuleNotFoundError" in shown
    assert "resample  (runnel" in shown


def test_one_by_name(capsys):
    assert "speech_segments" not in listing(capsys, "resample")
    with pytest.raises(PluginError, match="did you mean 'resample'"):
        listing(capsys, "resampel")
