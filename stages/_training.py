"""What the stages that touch networks share: data on the device, and one training run from parameters to run record."""

import copy
import ctypes
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages import Stage
from tripletkd import methods, models
from tripletkd.data import dataset as data
from tripletkd.data.batches import DeviceSplit, Sampler
from tripletkd.errors import UserError
from tripletkd.evaluation import measure as evaluate
from tripletkd.provenance import environment, fingerprint, sha256
from tripletkd.tracking import run_record as record
from tripletkd.tracking.run_record import Record
from tripletkd.training.checkpoint import Checkpoint
from tripletkd.training.ensemble import Ensemble
from tripletkd.training.loop import Fitted, Watch, fit
from tripletkd.training.optim import Recipe
from tripletkd.training.trainer import Loss, Teacher, Trainer, accuracy

ROOT = Path(__file__).parent.parent
# run.precision -> the type of weights, losses and measurements; that of the networks' passes in training, if another
PRECISIONS = {
    "float32": (torch.float32, None),
    "float64": (torch.float64, None),
    "tf32": (torch.float32, None),
    "bfloat16": (torch.float32, torch.bfloat16),
}
LAYERS = 2**32  # beyond every seed of a network: the methods' own layers have streams of their own
THREADS = torch.get_num_threads()
SMALL_IMAGE = 16  # up to this height one seed's kernels leave a processor idle, and all seeds go into each


@dataclass
class Setting:
    """A suite's data on the device, and how to compute there."""

    dataset: data.Dataset
    train: DeviceSplit
    test: DeviceSplit
    device: torch.device
    dtype: torch.dtype
    autocast: torch.dtype | None
    folded: bool
    captured: bool

    @classmethod
    def of(cls, stage: Stage, dataset: data.Dataset | None = None) -> "Setting":
        """The process set up as `run` says, the suite's data checked by its hash; UserError if not here."""
        settings = stage.config.run
        device = _device(settings)
        set_up(settings.precision, settings.deterministic)
        dtype, autocast = PRECISIONS[settings.precision]
        dataset = dataset or data.load(stage.place("data"))
        if stage.config.split == "validation":
            dataset = dataset.with_holdout(stage.suite.holdout)
        inputs = stage.suite.inputs.build(dataset.image_shape[2])
        train, test = (DeviceSplit(split, inputs, device, dtype) for split in (dataset.train, dataset.test))
        if device.type == "cpu":  # a second thread gains nothing on kernels this small: it spins and waits
            torch.set_num_threads(1 if dataset.image_shape[0] <= SMALL_IMAGE else THREADS)
        folded = folds(settings.folding, device, dataset.image_shape[0])
        captured = settings.capture and device.type == "cuda"
        return cls(dataset, train, test, device, dtype, autocast, folded, captured)


def folds(folding: str, device: torch.device, height: int) -> bool:
    """What run.folding means for images of that height on that device."""
    return {"auto": height <= SMALL_IMAGE or device.type == "cuda", "always": True, "never": False}[folding]


def _device(settings: Any) -> torch.device:
    """run.device, as far as it is here."""
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise UserError("run.device: cuda, but PyTorch finds no CUDA device here; expected cpu or auto")
    device = torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")
    if settings.precision == "tf32" and device.type == "cpu":
        raise UserError("run.precision: tf32 is computed by a CUDA device, this run is on a CPU; expected another one")
    return device


def set_up(precision: str, deterministic: bool) -> None:
    """What PyTorch keeps for the whole process."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
        # As use_deterministic_algorithms(True), which imports a compiler (3 s a process).
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs a pass
    torch.backends.cudnn.benchmark = not deterministic
    # PyTorch lets convolutions use TF32 unless told not to: float32 here means float32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one.

    By default glibc gives large blocks back to the system, which hands them out again page by page, each filled with
    zeros: a fifth of the time of an epoch on CIFAR-10. Other C libraries are left as they are.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, most)
        mallopt(mmap_threshold, most)


def load_teacher(stage: Stage, setting: Setting) -> tuple[nn.Module, str]:
    """The suite's teacher and the hash of its weights; UserError if it is not of this data, or below its floor."""
    folder, floor = stage.place("runs", stage.config.split, "teacher"), stage.suite.teacher.floor
    made = record.read(folder)
    if made.data_sha256 != setting.dataset.sha256():
        raise UserError(f"{folder}: trained on other images than {stage.place('data')}; run train_teacher again")
    if not made.weights_sha256:
        raise UserError(f"{folder}: the teacher's training failed: {made.failed}")
    [(seed, network)] = made.load_networks(folder).items()
    reached = 100 * accuracy(Ensemble([network], setting.device, setting.dtype, folded=False), setting.test)[0]
    if reached < floor:
        raise UserError(
            f"suites.{stage.config.suite}.teacher.floor: the teacher reaches {reached:.2f} % on the "
            f"{stage.config.split} split, {floor} % is demanded before a student is trained; train it better "
            "(teacher.recipe) or lower the floor"
        )
    return network, made.weights_sha256[str(seed)]


def distill(
    stage: Stage, setting: Setting, cell: str, method: str, params: Any, recipe: Recipe, **options: Any
) -> tuple[Record, Fitted]:
    """Train all seeds of the suite's student by one method under the suite's teacher; options: of `train`."""
    module, seeds, network = methods.load(method), stage.config.run.seeds, stage.suite.student.network
    needs = methods.needs(module, params)
    shape, classes = setting.dataset.image_shape, len(setting.dataset.classes)
    teacher, teacher_sha256 = load_teacher(stage, setting)
    students = [models.build(network, shape, classes, seed) for seed in seeds]
    return train(
        stage,
        setting,
        cell=cell,
        method=method,
        network=network,
        students=students,
        loss=partial(module.loss, params=params),
        seeds=seeds,
        recipe=recipe,
        needs=needs,
        params={"method": asdict(params)},
        layers=own_layers(module, params, students, teacher, seeds, setting),
        teacher=guide(teacher, setting, needs),
        watch=evaluate.Triplets(evaluate.teacher_logits(teacher, setting.test), setting.test.labels),
        teacher_sha256=teacher_sha256,
        **options,
    )


def guide(teacher: nn.Module, setting: Setting, needs: Collection[str]) -> Teacher | None:
    """The teacher as the loop asks it, if the method does."""
    if "teacher" not in needs:
        return None
    return Teacher(teacher, setting.train, "features" in needs, "teacher_negative" in needs, setting.autocast)


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
    return [models.seeded(LAYERS + seed, partial(method.layers, *shapes, params)) for seed in seeds]


def train(
    stage: Stage,
    setting: Setting,
    *,
    cell: str,
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
    watch: Watch | None = None,
    teacher_sha256: str | None = None,
    more: bool = False,
) -> tuple[Record, Fitted]:
    """Train the students, from a checkpoint where one is left, and write the run record runs/<suite>/<split>/<cell>.

    more: whether the stage has more to train after this. The checkpoint stays until `done`, after all is written and
    logged: until then no training is done twice.
    """
    dataset, split = setting.dataset, stage.config.split
    made = Record(
        suite=stage.config.suite,
        split=split,
        cell=cell,
        method=method,
        network=network,
        image_shape=dataset.image_shape,
        classes=len(dataset.classes),
        seeds=seeds,
        failed={},
        params=params | {"recipe": asdict(recipe), "inputs": asdict(stage.suite.inputs)},
        data_sha256=dataset.sha256(),
        teacher_sha256=teacher_sha256,
        environment=environment(setting.device.type)
        | {"precision": stage.config.run.precision, "deterministic": stage.config.run.deterministic}
        | {"folded": setting.folded, "captured": setting.captured},
    )
    trainer = Trainer(
        students,
        loss,
        recipe,
        setting.device,
        setting.dtype,
        setting.folded,
        features="features" in needs,
        layers=layers,
        autocast=setting.autocast,
    )
    checkpoint = Checkpoint(
        checkpoint_path(stage, cell),
        fingerprint(asdict(made), stage.suite.evaluate_every, [sha256(ROOT / name) for name in code(method)]),
        minutes=stage.config.run.checkpoint_minutes,
        deadline=stage.deadline,
        more=more,
    )
    fitted = fit(
        trainer,
        seeds,
        recipe,
        Sampler(dataset.train.labels, setting.train.inputs, "negative" in needs),
        setting.train,
        setting.test,
        teacher=teacher,
        watch=watch,
        evaluate_every=stage.suite.evaluate_every,
        checkpoint=checkpoint,
        description=f"{stage.config.suite}/{cell}",
        captured=setting.captured,
        quiet=stage.quiet,
    )
    made = replace(made, failed={str(seed): why for seed, why in fitted.failed.items()})
    images, seconds = len(dataset.train.labels) * recipe.epochs * len(seeds), fitted.seconds
    log = stage.log(training_seconds=round(seconds, 2), training_images_per_second=round(images / seconds))
    return record.write(stage.place("runs", split, cell), made, fitted, log), fitted


def checkpoint_path(stage: Stage, cell: str) -> Path:
    return stage.place("checkpoints", stage.config.split, f"{cell}.safetensors")


def done(stage: Stage, *cells: str) -> None:
    """All that the stage makes of these cells is written: their checkpoints may go."""
    for cell in cells:
        checkpoint_path(stage, cell).unlink(missing_ok=True)


def refuse_failure(made: Record) -> None:
    """UserError if no seed came through."""
    if not made.weights_sha256:
        failures = "; ".join(f"seed {seed}: {why}" for seed, why in made.failed.items())
        raise UserError(f"{made.suite}/{made.cell}: every seed failed: {failures}")


def code(method: str) -> list[str]:
    """The files that training depends on, as dvc.yaml has them: a checkpoint does not outlive a change of one."""
    library = ["data", "evaluate", "ensemble", "models", "networks", "train", "capture", "checkpoint", "methods/_terms"]
    names = [*library, f"methods/{'scratch' if method == 'teacher' else method}"]
    return ["stages/_training.py", *(f"tripletkd/{name}.py" for name in names)]
