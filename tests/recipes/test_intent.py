"""The recipe `intent`, hardly trained: what is streamed is what torch gives; and what its page recorded."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from intent import baseline, recipe, streaming, texts
from intent.training import Numbered, batches, loss_of
from scipy.optimize import minimize
from torch import nn

import runnel_export
from runnel import Engine
from runnel.errors import RunnelError
from tests.recipes.pages import percent, recorded, rows_of


@pytest.fixture(scope="module")
def rated() -> list[texts.Text]:
    """Without a network pip is waited for once, not by each test."""
    try:
        return texts.read(texts.fetch())
    except RunnelError as error:
        pytest.skip(str(error))


def by_torch(weights: dict[str, torch.Tensor], ids: Sequence[int]) -> np.ndarray:
    """P(positive) after each word, from the trained weights in torch's own layers, in float64."""
    words, width = weights["embedding.weight"].shape
    hidden = weights["gru.weight_hh_l0"].shape[1]
    layers = nn.ModuleDict(
        {
            "embedding": nn.Embedding(words, width),
            "gru": nn.GRU(width, hidden, batch_first=True),
            "out": nn.Linear(hidden, 2),
        }
    ).double()
    layers.load_state_dict(weights)
    with torch.no_grad():
        heard, _ = layers["gru"](layers["embedding"](torch.tensor([list(ids)])))
        return layers["out"](heard)[0].softmax(-1)[:, 1].numpy()


def test_quick(tmp_path: Path, rated: list[texts.Text]) -> None:
    told: list[str] = []
    tables = recipe.run(tmp_path, True, told.append)
    runnel_export.verify(tmp_path / "intent.onnx")
    assert (tmp_path / "intent.png").stat().st_size > 20_000

    weights = torch.load(tmp_path / "intent.pt", weights_only=True)
    place = {word: i for i, word in enumerate((tmp_path / "words.txt").read_text().splitlines())}
    assert weights["embedding.weight"].shape[0] == len(place) + 1
    sentence = " ".join(texts.spelled(recipe.SENTENCES[0]))
    wanted = by_torch(weights, [place.get(word, len(place)) for word in sentence.split()])

    # The daemon's answers, in the table, and the engine's, to the same text in other pieces.
    live = rows_of(tables, "One sentence")
    assert [row[0] for row in live] == sentence.split()
    assert [float(row[2]) for row in live] == pytest.approx(wanted, abs=0.006)
    with Engine.load(tmp_path / "intent.toml") as engine, engine.open() as stream:
        sent = np.frombuffer(sentence.encode(), np.uint8)
        pieces = [stream.feed({"text": piece}) for piece in np.array_split(sent, 17)]
        pieces.append(stream.flush())  # the last word's answer: no blank after it
    found = np.concatenate([streaming.positive(piece) for piece in pieces])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.ptp(found) > 1e-3  # the words make a difference

    # Held-out texts, counted here again from their ratings and torch's answers.
    held = recipe._scattered(texts.split(rated))[2][: recipe._QUICK[2]]
    ids = [[place.get(word, len(place)) for word in text.words] for text in held]
    answers = [by_torch(weights, words) for words in ids]
    for row in rows_of(tables, "Right answers on 200"):
        share = percent(row[0]) / 100
        right = [
            (answer[max(1, round(share * len(answer))) - 1] > 0.5) == text.label
            for answer, text in zip(answers, held, strict=True)
        ]
        assert percent(row[2]) == pytest.approx(100 * np.mean(right), abs=0.51)  # one within rounding
        assert percent(row[4]) in (
            pytest.approx(100 * np.mean([t.label == guess for t in held]), abs=0.06) for guess in (0, 1)
        )
    assert [percent(row[0]) for row in rows_of(tables, "Right answers on 200")] == [10, 25, 50, 75, 100]


def test_no_text_and_no_review_is_in_two_parts(rated: list[texts.Text]) -> None:
    assert len(rated) > 19_000
    assert {text.kind for text in rated} == set(texts.KINDS)
    parts = texts.split(rated)
    every = (parts.train, parts.validation, parts.held_out)
    assert sum(map(len, every)) == len(rated)
    for of in (lambda t: t.group, lambda t: t.words):
        seen = [{of(text) for text in part} for part in every]
        assert len(set.union(*seen)) == sum(map(len, seen))
    assert 0.12 < len(parts.held_out) / len(rated) < 0.18
    assert texts.split(rated, 1).held_out != parts.held_out


def test_ratings_become_labels(tmp_path: Path, rated: list[texts.Text]) -> None:
    """The archive unpacked by tar and read by csv: the same texts, each with the sign of its rating."""
    found = {text.words: text.label for text in rated}
    subprocess.run(["tar", "xzf", texts.fetch(), "-C", tmp_path], check=True)
    [inner] = tmp_path.rglob("*.tar.gz")
    subprocess.run(["tar", "xzf", inner, "-C", tmp_path], check=True)
    rows = [
        (float(rating), texts.spelled(text))
        for path in tmp_path.rglob("*_GroundTruth.txt")
        for _, rating, text in csv.reader(path.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
    ]
    assert len(rows) == 23_703
    clear = [(rating, words) for rating, words in rows if words and not -0.5 < rating < 0.5]
    assert {words for _, words in clear} == set(found)
    differ = sum(found[words] != (rating > 0) for rating, words in clear)
    assert differ <= 20  # a few texts are there twice, with ratings of their own


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It doesn’t work :(", "it doesn't work :("),
        ("GREAT!!! &amp; cheap", "great !!! & cheap"),
        ("b/w, 2004.", "b / w , 2004 ."),
        ("  \n", ""),
        ("naïve", "na ï ve"),
    ],
)
def test_spelling(text: str, words: str) -> None:
    assert texts.spelled(text) == tuple(words.split())


def test_spelt_words_come_through_as_they_are(rated: list[texts.Text]) -> None:
    """A word never has a blank in it, so that what is sent is cut into the same words again."""
    for text in rated[:500]:
        assert tuple(bytes(streaming.chunk(text.words)["text"]).decode().split()) == text.words


def test_an_archive_that_is_not_the_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / texts.ARCHIVE).write_bytes(b"another")
    with pytest.raises(RunnelError, match="not the archive that was expected: delete it"):
        texts.fetch(tmp_path)


def test_without_an_index_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RunnelError, match=r"could not fetch them: .*By hand: pip download"):
        texts.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


DATA = Numbered([[0, 1], [2, 1, 1], [0], [3, 2], [1, 2, 3], [0, 3, 3]], [1, 0, 1, 0, 0, 1])


def test_the_bag_of_words_is_the_minimum_that_scipy_finds() -> None:
    has = np.array([[word in text for word in range(5)] for text in DATA.words], float)
    sign = np.array(DATA.labels) * 2 - 1

    def lost(v: np.ndarray) -> float:
        return float(np.log1p(np.exp(-sign * (has @ v[:5] + v[5]))).mean() + 0.01 * (v[:5] ** 2).sum())

    wanted = minimize(lost, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    found = baseline.fit(DATA, 4, 0.01)
    np.testing.assert_allclose([*found.weights, found.bias], wanted, atol=2e-3)
    assert found.right(DATA) == np.mean((has @ wanted[:5] + wanted[5] > 0) == np.array(DATA.labels))
    assert baseline.commonest(Numbered(DATA.words[:4], [0, 1, 1, 1])) == 1


def test_batches_hold_every_text_once() -> None:
    for random in (None, np.random.default_rng(0)):
        seen = [
            (words[row, : lengths[row]].tolist(), int(labels[row]))
            for words, lengths, labels in batches(DATA, 4, 2, random)
            for row in range(len(lengths))
        ]
        assert sorted(seen) == sorted(zip(DATA.words, DATA.labels, strict=True))


def test_the_loss_does_not_see_what_fills_up() -> None:
    scores = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    lengths, labels = torch.tensor([2, 4]), torch.tensor([0, 1])
    other = scores.clone()
    other[0, 2:] = 50.0
    assert torch.equal(loss_of(scores, lengths, labels), loss_of(other, lengths, labels))
    each = -scores.log_softmax(-1)
    wanted = (each[0, 1, 0] + each[1, 3, 1]) / 2 + 0.5 * (each[0, :2, 0].sum() + each[1, :, 1].sum()) / 6
    assert float(loss_of(scores, lengths, labels)) == pytest.approx(float(wanted))


def test_the_recorded_answers_sharpen_and_end_where_a_bag_of_words_does() -> None:
    rows = rows_of(recorded("intent"), "Right answers on 2,8")
    model = [percent(row[2]) for row in rows]
    assert [row[0] for row in rows] == ["10%", "25%", "50%", "75%", "100%"]
    assert model == sorted(model)
    assert model[-1] > model[0] + 15
    assert model[-1] > percent(rows[-1][4]) + 20
    assert abs(model[-1] - percent(rows[-1][3])) < 3


def test_the_recorded_stream_is_what_was_trained() -> None:
    assert all(float(row[2]) < 1e-4 for row in rows_of(recorded("intent"), "Is the stream"))
    last = [float(row[2]) for row in rows_of(recorded("intent"), "One sentence")]
    assert max(last) > 0.7
    assert last[-1] < 0.4  # it turns


@pytest.mark.soak
@pytest.mark.usefixtures("rated")
def test_whole(tmp_path: Path) -> None:
    rows = rows_of(recipe.run(tmp_path, False, print), "Right answers on 2,8")
    model = [percent(row[2]) for row in rows]
    assert model[-1] > 75
    assert model[-1] > model[0] + 15
    assert all(percent(row[2]) > percent(row[4]) for row in rows)


def test_a_sentence_stays_in_its_column_when_the_one_before_it_has_ended() -> None:
    turns = [
        [streaming.Heard(0, "well", 0.5), streaming.Heard(1, "not", 0.25), streaming.Heard(2, "so", 0.125)],
        [streaming.Heard(2, "good", 0.75)],
    ]
    first, second = (recipe.line(turn, 4) for turn in turns)
    assert [first.index(word) + len(word) for word in ("well", "not", "so")] == [12, 27, 42]
    assert second.index("good") + len("good") == 42
    assert second.split() == ["good", "0.75"]
