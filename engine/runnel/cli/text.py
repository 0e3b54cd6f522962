"""A model's description and certificate, as aligned text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..probe import ProbeLayer
from ..shown import one_line
from ..spec import ModelSpec, ModelState, ModelTensor, to_document

Row = tuple[str, str]


def aligned(rows: Iterable[Row]) -> str:
    """Two columns; a repeated or empty first column is left blank."""
    rows = list(rows)
    width = max((len(key) for key, _ in rows), default=0)
    lines, before = [], ""
    for key, value in rows:
        lines.append(f"{'' if key == before else key:<{width}}  {one_line(value)}".rstrip())
        before = key or before
    return "\n".join(lines)


def model_rows(spec: ModelSpec) -> list[Row]:
    """The model's signal, states and cost."""
    rows: list[Row] = []
    for kind, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        rows += [(kind, line) for line in _columns([_tensor(t) for t in tensors])]
    if spec.probe:
        rows += [("probe of", spec.probe.of), *probe_rows(spec)]
    rows += [("states", line) for line in _columns([_state(s) for s in spec.states])] or [("states", "none")]
    rows += [("constants", f"{name} = {value.tolist()}") for name, value in spec.constants.items()]
    rows.append(("ticks", "any number in one call" if spec.any_ticks else "one a call"))
    if spec.framing:
        framing = spec.framing
        rows.append(("framing", f"window {framing.window}, hop {framing.hop}, context {framing.context}"))
    if spec.steps:
        steps = spec.steps
        rows.append(("steps", f"of {steps.ticks} ticks, {steps.rows} rows each, delay {steps.delay} ticks"))
    if spec.blocks:
        rows.append(("blocks", f"of {spec.blocks.ticks} ticks, lookahead {spec.blocks.lookahead} ticks"))
    if spec.rate:
        rows.append(("rate", f"{spec.rate:g} Hz"))
    if spec.graph:
        rows += graph_rows(spec.graph)
    rows.append(("state size", f"{count(spec.state_bytes)} bytes a stream"))
    return rows


def probe_rows(spec: ModelSpec) -> list[Row]:
    """The layers that a probe shows, with their outputs."""
    layers = spec.probe.layers if spec.probe else ()
    return [("shows", line) for line in _columns([_layer(layer) for layer in layers])]


def graph_rows(graph: Mapping[str, Any]) -> list[Row]:
    """The exporter's counts of the graph."""
    flops = graph.get("flops")
    return [
        ("ops", counted(graph["ops"])),
        ("parameters", count(graph["parameters"])),
        ("graph size", f"{count(graph['bytes'])} bytes, opset {graph['opset']}, IR {graph['ir']}"),
        ("FLOPs", f"{count(flops)} a step and stream" if flops is not None else "not known for this graph"),
    ]


def certificate_rows(certificate: Mapping[str, Any] | None, vouched: bool) -> list[Row]:
    """The proofs, and whether this is the certified file."""
    if certificate is None:
        return [("certificate", "none")]
    errors = certificate.get("errors", {})
    tools = ", ".join(f"{name} {version}" for name, version in certificate.get("versions", {}).items())
    rows = [
        ("certificate", f"{len(certificate.get('checks', ()))} checks passed, {certificate.get('date')}"),
        ("certificate", f"with {tools}"),
        ("certificate", f"hash {'verified' if vouched else 'DIFFERS: this is not the certified file'}"),
        ("reference", f"the module in {certificate.get('reference')}"),
    ]
    rows += [("largest error", f"{name}: {_error(e, certificate)}") for name, e in errors.items()]
    if certificate.get("quantize"):
        rows += quantize_rows(certificate["quantize"])
    return rows + [("notes", note) for note in certificate.get("notes", ())]


def quantize_rows(account: Mapping[str, Any]) -> list[Row]:
    """Which weights became int8, and which did not."""
    kept = account["float32"]
    named = ", ".join(f"{w['node'] or w['weight']} ({w['op']}, {count(w['bytes'])} bytes)" for w in kept)
    return [
        ("int8", f"{len(account['int8'])} weights; {count(account['before'])} bytes before, "
                 f"{count(account['after'])} after"),
        ("float32", f"biases, states{' and these weights: ' + named if named else '; no weight'}"),
    ]  # fmt: skip


def document(spec: ModelSpec) -> dict[str, Any]:
    """The model's description for programs, without the numbers that only `verify` needs."""
    described = to_document(spec)
    certificate = described.get("certificate")
    if certificate:
        described["certificate"] = {k: v for k, v in certificate.items() if k != "vectors"}
    described["state_bytes"] = spec.state_bytes
    return described


def count(value: int) -> str:
    return f"{value:,}"


def counted(ops: Mapping[str, int]) -> str:
    return ", ".join(f"{op} {n}" for op, n in sorted(ops.items(), key=lambda item: (-item[1], item[0])))


def _tensor(tensor: ModelTensor) -> tuple[str, ...]:
    return (tensor.name, tensor.dtype, _shape(tensor.shape))


def _layer(layer: ProbeLayer) -> tuple[str, ...]:
    """The layer's letters, or its outputs if they have other names."""
    usual = all(name == f"{layer.name}.{letter}" for letter, name in layer.outputs.items())
    named = layer.outputs if usual else [f"{letter} = {name}" for letter, name in layer.outputs.items()]
    return (layer.name, layer.kind, ", ".join(named) + " (z: how much is taken)" * layer.takes)


def _state(state: ModelState) -> tuple[str, ...]:
    zero = "from zeros" if not state.initial.any() else "from its own initial values"
    return (
        state.input,
        state.dtype,
        _shape(state.shape),
        f"-> {state.output}",
        f"{count(state.row_bytes)} bytes",
        zero,
    )


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _error(error: Mapping[str, Any], certificate: Mapping[str, Any]) -> str:
    if error["mismatches"] or not error["peak"]:
        return f"{error['mismatches']} of {error['elements']} values differ"
    allowed = certificate.get("tolerance", 0.0)
    return f"{error['relative']:.1e} of each element's peak ({error['absolute']:.1e}); allowed {allowed:g}"
