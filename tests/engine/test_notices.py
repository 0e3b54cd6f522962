"""Notices of streams: one per event, none for a chunk that succeeds."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from runnel import Notice, RowStage, Signal, TensorSpec
from runnel.engine import Engine
from runnel.errors import RunnelError
from runnel.notices import Notices
from runnel.pipeline.pipeline import Pipeline


class Halve(RowStage):
    name = "halve"
    finite = True

    def __init__(self) -> None:
        self.inputs = self.outputs = Signal((TensorSpec("x", "float32"),))

    def rows(self, arrays):
        return {"x": arrays["x"] / 2}


@pytest.fixture
def heard() -> list[Notice]:
    return []


@pytest.fixture
def engine(heard) -> Engine:
    return Engine(Pipeline([Halve()], None, {}), notices=Notices([("test", heard.append)]))


ONE = np.ones(1, np.float32)


def test_notices_of_a_streams_life_come_in_order_without_its_chunks(engine, heard):
    stream = engine.open("a")
    for _ in range(3):
        stream.feed(ONE)
        engine.feed_many([(stream, ONE)])
    blob = stream.snapshot()
    stream.reset()
    stream.feed(ONE)
    stream.flush()
    stream.close()
    stream.close()
    engine.restore(blob, "b")
    engine.close()
    assert heard == [
        Notice("opened", "a", 0, "new"),
        Notice("reset", "a", 0),
        Notice("closed", "a", 1, "closed"),
        Notice("opened", "b", 6, "restored"),
        Notice("evicted", "b", 6, "the engine is closed"),
        Notice("closed", "b", 6, "evicted"),
    ]


def test_failed_chunk_causes_a_notice_from_feed_and_feed_many(engine, heard):
    a, b = engine.open("a"), engine.open("b")
    nan = np.full(1, np.nan, np.float32)
    with pytest.raises(RunnelError):
        a.feed(nan)
    engine.feed_many([(a, ONE), (b, nan), (a, nan)])
    engine.feed_many([(a, np.ones(1)), (b, ONE)])
    failed = [(n.stream, n.seq) for n in heard if n.event == "failed"]
    assert failed == [("a", 0), ("b", 0), ("a", 1), ("a", 1)]
    assert "nan at time step 0" in heard[2].reason
    assert "float64" in heard[-1].reason


def test_no_notice_after_the_end_of_a_stream(engine, heard):
    """A late chunk after the end is the owner's error, and not an event of the stream."""
    a, b, c = (engine.open(name) for name in "abc")
    a.close()
    b.flush()
    for pairs in ([(a, ONE)], [(a, ONE), (b, ONE), (c, ONE)]):
        assert isinstance(engine.feed_many(pairs)[0], RunnelError)
    assert [(n.event, n.stream) for n in heard[3:]] == [("closed", "a")]


def test_a_listener_that_raises_stops_nothing_and_is_logged(caplog, heard):
    def broken(notice: Notice) -> None:
        raise OSError("no space")

    engine = Engine(
        Pipeline([Halve()], None, {}), notices=Notices([("full", broken), ("test", heard.append)])
    )
    with caplog.at_level(logging.ERROR):
        engine.open("a").feed(ONE)
    assert [n.event for n in heard] == ["opened"]
    assert "'full' failed on opened: OSError: no space" in caplog.text


def test_a_stream_can_be_rewound_and_stays_itself(engine, heard):
    stream = engine.open("a")
    stream.feed(ONE)
    blob = stream.snapshot()
    stream.feed(ONE)
    stream.flush()
    stream.rewind(blob)
    assert (stream.seq, stream.ended) == (1, False)
    with pytest.raises(RunnelError):
        stream.rewind(blob[:-1])
    assert stream.seq == 1
    assert engine.streams == {"a": stream}
    assert [n.event for n in heard] == ["opened"]


JOURNAL = """
import runnel

HEARD = []

def journal(prefix: str = ""):
    return lambda notice: HEARD.append((prefix, notice.event, notice.stream))

@runnel.hookimpl
def runnel_notices():
    return {"journal": journal}
"""


def test_a_pipeline_file_names_listeners_and_limits(tmp_path, monkeypatch):
    info = tmp_path / "acme_journal-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-journal\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[runnel]\njournal = acme_journal\n")
    (tmp_path / "acme_journal.py").write_text(JOURNAL)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "p.toml"
    stages = '[input]\nrate = 8000\n[[before]]\nuse = "gain"\nfactor = 2.0\n'
    file.write_text(stages + '[limits]\nstage_seconds = 1e-9\n[[notice]]\nuse = "journal"\nprefix = ">"\n')
    with Engine.load(file) as engine:
        stream = engine.open("a")
        with pytest.raises(RunnelError, match="stage '0: gain' took"):
            stream.feed(ONE)
    import acme_journal

    assert [(">", e, "a") for e in ("opened", "failed", "evicted", "closed")] == acme_journal.HEARD
    plain = tmp_path / "plain.toml"
    plain.write_text(stages)
    with Engine.load(plain) as unlimited:  # neither affects the numbers
        assert unlimited.pipeline.fingerprint == engine.pipeline.fingerprint
        np.testing.assert_array_equal(unlimited.open().feed(ONE), [2.0])
    for wrong, says in (
        ('[[notice]]\nuse = "journal"\nprefx = ">"\n', r"\[\[notice\]\] number 1.*did you mean 'prefix'"),
        ('[[notice]]\nuse = "gain"\n', "is a stage, not a notice"),
        ("[limits]\nstage_second = 1\n", "did you mean 'stage_seconds'"),
        ("[limits]\nstage_seconds = 0\n", "above 0, not 0"),
    ):
        file.write_text(stages + wrong)
        with pytest.raises(RunnelError, match=says):
            Engine.load(file)
