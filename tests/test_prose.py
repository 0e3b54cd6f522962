"""The prose is plain: odd constructions stay under a bound for each folder; see `tests/prose.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import prose


@pytest.mark.parametrize("folder", prose.FOLDERS)
def test_odd_constructions_stay_under_the_bound(folder: str) -> None:
    rate, words, odd = prose.measure(folder)
    assert words > 500
    worst = "\n".join(f"{s.place}: {s.text}  {s.found}" for s in odd[:20])
    assert rate <= prose.FOLDERS[folder], f"{rate:.1f} per 1,000 words; the worst:\n{worst}"


@pytest.mark.parametrize("folder", prose.FOLDERS)
def test_a_bound_is_lowered_when_a_folder_is_rewritten(folder: str) -> None:
    """A bound far above the figure would let the prose get worse again."""
    rate, _, _ = prose.measure(folder)
    assert prose.FOLDERS[folder] <= max(prose.GOAL, 1.2 * rate + 0.5)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("It fails where there is no memory.", "conditional 'where'"),
        ("Where it stands is told to the owner.", "tell, told"),
        ("What waits for clients that do not read.", "fused subject"),
        ("There are so many of them.", "so many"),
        ("Nobody reads it.", "nobody, whoever"),
        ("Of what is kept, the oldest goes.", "inverted 'Of'"),
        ("The stream is to be closed.", "is to be"),
    ],
)
def test_a_pattern_is_found(text: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    for name, source in (
        ("m.py", f'"""{text}"""\n'),
        ("n.py", f"x = 1  # {text}\n"),
        ("p.md", f"# Page\n\n{text}\n"),
    ):
        (tmp_path / name).write_text(source)
        assert pattern in [found for s in prose.sentences(tmp_path / name) for found in s.found]


@pytest.mark.parametrize(
    "text",
    [
        "Return the directory where the model files are stored.",
        "If the model has no state, raise ModelError.",
        "Replies that wait for slow clients.",
        "What is a stream?",
    ],
)
def test_plain_sentences_pass(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    (tmp_path / "p.md").write_text(f"# Page\n\n{text}\n")
    assert not [found for s in prose.sentences(tmp_path / "p.md") for found in s.found]
