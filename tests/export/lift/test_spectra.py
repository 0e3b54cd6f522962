"""Spectra and complex numbers: transforms of a frame and of a signal, against torch on whole sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runnel.errors import ExportError, NotStreamableError
from runnel_export.lift.lift import lift

from ..stepping import Apply
from ..streaming import assert_equal_to_torch

SIZE, HOP = 16, 8
WINDOW = torch.hann_window(SIZE)


def pairs(x: Tensor) -> Tensor:
    """(batch, time, 8) as complex numbers, (batch, time, 4)."""
    return torch.view_as_complex(x.unflatten(2, (4, 2)))


def real(z: Tensor) -> Tensor:
    return torch.view_as_real(z).flatten(2)


# Of (batch, time, 8).
FRAMES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "rfft": lambda x, _: real(torch.fft.rfft(x)),
    "rfft of more": lambda x, _: real(torch.fft.rfft(x, 12, norm="ortho")),
    "rfft of less": lambda x, _: real(torch.fft.rfft(x, 5, norm="forward")),
    "rfft of another axis": lambda x, _: torch.fft.rfft(x.unflatten(2, (4, 2)), dim=2).abs().flatten(2),
    "irfft": lambda x, _: torch.fft.irfft(pairs(x)),
    "irfft, odd": lambda x, _: torch.fft.irfft(pairs(x), 7, norm="ortho"),
    "irfft of another axis": lambda x, _: torch.fft.irfft(pairs(x).unflatten(2, (2, 2)), dim=2).flatten(2),
    "there and back": lambda x, _: torch.fft.irfft(torch.fft.rfft(x) * torch.arange(5), 8),
    "size and angle": lambda x, _: torch.cat([pairs(x).abs(), pairs(x).angle()], 2),
    "polar": lambda x, _: real(torch.polar(x[..., :4].abs(), x[..., 4:])),
    "parts": lambda x, _: torch.cat([pairs(x).real, pairs(x).imag], 2),
    "made of parts": lambda x, _: real(torch.complex(x[..., :4], x[..., 4:])),
    "products": lambda x, m: real(pairs(x) * pairs(x).conj() * 2 - pairs(x) * (1 + 2j)),
    "quotients": lambda x, _: real(pairs(x) / (pairs(x).conj() + 3) / 2),
    "a matrix of complex numbers": lambda x, m: real(
        torch.einsum("bti,ij->btj", pairs(x), torch.complex(m.a, m.b))
    ),
    "products of complex data": lambda x, _: torch.view_as_real(
        torch.einsum("bti,btj->btij", pairs(x), pairs(x.tanh()))
    ).flatten(2),
    "a filter along time": lambda x, m: real(
        torch.einsum("btin,ni->bti", F.pad(pairs(x), (0, 0, 1, 2)).unfold(1, 4, 1), torch.complex(m.c, m.d))
    ),
    "some bins replaced": lambda x, _: real(replaced(pairs(x))),
}


def replaced(z: Tensor) -> Tensor:
    """Of real numbers: DeepFilterNet writes the bins that it filters into a copy."""
    out = torch.view_as_real(z).clone()
    out[:, :, 1:3] = out[:, :, 1:3].flip(2).tanh()
    return torch.view_as_complex(out)


@pytest.mark.parametrize("name", FRAMES)
def test_numbers_of_a_tick(name: str, tmp_path: Path) -> None:
    weights = {n: nn.Parameter(torch.randn(4, 4)) for n in "abcd"}
    assert_equal_to_torch(
        Apply(FRAMES[name], **weights), torch.randn(2, 20, 8), tmp_path, lengths=(1, 2, 3, 9, 24)
    )


def spectrum(x: Tensor, **options: Any) -> Tensor:
    """(batch, time, 1) to (batch, time, bins)."""
    return torch.stft(x[..., 0], SIZE, HOP, window=WINDOW, return_complex=True, **options).abs().mT


def masked(x: Tensor, m: Any, **options: Any) -> Tensor:
    """Through a spectrum, a recurrent mask, and back, (batch, time, 1)."""
    z = torch.stft(x[..., 0], SIZE, HOP, window=WINDOW, return_complex=True, **options)
    mask = m.l(z.abs().mT)[0].mT.sigmoid()
    return torch.istft(z * mask, SIZE, HOP, window=WINDOW, **options)[..., None]


def by_hand(x: Tensor, center: bool) -> Tensor:
    """As SpeechBrain does it: padded by itself, and the spectrum viewed as real numbers."""
    x = (
        F.pad(x[..., 0].reshape(1, *x.shape[:2]), (SIZE // 2, SIZE // 2)).view(len(x), -1)
        if center
        else x[..., 0]
    )
    z = torch.stft(x, SIZE, HOP, SIZE, WINDOW, center=False, return_complex=True)
    return torch.view_as_real(z).transpose(1, 2).flatten(2)


SIGNALS: dict[str, tuple[Callable[[Tensor, Any], Tensor], int]] = {
    # name: (of (batch, time, 1), ticks of its delay)
    "centred": (lambda x, _: spectrum(x), 8),
    "centred, zeros": (lambda x, _: spectrum(x, pad_mode="constant"), 0),
    "not centred": (lambda x, _: spectrum(x, center=False), 8),
    "normalised": (lambda x, _: spectrum(x, center=False, normalized=True), 8),
    "both sides": (lambda x, _: spectrum(x, center=False, onesided=False), 8),
    "padded by hand": (lambda x, _: by_hand(x, True), 0),
    "mask": (lambda x, m: masked(x, m), 16),
    "mask, normalised": (lambda x, m: masked(x, m, normalized=True), 16),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_spectra_of_a_signal(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    function, delay = SIGNALS[name]
    module = Apply(function, l=nn.GRU(SIZE // 2 + 1, SIZE // 2 + 1, batch_first=True))
    lengths = (9, 15, 16, 17, 24, 31, 32, 40, 57)
    lifted = assert_equal_to_torch(module, torch.randn(1, 64, 1), tmp_path, lengths=lengths)
    assert lifted.spec.steps is not None
    assert (lifted.spec.steps.ticks, lifted.spec.steps.delay) == (HOP, delay)


def test_a_transform_along_time_is_refused() -> None:
    with pytest.raises(NotStreamableError, match="along time"):
        lift(Apply(lambda x, _: torch.fft.rfft(x, dim=1).abs()), torch.randn(1, 20, 4))


def test_a_complex_result_is_refused() -> None:
    with pytest.raises(ExportError, match="complex"):
        lift(Apply(lambda x, _: torch.fft.rfft(x)), torch.randn(1, 20, 4))
