"""The way of a job to its run record: which seeds are due, together or side by side, from a checkpoint or anew."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from tripletkd import models
from tripletkd.errors import Paused, UserError
from tripletkd.evaluation.metrics import TripletMetrics
from tripletkd.files import Json, whole
from tripletkd.pipeline.fetched_weights import initial_of, read_initial
from tripletkd.pipeline.jobs import Setup, is_of, kind_of, load_teacher, make_trainer, set_up
from tripletkd.pipeline.locks import exclusive
from tripletkd.pipeline.stage import EX_TEMPFAIL, Stage, errors_for_people, torchrun
from tripletkd.provenance import environment, fingerprint
from tripletkd.tracking.live import SUFFIX, Live
from tripletkd.training import run_record
from tripletkd.training.checkpoint import Checkpoint, SavePolicy, is_complete, read_header
from tripletkd.training.compute import CORES
from tripletkd.training.distributed import CommonCheckpoint, ParallelTrainer, Processes, joined
from tripletkd.training.identity import as_block
from tripletkd.training.job import Job
from tripletkd.training.loop import Monitoring, TrainResult, fit
from tripletkd.training.progress import ProgressBar, SeededOnly, Unseen, Watch
from tripletkd.training.run_record import TrainedRun
from tripletkd.training.stacked_seeds import Ensemble
from tripletkd.training.trainer import Teacher, Trainer, accuracy, predict

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

PROBED, RTOL = 8, 0.01  # images on which a network is compared with its file, and of logits the largest


@dataclass(frozen=True)
class Training:
    """A stage that trains a job: where from, and where to.

    Attributes:
        stage: Its options say which seeds, and whether finished ones too.
        setup: The data, and how to compute.
        job: What is to be trained.
        teacher: For the methods that need one.
        more: Whether the stage has more to train after this.
        processes: That train it together, where torchrun started several.
        began: When, in seconds since 1970.
    """

    stage: Stage
    setup: Setup
    job: Job
    teacher: Teacher | None = None
    more: bool = False
    processes: Processes | None = None
    began: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """The folder of the run, with a folder for each seed."""
        return self._place("runs")

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self._place("checkpoints")

    @property
    def logs(self) -> Path:
        """The folder of the logs of its seeds."""
        return self._place("logs")

    def _place(self, kind: str) -> Path:
        return self.stage.path(kind, self.job.identity.split, self.job.identity.name)

    def monitoring(self, watch: Watch) -> Monitoring:
        """Choose what is measured and shown while the job is trained."""
        teacher = self.teacher
        metrics = None if teacher is None else TripletMetrics(teacher.test_logits, teacher.data.test.labels)
        return Monitoring(self.job.identity.evaluate_every, metrics, watch)


def train_run(training: Training) -> TrainedRun:
    """Train the seeds of a job that are not finished, and return all that were asked for.

    A seed is finished where its record is of the job. Seeds that the job does not name are moved aside.

    Raises:
        UserError: If a seed is asked for that the suite does not have, or another process trains it.
        Paused: If training was stopped at a checkpoint.
    """
    job, only = training.job, training.stage.options.only_seeds
    if unknown := sorted(set(only) - set(job.seeds)):
        raise UserError(f"--only-seeds: {unknown[0]} is not there; expected some of {', '.join(map(str, job.seeds))}")
    wanted = [seed for seed in job.seeds if not only or seed in only]
    if torchrun()[1] == 1:
        _train(training, wanted)
    else:
        with joined(training.setup.compute.device) as processes:
            _train(replace(training, processes=processes), wanted)
        if processes.rank:
            sys.exit()  # what is left to do, the first process does
    trained = run_record.read_run(training.folder, wanted)
    if other := [record.seed for record in trained.records if not is_of(training.stage, job, record)]:
        raise UserError(
            f"{training.folder}: seed {other[0]} was trained with other parameters meanwhile, by another process; run "
            "the same command again"
        )
    return trained


def _train(training: Training, wanted: Sequence[int]) -> None:
    """Train those of the seeds that are not finished."""
    processes = training.processes
    groups, side_by_side = processes.agreed(partial(_plan, training, wanted)) if processes else _plan(training, wanted)
    for group in groups:
        more = training.more or bool(side_by_side) or group is not groups[-1]
        _train_group(
            replace(training, more=more),
            group,
            None if training.stage.options.quiet else ProgressBar(str(training.job.identity)),
        )
    if side_by_side:
        _train_side_by_side(training, side_by_side)


def take(training: Training, seeds: Sequence[int]) -> TrainResult:
    """Take a teacher as its weights are; the history has one row for each seed, of epoch 0."""
    job, data, compute, started = training.job, training.setup.data, training.setup.compute, time.monotonic()
    networks, history = dict[int, nn.Module](), []
    for seed in seeds:
        networks[seed] = models.build(job.identity.network, data.dataset.image_shape, len(data.dataset.classes), seed)
        networks[seed].load_state_dict(read_initial(training.stage, "teacher"))
        networks[seed].to(compute.dtype)
        shares = {
            f"{name}_accuracy": accuracy(predict(networks[seed], split), split.labels).item()
            for name, split in (("train", data.train), ("test", data.test))
        }
        history.append({"seed": seed, "epoch": 0, **shares})
    here = environment(compute.device.type) | {"cuda_graph": False}
    return TrainResult(networks, history, {}, time.monotonic() - started, [here])


def remove_others(stage: Stage, folder: Path, expected: set[str]) -> None:
    """Move aside what is no part of a run, such as seeds that its suite has no longer; say so."""
    place = stage.path("checkpoints") / folder.relative_to(stage.path("runs"))
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in expected and not path.name.startswith("."):
            taken = len([*place.glob(f"{path.name}.removed*")])  # from earlier times
            aside = place / f"{path.name}.removed{f'-{taken + 1}' if taken else ''}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, aside)
            tqdm.write(f"{path}: no part of this run any more; moved to {aside}")


def _warn_of_bfloat16(training: Training) -> None:
    """Say so where PyTorch has no bfloat16 convolutions for the processor: what it does then is another computation.

    It adds gradients up in bfloat16, where other processors add in float32 and round the sum once (docs/working.md).
    """
    compute = training.setup.compute
    on_cpu = compute.device.type == "cpu" and compute.autocast_dtype is torch.bfloat16
    if on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        tqdm.write(
            f"warning: {training.job.identity}, precision: bfloat16, for which this processor has no kernels (x86: "
            "AVX-512); PyTorch takes many times as long as in float32, and rounds gradients more: expected float32",
            file=sys.stderr,
        )


def _due(training: Training, wanted: Sequence[int]) -> list[int]:
    """The seeds to be trained; those that are finished are named."""
    due, finished, stage, reasons = [], [], training.stage, dict[str, list[int]]()
    for seed in wanted:
        place = run_record.seed_folder(training.folder, seed)
        reason = None if place.exists() else ""
        if reason is None:
            reason = "--retrain" if stage.options.retrain else _unfit(training, seed)
        if reason is None:
            finished.append(seed)
            continue
        due.append(seed)
        if reason:
            reasons.setdefault(reason, []).append(seed)
    for reason, seeds in reasons.items():
        stage.say(f"{training.folder}, seeds {', '.join(map(str, seeds))}: {reason}; trained anew")
    if finished:
        names = ", ".join(map(str, finished))
        stage.say(f"{training.job.identity}: seeds {names} are there, as asked for; --retrain trains them anew")
    return due


def _unfit(training: Training, seed: int) -> str | None:
    """Why what is there is not the job's seed; None where it is."""
    try:
        [record] = run_record.read_run(training.folder, [seed]).records
    except (UserError, OSError) as error:
        return str(error)
    is_finished = is_of(training.stage, training.job, record)
    return None if is_finished else "of other parameters, data, teacher, code or versions of packages"


def _plan(training: Training, wanted: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Say which seeds are trained together in this process, and which side by side in processes of their own.

    Groups that an earlier call has begun go on as they were, but for those of one seed where seeds are trained side by
    side: the process of a seed finds its checkpoint. Several processes of one training train one seed after the other.
    """
    if not training.stage.options.only_seeds:
        remove_others(training.stage, training.folder, {f"seed-{seed}" for seed in training.job.seeds})
    due = _due(training, wanted)
    if due and not training.job.recipe.epochs:
        _write(training, take(training, due))
        return [], []
    if due:
        _warn_of_bfloat16(training)
    groups = _resumable(training, due, wanted)
    apart = _processes(training, due) > 1 and not training.processes
    if apart:
        groups = [group for group in groups if len(group) > 1 or group[0] not in due]
    begun = {seed for group in groups for seed in group}
    rest = [seed for seed in due if seed not in begun]
    if apart or not rest:
        return groups, rest
    return [*groups, *([seed] for seed in rest)] if training.processes else [*groups, rest], []


def _processes(training: Training, seeds: Sequence[int]) -> int:
    """How many seeds to train side by side: one group on a GPU or where seeds are fused, else a process a core."""
    compute = training.setup.compute
    if compute.device.type != "cpu" or compute.fuse_seeds:
        return 1
    return max(1, min(training.stage.options.processes or CORES, len(seeds)))


def _checkpoint_path(training: Training, seeds: Sequence[int]) -> Path:
    name = f"seeds-{seeds[0]}-{seeds[-1]}-{training.job.group_fingerprint(seeds)[:12]}.safetensors"
    return training.checkpoints / name


def _resumable(training: Training, due: Sequence[int], wanted: Sequence[int]) -> list[list[int]]:
    """The groups of seeds that an earlier call has begun; seeds trained together go on together.

    Seeds of such a group may be finished: then a process died between its first record and its last log.
    """
    groups: list[list[int]] = []
    for path in sorted(training.checkpoints.glob("seeds-*.safetensors")):
        header = read_header(path)
        if header is None:
            if path.exists():  # and was not removed meanwhile by a process that has finished its seeds
                aside = path.with_suffix(".unreadable")
                path.replace(aside)
                tqdm.write(f"{path}: cannot be read; moved to {aside.name}, starting anew")
            continue
        fingerprint, seeds = header
        if fingerprint != training.job.group_fingerprint(seeds):
            tqdm.write(f"{path}: belongs to a run with other inputs; left there, starting anew")
        elif not set(seeds) <= set(wanted):
            continue
        elif any(seed in due or not _has_log(training, seed) for seed in seeds):
            groups.append(seeds)
        elif is_complete(path, training.job.recipe.epochs):  # a process died after the last log
            for seed in seeds:
                (training.logs / f"seed-{seed}{SUFFIX}").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return groups


def _has_log(training: Training, seed: int) -> bool:
    record = run_record.seed_folder(training.folder, seed) / run_record.RECORD
    return bool(run_record.read_log(_log_path(training, seed), record))


def _log_path(training: Training, seed: int) -> Path:
    return training.logs / f"seed-{seed}.json"


def _train_group(training: Training, seeds: Sequence[int], watch: Watch | None) -> None:
    """Train seeds together, from a checkpoint where one is left, and write their records and logs."""
    stage, setup, job = training.stage, training.setup, training.job
    trainer = make_trainer(stage, setup, job, seeds, training.teacher)
    path = _checkpoint_path(training, seeds)
    here = environment(setup.compute.device.type) | {"cuda_graph": setup.compute.cuda_graph}
    processes = training.processes
    if processes:
        here |= {"processes": processes.count}
        trainer = ParallelTrainer(trainer, processes)
    checkpoint = Checkpoint(path, job.group_fingerprint(seeds), seeds, here, _save_policy(training))
    if processes:
        checkpoint = CommonCheckpoint(checkpoint, processes)
    if processes and processes.rank:
        fit(trainer, training.monitoring(Unseen()), checkpoint)
        return
    training = replace(training, began=time.time())
    live = Live(watch or Unseen(), training.logs, _about(training, seeds))
    with ExitStack() as locks:
        for seed in seeds:
            words = (job.identity.suite, job.identity.split, job.identity.name, f"seed-{seed}")
            locks.enter_context(exclusive(stage.name, *words))
        locks.callback(live.close)
        result = fit(trainer, training.monitoring(SeededOnly(live, str(job.identity))), checkpoint)
        _refuse_lost_state(training, trainer, seeds, result)
        _write(training, result)
        live.remove()
        path.unlink(missing_ok=True)


def _refuse_lost_state(training: Training, trainer: Trainer, seeds: Sequence[int], result: TrainResult) -> None:
    """Raise UserError if a network gives other outputs than in training once it is made from what its file holds."""
    job, data, students = training.job, training.setup.data, trainer.students
    again = [models.build(job.identity.network, data.dataset.image_shape, len(data.dataset.classes), s) for s in seeds]
    for number, network in enumerate(again):
        network.load_state_dict(models.weights(students.member(number)))
    images = next(iter(data.test.chunks(PROBED)))[0]
    with torch.no_grad():  # computed in the same way, or the precision would make a difference
        rebuilt = Ensemble(again, training.setup.compute, features=False).predict(images)
        outputs = zip(seeds, students.predict(images), rebuilt, strict=True)
    for seed, trained, found in outputs:
        scale = float(found.abs().max())
        if seed in result.networks and not torch.allclose(trained, found, rtol=RTOL, atol=RTOL * scale, equal_nan=True):
            raise UserError(
                f"{job.identity}, seed {seed}: {job.identity.network} has a state that its file does not hold, and "
                "gives other outputs without it; register buffers with persistent=True. Nothing was written"
            )


def _about(training: Training, seeds: Sequence[int]) -> dict[int, Json]:
    """Describe seeds that are in training, for the mirror in MLflow."""
    job, log = training.job, training.stage.log(training.began, seconds=None)
    said = {
        "identity": as_block(job.identity),
        "code": job.code,
        "versions": job.versions,
        "log": {key: value for key, value in log.items() if value is not None},
    }
    return {seed: {"seed": seed, **said} for seed in seeds}


def _save_policy(training: Training) -> SavePolicy:
    """When to save and to stop; Ctrl-C is for the process that started this one, if one did: it hands it on."""
    beside = multiprocessing.parent_process() is not None
    signals = (signal.SIGTERM,) if beside else (signal.SIGINT, signal.SIGTERM)
    return SavePolicy(
        training.stage.config.run.checkpoint_minutes, training.stage.options.deadline, training.more, signals
    )


def _write(training: Training, result: TrainResult) -> None:
    """Write the record and the log of every seed of a group."""
    job, dataset = training.job, training.setup.data.dataset
    _keep_earlier(training, [*result.networks, *result.failed])
    records = run_record.write_seeds(training.folder, job, dataset.image_shape, len(dataset.classes), result)
    seeds = sorted(record.seed for record in records)
    images = len(dataset.train.labels) * len(result.history)  # a row for each seed's epoch
    figures = {
        "training_seconds": round(result.seconds, 2),
        "training_images_per_second": round(images / result.seconds),
        "environment": _joined(result.environments),
    }
    for record in records:
        shutil.rmtree(_aside(training, record), ignore_errors=True)  # of the same bytes
        together = seeds if training.setup.compute.fuse_seeds else [record.seed]
        about = run_record.seed_folder(training.folder, record.seed) / run_record.RECORD
        log = training.stage.log(training.began, **figures, trained_with=together)  # on which the last bits depend
        run_record.write_log(_log_path(training, record.seed), about, log)


def _keep_earlier(training: Training, seeds: Sequence[int]) -> None:
    """Copy finished seeds that are about to be replaced to the checkpoints: what was finished is never lost."""
    kept = []
    for seed in seeds:
        with suppress(UserError, OSError):  # there is none; the network may be another by now
            record = run_record.read_record(run_record.seed_folder(training.folder, seed))
            kept.append(_aside(training, record))
            if not kept[-1].exists():
                with whole(kept[-1]) as beside:
                    shutil.copytree(run_record.seed_folder(training.folder, seed), beside)
    if kept:
        tqdm.write(f"{training.folder}: the seeds of before are kept as {', '.join(map(str, kept))}")


def _aside(training: Training, record: run_record.Record) -> Path:
    """Name where a seed is kept that another one replaces."""
    return training.checkpoints / f"seed-{record.seed}.{fingerprint(as_block(record))[:8]}"


def _joined(environments: Sequence[Json]) -> Json:
    """Describe the machines of one run as one: where they differ, "the first, then the second"."""
    names = dict.fromkeys(name for environment in environments for name in environment)
    values = {name: list(dict.fromkeys(e.get(name) for e in environments)) for name in names}
    return {name: v[0] if len(v) == 1 else ", then ".join(map(str, v)) for name, v in values.items()}


# --- seeds side by side -----------------------------------------------------------------------------------------------


class _Counter(Unseen):
    """Counts the epochs that all processes have done, for the bar of the process that started them."""

    def __init__(self, epochs: "Synchronized[int]") -> None:
        self.epochs = epochs

    def epoch(self, *_: object) -> None:
        """Count one more."""
        with self.epochs.get_lock():
            self.epochs.value += 1


def _train_side_by_side(training: Training, seeds: Sequence[int]) -> None:
    """Train each seed in a process of its own, with the processors shared among them.

    Raises:
        UserError: If one failed.
        Paused: If they were stopped at checkpoints.
    """
    stage, job, spawn = training.stage, training.job, multiprocessing.get_context("spawn")
    processes, epochs = _processes(training, seeds), spawn.Value("q", 0)
    waiting, running, codes = list(seeds), dict[int, BaseProcess](), dict[int, int | None]()
    bar = tqdm(
        total=len(seeds) * job.recipe.epochs, desc=str(job.identity), unit="epoch", disable=stage.options.quiet or None
    )
    with _handing_on_signals(running) as stopped, _threads(max(1, CORES // processes)), bar:
        while running or (waiting and not stopped):
            while waiting and len(running) < processes and not stopped:
                seed = waiting.pop(0)
                # Without what it has looked up: a suite cannot be handed to another process
                process = spawn.Process(target=_train_alone, args=(replace(stage), job, job.code, seed, epochs))
                process.start()
                running[seed] = process
                if stopped:  # meanwhile
                    process.terminate()
            wait([process.sentinel for process in running.values()], timeout=1)
            bar.update(epochs.value - bar.n)
            for seed in [seed for seed, process in running.items() if process.exitcode is not None]:
                codes[seed] = running.pop(seed).exitcode
    for seed, code in codes.items():
        if code not in (0, EX_TEMPFAIL, -signal.SIGTERM):
            raise UserError(f"seed {seed}: its process ended with exit code {code}; what it said is above")
    if waiting or any(codes.values()):
        raise Paused("every seed that was begun stopped at a checkpoint; the same command goes on from there")


def _train_alone(stage: Stage, job: Job, code: str, seed: int, epochs: "Synchronized[int]") -> None:
    """Train one seed of a job, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    with errors_for_people():
        if replace(job).code != code:
            raise UserError(f"{job.identity}, seed {seed}: the code was changed before its process began; run it again")
        setup = set_up(stage)
        teacher, teacher_sha256 = load_teacher(stage, setup) if job.teacher_network else (None, None)
        initial = initial_of(stage, kind_of(job.identity.name))
        here = (setup.data_sha256, teacher_sha256, initial.sha256 if initial else None)
        if here != (job.identity.data_sha256, job.identity.teacher_sha256, job.identity.initial_sha256):
            raise UserError(
                f"{job.identity}, seed {seed}: the data, the teacher or the initial weights were changed before its "
                "process began; run it again"
            )
        _train_group(Training(stage, setup, job, teacher), [seed], _Counter(epochs))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Give the processes that are started in the block so many threads each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


@contextmanager
def _handing_on_signals(running: Mapping[int, BaseProcess]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on to the processes as SIGTERM; yields those that came. No process outlives the block."""
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
