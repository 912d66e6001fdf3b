"""The student leaves the house: the true command on a shrunk run of the real digits, its files, its errors."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from conftest import ROOT
from numpy.typing import NDArray
from torch import nn

from tripletkd import export, models
from tripletkd.data import dataset as data
from tripletkd.data import sources
from tripletkd.data.batches import Inputs, normalise
from tripletkd.data.photograph_batches import PhotographInputs
from tripletkd.data.photographs import View
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.export import Classifier
from tripletkd.provenance import sha256
from tripletkd.reporting import model_card
from tripletkd.training.run_record import load_network, read_record
from tripletkd.types import Outputs

SEEDS = [2, 1]  # the first is neither the smallest nor, after one epoch, bound to be the best
SMALL = ["suite=digits", f"suites.digits.seeds={SEEDS}", "suites.digits.teacher_floor=0", "methods.triplet.margin=5"]
SMALL += ["suites.digits.recipe.epochs=1", "suites.digits.recipe.schedule.decay_epochs=[1]"]
SMALL += ["suites.digits.evaluate_every=1"]
OUTPUTS = ["MODEL_CARD.md", "example.json", "export.json", "model.onnx"]
RUN, TRIPLET = Path("runs/digits/test/triplet"), Path("exports/digits/triplet")
MEASURED = Path("results/digits/measured/test")
TEST, OTHER = sources.digits().test, sources.digits().limited(20)
true_to_onnx, made = export.to_onnx, dict[object, bytes]()


def remembered(classifier: Classifier, *rest: Any) -> bytes:
    """The exporter takes seconds: what it made of equal weights stands for what it would make."""
    key = repr((classifier.inputs, rest, [tensor.tolist() for tensor in classifier.state_dict().values()]))
    if key not in made:
        made[key] = true_to_onnx(classifier, *rest)
    return made[key]


def command(monkeypatch: pytest.MonkeyPatch, *overrides: str, name: str = "export") -> None:
    """A stage, in the folder of the test and in this process: PyTorch is imported once."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL, *overrides])
    monkeypatch.setattr("tripletkd.pipeline.stage.read_again", lambda: None)  # the code stays, it is parsed once
    runpy.run_path(str(ROOT / f"stages/{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher, two seeds of a measured student, and its export, on a path with a space."""
    folder = tmp_path_factory.mktemp("one space")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "nowhere:")  # nothing is logged
        patch.setattr(export, "to_onnx", remembered)
        for name in ("fetch", "train_teacher", "distill", "evaluate", "export"):
            command(patch, "method=triplet", name=name)
    return folder


@dataclass
class Copy:
    """The project elsewhere, to be changed; nothing is timed there."""

    folder: Path
    patch: pytest.MonkeyPatch
    printed: pytest.CaptureFixture[str]

    def export(self, *overrides: str) -> str:
        """Export; the model card."""
        command(self.patch, *overrides)
        return (self.folder / TRIPLET.with_name(overrides[0].split("=")[1]) / "MODEL_CARD.md").read_text()

    def refused(self, *overrides: str) -> str:
        """The one message; what was exported before stays."""
        before = outputs(self.folder)
        with pytest.raises(SystemExit) as ended:
            command(self.patch, *overrides)
        error = self.printed.readouterr().err
        assert ended.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
        assert outputs(self.folder) == before
        return error


@pytest.fixture
def copy(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Copy:
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:")
    monkeypatch.setattr(export, "to_onnx", remembered)
    monkeypatch.setattr(export, "latency", lambda exported, *_: dict.fromkeys(exported, 1.0))
    return Copy(tmp_path, monkeypatch, capsys)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_identity(path: Path, **values: Any) -> None:
    change(path, identity=json.loads(path.read_text())["identity"] | values)


def outputs(project: Path) -> dict[str, bytes]:
    return {name: (project / TRIPLET / name).read_bytes() for name in OUTPUTS}


def trained(project: Path, method: str, seed: int) -> nn.Module:
    folder = project / RUN.with_name(method)
    return load_network(folder, read_record(folder / f"seed-{seed}"))


def by_pytorch(project: Path, method: str, seed: int) -> NDArray[np.float64]:
    """Probabilities of the test images from the run record, with params.yaml's normalisation by hand, in float64."""
    inputs = torch.from_numpy((TEST.images / 255 - 0.307) / 0.377).permute(0, 3, 1, 2)
    with torch.no_grad():
        return trained(project, method, seed).double().eval()(inputs).logits.softmax(1).numpy()


def by_onnx(folder: Path, count: int | None = None) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": TEST.images[:count]})[0]


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_model_gives_pytorch_s_probabilities_for_any_number_of_images(project: Path) -> None:
    expected = by_pytorch(project, "triplet", SEEDS[0])
    assert np.abs(expected - by_pytorch(project, "triplet", SEEDS[1])).max() > 0.01  # the seeds differ
    for count in (1, 3, None):
        found = by_onnx(project / TRIPLET, count)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)
    model = onnx.load(project / TRIPLET / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", export.OPSET)]
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == {"classes": [str(i) for i in range(10)]}


def test_export_json_says_what_the_files_are_and_no_output_has_a_time_or_a_place(project: Path) -> None:
    said = json.loads((project / TRIPLET / "export.json").read_text())
    weights, model = project / RUN / "seed-2/weights.safetensors", project / TRIPLET / "model.onnx"
    measured = json.loads((project / MEASURED / "triplet.json").read_text())
    assert (said["seed"], said["images"], said["other_class"]) == (2, 899, 0)
    assert 0 < said["max_difference"] < 1e-5
    assert said["test_accuracy"] == pytest.approx(measured["seeds"][0]["test_accuracy"], abs=1e-12)
    assert said["parameters"] == measured["parameters"]
    assert (said["weights_sha256"], said["weights_bytes"]) == (sha256(weights), weights.stat().st_size)
    assert (said["onnx_sha256"], said["onnx_bytes"]) == (sha256(model), model.stat().st_size)
    assert said["onnx_bytes"] < 2 * said["weights_bytes"]  # the exporter's notes are gone
    log = json.loads((project / TRIPLET / "log.json").read_text())
    assert sorted(path.name for path in (project / TRIPLET).iterdir()) == sorted([*OUTPUTS, "log.json"])
    for contents in outputs(project).values():
        for trace in (str(project), str(ROOT), ".py", log["started"], "latency"):
            assert trace.encode() not in contents
    for name in ("latency_ms_batch_1", "latency_ms_batch_64", "teacher_latency_ms_batch_64"):
        assert 0 < log[name] < 1000


def test_again_elsewhere_gives_the_same_bytes_whatever_params_yaml_says_now(copy: Copy, project: Path) -> None:
    """The preprocessing is the one of the training; that of today's params.yaml would be another model."""
    shutil.rmtree(copy.folder / "exports")
    del made[next(iter(made))]  # the student's
    copy.export("method=triplet", "suites.digits.inputs.mean=[0.9]", "methods.triplet.margin=9")
    assert outputs(copy.folder) == outputs(project)


def test_the_teacher_leaves_too(copy: Copy) -> None:
    text = copy.export("method=teacher")
    assert "paper_teacher_quarter, the teacher" in text and "the only one of this run" in text
    found = by_onnx(copy.folder / TRIPLET.with_name("teacher"))
    np.testing.assert_allclose(found, by_pytorch(copy.folder, "teacher", 0), atol=1e-5)
    assert "the teacher 1" not in copy.printed.readouterr().out


def test_a_seed_can_be_chosen_and_one_that_failed_is_passed_over(copy: Copy) -> None:
    text, expected = copy.export("method=triplet", "--seed", "1"), by_pytorch(copy.folder, "triplet", 1)
    np.testing.assert_allclose(by_onnx(TRIPLET), expected, atol=1e-5)
    assert "It is seed 1 of 2, 1, chosen by whoever exported it." in text
    change(RUN / "seed-2/record.json", weights_sha256=None, failed="ce is nan")
    seeds = [seed for seed in json.loads((MEASURED / "triplet.json").read_text())["seeds"] if seed["seed"] == 1]
    alive = {"1": read_record(RUN / "seed-1").weights_sha256}
    change(MEASURED / "triplet.json", weights_sha256=alive, seeds=seeds, failed={"2": "ce is nan"})
    assert "Seed 2 failed: ce is nan." in copy.export("method=triplet")
    np.testing.assert_allclose(by_onnx(TRIPLET), expected, atol=1e-5)
    assert "no such seed that did not fail; it has 1" in copy.refused("method=triplet", "--seed", "2")


def test_a_seed_whose_outputs_are_not_finite_is_passed_over(copy: Copy) -> None:
    """Its weights are whole, so only the measurement calls it failed."""
    seeds = [seed for seed in json.loads((MEASURED / "triplet.json").read_text())["seeds"] if seed["seed"] == 1]
    alive, failed = {"1": read_record(RUN / "seed-1").weights_sha256}, {"2": "its outputs are not finite"}
    change(MEASURED / "triplet.json", weights_sha256=alive, seeds=seeds, failed=failed)
    assert "It is seed 1 of 2, 1: the first that did not fail" in copy.export("method=triplet")
    assert "no such seed that did not fail; it has 1" in copy.refused("method=triplet", "--seed", "2")


def test_a_pulled_run_without_images_is_compared_on_noise(copy: Copy) -> None:
    (copy.folder / "data/digits" / data.IMAGES).unlink()
    assert "on all 500 made-up images" in copy.export("method=triplet")
    assert json.loads((TRIPLET / "export.json").read_text())["test_accuracy"] is None
    change(Path("data/digits", data.DESCRIPTION), classes=["cat", *"123456789"])
    assert "images.npy: not there; run `python -m stages.fetch suite=digits`" in copy.refused("method=triplet")


def test_a_run_of_the_validation_split_is_not_exported(copy: Copy) -> None:
    """Its figures would stand on the card as those of the test images."""
    assert "split: found validation, expected test" in copy.refused("method=triplet", "split=validation")


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_s_code_runs_to_the_letter(project: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (project / TRIPLET / "MODEL_CARD.md").read_text(), re.DOTALL)
    words = [sys.executable, "-c", code]  # the project is not needed
    printed = subprocess.run(words, cwd=project / TRIPLET, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines, expected = [line.split() for line in printed.splitlines()], by_pytorch(project, "triplet", SEEDS[0])[:2]
    assert [int(name) for name, _ in lines] == expected.argmax(1).tolist()
    assert [float(probability) for _, probability in lines] == pytest.approx(expected.max(1).tolist(), abs=1e-5)


def test_the_card_has_the_figures_of_all_seeds(project: Path) -> None:
    text = (project / TRIPLET / "MODEL_CARD.md").read_text()
    measured, teacher = (
        json.loads((project / MEASURED / f"{name}.json").read_text())["seeds"] for name in ("triplet", "teacher")
    )
    for name, key in (("test accuracy", "test_accuracy"), ("calibration error", "test_calibration_error")):
        values = 100 * np.array([seed[key] for seed in measured])
        mean, std, beside = values.mean(), values.std(ddof=1), 100 * teacher[0][key]
        half = 12.7062 * std / 2**0.5  # Student's t, one degree of freedom, 97.5 %
        row = f"| {name}, % | {values[0]:.2f} | {mean:.2f} ± {std:.2f} | ± {half:.2f} | {beside:.2f} |"
        assert row in text
    assert f"| agreement with teacher, % | {100 * measured[0]['agreement']:.2f} |" in text
    assert "It is seed 2 of 2, 1: the first that did not fail, not the best one." in text
    assert "| `method.margin` | 5" in text and "| `recipe.epochs` | 1 |" in text
    assert "898 training and 899 test images, 10 classes" in text and "CC BY 4.0" in text
    said = json.loads((project / TRIPLET / "export.json").read_text())
    assert all(said[key] in text for key in ("onnx_sha256", "weights_sha256", "data_sha256"))


@pytest.mark.fault
def test_what_others_named_brings_neither_html_nor_cells_into_the_card(project: Path) -> None:
    said = json.loads((project / TRIPLET / "export.json").read_text())
    said["classes"] = ["<b>", "a|b", "R&D", "it's", *"456789"]
    description = json.loads((project / "data/digits" / data.DESCRIPTION).read_text())
    parts = {key: description[key] for key in ("sha256", "classes", "images", "duplicates")}
    records = [read_record(project / RUN / f"seed-{seed}") for seed in SEEDS]
    runs = [measurement.read(project / MEASURED / f"{name}.json", "digits", name) for name in ("triplet", "teacher")]

    def card(source: str) -> str:
        made_of = model_card.Sources(records, model_card.Description(source, **parts), *runs)
        return model_card.markdown(model_card.Exported(**said), made_of)

    text = card("folder <img src=x>\n| a | b |")
    assert not re.search(r"(?<!\\)<(img|b)\b", text)
    assert "Classes: \\<b>, a\\|b, R&D, it's, 4" in text
    assert "folder \\<img src=x> \\| a \\| b \\|: 898 training" in text and "unknown, ask who gave you" in text
    licence = card("torchvision SVHN").split("## Licence")[1]
    assert "non-commercial" in licence and "CC BY" not in licence


# --- what is refused --------------------------------------------------------------------------------------------------


def let_all_fail() -> None:
    for path in RUN.glob("*/record.json"):
        change(path, weights_sha256=None, failed="ce is nan")


def spoil(path: Path, **values: Any) -> Callable[[], None]:
    return lambda: change(path, **values)


REFUSED: dict[str, Callable[[], object]] = {
    "triplet: not there; trained are teacher: take one": lambda: shutil.rmtree(RUN),
    "triplet: every seed failed, there is nothing to export": let_all_fail,
    "triplet: trained on other images than data/digits": lambda: data.save(OTHER, Path("data/digits"), "digits"),
    "triplet.json: measured on other weights than runs": spoil(MEASURED / "triplet.json", weights_sha256={"1": "0"}),
    "triplet: distilled from another teacher": spoil(MEASURED / "teacher.json", weights_sha256={"1": "0"}),
    "json: not what this version writes (duplicates: ": spoil(Path("data/digits", data.DESCRIPTION), duplicates=1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_belong_together_is_not_exported(message: str, copy: Copy) -> None:
    REFUSED[message]()
    assert message in copy.refused("method=triplet")


def test_a_model_that_disagrees_stops_the_stage(copy: Copy) -> None:
    """The exporter is made to write the other seed's network."""
    other = trained(copy.folder, "triplet", SEEDS[1]).float()
    copy.patch.setattr(export, "to_onnx", lambda c, *rest: remembered(Classifier(other, c.inputs), *rest))
    assert re.search(r"another class than PyTorch's for [1-9]\d* of 899 images", copy.refused("method=triplet"))


def test_compare_counts_true_disagreements() -> None:
    expected = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8]], dtype=np.float32)
    found = np.array([[0.9, 0.1], [0.3, 0.7], [0.5 - 1e-7, 0.5], [0.2, 0.8]], dtype=np.float32)
    check = export.compare(expected, found, np.array([0, 1, 0, 0]))
    assert (check.images, check.other_class, check.test_accuracy) == (4, 1, 0.5)  # the third image is a tie
    assert check.max_difference == pytest.approx(0.3)


def test_what_cannot_be_read_or_is_not_a_number_is_no_agreement(project: Path) -> None:
    network = trained(project, "triplet", SEEDS[0]).float()
    with torch.no_grad():
        network.get_parameter("fc2.bias").fill_(float("nan"))
    for model, message in ((outputs(project)["model.onnx"], "up to nan apart"), (b"no model", "cannot read")):
        with pytest.raises(UserError, match=message):
            export.verify(model, Classifier(network, Inputs()), TEST)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*models.NETWORKS, "torchvision/resnet18")]


@pytest.mark.parametrize("name", ["resnet8", *SLOW])
def test_every_network_leaves_as_it_is(name: str) -> None:
    """On real digits, four times as large and in three colors.

    Batch norm has their statistics: without, an untrained deep network gives every image the same answer.
    """
    large = np.kron(TEST.images[:64], np.ones((1, 4, 4, 1), np.uint8)) * np.array([1, 0, 1], dtype=np.uint8)
    split = data.Split(np.ascontiguousarray(large + np.array([0, 90, 0], dtype=np.uint8)), TEST.labels[:64])
    inputs = Inputs(mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
    network = models.build(name, (32, 32, 3), 10, seed=1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(normalise(torch.from_numpy(split.images), *inputs.statistics(torch.device("cpu"), torch.float32)))
    classifier = Classifier(network, inputs)
    model = export.to_onnx(classifier, (32, 32, 3), "0123456789")
    assert b"tripletkd" not in model and str(ROOT).encode() not in model
    assert export.verify(model, classifier, split).images == 64


@pytest.mark.parametrize("name", ["paper_teacher", "resnet8"])
def test_a_network_of_photographs_takes_them_in_any_size(name: str) -> None:
    inputs = PhotographInputs(mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3), view=View(resize=36, size=32))
    classifier = Classifier(models.build(name, (32, 32, 3), 10, seed=1), inputs)
    call = export._open(export.to_onnx(classifier, (32, 32, 3), "0123456789"))
    for height, width in ((50, 40), (36, 71)):
        images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        expected = classifier(torch.from_numpy(images)).detach().numpy()
        np.testing.assert_allclose(call(images), expected, atol=export.TOLERANCE)


class Undecided(nn.Module):
    """What no exporter can write: its way depends on the images."""

    def forward(self, x: torch.Tensor) -> Outputs:
        logits = x.flatten(1)[:, :10]
        return Outputs(logits if logits.sum() > 0 else -logits, {})


def test_a_network_that_no_exporter_can_write_is_named_in_one_message() -> None:
    with pytest.raises(UserError, match=r"cannot write this network as ONNX: .*data-dependent"):
        export.to_onnx(Classifier(Undecided(), Inputs()), (8, 8, 1), "0123456789")


def test_a_teacher_that_cannot_leave_is_not_timed_and_its_student_leaves(copy: Copy) -> None:
    def without_teacher(classifier: Classifier, *rest: Any) -> bytes:
        if models.parameter_count(classifier) > 10_000:
            raise UserError("PyTorch cannot write this network as ONNX")
        return remembered(classifier, *rest)

    copy.patch.setattr(export, "to_onnx", without_teacher)
    assert "triplet" in copy.export("method=triplet")
    assert "the teacher is not timed: PyTorch cannot write" in copy.printed.readouterr().out
