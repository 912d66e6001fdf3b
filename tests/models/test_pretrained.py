"""Weights from elsewhere: what is read of a file, what is mended, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.models import pretrained

NAME, SHAPE = "paper_teacher_quarter", (8, 8, 1)
TRAINED = dict(models.weights(models.build(NAME, SHAPE, 10, seed=7)))
pytestmark = pytest.mark.fault


def to(classes: int = 10, name: str = NAME, shape: tuple[int, int, int] = SHAPE, **more: Any) -> pretrained.Fit:
    return pretrained.Fit(models.build(name, shape, classes, seed=1), name, **more)


def refused(found: dict[str, Tensor], fit: pretrained.Fit) -> str:
    with pytest.raises(UserError) as problem:
        pretrained.fit(found, "x.pth", fit)
    return str(problem.value)


def unreadable(path: Path) -> str:
    with pytest.raises(UserError) as problem:
        pretrained.read(path, "x.pth")
    return str(problem.value)


FORMS: dict[str, tuple[Any, bool]] = {  # of a file, and whether in the format of PyTorch 1.2
    "a state dict": (TRAINED, False),
    "a state dict in the old format": (TRAINED, True),
    "a checkpoint": ({"epoch": 3, "state_dict": TRAINED, "optimizer": {"lr": 0.1}}, False),
    "an old checkpoint of several devices": (
        {"net": {f"module.{k}": v for k, v in TRAINED.items()}},
        True,
    ),
    "a compiled network on several devices": ({f"module._orig_mod.{k}": v for k, v in TRAINED.items()}, False),
    "half precision": ({k: v.half() if v.is_floating_point() else v for k, v in TRAINED.items()}, False),
    "without counters": ({k: v for k, v in TRAINED.items() if "num_batches" not in k}, False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pytorch_file_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    content, old = FORMS[form]
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    found, _ = pretrained.read(tmp_path / "x.pth", "x.pth")
    fitted = pretrained.fit(found, "x.pth", to())
    assert list(fitted.tensors) == list(TRAINED) and not fitted.new_head
    tolerance = 1e-3 if form == "half precision" else 0
    for name, tensor in TRAINED.items():
        torch.testing.assert_close(fitted.tensors[name], tensor, rtol=tolerance, atol=tolerance)


def test_safetensors_are_read_and_a_network_of_torchvision_is_known_by_either_s_names(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10)
    save_file(theirs.state_dict(), tmp_path / "x.safetensors")
    fit = to(name="torchvision/resnet18", shape=(32, 32, 3))
    fitted = pretrained.fit(pretrained.read(tmp_path / "x.safetensors", "x")[0], "x", fit)
    fit.network.load_state_dict(fitted.tensors)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit.network.eval()(images).logits, theirs.eval()(images))
    assert pretrained.fit(dict(fitted.tensors), "x", fit).mended == []  # what was written here


OF_THIRTY = dict(models.weights(models.build(NAME, SHAPE, 30, seed=7)))


def test_classes_select_the_rows_of_the_last_layer() -> None:
    chosen = [29, 3, *range(20, 28)]
    fitted = pretrained.fit(OF_THIRTY, "x.pth", to(selected=chosen))
    assert torch.equal(fitted.tensors["fc3.weight"], OF_THIRTY["fc3.weight"][chosen])
    assert torch.equal(fitted.tensors["fc3.bias"], OF_THIRTY["fc3.bias"][chosen])
    assert "weights.classes: found 30, but fc3.weight is [30, 32]" in refused(OF_THIRTY, to(selected=[*chosen[:9], 30]))
    names = list(pretrained.by_name(["cat", 5], ("dog", "cat"), "key"))
    assert names == [1, 5]
    with pytest.raises(UserError, match=r"key: weights.classes: found 'dog', which is a class that stands before it"):
        list(pretrained.by_name([0, "dog"], ("dog", "cat"), "key"))
    for known, expected in ((("dog",), "expected one of dog"), ((), "the file does not name its classes")):
        with pytest.raises(UserError, match=f"key: weights.classes: found 'cat', .*{expected}"):
            list(pretrained.by_name(["cat"], known, "key"))


def test_a_temperature_divides_the_logits_and_nothing_else() -> None:
    fitted = pretrained.fit(TRAINED, "x.pth", to(temperature=2.0))
    assert {name for name, tensor in TRAINED.items() if not torch.equal(tensor, fitted.tensors[name])} == {
        "fc3.weight",
        "fc3.bias",
    }
    network, images = models.build(NAME, SHAPE, 10, seed=7).eval(), torch.rand(3, 1, 8, 8)
    before = network(images).logits
    network.load_state_dict(fitted.tensors)
    torch.testing.assert_close(network(images).logits, before / 2)


def test_a_temperature_divides_in_the_precision_of_the_network() -> None:
    rounded = {k: v.half() if v.is_floating_point() else v for k, v in TRAINED.items()}
    fitted = pretrained.fit(rounded, "x.pth", to(temperature=3.0))
    assert torch.equal(fitted.tensors["fc3.weight"], rounded["fc3.weight"].float() / 3)


def test_a_last_layer_of_other_classes_is_drawn_anew_only_where_it_is_trained() -> None:
    fitted = pretrained.fit(OF_THIRTY, "x.pth", to(is_trained=True))
    assert fitted.new_head and fitted.tensors.keys() == OF_THIRTY.keys() - {"fc3.weight", "fc3.bias"}
    expected = "x.pth: found 30 classes in fc3.weight, expected 10: say in weights.classes which"
    assert refused(OF_THIRTY, to()).startswith(expected)


def test_weights_of_another_network_or_of_other_images_are_refused_by_name() -> None:
    student = dict(models.weights(models.build("paper_student_quarter", SHAPE, 10, seed=7)))
    words = refused(student, to())
    assert words.startswith("x.pth: found 0 classes in fc3.weight, expected 10")
    words = refused(student | {name: TRAINED[name] for name in ("fc3.weight", "fc3.bias")}, to())
    assert "Only the file has none; only the network has batchnorm1.weight, batchnorm1.bias, batchnorm1." in words
    words = refused(TRAINED | {"extra.weight": torch.zeros(1)}, to())
    assert "Only the file has extra.weight; only the network has none" in words
    words = refused(TRAINED, to(shape=(8, 8, 3)))
    assert "conv1.weight is [8, 1, 3, 3], but [8, 3, 3, 3] in paper_teacher_quarter for the images of" in words
    assert "fc1.weight is [128, 32], but [128, 128]" in refused(TRAINED, to(shape=(16, 16, 1)))
    broken = TRAINED | {"conv2.bias": torch.full((8,), torch.nan)}
    assert "conv2.bias holds numbers that are not finite" in refused(broken, to())


class Runs:
    """A pickle that calls a function when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("it-was-run"),))


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_wants_more_than_tensors_is_refused_and_nothing_of_it_runs(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (Runs(), {"state_dict": TRAINED, "args": Runs()}, nn.Linear(2, 2)):
        torch.save(content, "x.pth", _use_new_zipfile_serialization=not old)
        words = unreadable(Path("x.pth"))
        assert "x.pth: holds more than tensors (" in words and "torch.save(network.state_dict(), FILE)" in words
    assert not Path("it-was-run").exists()


def test_damaged_files_and_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for old in (False, True):
        torch.save(TRAINED, path, _use_new_zipfile_serialization=not old)
        whole = path.read_bytes()
        for cut in (0, 1, 100, len(whole) // 2, len(whole) - 10):
            path.write_bytes(whole[:cut])
            assert "x.pth: cannot be read (" in unreadable(path)
    save_file(TRAINED, path)
    path.write_bytes(path.read_bytes()[:-9])
    assert "x.pth: cannot be read as safetensors (" in unreadable(path)
    path.write_bytes(b"<html>moved</html>")
    assert "x.pth: cannot be read (" in unreadable(path)
    path.write_bytes(pickle.dumps([1, 2]))
    assert "x.pth: " in unreadable(path)
    torch.save({"a": TRAINED, "b": TRAINED}, path)
    assert "x.pth: found several state dicts of a, b; expected one" in unreadable(path)
    torch.save({"epoch": 3}, path)
    assert "x.pth: found no state dict in dict epoch; expected one" in unreadable(path)
