"""The [serve] table and the flags: what is valid, what is refused, what a reload may change."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from runnel import Engine
from runnel.daemon.settings import FLAGS, RELOADABLE, Settings, Source, make, renewed
from runnel.daemon.supervision import control as control
from runnel.errors import PipelineError, RunnelError, UsageError

from .support import model_pipeline

EVERY: dict[str, Any] = {
    "bind": "ipc:///run/r.sock",
    "max_streams": 7,
    "user_streams": 2,
    "idle_seconds": 1.5,
    "workers": 3,
    "keys": "d.key",
    "authorised": "users",
    "threads": 2,
    "providers": ("CPUExecutionProvider",),
    "log_level": "debug",
    "log_format": "json",
    "metrics": "127.0.0.1:9464",
    "metrics_keys": "metrics.key",
}


def test_flags_override_the_table() -> None:
    assert set(EVERY) == set(FLAGS) == {f.name for f in fields(Settings)}
    table = {**EVERY, "providers": list(EVERY["providers"])}
    assert make(table, {}, "p.toml") == Settings(**EVERY)
    assert make({}, EVERY, "p.toml") == Settings(**EVERY)
    assert make({}, dict.fromkeys(FLAGS), "p.toml") == Settings()
    assert make(table, {"max_streams": 9, "bind": None}, "p.toml") == Settings(**{**EVERY, "max_streams": 9})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bind", ""), ("bind", -3),
        ("max_streams", 0), ("max_streams", 1.5), ("max_streams", True), ("max_streams", "8"),
        ("user_streams", -1), ("user_streams", 0.5),
        ("idle_seconds", -1), ("idle_seconds", float("inf")), ("idle_seconds", float("nan")),
        ("idle_seconds", "60"), ("idle_seconds", True),
        ("workers", 0), ("workers", 257),
        ("keys", ""), ("keys", 1), ("authorised", ""), ("authorised", ["a"]),
        ("threads", 0),
        ("providers", "CPU"), ("providers", []), ("providers", [1]), ("providers", ["x"] * 17),
        ("log_level", "loud"), ("log_level", 3),
        ("log_format", "xml"), ("metrics", ""), ("metrics", 94640),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_from_any_source(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"p\.toml: \[serve\] {name}"):
        make({name: value}, {}, "p.toml")
    with pytest.raises(UsageError, match="--" + name.rstrip("s").replace("_", "-")):
        make({}, {name: value}, "p.toml")
    with pytest.raises(UsageError):  # though a flag overrides it
        make({name: value}, {name: EVERY[name]}, "p.toml")


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(PipelineError, match=r"\[serve\].*'max_stream'.*'max_streams'"):
        make({"max_stream": 3}, {}, "p.toml")


def test_reloadable_settings_change_and_others_are_named() -> None:
    now = Settings()
    after, changed, fixed = renewed(now, Settings(**EVERY))
    assert set(changed) == set(RELOADABLE)
    assert set(fixed) == set(EVERY) - set(RELOADABLE)
    for f in fields(Settings):
        expected = EVERY[f.name] if f.name in RELOADABLE else getattr(now, f.name)
        assert getattr(after, f.name) == expected
    assert renewed(now, now) == (now, [], [])


def test_a_file_is_read_again_on_reload(tmp_path: Path) -> None:
    path = model_pipeline(tmp_path)
    text = path.read_text()
    source = Source(path, {"workers": 2})
    path.write_text(text + "[serve]\nidle_seconds = 5\n")
    assert source.read() == (Settings(idle_seconds=5.0, workers=2), False)
    path.write_text(text + "[serve]\nidle_seconds = 6\nworkers = 4\n")
    assert source.read() == (Settings(idle_seconds=6.0, workers=2), False)
    path.write_text(text.replace('"s_next"', '"other"'))
    assert source.read() == (Settings(workers=2), True), "the pipeline itself is another"
    path.write_text("[serve\n")
    with pytest.raises(RunnelError):
        source.read()
    assert Source(tmp_path / "tally.onnx", {}).read() == (Settings(), False)


def test_settings_do_not_count_as_a_change_of_the_pipeline(tmp_path: Path) -> None:
    path = model_pipeline(tmp_path)
    with Engine.load(path) as engine:
        plain = engine.pipeline.fingerprint
    path.write_text(path.read_text() + "[serve]\nworkers = 2\n")
    with Engine.load(path) as engine:
        assert engine.pipeline.fingerprint == plain


def test_settings_reach_a_worker_unchanged() -> None:
    assert control.settings(asdict(Settings(**EVERY))) == Settings(**EVERY)
    config = control.WorkerConfig(3, "p.toml", "ipc:///a", True, Settings(**EVERY), 0.5)
    ours, theirs = control.pair()
    with ours, theirs:
        assert control.send(ours, config.packet())
        packet = control.receive(theirs)
        assert packet is not None
        assert control.worker_config(packet) == config
        ours.close()
        assert control.receive(theirs) is None
        assert not control.send(theirs, {})


def test_keys_and_users_go_together_relative_to_their_file(tmp_path: Path) -> None:
    for name in ("keys", "authorised"):
        with pytest.raises(UsageError, match="keys and authorised go together"):
            make({name: "x"}, {}, "p.toml")
    path = tmp_path / "p.toml"
    path.write_text('[serve]\nkeys = "d.key"\nauthorised = "/etc/users"\n')
    settings, _ = Source(path, {}).read()
    assert (settings.keys, settings.authorised) == (f"{tmp_path}/d.key", "/etc/users")
    settings, _ = Source(path, {"keys": "here.key"}).read()
    assert settings.keys == "here.key"


def test_metrics_of_a_daemon_with_keys_need_a_user() -> None:
    table = {"metrics": "9464", "keys": "daemon.key", "authorised": "users"}
    with pytest.raises(UsageError, match="metrics_keys"):
        make(table, {}, "p.toml")
    assert make(table, {"metrics_keys": "m.key"}, "p.toml").metrics_keys == "m.key"
