"""tokens: Python's own decoder and str.split over the whole text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import ChunkError, PipelineError, SnapshotError
from runnel_plugins.tokens import Characters, Words, tokens

TEXT = Signal((TensorSpec("text", "uint8"),), 50.0)
LETTERS = "abc é€😀\n\u2028"
WORDS = ("a", "stream", "of", "wörds", "😀😀")


def play(stage, data, cuts=()):
    x = np.frombuffer(data, np.uint8)
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(x)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"text": x[a:b]})
        made.append(out["text"])
    ids = np.concatenate([*made, stage.flush(state)[1]["text"]])
    assert ids.dtype == np.int64
    return ids.tolist()


def vocabulary(tmp_path, lines, **options):
    path = tmp_path / "vocabulary.txt"
    path.write_bytes("\n".join(lines).encode() + b"\n")
    return tokens(TEXT, vocabulary=path, **options)


def test_it_keeps_the_laws():
    text = np.frombuffer(("a stream  of wörds, é€ " * 5).encode(), np.uint8)
    letters = "a stremofwöd,é€"
    check_stage(lambda: tokens(TEXT, "byte"), {"text": text})
    check_stage(lambda: tokens(TEXT, "byte", letters.replace("ö", "").replace("é€", ""), unknown=0))
    # The checker also plays it backwards, which is not UTF-8.
    check_stage(lambda: tokens(TEXT, alphabet=letters, unknown=15, invalid="replace"), {"text": text})
    check_stage(lambda: Words(TEXT, WORDS, 5, "replace"), {"text": text})
    two = Signal((TensorSpec("text", "uint8"), TensorSpec("x", "float32", (2,))))
    check_stage(lambda: tokens(two, "byte"))


@given(text=st.text(LETTERS + "xyzß漢", max_size=40), cuts=st.lists(st.integers(0, 100), max_size=8))
def test_characters_are_pythons_at_any_cuts(text, cuts):
    data = text.encode()
    cuts = [c * len(data) // 100 for c in cuts]
    stage = tokens(TEXT, alphabet=LETTERS, unknown=3)
    assert play(stage, data, cuts) == [LETTERS.index(c) if c in LETTERS else 3 for c in text]


@given(
    text=st.lists(st.sampled_from([*WORDS, "no", "streams", " ", "\n\t", "\u3000", "x" * 50]), max_size=12),
    cuts=st.lists(st.integers(0, 100), max_size=8),
)
def test_words_equal_str_split_at_any_cuts(text, cuts):
    whole = "".join(text)
    data = whole.encode()
    cuts = [c * len(data) // 100 for c in cuts]
    want = [WORDS.index(w) if w in WORDS else 5 for w in whole.split()]
    assert play(Words(TEXT, WORDS, 5), data, cuts) == want
    assert play(Words(TEXT, WORDS, 5), data, range(len(data))) == want


@given(data=st.binary(max_size=30), cuts=st.lists(st.integers(0, 100), max_size=8))
def test_invalid_utf8_is_replaced_as_by_python_or_refused(data, cuts):
    cuts = [c * len(data) // 100 for c in cuts]
    text = data.decode(errors="replace")
    letters = "".join(sorted({*text, "\ufffd"}))
    assert play(tokens(TEXT, alphabet=letters, invalid="replace"), data, cuts) == [
        letters.index(c) for c in text
    ]
    try:
        data.decode()
    except UnicodeDecodeError:
        with pytest.raises(ChunkError, match="is no UTF-8"):
            play(tokens(TEXT, alphabet=letters), data, cuts)


def test_an_invalid_byte_is_refused_with_its_place():
    stage = tokens(TEXT, alphabet="ab")
    with pytest.raises(ChunkError, match=r"b'\\xff' at time step 2 is no UTF-8 .*invalid = \"replace\""):
        play(stage, b"ab\xff")
    state, _ = stage.step(stage.open(), {"text": np.frombuffer(b"a\xe2\x82", np.uint8)})
    with pytest.raises(ChunkError, match="at the beginning, with what was left of the chunk before"):
        stage.step(state, {"text": np.frombuffer(b"b", np.uint8)})
    with pytest.raises(ChunkError, match="is no UTF-8"):
        stage.flush(state)


def test_a_character_comes_with_its_last_byte_and_a_word_with_the_blank_after_it():
    def rows(stage, data):
        state, made = stage.open(), []
        for byte in data:
            state, out = stage.step(state, {"text": np.array([byte], np.uint8)})
            made.append(out["text"].tolist())
        return made, stage.flush(state)[1]["text"].tolist()

    assert rows(tokens(TEXT, alphabet="é€"), "€é".encode()) == ([[], [], [1], [], [0]], [])
    assert rows(Words(TEXT, ("of", "a")), b"of  a") == ([[], [], [0], [], []], [1])


def test_bytes_are_ids_or_places_in_an_alphabet():
    assert play(tokens(TEXT, "byte"), bytes(range(256))) == list(range(256))
    labels = tokens(TEXT, "byte").outputs.tensors[0].labels
    assert (len(labels), labels[65], labels[10], labels[255]) == (256, "A", "0x0a", "0xff")
    assert play(tokens(TEXT, "byte", "ba", unknown=2), b"abz") == [1, 0, 2]
    with pytest.raises(ChunkError, match="byte b'z' at time step 2 is not in the alphabet"):
        play(tokens(TEXT, "byte", "ba"), b"abz")


def test_labels_ratio_and_rate():
    stage = tokens(TEXT, alphabet="ab", unknown=2)
    assert stage.outputs.tensors[0].labels == ("a", "b", "unknown")
    assert tokens(TEXT, alphabet="ab", unknown=1).outputs.tensors[0].labels == ("a", "b")
    assert (stage.ratio, stage.outputs.rate) == (None, None)
    assert (tokens(TEXT, "byte").ratio, tokens(TEXT, "byte").outputs.rate) == ((1, 1), 50.0)


def test_error_names_an_unknown_token():
    with pytest.raises(
        ChunkError, match=r"'z', character 1 of the chunk, is not among the tokens; .* unknown ="
    ):
        play(tokens(TEXT, alphabet="ab"), b"az")
    with pytest.raises(ChunkError, match="'no', word 1 of the chunk, is not among"):
        play(Words(TEXT, ("of", "a")), b"a no ")


def test_a_vocabulary_file_has_one_token_a_line(tmp_path):
    stage = vocabulary(tmp_path, ["<pad>", "b\r", " ", "\u2028"])
    assert play(stage, "b \u2028".encode()) == [1, 2, 3]
    assert play(vocabulary(tmp_path, ["\ufeffof", "a"], unit="word"), b"a of") == [1, 0]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["a", "", "b"], {}, "line 2 of .* is empty"),
        (["a", "b", "a"], {}, "'a' is token 0 and token 2"),
        (["aa", "bb"], {}, "no token of the vocabulary is one character: is the unit 'word'"),
        (["a", "b c"], {"unit": "word"}, "token 1, 'b c', has a blank"),
        (["a", "é"], {"unit": "byte"}, "'é' is more than one byte"),
        (["a"], {"alphabet": "a"}, "alphabet and vocabulary are both given"),
        ([], {}, "line 1 of .* is empty"),
        (["a"], {"unknown": 2}, "unknown must be in 0..1"),
        (["a"], {"unknown": -1}, "unknown must be in 0..1"),
    ],
)
def test_bad_vocabularies_are_refused(tmp_path, lines, options, message):
    with pytest.raises(PipelineError, match=message):
        vocabulary(tmp_path, lines, **options)


def test_files_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    with pytest.raises(PipelineError, match="cannot read"):
        tokens(TEXT, vocabulary=tmp_path / "none.txt")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(PipelineError, match="is not UTF-8"):
        tokens(TEXT, vocabulary=tmp_path / "bad.txt")
    monkeypatch.setattr("runnel_plugins.tokens.MAX_TOKENS", 2)
    with pytest.raises(PipelineError, match=r"1..2 tokens make a vocabulary, not 3"):
        tokens(TEXT, alphabet="abc")


@pytest.mark.parametrize(
    ("signal", "options", "message"),
    [
        (TEXT, {}, "unit 'character' needs an alphabet or a vocabulary"),
        (TEXT, {"unit": "word", "alphabet": "ab"}, "unit 'word' needs a vocabulary"),
        (TEXT, {"unit": "byte", "unknown": 0}, "unknown needs an alphabet"),
        (TEXT, {"unit": "byte", "invalid": "replace"}, "every byte is valid"),
        (TEXT, {"alphabet": ""}, "tokens make a vocabulary, not 0"),
        (Signal((TensorSpec("x", "float32"),)), {"alphabet": "a"}, "takes text as uint8"),
        (Signal((TensorSpec("x", "uint8", (2,)),)), {"unit": "byte"}, "takes text as uint8"),
        (Signal((*TEXT.tensors, TensorSpec("y", "float32"))), {"alphabet": "a"}, "nothing can stand beside"),
        (Signal((*TEXT.tensors, TensorSpec("y", "uint8"))), {"unit": "byte"}, "'text', 'y' are: say with of"),
    ],
)
def test_bad_options_and_inputs_are_refused(signal, options, message):
    with pytest.raises(PipelineError, match=message):
        tokens(signal, **options)


def test_a_word_without_end_takes_no_more_than_the_longest_token():
    stage = Words(TEXT, WORDS, 5)
    state = stage.open()
    for _ in range(50):
        state, _ = stage.step(state, {"text": np.full(100, ord("x"), np.uint8)})
        assert len(state["word"]) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": np.zeros(4, np.uint8)},
        {"word": np.full(8, 97, np.uint32)},
        {"word": np.array([0x110000], np.uint32)},
        {"word": np.array([0xD800], np.uint32)},
    ],
)
def test_impossible_states_are_refused(change):
    stage = Words(TEXT, WORDS, 5)
    stage.load(stage.open(), stage.initial())
    with pytest.raises(SnapshotError, match="tokens: "):
        stage.load(stage.open(), {**stage.initial(), **change})
    if "bytes" in change:
        with pytest.raises(SnapshotError, match="tokens: "):
            Characters(TEXT, LETTERS).load({}, change)
