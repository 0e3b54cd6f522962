"""Plugins: packages found by entry point, loaded by name, options checked against annotations."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from runnel import Signal, TensorSpec
from runnel.errors import PipelineError, PluginError
from runnel.loading import registry as plugins
from runnel.loading.registry import make_stage

SIGNAL = Signal((TensorSpec("x", "float32"),), 100.0)

STAGE = """
    from __future__ import annotations
    from typing import Literal
    import runnel

    class Probe(runnel.Stage):
        '''Show what it was given.

        More.
        '''
        name = "probe"

        def __init__(self, inputs, gain: float = 1.0, count: int = 2, on: bool = False,
                     label: str | None = None, mode: Literal["hold", "skip"] = "hold",
                     cuts: list[float] | None = None,
                     marks: list[Literal["rise", "fall"]] | None = None):
            self.inputs = self.outputs = inputs
            self.got = {"gain": gain, "count": count, "on": on, "label": label, "mode": mode, "cuts": cuts}

        def initial(self):
            return {}

        def step(self, state, chunk):
            return state, chunk

    @runnel.hookimpl
    def runnel_stages():
        return {"probe": Probe}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a one-module package into its own folder, and put the folder on the path."""

    def make(module, source, *, name="probe", package="acme-probe", version="1.4"):
        root = tmp_path / package
        info = root / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[runnel]\n{name} = {module}\n")
        (root / f"{module}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(root)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


def test_third_party_package_is_found_and_gets_its_options(install):
    install("acme_probe", STAGE)
    stage = make_stage(
        "probe", SIGNAL, {"gain": 2, "on": True, "label": "a", "mode": "skip", "cuts": [1, 2.5]}, "here"
    )
    assert stage.got == {
        "gain": 2.0,
        "count": 2,
        "on": True,
        "label": "a",
        "mode": "skip",
        "cuts": [1.0, 2.5],
    }
    assert isinstance(stage.got["gain"], float)
    assert stage.inputs is SIGNAL


def test_plugin_str_names_its_distribution(install):
    install("acme_probe", STAGE)
    plugin = plugins.load("probe")
    assert (plugin.distribution, plugin.version, plugin.doc) == (
        "acme-probe",
        "1.4",
        "Show what it was given.",
    )
    assert [str(o) for o in plugin.options] == [
        "gain: a number = 1.0",
        "count: a whole number = 2",
        "on: true or false = False",
        "label: a text = None",
        "mode: 'hold' or 'skip' = 'hold'",
        "cuts: a list of (a number) = None",
        "marks: a list of ('rise' or 'fall') = None",
    ]
    assert "probe" in plugins.installed()
    assert plugins.distribution("probe") == ("acme-probe", "1.4")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gian": 2.0}, r"no option 'gian' \(did you mean 'gain'\?\), a number"),
        ({"zzz": 2.0}, r"no option 'zzz' \(known: count, cuts, gain"),
        ({"gain": "2"}, r"option 'gain' of stage 'probe' takes a number, not '2' \(str\)"),
        ({"gain": True}, r"'gain' .* takes a number, not True \(bool\)"),
        ({"gain": 10**400}, r"'gain' .* takes a number, not 1000"),
        ({"gain": float("nan")}, r"'gain' .* takes a number, not nan"),
        ({"count": 2.0}, r"'count' .* takes a whole number, not 2.0 \(float\)"),
        ({"count": True}, r"'count' .* takes a whole number, not True"),
        ({"on": 1}, r"'on' .* takes true or false, not 1"),
        ({"label": 3}, r"'label' .* takes a text, not 3"),
        ({"mode": "hopp"}, r"'mode' .* takes 'hold' or 'skip', not 'hopp' \(str\)$"),
        ({"mode": "hodl"}, r"takes 'hold' or 'skip', not 'hodl' \(str\) \(did you mean 'hold'\?\)"),
        ({"marks": ["rise", "fal"]}, r"a list of \('rise' or 'fall'\), .* \(did you mean 'fall'\?\)"),
        ({"cuts": [1.0, "b"]}, r"'cuts' .* takes a list of \(a number\), not \[1.0, 'b'\]"),
        ({"cuts": 1.0}, r"'cuts' .* takes a list of \(a number\)"),
    ],
)
def test_error_for_a_wrong_option_names_the_entry_and_the_valid_options(install, options, says):
    install("acme_probe", STAGE)
    with pytest.raises(PipelineError, match=r"^vad.toml: \[\[before\]\] number 1: .*" + says):
        make_stage("probe", SIGNAL, options, "vad.toml: [[before]] number 1")


def test_missing_required_option_is_an_error():
    with pytest.raises(PipelineError, match="stage 'resample' needs the option rate: a number"):
        make_stage("resample", SIGNAL, {}, "here")


def test_error_of_a_stage_names_the_entry():
    with pytest.raises(PipelineError, match=r"^here: resample: rate must be a positive"):
        make_stage("resample", SIGNAL, {"rate": -1}, "here")


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(
        PluginError, match=r"here: no plugin 'resampel' is installed \(did you mean 'resample'\?\)"
    ):
        make_stage("resampel", SIGNAL, {}, "here")


def handing_over(what, before=""):
    return f"import runnel\n{before}\n@runnel.hookimpl\ndef runnel_stages():\n    return {what}\n"


BROKEN = {
    "does not import": (
        "import no_such_library",
        "ModuleNotFoundError.*install the package that has 'no_such_library'",
    ),
    "is of another version": (
        "import runnel.no_such_part",
        r"ModuleNotFoundError.*\(acme-probe is made for another version of runnel than this, \d",
    ),
    "raises": ("1 / 0", "ZeroDivisionError: "),
    "is not python": ("def", "SyntaxError"),
    "has no hook": ("x = 1", "hands over nothing of that name.*@runnel.hookimpl"),
    "misspells the hook": (handing_over("{}").replace("stages", "stage"), "runnel_stage"),
    "takes arguments": (handing_over("{}").replace("()", "(who)"), "who"),
    "gives a list": (handing_over("[1]"), "gave a list"),
    "names it otherwise": (handing_over("{'probes': int}"), "did you mean 'probes'"),
    "gives no factory": (handing_over("{'probe': 3}"), "cannot be called"),
    "takes no inputs": (handing_over("{'probe': lambda: 3}"), "first argument"),
    "has an option of no known type": (
        handing_over("{'probe': f}", "def f(inputs, a: dict): pass"),
        "parameter 'a: dict' cannot be an option",
    ),
    "has an option of no type": (
        handing_over("{'probe': f}", "def f(inputs, a=1): pass"),
        "parameter 'a=1' cannot be an option",
    ),
    "makes no stage": (
        handing_over("{'probe': f}", "def f(inputs): return 3"),
        "its factory gave a int, not a runnel.Stage",
    ),
    "makes a stage without outputs": (
        STAGE.replace("self.inputs = self.outputs = inputs", "self.inputs = inputs"),
        "outputs must be a Signal, not None",
    ),
    "makes a stage without arrays": (
        STAGE.replace("self.outputs = inputs", "self.outputs = runnel.Signal(())"),
        "must hold one array or more, each of another name, not nothing",
    ),
    "makes a stage with a dtype that numpy does not know": (
        STAGE.replace("= inputs\n", "= runnel.Signal((runnel.TensorSpec('x', 'float'),))\n"),
        r"hold x: float \(T\): a dtype is one of float32",
    ),
    "makes a stage with a ratio of nothing": (
        STAGE.replace("def initial", "ratio = (1, 0)\n\n        def initial"),
        r"ratio \(up, down\), both at least 1, or None, not \(1, 0\)",
    ),
    "leaves when it is imported": ("raise SystemExit(3)", "SystemExit: 3"),
    "is a sink": (
        handing_over("{'probe': f}", "def f(signal): pass").replace("stages", "sinks"),
        "is a sink, not a stage",
    ),
    "fails when it makes one": (
        STAGE.replace("self.got = {", "self.got = 1 / 0, {"),
        "cannot be made: ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_error_names_a_broken_package_its_version_and_the_cause(install, fault):
    source, says = BROKEN[fault]
    install("acme_probe", source)
    with pytest.raises(PluginError, match=rf"(?s)here: (plugin|stage) 'probe' of acme-probe 1\.4.*{says}"):
        make_stage("probe", SIGNAL, {}, "here")
    assert make_stage("resample", SIGNAL, {"rate": 50}, "here").name == "resample"


ENDS = """
    import runnel

    @runnel.hookimpl
    def runnel_{kind}s():
        return {{"probe": lambda {takes}: {gives}}}
"""


@pytest.mark.parametrize(
    ("kind", "takes", "gives", "says"),
    [
        ("source", "signal", "3", "its factory gave a int, not a runnel.Source"),
        ("sink", "signal", "3", "its factory gave a int, not a runnel.Sink"),
        ("notice", "", "3", "its factory gave a int, which cannot be called"),
        ("source", "", "3", r"must take the signal \(a runnel.Signal\) as first argument"),
        ("notice", "signal", "print", "parameter 'signal' cannot be an option"),
    ],
)
def test_sources_sinks_and_listeners_are_checked_when_made(install, kind, takes, gives, says):
    install("acme_probe", ENDS.format(kind=kind, takes=takes, gives=gives))
    given = () if kind == "notice" else (SIGNAL,)
    with pytest.raises(PluginError, match=rf"here: (plugin|{kind}) 'probe' of acme-probe 1\.4: .*{says}"):
        plugins.make(kind, "probe", given, {}, "here")


def test_one_name_can_be_of_several_kinds(install):
    source = ENDS.format(kind="notice", takes="", gives="print")
    install("acme_probe", textwrap.dedent(STAGE) + textwrap.dedent(source))
    assert [plugin.kind for plugin in plugins.offers("probe")] == ["stage", "notice"]
    assert plugins.make("notice", "probe", (), {}, "here") is print
    assert make_stage("probe", SIGNAL, {}, "here").name == "probe"
    with pytest.raises(PluginError, match="is a stage and a notice, not a sink"):
        plugins.load("probe", "sink")


@pytest.mark.parametrize("entries", [b"[runnel]\nno equals sign\n", b"[console_scripts]\nx\n", b"\xff\xfe"])
def test_unreadable_entry_points_hide_only_their_package(install, tmp_path, monkeypatch, entries):
    install("acme_probe", STAGE)
    info = tmp_path / "odd" / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_bytes(entries)
    monkeypatch.syspath_prepend(info.parent)
    assert {"probe", "resample"} <= set(plugins.installed())
    assert make_stage("probe", SIGNAL, {}, "here").name == "probe"


def test_a_package_without_metadata_is_still_loaded(install, tmp_path):
    install("acme_probe", STAGE)
    (tmp_path / "acme-probe" / "acme_probe-1.4.dist-info" / "METADATA").unlink()
    assert plugins.distribution("probe") == ("an unknown package", "?")
    assert make_stage("probe", SIGNAL, {}, "here").name == "probe"


def test_two_packages_that_offer_one_name_are_both_named(install):
    install("acme_probe", STAGE)
    install("other_probe", STAGE, package="other-probe", version="0.2")
    with pytest.raises(PluginError, match=r"offered by acme-probe 1\.4 and other-probe 0\.2"):
        make_stage("probe", SIGNAL, {}, "here")


def test_only_named_plugins_are_imported():
    program = (
        "import sys, runnel\n"
        "late = {'pluggy', 'importlib.metadata', 'runnel.loading.registry'}\n"
        "assert not late & set(sys.modules), 'at import'\n"
        "from runnel.loading.registry import load\n"
        "load('resample')\n"
        "assert 'runnel_plugins.resample' in sys.modules\n"
        "assert 'runnel_plugins.speech_segments' not in sys.modules, 'not asked for'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


KIT = """
    import runnel

    def make(**options):
        raise AssertionError("not asked for")

    @runnel.hookimpl
    def runnel_sinks():
        return {"meter": lambda signal: None, "gauge": lambda signal: None}
"""


def test_error_names_plugins_that_a_package_does_not_declare(install):
    """A module with several plugins but one entry point, named after the package: a common mistake."""
    install("acme_kit", KIT, name="kit", package="acme-kit", version="2.0")
    with pytest.raises(PluginError) as found:
        plugins.load("gauge", "sink")
    assert "acme-kit 2.0 has it in its module acme_kit" in found.value.message
    assert 'gauge = "acme_kit" under [project.entry-points.runnel]' in found.value.message
    with pytest.raises(PluginError) as found:
        plugins.load("kit", "sink")
    assert "hands over 'gauge', 'meter'" in found.value.message
    assert 'gauge = "acme_kit", meter = "acme_kit"' in found.value.message
    with pytest.raises(
        PluginError, match=r"no plugin 'gague' is installed \(known|no plugin 'gague' is installed"
    ):
        plugins.load("gague", "sink")


def test_search_for_undeclared_plugins_imports_nothing(install, tmp_path):
    install("acme_kit", f"open({str(tmp_path / 'ran')!r}, 'w')\nx = {{'gauge': 1}}\n", name="kit")
    with pytest.raises(PluginError, match="has it in its module acme_kit"):
        plugins.load("gauge")
    assert not (tmp_path / "ran").exists()
