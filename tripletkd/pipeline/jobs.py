"""The jobs of a suite: its data on the device, the identity of each of its runs, and its teacher."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tripletkd import models
from tripletkd.config.schema import ABLATED, Variant
from tripletkd.data import dataset as canonical
from tripletkd.data.batches import DeviceData
from tripletkd.data.photograph_batches import PhotographInputs
from tripletkd.data.photograph_batches import load as load_photographs
from tripletkd.data.photographs import PhotographSplit
from tripletkd.errors import UserError
from tripletkd.methods import MethodParams, scratch
from tripletkd.pipeline.fetched_weights import Kind, initial_of, read_initial
from tripletkd.pipeline.stage import Stage, torchrun
from tripletkd.training import run_record
from tripletkd.training.compute import CORES, Compute, are_resident, select_compute, set_up_process
from tripletkd.training.distributed import on_own_device
from tripletkd.training.identity import RunIdentity, described, refuse_unlike
from tripletkd.training.initial_weights import start_from
from tripletkd.training.job import NO_TRAINING, Job, build_trainer
from tripletkd.training.optim import Recipe
from tripletkd.training.run_record import Record, TrainedRun
from tripletkd.training.trainer import Teacher, Trainer


@dataclass(frozen=True)
class Setup:
    """A suite's data for the device, and how to compute there."""

    data: DeviceData
    compute: Compute

    @cached_property
    def data_sha256(self) -> str:
        """Hash the data set, once for all jobs: it may be larger than memory."""
        return self.data.dataset.sha256()


def set_up(stage: Stage, dataset: canonical.Dataset | None = None) -> Setup:
    """Set up this process as the suite and `run` say, and open the suite's data, checked by its hash.

    Args:
        stage: Whose suite and split it is.
        dataset: In the place of the suite's data.

    Raises:
        UserError: If the device is not here, or the data is not there or damaged.
    """
    run, suite = stage.config.run, stage.suite
    if dataset is None:
        refuse_other_data(stage)
    dataset = dataset or canonical.load(stage.path("data"))
    if stage.config.split == "validation":
        dataset = dataset.with_holdout(suite.holdout)
        if twice := dataset.duplicates()["train_and_test"]:
            stage.say(f"warning: {stage.path('data')}: {twice} images are held out and trained on, too: equal files")
    height, _, channels = dataset.image_shape
    compute = select_compute(run.device, suite.precision, run.fuse_seeds, run.cuda_graph, height)
    if torchrun()[1] > 1:
        compute = on_own_device(compute)
    set_up_process(compute, suite.precision, run.deterministic, height)
    inputs = suite.inputs.build(channels)
    if isinstance(dataset.train, PhotographSplit) and isinstance(inputs, PhotographInputs):
        workers = CORES if run.workers is None else run.workers
        return Setup(load_photographs(dataset, inputs, compute.device, compute.dtype, workers), compute)
    resident = are_resident(run.residence, dataset.train.nbytes + dataset.test.nbytes, compute.device)
    return Setup(DeviceData.load(dataset, inputs, compute.device, compute.dtype, resident), compute)


def refuse_other_data(stage: Stage) -> None:
    """Compare the images that were fetched with what params.yaml says of them; warn if only their origin differs.

    Raises:
        UserError: If they were selected or resized otherwise. What is not there or damaged, whoever reads it says.
    """
    path, settings = stage.path("data") / canonical.DESCRIPTION, stage.suite.data
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(found, dict) or "source" not in found:
        return
    source, selection, all_of_them = found["source"], found.get("selection", ""), "all images as they are"
    said, again = (
        f"params.yaml (suites.{stage.suite.name}.data) has",
        f"python -m stages.fetch suite={stage.suite.name}",
    )
    if selection != settings.selection:
        raise UserError(
            f"{path}: made with {selection or all_of_them}, {said} {settings.selection or all_of_them}; run `{again}`"
        )
    if source != settings.origin:
        stage.say(f"warning: {path}: of {source}, {said} {settings.origin}; `{again}` fetches that")


@dataclass(frozen=True)
class Runs:
    """Describes the runs of a stage's suite and split, as params.yaml has them.

    Attributes:
        stage: Whose suite and split it is.
        data_sha256: The images that the runs are trained and measured on.
        teacher_sha256: The teacher's weights; None as long as nobody needs them.
        fetched: Whether weights that a network starts from are here, so that their hash counts.
    """

    stage: Stage
    data_sha256: str
    teacher_sha256: str | None = None
    fetched: bool = True

    def teacher(self) -> Job:
        """Describe the training of the suite's teacher."""
        teacher = self.stage.suite.teacher
        params = scratch.Params(ce=1.0)
        identity = self._identity("teacher", "scratch", params, teacher.recipe)
        return Job(identity, params, teacher.recipe or NO_TRAINING, [teacher.seed])

    def student(self, method: str) -> Job:
        """Describe the training of the suite's student by a method."""
        suite = self.stage.suite
        return self._student(method, method, suite.methods[method], suite.student.recipe)

    def variant(self, ablation: str, variant: Variant) -> Job:
        """Describe the training of the suite's student by one variant of an ablation."""
        name = f"ablations/{ablation}/{variant.folder_name}"
        return self._student(name, ABLATED, variant.params, variant.recipe)

    def _student(self, name: str, method: str, params: MethodParams, recipe: Recipe) -> Job:
        suite = self.stage.suite
        identity = self._identity(name, method, params, recipe)
        return Job(identity, params, recipe, suite.seeds, suite.teacher.network)

    def _identity(self, name: str, method: str, params: MethodParams, recipe: Recipe | None) -> RunIdentity:
        suite, kind = self.stage.suite, kind_of(name)
        initial = initial_of(self.stage, kind) if self.fetched else None
        return RunIdentity(
            suite=suite.name,
            split=self.stage.config.split,
            name=name,
            method=method,
            network=getattr(suite, kind).network,
            params={} if name == "teacher" else described(params),
            recipe=described(recipe) if recipe else {},
            inputs=described(suite.inputs),
            precision=suite.precision,
            deterministic=self.stage.config.run.deterministic,
            evaluate_every=suite.evaluate_every,
            data_sha256=self.data_sha256,
            teacher_sha256=None if name == "teacher" else self.teacher_sha256,
            initial_sha256=initial.sha256 if initial else None,
        )


def kind_of(name: str) -> Kind:
    """Say which of a suite's networks a run of that name trains."""
    return "teacher" if name == "teacher" else "student"


def make_trainer(stage: Stage, setup: Setup, job: Job, seeds: Sequence[int], teacher: Teacher | None) -> Trainer:
    """Make the trainer of a job for some of its seeds, which start from the suite's weights where it names any.

    Raises:
        UserError: If these weights are not there, or the network or the method does not fit the images.
    """
    trainer = build_trainer(job, seeds, setup.data, setup.compute, teacher)
    _refuse_unsound(job, seeds[0], trainer, setup.data)
    start_from(trainer, read_initial(stage, kind_of(job.identity.name)))
    return trainer


def _refuse_unsound(job: Job, seed: int, trainer: Trainer, data: DeviceData) -> None:
    """Raise UserError if a network is more than a function of its image, its weights and its seed."""
    (height, width, channels), classes, name = data.dataset.image_shape, len(data.dataset.classes), job.identity.network
    network, made = models.build(name, (height, width, channels), classes, seed), trainer.students.member(0)
    drawn, again = models.weights(made), models.weights(network)
    if other := [key for key, tensor in again.items() if not torch.equal(tensor.to(drawn[key]), drawn[key])]:
        raise UserError(
            f"{name}: {other[0]} begins with numbers that no seed determines; draw them by PyTorch's functions"
        )
    if still := [path for path, module in network.named_modules() if not module.training]:
        raise UserError(
            f"{name}: {still[0]} is in eval mode from the start, which the first evaluation would undo; expected a "
            "forward pass that does not depend on it, or requires_grad=False"
        )
    images = torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together, alone = (network.eval()(given).logits for given in (images, images[:1]))
    if not torch.allclose(together[:1], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()), equal_nan=True):
        raise UserError(
            f"{name}: its output for an image depends on the others of the batch in eval mode too, as that of batch "
            "norm with track_running_stats=False does; expected a network without that"
        )


def is_of(stage: Stage, job: Job, record: Record) -> bool:
    """Tell whether a record is of a job, by today's versions of packages and by code that computes the same."""
    is_current = record.versions == job.versions and record.code in accepted_code(stage, job)
    return record.identity == job.identity and is_current


def refuse_other_job(stage: Stage, place: object, found: RunIdentity, codes: Iterable[str], job: Job) -> None:
    """Compare a run that is there with the job that params.yaml describes.

    The machine and the versions of packages may be others.

    Raises:
        UserError: If the run is of another job, or was computed by other code. The message names the first difference.
    """
    source = f"suites.{job.identity.suite}, " + (
        "its teacher" if job.identity.is_teacher else f"its student; methods.{job.identity.method}"
    )
    refuse_unlike(place, found, job.identity, source)
    accepted = accepted_code(stage, job)
    for code in codes:
        if code not in accepted:
            raise UserError(
                f"{place}: computed by code of sha256 {code}, the code here has {job.code}; run `dvc repro`, or say in "
                "run.equivalent_code that it computes the same bytes"
            )


def accepted_code(stage: Stage, job: Job) -> Sequence[str]:
    """List the code that may have computed a job: that of today, and what params.yaml calls equivalent for it."""
    name = "teacher" if job.identity.is_teacher else job.identity.method
    equivalent = stage.config.run.equivalent_code
    return [job.code, *(e.code for e in equivalent if e.suite == job.identity.suite and name in e.methods)]


def read_finished(stage: Stage, job: Job) -> TrainedRun:
    """Read the run of a job: all of its seeds, each as params.yaml says.

    Raises:
        UserError: If a seed is not there, is damaged, or is of another job.
    """
    folder = stage.path("runs", job.identity.split, job.identity.name)
    run = run_record.read_run(folder, job.seeds)
    for record in run.records:
        refuse_other_job(stage, run_record.seed_folder(folder, record.seed), record.identity, [record.code], job)
    return run


def load_teacher(stage: Stage, setup: Setup) -> tuple[Teacher, str]:
    """Load the suite's teacher and the hash of its weights.

    Raises:
        UserError: If it is not there, not as params.yaml says, or below its floor.
    """
    suite, split, run = stage.suite, stage.config.split, read_finished(stage, Runs(stage, setup.data_sha256).teacher())
    [record] = run.records
    if record.weights_sha256 is None:
        raise UserError(f"{record.identity}: the teacher's training failed: {record.failed}")
    teacher = Teacher(run.networks[record.seed], setup.data)
    reached = 100 * teacher.test_accuracy
    if reached < suite.teacher_floor:
        raise UserError(
            f"suites.{suite.name}.teacher_floor: the teacher reaches {reached:.2f} % on the {split} split, "
            f"{suite.teacher_floor} % is demanded before a student is trained; train it better (teacher.recipe) or "
            "lower the floor"
        )
    return teacher, record.weights_sha256


def refuse_failure(run: TrainedRun) -> None:
    """Refuse a run of which nothing is left.

    Raises:
        UserError: If no seed came through.
    """
    if not run.networks:
        failures = "; ".join(f"seed {seed}: {why}" for seed, why in run.failed.items())
        raise UserError(f"{run.records[0].identity}: every seed failed: {failures}")
