"""Photographs from fetch to export: what is stored, what training and evaluation see, and the same bytes each time."""

import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import photographs as generated
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image, ImageOps
from shrunk import command
from small_run import CPU, PARAMS, SHORT
from torch import Tensor
from torchvision.transforms import v2

from stages import export as export_stage
from stages import fetch
from tripletkd import models
from tripletkd.cli import plan
from tripletkd.code_hash import reached_from
from tripletkd.config.load import load
from tripletkd.data import dataset as data
from tripletkd.data import photograph_batches, photographs, sources
from tripletkd.data.photograph_batches import PhotographInputs
from tripletkd.data.photographs import View
from tripletkd.errors import Paused, UserError
from tripletkd.pipeline.stage import run
from tripletkd.training.checkpoint import Checkpoint, SavePolicy
from tripletkd.training.compute import Compute
from tripletkd.training.distributed import Part, Processes
from tripletkd.training.identity import RunIdentity
from tripletkd.training.job import PHOTOGRAPHS, Job, build_trainer
from tripletkd.training.loop import TrainResult, fit
from tripletkd.training.optim import MultiStep, Recipe
from tripletkd.training.trainer import Teacher, Trainer
from tripletkd.types import Batch, Term

VIEW = View(36, 32)
EVERYTHING = {
    "random_resized_crop": [0.2, 1.0],
    "color_jitter": [0.2, 0.2, 0.2, 0.1],
    "rand_augment": [2, 9],
    "trivial_augment": True,
}
INPUTS = PhotographInputs((0.4,), (0.3,), flip=True, view=VIEW, train=EVERYTHING)
SUITE = {
    "about": "Shapes",
    "data": {"source": "folder", "path": "photographs", "short_side": 40},
    "inputs": {
        "mean": [0.4],
        "std": [0.3],
        "crop_padding": 0,
        "flip": True,
        "size": 32,
        "train": {"random_resized_crop": [0.08, 1]},
        "test": {"resize": 36},
    },
    "seeds": [1, 2],
    "precision": "float32",
    "recipe": {
        "epochs": 2,
        "batch_size": 10,
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005},
        "schedule": {"name": "multistep", "decay_epochs": [1], "decay_factor": 0.1},
        "label_smoothing": 0.1,
    },
    "teacher": {"network": "resnet8", "seed": 0, "recipe": {"epochs": 1, "mixup": 0.2, "cutmix": 1}},
    "teacher_floor": 0,
    "student": {"network": "paper_student_quarter"},
    "evaluate_every": 1,
    "holdout": 5,
    "published": None,
}


def project(folder: Path) -> Path:
    """With the suite `photos`; its class folders are to be written."""
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "dvc.yaml", folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["suites"]["photos"] = SUITE
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated.write(tmp_path_factory.mktemp("originals"))


def save(originals: Path, folder: Path, workers: int = 0) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return photographs.save(sources.folder(originals, short_side=40), folder, {"source": "a test"}, VIEW, workers)


@pytest.fixture(scope="module")
def stored(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    folder = tmp_path_factory.mktemp("stored")
    save(originals, folder)
    return data.load(folder)


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_a_small_photograph_keeps_its_file_and_a_large_one_is_resized_upright(
    originals: Path, stored: data.Dataset
) -> None:
    paths = [path for part in ("train", "val") for path in sorted((originals / part).rglob("*.img"))]
    photos, kept = stored.train.stored, 0
    assert isinstance(photos, photographs.Photographs) and len(photos.ends) == len(paths) == 60
    for place, path in enumerate(paths):
        with Image.open(path) as opened:
            original = ImageOps.exif_transpose(opened).convert("RGB")
            keeps = opened.format != "BMP" and min(opened.size) <= 40
        found, kept = photos.open(place), kept + keeps
        assert (photos.file(place) == path.read_bytes()) == keeps
        width, height = original.size
        short = min(width, height, 40)
        assert found.size == (width * short // min(original.size), height * short // min(original.size))
        expected = np.asarray(original.resize(found.size, Image.Resampling.BILINEAR), dtype=float)
        assert keeps <= (np.asarray(found) == expected).all()
        assert np.abs(np.asarray(found) - expected).mean() < 6  # JPEG
    assert 15 < kept < 45
    assert [part.labels.tolist() for part in (stored.train, stored.test)] == [[0] * 21 + [1] * 21, [0] * 9 + [1] * 9]


def test_evaluation_sees_torchvision_s_resize_and_center_crop(stored: data.Dataset) -> None:
    photos = stored.test.stored
    assert isinstance(photos, photographs.Photographs)
    transform = v2.Compose([v2.Resize(36, antialias=True), v2.CenterCrop(32)])
    expected = [np.asarray(transform(photos.open(place))) for place in range(42, 60)]
    np.testing.assert_array_equal(stored.test.images, np.stack(expected))
    split = photograph_batches.load(stored, INPUTS, CPU, torch.float32, workers=1).test
    found = torch.cat([images for images, _ in split.chunks(5)])
    torch.testing.assert_close(found, (torch.tensor(np.stack(expected)).movedim(-1, 1) / 255 - 0.4) / 0.3)


def test_folder_and_archive_any_processes_and_any_view_are_the_same_data(originals: Path, tmp_path: Path) -> None:
    said = [save(originals, tmp_path / str(workers), workers) for workers in (0, 2)]
    with tarfile.open(tmp_path / "photographs.tar", "w") as tar:
        tar.add(originals, ".")
    (tmp_path / "archive").mkdir()
    with sources.archive(tmp_path / "photographs.tar", None, tmp_path, short_side=40) as dataset:
        said.append(photographs.save(dataset, tmp_path / "archive", {"source": "a test"}, VIEW, 0))
    assert said[0] == said[1] == said[2]
    for name in (data.IMAGES, data.LABELS):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    dataset = data.load(tmp_path / "0")
    assert photographs.seen_as(dataset, View(20, 16)).sha256() == dataset.sha256() == said[0]["sha256"]
    part = sources.folder(originals, short_side=40).limited(3)
    few = photographs.save(part, tmp_path / "archive", {"source": "a test"}, VIEW, 0)
    assert few["images"] == {"train": 6, "test": 6}
    assert data.load(tmp_path / "0").limited(3).sha256() == few["sha256"] != dataset.sha256()


def test_a_changed_file_is_named(originals: Path, tmp_path: Path) -> None:
    save(originals, tmp_path)
    labels = np.load(tmp_path / data.LABELS)
    for change, message in (([1, 0], "sha256"), ([0, 10**6], "labels.npy: is not of images.npy; delete the folder")):
        np.save(tmp_path / data.LABELS, labels + np.array(change))
        with pytest.raises(UserError, match=message):
            data.load(tmp_path)


# --- what training sees -----------------------------------------------------------------------------------------------


def trainer(
    dataset: data.Dataset, seeds: list[int], workers: int, method: str = "triplet", recipe: Recipe | None = None
) -> Trainer:
    compute, networks = Compute(CPU, torch.float32, fuse_seeds=True), ("paper_teacher_quarter", "paper_student_quarter")
    short = replace(SHORT, epochs=3, batch_size=20, schedule=MultiStep(decay_epochs=(1,), decay_factor=0.1))
    made: dict[str, Any] = {"suite": "a", "split": "test", "name": method, "method": method, "network": networks[1]}
    made |= {"params": {}, "recipe": {}, "inputs": {"size": 32}, "precision": "float32", "deterministic": True}
    identity = RunIdentity(**made, evaluate_every=1, data_sha256="none", teacher_sha256=None)
    loaded = photograph_batches.load(dataset, INPUTS, CPU, torch.float32, workers)
    teacher = Teacher(models.build(networks[0], dataset.image_shape, 2, 1), loaded)
    job = Job(identity, PARAMS[method], recipe or short, seeds, networks[0])
    return build_trainer(job, seeds, loaded, compute, teacher)


def weights(result: TrainResult) -> dict[tuple[int, str], Tensor]:
    return {(seed, k): v for seed, network in result.networks.items() for k, v in network.state_dict().items()}


def test_processes_interruptions_and_other_seeds_change_no_byte(stored: data.Dataset, tmp_path: Path) -> None:
    """With every augmentation there is, and a validation split, whose photographs stand scattered in the file."""
    dataset = stored.with_holdout(4)
    here, apart, alone = (fit(trainer(dataset, seeds, n)) for seeds, n in (([1, 2], 0), ([1, 2], 2), ([2], 0)))
    with pytest.raises(Paused):
        fit(trainer(dataset, [1, 2], 2), checkpoint=Checkpoint(tmp_path / "c", "f", policy=SavePolicy(deadline=0)))
    resumed = fit(trainer(dataset, [1, 2], 1), checkpoint=Checkpoint(tmp_path / "c", "f"))
    assert here.history == apart.history == resumed.history
    for other in (apart, resumed):
        assert all(torch.equal(tensor, weights(other)[key]) for key, tensor in weights(here).items())
    torch.testing.assert_close(weights(alone), {k: v for k, v in weights(here).items() if k[0] == 2})


def test_a_view_is_of_its_seed_epoch_and_photograph_and_leaves_pytorch_s_generator_alone(stored: data.Dataset) -> None:
    made, before = trainer(stored, [1], 0), torch.random.get_rng_state()

    def epoch(number: int) -> tuple[Tensor, Tensor]:
        batches = list(made.data.train.batches(made.plan(number), 10))
        images = torch.cat([batch.images for batch in batches if batch.images is not None], dim=2)
        return torch.cat([batch.index for batch in batches], dim=2)[0], images[0]

    (index, images), (_, again), (other_index, others) = epoch(1), epoch(1), epoch(2)
    assert torch.equal(images, again) and images.shape == (2, 42, 32, 32, 3)
    assert (stored.train.labels[index[0]] != stored.train.labels[index[1]]).all()
    by_place = [dict(zip(i[0].tolist(), x[0], strict=True)) for i, x in ((index, images), (other_index, others))]
    assert sum(torch.equal(image, by_place[1][place]) for place, image in by_place[0].items()) < 3
    assert torch.equal(before, torch.random.get_rng_state())


def test_processes_of_one_training_divide_the_views_among_them(stored: data.Dataset) -> None:
    made, parts = trainer(stored, [1], 0), list[Part]()
    for rank in range(2):
        processes = Processes.__new__(Processes)
        processes.rank, processes.count = rank, 2
        parts.append(Part.of(made.data.train, processes))
    own = [torch.cat([part.take(batch) for batch in part.batches(made.plan(1), 42)], dim=2) for part in parts]
    whole = made.data.train.take(next(made.data.train.batches(made.plan(1), 42)))
    assert torch.equal(torch.cat(own, dim=2), whole)
    evaluated = torch.cat([images for part in parts for _, images in part.own_chunks(500)])
    assert torch.equal(evaluated, torch.cat([images for images, _ in made.data.train.chunks(500)]))


def test_teacher_and_student_see_the_same_view_and_a_negative_has_its_own(stored: data.Dataset) -> None:
    made = trainer(stored, [1], 0)
    made.objective = replace(made.objective, needs=frozenset({"teacher", "negative", "teacher_negative"}))
    teacher = Teacher(made.students.member(0), made.data)

    def loss(batch: Batch) -> dict[str, Term]:
        own = batch.teacher.logits - batch.student.logits
        other = batch.teacher_negative.logits - batch.negative.logits
        return {"own": Term(1.0, own.abs().mean()), "other": Term(1.0, other.abs().mean())}

    made.objective = replace(made.objective, teacher=teacher, loss=loss)
    made.begin_epoch(1)
    terms = made.step(next(made.data.train.batches(made.plan(1), 20)))
    assert terms["own"].item() < 1e-6 and terms["other"].item() < 1e-6


def test_what_makes_inputs_of_photographs_counts_for_runs_on_them_alone(stored: data.Dataset) -> None:
    names = {f"{each.module}.{each.name}" for each in reached_from(PHOTOGRAPHS)}
    assert {
        f"tripletkd.data.{name}" for name in ("photographs.Photographs", "sources.shorter", "photograph_batches.load")
    } <= names
    job = partial(Job, params=PARAMS["kd"], recipe=SHORT, seeds=[1])
    made: dict[str, Any] = {"suite": "a", "split": "test", "name": "kd", "method": "kd", "network": "resnet8"}
    made |= {"params": {}, "recipe": {}, "precision": "float32", "deterministic": True, "evaluate_every": 1}
    codes = [
        job(RunIdentity(**made, inputs=inputs, data_sha256="none", teacher_sha256=None)).code
        for inputs in ({}, {"size": 32})
    ]
    assert codes[0] != codes[1]


# --- the stages -------------------------------------------------------------------------------------------------------

PREPARE = """
import runpy, sys
for stage in ("fetch", "train_teacher", "distill", "evaluate"):
    sys.argv[0] = f"{stage}.py"
    runpy.run_module(f"stages.{stage}", run_name="__main__")
"""
WORDS = ["suite=photos", "method=triplet"]


@pytest.mark.smoke
def test_from_fetch_to_export(
    tmp_path: Path, originals: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exported file takes a photograph of any size; the plan knows how much disk the encoded files take."""
    folder = project(tmp_path / "p")
    shutil.copytree(originals, folder / "photographs")
    printed = command(folder, sys.executable, "-c", PREPARE, *WORDS, "run.workers=2", PYTHONPATH=str(ROOT))
    assert "42 training and 18 test photographs, of which networks see 32 x 32 x 3, 2 classes" in printed
    monkeypatch.chdir(folder)
    monkeypatch.setattr(export_stage, "BATCHES", ())  # nothing is timed
    monkeypatch.setattr(sys, "argv", ["export.py", *WORDS])
    run(export_stage.main, needs=("suite", "method"), allow_teacher=True)
    import onnxruntime  # type: ignore[import-untyped]

    place = folder / "exports/photos/triplet"
    session = onnxruntime.InferenceSession(place / "model.onnx", providers=["CPUExecutionProvider"])
    settings, dataset = load(folder, WORDS).for_suite("photos"), data.load(folder / "data/photos")
    [network] = read(folder / "runs/photos/test/triplet", 1)
    for image in (generated.photograph(3, 0), generated.photograph(4, 1)):
        seen = settings.inputs.view(image)
        pixels = (torch.tensor(np.array(seen)).movedim(-1, 0)[None] / 255 - 0.4) / 0.3
        [found] = session.run(None, {"images": np.asarray(image)[None]})
        np.testing.assert_allclose(found, network(pixels).logits.softmax(1).detach().numpy(), atol=0.01)
    card, said = (place / "MODEL_CARD.md").read_text(), json.loads((place / "export.json").read_text())
    assert "Resizing the shorter side to 36 pixels, cropping 32 x 32 in the center" in card
    assert said["images"] == len(dataset.test.labels) and said["other_class"] == 0
    record = json.loads((folder / "runs/photos/test/triplet/seed-1/record.json").read_text())
    assert record["identity"]["recipe"]["label_smoothing"] == 0.1 and record["image_shape"] == [32, 32, 3]
    plan.main(["suite=photos", "run.methods=[triplet]", "run.ablations=[]", "run.workers=0"], ask=False)
    taken = 2 * (folder / "data/photos/images.npy").stat().st_size / 2**20
    assert f"the data takes {taken:.1f} MiB of disk" in capsys.readouterr().out


def read(folder: Path, seed: int) -> list[torch.nn.Module]:
    from tripletkd.training.run_record import load_network, read_record, seed_folder

    return [load_network(folder, read_record(seed_folder(folder, seed))).eval()]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def narrow(_: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What fetch says on its way out."""
    monkeypatch.setattr(sys, "argv", ["fetch.py", "suite=photos", *words])
    with pytest.raises(SystemExit):
        run(fetch.main)
    return capsys.readouterr().err


@pytest.mark.fault
@pytest.mark.parametrize(
    ("workers", "damage", "reason"),
    [(0, cut, "truncated"), (2, cut, "truncated"), (2, narrow, "too narrow"), (0, lambda _: b"", "unknown")],
)
def test_a_photograph_that_cannot_be_decoded_is_named_and_nothing_is_written(
    workers: int,
    damage: Callable[[bytes], bytes],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, path = project(tmp_path), Path("photographs/train/circle/006.img")
    generated.write(folder / "photographs", 12, 4)
    monkeypatch.chdir(folder)
    path.write_bytes(damage(path.read_bytes()))
    said = refused(monkeypatch, capsys, f"run.workers={workers}")
    assert re.search(rf"{path}: not an image that can be read \(.*{reason}.*remove or replace it", said)
    assert not list((folder / "data").glob("*"))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.short_side=4", "data.short_side: found 4, expected a value >= 8"),
        ("data.image_size=32", "data.image_size: found with data.short_side; expected one of them"),
        ("data.short_side=30", "inputs.test.resize: found 36; expected at least 32, the size, and at most 30"),
        ("inputs.size=40", "inputs.test.resize: found 36; expected at least 40"),
        ("inputs.size=null", "inputs.size: missing; data.short_side needs the size of an input"),
        ("data.short_side=null", "inputs: found size, train or test without data.short_side"),
        ("inputs.crop_padding=1", "inputs.crop_padding: found with photographs; expected 0"),
        (
            "inputs.train.random_resized_crop=[1,0.1]",
            "inputs.train.random_resized_crop: found [1.0, 0.1]; expected the",
        ),
        (
            "inputs.train.color_jitter=[0,0,0,0.6]",
            "inputs.train.color_jitter: found a hue of 0.6; expected at most 0.5",
        ),
        (
            "inputs.train={rand_augment: [2, 9], trivial_augment: true}",
            "inputs.train.trivial_augment: found with rand_",
        ),
        ("inputs.train.flip=true", "inputs.train.flip: unknown key; expected one of random_resized_crop"),
        ("student.recipe={mixup: 0.2}", "recipe.mixup: found 0.2; triplet asks for images of other classes"),
        ("student.recipe={cutmix: 1}", "recipe.cutmix: found 1.0; triplet asks for images of other classes"),
    ],
)
def test_what_does_not_go_together_is_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(project(tmp_path), [*WORDS, f"suites.photos.{change}"])
    assert f"suites.photos.{message}" in str(error.value)


@pytest.mark.fault
def test_photographs_need_a_folder_or_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project(tmp_path))
    said = refused(monkeypatch, capsys, "suites.photos.data={source: digits, path: null}")
    assert "data.short_side: found with data.source: digits, which does not read it" in said
