"""The long-memory recipe, quick and as it was recorded; its parts against formulas of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from long_memory import streaming
from long_memory.gradients import at_tag
from long_memory.networks import CELLS, HIDDEN, Recall
from long_memory.task import CUE, DISTANCES, TAGS, mixed, sequences
from long_memory.training import CLIP, WINDOW, Steps
from measured import Table
from torch import nn

import runnel_export
from runnel.errors import RunnelError
from tests.recipes.pages import command, recorded

TRIED = ("RNN", "peephole")


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def new(cell: str) -> Recall:
    torch.manual_seed(3)
    return Recall(cell)


def by_name(table: Table) -> dict[str, Sequence[str]]:
    return {row[0]: row[1:] for row in table.rows}


def end(text: str, at: int) -> float:
    """Of "98.0%", or at one end of "13.0% to 98.0%"."""
    return float(text.split(" to ")[at].rstrip("%"))


# --- the task


def test_a_tag_is_seen_once_and_asked_for_at_the_end() -> None:
    symbols, tags = sequences(4000, 7, random())
    assert symbols.shape == (4000, 9)
    assert (symbols[:, 0] == tags).all()
    assert (symbols[:, -1] == CUE).all()
    between = symbols[:, 1:-1]
    assert ((between >= TAGS) & (between < CUE)).all()
    assert np.bincount(tags.numpy(), minlength=TAGS).min() > 400  # else chance were not 1 in 8


# --- how they begin


@pytest.mark.parametrize("cell", CELLS)
def test_each_begins_with_a_long_memory(cell: str) -> None:
    layer = new(cell).layer
    if cell == "RNN":
        matrix = layer.get_parameter("weight_hh_l0")
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(HIDDEN), atol=1e-5, rtol=0)
        return
    gates = (layer.get_parameter("bias_ih_l0") + layer.get_parameter("bias_hh_l0")).sigmoid().detach()
    first, keep = gates[:HIDDEN], gates[HIDDEN : 2 * HIDDEN]  # by torch's order: i, f or r, z
    ticks = 1 / (1 - keep)  # 1/t is forgotten at each
    assert 2 <= ticks.min() < 20
    assert 180 < ticks.max() <= 200
    assert ticks.mean().item() == pytest.approx(101, abs=4 * 57 / 8)  # uniform: as far as 64 of them tell
    if cell != "GRU":
        torch.testing.assert_close(first, 1 - keep)


# --- training


def test_with_a_window_no_gradient_reaches_the_tag_and_yet_the_state_does() -> None:
    # With the tag and the cue, 49 distractors are one tick more than the window.
    for distance, window, reached in ((49, WINDOW, False), (48, WINDOW, True), (49, None, True)):
        symbols, tags = sequences(16, distance, random())
        network = new("LSTM")
        torch.manual_seed(5)
        with torch.no_grad():
            whole = network(symbols)[:, -1].argmax(1)
        right = Steps(network, window).take(symbols, tags)
        grads = network.embedding.weight.grad
        assert grads is not None
        assert bool(grads[:TAGS].any()) is reached
        assert right == pytest.approx(
            (whole == tags).double().mean().item()
        )  # what is told is of before the step
        assert grads[TAGS:CUE].any()


def test_the_states_before_the_window_are_carried_into_it() -> None:
    """The gradient with a window is that of the sequence's end, begun from the state that was there."""
    symbols, tags = sequences(8, WINDOW + 20, random(1))
    network, other = new("GRU"), new("GRU")
    Steps(network, WINDOW).take(symbols, tags)
    with torch.no_grad():
        state = other.run(symbols[:, :-WINDOW])[1]
    scores = other.scores(other.run(symbols[:, -WINDOW:], state)[0][:, -1])
    (-scores.log_softmax(1)[torch.arange(8), tags].mean()).backward()
    nn.utils.clip_grad_norm_(other.parameters(), CLIP)
    for mine, wanted in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-7)


def test_a_large_gradient_is_clipped_and_counted() -> None:
    network = new("RNN")
    with torch.no_grad():
        network.scores.weight *= 100
    steps = Steps(network, None)
    steps.take(*sequences(16, 5, random()))
    squares = [p.grad.square().sum() for p in network.parameters() if p.grad is not None]
    assert steps.clipped == 1
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(CLIP, rel=1e-3)


# --- the gradient at the tag


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_at_the_tag_is_that_of_finite_differences(cell: str) -> None:
    network, distance = new(cell).double(), 4
    symbols, tags = sequences(64, distance, random(7))
    rows = torch.arange(64)

    def losses(state: tuple[torch.Tensor, ...]) -> torch.Tensor:
        given = state if len(state) > 1 else state[0]
        scores = network.scores(network.run(symbols[:, 1:], given)[0][:, -1])
        return -scores.log_softmax(1)[rows, tags]

    with torch.no_grad():
        seen = network.run(symbols[:, :1])[1]
        parts = seen if isinstance(seen, tuple) else (seen,)
        squares = torch.zeros(64, dtype=torch.float64)
        for part in range(len(parts)):
            for unit in range(HIDDEN):
                sides = []
                for step in (1e-5, -1e-5):
                    moved = [p.clone() for p in parts]
                    moved[part][..., unit] += step
                    sides.append(losses(tuple(moved)))
                squares += ((sides[0] - sides[1]) / 2e-5) ** 2
    assert at_tag(network, distance, 7)[0] == pytest.approx(squares.sqrt().median().item(), rel=1e-5)


def test_without_gates_the_gradient_is_the_product_of_the_ticks() -> None:
    """An RNN's state gradient is W^T diag(1 - h²), tick by tick: numpy says so, and little is left."""
    network, distance = new("RNN").double(), 100
    assert isinstance(network.layer, nn.RNN)
    with torch.no_grad():
        network.layer.weight_hh_l0 *= 0.5
    symbols, _ = sequences(64, distance, random(2))
    with torch.no_grad():
        h = network.run(symbols)[0].numpy()
    tags, w, v = symbols[:, 0].numpy(), network.layer.weight_hh_l0.detach().numpy(), network.scores
    scores = h[:, -1] @ v.weight.detach().numpy().T + v.bias.detach().numpy()
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    gradient = (chances - np.eye(TAGS)[tags]) @ v.weight.detach().numpy()
    late = None
    for tick in range(distance + 1, 0, -1):
        gradient = (gradient * (1 - h[:, tick] ** 2)) @ w
        late = np.linalg.norm(gradient, axis=1) if late is None else late
    first = np.linalg.norm(gradient, axis=1)
    lower = len(first) // 2 - 1  # torch's median of an even number is the lower of the two
    norm, share = at_tag(network, distance, 2)
    assert norm == pytest.approx(np.sort(first)[lower], rel=1e-9)
    assert share == pytest.approx(np.sort(first / late)[lower], rel=1e-9)
    assert share < 1e-25


# --- the whole of it


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """With two of the cells, whose states are the simplest and the largest; with all of them: soak."""
    out = tmp_path_factory.mktemp("memory")
    with redirect_stdout(StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr("long_memory.recipe.CELLS", TRIED)
        assert command().main(["long_memory", "--quick", "--out", str(out)]) == 0
    return out, said.getvalue()


def test_quick_learns_certifies_streams_and_draws(quick: tuple[Path, str]) -> None:
    out, said = quick
    for cell in TRIED:
        assert re.search(rf"^  {cell}  .*\b3 of 3\b", said, re.M), cell  # streamed as torch has it
        for row in (cell, f"{cell}: updates", f"{cell}, before training", f"{cell}, trained"):
            assert re.search(rf"^  {row}  ", said, re.M), row
        model = out / f"{cell.lower()}.onnx"
        assert model.exists()
    assert (out / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert runnel_export.verify(out / "peephole.onnx").alive == ("layer.h.0", "layer.c.0")


@pytest.mark.parametrize("fault", ["another tag", "a tick lost"])
def test_a_state_that_was_not_carried_over_is_found(
    quick: tuple[Path, str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = quick
    network = Recall("peephole")
    network.load_state_dict(torch.load(out / "peephole.pt", weights_only=True))
    feed = streaming._feed_and_die

    def wrongly(address: str, firsts: dict[str, np.ndarray]) -> None:
        for name, row in firsts.items():
            firsts[name] = np.append((row[:1] + 1) % TAGS, row[1:]) if fault == "another tag" else row[1:]
        feed(address, firsts)

    monkeypatch.setattr(streaming, "_feed_and_die", wrongly)
    expected = "state was not carried over" if fault == "another tag" else r"stands at tick \d+, and was fed"
    with pytest.raises(RunnelError, match=expected):
        streaming.streamed(network, out / "peephole.onnx", mixed(1, (5, 10), random()), 0)


# --- what was recorded


def test_what_is_recorded_is_what_the_page_says() -> None:
    apart, grown, norms, shares, streamed = recorded("long_memory")
    assert apart.header[1:] == norms.header[1:] == shares.header[1:] == [str(d) for d in DISTANCES]
    lowest, highest = (
        {cell: [end(shares, at) for shares in by_name(apart)[cell]] for cell in CELLS} for at in (0, -1)
    )
    assert lowest["RNN"][0] > 95
    assert highest["RNN"][-1] < 30  # and guessing is 12.5
    for cell in CELLS[1:]:
        assert min(lowest[cell][:-1]) > 95, cell
        assert highest[cell][-1] > 95, cell
        assert lowest[cell][-1] > 2 * highest["RNN"][-1], cell  # not every seed is through with the longest
    for row in grown.rows:
        assert min(end(share, 0) for share in row[1 : len(DISTANCES) + 1]) > 95, row
    left = {name: [float(s) for s in row] for name, row in by_name(shares).items()}
    for cell in CELLS[1:]:
        assert left[f"{cell}, before training"][-1] > 1000 * left["RNN, before training"][-1]
    for _, _, count, _, interruptions, same, _, _ in streamed.rows:
        assert int(interruptions) == 2 * int(count)
        assert same == f"{count} of {count}"


@pytest.mark.soak
def test_all_of_it(tmp_path: Path) -> None:
    with redirect_stdout(StringIO()) as said:
        assert command().main(["long_memory", "--out", str(tmp_path)]) == 0
    for cell in CELLS:
        assert re.search(rf"^  {cell}  .*\b48 of 48\b", said.getvalue(), re.M), cell
