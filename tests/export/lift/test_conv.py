"""Convolutions along time: what they reach back to is state, and only causal ones pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ..stepping import Apply, assert_streams, op_types

CHANNELS_FIRST = {"time_axis": 2}


def example() -> Tensor:
    return torch.randn(2, 5, 6)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.integers(1, 4),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    chomp=st.booleans(),
)
def test_a_causal_convolution_equals_torch(
    kernel: int, dilation: int, groups: int, bias: bool, chomp: bool
) -> None:
    reach = (kernel - 1) * dilation

    def forward(x: Tensor, m: Any) -> Tensor:
        if chomp:
            out: Tensor = m.c(x)
            return out[:, :, :-reach] if reach else out
        padded: Tensor = m.c(F.pad(x, (reach, 0)))
        return padded

    conv = nn.Conv1d(4, 6, kernel, dilation=dilation, groups=groups, bias=bias, padding=reach if chomp else 0)
    lifted = assert_streams(Apply(forward, c=conv), torch.randn(2, 4, 6), time_axis=2)
    assert [s.shape for s in lifted.spec.states] == ([("slot", 4, reach)] if reach else [])
    assert [s.input for s in lifted.spec.states] == (["c.cache"] if reach else [])


class Block(nn.Module):
    """A residual block of a temporal convolutional network."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.one = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(channels, channels, 3, padding=2 * dilation, dilation=dilation)
        )
        self.two = nn.Conv1d(channels, channels, 3, padding=2 * dilation, dilation=dilation)
        self.cut = 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)[:, :, : -self.cut].contiguous().relu()
        y = self.two(y)[..., : -self.cut].relu()
        return (x + y).relu()


def test_a_temporal_convolutional_network() -> None:
    module = nn.Sequential(nn.Conv1d(5, 8, 1), Block(8, 1), Block(8, 2), Block(8, 4))
    lifted = assert_streams(module, example(), **CHANNELS_FIRST)
    assert [s.shape[-1] for s in lifted.spec.states] == [2, 2, 4, 4, 8, 8]
    assert op_types(lifted).count("Transpose") == 2  # the stream is (time, slot, …), a convolution is not


def test_the_last_tick_of_a_convolution_needs_no_chomp() -> None:
    module = Apply(lambda x, m: m.f(m.c(F.pad(x, (2, 0)))[:, :, -1]), c=nn.Conv1d(5, 7, 3), f=nn.Linear(7, 2))
    assert_streams(module, example(), last=[0], **CHANNELS_FIRST)


def test_padding_by_other_means() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        a = m.c(nn.ConstantPad1d((2, 0), 0.5)(x))
        b = m.d(torch.cat([torch.zeros(x.shape[0], 5, 2), x], -1))
        c = m.c(F.pad(x, (4, 0)))[:, :, :-2]  # two ticks late
        e = m.d(F.pad(F.pad(x, (1, 0)), (1, 0)))
        f = m.c(F.pad(x, (2, 1)))[:, :, :-1]
        out: Tensor = a + b + c + e + f
        return out

    lifted = assert_streams(
        Apply(forward, c=nn.Conv1d(5, 3, 3), d=nn.Conv1d(5, 3, 3)), example(), **CHANNELS_FIRST
    )
    first = lifted.spec.states[0]
    np.testing.assert_array_equal(first.initial, np.full((5, 2), 0.5, np.float32))


def test_a_delay_is_state() -> None:
    def forward(x: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
        shifted = F.pad(x, (0, 0, 1, 0))[:, :-1]
        again = torch.cat([torch.zeros(x.shape[0], 2, x.shape[2]), x[:, :-2]], 1)
        return shifted, again, x - shifted

    lifted = assert_streams(Apply(forward), torch.randn(2, 6, 5))
    assert [s.shape for s in lifted.spec.states] == [(1, "slot", 5), (2, "slot", 5)]


def test_time_as_one_axis_of_an_image() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        image = F.pad(x.transpose(1, 2).unsqueeze(1), (2, 0, 1, 1))
        out: Tensor = m.c(image).mean(2).transpose(1, 2)
        return out

    lifted = assert_streams(Apply(forward, c=nn.Conv2d(1, 7, 3)), torch.randn(2, 6, 5))
    assert lifted.spec.states[0].shape == ("slot", 1, 7, 2)


def test_a_convolution_and_a_recurrence() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        y = m.c(F.pad(x.transpose(1, 2), (2, 0))).relu().transpose(1, 2)
        out: Tensor = m.r(y)[0]
        return out

    module = Apply(forward, c=nn.Conv1d(5, 7, 3), r=nn.GRU(7, 4, batch_first=True))
    lifted = assert_streams(module, torch.randn(2, 6, 5))
    assert [s.input for s in lifted.spec.states] == ["c.cache", "r.h.0"]
