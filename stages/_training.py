"""What the stages that touch networks share: data on the device, and one training run from parameters to run record."""

import copy
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages import Stage, tracking_root
from tripletkd import Problem, data, models, record, tracking
from tripletkd.checkpoint import Checkpoint
from tripletkd.data import DeviceSplit, Sampler
from tripletkd.ensemble import Ensemble
from tripletkd.provenance import environment, fingerprint, sha256
from tripletkd.record import Record
from tripletkd.train import Fitted, Loss, Recipe, Teacher, Trainer, accuracy, fit

SMALL_IMAGE = 16  # up to this height one seed's kernels leave a processor idle, and all seeds go into each


@dataclass
class Setting:
    """A suite's data on the device, and how to compute there."""

    dataset: data.Dataset
    train: DeviceSplit
    test: DeviceSplit
    device: torch.device
    dtype: torch.dtype
    folded: bool

    @classmethod
    def of(cls, stage: Stage, dataset: data.Dataset | None = None) -> "Setting":
        """Deterministic algorithms, the suite's data checked by its hash; Problem if run.device is not there."""
        settings = stage.config.run
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
        torch.set_deterministic_debug_mode(
            "error"
        )  # as use_deterministic_algorithms(True), which imports a compiler (3 s)
        has_cuda = torch.cuda.is_available()
        if settings.device == "cuda" and not has_cuda:
            raise Problem("run.device: cuda, but PyTorch finds no CUDA device here; expected cpu or auto")
        device = torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")
        dtype = getattr(torch, settings.precision)
        dataset = dataset or data.load(stage.place("data"))
        if settings.holdout:
            dataset = dataset.with_holdout(settings.holdout)
        inputs = stage.suite.inputs.build(dataset.image_shape[2])
        train, test = (DeviceSplit(split, inputs, device, dtype) for split in (dataset.train, dataset.test))
        small = dataset.image_shape[0] <= SMALL_IMAGE
        if small and device.type == "cpu":
            torch.set_num_threads(1)  # a second one gains nothing on kernels this small: it spins and waits
        fold = {"auto": small or device.type == "cuda", "always": True, "never": False}[settings.folding]
        return cls(dataset, train, test, device, dtype, fold)


def load_teacher(stage: Stage, setting: Setting) -> tuple[nn.Module, str]:
    """The suite's teacher and the hash of its weights; Problem if it is not of this data, or below its floor."""
    folder, floor = stage.place("runs", "teacher"), stage.suite.teacher.floor
    made = record.read(folder)
    if made.data_sha256 != setting.dataset.sha256():
        raise Problem(f"{folder}: trained on other images than {stage.place('data')}; run train_teacher again")
    if not made.weights_sha256:
        raise Problem(f"{folder}: the teacher's training failed: {made.failed}")
    [(seed, network)] = made.load_networks(folder).items()
    reached = 100 * accuracy(Ensemble([network], setting.device, setting.dtype, folded=False), setting.test)[0]
    if reached < floor:
        raise Problem(
            f"suites.{stage.config.suite}.teacher.floor: the teacher reaches {reached:.2f} % on the test split, "
            f"{floor} % is demanded before a student is trained; train it better (teacher.recipe) or lower the floor"
        )
    return network, made.weights_sha256[str(seed)]


def own_layers(
    method: Any, params: Any, students: list[nn.Module], teacher: nn.Module, seeds: list[int], setting: Setting
) -> list[nn.Module] | None:
    """What the method trains beside the student, for the shapes of these two networks; drawn from each seed."""
    if not hasattr(method, "layers"):
        return None
    height, width, channels = setting.dataset.image_shape
    images = torch.zeros(2, channels, height, width)
    with torch.no_grad():
        shapes = [copy.deepcopy(network).eval()(images) for network in (students[0], teacher)]
    return [models.seeded(seed, partial(method.layers, *shapes, params)) for seed in seeds]


def train_and_record(
    stage: Stage,
    setting: Setting,
    *,
    method: str,
    network: str,
    students: Sequence[nn.Module],
    loss: Loss,
    seeds: list[int],
    recipe: Recipe,
    needs: Collection[str],
    params: dict[str, Any],
    layers: Sequence[nn.Module] | None = None,
    teacher: Teacher | None = None,
    teacher_sha256: str | None = None,
    finish: Callable[[Record, Fitted], None] | None = None,
) -> None:
    """Train the students, from a checkpoint where one is left; write the run record; log it to MLflow.

    finish: writes what else the stage makes. Only then does the checkpoint go: until all is written, no training is
    done twice.
    """
    dataset, folder = setting.dataset, stage.place("runs", method)
    made = Record(
        suite=stage.config.suite,
        method=method,
        network=network,
        image_shape=dataset.image_shape,
        classes=len(dataset.classes),
        seeds=seeds,
        failed={},
        params=params,
        data_sha256=dataset.sha256(),
        teacher_sha256=teacher_sha256,
        environment=environment(setting.device.type)
        | {"precision": stage.config.run.precision, "folded": setting.folded},
    )
    trainer = Trainer(
        students, loss, recipe, setting.device, setting.dtype, setting.folded, "features" in needs, layers
    )
    checkpoint = Checkpoint(
        stage.place("checkpoints", f"{method}.safetensors"),
        fingerprint(asdict(made), asdict(recipe), _code(method)),
        minutes=stage.config.run.checkpoint_minutes,
        max_minutes=stage.max_minutes,
    )
    started = time.monotonic()
    sampler = Sampler(dataset.train.labels, setting.train.inputs, "negative" in needs)
    with tracking.Logger(tracking_root()) as logger:
        fitted = fit(
            trainer,
            seeds,
            recipe,
            sampler,
            setting.train,
            setting.test,
            teacher=teacher,
            evaluate_every=stage.suite.evaluate_every,
            checkpoint=checkpoint,
            description=f"{stage.config.suite}/{method}",
        )
        made.failed.update({str(seed): why for seed, why in fitted.failed.items()})
        made = record.write(folder, made, fitted, stage.log(training_seconds=round(time.monotonic() - started, 2)))
        if finish and fitted.networks:
            finish(made, fitted)
        logger.record(folder)
        checkpoint.remove()
    if not fitted.networks:
        raise Problem(
            f"{folder}: every seed failed: " + "; ".join(f"seed {seed}: {why}" for seed, why in fitted.failed.items())
        )


def _code(method: str) -> list[str]:
    """Hashes of the code a run depends on: a checkpoint does not outlive a change of it."""
    library = Path(sys.modules["tripletkd"].__file__ or "").parent
    names = [
        "train.py",
        "ensemble.py",
        "models.py",
        "networks.py",
        "data.py",
        "methods/_terms.py",
        f"methods/{'scratch' if method == 'teacher' else method}.py",
    ]
    return [sha256(library / name) for name in names]
