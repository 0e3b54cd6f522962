"""Rates, delays, beginnings and ends: modules that look ahead, thin out or spread time, against torch.

Each is streamed at lengths shorter than what it sees, and at lengths that are no multiple of its strides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import runnel_export
from runnel import Engine
from runnel.errors import ModelError, NotStreamableError
from runnel.loading import container
from runnel.spec import to_document
from runnel_export.lengths import Lengths
from runnel_export.lift.lift import lift
from runnel_export.lift.timing import TICKS, Edge, Length, Timing, Windows, padded_to

from ..stepping import Apply
from ..streaming import assert_equal_to_torch, fed
from .networks import Network


def channels(function: Callable[[Tensor, Any], Tensor], **parts: nn.Module) -> nn.Module:
    """`function` of (batch, channels, time), for a sequence of (batch, time, channels)."""
    return Apply(lambda x, m: function(x.transpose(1, 2), m).transpose(1, 2), **parts)


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """A recurrent layer over (batch, channels, time)."""
    y: Tensor = layer(x.transpose(1, 2))[0].transpose(1, 2)
    return y


def batch_norm(width: int) -> nn.Module:
    norm = nn.BatchNorm1d(width)
    nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    nn.init.normal_(norm.bias)
    return norm


def gru(width: int, hidden: int, layers: int = 1) -> nn.Module:
    return nn.GRU(width, hidden, layers, batch_first=True)


def unet(x: Tensor, m: Any) -> Tensor:
    p = m.a(x).relu()
    q = m.b(p).relu()
    u: Tensor = m.d(run(m.l, q) + q).relu() + p
    return m.e(u) + x  # type: ignore[no-any-return]


def residual(x: Tensor, m: Any) -> Tensor:
    y = m.c(x).relu()
    return torch.cat([run(m.l, m.d(y) + y), x], 1)


def hop_by_hop(x: Tensor, m: Any) -> Tensor:
    b, t, f = x.shape
    y: Tensor = m.l(x.reshape(b, t // 2, 2 * f))[0].reshape(b, t, f)
    return y + x


def whole_windows(x: Tensor, kernel: int, stride: int, mode: str = "constant") -> Tensor:
    """As codecs pad: the last window is completed."""
    extra = -x.shape[-1] % stride
    return F.pad(x, (kernel - stride, extra), mode=mode)


def twice_whole(x: Tensor, m: Any) -> Tensor:
    return m.d(whole_windows(m.c(whole_windows(x, 4, 2)).relu(), 3, 3)).tanh()


def up_to_all_strides(x: Tensor, m: Any) -> Tensor:
    """As Demucs pads: once, so that every stride of the way down and up fits, then cut."""
    ticks = x.shape[-1]
    rows = max(1, math.ceil((max(1, math.ceil((ticks - 8) / 4) + 1) - 4) / 2) + 1)
    x = F.pad(x, (0, ((rows - 1) * 2 + 4 - 1) * 4 + 8 - ticks))
    a = m.a(x).relu()
    return m.e(m.d(run(m.l, m.b(a).relu())).relu() + a)[..., :ticks]


MODULES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    # name: (module of 4 channels, ticks of its delay, ticks of a step)
    "centred": (lambda: channels(lambda x, m: m.c(x).relu(), c=nn.Conv1d(4, 8, 5, padding=2)), 2, 1),
    "same, even": (lambda: channels(lambda x, m: m.c(x), c=nn.Conv1d(4, 8, 4, padding="same")), 2, 1),
    "centred, then a GRU": (
        lambda: channels(lambda x, m: run(m.l, m.c(x)), c=nn.Conv1d(4, 8, 5, padding=2), l=gru(8, 8, 2)), 2, 1
    ),
    "residual": (
        lambda: channels(
            residual,
            c=nn.Conv1d(4, 8, 5, padding=2),
            d=nn.Conv1d(8, 8, 3, padding=2, dilation=2),
            l=nn.LSTM(8, 8, batch_first=True),
        ), 4, 1,
    ),
    "valid": (
        lambda: channels(
            lambda x, m: run(m.l, m.d(m.c(x).tanh()).relu()),
            c=nn.Conv1d(4, 8, 3), d=nn.Conv1d(8, 8, 3), l=gru(8, 8),
        ), 4, 1,
    ),
    "padded once in front": (
        lambda: channels(
            lambda x, m: m.d(m.c(m.n(F.pad(x, (4, 0)))).tanh()).relu(),
            n=batch_norm(4), c=nn.Conv1d(4, 8, 3), d=nn.Conv1d(8, 8, 3),
        ), 0, 1,
    ),
    "cut after norm and activation": (
        lambda: channels(
            lambda x, m: m.n(m.c(x)).relu()[..., :-2], c=nn.Conv1d(4, 8, 3, padding=2), n=batch_norm(8)
        ), 0, 1,
    ),
    "not cut": (lambda: channels(lambda x, m: m.c(x), c=nn.Conv1d(4, 8, 3, padding=2)), 0, 1),
    "cut on the wrong side": (
        lambda: channels(lambda x, m: m.c(x)[..., 2:], c=nn.Conv1d(4, 8, 3, padding=2)), 2, 1
    ),
    "lookahead": (lambda: Apply(lambda x, m: m.l(F.pad(x, (0, 0, -2, 2)))[0] + x, l=gru(4, 4)), 2, 1),
    "deltas": (
        lambda: Apply(
            lambda x, m: m.l(torch.cat([x, F.pad(x[:, 1:] - x[:, :-1], (0, 0, 1, 0))], -1))[0], l=gru(8, 8)
        ), 0, 1,
    ),
    "differences": (lambda: Apply(lambda x, _: x[:, 1:] - x[:, :-1]), 1, 1),
    "without its last ticks": (lambda: Apply(lambda x, _: x[:, :-3] * 2), 3, 1),
    "every third tick": (lambda: Apply(lambda x, _: x[:, 1::3] * 2), 0, 3),
    "strided, then a GRU": (
        lambda: channels(lambda x, m: run(m.l, m.c(F.pad(x, (2, 0)))), c=nn.Conv1d(4, 8, 4, 2), l=gru(8, 8)),
        0, 2,
    ),
    "down and up": (
        lambda: channels(
            lambda x, m: m.d(run(m.l, m.c(F.pad(x, (2, 0)))))[..., : x.shape[-1]],
            c=nn.Conv1d(4, 8, 4, 2), l=gru(8, 8), d=nn.ConvTranspose1d(8, 4, 4, 2),
        ), 0, 2,
    ),
    "U-net": (
        lambda: channels(
            unet,
            a=nn.Conv1d(4, 8, 4, 2, padding=1), b=nn.Conv1d(8, 8, 4, 2, padding=1),
            l=nn.LSTM(8, 8, batch_first=True),
            d=nn.ConvTranspose1d(8, 8, 4, 2, padding=1), e=nn.ConvTranspose1d(8, 4, 4, 2, padding=1),
        ), 7, 4,
    ),
    "gaps between transposed rows": (
        lambda: channels(lambda x, m: m.u(x), u=nn.ConvTranspose1d(4, 4, 1, 3, output_padding=1)), 1, 1
    ),
    "pooling": (
        lambda: channels(lambda x, m: run(m.l, F.avg_pool1d(F.max_pool1d(x, 3, 1, 1), 2)), l=gru(4, 8)), 2, 2
    ),
    "reflect": (
        lambda: channels(lambda x, m: m.c(F.pad(x, (2, 2), mode="reflect")), c=nn.Conv1d(4, 8, 5)), 2, 1
    ),
    "replicate": (
        lambda: channels(
            lambda x, m: run(m.l, m.c(F.pad(x.tanh(), (3, 1), mode="replicate"))),
            c=nn.Conv1d(4, 8, 5), l=gru(8, 8),
        ), 1, 1,
    ),
    "nearest": (
        lambda: channels(
            lambda x, m: F.interpolate(run(m.l, m.c(x)), scale_factor=2),
            c=nn.Conv1d(4, 8, 4, 2, padding=1), l=gru(8, 4),
        ), 2, 2,
    ),
    "linear": (lambda: channels(lambda x, _: F.interpolate(x, scale_factor=3, mode="linear")), 1, 1),
    "repeated": (lambda: Apply(lambda x, _: x.repeat_interleave(2, 1) * 2), 0, 1),
    "sub-pixel": (
        lambda: Apply(
            lambda x, m: m.c(x.mT).mT.reshape(len(x), 2 * x.shape[1], 4).tanh(),
            c=nn.Conv1d(4, 8, 3, padding=1),
        ), 1, 1,
    ),
    "two ticks at a time": (lambda: Apply(hop_by_hop, l=gru(8, 8)), 0, 2),
    "rows of its own in front": (
        lambda: Apply(
            lambda x, m: m.c(torch.cat([m.p.expand(len(x), -1, -1), x], 1).mT).mT,
            p=nn.Parameter(torch.randn(1, 2, 4)), c=nn.Conv1d(4, 8, 3),
        ), 0, 1,
    ),
    "padded to whole windows": (
        lambda: channels(twice_whole, c=nn.Conv1d(4, 8, 4, 2), d=nn.Conv1d(8, 4, 3, 3)), 0, 6
    ),
    "padded to whole windows by reflection": (
        lambda: channels(lambda x, m: m.c(whole_windows(x, 7, 4, "reflect")), c=nn.Conv1d(4, 8, 7, 4)), 0, 4
    ),
    "padded once for all strides": (
        lambda: channels(
            up_to_all_strides, a=nn.Conv1d(4, 8, 8, 4), b=nn.Conv1d(8, 8, 4, 2), l=gru(8, 8),
            d=nn.ConvTranspose1d(8, 8, 4, 2), e=nn.ConvTranspose1d(8, 4, 8, 4),
        ), 16, 8,
    ),
    "padded back to its length": (
        lambda: channels(
            lambda x, m: F.pad(y := m.d(m.c(x)), (0, x.shape[-1] - y.shape[-1])).tanh() + x,
            c=nn.Conv1d(4, 8, 8, 4), d=nn.ConvTranspose1d(8, 4, 8, 4),
        ), 4, 4,
    ),
    "resampled, rounded up": (
        lambda: channels(
            lambda x, m: m.c(F.pad(x, (2, 5)))[..., : math.ceil(x.shape[-1] / 3)], c=nn.Conv1d(4, 4, 7, 3)
        ), 3, 3,
    ),
    "resampled, rounded down": (
        lambda: channels(
            lambda x, m: m.c(F.pad(x, (2, 5), mode="replicate"))[..., : x.shape[-1] // 3],
            c=nn.Conv1d(4, 4, 7, 3),
        ), 3, 3,
    ),
    "cut to another's length": (
        lambda: channels(
            lambda x, m: m.c(F.pad(x, (1, 2)))[..., : (y := m.d(x)).shape[-1]] + y,
            c=nn.Conv1d(4, 4, 4, 2), d=nn.Conv1d(4, 4, 3, 2),
        ), 2, 2,
    ),
    "windows": (lambda: Apply(lambda x, m: m.l(x.unfold(1, 6, 3).flatten(2))[0], l=gru(24, 8)), 3, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_it_streams_as_torch_computes_it(name: str, tmp_path: Path) -> None:
    made, delay, ticks = MODULES[name]
    torch.manual_seed(0)
    lifted = assert_equal_to_torch(made(), torch.randn(1, 20, 4), tmp_path)
    steps = lifted.spec.steps
    assert (steps.delay, steps.ticks) == (delay, ticks) if steps else (delay, ticks) == (0, 1)


# ------------------------------------------------------------------ random networks


TRUE_REASONS = (
    "which fit at one length of the sequence only",
    "the number of rows that it makes does not follow from strides and paddings",
    "what it computes changes with the batch size or with the sequence's length",
    "how many rows are cut off depends on the sequence's length",
)


def check_network(number: int, folder: Path) -> bool:
    """Whether network `number` streams, as torch computes it; False if it is refused for a true reason."""
    module = Network(number).eval()
    example = torch.randn(1, 40, module.channels)
    try:
        with torch.no_grad():
            assume(module(example).shape[1] > 1)
    except RuntimeError:  # a window larger than the rows that are left
        reject()
    try:
        assert_equal_to_torch(module, example, folder)
    except NotStreamableError as error:
        if not any(why in error.message for why in TRUE_REASONS):
            raise
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@settings(max_examples=100, deadline=None, derandomize=True)  # the same ones each time; soak draws others
@given(number=st.integers(0, 2**32))
def test_random_networks_stream_as_torch_computes_them(number: int, folder: Path) -> None:
    event("streams" if check_network(number, folder) else "refused")


@pytest.mark.soak
@settings(max_examples=2000, deadline=None)
@given(number=st.integers(0, 2**32))
def test_many_more_random_networks(number: int, folder: Path) -> None:
    check_network(number, folder)


LAST: dict[str, tuple[Callable[[Tensor, Any], Tensor], int]] = {
    # name: (of 4 channels, how many of the last rows it sees)
    "as rows": (lambda x, m: m.f(m.l(x)[0][:, -5:]), 5),
    "as features": (lambda x, m: m.g(m.l(x)[0][:, -3:].flatten(1)), 3),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_rows_are_features_of_the_last_tick(name: str, tmp_path: Path) -> None:
    """As forecasters have it. The stream gives its first row once it has seen as many ticks."""
    torch.manual_seed(0)
    function, rows = LAST[name]
    parts = {"l": gru(4, 8), "f": nn.Linear(8, 2), "g": nn.Linear(24, 2)}
    module, file = Apply(function, **parts).eval(), tmp_path / "m.onnx"
    runnel_export.export(module, torch.randn(2, 30, 4), file, progress=False)
    x = torch.randn(1, 17, 4)
    with Engine.load(file) as engine, torch.no_grad():
        assert engine.pipeline.latency == rows - 1
        for cuts in (range(1, 17), [2, 9], []):
            with engine.open() as stream:
                found = fed(stream, x[0].numpy(), cuts)
            expected = torch.stack([module(x[:, :t])[0] for t in range(rows, 18)])
            np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_last_rows_beside_the_last_tick_are_refused() -> None:
    with pytest.raises(NotStreamableError, match="at the sequence's end"):
        lift(Apply(lambda x, _: (x[:, -1], x[:, -6:])), torch.randn(1, 20, 4))


@pytest.mark.parametrize(
    ("module", "unit", "least"),
    [
        (channels(lambda x, m: m.c(x), c=nn.Conv1d(4, 4, 3, padding=1)), 1, 1),
        (channels(lambda x, m: m.c(x), c=nn.Conv1d(4, 4, 23)), 1, 23),
        (channels(lambda x, m: m.d(m.c(x)), c=nn.Conv1d(4, 4, 8, 4), d=nn.Conv1d(4, 4, 5)), 1, 24),
        (Apply(hop_by_hop, l=gru(8, 8)), 2, 1),
    ],
)
def test_the_shortest_sequence_is_found(module: nn.Module, unit: int, least: int) -> None:
    """A certificate is about every length that forward takes, from the shortest on."""
    assert lift(module.eval(), torch.randn(1, 60, 4)).lengths == Lengths(unit, least)


def test_sequences_that_are_padded_in_another_way_are_not_promised() -> None:
    """As codecs do it: reflection of a short sequence needs more rows first."""

    def reflected(x: Tensor, m: Any) -> Tensor:
        missing = max(0, 7 - x.shape[-1])
        return m.c(F.pad(F.pad(x, (0, missing)) if missing else x, (6, 0), mode="reflect"))

    lifted = lift(channels(reflected, c=nn.Conv1d(4, 4, 7)).eval(), torch.randn(1, 60, 4))
    assert 7 <= lifted.lengths.least <= 14
    assert any("in another way" in note for note in lifted.notes)


# ------------------------------------------------------------------ the theory


@given(
    ticks=st.integers(0, 60),
    steps=st.lists(st.tuples(st.integers(1, 3), st.integers(-4, 4), st.integers(1, 3)), max_size=4),
)
def test_a_length_is_what_its_operations_make_of_it(ticks: int, steps: list[tuple[int, int, int]]) -> None:
    length, rows = Length(), ticks
    for times, plus, over in steps:
        length, rows = length.then(times, plus, over), (rows * times + plus) // over
        assume(rows >= 0)  # torch refuses an operation that leaves less
    assert length(ticks) == rows


@given(
    delay=st.integers(-5, 9),
    kernel=st.integers(1, 6),
    dilation=st.integers(1, 3),
    stride=st.integers(1, 4),
)
def test_windows_read_rows_that_are_there_and_no_earlier_row_could_be_given(
    delay: int, kernel: int, dilation: int, stride: int
) -> None:
    """The definition: after k*stride rows of input the rows below k - delay are computed, none more."""
    reach = (kernel - 1) * dilation
    windows = Windows.of(Timing(delay=delay), reach, stride)
    moved = windows.timing
    for k in range(1, 12):
        seen = k * stride - delay  # rows below it are there
        last = k - moved.delay - 1
        assert last * stride + reach < seen
        assert (last + 1) * stride + reach >= seen - stride + 1, "it could have come a call earlier"
        first = (k - 1) - moved.delay
        assert first * stride == (k - 1) * stride - delay - windows.past
        assert windows.spare == seen - 1 - (last * stride + reach) >= 0


def test_what_is_cut_of_an_edge_need_not_be_filled() -> None:
    end = TICKS.then(plus=4)
    timing = Timing().padded(4, TICKS.then(plus=8), Edge(4, 4, end=end))
    assert timing.cut(0, 4).edge == Edge(4, 0)
    assert timing.cut(4, 0).edge == Edge(0, 4, end=TICKS)
    assert timing.cut(4, 4) == Timing()
    assert timing.cut(4, 4).plain


@given(
    size=st.integers(2, 40),
    fixed=st.integers(0, 3),
    shortest=st.integers(1, 50),
    shorter=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_padding_up_to_a_multiple_is_understood(
    size: int, fixed: int, shortest: int, shorter: int, seed: int
) -> None:
    """What forward pads at some lengths tells what it pads at all."""
    length = TICKS.then(plus=-shorter)

    def padded(ticks: int) -> int:
        rows = length(ticks) + fixed
        return shortest + max(0, -(-(rows - shortest) // size)) * size

    draw = random.Random(seed)
    first = draw.randrange(shorter + 1, shorter + 60)
    seen = [shorter + 1, *range(first, first + 6), *(first + i * (2 * size + 1) for i in range(1, 5))]
    given = {ticks: padded(ticks) - length(ticks) for ticks in seen}
    assume(len({padded(t) for t in seen}) > 2)
    found = padded_to(length, given)
    if found is None:
        return  # a refusal: the certificate would not have held
    rows, most = found
    assert [rows(ticks) for ticks in seen] == [padded(ticks) for ticks in seen]
    if math.gcd(*(padded(t) - shortest for t in seen)) == size and not fixed:
        assert all(rows(t) == padded(t) and padded(t) - length(t) <= most for t in range(shorter + 1, 300))


def test_padding_that_is_always_the_same_or_up_to_the_input_is_understood() -> None:
    length = TICKS.then(plus=-7, over=4).then(times=4, plus=7)
    assert padded_to(length, {10: 3, 11: 3, 30: 3}) == (length.then(plus=3), 3)
    found = padded_to(length, {ticks: ticks - length(ticks) for ticks in (9, 20, 21, 22, 23, 40)})
    assert found is not None
    assert found[0] == TICKS
    assert padded_to(length, {10: 3, 11: 5, 12: 4}) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ticks": 0}, "at least 1"),
        ({"delay": -1}, "whole number"),
        ({"delay": 2**20}, "at most 65536"),
        ({"present": "x"}, "named twice|steps need"),
        ({"position": "c.cache"}, "int64"),
        ({"rows": 3}, "3 rows first"),
        ({"delay": 3}, "latency is 2"),
    ],
)
def test_a_file_whose_steps_make_no_sense_is_refused(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    lifted = lift(MODULES["centred"][0](), torch.randn(1, 20, 4))
    document = to_document(lifted.spec)
    document["steps"] = {**document["steps"], **change}
    file = tmp_path / "m.onnx"
    file.write_bytes(container.seal(lifted.model.SerializeToString(), document))
    with pytest.raises(ModelError, match=why):
        Engine.load(file, trust=True)


def test_latency_and_rate_are_those_of_the_stage_behind() -> None:
    lifted = lift(MODULES["U-net"][0]().eval(), torch.randn(1, 20, 4))
    assert lifted.spec.steps is not None
    assert lifted.spec.latency == lifted.spec.steps.latency == 4 - 1 + 7
    assert lifted.spec.ratio == (4, 4)
    assert lifted.spec.hop == 4
