"""minGRU and the scan under it, against plain loops written from the formulas."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel_export.lift.lift import lift
from runnel_export.nn import MinGRU, linear_scan
from tests.export.stepping import Apply, assert_streams, op_types


def plain(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    rows = []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        rows.append(h)
    return torch.stack(rows, 1)


@settings(max_examples=25, deadline=None)
@given(ticks=st.integers(1, 40), batch=st.integers(1, 3), width=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_scan_and_its_gradient_are_those_of_a_loop(ticks: int, batch: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    a = torch.rand(batch, ticks, width, dtype=torch.float64, requires_grad=True)
    b = torch.randn(batch, ticks, width, dtype=torch.float64, requires_grad=True)
    h = torch.randn(batch, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(batch, ticks, width, dtype=torch.float64)
    found, expected = linear_scan(a, b, h), plain(a, b, h)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad((found * weight).sum(), (a, b, h))
    theirs = torch.autograd.grad((expected * weight).sum(), (a, b, h))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


def test_gradients_against_differences() -> None:
    torch.manual_seed(0)
    given = [torch.rand(2, 5, 3), torch.randn(2, 5, 3), torch.randn(2, 3)]
    assert torch.autograd.gradcheck(linear_scan, [x.double().requires_grad_() for x in given])
    module = MinGRU(3, 2, num_layers=2).double()
    x, h = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 3), (2, 2, 2)))
    assert torch.autograd.gradcheck(lambda *args: module(*args)[0], (x, h))
    names = [n for n, _ in module.named_parameters()]

    def of_weights(*weights: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]
        return y

    assert torch.autograd.gradcheck(of_weights, [p.detach().requires_grad_() for p in module.parameters()])


def test_a_zero_among_the_factors_forgets() -> None:
    """Where a is 0 nothing of the past is left: no division by what was multiplied, as other scans have."""
    a = torch.ones(1, 9, 1).index_fill(1, torch.tensor([4]), 0.0).requires_grad_()
    h = linear_scan(a, torch.ones(1, 9, 1), torch.full((1, 1), 7.0))
    assert h[0, :, 0].tolist() == [8, 9, 10, 11, 1, 2, 3, 4, 5]
    (of_a,) = torch.autograd.grad(h[:, -1].sum(), a)
    assert of_a[0, :, 0].tolist() == [0, 0, 0, 0, 11, 1, 2, 3, 4]


@pytest.mark.parametrize("bias", [True, False])
def test_mingru_is_its_formula(bias: bool) -> None:
    torch.manual_seed(1)
    module = MinGRU(4, 3, num_layers=2, bias=bias).double()
    x, h = torch.randn(2, 7, 4, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    y, last = module(x, h)
    rows = x
    for i in range(2):
        w, state, made = getattr(module, f"weight_l{i}"), h[i], []
        b = getattr(module, f"bias_l{i}") if bias else torch.zeros(6, dtype=torch.float64)
        for t in range(7):
            z = torch.sigmoid(rows[:, t] @ w[:3].T + b[:3])
            n = rows[:, t] @ w[3:].T + b[3:]
            state = (1 - z) * state + z * n
            made.append(state)
        rows = torch.stack(made, 1)
        torch.testing.assert_close(last[i], state)
    torch.testing.assert_close(y, rows)
    first, between = module(x[:, :3], h)  # a sequence may be given in parts
    torch.testing.assert_close(torch.cat([first, module(x[:, 3:], between)[0]], 1), y)


def test_training_does_not_wait_for_every_tick() -> None:
    x = torch.randn(8, 512, 32)

    def seconds(module: nn.Module) -> float:
        best = float("inf")
        for _ in range(4):
            began = time.process_time()  # not the clock's: others use the machine too
            module(x)[0].square().mean().backward()
            best = min(best, time.process_time() - began)
        return best

    assert seconds(MinGRU(32, 32)) < seconds(nn.GRU(32, 32, batch_first=True))  # (a sixth, as seen)


def test_as_a_stream_it_is_one_scan_a_layer_and_takes_any_number_of_ticks() -> None:
    lifted = assert_streams(Apply(lambda x, m: m.r(x)[0], r=MinGRU(4, 5, 2)), torch.randn(2, 6, 4))
    assert op_types(lifted).count("Scan") == 2
    assert [(s.input, s.shape) for s in lifted.spec.states] == [
        ("r.h.0", (1, "slot", 5)), ("r.h.1", (1, "slot", 5)),
    ]  # fmt: skip
    assert lifted.spec.any_ticks
    many_to_one = Apply(lambda x, m: m.f(m.r(x)[1][-1]), r=MinGRU(4, 5, 2), f=nn.Linear(5, 2))
    assert_streams(many_to_one, torch.randn(2, 6, 4), last=[0])


class Given(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r = MinGRU(4, 5, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.r(x, h)
        return y, h


def test_its_state_may_be_an_argument() -> None:
    lifted = lift(Given(), torch.randn(2, 6, 4), state={"h": torch.zeros(2, 2, 5)})
    assert [s.input for s in lifted.spec.states] == ["h.0", "h.1"]
    assert lifted.spec.any_ticks


def test_what_is_refused() -> None:
    for bad in (lambda: MinGRU(0, 3), lambda: MinGRU(3, 3)(torch.zeros(4, 3))):
        with pytest.raises(ValueError, match="MinGRU"):
            bad()
    with pytest.raises(ValueError, match="linear_scan takes"):
        linear_scan(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3))
    fixed = Apply(lambda x, m: linear_scan(torch.full_like(x, 0.9), x, x.new_zeros(len(x), 4)))
    with pytest.raises(ExportError, match="does not depend on the input"):
        lift(fixed, torch.randn(2, 6, 4))
