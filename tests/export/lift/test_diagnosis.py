"""An error speaks of the user's example, never of the sizes at which the exporter traces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from runnel.errors import ExportError, NotStreamableError
from runnel_export import export
from runnel_export.lift import trace as tracing
from runnel_export.lift.diagnosis import general
from runnel_export.lift.lift import lift

from ..stepping import Apply
from .test_refusals import REFUSED

ONE, TWO = (11, 13), (17, 19)  # pairs of batch and time


class Rnn(nn.Module):
    def __init__(self, batch_first: bool, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(3, 8, batch_first=batch_first)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class TimeFirstLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[1], 8), []
        for t in range(x.shape[0]):
            h = self.cell(x[t], h)
            out.append(h)
        return torch.stack(out)


def window() -> nn.Module:
    """A perceptron over a window of 50 ticks."""
    return Apply(lambda x, m: m.f(x.flatten(1)), f=nn.Linear(150, 1))


UNTRACEABLE: dict[str, tuple[nn.Module, str, str]] = {
    "a window": (window(), "one tick more (x: float32 (1, 51, 3))", "length"),
    "a batch of one": (Apply(lambda x, _: x.reshape(1, -1, 3)[:, :50]), "", ""),
    "a state for one row": (
        Apply(lambda x, m: m.g(x, torch.zeros(1, 1, 8))[0], g=nn.GRU(3, 8, batch_first=True)),
        "one row more in the batch (x: float32 (2, 50, 3))", "x.shape[0]",
    ),
    "a loop of 50": (
        Apply(lambda x, _: torch.stack([x[:, t] for t in range(50)], 1)),
        "one tick less (x: float32 (1, 49, 3))", "x.shape[1]",
    ),
    "a position for each tick": (
        Apply(lambda x, _: x + torch.ones(50, 3)), "one tick more (x: float32 (1, 51, 3))", "x.shape[1]"
    ),
    "a branch on the data": (Apply(lambda x, _: x * 2 if x.sum() > 0 else x), "branches on the data", ""),
    "the middle": (Apply(lambda x, _: x[:, x.shape[1] // 2]), "at tick T//2", "T: the number of ticks"),
    "half": (Apply(lambda x, _: x[:, : x.shape[1] // 2]), "the sequence's length, which forward", ""),
}  # fmt: skip


# Of the refusals, those that speak of a tick or of a length.
COUNTED = (
    "the first tick", "a cell that runs backwards", "position in a loop",
)  # fmt: skip


def message(module: nn.Module, example: Tensor) -> str:
    with pytest.raises(ExportError) as caught:
        lift(module, example)
    assert type(caught.value) in (ExportError, NotStreamableError), "a public class"
    return caught.value.message


@pytest.mark.parametrize("name", [*UNTRACEABLE, *COUNTED])
def test_no_message_changes_with_the_sizes_that_the_exporter_chose(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law: whatever sizes are traced, a user reads the same."""
    known = name in UNTRACEABLE
    module, example = (
        (UNTRACEABLE if known else REFUSED)[name][0],
        torch.ones((1, 50, 3) if known else (2, 5, 6)),
    )
    told = message(module, example)
    monkeypatch.setattr(tracing, "PRIMES", (19, 7, 23, 17))  # (the time smaller than the batch, besides)
    assert message(module, example) == told


@pytest.mark.parametrize("name", [name for name, (_, says, _) in UNTRACEABLE.items() if says])
def test_what_does_not_fit_is_said_of_the_users_example(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module, *says = UNTRACEABLE[name]
    told = message(module, torch.ones(1, 50, 3))
    assert capfd.readouterr() == ("", ""), "torch's own graph was printed"
    for part in says:
        assert part in told


def test_the_length_that_is_written_in_shows_what_forward_says_on_one_more() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] == 50, f"I want 50, not {x.shape[1]}"
            return x

    assert "I want 50, not 51" in message(Picky(), torch.ones(1, 50, 3))


# an example whose axes are others


@pytest.mark.parametrize(("kind", "shape"), [(nn.LSTM, (50, 4, 3)), (nn.GRU, (50, 1, 3))])
def test_a_time_first_example_is_told_of_time_axis(
    kind: type[nn.RNNBase], shape: tuple[int, ...], tmp_path: Path
) -> None:
    module = Rnn(False, kind)
    assert "time_axis=0 (--time-axis 0)" in message(module, torch.randn(shape))
    if kind is nn.GRU:
        assert export(module, torch.randn(shape), tmp_path / "m.onnx", time_axis=0).passed


def test_a_loop_over_the_first_axis_is_told_of_time_axis() -> None:
    assert "time_axis=0 (--time-axis 0)" in message(TimeFirstLoop(), torch.randn(50, 2, 3))


WITHOUT_BATCH = {
    "batch_first": (Rnn(True), torch.randn(50, 3), "example[None], that is x: float32 (1, 50, 3)"),
    "time first": (Rnn(False), torch.randn(50, 3), "example[:, None], that is x: float32 (50, 1, 3)"),
    "convolution": (
        Apply(lambda x, m: m.c(x.transpose(1, 2))[..., :-2], c=nn.Conv1d(3, 4, 3, padding=2)),
        torch.randn(50, 3), "example[None], that is x: float32 (1, 50, 3)",
    ),
    "tokens": (
        Apply(lambda x, m: m.g(m.e(x))[0], e=nn.Embedding(9, 3), g=nn.GRU(3, 4, batch_first=True)),
        torch.randint(0, 9, (50,)), "example[None], that is x: int64 (1, 50)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_BATCH)
def test_an_example_without_a_batch_axis_is_recognised(name: str, tmp_path: Path) -> None:
    module, example, says = WITHOUT_BATCH[name]
    with pytest.raises(ExportError, match="no batch axis") as caught:
        export(module, example, tmp_path / "m.onnx")
    assert says in caught.value.message
    index = re.search(r"example(\[[^\]]*\])", caught.value.message)
    assert index
    axis = 0 if "time_axis=0" in caught.value.message else 1
    fixed = example[None] if index[1] == "[None]" else example[:, None]
    if name != "convolution":  # (whose result has its time elsewhere, which is not at stake)
        assert export(module, fixed, tmp_path / "m.onnx", time_axis=axis).passed


def test_a_wrong_example_is_not_taken_for_one_without_a_batch_axis() -> None:
    assert "batch axis" not in message(Rnn(True), torch.randn(1, 50, 4))
    assert "no batch axis" not in message(Rnn(True), torch.randn(50, 4))


# formulas


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("[11, 13, 3] got 13", "[17, 19, 3] got 19", "[B, T, 3] got T"),
        ("143x8 and 104", "323x8 and 152", "B*Tx8 and 8*T"),
        ("at tick 12 of 14", "at tick 18 of 20", "at tick T-1 of T+1"),
        ("tick 6", "tick 9", "tick T//2"),
        ("22 rows", "34 rows", "2*B rows"),
        ("aten.conv1d: 4 ticks", "aten.conv1d: 4 ticks", "aten.conv1d: 4 ticks"),
        ("7 is 5", "100 is 5", "some number is 5"),
        ("got 13", "", "got T"),
        ("got 143 of 5", "another sentence", "got B*T of 5"),
    ],
)
def test_numbers_that_come_from_the_sizes_become_formulas(text: str, other: str, expected: str) -> None:
    assert (
        general(text, other, ONE, TWO).removesuffix(" (B: the batch size, T: the number of ticks)")
        == expected
    )
