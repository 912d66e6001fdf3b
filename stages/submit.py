"""Submit the stages that are due to Slurm, a job each, in the order of DVC's graph: see docs/cluster.md.

python -m stages.submit [--seed-array] [any option of sbatch]; `make cluster` does it.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages._command import CODE, EX_TEMPFAIL, Stage, _errors_for_people
from tripletkd.errors import UserError
from tripletkd.provenance import fingerprint

RELOGGED = ("train_teacher", "distill", "ablate", "export")  # stages whose runs `make relog` adds to MLflow
BY_SEEDS = ("distill", "ablate")  # stages that train a suite's seeds
RESUMES = ("train_teacher", *BY_SEEDS)  # stages that go on where they were stopped, with or without a checkpoint
NO_STORE = "MLFLOW_TRACKING_URI=nowhere://"
HEAD = f"""\
#!/bin/bash
export PATH={{bin}}:$PATH OMP_NUM_THREADS=${{{{OMP_NUM_THREADS:-$SLURM_CPUS_ON_NODE}}}} {{variables}}
python -m stages.submit --check {{commit}} || exit
trap 'kill -TERM $child' TERM # which Slurm sends to this script alone, before the time limit
{{command}} & child=$!
wait $child; code=$?
[ $code -le 128 ] || {{{{ wait $child; code=$?; }}}} # a signal ends the first wait
if [[ $code =~ ^({EX_TEMPFAIL}|{{again}})$ && $(squeue --noheader --format=%T --job=$SLURM_JOB_ID) = RUNNING ]]; then
    scontrol requeue $SLURM_JOB_ID # unless it was cancelled
fi
[ $code = 0 ] || exit $code
"""
COMMIT = """\
trap '' TERM
python -m stages.submit --check {commit} && exec dvc --wait-for-lock commit --force {stage}
"""


@dataclass(frozen=True)
class Due:
    """A stage that `dvc repro` would run now."""

    name: str
    command: str
    after: Sequence[str]  # of those that are due, the ones whose outputs it reads

    @property
    def kind(self) -> str:
        """What dvc.yaml calls it, without what the matrix adds."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Submission:
    """How this checkout's jobs are submitted.

    Attributes:
        commit: The commit whose code and params.yaml they are of.
        logs: The folder for what they print.
        options: Options of sbatch.
    """

    commit: str
    logs: Path
    options: Sequence[str]

    def job_name(self, name: str) -> str:
        """Name a job so that another checkout's is not taken for it."""
        return f"{name}.{fingerprint(str(Path.cwd().resolve()))[:8]}"

    def waiting(self) -> dict[str, str]:
        """The numbers of the jobs that wait or run already, by name."""
        listed = _output("squeue", "--me", "--noheader", "--format=%j %F")
        return dict(line.rsplit(maxsplit=1) for line in listed.splitlines())

    def submit(self, name: str, script: str, dependency: str = "", array: int = 0) -> str:
        """Submit a script, and return its job's number.

        Args:
            name: What the job is called, without the checkout.
            script: What it runs.
            dependency: The jobs that it waits for, as sbatch takes it.
            array: In how many tasks it is run; 0 is one job that is no array.
        """
        words = ["--parsable", "--requeue", "--signal=B:TERM@120", "--open-mode=append"]
        words += [f"--job-name={self.job_name(name)}", f"--output={self.logs / name}.%{'A_%a' if array else 'j'}.out"]
        words += [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
        words += [f"--array=0-{array - 1}"] if array else []
        number = _output("sbatch", *words, *self.options, script=script).split(";")[0].strip()
        print(f"job {number}: {name}{', ' if dependency else ''}{dependency}", flush=True)
        return number


def main(options: Sequence[str], seed_array: bool) -> None:
    """Submit what is due and does not wait or run already.

    Raises:
        UserError: If params.yaml is wrong, code or parameters are not committed, or Slurm refuses.
    """
    from tripletkd.config.load import load

    config, commit = load(Path.cwd()), _output("git", "rev-parse", "HEAD").strip()
    if changed := _changed_since(commit):
        raise UserError(
            f"{changed}: not committed; jobs run later, and only on the code and the parameters that they were "
            "submitted with: commit, and submit again"
        )
    submission = Submission(commit, Stage("submit", config).paths["logs"] / "slurm", options)
    submission.logs.mkdir(parents=True, exist_ok=True)
    jobs, submitted, relogged = submission.waiting(), [], False
    numbers: dict[str, str] = {}
    for stage in due():
        if number := jobs.get(submission.job_name(stage.name)):
            print(f"job {number}: {stage.name} waits or runs already")
            numbers[stage.name] = number
            continue
        dependency = ":".join(["afterok", *(numbers[name] for name in stage.after)]) if stage.after else ""
        later = stage.kind in RELOGGED and "MLFLOW_TRACKING_URI" not in os.environ
        seeds = config.suites[_suite(stage)].seeds if seed_array and stage.kind in BY_SEEDS else []
        if len(seeds) > 1:
            script = _script(submission, stage, f"{stage.command} --only-seeds {_nth(seeds)}", NO_STORE)
            array = submission.submit(f"{stage.name}.seeds", script, dependency, len(seeds))
            dependency = f"{dependency},afterany:{array}"  # a seed that failed is no end of a run
        script = _script(submission, stage, stage.command, NO_STORE if later else "")
        numbers[stage.name] = submission.submit(
            stage.name, script + COMMIT.format(commit=commit, stage=stage.name), dependency
        )
        submitted.append(numbers[stage.name])
        relogged |= later
    if relogged:
        relog = Due("relog", "python -m tripletkd.tracking.mlflow runs exports", [])
        submission.submit("relog", _script(submission, relog, relog.command), ":".join(["afterany", *submitted]))
    print(f"{len(submitted)} stages submitted" + (f"; they print to {submission.logs}" if submitted else ""))


def due() -> list[Due]:
    """List what `dvc repro` would run, in its order."""
    dvc = (sys.executable, "-m", "dvc", "--wait-for-lock")
    changed = json.loads(_output(*dvc, "status", "--json"))
    edges = re.findall(r'^"(.+)" -> "(.+)";$', _output(*dvc, "dag", "--dot"), re.MULTILINE)
    everything = _output(*dvc, "repro", "--dry", "--force")
    found: dict[str, Due] = {}
    for name, command in re.findall(r"^Running stage '(.+)':\n> (.+)$", everything, re.MULTILINE):
        after = [source for source, target in edges if target == name and source in found]
        if name in changed or after:
            found[name] = Due(name, command, after)
    return list(found.values())


def _script(submission: Submission, stage: Due, command: str, variables: str = "") -> str:
    """The job that runs a command of a stage, and is queued again where it was stopped."""
    return HEAD.format(
        bin=shlex.quote(str(Path(sys.executable).parent)),
        variables=f"DVC_STAGE={stage.name} {variables}",
        commit=submission.commit,
        command=command,
        again="143" if stage.kind in RESUMES else "",  # ended by SIGTERM before, or after, there was a checkpoint
    )


def _suite(stage: Due) -> str:
    return dict(word.split("=", 1) for word in stage.command.split() if "=" in word)["suite"]


def _nth(seeds: Sequence[int]) -> str:
    """The seed of a task of an array, for bash."""
    return f"$(set -- {' '.join(map(str, seeds))}; shift $SLURM_ARRAY_TASK_ID; echo $1)"


def check(commit: str) -> None:
    """Refuse to run a job on other code or parameters than it was submitted with.

    Raises:
        UserError: If a file of them is not as it is in that commit.
    """
    if changed := _changed_since(commit):
        raise UserError(
            f"{changed}: changed since this job was submitted, of commit {commit[:10]}; nothing is recorded of it: "
            "submit again"
        )


def _changed_since(commit: str) -> str:
    """Name the files of code and parameters that are not as they are in a commit, new ones among them."""
    changed = _output("git", "diff", "--name-only", commit, "--", *CODE)
    return ", ".join((changed + _output("git", "ls-files", "--others", "--exclude-standard", "--", *CODE)).split())


def _output(*words: str, script: str | None = None) -> str:
    """Run a program with a script as its standard input, and return what it prints.

    Raises:
        UserError: If it is not there, or fails.
    """
    try:
        # Programs on the PATH; options of sbatch come from whoever submits.
        done = subprocess.run(words, input=script, capture_output=True, text=True, check=False)  # nosec B603  # noqa: S603
    except FileNotFoundError:
        raise UserError(
            f"{words[0]}: not found on PATH; expected a machine that submits jobs to a Slurm cluster. docs/cluster.md "
            "has a command for several GPUs or processors of one machine"
        ) from None
    if done.returncode:
        program, said = "dvc" if words[0] == sys.executable else words[0], (done.stderr or done.stdout).strip()
        raise UserError(
            f"{program}: failed with exit code {done.returncode}: {said}; mend that, and submit again: what was "
            "submitted before stays, and is not submitted twice"
        )
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m stages.submit",
        description=__doc__,
        allow_abbrev=False,
        usage="%(prog)s [--seed-array] [sbatch's]",
    )
    parser.add_argument("--seed-array", action="store_true", help="an array of jobs trains the seeds, one each")
    parser.add_argument("--check", metavar="COMMIT", help=argparse.SUPPRESS)
    known, others = parser.parse_known_args()
    with _errors_for_people():
        check(known.check) if known.check else main(others, known.seed_array)
