"""Submit the stages that are due to Slurm, a job each, in the order of DVC's graph: docs/cluster.md."""

import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tripletkd.cli.programs import output
from tripletkd.errors import UserError
from tripletkd.pipeline.stage import CODE, EX_TEMPFAIL, read_paths
from tripletkd.provenance import fingerprint

ALWAYS = "code"  # the stage that always runs: it writes what the code of the others means
BY_SEEDS = ("distill", "ablate")  # train a suite's seeds
TRAIN = ("train_teacher", *BY_SEEDS)  # go on where they were stopped, with or without a checkpoint
OPTIONS = ("--parsable", "--requeue", "--signal=B:TERM@120", "--open-mode=append", "--kill-on-invalid-dep=yes")
NEW = ("git", "ls-files", "--others", "--exclude-standard", "--", *CODE)
# A job refuses to run on other code or parameters than it was submitted with.
# Before the time limit SIGTERM reaches this script alone, which hands it on; it ends the first `wait`. A job that is
# cancelled or preempted is not running any more, has the signal in all its processes, and is Slurm's to queue again or
# not. The number of an array's last task is the whole array's too, so that a task is named by both of its numbers.
SCRIPT = """\
#!/bin/bash
export PATH=%(bin)s:$PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_ON_NODE} DVC_STAGE=%(stage)s %(variables)s
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
running() { [ "$(squeue --noheader --format=%%T --job=$job)" = RUNNING ]; }
check() {
  changed=$({ %(changed)s; %(new)s; } 2>&1); [ -z "$changed" ] && return
  echo "error:" $changed": changed since this job was submitted; nothing is recorded of it: submit again"; exit 1
}
check
trap 'running && kill -TERM $child' TERM
%(command)s & child=$!
wait $child; code=$?
if [ $code -gt 128 ]; then wait $child; code=$?; fi
if [[ $code =~ ^(%(again)s)$ ]] && running; then scontrol requeue $job; fi
[ $code = 0 ] || exit $code
"""
COMMIT = """\
trap '' TERM
check; dvc --wait-for-lock commit --force $DVC_STAGE
"""


class Due(NamedTuple):
    """A stage that `dvc repro` would run now.

    Attributes:
        name: As DVC has it, such as distill@digits-triplet.
        command: What it runs.
        after: Those stages that are due too and whose outputs it reads.
    """

    name: str
    command: str
    after: Sequence[str]


@dataclass(frozen=True)
class Submitter:
    """Submits jobs of this checkout.

    Attributes:
        commit: The commit whose code and params.yaml they are of.
        logs: The folder for what they print.
        options: The options of sbatch that a person chose.
        variables: Of the environment of the jobs.
    """

    commit: str
    logs: Path
    options: Sequence[str]
    variables: str

    def waiting(self) -> dict[str, str]:
        """Look up the numbers of this checkout's jobs that wait or run already, by name.

        Raises:
            UserError: If there is no Slurm here.
        """
        if not shutil.which("squeue"):
            raise UserError(
                "squeue: not found on PATH; expected a machine that submits jobs to a Slurm cluster. docs/cluster.md "
                "has a command for several GPUs or processors of one machine"
            )
        lines = output("squeue", "--me", "--noheader", "--format=%j %F").splitlines()
        jobs = dict(line.rsplit(maxsplit=1) for line in lines)
        return {name.removesuffix(self._suffix): job for name, job in jobs.items() if name.endswith(self._suffix)}

    def stage(self, stage: Due, after: Sequence[str], seeds: Sequence[int]) -> str:
        """Submit a stage's job, and return its number.

        Args:
            stage: What the job runs, and commits to dvc.lock.
            after: The jobs that have to succeed before.
            seeds: Seeds that an array of jobs trains before it, one each.
        """
        dependency = [":".join(["afterok", *after])] if after else []
        if seeds:
            command = f"{stage.command} --only-seeds $SLURM_ARRAY_TASK_ID"
            array = self.job(f"{stage.name}.seeds", command, dependency, tasks=seeds)
            dependency = [*dependency, f"afterany:{array}"]  # a run may go on without a seed that failed
        return self.job(stage.name, stage.command, dependency, COMMIT)

    def job(self, name: str, command: str, dependency: Sequence[str], then: str = "", tasks: Sequence[int] = ()) -> str:
        """Submit a job, or one for each task, and return its number."""
        script = SCRIPT % {
            "bin": shlex.quote(str(Path(sys.executable).parent)),
            "stage": name.removesuffix(".seeds"),
            "variables": self.variables,
            "changed": shlex.join(changed_since(self.commit)),
            "new": shlex.join(NEW),
            "command": command,
            "again": f"{EX_TEMPFAIL}|143"
            if name.startswith(TRAIN)
            else EX_TEMPFAIL,  # 143: SIGTERM outside of training
        }
        words = [*OPTIONS, f"--job-name={name}{self._suffix}"]
        words += [f"--output={self.logs}/{name}.{'%A_%a' if tasks else '%j'}.out"]
        words += [f"--dependency={','.join(dependency)}"] if dependency else []
        words += [f"--array={','.join(map(str, tasks))}"] if tasks else []
        job = output("sbatch", *words, *self.options, script=script + then).split(";")[0].strip()
        print(", ".join([f"job {job}: {name}", *dependency]), flush=True)
        return job

    @property
    def _suffix(self) -> str:
        """What tells the names of this checkout's jobs from another's."""
        return "." + fingerprint(str(Path.cwd().resolve()))[:8]


def main(options: Sequence[str], seed_array: bool) -> None:
    """Submit what is due and does not wait or run already.

    Where MLflow's store is no server, to which several nodes can log at the same time, a last job logs what is there.

    Args:
        options: Of sbatch.
        seed_array: Whether the seeds of a stage are trained as an array of jobs, before the stage itself.

    Raises:
        UserError: If params.yaml is wrong, code or parameters are not committed, or Slurm refuses.
    """
    from tripletkd.config.load import load

    config, commit = load(Path.cwd()), output("git", "rev-parse", "HEAD").strip()
    if changed := (output(*changed_since(commit)) + output(*NEW)).split():
        raise UserError(
            f"{', '.join(changed)}: not committed; jobs run later, and only on the code and the parameters that they "
            "were submitted with: commit, and submit again"
        )
    logs, is_server = read_paths()["logs"] / "slurm", bool(os.environ.get("MLFLOW_TRACKING_URI"))
    logs.mkdir(parents=True, exist_ok=True)
    submitter = Submitter(commit, logs, options, "" if is_server else "MLFLOW_TRACKING_URI=nowhere:")
    jobs, new = submitter.waiting(), list[str]()
    for stage in due():
        if stage.name in jobs:
            print(f"job {jobs[stage.name]}: {stage.name} waits or runs already")
            continue
        suite = re.findall(r"\bsuite=(\S+)", stage.command)[0]
        seeds = config.suites[suite].seeds if seed_array and stage.name.startswith(BY_SEEDS) else ()
        jobs[stage.name] = submitter.stage(stage, [jobs[name] for name in stage.after], seeds)
        new.append(jobs[stage.name])
    if new and not is_server:
        submitter.job("relog", "MLFLOW_TRACKING_URI= python -m tripletkd.tracking", [":".join(["afterany", *new])])
    print(f"{len(new)} stages submitted" + (f"; they print to {logs}, and `squeue --me` shows them" if new else ""))


def due() -> list[Due]:
    """List what `dvc repro` would run, in its order, after it has written what the code means now.

    Raises:
        UserError: If DVC cannot read the project.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    found: dict[str, Due] = {}
    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        with Repo(_wait_for_lock=True) as repo:
            repo.reproduce(ALWAYS, single_item=True)
            changed, graph = repo.status(), repo.index.graph
    except DvcException as error:
        raise UserError(f"dvc: {error}") from None
    for stage in plan_repro(graph):
        after = [before.addressing for before in graph.successors(stage) if before.addressing in found]
        if stage.addressing != ALWAYS and (stage.addressing in changed or after):
            found[stage.addressing] = Due(stage.addressing, stage.cmd, after)
    return list(found.values())


def changed_since(commit: str) -> Sequence[str]:
    """Return the command that names the files of code and parameters that are not as they are in a commit."""
    return "git", "diff", "--name-only", commit, "--", *CODE
