"""The student leaves the house: the true command on a shrunk run of the real digits, its files, its errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from numpy.typing import NDArray
from torch import nn

from stages import export as stage
from tripletkd import export, models
from tripletkd.config.load import load
from tripletkd.data import dataset as data
from tripletkd.data import sources
from tripletkd.data.batches import Inputs, normalise
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.export import Classifier
from tripletkd.pipeline.stage import run
from tripletkd.provenance import sha256
from tripletkd.reporting import model_card as card
from tripletkd.reporting.model_card import Exported, Sources
from tripletkd.training.run_record import load_network, read_record

SEEDS = [2, 1]  # the first is neither the smallest nor, after one epoch, bound to be the best
SMALL = [
    "suite=digits",
    f"suites.digits.seeds={SEEDS}",
    "suites.digits.teacher_floor=0",
    "suites.digits.recipe.epochs=1",
    "suites.digits.recipe.schedule.decay_epochs=[1]",
    "suites.digits.evaluate_every=1",
    "methods.triplet.margin=5",
]
OUTPUTS = ["MODEL_CARD.md", "example.json", "export.json", "model.onnx"]
# One process for the stages before: torch is imported once.
PREPARE = """
import runpy, sys
for stage in ("fetch", "train_teacher", "distill", "evaluate"):
    sys.argv[0] = f"{stage}.py"
    runpy.run_module(f"stages.{stage}", run_name="__main__")
"""
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
ENVIRONMENT["MLFLOW_TRACKING_URI"] = "nowhere:"  # nothing is logged
Images = NDArray[np.uint8]


def python(folder: Path, *words: str, **variables: str) -> str:
    """Run Python there; its standard output. Its errors are pytest's to show."""
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, check=True
    ).stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher and two seeds of a measured student, on a path with a space."""
    folder = tmp_path_factory.mktemp("one space")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    python(folder, "-c", PREPARE, *SMALL, "method=triplet")
    return folder


@pytest.fixture(scope="module")
def exported(project: Path) -> Path:
    """What the command wrote; it says what takes long."""
    first, second, *rest = python(project, "-m", "stages.export", *SMALL, "method=triplet").splitlines()
    assert first.startswith("runs/digits/test/triplet, seed 2: writing as ONNX") and second.startswith("timing")
    assert rest[0].startswith("exports/digits/triplet/model.onnx: seed 2, 2,706 parameters, ")
    return project / "exports/digits/triplet"


@pytest.fixture
def copy(project: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project elsewhere, to be changed; the stage is called in it, and times nothing."""
    for name in ("data", "runs", "results", "exports"):
        shutil.copytree(project / name, tmp_path / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:")
    monkeypatch.setattr(
        stage, "measure_latency", lambda *_: {f"latency_ms_batch_{batch}": 1.0 for batch in stage.BATCHES}
    )
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", *SMALL, *overrides])
    run(stage.main, needs=("suite", "method"), allow_teacher=True)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_identity(path: Path, **values: Any) -> None:
    block = json.loads(path.read_text())
    change(path, identity=block["identity"] | values)


def fail(run_folder: Path, seed: int) -> None:
    """Make a record say that its seed failed."""
    change(run_folder / f"seed-{seed}" / "record.json", weights_sha256=None, failed="ce is nan")


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def by_pytorch(project: Path, method: str, seed: int, images: Images) -> NDArray[np.float64]:
    """Probabilities from the run record, with params.yaml's normalisation by hand, in double precision."""
    network = trained(project, method, seed).double().eval()
    inputs = torch.from_numpy((images / 255 - 0.307) / 0.377).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network(inputs).logits.softmax(1).numpy()


def trained(project: Path, method: str, seed: int) -> nn.Module:
    run_folder = project / "runs/digits/test" / method
    return load_network(run_folder, read_record(run_folder / f"seed-{seed}"))


def by_onnx(path: Path, images: Images) -> NDArray[np.float32]:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images})[0]


@pytest.fixture(scope="module")
def images(project: Path) -> Images:
    return data.load(project / "data/digits").test.images


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_model_gives_pytorch_s_probabilities_for_any_number_of_images(
    project: Path, exported: Path, images: Images
) -> None:
    expected = by_pytorch(project, "triplet", SEEDS[0], images)
    assert np.abs(expected - by_pytorch(project, "triplet", SEEDS[1], images)).max() > 0.01  # the seeds differ
    for count in (1, 3, len(images)):
        found = by_onnx(exported / "model.onnx", images[:count])
        assert found.dtype == np.float32 and found.shape == (count, 10)
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


def test_export_json_says_what_the_files_are(project: Path, exported: Path) -> None:
    said = json.loads((exported / "export.json").read_text())
    weights = project / "runs/digits/test/triplet/seed-2/weights.safetensors"
    measured = json.loads((project / "results/digits/measured/test/triplet.json").read_text())
    assert (said["seed"], said["images"], said["other_class"]) == (2, 899, 0)
    assert 0 < said["max_difference"] < 1e-5
    assert said["test_accuracy"] == pytest.approx(measured["seeds"][0]["test_accuracy"], abs=1e-12)
    assert said["parameters"] == measured["parameters"]
    assert (said["weights_sha256"], said["weights_bytes"]) == (sha256(weights), weights.stat().st_size)
    onnx = exported / "model.onnx"
    assert (said["onnx_sha256"], said["onnx_bytes"]) == (sha256(onnx), onnx.stat().st_size)
    assert said["onnx_bytes"] < 2 * said["weights_bytes"]  # the exporter's notes are gone


def test_the_model_is_valid_and_says_its_opset_and_classes(exported: Path) -> None:
    import onnx

    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", export.OPSET)]
    assert {p.key: json.loads(p.value) for p in model.metadata_props} == {"classes": [str(i) for i in range(10)]}


def test_no_output_has_a_time_a_commit_or_a_place(project: Path, exported: Path) -> None:
    log = json.loads((exported / "log.json").read_text())
    assert sorted(path.name for path in exported.iterdir()) == sorted([*OUTPUTS, "log.json"])
    for contents in outputs(exported).values():
        for trace in (str(project), str(ROOT), ".py", log["started"], "latency"):
            assert trace.encode() not in contents
    for name in ("latency_ms_batch_1", "latency_ms_batch_64", "teacher_latency_ms_batch_64"):
        assert 0 < log[name] < 1000


def test_again_elsewhere_gives_the_same_bytes_whatever_params_yaml_says_now(
    copy: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preprocessing is the one of the training; that of today's params.yaml would be another model."""
    shutil.rmtree(copy / "exports")
    command(monkeypatch, "method=triplet", "suites.digits.inputs.mean=[0.9]", "methods.triplet.margin=9")
    assert outputs(copy / "exports/digits/triplet") == outputs(exported)


def test_the_teacher_leaves_too(
    copy: Path, images: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "method=teacher")
    folder = copy / "exports/digits/teacher"
    np.testing.assert_allclose(
        by_onnx(folder / "model.onnx", images), by_pytorch(copy, "teacher", 0, images), atol=1e-5
    )
    text = (folder / "MODEL_CARD.md").read_text()
    assert "paper_teacher_quarter, the teacher" in text and "the only one of this run" in text
    assert "beside the teacher" not in capsys.readouterr().out


def test_a_seed_that_failed_is_passed_over(copy: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = copy / "runs/digits/test/triplet"
    measured = copy / "results/digits/measured/test/triplet.json"
    fail(runs, 2)
    seeds = [seed for seed in json.loads(measured.read_text())["seeds"] if seed["seed"] == 1]
    alive = {"1": read_record(runs / "seed-1").weights_sha256}
    change(measured, weights_sha256=alive, seeds=seeds, failed={"2": "ce is nan"})
    command(monkeypatch, "method=triplet")
    folder = copy / "exports/digits/triplet"
    assert "Seed 2 failed: ce is nan." in (folder / "MODEL_CARD.md").read_text()
    found = by_onnx(folder / "model.onnx", images)
    np.testing.assert_allclose(found, by_pytorch(copy, "triplet", 1, images), atol=1e-5)


def test_a_seed_can_be_chosen(
    copy: Path, images: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "method=triplet", "--seed", "1")
    folder = copy / "exports/digits/triplet"
    found = by_onnx(folder / "model.onnx", images)
    np.testing.assert_allclose(found, by_pytorch(copy, "triplet", 1, images), atol=1e-5)
    assert "It is seed 1 of 2, 1, chosen by whoever exported it." in (folder / "MODEL_CARD.md").read_text()
    with pytest.raises(SystemExit):
        command(monkeypatch, "method=triplet", "--seed", "7")
    assert "no such seed that did not fail; it has 2, 1" in capsys.readouterr().err


def test_a_pulled_run_without_images_is_compared_on_noise(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "data/digits" / data.IMAGES).unlink()
    command(monkeypatch, "method=triplet")
    folder = copy / "exports/digits/triplet"
    said = json.loads((folder / "export.json").read_text())
    assert (said["images"], said["test_accuracy"]) == (stage.MADE_UP, None)
    assert "on all 500 made-up images" in (folder / "MODEL_CARD.md").read_text()


def test_on_the_validation_split_the_test_images_stay_unseen(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("runs/digits", "results/digits/measured"):
        (copy / place / "test").rename(copy / place / "validation")
    held_out = sources.digits().with_holdout(5)
    for seed in SEEDS:
        path = copy / f"runs/digits/validation/triplet/seed-{seed}/record.json"
        change_identity(path, split="validation", data_sha256=held_out.sha256())
    for name in ("triplet", "teacher"):
        change_identity(copy / f"results/digits/measured/validation/{name}.json", split="validation")
    command(monkeypatch, "method=triplet", "split=validation", "suites.digits.holdout=5")
    folder = copy / "exports/digits/triplet"
    assert json.loads((folder / "export.json").read_text())["images"] == 10 * 5
    assert "All figures here are of images held out of the training split" in (folder / "MODEL_CARD.md").read_text()
    [[*first], _] = json.loads((folder / "example.json").read_text())["inputs"]
    assert np.array_equal(first, held_out.test.images[0])


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_s_code_runs_to_the_letter(project: Path, exported: Path, images: Images) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (exported / "MODEL_CARD.md").read_text(), re.DOTALL)
    printed = python(exported, "-c", code, PYTHONPATH="")  # the project is not needed
    lines = [line.split() for line in printed.splitlines()]
    expected = by_pytorch(project, "triplet", SEEDS[0], images[: stage.EXAMPLES])
    assert [int(name) for name, _ in lines] == expected.argmax(1).tolist()
    assert [float(probability) for _, probability in lines] == pytest.approx(expected.max(1).tolist(), abs=1e-5)


def test_the_card_has_the_figures_of_all_seeds(project: Path, exported: Path) -> None:
    text = (exported / "MODEL_CARD.md").read_text()
    measured, teacher = (
        json.loads((project / f"results/digits/measured/test/{name}.json").read_text())
        for name in ("triplet", "teacher")
    )
    for name, key in (("test accuracy", "test_accuracy"), ("calibration error", "test_calibration_error")):
        values = 100 * np.array([seed[key] for seed in measured["seeds"]])
        half = 12.7062 * values.std(ddof=1) / 2**0.5  # Student's t, one degree of freedom, 97.5 %
        assert (
            f"| {name}, % | {values[0]:.2f} | {values.mean():.2f} ± {values.std(ddof=1):.2f} | ± {half:.2f} "
            f"| {100 * teacher['seeds'][0][key]:.2f} |"
        ) in text
    agreement = 100 * measured["seeds"][0]["agreement"]
    assert f"| agreement with teacher, % | {agreement:.2f} |" in text
    assert "It is seed 2 of 2, 1: the first that did not fail, not the best one." in text
    assert "| `method.margin` | 5" in text and "| `recipe.epochs` | 1 |" in text
    assert "898 training and 899 test images, 10 classes" in text and "CC BY 4.0" in text
    made = json.loads((exported / "export.json").read_text())
    for key in ("onnx_sha256", "weights_sha256", "data_sha256"):
        assert made[key] in text


def described(project: Path, exported: Path, names: dict[str, Any]) -> tuple[Exported, Sources]:
    """What the card of the export is made of, with other entries in dataset.json."""
    records = [read_record(project / f"runs/digits/test/triplet/seed-{seed}") for seed in SEEDS]
    description = json.loads((project / "data/digits/dataset.json").read_text())
    measured, teacher = (
        measurement.read(project / f"results/digits/measured/test/{name}.json", "digits", name)
        for name in ("triplet", "teacher")
    )
    said = Exported(**json.loads((exported / "export.json").read_text()))
    return said, Sources(records, description | names, measured, teacher)


@pytest.mark.fault
def test_what_others_named_brings_neither_html_nor_cells_into_the_card(project: Path, exported: Path) -> None:
    said, sources = described(project, exported, {"source": "folder <img src=x>\n| a | b |"})
    text = card.markdown(replace(said, classes=["<b>", "a|b", "R&D", "it's", *"456789"]), sources)
    assert not re.search(r"(?<!\\)<(img|b)\b", text)
    assert "Classes: \\<b>, a\\|b, R&D, it's, 4" in text
    assert "folder \\<img src=x> \\| a \\| b \\|: 898 training" in text


def test_the_card_names_the_licence_of_the_images(project: Path, exported: Path) -> None:
    for source, licence in (("torchvision SVHN", "non-commercial"), ("folder mine", "unknown, ask who gave you")):
        text = card.markdown(*described(project, exported, {"source": source}))
        assert licence in text.split("## Licence")[1] and "CC BY" not in text


def test_every_torchvision_source_of_params_has_a_licence_line() -> None:
    used = {f"torchvision {suite.data.name}" for suite in load(ROOT, []).suites.values() if suite.data.name}
    assert used <= card.LICENCES.keys()


# --- what is refused --------------------------------------------------------------------------------------------------


def remove_run(copy: Path) -> None:
    shutil.rmtree(copy / "runs/digits/test/triplet")


def remove_record(copy: Path) -> None:
    (copy / "runs/digits/test/triplet/seed-2/record.json").unlink()


def rename_classes(copy: Path) -> None:
    change(copy / "data/digits/dataset.json", classes=["cat", *"123456789"])


def change_weights(copy: Path) -> None:
    with (copy / "runs/digits/test/triplet/seed-2/weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")


def let_all_fail(copy: Path) -> None:
    for seed in SEEDS:
        fail(copy / "runs/digits/test/triplet", seed)


def train_again(copy: Path) -> None:
    change(copy / "results/digits/measured/test/triplet.json", weights_sha256={"1": "0", "2": "0"})


def take_other_teacher(copy: Path) -> None:
    change(copy / "results/digits/measured/test/teacher.json", weights_sha256={"1": "0"})


def take_other_images(copy: Path) -> None:
    data.save(sources.digits().limited(20), copy / "data/digits", "digits")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove_run, "runs/digits/test/triplet: not there; trained are teacher: take one"),
        (
            rename_classes,
            "data/digits/dataset.json: classes cat, 1, 2, 3, 4, 5, 6, 7, 8, 9; results/digits/measured/test/",
        ),
        (remove_record, "runs/digits/test/triplet/seed-2/record.json: not there; run the stage that makes it"),
        (change_weights, "runs/digits/test/triplet/seed-2/weights.safetensors: sha256 is "),
        (let_all_fail, "runs/digits/test/triplet: every seed failed, there is nothing to export"),
        (
            train_again,
            "results/digits/measured/test/triplet.json: measured on other weights than runs/digits/test/triplet",
        ),
        (take_other_teacher, "runs/digits/test/triplet: distilled from another teacher"),
        (take_other_images, "runs/digits/test/triplet: trained on other images than data/digits"),
    ],
)
def test_what_does_not_belong_together_is_not_exported(
    harm: Any, message: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outputs(copy / "exports/digits/triplet")
    harm(copy)
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, "method=triplet")
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.startswith(f"error: {message}") and error.count("\n") == 1
    assert outputs(copy / "exports/digits/triplet") == before


def test_a_model_that_disagrees_stops_the_stage(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exporter is made to write the other seed's network."""
    before, true = outputs(copy / "exports/digits/triplet"), export.to_onnx
    other = trained(copy, "triplet", SEEDS[1]).float()
    monkeypatch.setattr(export, "to_onnx", lambda c, *rest: true(Classifier(other, c.inputs), *rest))
    with pytest.raises(SystemExit):
        command(monkeypatch, "method=triplet")
    error = capsys.readouterr().err
    assert re.search(r"another class than PyTorch's for [1-9]\d* of 899 images", error)
    assert outputs(copy / "exports/digits/triplet") == before


def test_compare_counts_true_disagreements() -> None:
    expected = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8]], dtype=np.float32)
    found = np.array([[0.9, 0.1], [0.3, 0.7], [0.5 - 1e-7, 0.5], [0.2, 0.8]], dtype=np.float32)
    check = export.compare(expected, found, np.array([0, 1, 0, 0]))
    assert (check.images, check.other_class) == (4, 1)  # the third image is a tie
    assert check.max_difference == pytest.approx(0.3)
    assert check.test_accuracy == 0.5


def test_not_a_number_is_no_agreement(images: Images) -> None:
    network = models.build("paper_student_quarter", (8, 8, 1), 10, seed=1)
    good = export.to_onnx(Classifier(network, Inputs()), (8, 8, 1), "0123456789")
    with torch.no_grad():
        network.get_parameter("fc2.bias").fill_(float("nan"))
    with pytest.raises(UserError, match="up to nan apart"):
        export.verify(good, Classifier(network, Inputs()), sources.digits().test)


# --- every network ----------------------------------------------------------------------------------------------------


def agree(name: str) -> None:
    """On real digits, four times as large and in three colours.

    Batch norm has their statistics: without, an untrained deep network gives every image the same answer.
    """
    split = sources.digits().test
    coloured = np.kron(split.images[:64], np.ones((1, 4, 4, 1), np.uint8)) * np.array([1, 0, 1], dtype=np.uint8)
    split = data.Split(np.ascontiguousarray(coloured + np.array([0, 90, 0], dtype=np.uint8)), split.labels[:64])
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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*models.NETWORKS, "torchvision/resnet18")]


@pytest.mark.parametrize("name", ["resnet8", *SLOW])
def test_every_network_leaves_as_it_is(name: str) -> None:
    agree(name)
