"""The way of a job to its run record: which seeds are due, alone or side by side, from a checkpoint or anew."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from stages._command import EX_TEMPFAIL, Stage, exclusive
from stages._setup import Setup, is_of
from tripletkd.errors import Paused, UserError
from tripletkd.evaluation.metrics import TripletMetrics
from tripletkd.provenance import environment
from tripletkd.training import run_record
from tripletkd.training.checkpoint import Checkpoint, SavePolicy, read_header
from tripletkd.training.compute import CORES
from tripletkd.training.job import Job, build_trainer
from tripletkd.training.loop import Monitoring, TrainResult, fit
from tripletkd.training.run_record import TrainedRun
from tripletkd.training.trainer import Teacher


def train_run(stage: Stage, setup: Setup, job: Job, teacher: Teacher | None = None, more: bool = False) -> TrainedRun:
    """Train the seeds of a job that are not finished, and return all that were asked for.

    A seed is finished where its record has the job's fingerprint. Seeds that the job does not name are moved aside.

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
    if due and not stage.options.worker:
        _warn_of_bfloat16(job, setup)
    groups, side_by_side = _plan(stage, setup, job, wanted, due)
    for group in groups:
        _train_group(stage, setup, job, group, teacher, more or bool(side_by_side) or group is not groups[-1])
    if side_by_side:
        _train_side_by_side(stage, job, side_by_side, _processes(stage, setup, due))
    return run_record.read_run(folder, wanted)


def remove_others(stage: Stage, folder: Path, expected: set[str]) -> None:
    """Move aside what is no part of a run, such as seeds that its suite has no longer; say so."""
    place = stage.path("checkpoints") / folder.relative_to(stage.path("runs"))
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in expected and not path.name.startswith("."):
            aside = place / f"{path.name}.removed"
            if aside.is_dir():  # from an earlier time
                shutil.rmtree(aside)
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, aside)
            tqdm.write(f"{path}: no part of this run any more; moved to {aside}")


def _warn_of_bfloat16(job: Job, setup: Setup) -> None:
    """Say so where PyTorch has no bfloat16 convolutions for the processor: what it does then is another computation.

    It adds gradients up in bfloat16, where others add in float32 and round the sum once (docs/working.md).
    """
    on_cpu = setup.compute.device.type == "cpu" and setup.compute.autocast_dtype is torch.bfloat16
    if on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        tqdm.write(
            f"warning: {job.key}, precision: bfloat16, for which this processor has no kernels (x86: AVX-512); "
            "PyTorch takes many times as long as in float32, and rounds gradients more: expected float32",
            file=sys.stderr,
        )


def _due(stage: Stage, folder: Path, job: Job, wanted: Sequence[int]) -> list[int]:
    """The seeds to be trained; the others are named."""
    due, finished, equivalent = [], [], stage.config.run.equivalent_code
    for seed in wanted:
        place = run_record.seed_folder(folder, seed)
        reason = None if place.exists() else ""
        if reason is None:
            reason = "--retrain" if stage.options.retrain else _unfit(folder, job, seed, equivalent)
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


def _unfit(folder: Path, job: Job, seed: int, equivalent_code: Sequence[str]) -> str | None:
    """Why what stands there is not the job's seed; None where it is."""
    try:
        [record] = run_record.read_run(folder, [seed]).records
    except (UserError, OSError) as error:
        return str(error)
    return None if is_of(job, record, equivalent_code) else "of other parameters, data, teacher or code"


def _plan(
    stage: Stage, setup: Setup, job: Job, wanted: Sequence[int], due: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Say which seeds are trained together in this process, and which side by side in processes of their own.

    Groups that an earlier call has begun go on as they were, but for those of one seed where seeds are trained side by
    side: the process of a seed finds its checkpoint.
    """
    groups = _resumable(stage, job, due, wanted)
    apart = _processes(stage, setup, due) > 1
    if apart:
        groups = [group for group in groups if len(group) > 1 or group[0] not in due]
    begun = {seed for group in groups for seed in group}
    rest = [seed for seed in due if seed not in begun]
    if apart or not rest:
        return groups, rest
    return [*groups, rest], []


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
    """Whether finished seeds may be of that group, whose checkpoint is there still: a process died while it wrote."""
    folder = stage.path("runs", job.key.split, job.key.name)
    records = [run_record.read_record(run_record.seed_folder(folder, seed)) for seed in seeds]
    return all(record.trained_with in (sorted(seeds), [record.seed]) for record in records)


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


def _train_side_by_side(stage: Stage, job: Job, seeds: Sequence[int], processes: int) -> None:
    """Train each seed in a process of its own, so many at a time, with the processors shared among them.

    Raises:
        UserError: if one failed, or trained something else because params.yaml or the code was edited meanwhile.
        Paused: if they were stopped at checkpoints.
    """
    waiting, running, codes = list(seeds), dict[int, "subprocess.Popen[bytes]"](), dict[int, int]()
    with _handing_on_signals(running) as stopped:
        while running or (waiting and not stopped):
            while waiting and len(running) < processes and not stopped:
                seed = waiting.pop(0)
                running[seed] = _start_worker(stage, job, seed, CORES // processes)
            time.sleep(0.05)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                codes[seed] = running.pop(seed).returncode
    if stopped or EX_TEMPFAIL in codes.values():
        raise Paused("every seed that was begun stopped at a checkpoint; the same command goes on from there")
    for seed, code in codes.items():
        if code:
            raise UserError(f"seed {seed}: its process ended with exit code {code}; what it said stands above")
    for seed in seeds:
        record = run_record.read_record(run_record.seed_folder(stage.path("runs", job.key.split, job.key.name), seed))
        if record.fingerprint != job.fingerprint(seed):
            raise UserError(
                f"{job.key}, seed {seed}: params.yaml or the code was changed before its process began; run the same "
                "command again"
            )


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


def _start_worker(stage: Stage, job: Job, seed: int, threads: int) -> "subprocess.Popen[bytes]":
    """Start this stage for one seed of a job, on so many threads."""
    command = [sys.executable, "-m", f"stages.{stage.name}", *stage.options.overrides]
    command += ["--worker", job.key.name, "--only-seeds", str(seed)]
    command += ["--retrain"] if stage.options.retrain else []
    command += ["--quiet"] if stage.options.quiet else []
    if stage.options.deadline is not None:
        command += ["--max-minutes", str(max(0.0, stage.options.deadline - time.monotonic()) / 60)]
    # This interpreter, with the words of our own command line.
    return subprocess.Popen(  # nosec B603  # noqa: S603
        command, env=os.environ | {"OMP_NUM_THREADS": str(max(1, threads))}
    )
