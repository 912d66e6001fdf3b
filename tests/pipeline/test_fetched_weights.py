"""Networks that somebody else trained: fetched, taken as they are or trained on, and what goes wrong on the way."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from served import Server, address, serving

from stages import distill, evaluate, fetch, fetch_weights, tabulate, train_teacher
from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.models.paper import PaperStudent
from tripletkd.pipeline.arguments import Options
from tripletkd.pipeline.fetched_weights import download
from tripletkd.pipeline.stage import Stage, open_stage
from tripletkd.training.run_record import read_record

SUITE, TEACHER, STUDENT = "suites.digits", "suites.digits.teacher", "suites.digits.student"
SHORT = [  # half a second of training
    "suite=digits",
    f"{SUITE}.seeds=[1,2]",
    f"{SUITE}.recipe.epochs=1",
    f"{SUITE}.recipe.schedule.decay_epochs=[]",
    f"{SUITE}.evaluate_every=1",
    "run.ablations=[]",
    "run.methods=[scratch,kd]",
    "claims=[{method: kd, over: [scratch]}]",
]


def stage(name: str, *words: str) -> Stage:
    return open_stage(name, [*SHORT, *words], options=Options(quiet=True), allow_teacher=True)


def fetched(*words: str) -> dict[str, Any]:
    fetch_weights.main(stage("fetch_weights", *words))
    found: dict[str, Any] = json.loads(Path("weights/digits/weights.json").read_text())
    return found


def refused(*words: str) -> str:
    with pytest.raises(UserError) as problem:
        fetched(*words)
    assert not Path("weights/digits").exists()
    return str(problem.value)


def saved(network: str, shape: tuple[int, int, int] = (8, 8, 1), classes: int = 10, **more: Any) -> tuple[bytes, Any]:
    """The bytes of a file in PyTorch's old format, and the weights in it."""
    weights = models.weights(models.build(network, shape, classes, seed=77))
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, "x.pth", **more)
    return Path("x.pth").read_bytes(), weights


def block(source: str, content: bytes, **more: str) -> str:
    said = {"source": f"'{source}'", "sha256": f"'{hashlib.sha256(content).hexdigest()}'"} | more
    return f"{{{', '.join(f'{key}: {value}' for key, value in said.items())}}}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the digits."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "tripletkd/published", folder / "tripletkd/published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fetch.main(stage("fetch"))
    return folder


@pytest.fixture(autouse=True)
def project(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(images, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_a_suite_without_weights_says_so_and_its_identities_say_nothing() -> None:
    assert fetched() == {"teacher": None, "student": None}
    assert [path.name for path in Path("weights/digits").iterdir()] == ["weights.json"]


def test_a_trained_teacher_gives_students_and_a_table() -> None:
    """Trained here as somebody else would; then from its file, by the real stages, to the same figures."""
    train_teacher.main(stage("train_teacher", f"{TEACHER}.recipe.epochs=8"))
    [theirs] = Path("runs/digits/test/teacher").iterdir()
    trained = load_file(theirs / "weights.safetensors")
    told = {name: tensor.clone() for name, tensor in trained.items()}
    for name in ("fc3.weight", "fc3.bias"):  # with the classes in another order than the data set has them
        told[name] = torch.cat([trained[name][1:4], trained[name][:1], trained[name][4:]])
    reached = json.loads(Path("results/digits/measured/test/teacher.json").read_text())["seeds"][0]["test_accuracy"]
    torch.save(told, "teacher.pth", _use_new_zipfile_serialization=False)
    content = Path("teacher.pth").read_bytes()
    taken = [f"{TEACHER}.recipe=null", f"{SUITE}.teacher_floor={100 * reached - 1}"]
    wrong, right = ([*taken, f"{TEACHER}.weights={block('teacher.pth', content, **more)}"] for more in MAPPED)
    for words in (wrong, right):
        fetched(*words)
        train_teacher.main(stage("train_teacher", *words))
        if words is wrong:
            with pytest.raises(UserError, match=r"suites.digits.teacher_floor: the teacher reaches .* is demanded"):
                distill.main(stage("distill", "method=kd", *words))
    record = read_record(theirs)
    assert record.identity.recipe == {} and record.weights_sha256 == record.identity.initial_sha256
    assert (theirs / "history.csv").read_text().splitlines()[1].startswith("0,0,")
    assert all(torch.equal(load_file(theirs / "weights.safetensors")[name], trained[name]) for name in trained)
    for method in ("scratch", "kd"):
        distill.main(stage("distill", f"method={method}", *right))
        evaluate.main(stage("evaluate", f"method={method}", *right))
    tabulate.main(stage("tabulate", *right))
    row = json.loads(Path("results/digits/table.json").read_text())["rows"][0]
    assert (row["method"], row["test_accuracy_percent"]["mean"]) == ("teacher", pytest.approx(100 * reached))
    student = read_record(Path("runs/digits/test/kd/seed-1"))
    assert student.identity.teacher_sha256 == record.weights_sha256
    assert "initial_sha256" not in json.loads(Path("runs/digits/test/kd/seed-1/record.json").read_text())["identity"]


MAPPED: tuple[dict[str, str], ...] = ({}, {"classes": "[3, 0, 1, 2, 4, 5, 6, 7, 8, 9]"})


def test_what_was_fetched_before_an_edit_of_params_is_refused() -> None:
    content, _ = saved("paper_student_quarter")
    words = [f"{STUDENT}.weights={block('x.pth', content)}", f"{SUITE}.teacher_floor=0"]
    fetched(*words)
    train_teacher.main(stage("train_teacher", *words))
    distill.main(stage("distill", "method=scratch", *words))
    other = [*words, f"{STUDENT}.weights.classes=[1,0,2,3,4,5,6,7,8,9]"]
    with pytest.raises(UserError, match=r"digits.student, its weights or its network, was changed since"):
        distill.main(stage("distill", "method=scratch", *other))
    fewer = [*words, f"{SUITE}.data.per_class=20"]
    with pytest.raises(UserError, match=r"made with all images as they are, params.yaml .* has per_class 20; run"):
        distill.main(stage("distill", "method=scratch", *fewer))


def test_a_temperature_that_does_not_divide_the_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last linear layer is not the one that makes the logits, or training makes them grow again."""
    content, _ = saved("paper_student_quarter")
    softer = f"weights={block('x.pth', content, temperature='2')}"
    assert "found 2 for a network that suites.digits.student.recipe trains further" in refused(f"{STUDENT}.{softer}")
    monkeypatch.setattr(PaperStudent, "head_name", "fc1", raising=False)
    words = [f"{TEACHER}.network=paper_student_quarter", f"{TEACHER}.recipe=null", f"{TEACHER}.{softer}"]
    assert "to divide fc1 does not divide the logits of paper_student_quarter" in refused(*words)


def test_every_seed_of_a_student_starts_from_its_weights() -> None:
    """At a learning rate that moves nothing; a last layer of other classes is each seed's own."""
    content, weights = saved("paper_student_quarter", classes=30)
    words = [f"{STUDENT}.weights={block('x.pth', content)}", f"{STUDENT}.recipe.optimizer.lr=1e-20"]
    words.append(f"{SUITE}.teacher_floor=0")
    assert fetched(*words)["student"]["new_head"]
    train_teacher.main(stage("train_teacher", *words))
    distill.main(stage("distill", "method=scratch", *words))
    first, second = (load_file(f"runs/digits/test/scratch/seed-{seed}/weights.safetensors") for seed in (1, 2))
    for name, tensor in weights.items():
        is_head = name.startswith("fc2")
        assert torch.equal(first[name], second[name]) != is_head
        assert is_head or torch.equal(first[name], tensor)
    fresh = models.build("paper_student_quarter", (8, 8, 1), 10, seed=2).state_dict()
    assert torch.equal(second["fc2.weight"], fresh["fc2.weight"])
    evaluate.main(stage("evaluate", "method=scratch", *words))  # before training both seeds' student is this one
    Path("weights/digits/student.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"student.safetensors: sha256 is .*run `python -m stages.fetch_weights"):
        distill.main(stage("distill", "method=kd", *words))


def test_what_is_downloaded_is_downloaded_once_and_goes_on_where_it_broke_off(server: Server) -> None:
    content, weights = saved("paper_teacher_quarter")
    server.files["/teacher.pth"] = content
    words = f"{TEACHER}.weights={block(address(server) + 'teacher.pth', content)}"
    server.fault = "cut off once"
    said = fetched(words)["teacher"]
    assert [start for _, start in server.asked] == [None, f"bytes={len(content) // 2}-"]
    assert said["source_sha256"] == hashlib.sha256(content).hexdigest()
    assert said["mended"] == ["taken from the file's state_dict", "'module.' taken from before every key"]
    there = load_file("weights/digits/teacher.safetensors")
    assert all(torch.equal(there[name], tensor) for name, tensor in weights.items())
    server.files.clear()
    before = Path("weights/digits/teacher.safetensors").read_bytes()
    assert fetched(words)["teacher"] == said and Path("weights/digits/teacher.safetensors").read_bytes() == before
    assert not list(Path("weights").glob(".*"))


def test_what_cannot_be_had_is_named_and_nothing_is_left(server: Server) -> None:
    content, _ = saved("paper_teacher_quarter")
    server.files["/teacher.pth"], place = content, address(server)
    right = block(f"{place}teacher.pth", content)

    def fails(weights: str) -> str:
        return refused(f"{TEACHER}.weights={weights}")

    wrong = hashlib.sha256(content[:-1]).hexdigest()
    found = hashlib.sha256(content).hexdigest()
    expected = f"{TEACHER}.weights.sha256: {place}teacher.pth has {found}, expected {wrong}; nothing was read of it"
    assert expected in fails(block(f"{place}teacher.pth", content[:-1]))
    assert f"{place}other.pth: 404 Not Found; expected a file there" in fails(block(f"{place}other.pth", content))
    server.fault = "cut off"
    assert "could not be downloaded (it broke off after " in fails(right)
    assert "is not there; expected a file" in fails(block("nowhere.pth", content))
    assert "source: found ftp:, expected a file, or an address that begins" in fails(block("ftp://x/y", content))
    blob = "{source: x.pth, git_blob: '" + 40 * "0" + "'}"
    assert f"{TEACHER}.weights.git_blob: x.pth has " in fails(blob)
    code = b"cos\nsystem\n(S'touch it-was-run'\ntR."
    Path("code.pth").write_bytes(code)
    assert "code.pth: " in fails(block("code.pth", code)) and not Path("it-was-run").exists()
    server.shutdown()
    server.server_close()
    assert "could not be downloaded (" in fails(block(f"{place}b.pth", b"b"))
    assert "bring the file here and give its path as weights.source" in fails(right)


def test_an_error_that_a_server_answered_holds_no_connection(server: Server) -> None:
    with pytest.raises(UserError) as problem:
        download(f"{address(server)}other.pth", Path("other.pth"))
    assert isinstance(answer := problem.value.__context__, HTTPError) and answer.fp and answer.fp.closed


def test_weights_for_other_images_are_refused_and_the_earlier_ones_stay() -> None:
    content, _ = saved("paper_teacher_quarter")
    before = fetched(f"{TEACHER}.weights={block('x.pth', content)}")
    for shape, expected in (((8, 8, 3), "conv1.weight is [8, 3, 3, 3], but [8, 1, 3, 3]"), ((16, 16, 1), "fc1.weight")):
        content, _ = saved("paper_teacher_quarter", shape)
        with pytest.raises(UserError, match="for the images of this suite: expected weights for as many") as problem:
            fetched(f"{TEACHER}.weights={block('x.pth', content)}")
        assert expected in str(problem.value)
        assert json.loads(Path("weights/digits/weights.json").read_text()) == before


def test_the_authors_teacher_is_fetched_from_their_address_in_their_format(server: Server) -> None:
    """Of the same architecture, with the names of their code: numbers of dropout and pooling have no tensors."""
    settings = open_stage("fetch_weights", ["suite=cifar10_authors"]).suite.teacher
    assert settings.weights and settings.recipe is None
    assert settings.weights.git_blob == "70364617e894cce464263e2ca2586fed822f36c0"
    path = settings.weights.source.removeprefix("https://raw.githubusercontent.com")
    network = models.build("paper_teacher", (32, 32, 3), 10, seed=3)
    torch.save(network.state_dict(), "cnn_alex.pkl", _use_new_zipfile_serialization=False)
    content = server.files[path] = Path("cnn_alex.pkl").read_bytes()
    place = Path("data/cifar10_authors/dataset.json")
    place.parent.mkdir()
    place.write_text(json.dumps({"image_shape": [32, 32, 3], "classes": list(map(str, range(10)))}))
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    key = "suites.cifar10_authors.teacher.weights"
    words = ["suite=cifar10_authors", f"{key}.source={address(server)[:-1]}{path}"]
    with pytest.raises(UserError, match=rf"{key}.git_blob: .* has {blob}, expected 7036"):
        fetch_weights.main(open_stage("fetch_weights", words))
    assert not Path("weights/cifar10_authors").exists()
    fetch_weights.main(open_stage("fetch_weights", [*words, f"{key}.git_blob='{blob}'"]))
    found = load_file("weights/cifar10_authors/teacher.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("collection", ["torchvision", "timm"])
def test_named_weights_are_those_of_the_library_for_the_classes_that_are_named(
    collection: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    theirs, name = resnet18(num_classes=1000), f"{collection}/resnet18"
    tag, classes = ("a1_in1k", list(range(9, -1, -1))) if collection == "timm" else ("IMAGENET1K_V1", ["tench", 5])
    classes += list(range(10, 10 + 10 - len(classes)))
    torch.save(theirs.state_dict(), "resnet18.pth")
    content = Path("resnet18.pth").read_bytes()
    server.files |= {"/timm/resnet18.a1_in1k/resolve/main/model.safetensors": content, "/resnet18.pth": content}
    monkeypatch.setenv("HF_ENDPOINT", address(server))
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"{address(server)}resnet18.pth")
    description = Path("data/digits/dataset.json")
    description.write_text(json.dumps({"image_shape": [32, 32, 3], "classes": list(map(str, range(10)))}))
    words = [f"{TEACHER}.network={name}:layer1", f"{TEACHER}.recipe=null"]
    with pytest.raises(UserError, match=rf"{TEACHER}.weights.tag: found V9, expected one of .*{tag}"):
        fetched(*words, f"{TEACHER}.weights={block(name, content, tag='V9')}")
    said = fetched(*words, f"{TEACHER}.weights={block(name, content, tag=tag, classes=str(classes))}")["teacher"]
    assert (said["source"], said["said"].get("license")) == (name, "apache-2.0" if collection == "timm" else None)
    network = models.build(f"{name}:layer1", (32, 32, 3), 10, seed=1)
    network.load_state_dict(load_file("weights/digits/teacher.safetensors"))
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))
    rows = [0 if row == "tench" else row for row in classes]
    outputs, all_logits = network.eval()(images), theirs.eval()(images)
    torch.testing.assert_close(outputs.logits, all_logits[:, rows])
    assert list(outputs.features) == ["stage1", "embedding"]
