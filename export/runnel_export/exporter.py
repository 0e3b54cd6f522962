"""Export a module as a certified model file: lift it, prove the step model, then write the file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from runnel import Blocks, Engine, Framing
from runnel.errors import CertificateError, ExportError
from runnel.loading import container
from runnel.probe import Probe
from runnel.spec import MAX_STATES, Array, ModelSpec, check, to_document

from . import progress as stages
from .arguments import Example, Options, Request, batch_size, check_arguments
from .call import Call
from .certify import vectors
from .certify.certificate import FLOAT32, INT8, Certificate, Check, Error, Limits, totals, versions
from .certify.checks import Prover, prove
from .certify.errors import Tally, informed, judge
from .certify.probe import recomposed, same
from .certify.reference import Original
from .certify.reference_runs import Trials, make_trials
from .certify.samples import Source, source, weak_spots
from .certify.verify import verify
from .describe import describe
from .lift.batch_axis import told_apart
from .lift.lift import Lifted, lift
from .lift.probe import Probed
from .quantize import quantize_int8

# onnxruntime takes one scale for the activations of a whole call.
_SHARED_SCALE = (
    "int8: what a stream gives depends a little on the ticks and on the streams that it is run with "
    "(the check 'isolated' says how much)"
)
_SHORT = 40  # characters of a file's name in its scratch name, which must not become too long
_LENGTH = (
    " On short sequences the two are equal: does what forward gives at a tick depend on the sequence's "
    "length, on how long ago it began (x[:, -64:], x[:, :512]), or does its state begin anew now and then?"
)
_NOTHING_INSIDE = (
    "probe='gates': there is nothing to show: no output depends on a recurrent layer over the stream's time "
    "(nn.RNN, LSTM or GRU and their cells, and the layers of runnel_export.nn). A recurrence of your own is "
    "shown where it is written as a runnel_export.nn.Recurrent"
)
_OTHERWISE_IN_TRAINING = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


def export(
    module: nn.Module,
    example: Example,
    path: str | Path,
    *,
    time_axis: int | None = 1,
    batch_axis: int = 0,
    state: Mapping[str, Any] | None = None,
    framing: Framing | None = None,
    blocks: Blocks | None = None,
    rate: float | None = None,
    quantize: str | None = None,
    probe: str | None = None,
    tolerance: float | None = None,
    output_names: Sequence[str] | None = None,
    data: Example | None = None,
    progress: Callable[[str], None] | bool | None = None,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Certificate:
    """Write `module` as a step model whose states are explicit, and prove that it computes the same.

    Args:
        module: any `nn.Module`; it is exported in eval mode and left as it was.
        example: (batch, time, ...) for forward's first parameter, or a dict by forward's parameter
            names. The data of the proof is drawn like it: its mean and spread, its range of integers.
        path: the file to write. An existing file is replaced only after all checks have passed.
        time_axis: time axis of the inputs. None for a module that is already one step (a cell). If it
            is 0, the batch axis is 1.
        batch_axis: batch axis of the inputs.
        state: for ``forward(x, h, c) -> (y, h, c)``: the initial states by parameter name, as forward
            takes them (tensors, or tuples of them). If forward returns a tuple, its last tensors are the
            next states, in the order of forward's parameters; the order of this dict does not matter. If
            forward returns a dict, the next states are found by name. Return a dict if two states have
            the same shape: the proof pairs the states in the same way, so it cannot notice that h and c
            are swapped.
        framing: for a module that sees windows, (batch, time, window, ...): how the stream's samples are
            cut into windows.
        blocks: for bidirectional layers: the ticks that are run together (a block), and the later ticks
            that the block can see. The outputs of a block come when those later ticks have arrived, at
            most ``blocks.latency`` ticks late. For a sequence of up to ``blocks.window`` ticks, the
            outputs are exactly the module's. In a longer sequence the backward layers see fewer ticks;
            the check "lookahead" measures the difference.
        rate: samples or ticks per second (Hz) on the stream's time axis.
        quantize: ``"int8"`` for 8-bit weights, if the operator allows them.
        probe: ``"gates"`` to write a second model beside `path`: ``model.probe.onnx`` for ``model.onnx``.
            The probe has the same inputs and outputs. Its further outputs are the gates, the cell state
            and the hidden state of each recurrent layer at each tick (see `runnel.probe`). It has its own
            certificate. The file at `path` is the same with and without a probe.
        tolerance: the largest error allowed, relative to the peak of each element of the output. The
            default is 1e-4, or 0.1 for int8.
        output_names: names for the outputs, in order.
        data: real data in the example's layout, checked in addition to random data. With
            ``time_axis=None`` it has a time axis after the batch axis.
        progress: by default, one line with percent on a terminal or in a notebook, and nothing elsewhere.
            False for nothing. A function is called with each line of text instead.
        seed: seed of the random data.
        notes: further notes for the readers of the certificate.

    Returns the certificate, which is also in the file.

    Raises NotStreamableError if the module needs the whole sequence or absolute time. Raises ExportError
    if the module cannot be lifted, if the step model differs by more than the tolerance, or if the
    arguments do not fit. After an error no new file exists, and an existing file at `path` is unchanged.
    """
    options = Options(
        time_axis=time_axis,
        batch_axis=batch_axis,
        state=state,
        framing=framing,
        blocks=blocks,
        rate=rate,
        quantize=quantize,
        probe=probe,
        tolerance=tolerance,
        output_names=output_names,
        data=data,
        seed=seed,
    )
    request = _with_batch_axes(module, check_arguments(module, example, Path(path), options))
    with stages.shown(progress, stages.stages(quantize is not None, probe is not None)) as say:
        lifted, spec = _lift(module, request, say)
        say(stages.RUNNING)
        subject = _subject(module, lifted, spec, request, say)
        return _prove_and_write(request, lifted, spec, subject, notes, say)


@dataclass(frozen=True)
class _Subject:
    """Results of the original module, with which a file is compared."""

    reference: str
    sources: tuple[Source, ...]
    trials: Trials
    notes: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class _Proof:
    """Result of proving one file: the checks, the states that are alive, and the last states."""

    checks: tuple[Check, ...]
    alive: tuple[str, ...]
    states: tuple[Mapping[str, Array], ...]


@dataclass(frozen=True)
class _Made:
    """A step model that passed every check."""

    model: onnx.ModelProto
    spec: ModelSpec
    proof: _Proof
    limits: Limits
    account: Mapping[str, Any] | None  # of the quantization


def _with_batch_axes(module: nn.Module, request: Request) -> Request:
    """Find the batch axis of each given state. If two axes fit, the example may get another batch size."""
    if not request.state:
        return request
    inputs, state = told_apart(module, request.inputs, request.call)
    batch = batch_size(inputs, request.call.time_axis, request.call.batch_axis)
    call = replace(request.call, batch=batch, state=state)
    return replace(request, inputs=inputs, state=state, call=call)


def _lift(module: nn.Module, request: Request, say: stages.Say) -> tuple[Lifted, ModelSpec]:
    """Lift the module, and complete the spec of its step model."""
    options = request.options
    say(stages.LIFTING)
    lifted = lift(
        module,
        request.inputs,
        time_axis=request.call.time_axis,
        batch_axis=request.call.batch_axis,
        state=request.state,
        output_names=options.output_names,
        blocks=options.blocks,
        probe=options.probe is not None,
    )
    if options.probe is not None and lifted.probe is None:
        raise ExportError(_NOTHING_INSIDE)
    if lifted.probe and (count := len(lifted.spec.outputs) + len(lifted.probe.outputs)) > MAX_STATES:
        raise ExportError(f"probe='gates': that is {count} outputs, of {MAX_STATES} that a model may have")
    spec = replace(lifted.spec, framing=options.framing, rate=options.rate, graph=describe(lifted.model))
    check(spec, str(request.path))
    return lifted, spec


def _prove_and_write(
    request: Request,
    lifted: Lifted,
    spec: ModelSpec,
    subject: _Subject,
    notes: Sequence[str],
    say: stages.Say,
) -> Certificate:
    """Prove the model, its int8 form and its probe; rename the files after all have passed."""
    path, quantize = request.path, request.options.quantize
    with _scratch(path) as scratch, _scratch(request.shown) as second:
        made = _make_float32(scratch, request, lifted, spec, subject, say)
        if quantize:
            made = _make_int8(scratch, request, made, subject, say)
        notes = (*notes, *lifted.notes, *subject.notes, *([_SHARED_SCALE] if quantize else []))
        certificate = _certificate(made, subject, notes)
        say(stages.SEALING)
        certificate = _seal(scratch, path, made.model, made.spec, certificate)
        files = [(scratch, path)]
        if lifted.probe:
            say(stages.PROVING_PROBE)
            layers = Probe(certificate.hash, lifted.probe.layers)
            made = _make_probe((scratch, second), request, lifted.probe, layers, made, subject, say)
            say(stages.SEALING_PROBE)
            its = _certificate(made, subject, notes)
            _seal(second, request.shown, made.model, made.spec, its)
            files.insert(0, (second, request.shown))
        _rename(files)
    return certificate


def _make_float32(
    scratch: Path, request: Request, lifted: Lifted, spec: ModelSpec, subject: _Subject, say: stages.Say
) -> _Made:
    tolerance, quantize = request.options.tolerance, request.options.quantize
    limits = FLOAT32 if tolerance is None or quantize else replace(FLOAT32, tolerance=tolerance)
    say(stages.PROVING)
    proof = _prove(scratch, lifted.model, spec, subject, limits, say)
    _accept(request.path, proof, limits)
    return _Made(lifted.model, spec, proof, limits, None)


def _make_int8(scratch: Path, request: Request, full: _Made, subject: _Subject, say: stages.Say) -> _Made:
    tolerance = request.options.tolerance
    say(stages.PROVING_INT8)
    limits = INT8 if tolerance is None else replace(INT8, tolerance=tolerance)
    model, account = quantize_int8(full.model)
    # FLOPs and parameters are the module's own, in either format.
    graph = {**describe(full.model), "ops": describe(model)["ops"], "bytes": model.ByteSize()}
    spec = replace(full.spec, graph=graph)
    proof = _prove(scratch, model, spec, subject, limits, say)
    proof = replace(proof, checks=(*proof.checks, _drift(full.proof, proof)))
    _accept(request.path, proof, limits)
    return _Made(model, spec, proof, limits, account)


def _make_probe(
    files: tuple[Path, Path],
    request: Request,
    probed: Probed,
    layers: Probe,
    full: _Made,
    subject: _Subject,
    say: stages.Say,
) -> _Made:
    """Write and prove the probe. `files`: the sealed model, and the probe's scratch file."""
    scratch, second = files
    outputs = (*full.spec.outputs, *probed.outputs)
    spec = replace(full.spec, outputs=outputs, graph=describe(probed.model), probe=layers)
    proof = _prove(second, probed.model, spec, subject, full.limits, say)
    say("whether it shows the model's own inside")
    proof = replace(proof, checks=(*proof.checks, *_shown(scratch, second, subject, full.limits)))
    _accept(request.shown, proof, full.limits)
    return _Made(probed.model, spec, proof, full.limits, None)


def _subject(
    module: nn.Module,
    lifted: Lifted,
    spec: ModelSpec,
    request: Request,
    say: stages.Say,
) -> _Subject:
    call, data, seed = request.call, request.data, request.options.seed
    original, single = (Original(module, spec, call, double, lifted.lengths) for double in (True, False))
    # The example of a one-step module has no time axis. Its data has one, after the batch axis.
    timed = replace(call, time_axis=call.batch_axis + 1 if call.time_axis is None else call.time_axis)
    chunks = _chunks(request.inputs, call, spec.framing)
    sources = tuple(source(t, np.concatenate([c[t.name] for c in chunks])) for t in spec.fed)
    notes = weak_spots(sources)
    if not original.doubled:
        notes.append("the module cannot be run in float64: the reference is its own float32")
    if any(m.training and isinstance(m, _OTHERWISE_IN_TRAINING) for m in module.modules()):
        notes.append("exported in eval mode: no dropout, batch norm with its running statistics")
    given = [c for c in chunks if _usable(c)]
    if data is not None:
        batch_size(data, timed.time_axis, timed.batch_axis, "data")
        given = _chunks(data, timed, spec.framing)
        _check_data(given, sources)
    rng = np.random.default_rng(seed)
    trials = make_trials(original, single, spec, sources, given, lifted.remembered, rng, FLOAT32, say)
    return _Subject(original.reference, sources, trials, (*notes, *trials.notes), seed)


def _prove(
    scratch: Path,
    model: onnx.ModelProto,
    spec: ModelSpec,
    subject: _Subject,
    limits: Limits,
    say: Callable[[str], None],
) -> _Proof:
    """Write the model, load it as a user would, and run every check on it."""
    _write(scratch, container.seal(model.SerializeToString(), to_document(spec)))
    rng = np.random.default_rng(subject.seed)
    with Engine.load(scratch, max_streams=64, trust=True) as engine:  # it has no certificate yet
        trials = subject.trials
        checks, alive = prove(
            engine, trials.random, trials.given, trials.long, rng, limits, say, trials.covered, trials.short
        )
        prover = Prover(engine, rng)
        return _Proof(checks, alive, tuple(prover.final(t) for t in trials.random))


def _shown(model: Path, probe: Path, subject: _Subject, limits: Limits) -> tuple[Check, ...]:
    """Compare a probe with its model, and the gates that it shows with its own outputs."""
    trials = [*subject.trials.random, *subject.trials.given]
    with (
        Engine.load(model, max_streams=64) as one,
        Engine.load(probe, max_streams=64, trust=True) as other,
    ):
        ours, its = (Prover(engine, np.random.default_rng(subject.seed)) for engine in (one, other))
        # Two graphs of one computation: they may differ only in how onnxruntime fuses the operators.
        close = replace(limits, tolerance=limits.tolerance / 10)
        return judge([same(ours, its, trials)], close) + judge([recomposed(its, trials)], limits)


def _certificate(made: _Made, subject: _Subject, notes: Sequence[str]) -> Certificate:
    """Return the certificate of a model that passed, without the file's hash."""
    proof, spec = made.proof, made.spec
    return Certificate(
        errors=_output_errors(proof.checks, spec),
        tolerance=made.limits.tolerance,
        reference=subject.reference,
        checks=(*subject.trials.checks, *proof.checks),
        alive=proof.alive,
        seed=subject.seed,
        streams=sum(t.start is None for t in subject.trials.random),
        ticks=subject.trials.ticks,
        long=subject.trials.long_ticks,
        sources=tuple(s.to_json() for s in subject.sources),
        vectors=vectors.to_json(
            subject.trials.kept, spec.framing.hop if spec.framing else 1, whole=spec.steps is not None
        ),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quantize=made.account,
        notes=tuple(notes),
    )


def _seal(
    scratch: Path, path: Path, model: onnx.ModelProto, spec: ModelSpec, certificate: Certificate
) -> Certificate:
    """Write the final file and verify its bytes. Return the certificate, now with the file's hash."""
    document = to_document(replace(spec, certificate=certificate.to_json()))
    sealed = container.seal(model.SerializeToString(), document)
    _write(scratch, sealed)
    _verify(scratch, path)
    described = container.document(sealed, str(path)) or {}
    return replace(certificate, hash=described["certificate"]["hash"])


def _drift(full: _Proof, small: _Proof) -> Check:
    """Compare the last states of the int8 and the float32 model. For information only."""
    tally = Tally()
    for expected, got in zip(full.states, small.states, strict=True):
        for name, value in expected.items():
            tally.add(f"state {name}", got[name].ravel(), value.ravel())
    return informed(tally.finding("drift", "the int8 model's last states against the float32 model's"), INT8)


def _accept(path: Path, proof: _Proof, limits: Limits) -> None:
    failed = {c.name: c.row() for c in proof.checks if not c.passed}
    if failed:
        rows = "\n".join(failed.values())
        why = "" if "stepped" in failed or "long" not in failed else _LENGTH
        raise ExportError(
            f"{path}: not written, since the step model is not the module. Errors are relative to the "
            f"peak of each element; {limits.tolerance:g} is allowed (tolerance=).{why}\n{rows}"
        )


def _output_errors(checks: Sequence[Check], spec: ModelSpec) -> dict[str, Error]:
    """Return each output's largest error against the original. Checks between two copies do not count."""
    found = totals(
        c for c in checks if c.tolerance is not None and c.name not in ("isolated", "same", "gates")
    )
    inside = spec.probe.outputs if spec.probe else ()
    return {t.name: found[t.name] for t in spec.given if t.name not in inside}


# Data


def _check_data(chunks: Sequence[Mapping[str, Array]], sources: Sequence[Source]) -> None:
    """Raise ExportError unless one time step of the data has the example's names, dtypes and shapes."""
    wanted = {s.name: (s.dtype, s.shape) for s in sources}
    for chunk in chunks:
        found = {name: (array.dtype.name, array.shape[1:]) for name, array in chunk.items()}
        if found != wanted or len({len(array) for array in chunk.values()}) != 1:
            raise ExportError(f"data: one time step is {found}, expected as in the example: {wanted}")


def _chunks(inputs: Mapping[str, Tensor], call: Call, framing: Framing | None) -> list[dict[str, Array]]:
    """Return each item of a batch as a stream's chunk, (T, ...). With framing, T counts samples."""
    rows: dict[str, Array] = {}
    for name, value in inputs.items():
        array = value.detach().cpu().movedim(call.axes, tuple(range(len(call.axes)))).numpy()
        if call.time_axis is None:
            array = array[:, None]
        if framing:
            array = array[:, :, framing.context :]  # the samples that are new in each window
            array = array.reshape(len(array), -1, *array.shape[3:])
        rows[name] = array
    return [{name: array[i] for name, array in rows.items()} for i in range(len(next(iter(rows.values()))))]


def _usable(chunk: Mapping[str, Array]) -> bool:
    """Whether the example can be used as data: more than one time step, and finite."""
    return all(len(a) > 1 and (a.dtype.kind != "f" or bool(np.isfinite(a).all())) for a in chunk.values())


# Files


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Yield a file name beside `path` for a model that is not proved yet. Remove the file on leaving."""
    scratch = path.with_name(f".{path.stem[:_SHORT]}-{secrets.token_hex(6)}.onnx")
    try:
        yield scratch
    finally:
        if scratch.exists():  # on a read-only disk, unlink fails even for a file that does not exist
            scratch.unlink()


def _write(file: Path, data: bytes) -> None:
    try:
        with file.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ExportError(f"{file.parent}: cannot write there: {error.strerror or error}") from error


def _verify(scratch: Path, path: Path) -> None:
    try:
        verify(scratch)
    except CertificateError as error:
        raise ExportError(f"{path}: not written, since it does not verify: {error.message}") from error


def _rename(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename the proved files to their final names: all of them, or none."""
    replaced: list[tuple[Path, bytes | None]] = []
    for scratch, path in pairs:
        try:
            before = path.read_bytes() if len(replaced) < len(pairs) - 1 and path.exists() else None
            os.replace(scratch, path)
        except OSError as error:
            for other, data in replaced:
                if data is None:
                    other.unlink()
                else:
                    other.write_bytes(data)
            raise ExportError(f"{path}: cannot be replaced: {error.strerror or error}") from error
        replaced.append((path, before))
