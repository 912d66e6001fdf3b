"""Take seeds over whose records the second edition of this project wrote: weights and histories stay as they are.

    PYTHONPATH=. python docs/cifar10_full/adopt.py FOLDER

FOLDER is a checkout of that edition with runs/cifar10/ and logs/cifar10/. A record of that edition names the machine; a
record of this edition leaves it to the log. The code that computed a seed keeps its hash: run.equivalent_code of
params.yaml has to name it.
"""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tripletkd.errors import UserError
from tripletkd.files import whole, write_json
from tripletkd.pipeline.jobs import Runs
from tripletkd.pipeline.stage import Stage, open_stage
from tripletkd.training.identity import RunIdentity, first_difference
from tripletkd.training.job import Job
from tripletkd.training.run_record import HISTORY, RECORD, WEIGHTS, Record, read_log, read_run, write_log


def main(source: Path) -> None:
    stage = open_stage("distill", ["suite=cifar10", "split=test"])
    teacher = json.loads((source / "runs/cifar10/test/teacher/seed-0" / RECORD).read_text())
    runs = Runs(stage, teacher["data_sha256"], teacher["weights_sha256"])
    for folder in sorted((source / "runs/cifar10/test").glob("*/seed-*")):
        name = folder.parent.name
        adopt(stage, source, folder, runs.teacher() if name == "teacher" else runs.student(name))


def adopt(stage: Stage, source: Path, folder: Path, job: Job) -> None:
    """Write the record and the log of a seed, with its other files copied."""
    old = json.loads((folder / RECORD).read_text())
    if difference := first_difference(asdict(identity_of(old)), asdict(job.identity)):
        raise UserError(f"{folder}: {difference[0]} is {difference[1]}, params.yaml has {difference[2]}")
    place = stage.path("runs", *folder.parts[-3:])
    log = read_log(source / "logs" / Path(*folder.parts[-4:]).with_suffix(".json"), folder / RECORD)
    with whole(place) as beside:
        beside.mkdir(parents=True)
        for name in (WEIGHTS, HISTORY):
            shutil.copy(folder / name, beside / name)
        write_json(beside / RECORD, asdict(record_of(old, job)))
    read_run(place.parent, [old["seed"]])  # which compares the hashes
    environment = {
        k: v for k, v in old["environment"].items() if k not in ("precision", "deterministic", "fused_seeds")
    }
    about = {"environment": environment, "trained_with": old["trained_with"]}
    write_log(stage.path("logs", *folder.parts[-3:]).with_suffix(".json"), place / RECORD, log | about)
    print(f"{place}: taken over")


def identity_of(old: dict[str, Any]) -> RunIdentity:
    """Say what an old record is of, without the parameters that are at their defaults."""
    params = {block: _without(old["params"].get(block, {}), {"standardize": False}) for block in ("method", "inputs")}
    recipe = {k: _without(v, {"warmup_epochs": 0}) for k, v in old["params"]["recipe"].items()}
    return RunIdentity(
        **{key: old[key] for key in ("suite", "split", "name", "network", "data_sha256", "teacher_sha256")},
        method="scratch" if old["method"] == "teacher" else old["method"],
        params=params["method"],
        recipe=recipe,
        inputs=params["inputs"],
        precision=old["environment"]["precision"],
        deterministic=old["environment"]["deterministic"],
        evaluate_every=old["params"]["evaluate_every"],
    )


def _without(block: Any, defaults: dict[str, Any]) -> Any:
    return {k: v for k, v in block.items() if defaults.get(k, ...) != v} if isinstance(block, dict) else block


def record_of(old: dict[str, Any], job: Job) -> Record:
    """Make the record of this edition."""
    versions = {name: old["environment"][name].partition("+")[0] for name in ("torch", "numpy")}
    kept = ("seed", "code", "image_shape", "classes", "failed", "weights_sha256", "history_sha256")
    return Record(identity=job.identity, versions=versions, **{key: old[key] for key in kept})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
