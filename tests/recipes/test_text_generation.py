"""The recipe `text_generation`, hardly trained: all that it says of its model is so; and what it recorded."""

from __future__ import annotations

import hashlib
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import Passage, Table
from text_generation import baselines, corpus, gates, generation, recipe, training
from torch.nn.functional import log_softmax

import runnel_export
from runnel import probe
from runnel.errors import ModelError, UsageError
from tests.recipes.pages import recorded, rows_of

BITS = "Bits per character of the test part"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def made(out: Path) -> Sequence[Table | Passage]:
    return recipe.run(out, True, lambda _: None)


@pytest.fixture(scope="module")
def model(out: Path, made: object) -> training.Text:
    plan = training.QUICK
    trained = training.Text(plan.embedded, plan.hidden, plan.layers)
    trained.load_state_dict(torch.load(out / "text.pt", weights_only=True))
    return trained.double().eval()


def test_the_stream_foretells_the_text_as_torch_does(
    made: Sequence[Table | Passage], model: training.Text
) -> None:
    test = corpus.load().test[: recipe.QUICK_TEST]
    read = torch.tensor(list(b"\n" + test))
    with torch.no_grad():
        told = log_softmax(model(read[None, :-1])[0], -1)
    wanted = -told[torch.arange(len(test)), read[1:]].mean().item() / math.log(2)
    got = dict(rows_of(made, BITS))
    assert float(got["LSTM, streamed through the engine"]) == pytest.approx(wanted, abs=1e-3)
    assert wanted < 6  # of 8: something was learnt


def test_model_and_probe_verify(out: Path, made: object) -> None:
    path = out / generation.MODEL
    assert runnel_export.verify(path).hash
    assert runnel_export.verify(probe.beside(path)).hash


def test_what_is_written_is_what_a_loop_over_torch_writes(
    out: Path, made: Sequence[Table | Passage], model: training.Text
) -> None:
    """Sampling written out anew: in plain integers, from torch's scores in float64."""
    text, state = bytearray(recipe.PROMPT), None
    with torch.no_grad():
        read = torch.tensor([list(text)])
        for n in range(len(text) - 1, len(text) - 1 + recipe.QUICK_WRITTEN):
            scores, state = model.read(read, state)
            odds = torch.softmax(scores[0, -1] / recipe.TEMPERATURE, -1).numpy()
            text.append(int((np.cumsum(odds) <= splitmix(recipe.SEED, n)).sum()))
            read = torch.tensor([[text[-1]]])
    ways = rows_of(made, "One seed")
    assert {row[0] for row in ways} == {"`engine.open().generate`", "`runnel run`", "`runnel serve`"}
    assert {row[2] for row in ways} == {hashlib.sha256(text).hexdigest()[:16]}
    assert (out / "generated.txt").read_bytes() == text[len(recipe.PROMPT) :]


def splitmix(seed: int, n: int) -> float:
    full = 2**64
    z = (seed + (n + 1) * 0x9E3779B97F4A7C15) % full
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % full
    z = (z ^ z >> 27) * 0x94D049BB133111EB % full
    return float(((z ^ z >> 31) >> 11) * 2.0**-53)


def test_the_gates_are_those_of_the_formula(
    out: Path, made: Sequence[Table | Passage], model: training.Text
) -> None:
    """The table's averages, from the module's own weights and a loop over the formula."""
    test = corpus.load().test[: recipe.QUICK_TEST]
    lstm = model.lstm
    hidden = lstm.hidden_size
    with torch.no_grad():
        seen = model.embedding(torch.tensor(list(test)))
        h = c = torch.zeros(hidden, dtype=torch.float64)
        means = []
        for x in seen:
            a = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
            i, f, g, o = a[:hidden], a[hidden : 2 * hidden], a[2 * hidden : 3 * hidden], a[3 * hidden :]
            i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
            c = f * c + i * g.tanh()
            h = o * c.tanh()
            means.append([i.mean(), f.mean(), o.mean()])
    found = np.array(means)
    line_ends = np.array([byte == 10 for byte in test])
    rows = {row[0].partition(": ")[2]: row[2:] for row in rows_of(made, "Mean activation")}
    for kind, chosen in (("all characters", line_ends | True), ("line end", line_ends)):
        told = [float(cell.split()[0]) for cell in rows[kind]]
        np.testing.assert_allclose(told, found[chosen].mean(0), atol=6e-4)


def test_the_picture_is_of_the_passage(out: Path, made: object) -> None:
    assert (out / "gates.txt").read_bytes() == corpus.load().test[recipe.DRAWN]
    assert (out / "gates.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (out / "gates.png").stat().st_size > 20_000  # not blank


def test_a_model_without_a_probe_shows_no_gates(out: Path, made: object) -> None:
    with pytest.raises(ModelError, match="export the model with probe='gates'"):
        gates.watch(out / generation.MODEL, b"abc", lambda _: None)


def test_what_is_missing_is_said_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"need the package matplotlib .*pip install 'runnel\[recipes\]'"):
        recipe.run(tmp_path, True, print)
    assert not list(tmp_path.iterdir())


def test_every_character_is_of_one_kind() -> None:
    text = b'\nIf x_1 is  "None",\n   see 42.\n\n'
    by_kind = gates.kinds(text)
    everything = by_kind.pop(gates.ALL)
    assert everything.all()
    assert (np.sum(list(by_kind.values()), 0) == 1).all()
    told = {kind: bytes(np.frombuffer(text, np.uint8)[chosen]) for kind, chosen in by_kind.items()}
    assert told == {
        "first letter of a word": b"IxiNs",
        "letter inside a word": b"fsoneee",
        "digit": b"142",
        "punctuation": b'_"",.',
        "space after a word or mark": b"    ",
        "space of an indent or gap": b"    ",
        "line end": b"\n\n\n\n",
    }


def test_a_standard_error_is_what_it_says() -> None:
    """Of independent draws it is the textbook's; of such as stay for a while it is larger."""
    random = np.random.default_rng(0)
    chosen = random.random(40_000) < 0.25
    values = random.normal(size=40_000) + 0.1 * chosen
    found, error = gates.difference(values, chosen)
    # mean(chosen) - mean(all) = 3/4 (mean(chosen) - mean(others))
    assert error == pytest.approx(0.75 * math.sqrt(1 / 10_000 + 1 / 30_000), rel=0.35)
    assert found == pytest.approx(0.075, abs=4 * error)
    held = np.repeat(random.normal(size=400), 100)
    errors, differences = [], []
    for _ in range(200):
        mask = np.repeat(random.random(400) < 0.25, 100)
        difference, error = gates.difference(held, mask)
        differences.append(difference)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.3)


def test_one_unit_that_tells_a_kind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"ab cd\n" * 200
    random = np.random.default_rng(1)
    values = random.random((len(text), 5)) / 2
    values[:, 3] += 0.4 * (np.frombuffer(text, np.uint8) == 10)
    of_kind = np.stack(list(gates.kinds(text).values())).astype(float)
    halves = [of_kind[:, :600] @ values[:600], of_kind[:, 600:] @ values[600:]]
    squares = [of_kind[:, :600] @ values[:600] ** 2, of_kind[:, 600:] @ values[600:] ** 2]
    seen = gates.Seen("lstm.0", "f", values.mean(1), np.array(halves), np.array(squares))
    rows = {row[0]: row for row in gates.tellers([seen], text).rows}
    assert rows["line end"][1] == "lstm.0, forget gate, unit 3"
    late = np.frombuffer(text, np.uint8)[600:] == 10
    assert float(rows["line end"][2]) == pytest.approx(values[600:][late, 3].mean(), abs=0.006)
    assert float(rows["line end"][3]) == pytest.approx(values[600:][~late, 3].mean(), abs=0.006)


# The text and what else foretells it


def test_nothing_of_the_test_part_was_learnt_from() -> None:
    text = corpus.load()
    learnt = {part.strip() for part in re.split(rb"\n\s*\n", text.train)}
    asked = [part.strip() for part in re.split(rb"\n\s*\n", text.test)]
    assert len(asked) > 100
    assert not learnt.intersection(asked[1:])
    # Nor in pieces that are no paragraphs: frames of tables aside, hardly any has 50 characters.
    windows = {text.train[at : at + 50] for at in range(len(text.train))}
    shared = [piece for at in range(len(text.test)) if (piece := text.test[at : at + 50]) in windows]
    assert sum(re.search(rb"[a-z]{2}", piece) is not None for piece in shared) < len(text.test) / 200
    whole = text.train + text.validation + text.test
    assert whole.isascii()
    assert text.kept == len(whole) < text.written
    assert len(text.test) == pytest.approx(len(whole) / 10, abs=1)


def test_n_grams_are_counted_and_smoothed_as_the_formula_says() -> None:
    text = b"the theme, then the thesis"
    grams = baselines.NGrams(text, 3)
    padded = b"\n\n\n" + text
    p = 1 / 256
    for order, history in enumerate((b"", b"h", b"th")):
        after = Counter(padded[k] for k in range(3, len(padded)) if padded[k - len(history) : k] == history)
        p = (after[ord("e")] + len(after) * p) / (after.total() + len(after))
        assert grams.probabilities(ord("e"), b"..th")[order] == pytest.approx(p)
    for history in (b"th", b"qu", b"e,"):
        sums = np.sum([grams.probabilities(code, history) for code in range(256)], 0)
        np.testing.assert_allclose(sums, 1)
    assert grams.bits_per_character(b"e")[0] == pytest.approx(
        -math.log2(grams.probabilities(ord("e"), b"\n\n")[0])
    )


def test_a_compressor_is_given_the_training_part() -> None:
    before = corpus.load().train[:30_000]
    noise = np.random.default_rng(2).bytes(3000)
    for name in baselines.COMPRESSORS:
        assert baselines.compressed(name, before, before[-3000:]) < 1.5
        assert baselines.compressed(name, before, noise) > 7.9
    decoder = zlib.decompressobj(-15, before[-(1 << 15) :])
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, before[-(1 << 15) :])
    packed = coder.compress(b"see the section") + coder.flush()
    assert decoder.decompress(packed) == b"see the section"
    assert baselines.compressed("zlib", before, b"see the section") == 8 * len(packed) / 15


def test_what_was_written_is_held_against_the_training_part() -> None:
    assert generation.longest_copy(b"xx the list yy", b"all the lists") == len(b" the list")
    assert generation.known_words(b"a list of lints", b"the list of lists") == pytest.approx(2 / 3)


# What is recorded


def test_a_passage_is_fenced_by_more_than_it_has_itself() -> None:
    passage = Passage("Written", "as ````\nit is")
    assert passage.markdown() == "**Written**\n\n`````text\nas ````\nit is\n`````"
    assert str(passage) == "Written\n  | as ````\n  | it is"


def test_the_recorded_model_is_better_than_counts() -> None:
    bits = {name: float(cell) for name, cell in rows_of(recorded("text_generation"), BITS)}
    counted = [value for name, value in bits.items() if name.endswith("-grams")]
    assert bits["LSTM, streamed through the engine"] == pytest.approx(bits["LSTM, by torch"], abs=1e-3)
    assert len(counted) == recipe.LONGEST
    assert bits["LSTM, streamed through the engine"] < min(counted) - 0.1


def test_what_the_page_says_of_the_gates_is_what_was_measured() -> None:
    tables = recorded("text_generation")
    rows = {row[0]: row[1:] for row in rows_of(tables, "Mean activation")}
    mean = {
        name: dict(zip("ifo", [float(cell.split()[0]) for cell in cells[1:]], strict=True))
        for name, cells in rows.items()
    }
    first, second = (
        {kind.partition(": ")[2]: gates for kind, gates in mean.items() if kind.startswith(layer)}
        for layer in ("lstm.0", "lstm.1")
    )
    word, inside, space = "first letter of a word", "letter inside a word", "space after a word or mark"
    assert min(first, key=lambda kind: first[kind]["f"]) == "punctuation"
    assert all(first[word][gate] > first[inside][gate] for gate in "if")
    assert second[word]["f"] < second[inside]["f"]
    assert max(first, key=lambda kind: first[kind]["o"]) == space
    assert second[space]["o"] <= sorted(gates["o"] for gates in second.values())[1]
    told = {row[0]: row[1:] for row in rows_of(tables, "The gate of a single unit")}
    for kind, layer in ((word, "lstm.1"), ("line end", "lstm.0")):
        gate, there, elsewhere = told[kind][:3]
        assert gate.startswith(f"{layer}, forget gate")
        assert float(there) < 0.3
        assert float(elsewhere) > 0.8


@pytest.mark.soak
def test_the_whole_recipe(tmp_path: Path) -> None:
    made = recipe.run(tmp_path, False, print)
    got = {name: float(cell) for name, cell in rows_of(made, BITS)}
    counted = [value for name, value in got.items() if name.endswith("-grams")]
    assert got["LSTM, streamed through the engine"] < min(counted) - 0.1
    assert len({row[2] for row in rows_of(made, "One seed")}) == 1
