"""Images that stay on the host: the same bytes as from the device, and no more memory than a few batches."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import command
from small_run import FUSED, PLAIN, SHORT, Small, assert_same_bits, digits

from tripletkd.data import dataset as data
from tripletkd.training.optim import MultiStep


@pytest.mark.parametrize(("method", "holdout", "fused"), [("triplet", 2, True), ("kd", 0, True), ("crd", 2, False)])
def test_training_from_the_host_gives_the_same_bytes(method: str, holdout: int, fused: bool, tmp_path: Path) -> None:
    """The images, augmented, come from the canonical file; those of a validation split stand scattered in it."""
    data.save(digits(), tmp_path, "a test")
    dataset = data.load(tmp_path).with_holdout(holdout) if holdout else data.load(tmp_path)
    recipe = replace(SHORT, epochs=2, schedule=MultiStep(decay_epochs=(1,), decay_factor=0.1))
    small = Small(method, PLAIN, recipe, compute=replace(FUSED, fuse_seeds=fused))
    device, host = (replace(small, resident=resident).fit([1, 2], dataset) for resident in (True, False))
    assert_same_bits(device, host)


PROGRAM = """
import resource, sys
from pathlib import Path

import numpy as np

from tripletkd import models
from tripletkd.config.load import load
from tripletkd.data import dataset as data
from tripletkd.pipeline.jobs import Runs, set_up
from tripletkd.pipeline.stage import Stage
from tripletkd.training.job import build_trainer
from tripletkd.training.trainer import Teacher

images, limit = int(sys.argv[1]), int(sys.argv[2])
stage = Stage("distill", load(Path.cwd(), ["suite=digits", "method=triplet", *sys.argv[3:]]))
classes, folder = tuple("0123456789"), stage.path("data")

def made_up(images):
    return data.Split(np.broadcast_to(np.uint8(100), (images, 32, 32, 3)), np.arange(images) % 10)

def train(setup):
    teacher = Teacher(models.build("paper_teacher_quarter", (32, 32, 3), 10, 1), setup.data)
    trainer = build_trainer(Runs(stage, "").student("triplet"), [1, 2], setup.data, setup.compute, teacher)
    trainer.begin_epoch(1)
    for _, batch in zip(range(4), setup.data.train.batches(trainer.plan(1), 50)):
        trainer.step(batch)
    teacher.test_logits, trainer.predictions(setup.data.test)

train(set_up(stage, data.Dataset(made_up(400), made_up(20), classes)))  # what PyTorch itself needs
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
resource.setrlimit(resource.RLIMIT_DATA, (int(status["VmData"].split()[0]) * 1024 + limit, -1))
folder.mkdir(parents=True)
data.save(data.Dataset(made_up(images), made_up(20), classes), folder, "made up")
train(set_up(stage))
"""
MIB = 2**20


@pytest.mark.smoke
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_training_from_the_host_takes_the_memory_of_a_few_batches(tmp_path: Path) -> None:
    """Written, checked, a validation split held out and trained beside, within a limit where the device has no room."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    words = [sys.executable, "-c", PROGRAM, str(256 * MIB // 3072), str(128 * MIB), "split=validation"]
    words += ["suites.digits.inputs.flip=true"]  # or the teacher would be asked of all images before
    command(tmp_path, *words, "run.residence=host", PYTHONPATH=str(ROOT))
    shutil.rmtree(tmp_path / "data")
    printed = command(tmp_path, *words, "run.residence=device", PYTHONPATH=str(ROOT), check=False)
    assert "can't allocate memory" in printed
