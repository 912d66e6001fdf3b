"""What the stages that touch networks share: data on the device, the jobs of a suite, and the teacher."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from stages._command import Stage
from tripletkd import methods
from tripletkd.data import dataset as canonical
from tripletkd.data.batches import DeviceData
from tripletkd.errors import UserError
from tripletkd.evaluation.measurement import refuse_unlike
from tripletkd.training import run_record
from tripletkd.training.compute import Compute, are_resident, select_compute, set_up_process
from tripletkd.training.job import Conditions, Job, RunKey
from tripletkd.training.run_record import Record, TrainedRun
from tripletkd.training.trainer import Teacher


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
        stage: whose suite and split it is.
        dataset: in the place of the suite's data.

    Raises:
        UserError: if the device is not here, or the data is not there or damaged.
    """
    run, suite = stage.config.run, stage.suite
    dataset = dataset or canonical.load(stage.path("data"))
    if stage.config.split == "validation":
        dataset = dataset.with_holdout(suite.holdout)
    height, _, channels = dataset.image_shape
    compute = select_compute(run.device, suite.precision, run.fuse_seeds, run.cuda_graph, height)
    set_up_process(compute, suite.precision, run.deterministic, height)
    resident = are_resident(run.residence, dataset.train.nbytes + dataset.test.nbytes, compute.device)
    data = DeviceData.load(dataset, suite.inputs.build(channels), compute.device, compute.dtype, resident)
    return Setup(data, compute)


def conditions(stage: Stage, setup: Setup, teacher_sha256: str | None = None) -> Conditions:
    """Collect what all jobs of a training stage have in common."""
    return Conditions(
        inputs=asdict(stage.suite.inputs),
        precision=stage.suite.precision,
        deterministic=stage.config.run.deterministic,
        evaluate_every=stage.suite.evaluate_every,
        data_sha256=setup.data_sha256,
        teacher_sha256=teacher_sha256,
        code=stage.code,
    )


def key_of(stage: Stage, name: str) -> RunKey:
    """Name a run of the stage's suite and split."""
    assert stage.config.suite is not None
    return RunKey(stage.config.suite, stage.config.split, name)


def job_of_teacher(stage: Stage, setup: Setup) -> Job:
    """Describe the training of the suite's teacher, whichever stage asks."""
    teacher = stage.suite.teacher
    return Job(
        key=key_of(stage, "teacher"),
        network=teacher.network,
        method="scratch",
        params=methods.load("scratch").Params(ce=1.0),
        recipe=teacher.recipe,
        seeds=[teacher.seed],
        conditions=conditions(stage.named("train_teacher"), setup),
    )


def job_of_method(stage: Stage, setup: Setup, teacher_sha256: str) -> Job:
    """Describe the training of the suite's student by the stage's method, whichever stage asks."""
    method, suite = stage.config.method, stage.suite
    assert method is not None
    return Job(
        key=key_of(stage, method),
        network=suite.student.network,
        method=method,
        params=suite.methods[method],
        recipe=suite.student.recipe,
        seeds=suite.seeds,
        conditions=conditions(stage.named("distill"), setup, teacher_sha256),
    )


def is_of(job: Job, record: Record, equivalent_code: Sequence[str]) -> bool:
    """Whether a record is of a job: by its fingerprint, with this code or one that params.yaml calls equivalent."""
    if record.code in equivalent_code:
        job = replace(job, conditions=replace(job.conditions, code=record.code))
    return record.fingerprint == job.fingerprint(record.seed)


def refuse_other_job(stage: Stage, record: Record, job: Job) -> None:
    """Compare a record with the job that params.yaml describes; another machine, or PyTorch, is welcome.

    Through `dvc repro` they always agree; a record that was carried here may be of anything.

    Raises:
        UserError: if they differ; it names the first key that does.
    """
    asked, name = job.conditions, "its teacher" if job.key.name == "teacher" else f"its student; methods.{job.method}"
    codes = [asked.code, *stage.config.run.equivalent_code]
    expected = {
        "images of sha256": asked.data_sha256,
        "a teacher of sha256": asked.teacher_sha256,
        "split": job.key.split,
        "network": job.network,
        "precision": asked.precision,
        "deterministic": asked.deterministic,
        **job.described_params(),
        "code of sha256": record.code if record.code in codes else asked.code,
    }
    found = {
        "images of sha256": record.data_sha256,
        "a teacher of sha256": record.teacher_sha256,
        "split": record.split,
        "network": record.network,
        **{name: record.environment.get(name) for name in ("precision", "deterministic")},
        **record.params,
        "code of sha256": record.code,
    }
    place = run_record.seed_folder(stage.path("runs", job.key.split, job.key.name), record.seed)
    refuse_unlike(str(place), found, expected, f"suites.{job.key.suite}, {name}")


def load_teacher(stage: Stage, setup: Setup) -> tuple[Teacher, str]:
    """Load the suite's teacher and the hash of its weights.

    Raises:
        UserError: if it is not there, not as params.yaml says, or below its floor.
    """
    folder, suite, split = stage.path("runs", stage.config.split, "teacher"), stage.suite, stage.config.split
    [record] = run_record.read_run(folder, [suite.teacher.seed]).records
    refuse_other_job(stage, record, job_of_teacher(stage, setup))
    if record.weights_sha256 is None:
        raise UserError(f"{folder}: the teacher's training failed: {record.failed}")
    teacher = Teacher(run_record.load_network(folder, record), setup.data)
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
        UserError: if no seed came through.
    """
    if not run.networks:
        first: Record = run.records[0]
        failures = "; ".join(f"seed {seed}: {why}" for seed, why in run.failed.items())
        raise UserError(f"{first.suite}/{first.name}: every seed failed: {failures}")
