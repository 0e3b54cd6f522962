"""A look inside: what a probe shows against plain loops over the formulas, and what it leaves as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import runnel_export
from runnel import Blocks, Engine
from runnel.errors import ExportError
from runnel.loading import container
from runnel.probe import Probe, beside
from runnel.spec import to_document
from runnel_export.certify.certificate import FLOAT32
from runnel_export.certify.checks import Prover, Trial
from runnel_export.certify.errors import judge
from runnel_export.certify.probe import recomposed
from runnel_export.lift.lift import Lifted, lift
from runnel_export.nn import GRU, CoupledLSTM, LayerNormLSTM, MinGRU, PeepholeLSTM, Recurrent

from .. import insides
from ..stepping import stepped

IN, WIDTH, OUT, TICKS, STREAMS = 4, 6, 3, 13, 3
Array = np.ndarray[Any, np.dtype[Any]]


class Around(nn.Module):
    """A layer, with a Linear before and after it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Linear(IN, IN), layer, nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.layer(self.before(x))[0])
        return y


class Beside(nn.Module):
    """Many layers, each with the same input; lifted together, since each takes half a second."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x)[0] for layer in self.layers.values()], -1)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    tick: insides.Tick
    kind: str
    letters: str
    h: int = WIDTH
    takes: bool = False
    written: bool = False
    layers: int = 1
    atol: float = 2e-5


def torchs(kind: type[nn.RNNBase], layers: int = 1, **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(IN, WIDTH, layers, batch_first=True, **options)


def ours(kind: Callable[..., nn.Module], layers: int = 1, **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(IN, WIDTH, layers, **options)


def relu(a: Array) -> Array:
    return np.maximum(a, 0)


_LSTM, _GRU = "ifogch", "rznh"
CASES = {
    "lstm": Case(torchs(nn.LSTM, 2), insides.lstm, "LSTM", _LSTM, layers=2),
    "projected": Case(
        torchs(nn.LSTM, 2, proj_size=3), insides.lstm, "LSTM", _LSTM, h=3, written=True, layers=2
    ),
    "gru": Case(torchs(nn.GRU), insides.gru("after", "keeps"), "GRU", _GRU),
    "rnn": Case(torchs(nn.RNN), insides.rnn(np.tanh), "RNN", "h"),
    "rnn, relu": Case(torchs(nn.RNN, nonlinearity="relu"), insides.rnn(relu), "RNN", "h"),
    "peepholes": Case(ours(PeepholeLSTM), insides.peephole, "LSTM", _LSTM),
    "full peepholes": Case(
        ours(PeepholeLSTM, form="full"), insides.peephole, "PeepholeLSTM", _LSTM, written=True
    ),
    "coupled": Case(ours(CoupledLSTM, bias=False), insides.coupled, "LSTM", _LSTM),
    # To normalise makes small differences large: up to 4e-5 with onnxruntime 1.24, 2e-5 with 1.32.
    "normalised": Case(
        ours(LayerNormLSTM), insides.layer_normed, "LayerNormLSTM", _LSTM, written=True, atol=1e-4
    ),
    "mingru": Case(ours(MinGRU), insides.min_gru, "MinGRU", "znh"),
    **{
        f"gru, {reset}, {update}": Case(
            ours(GRU, reset=reset, update=update, bias=update == "takes"), insides.gru(reset, update),
            "GRU", _GRU, takes=update == "takes",
        )
        for reset in ("before", "after") for update in ("takes", "keeps")
    },
}  # fmt: skip


def seen(lifted: Lifted) -> Lifted:
    """The probe, as a lifted model of its own."""
    probe = lifted.probe
    assert probe is not None
    return replace(
        lifted, model=probe.model, spec=replace(lifted.spec, outputs=(*lifted.spec.outputs, *probe.outputs))
    )


@cache
def made(written: bool) -> tuple[Beside, Lifted]:
    """Of what is one operator, any number of ticks a call; of what is written out, one."""
    torch.manual_seed(7)
    module = Beside({n: c.make() for n, c in CASES.items() if c.written == written})
    for parameter in module.parameters():
        parameter.data *= 2  # so that gates are far from a half
    return module, lift(module, torch.randn(2, 9, IN), probe=True)


def data(seed: int = 3) -> Array:
    return np.random.default_rng(seed).normal(size=(TICKS, STREAMS, IN)).astype(np.float32)


@cache
def got(written: bool, cuts: tuple[int, ...]) -> dict[str, Array]:
    """What the probe gives, with what the model itself gives as "plain"."""
    lifted = made(written)[1]
    edges = [0, *sorted(set(cuts)), TICKS]
    lengths = [b - a for a, b in pairwise(edges)]
    probe, plain = (stepped(m, {"x": data()}, lengths) for m in (seen(lifted), lifted))
    return {**probe, "plain": plain["y"]}


def expected(name: str) -> list[insides.Shown]:
    """(time, stream, hidden) by letter, layer by layer."""
    case, layer = CASES[name], made(CASES[name].written)[0].layers[name]
    streams = []
    for x in data().astype(np.float64).swapaxes(0, 1):
        found = []
        for k in range(case.layers):
            start = {"h": np.zeros(case.h), "c": np.zeros(WIDTH)}
            found.append(insides.over(case.tick, insides.weights(layer, k), x, start))
            x = found[-1]["h"]
        streams.append(found)
    return [{a: np.stack([s[k][a] for s in streams], 1) for a in streams[0][k]} for k in range(case.layers)]


@pytest.mark.parametrize("name", CASES)
def test_gates_are_those_of_the_formula_however_the_sequence_is_cut(name: str) -> None:
    case = CASES[name]
    probe, wanted = made(case.written)[1].probe, expected(name)
    assert probe is not None
    layers = [p for p in probe.layers if p.name.startswith(f"layers.{name}.")]
    assert [(p.name, p.kind, p.takes) for p in layers] == [
        (f"layers.{name}.{k}", case.kind, case.takes) for k in range(case.layers)
    ]

    def check(cuts: Sequence[int]) -> None:
        shown = got(case.written, tuple(cuts))
        for layer, of_layer in zip(layers, wanted, strict=True):
            assert layer.outputs == {letter: f"{layer.name}.{letter}" for letter in layer.outputs}
            assert list(layer.outputs) == list(case.letters)
            for letter, output in layer.outputs.items():
                values = of_layer[letter]
                atol = case.atol * max(1, np.abs(values).max())
                np.testing.assert_allclose(shown[output], values, rtol=0, atol=atol, err_msg=output)

    check(range(1, TICKS))
    if not case.written:
        run = given(st.lists(st.integers(1, TICKS - 1), max_size=5))(check)
        settings(max_examples=6, deadline=None, derandomize=True)(run)()


@given(cuts=st.lists(st.integers(1, TICKS - 1), max_size=5))
@settings(max_examples=6, deadline=None)
def test_what_the_model_gives_is_what_it_gives_without_the_probe(cuts: list[int]) -> None:
    shown = got(False, tuple(cuts))
    np.testing.assert_array_equal(shown["y"], shown["plain"])


@pytest.mark.soak  # (test_probe_certificate has it for one model, by the bytes of its file)
def test_the_model_itself_is_what_it_is_without() -> None:
    module, lifted = made(written=True)
    plain = lift(module, torch.randn(2, 9, IN))
    assert plain.model.SerializeToString() == lifted.model.SerializeToString()
    assert (plain.probe, plain.notes, plain.spec.outputs) == (None, lifted.notes, lifted.spec.outputs)


def test_the_layers_nodes_are_in_the_probe_as_they_are() -> None:
    lifted = made(False)[1]
    assert lifted.probe is not None
    plain, shown = (
        [(n.op_type, n.input[1:4], n.attribute) for n in m.graph.node if n.op_type in ("LSTM", "GRU", "RNN")]
        for m in (lifted.model, lifted.probe.model)
    )
    assert plain == shown
    assert len(plain) == sum(c.layers * (not c.written and c.kind != "MinGRU") for c in CASES.values())


# States that are given, cells, layers of one's own


class Cells(nn.Module):
    """Cells of two kinds in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(IN, WIDTH), nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h, c, g = (x.new_zeros(x.shape[0], WIDTH) for _ in range(3))
        ys = []
        for t in range(x.shape[1]):
            h, c = self.first(x[:, t], (h, c))
            g = self.second(h, g)
            ys.append(g)
        return torch.stack(ys, 1)


def test_cells_in_a_loop() -> None:
    torch.manual_seed(1)
    module = Cells()
    lifted = lift(module, torch.randn(2, 9, IN), probe=True)
    assert lifted.probe is not None
    assert [p.name for p in lifted.probe.layers] == ["first.0", "second.0"]
    assert lifted.probe.layers[0].states == {"h": "first.h", "c": "first.c"}
    x = data()
    shown = stepped(seen(lifted), {"x": x}, [1, 4, TICKS - 5])
    for s in range(STREAMS):
        zero = {"h": np.zeros(WIDTH), "c": np.zeros(WIDTH)}
        first = insides.over(insides.lstm, insides.weights(module.first, None), x[:, s].astype(float), zero)
        gru = insides.gru("after", "keeps")
        second = insides.over(gru, insides.weights(module.second, None), first["h"], zero)
        for name, wanted in (("first.0", first), ("second.0", second)):
            for letter, values in wanted.items():
                np.testing.assert_allclose(shown[f"{name}.{letter}"][:, s], values, rtol=0, atol=3e-6)


class Step(nn.Module):
    """One tick of two cells, the states given and given back."""

    def __init__(self, faded: float = 1.0) -> None:
        super().__init__()
        self.faded = faded
        self.first, self.second = nn.LSTMCell(IN, WIDTH), nn.RNNCell(WIDTH, WIDTH)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, k: Tensor) -> Any:
        h, c = self.first(x, (h, c * self.faded if self.faded != 1 else c))
        k = self.second(h, k)
        return {"y": k, "h": h, "c": c, "k": k}


@pytest.mark.parametrize("faded", [1.0, 0.5])
def test_a_module_that_is_one_step_with_the_states_it_is_given(faded: float) -> None:
    """Also one that changes a state before it is used: the layer then begins with that."""
    torch.manual_seed(1)
    module, row = Step(faded), torch.randn(WIDTH)
    state = {name: (row * k).repeat(2, 1) for k, name in enumerate("hck", 1)}
    lifted = lift(module, torch.randn(2, IN), time_axis=None, state=state, probe=True)
    assert lifted.probe is not None
    first, second = lifted.probe.layers
    assert (first.name, second.name) == ("first.0", "second.0")
    assert first.states == ({"h": "h", "c": "c"} if faded == 1 else {"h": "h"})
    assert {t.shape for t in lifted.probe.outputs} == {("slot", WIDTH)}
    x = data()
    shown = stepped(seen(lifted), {"x": x}, [1] * TICKS)

    def tick(w: insides.Weights, row: Array, last: insides.Shown) -> insides.Shown:
        return insides.lstm(w, row, {**last, "c": last["c"] * faded})

    start = {"h": row.double().numpy(), "c": 2 * row.double().numpy()}
    for s in range(STREAMS):
        values = insides.over(tick, insides.weights(module.first, None), x[:, s].astype(float), start)
        for letter, wanted in values.items():
            np.testing.assert_allclose(shown[first.outputs[letter]][:, s], wanted, rtol=0, atol=3e-6)


class Own(Recurrent):
    """A recurrence of one's own: an update gate, shown or not."""

    def __init__(self, shows: str, name: str = "h") -> None:
        super().__init__({name: WIDTH, "slow": 2})
        self.shows = shows
        self.gate, self.new = nn.Linear(IN + WIDTH, WIDTH), nn.Linear(IN, WIDTH)
        self.level = nn.Linear(WIDTH, 2)

    def tick(self, layer: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, slow = state
        z = torch.sigmoid(self.gate(torch.cat([x, h], -1)))
        if self.shows == "z":
            z = self.show("z", z)
        elif self.shows == "of another shape":
            z = z * self.show("r", z.unsqueeze(1)).squeeze(1)
        h = (1 - z) * h + z * torch.tanh(self.new(x))
        slow = 0.9 * slow + 0.1 * self.level(h)
        return h + slow.sum(-1, keepdim=True), (h, slow)


@pytest.mark.parametrize(
    ("shows", "name"), [("z", "memory"), pytest.param("nothing", "h", marks=pytest.mark.soak)]
)
def test_a_layer_of_ones_own_shows_its_state_and_what_it_names(shows: str, name: str) -> None:
    torch.manual_seed(1)
    module = Around(Own(shows, name))
    lifted = lift(module, torch.randn(2, 9, IN), probe=True)
    assert lifted.probe is not None
    (layer,) = lifted.probe.layers
    assert (layer.kind, layer.name) == ("Own", "layer.0")
    assert set(layer.outputs) == ({"z", "h"} if shows == "z" else {"h"})
    assert layer.states == {"h": f"layer.{name}.0"}
    x = data()
    shown, plain = (stepped(m, {"x": x}, [1] * TICKS) for m in (seen(lifted), lifted))
    np.testing.assert_array_equal(shown["y"], plain["y"])
    own = module.layer
    assert isinstance(own, Own)
    h = torch.zeros(STREAMS, WIDTH)
    with torch.no_grad():
        for t, row in enumerate(module.before(torch.from_numpy(x))):
            z = torch.sigmoid(own.gate(torch.cat([row, h], -1)))
            h = (1 - z) * h + z * torch.tanh(own.new(row))
            np.testing.assert_allclose(shown["layer.0.h"][t], h, rtol=0, atol=3e-6)
            if shows == "z":
                np.testing.assert_allclose(shown["layer.0.z"][t], z, rtol=0, atol=3e-6)


class Pair(Recurrent):
    """Two states, of which the output needs the first only."""

    def __init__(self) -> None:
        super().__init__({"h": WIDTH, "c": WIDTH})
        self.mix = nn.Linear(IN + WIDTH, WIDTH)

    def tick(self, layer: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h, c = state
        h = self.show("n", torch.tanh(self.mix(torch.cat([x, h], -1))))
        return h, (h, self.show("g", c + h))


def test_what_is_made_of_a_state_that_the_model_has_not_is_not_shown() -> None:
    lifted = lift(Around(Pair()), torch.randn(2, 9, IN), probe=True)
    assert [s.input for s in lifted.spec.states] == ["layer.h.0"]
    assert lifted.probe is not None
    (layer,) = lifted.probe.layers
    assert set(layer.outputs) == {"n", "h"}
    assert layer.states == {"h": "layer.h.0"}


def test_what_cannot_be_shown_is_refused_in_a_probe_and_only_there() -> None:
    module = Around(Own("of another shape"))
    lift(module, torch.randn(2, 9, IN))
    with pytest.raises(ExportError, match=r"layer 'layer' \(Own\).*show\('r', …\).*not \(batch, width\)"):
        lift(module, torch.randn(2, 9, IN), probe=True)
    with pytest.raises(ValueError, match=r"show\('gate', …\): one of i, f"):
        module.layer.show("gate", torch.zeros(1))  # type: ignore[operator]


# Which layers are shown


class Parts(nn.Module):
    """One layer called twice, one that is of no use, and one within a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.GRU(IN, IN, batch_first=True)
        self.unused = nn.GRU(IN, IN, batch_first=True)
        self.within = nn.GRU(2, IN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        frames = x.reshape(-1, IN // 2, 2)
        inner = self.within(frames)[0][:, -1].reshape(x.shape)
        return self.twice(self.twice(x)[0])[0] + inner


def test_layers_that_play_a_part_over_time_are_shown_each_by_a_name_of_its_own() -> None:
    lifted = lift(Parts(), torch.randn(2, 9, IN), probe=True)
    assert lifted.probe is not None
    assert [p.name for p in lifted.probe.layers] == ["twice.0", "twice.0_2"]
    onnx.checker.check_model(lifted.probe.model, full_check=True)


def test_a_layer_alone_is_called_what_it_is() -> None:
    lifted = lift(
        nn.LSTM(IN, WIDTH, batch_first=True), torch.randn(2, 9, IN), output_names=["y", "h", "c"], probe=True
    )
    assert lifted.probe is not None
    assert [p.name for p in lifted.probe.layers] == ["lstm.0"]


# Blocks


class Bidirectional(nn.Module):
    """Both directions, one kind beginning elsewhere than at zero; and beside them layers of one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(IN, WIDTH, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(IN, WIDTH, batch_first=True, bidirectional=True)
        self.start = nn.Parameter(torch.randn(2, 1, WIDTH))
        self.peepholes, self.min = PeepholeLSTM(IN, WIDTH), MinGRU(IN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(2, x.shape[0], WIDTH).contiguous()
        made = [self.lstm(x), self.gru(x, start), self.peepholes(x), self.min(x)]
        return torch.cat([y for y, _ in made], -1)


def in_windows(
    module: nn.RNNBase, tick: insides.Tick, x: Array, starts: Array, blocks: Blocks
) -> dict[str, Array]:
    """By "layer.letter": a block at a time, the backward passes anew from each window's end."""
    rows: dict[str, list[Array]] = {}
    states = [{"h": starts[2 * k], "c": np.zeros(WIDTH)} for k in range(module.num_layers)]
    for begin in range(0, len(x), blocks.ticks):
        window = x[begin : begin + blocks.window]
        kept = min(blocks.ticks, len(window))
        for k in range(module.num_layers):
            forward = insides.over(tick, insides.weights(module, k), window, states[k])
            reverse = insides.weights(module, f"{k}_reverse")
            end = {"h": starts[2 * k + 1], "c": np.zeros(WIDTH)}
            backward = {a: v[::-1] for a, v in insides.over(tick, reverse, window[::-1], end).items()}
            states[k] = {letter: values[kept - 1] for letter, values in forward.items()}
            for name, seen in ((f"{k}", forward), (f"{k}.backward", backward)):
                for letter, values in seen.items():
                    rows.setdefault(f"{name}.{letter}", []).append(values[:kept])
            window = np.concatenate([forward["h"], backward["h"]], 1)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def all_in_windows(module: Bidirectional, x: Array, blocks: Blocks) -> dict[str, Array]:
    zeros, starts = np.zeros((4, WIDTH)), module.start.detach().double().numpy()[:, 0]
    found = {}
    for path, tick, start in (("lstm", insides.lstm, zeros), ("gru", insides.gru("after", "keeps"), starts)):
        layer = module.get_submodule(path)
        assert isinstance(layer, nn.RNNBase)
        found |= {f"{path}.{n}": v for n, v in in_windows(layer, tick, x, start, blocks).items()}
    for path, tick in (("peepholes", insides.peephole), ("min", insides.min_gru)):
        w, start = insides.weights(module.get_submodule(path), 0), {"h": zeros[0], "c": zeros[0]}
        found |= {f"{path}.0.{letter}": v for letter, v in insides.over(tick, w, x, start).items()}
    return found


@pytest.mark.parametrize("blocks", [Blocks(3, 4), pytest.param(Blocks(1, 0), marks=pytest.mark.soak)])
def test_both_directions_of_bidirectional_layers(blocks: Blocks, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module, rng = Bidirectional(), np.random.default_rng(4)
    lifted = lift(module, torch.randn(1, 9, IN), blocks=blocks, probe=True)
    assert lifted.probe is not None
    behind = [layer.name for layer in lifted.probe.layers if layer.backward]
    assert behind == ["lstm.0.backward", "lstm.1.backward", "gru.0.backward"]
    spec = replace(seen(lifted).spec, probe=Probe("sha256:0", lifted.probe.layers))
    backs = [n for n in lifted.probe.model.graph.node if n.op_type == "Where"]
    for fault in (False, True):
        if fault:  # each tick is taken for the one that a backward pass begins with
            backs[-1].input[0], backs[-1].input[1] = backs[-1].input[0], backs[-1].input[2]
        path = tmp_path / "m.onnx"
        path.write_bytes(container.seal(lifted.probe.model.SerializeToString(), to_document(spec)))
        with Engine.load(path, trust=True) as engine:
            chunks = [{"x": rng.normal(size=(n, IN)).astype(np.float32)} for n in (13, 5)]
            (check,) = judge([recomposed(Prover(engine, rng), [Trial(c, {}) for c in chunks])], FLOAT32)
            if fault:
                assert check.passed == (blocks.ticks == 1), check.row()  # of one tick, nothing is before it
                continue
            assert check.passed, check.row()
            wanted, stream = all_in_windows(module, data()[:, 0].astype(float), blocks), engine.open()
            assert set(spec.probe.outputs if spec.probe else ()) == wanted.keys()
            parts = [*(stream.feed(p) for p in np.split(data()[:, 0], [1, 6])), stream.flush()]
            for name, values in wanted.items():
                got = np.concatenate([p[name] for p in parts])
                np.testing.assert_allclose(got, values, rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.soak
def test_a_bidirectional_models_probe_is_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG_IF_SLOW", 50)
    path = tmp_path / "m.onnx"
    runnel_export.export(Bidirectional(), torch.randn(1, 9, IN), path, probe="gates", blocks=Blocks(3, 4))
    assert runnel_export.verify(beside(path)).passed
