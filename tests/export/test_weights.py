"""Weights as trainers save them: found if it is certain which they are, else each that could be is named."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runnel.cli.main import main
from runnel.errors import UsageError
from runnel_export import load_weights


class Tagger(nn.Module):
    def __init__(self, hidden: int = 3) -> None:
        super().__init__()
        self.gru = nn.GRU(4, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x)[0])


class Lightning(nn.Module):
    """What a LightningModule is, as far as its checkpoint shows: the model, and a loss with weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss(weight=torch.ones(2))


def trained() -> Tagger:
    module = Tagger()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def optimizer_of(module: nn.Module) -> dict[str, Any]:
    """An optimizer's state after a step: it has tensors of the same shapes as the weights."""
    adam = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2, 4)).sum().backward()
    adam.step()
    return adam.state_dict()


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


WAYS: dict[str, tuple[Any, str]] = {
    "plain": (lambda m: m.state_dict(), ""),
    "model_state_dict": (lambda m: {"epoch": 3, "model_state_dict": m.state_dict(), "loss": 0.5},
                         "weights from key 'model_state_dict'"),
    "model": (lambda m: {"model": m.state_dict(), "epoch": 3}, "weights from key 'model'"),
    "lightning": (lambda m: {"state_dict": Lightning(m).state_dict(), "epoch": 1, "hparams": {"h": 3}},
                  "weights from key 'state_dict', its keys without 'model.'"),
    "optimizer": (lambda m: {"net": m.state_dict(), "optimizer": optimizer_of(m)}, "weights from key 'net'"),
    "nested": (lambda m: {"outer": {"weights": m.state_dict()}}, "weights from key 'outer.weights'"),
    "parallel": (lambda m: nn.DataParallel(m).state_dict(), "weights from its keys without 'module.'"),
    "compiled": (lambda m: compiled(m).state_dict(), "weights from its keys without '_orig_mod.'"),
    "compiled-lightning": (
        lambda m: {"state_dict": prefixed("model._orig_mod.", m.state_dict())},
        "weights from key 'state_dict', its keys without 'model._orig_mod.'",
    ),
    "averaged": (lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
                 "weights from its keys without 'module.'"),
    "same-ema": (lambda m: {"model": m.state_dict(), "ema": m.state_dict()}, "weights from key 'model'"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_found_as_trainers_save_them(way: str, tmp_path: Path) -> None:
    save, says = WAYS[way]
    source, module = trained(), Tagger()
    torch.save(save(source), tmp_path / "w.pt")
    notes = load_weights(module, tmp_path / "w.pt")
    for name, value in source.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    if says:
        assert says in " ".join(notes)
    else:
        assert notes == []


def test_a_compiled_layer_inside_is_the_layer(tmp_path: Path) -> None:
    """torch.compile of a part puts `_orig_mod` into the middle of keys; on either side."""
    source, module = trained(), Tagger()
    torch.save(source.state_dict(), tmp_path / "plain.pt")
    compiled_part = Tagger()
    compiled_part.fc = compiled(compiled_part.fc)  # type: ignore[assignment]
    load_weights(compiled_part, tmp_path / "plain.pt")
    torch.save(compiled_part.state_dict(), tmp_path / "part.pt")
    assert any("fc._orig_mod." in key for key in compiled_part.state_dict())
    load_weights(module, tmp_path / "part.pt")
    assert torch.equal(module.fc.weight, source.fc.weight)


def test_what_a_prefix_leaves_out_is_said(tmp_path: Path) -> None:
    torch.save({"state_dict": Lightning(trained()).state_dict()}, tmp_path / "w.ckpt")
    (note,) = load_weights(Tagger(), tmp_path / "w.ckpt")
    assert "1 other tensor is not used: loss.weight" in note


def two() -> tuple[Tagger, Tagger, dict[str, Any]]:
    one, other = trained(), trained()
    return one, other, {"model": one.state_dict(), "ema": other.state_dict(), "optimizer": optimizer_of(one)}


def test_two_copies_that_differ_are_named_and_not_chosen_from(tmp_path: Path) -> None:
    one, other, checkpoint = two()
    torch.save(checkpoint, tmp_path / "w.pt")
    module = Tagger()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UsageError) as found:
        load_weights(module, tmp_path / "w.pt")
    assert "model (6 tensors, 6 of the module's 6)" in found.value.message
    assert "ema (6 tensors, 6 of the module's 6)" in found.value.message
    assert "w.pt:model" in found.value.message
    assert 'key="model"' in found.value.message
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for key, source in (("model", one), ("ema", other)):
        assert f"weights from key {key!r}" in load_weights(module, tmp_path / "w.pt", key)[0]
        assert torch.equal(module.fc.weight, source.fc.weight)


def test_two_prefixes_in_one_place_are_told_apart_by_key(tmp_path: Path) -> None:
    one, other = trained(), trained()
    held = {**prefixed("model.", one.state_dict()), **prefixed("ema_model.module.", other.state_dict())}
    torch.save({"state_dict": held}, tmp_path / "w.pt")
    module = Tagger()
    with pytest.raises(UsageError, match=r"state_dict\.ema_model\.module \(6 tensors"):
        load_weights(module, tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt", "state_dict.ema_model.module")
    assert torch.equal(module.fc.weight, other.fc.weight)
    with pytest.raises(UsageError, match=r"state_dict\.model \(6 tensors"):
        load_weights(module, tmp_path / "w.pt", "state_dict")


def test_a_key_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    torch.save(two()[2], tmp_path / "w.pt")
    with pytest.raises(UsageError, match="did you mean 'model'") as found:
        load_weights(Tagger(), tmp_path / "w.pt", "modle")
    assert "ema (6 tensors" in found.value.message


def test_weights_of_another_size_are_listed_with_what_matches(tmp_path: Path) -> None:
    torch.save({"model": Tagger(hidden=5).state_dict(), "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(UsageError) as found:
        load_weights(Tagger(), tmp_path / "w.pt")
    message = found.value.message
    assert "do not fit Tagger" in message
    assert "gru.weight_ih_l0: (15, 4) in the file, (9, 4) in the module" in message


def test_missing_and_unknown_weights_are_named(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    state["fc.wieght"] = state.pop("fc.weight")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError) as found:
        load_weights(Tagger(), tmp_path / "w.pt")
    assert "missing: fc.weight" in found.value.message
    assert "not the module's: fc.wieght" in found.value.message


def test_a_file_with_no_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "lr": 0.1}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="no tensors"):
        load_weights(Tagger(), tmp_path / "w.pt")


def test_a_checkpoint_with_an_object_in_it_says_how_to_save_the_weights_alone(tmp_path: Path) -> None:
    torch.save({"model": trained().state_dict(), "args": Namespace(lr=1)}, tmp_path / "w.pt")
    with pytest.raises(UsageError) as found:
        load_weights(Tagger(), tmp_path / "w.pt")
    assert "argparse.Namespace" in found.value.message
    assert "torch.save(checkpoint[KEY], 'weights.pt')" in found.value.message


def test_torchscript_as_weights_says_how_to_take_them_out(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(trained()), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="TorchScript") as found:
        load_weights(Tagger(), tmp_path / "w.pt")
    assert "state_dict()" in found.value.message


def test_a_file_is_known_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, module = trained(), Tagger()
    save_file(dict(source.state_dict()), tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt")
    assert torch.equal(module.fc.weight, source.fc.weight)


def test_a_hostile_nesting_is_bounded(tmp_path: Path) -> None:
    deep: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(200):
        deep = {"a": deep}
    wide = {f"k{i}": {"w": torch.zeros(1)} for i in range(300)}
    for value in (deep, wide):
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(UsageError) as found:
            load_weights(Tagger(), tmp_path / "w.pt")
        assert len(found.value.message) < 1500


CODE = "from tests.export.test_weights import Tagger\n"


def test_the_command_takes_a_key_and_puts_it_into_the_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, checkpoint = two()
    folder = tmp_path / "my models"  # a space, as people have
    folder.mkdir()
    (folder / "nets.py").write_text(CODE)
    torch.save(checkpoint, folder / "w:1.pt")
    words = [
        "export",
        f"{folder}/nets.py:Tagger",
        "--input",
        "float32[1,9,4]",
        "-o",
        str(tmp_path / "m.onnx"),
    ]
    assert main([*words, "--weights", f"{folder}/w:1.pt"]) == 2
    assert f"--weights '{folder}/w:1.pt:model'" in capsys.readouterr().err
    assert main([*words, "--weights", f"{folder}/w:1.pt:ema"]) == 0
    shown = capsys.readouterr()
    assert "weights from key 'ema'" in shown.err
    assert "note: weights from key 'ema'" in shown.out
    assert "no --weights" not in shown.out


def test_two_keys_for_one_weight_are_refused(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    state["fc.module.weight"] = state["fc.weight"] + 1
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="stand for one weight"):
        load_weights(Tagger(), tmp_path / "w.pt")


def test_a_lazy_module_takes_its_sizes_from_the_file(tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pt")
    module = nn.LazyLinear(2)
    load_weights(module, tmp_path / "w.pt")
    assert torch.equal(module.weight, source.weight)
