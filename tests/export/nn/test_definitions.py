"""The layers that torch lacks: their numbers, their gradients, and torch's own where the two coincide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import runnel_export.nn
from runnel_export.nn import GRU, CoupledLSTM, LayerNormLSTM, PeepholeLSTM, Recurrent

from . import definitions
from .definitions import Cell, run

FEATURES, HIDDEN = 3, 5

# name -> (a layer of so many layers, its formula)
CELLS: dict[str, tuple[Callable[..., Any], Cell]] = {
    "peephole": (PeepholeLSTM, definitions.peephole),
    "peephole, full": (lambda *s, **o: PeepholeLSTM(*s, **o, form="full"), definitions.full_peephole),
    "coupled": (CoupledLSTM, definitions.coupled),
    "layer norm": (LayerNormLSTM, definitions.layer_normed),
    **{
        f"gru, reset {r}, update {u}": (
            lambda *s, r=r, u=u, **o: GRU(*s, **o, reset=r, update=u),
            definitions.gru(r, u),
        )
        for r in ("before", "after")
        for u in ("takes", "keeps")
    },
}


def made(name: str, layers: int = 2, **options: Any) -> Any:
    """In float64, every parameter random: zeros and ones at the start would hide what they do."""
    torch.manual_seed(3)
    module = CELLS[name][0](FEATURES, HIDDEN, layers, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.6)
    return module


def random(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def states(module: Recurrent, batch: int) -> tuple[Tensor, ...]:
    """Distinct, and none of them zero."""
    return tuple(
        random(module.num_layers, batch, width, seed=9 + k) for k, width in enumerate(module.widths.values())
    )


def given(module: Recurrent, parts: tuple[Tensor, ...]) -> Any:
    return parts if len(parts) > 1 else parts[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in CELLS] + [(n, {"bias": False}) for n in CELLS if n != "layer norm"],
)
def test_a_layer_computes_its_formula(name: str, options: dict[str, Any]) -> None:
    module = made(name, **options)
    x, start = random(2, 7, FEATURES), states(module, 2)
    with torch.no_grad():
        y, end = module(x, given(module, start))
    end = end if isinstance(end, tuple) else (end,)
    held = {n: p.detach().numpy() for n, p in module.named_parameters()}
    weights = [{n.removesuffix(f"_l{k}"): p for n, p in held.items() if n.endswith(f"_l{k}")} for k in (0, 1)]
    for row in range(2):
        begun = [tuple(s[k, row].numpy() for s in start) for k in range(2)]
        expected, last = run(CELLS[name][1], weights, x[row].numpy(), begun)
        np.testing.assert_allclose(y[row].numpy(), expected, rtol=0, atol=1e-12)
        for k in range(2):
            for got, wanted in zip(end, last[k], strict=True):
                np.testing.assert_allclose(got[k, row].numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_its_gradients_are_those_of_its_numbers(name: str) -> None:
    module = made(name, layers=1)
    start = tuple(s.requires_grad_() for s in states(module, 1))
    names = [n for n, _ in module.named_parameters()]

    def outputs(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        parts, weights = rest[: len(start)], rest[len(start) :]
        y, end = torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), (x, given(module, parts))
        )
        return (y, *(end if isinstance(end, tuple) else (end,)))

    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    x = random(1, 3, FEATURES).requires_grad_()
    assert torch.autograd.gradcheck(outputs, (x, *start, *weights), fast_mode=True)


@pytest.mark.parametrize("name", CELLS)
def test_no_state_is_zeros_and_a_state_goes_on_where_it_was(name: str) -> None:
    module = made(name)
    x = random(3, 8, FEATURES)
    with torch.no_grad():
        whole, end = module(x)
        zeros = given(module, tuple(torch.zeros_like(s) for s in states(module, 3)))
        torch.testing.assert_close(module(x, zeros)[0], whole, rtol=0, atol=0)
        first, state = module(x[:, :3])
        second, last = module(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, end)


# Where torch has it too


@pytest.mark.parametrize("form", ["diagonal", "full"])
def test_without_its_peepholes_it_is_torchs_lstm(form: Any) -> None:
    torch.manual_seed(0)
    theirs = nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True).double()
    ours = PeepholeLSTM(FEATURES, HIDDEN, 2, form=form).double()
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == ["weight_ch_l0", "weight_ch_l1"]
    assert missing.unexpected_keys == []
    x, start = random(2, 6, FEATURES), states(ours, 2)
    with torch.no_grad():
        assert not torch.allclose(ours(x, start)[0], theirs(x, start)[0])
        for k in range(2):
            ours.of(k, "weight_ch").zero_()
        (y, end), (expected, last) = ours(x, start), theirs(x, start)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(end, last)


def test_with_a_diagonal_matrix_the_full_form_is_the_diagonal_one() -> None:
    full, diagonal = made("peephole, full", 1), made("peephole", 1)
    full.load_state_dict(diagonal.state_dict() | {
        "weight_ch_l0": torch.cat([torch.diag(p) for p in diagonal.weight_ch_l0])
    })  # fmt: skip
    x, start = random(2, 6, FEATURES), states(full, 2)
    torch.testing.assert_close(full(x, start), diagonal(x, start))


def test_coupled_gates_are_an_lstm_whose_input_gate_has_the_forget_gates_weights_negated() -> None:
    ours = made("coupled")
    theirs = nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True).double()
    theirs.load_state_dict({n: torch.cat([-w[:HIDDEN], w]) for n, w in ours.state_dict().items()})
    x, start = random(2, 6, FEATURES), states(ours, 2)
    torch.testing.assert_close(ours(x, start), theirs(x, start))


def test_reset_after_and_update_keeps_is_torchs_gru() -> None:
    ours = made("gru, reset after, update keeps")
    theirs = nn.GRU(FEATURES, HIDDEN, 2, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x, (start,) = random(2, 6, FEATURES), states(ours, 2)
    torch.testing.assert_close(ours(x, start), theirs(x, start))


def test_where_the_reset_gate_is_applied_matters_and_what_the_update_gate_is_called_does_not() -> None:
    names = [f"gru, reset {r}, update {u}" for r in ("before", "after") for u in ("takes", "keeps")]
    takes, keeps, after, _ = (made(n) for n in names)  # all of the same weights
    x = random(2, 6, FEATURES)
    assert not torch.allclose(takes(x)[0], after(x)[0])
    assert not torch.allclose(takes(x)[0], keeps(x)[0])
    with torch.no_grad():
        for parameter in keeps.parameters():
            parameter[HIDDEN : 2 * HIDDEN].neg_()
    torch.testing.assert_close(takes(x), keeps(x))


# How they begin, and what they refuse


@pytest.mark.parametrize("name", CELLS)
def test_its_parameters_begin_as_torchs_do(name: str) -> None:
    module = CELLS[name][0](FEATURES, HIDDEN, 2)
    for n, p in module.named_parameters():
        if n.startswith(("gain", "shift")):
            assert bool((p == float(n.startswith("gain"))).all())
        else:
            assert 0.2 / HIDDEN**0.5 < p.abs().max() <= 1 / HIDDEN**0.5
    assert f"{FEATURES}, {HIDDEN}, num_layers=2" in repr(module)
    rows = {"coupled": 3, "layer norm": 4, "peephole": 4, "peephole, full": 4}.get(name, 3)
    assert module.weight_ih_l0.shape == (rows * HIDDEN, FEATURES)
    assert module.weight_ih_l1.shape == module.weight_hh_l0.shape == (rows * HIDDEN, HIDDEN)


def test_what_does_not_fit_is_said() -> None:
    layer = GRU(FEATURES, HIDDEN)
    with pytest.raises(ValueError, match=r"takes \(batch, time, features\), not \(7, 3\)"):
        layer(torch.zeros(7, FEATURES))
    with pytest.raises(ValueError, match=r"state has shapes \[\(1, 2, 4\)\], expected {'h': \(1, 2, 5\)}"):
        layer(torch.zeros(2, 7, FEATURES), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="'before' or 'after'"):
        GRU(FEATURES, HIDDEN, reset="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'takes' or 'keeps'"):
        GRU(FEATURES, HIDDEN, update="")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'diagonal' or 'full'"):
        PeepholeLSTM(FEATURES, HIDDEN, form="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_layers=0"):
        CoupledLSTM(FEATURES, HIDDEN, 0)
    with pytest.raises(AttributeError, match="no attribute 'LSTM'"):
        getattr(runnel_export.nn, "LSTM")  # noqa: B009 - a name that mypy knows is not there
