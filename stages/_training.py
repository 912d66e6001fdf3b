"""What the stages that touch networks share: data on the device, the teacher, the way of a job to its run record."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from stages._command import EX_TEMPFAIL, Stage, exclusive
from tripletkd.data import dataset as canonical
from tripletkd.data.batches import DeviceData
from tripletkd.errors import Paused, UserError
from tripletkd.evaluation.metrics import TripletMetrics
from tripletkd.provenance import environment
from tripletkd.training import run_record
from tripletkd.training.checkpoint import Checkpoint, SavePolicy, read_header
from tripletkd.training.compute import CORES, Compute, select_compute, set_up_process
from tripletkd.training.job import Conditions, Job, RunKey, build_trainer
from tripletkd.training.loop import Monitoring, TrainResult, fit
from tripletkd.training.run_record import Record, TrainedRun
from tripletkd.training.trainer import Teacher

# Of the code that dvc.yaml names, what computes weights and histories: a finished seed does not outlive its change.
COMPUTES = tuple(
    f"tripletkd/{name}" for name in ("types", "streams", "data", "models", "methods", "training", "evaluation/metrics")
)
KEEPS = ("tripletkd/training/checkpoint.py", "tripletkd/training/run_record.py")  # what was computed, as it is


@dataclass(frozen=True)
class Setup:
    """A suite's data on the device, and how to compute there."""

    data: DeviceData
    compute: Compute


def set_up(stage: Stage, dataset: canonical.Dataset | None = None) -> Setup:
    """Set up this process as the suite and `run` say, and put the suite's data, checked by its hash, on the device.

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
    data = DeviceData.load(dataset, suite.inputs.build(channels), compute.device, compute.dtype)
    return Setup(data, compute)


def conditions(stage: Stage, setup: Setup, teacher_sha256: str | None = None) -> Conditions:
    """Collect what all jobs of a stage have in common."""
    return Conditions(
        inputs=asdict(stage.suite.inputs),
        precision=stage.suite.precision,
        deterministic=stage.config.run.deterministic,
        evaluate_every=stage.suite.evaluate_every,
        data_sha256=setup.data.dataset.sha256(),
        teacher_sha256=teacher_sha256,
        code={name: sha for name, sha in stage.dependencies.items() if name.startswith(COMPUTES) and name not in KEEPS},
    )


def job_of_method(stage: Stage, setup: Setup, teacher_sha256: str) -> Job:
    """Describe the training of the suite's student by the stage's method."""
    method, suite = stage.config.method, stage.suite
    assert method is not None
    return Job(
        key=key_of(stage, method),
        network=suite.student.network,
        method=method,
        params=suite.methods[method],
        recipe=suite.student.recipe,
        seeds=suite.seeds,
        conditions=conditions(stage, setup, teacher_sha256),
    )


def load_teacher(stage: Stage, setup: Setup) -> tuple[Teacher, str]:
    """Load the suite's teacher and the hash of its weights.

    Raises:
        UserError: if it is not there, not of this data, or below its floor.
    """
    folder, suite, split = stage.path("runs", stage.config.split, "teacher"), stage.suite, stage.config.split
    record = run_record.read_record(run_record.seed_folder(folder, suite.teacher.seed))
    if record.data_sha256 != setup.data.dataset.sha256():
        raise UserError(f"{folder}: trained on other images than {stage.path('data')}; run train_teacher again")
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


def train_run(stage: Stage, setup: Setup, job: Job, teacher: Teacher | None = None, more: bool = False) -> TrainedRun:
    """Train the seeds of a job that are not finished, and return all that were asked for.

    A seed is finished where its record has the job's fingerprint. Seeds that the job does not name are removed.

    Args:
        stage: whose options say which seeds, and whether finished ones too.
        setup: data and device.
        job: what is to be trained; its record goes to runs/<suite>/<split>/<name>.
        teacher: for the methods that need one.
        more: whether the stage has more to train after this.

    Raises:
        UserError: if a seed is asked for that the suite does not have, or another process trains it.
        Paused: if training was stopped at a checkpoint.
    """
    folder, only = stage.path("runs", job.key.split, job.key.name), stage.options.only_seeds
    if unknown := sorted(set(only) - set(job.seeds)):
        raise UserError(f"--only-seeds: {unknown[0]} is not there; expected some of {', '.join(map(str, job.seeds))}")
    wanted = [seed for seed in job.seeds if not only or seed in only]
    if not only:
        remove_others(stage, folder, {f"seed-{seed}" for seed in job.seeds})
    due = _due(stage, folder, job, wanted)
    groups, processes = _resumable(stage, job, due, wanted), _processes(stage, setup, due)
    if processes > 1:  # the process of a seed finds its checkpoint
        groups = [group for group in groups if len(group) > 1 or group[0] not in due]
    rest = [seed for seed in due if seed not in {seed for group in groups for seed in group}]
    side_by_side = rest if processes > 1 else []
    if rest and not side_by_side:
        groups.append(rest)
    for group in groups:
        _train_group(stage, setup, job, group, teacher, more or bool(side_by_side) or group is not groups[-1])
    if side_by_side:
        _train_side_by_side(stage, side_by_side, processes)
    return run_record.read_run(folder, wanted)


def remove_others(stage: Stage, folder: Path, expected: set[str]) -> None:
    """Move aside what is no part of a run, such as seeds that its suite has no longer; say so."""
    place = stage.path("checkpoints") / folder.relative_to(stage.path("runs"))
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in expected and not path.name.startswith("."):
            aside = place / f"{path.name}.removed"
            if aside.exists():  # from an earlier time
                shutil.rmtree(aside)
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, aside)
            tqdm.write(f"{path}: no part of this run any more; moved to {aside}")


def _due(stage: Stage, folder: Path, job: Job, wanted: Sequence[int]) -> list[int]:
    """The seeds to be trained; the others are named."""
    due, finished = [], []
    for seed in wanted:
        place = run_record.seed_folder(folder, seed)
        reason = None if place.exists() else ""
        if reason is None:
            reason = "--retrain" if stage.options.retrain else _unfit(place, folder, job, seed)
        if reason is None:
            finished.append(seed)
            continue
        due.append(seed)
        if reason:
            stage.say(f"{place}: {reason}; trained anew")
    if finished:
        stage.say(
            f"{job.key}: seeds {', '.join(map(str, finished))} are there, as asked for; --retrain trains them anew"
        )
    return due


def _unfit(place: Path, folder: Path, job: Job, seed: int) -> str | None:
    """Why what stands there is not the job's seed; None where it is."""
    try:
        record = run_record.read_record(place)
        history = run_record.read_history(place / run_record.HISTORY)
        if record.failed is None:
            run_record.load_network(folder, record)
            if [row["epoch"] for row in history] != list(range(1, job.recipe.epochs + 1)):
                return f"{place / run_record.HISTORY}: not the rows of {job.recipe.epochs} epochs"
    except (UserError, OSError) as error:
        return str(error)
    return None if record.fingerprint == job.fingerprint(seed) else "of other parameters, data, teacher or code"


def _checkpoint_path(stage: Stage, job: Job, seeds: Sequence[int]) -> Path:
    name = f"seeds-{seeds[0]}-{seeds[-1]}-{job.group_fingerprint(seeds)[:12]}.safetensors"
    return stage.path("checkpoints", job.key.split, job.key.name, name)


def _resumable(stage: Stage, job: Job, due: Sequence[int], wanted: Sequence[int]) -> list[list[int]]:
    """The groups of seeds that an earlier call has begun; seeds trained together go on together."""
    groups: list[list[int]] = []
    place = stage.path("checkpoints", job.key.split, job.key.name)
    for path in sorted(place.glob("seeds-*.safetensors")):
        header = read_header(path)
        if header is None:
            if path.exists():  # and was not removed meanwhile by a process that has finished its seeds
                aside = path.with_suffix(".unreadable")
                path.replace(aside)
                tqdm.write(f"{path}: cannot be read; moved to {aside.name}, starting anew")
            continue
        fingerprint, seeds = header
        if fingerprint != job.group_fingerprint(seeds):
            tqdm.write(f"{path}: belongs to a run with other inputs; left there, starting anew")
        elif set(seeds) <= set(wanted) and (set(seeds) & set(due) or _trained_together(stage, job, seeds)):
            groups.append(seeds)
    return groups


def _trained_together(stage: Stage, job: Job, seeds: Sequence[int]) -> bool:
    """Whether finished seeds are of that group: its checkpoint is there still, so the process died while it wrote."""
    folder = stage.path("runs", job.key.split, job.key.name)
    records = [run_record.read_record(run_record.seed_folder(folder, seed)) for seed in seeds]
    return all(record.trained_with == sorted(seeds) for record in records)


def _processes(stage: Stage, setup: Setup, seeds: Sequence[int]) -> int:
    """How many seeds to train side by side: one group on a GPU or where seeds are fused, else a process a core."""
    if stage.options.worker or setup.compute.device.type != "cpu" or setup.compute.fuse_seeds:
        return 1
    return max(1, min(stage.options.processes or CORES, len(seeds)))


def _train_group(
    stage: Stage, setup: Setup, job: Job, seeds: Sequence[int], teacher: Teacher | None, more: bool
) -> None:
    """Train seeds together, from a checkpoint where one is left, and write their records and logs."""
    trainer = build_trainer(job, seeds, setup.data, setup.compute, teacher)
    path = _checkpoint_path(stage, job, seeds)
    checkpoint = Checkpoint(
        path,
        job.group_fingerprint(seeds),
        seeds,
        environment(setup.compute.device.type) | _numerics(job, setup),
        _save_policy(stage, more),
    )
    with ExitStack() as locks:
        for seed in seeds:
            locks.enter_context(exclusive(stage.name, job.key.suite, job.key.split, job.key.name, f"seed-{seed}"))
        result = fit(trainer, monitoring(stage, job, teacher), checkpoint)
        _write(stage, setup, job, result)
        path.unlink(missing_ok=True)


def _save_policy(stage: Stage, more: bool) -> SavePolicy:
    """When to save and to stop; Ctrl-C is for the process that started a worker, which hands it on as SIGTERM."""
    signals = (signal.SIGTERM,) if stage.options.worker else (signal.SIGINT, signal.SIGTERM)
    return SavePolicy(stage.config.run.checkpoint_minutes, stage.options.deadline, more, signals)


def monitoring(stage: Stage, job: Job, teacher: Teacher | None) -> Monitoring:
    """Choose what is measured and shown while a job is trained."""
    only = stage.options.only_seeds
    return Monitoring(
        stage.suite.evaluate_every,
        None if teacher is None else TripletMetrics(teacher.test_logits, teacher.data.test.labels),
        description=f"{job.key}, seed {only[0]}" if stage.options.worker else str(job.key),
        bar=not stage.options.worker,  # several would write over each other
        quiet=stage.options.quiet,
    )


def _numerics(job: Job, setup: Setup) -> dict[str, object]:
    return {
        "precision": job.conditions.precision,
        "deterministic": job.conditions.deterministic,
        "fused_seeds": setup.compute.fuse_seeds,
        "cuda_graph": setup.compute.cuda_graph,
    }


def _write(stage: Stage, setup: Setup, job: Job, result: TrainResult) -> None:
    """Write the record and the log of every seed of a group."""
    folder, dataset = stage.path("runs", job.key.split, job.key.name), setup.data.dataset
    records = run_record.write_seeds(folder, job, dataset.image_shape, len(dataset.classes), result)
    images = len(dataset.train.labels) * job.recipe.epochs * len(records)
    figures = {
        "training_seconds": round(result.seconds, 2),
        "training_images_per_second": round(images / result.seconds),
    }
    for record in records:
        about = run_record.seed_folder(folder, record.seed) / run_record.RECORD
        path = stage.path("logs", job.key.split, job.key.name, f"seed-{record.seed}.json")
        run_record.write_log(path, about, stage.log(**figures))


def _train_side_by_side(stage: Stage, seeds: Sequence[int], processes: int) -> None:
    """Train each seed in a process of its own, so many at a time, with the processors shared among them.

    Raises:
        UserError: if one failed.
        Paused: if they were stopped at checkpoints.
    """
    waiting, running, codes = list(seeds), dict[int, "subprocess.Popen[bytes]"](), dict[int, int]()
    with _handing_on_signals(running) as stopped:
        while running or (waiting and not stopped):
            while waiting and len(running) < processes and not stopped:
                seed = waiting.pop(0)
                running[seed] = _start_worker(stage, seed, CORES // processes)
            time.sleep(0.05)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                codes[seed] = running.pop(seed).returncode
    if stopped or EX_TEMPFAIL in codes.values():
        raise Paused("every seed that was begun stopped at a checkpoint; the same command goes on from there")
    for seed, code in codes.items():
        if code:
            raise UserError(f"seed {seed}: its process ended with exit code {code}; what it said stands above")


@contextmanager
def _handing_on_signals(running: Mapping[int, "subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on to the processes as SIGTERM; yields those that came. None outlives the block."""
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        came.append(number)
        for process in running.values():
            process.terminate()

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for process in running.values():
            process.kill()


def _start_worker(stage: Stage, seed: int, threads: int) -> "subprocess.Popen[bytes]":
    """Start this stage for one seed, on so many threads."""
    command = [sys.executable, "-m", f"stages.{stage.name}", *stage.options.overrides]
    command += ["--worker", "--only-seeds", str(seed)]
    command += ["--retrain"] if stage.options.retrain else []
    command += ["--quiet"] if stage.options.quiet else []
    if stage.options.deadline is not None:
        command += ["--max-minutes", str(max(0.0, stage.options.deadline - time.monotonic()) / 60)]
    # This interpreter, with the words of our own command line.
    return subprocess.Popen(  # nosec B603  # noqa: S603
        command, env=os.environ | {"OMP_NUM_THREADS": str(max(1, threads))}
    )


def refuse_failure(run: TrainedRun) -> None:
    """Refuse a run of which nothing is left.

    Raises:
        UserError: if no seed came through.
    """
    if not run.networks:
        first: Record = run.records[0]
        failures = "; ".join(f"seed {seed}: {why}" for seed, why in run.failed.items())
        raise UserError(f"{first.suite}/{first.name}: every seed failed: {failures}")


def key_of(stage: Stage, name: str) -> RunKey:
    """Name a run of the stage's suite and split."""
    assert stage.config.suite is not None
    return RunKey(stage.config.suite, stage.config.split, name)
