"""Submit the stages that are due to Slurm, a job each, in the order of DVC's graph: docs/cluster.md."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tripletkd.cli.programs import output
from tripletkd.errors import UserError
from tripletkd.pipeline.stage import CODE, EX_TEMPFAIL, read_paths
from tripletkd.provenance import fingerprint

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
ALWAYS = "code"  # the stage that always runs: it writes what the code of the others means
BY_SEEDS = ("distill", "ablate")  # train a suite's seeds
TRAIN = ("train_teacher", *BY_SEEDS)  # go on where they were stopped, with or without a checkpoint
RELOGGED = (*TRAIN, "export", "tabulate")  # have runs in MLflow that `make relog` can add later
OPTIONS = ("--parsable", "--requeue", "--signal=B:TERM@120", "--open-mode=append", "--kill-on-invalid-dep=yes")
# Before the time limit SIGTERM reaches this script alone, which hands it on; it ends the first `wait`. A job that is
# cancelled or preempted is not running any more, has the signal in all its processes, and is Slurm's to queue again or
# not. The number of an array's last task is the whole array's too, so that a task is named by both of its numbers.
SCRIPT = """\
#!/bin/bash
export PATH=%(bin)s:$PATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_ON_NODE} DVC_STAGE=%(stage)s %(variables)s
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
running() { [ "$(squeue --noheader --format=%%T --job=$job)" = RUNNING ]; }
python -m tripletkd.cli submit --check %(commit)s || exit
trap 'running && kill -TERM $child' TERM
%(command)s & child=$!
wait $child; code=$?
if [ $code -gt 128 ]; then wait $child; code=$?; fi
if [[ $code =~ ^(%(again)s)$ ]] && running; then scontrol requeue $job; fi
[ $code = 0 ] || exit $code
"""
COMMIT = """\
trap '' TERM
python -m tripletkd.cli submit --check %(commit)s && dvc --wait-for-lock commit --force %(stage)s
"""


@dataclass(frozen=True)
class Due:
    """A stage that `dvc repro` would run now.

    Attributes:
        name: As DVC has it, such as distill@digits-triplet.
        command: What it runs.
        after: Those stages that are due too and whose outputs it reads.
    """

    name: str
    command: str
    after: Sequence[str]

    @property
    def kind(self) -> str:
        """Its name in dvc.yaml."""
        return self.name.partition("@")[0]

    @property
    def suite(self) -> str:
        """The suite that its command names."""
        return next(word for word in self.command.split() if word.startswith("suite=")).removeprefix("suite=")


@dataclass(frozen=True)
class Submitter:
    """Submits jobs of this checkout.

    Attributes:
        commit: The commit whose code and params.yaml they are of.
        logs: The folder for what they print.
        options: The options of sbatch that a person chose.
        server: Whether MLflow's store is a server, to which jobs on several nodes can log at the same time.
    """

    commit: str
    logs: Path
    options: Sequence[str]
    server: bool

    def waiting(self) -> Mapping[str, str]:
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
            script = self._script(stage, f"{stage.command} --only-seeds $SLURM_ARRAY_TASK_ID", log=False)
            array = self._sbatch(f"{stage.name}.seeds", script, dependency, seeds)
            dependency = [*dependency, f"afterany:{array}"]  # a run may go on without a seed that failed
        script = self._script(stage, stage.command, log=self.server or stage.kind not in RELOGGED)
        commit = COMMIT % {"commit": self.commit, "stage": stage.name}
        return self._sbatch(stage.name, script + commit, dependency)

    def relog(self, after: Sequence[str]) -> None:
        """Submit the job that adds to MLflow what other jobs have left behind."""
        relog = Due("relog", "python -m tripletkd.tracking", ())
        self._sbatch(relog.name, self._script(relog, relog.command, log=True), [":".join(["afterany", *after])])

    def _script(self, stage: Due, command: str, log: bool) -> str:
        return SCRIPT % {
            "bin": shlex.quote(str(Path(sys.executable).parent)),
            "stage": stage.name,
            "variables": "" if log else "MLFLOW_TRACKING_URI=nowhere://",
            "commit": self.commit,
            "command": command,
            "again": f"{EX_TEMPFAIL}|143" if stage.kind in TRAIN else EX_TEMPFAIL,  # 143: SIGTERM outside of training
        }

    def _sbatch(self, name: str, script: str, dependency: Sequence[str], tasks: Sequence[int] = ()) -> str:
        words = [*OPTIONS, f"--job-name={name}{self._suffix}"]
        words += [f"--output={self.logs}/{name}.{'%A_%a' if tasks else '%j'}.out"]
        words += [f"--dependency={','.join(dependency)}"] if dependency else []
        words += [f"--array={','.join(map(str, tasks))}"] if tasks else []
        job = output("sbatch", *words, *self.options, script=script).split(";")[0].strip()
        print(", ".join([f"job {job}: {name}", *dependency]), flush=True)
        return job

    @property
    def _suffix(self) -> str:
        """What tells the names of this checkout's jobs from another's."""
        return "." + fingerprint(str(Path.cwd().resolve()))[:8]


def main(options: Sequence[str], seed_array: bool) -> None:
    """Submit what is due and does not wait or run already.

    Args:
        options: Of sbatch.
        seed_array: Whether the seeds of a stage are trained as an array of jobs, before the stage itself.

    Raises:
        UserError: If params.yaml is wrong, code or parameters are not committed, or Slurm refuses.
    """
    from tripletkd.config.load import load

    config, commit = load(Path.cwd()), output("git", "rev-parse", "HEAD").strip()
    if changed := changed_since(commit):
        raise UserError(
            f"{changed}: not committed; jobs run later, and only on the code and the parameters that they were "
            "submitted with: commit, and submit again"
        )
    logs = read_paths()["logs"] / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    submitter = Submitter(commit, logs, options, server="MLFLOW_TRACKING_URI" in os.environ)
    jobs, new = dict(submitter.waiting()), []
    for stage in due():
        if stage.name in jobs:
            print(f"job {jobs[stage.name]}: {stage.name} waits or runs already")
            continue
        seeds = config.suites[stage.suite].seeds if seed_array and stage.kind in BY_SEEDS else ()
        jobs[stage.name] = submitter.stage(stage, [jobs[name] for name in stage.after], seeds)
        new.append(jobs[stage.name])
    if new and not submitter.server:
        submitter.relog(new)
    print(f"{len(new)} stages submitted" + (f"; they print to {logs}, and `squeue --me` shows them" if new else ""))


def due() -> list[Due]:
    """List what `dvc repro` would run, in its order, after it has written what the code means now."""
    output(*DVC, "repro", "--quiet", "--single-item", ALWAYS)
    changed = json.loads(output(*DVC, "status", "--json"))
    edges = re.findall(r'^"(.+)" -> "(.+)";$', output(*DVC, "dag", "--dot"), re.MULTILINE)
    planned = output(*DVC, "repro", "--dry", "--force")
    found: dict[str, Due] = {}
    for name, command in re.findall(r"^Running stage '(.+)':\n> (.+)$", planned, re.MULTILINE):
        after = [source for source, target in edges if target == name and source in found]
        if name != ALWAYS and (name in changed or after):
            found[name] = Due(name, command, after)
    return list(found.values())


def check(commit: str) -> None:
    """Refuse to run a job on other code or parameters than it was submitted with.

    Raises:
        UserError: If a file of them is not as it is in that commit.
    """
    if changed := changed_since(commit):
        raise UserError(
            f"{changed}: changed since this job was submitted, of commit {commit[:10]}; nothing is recorded of it: "
            "submit again"
        )


def changed_since(commit: str) -> str:
    """Name the files of code and parameters that are not as they are in a commit, new ones among them."""
    changed = output("git", "diff", "--name-only", commit, "--", *CODE)
    return ", ".join((changed + output("git", "ls-files", "--others", "--exclude-standard", "--", *CODE)).split())
